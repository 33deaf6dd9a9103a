"""GIN with a virtual node against its formulas, PyG's convolution, and OGB's parameter count."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from seqgraph.config import arguments, build_part, load_config
from seqgraph.errors import ConfigError
from seqgraph.plugin import manager
from seqgraph_graph_mamba.gin_vn import GINVN
from seqgraph_graph_mamba.graph import Graph, collate

SETS = ("bace", "bbbp", "esol", "freesolv")


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _embed(tables: nn.ModuleList, codes: Tensor) -> Tensor:
    return sum(table.weight[codes[:, i]] for i, table in enumerate(tables))


def _normalised(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    mean, var = (x.mean(0), x.var(0, unbiased=False)) if norm.training else (norm.running_mean, norm.running_var)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def _dense(model: GINVN, graphs: list[Graph]) -> Tensor:
    """OGB's computation with a node-by-node adjacency, one graph's rows marked by a matrix; no dropout."""
    batch = collate(graphs)
    V, S = batch.num_nodes, batch.num_graphs
    member = (batch.batch[:, None] == torch.arange(S)).double()  # (V, S)
    source, target = batch.edge_index
    into, out_of = (torch.zeros(V, batch.num_edges).double() for _ in range(2))
    into[target, torch.arange(batch.num_edges)] = 1
    out_of[source, torch.arange(batch.num_edges)] = 1
    h = _embed(model.node_encoder.features.tables, batch.x)
    u = model.virtual.repeat(S, 1)
    for i, layer in enumerate(model.layers):
        encoder = model.edge_encoder if i == 0 else model.edge_encoders[i - 1]
        x = h + member @ u
        edge = _embed(encoder.features.tables, batch.edge_attr)
        inner, norm, _, _, outer = layer.conv.mlp
        y = (1 + layer.conv.eps) * x + into @ torch.relu(out_of.T @ x + edge)
        y = torch.relu(_normalised(y @ inner.weight.T + inner.bias, norm)) @ outer.weight.T + outer.bias
        h = _normalised(y, layer.norm)
        if i < len(model.layers) - 1:
            h = torch.relu(h)
            first, norm_1, _, second, norm_2, _, _ = layer.to_virtual
            z = u + member.T @ x
            z = torch.relu(_normalised(z @ first.weight.T + first.bias, norm_1))
            z = torch.relu(_normalised(z @ second.weight.T + second.bias, norm_2))
            u = u + z if layer.residual else z
        h = x + h if layer.residual else h
    mean = member.T @ h / member.sum(0)[:, None]
    (head,) = model.head.layers
    return mean @ head.weight.T + head.bias


def _model(**changes) -> GINVN:
    torch.manual_seed(0)
    model = GINVN(**{"d_model": 6, "n_layers": 3, "d_out": 2, "dropout": 0.0} | changes).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_is_the_dense_formula(odd_graphs, residual, training):
    model = _model(residual=residual).train(training)
    expected = _dense(model, odd_graphs)
    torch.testing.assert_close(model(collate(odd_graphs)), expected)
    # the virtual nodes matter: without them the same weights say something else
    nn.init.zeros_(model.layers[0].to_virtual[4].weight)
    nn.init.constant_(model.layers[0].to_virtual[4].bias, -1.0)
    assert not torch.allclose(model(collate(odd_graphs)), expected)


def test_convolution_is_that_of_pyg(odd_graphs):
    pyg = pytest.importorskip("torch_geometric.nn")
    conv = _model().layers[0].conv.eval()
    nn.init.constant_(conv.eps, 0.3)
    theirs = pyg.GINEConv(conv.mlp, eps=0.3).double().eval()
    batch = collate(odd_graphs)
    x, edge = torch.randn(batch.num_nodes, 6).double(), torch.randn(batch.num_edges, 6).double()
    torch.testing.assert_close(conv(x, batch.edge_index, edge), theirs(x, batch.edge_index, edge))


def test_graphs_hear_nothing_of_one_another(odd_graphs):
    model = _model().eval()
    together = model(collate(odd_graphs))
    alone = torch.cat([model(collate([graph])) for graph in odd_graphs])
    torch.testing.assert_close(together, alone)


def test_a_node_hears_of_every_other_through_the_virtual_node(make_graph):
    graph = make_graph(nx.empty_graph(4))
    model = _model(level="node").eval()
    other = graph.x.clone()
    other[3] = other[2]
    changed = model(collate([Graph(other, graph.edge_index, graph.edge_attr)]))
    assert not torch.allclose(model(collate([graph]))[0], changed[0])


def test_published_number_of_parameters():
    assert _count(GINVN()) == 3_336_606
    # OGB's leaderboard has 3,336,306, from when chirality had four codes
    sizes = {"node_features": "codes", "node_sizes": (119, 4, 12, 12, 10, 6, 6, 2, 2)}
    assert _count(GINVN(**sizes, edge_features="codes", edge_sizes=(5, 6, 2))) == 3_336_306


@pytest.mark.parametrize("name", SETS)
def test_presets_are_the_published_recipe(name):
    config = load_config(f"ogbg-mol{name}-gin-vn")
    model = manager.resolve(manager.get("models", "gin-vn"))(**arguments(build_part(config, "model", {"d_out": 1})))
    assert _count(model) == 3_336_606
    train = config.train
    assert (train.max_items, train.epochs, train.lr, train.weight_decay, train.clip) == (32, 100, 1e-3, 0.0, None)


@pytest.mark.parametrize(
    ("override", "said"),
    [("model.dropout=1.0", "dropout"), ("model.n_layers=0", "n_layers"), ("model.width=3", "width")],
)
def test_settings_are_checked(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config("ogbg-molesol-gin-vn", [override])
