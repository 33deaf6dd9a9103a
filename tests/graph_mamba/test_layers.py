"""The published mathematics: dense formulas, parameter counts, and every node gets its own row back."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import nn

from seqgraph.encode import BiMamba
from seqgraph.order import louvain
from seqgraph_graph_mamba.arrangement import Arrangement, arrange, arrange_layers
from seqgraph_graph_mamba.convolution import GCN, GINE
from seqgraph_graph_mamba.gated_gcn import GatedGCN
from seqgraph_graph_mamba.gnn_plus import GNNPlus, PlusLayer
from seqgraph_graph_mamba.graph import collate
from seqgraph_graph_mamba.layer import GraphMambaLayer, PermutedMixer
from seqgraph_graph_mamba.model import GraphMamba
from seqgraph_graph_mamba.norm import RowNorm
from seqgraph_graph_mamba.ordering import Chance, Prioritizer
from seqgraph_graph_mamba.plus_mamba import PlusMamba, PlusMambaLayer


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts():
    layer = GraphMambaLayer(96, d_state=16, d_conv=4, expand=1, direction="forward")
    assert _count(layer.mixer) == 34_080
    assert _count(layer) == 118_752
    assert [_count(BiMamba(d, direction="forward", expand=1)) for d in (64, 52, 48)] == [16_320, 11_388, 9_840]


IMAGE = {"level": "node", "node_features": "linear", "d_node": 14, "edge_features": "linear", "d_edge": 2}


@pytest.mark.parametrize(
    ("n_layers", "d_out", "head_layers", "more", "published"),
    [
        pytest.param(3, 10, 1, {}, 373_018, id="Peptides-func"),
        pytest.param(4, 11, 1, {}, 491_867, id="Peptides-struct"),
        pytest.param(4, 21, 3, IMAGE, 497_781, id="PascalVOC-SP"),
        pytest.param(4, 96, 1, {"level": "node"}, 500_112, id="PCQM-Contact"),
    ],
)
def test_published_sizes_of_the_models(n_layers, d_out, head_layers, more, published):
    model = GraphMamba(96, n_layers, d_out, pe="laplacian", pe_size=10, pe_width=16, head_layers=head_layers, **more)
    # published with the edge norm of the last layer (192), which is never used
    assert _count(model) == published - 192


def _normalised(values, norm):
    """BatchNorm with batch statistics."""
    mean, variance = values.mean(0), values.var(0, unbiased=False)
    return (values - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


ACTIVATIONS = {
    "relu": lambda v: v.clamp_min(0),
    "gelu": lambda v: 0.5 * v * (1 + torch.erf(v / 2**0.5)),
}


def _dense_gated_gcn(layer: GatedGCN, x, edge_index, edge, act):
    """The formula of the docstring, node by node and edge by edge, batch statistics written out."""
    V, M = len(x), edge_index.shape[1]
    gates = [layer.D(x[i]) + layer.E(x[j]) + layer.C(edge[m]) for m, (j, i) in enumerate(edge_index.T.tolist())]
    rows = []
    for i in range(V):
        incoming = [m for m in range(M) if int(edge_index[1, m]) == i]
        top = sum((torch.sigmoid(gates[m]) * layer.B(x[edge_index[0, m]]) for m in incoming), torch.zeros_like(x[i]))
        bottom = sum((torch.sigmoid(gates[m]) for m in incoming), torch.zeros_like(x[i]))
        rows.append(layer.A(x[i]) + top / (bottom + 1e-6))

    return (
        x + act(_normalised(torch.stack(rows), layer.node_norm)),
        edge + act(_normalised(torch.stack(gates), layer.edge_norm)),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_gcn_is_the_dense_formula(activation):
    torch.manual_seed(1)
    layer = GatedGCN(5, activation=activation).double().train()
    for p in layer.parameters():
        nn.init.normal_(p)
    x, edge = torch.randn(7, 5).double(), torch.randn(11, 5).double()
    edge_index = torch.randint(0, 6, (2, 11))  # directed, self-loops, and node 6 without edges
    found = layer(x, edge_index, edge)
    for ours, dense in zip(found, _dense_gated_gcn(layer, x, edge_index, edge, ACTIVATIONS[activation]), strict=True):
        torch.testing.assert_close(ours, dense)


def _dense_convolution(conv: nn.Module, x, edge_index, edge):
    """GCN+'s and GIN+'s message passing, edge by edge; its messages are relu whatever the layer's activation."""
    sent = conv.linear(x) if isinstance(conv, GCN) else x
    rows = torch.zeros_like(x)
    for m, (j, i) in enumerate(edge_index.T.tolist()):
        rows[i] = rows[i] + (sent[j] + edge[m]).clamp_min(0)
    if isinstance(conv, GCN):
        return rows + conv.bias
    assert isinstance(conv, GINE)
    first, last = conv.mlp[0], conv.mlp[-1]
    return last(first((1 + conv.eps) * x + rows).clamp_min(0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("conv", ["gcn", "gin"])
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["bare", "residual and feed-forward"])
def test_layers_of_gnn_plus_are_the_dense_formula(activation, conv, mixes, whole):
    torch.manual_seed(1)
    act, more = ACTIVATIONS[activation], {"residual": whole, "feed_forward": whole, "activation": activation}
    x, edge, edge_index = torch.randn(7, 5).double(), torch.randn(11, 5).double(), torch.randint(0, 6, (2, 11))
    if mixes:
        layer = PlusMambaLayer(5, conv, 3, PermutedMixer(Identity()), dropout=0.0, **more)
    else:
        layer = PlusLayer(5, conv, normalize=False, dropout=0.0, update_edges=False, **more)
    layer = layer.double().train()
    for p in layer.parameters():
        nn.init.normal_(p)
    rows = torch.arange(7)
    tokens = (Arrangement(rows, torch.tensor([0, 7]), rows[None]),) if mixes else ()
    found, same = layer(x, edge_index, edge, *tokens)
    h = act(_normalised(_dense_convolution(layer.conv, x, edge_index, edge), layer.norm))
    if mixes:
        down = layer.down(x)
        centred = down - down.mean(1, keepdim=True)
        heard = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + layer.mixer_in.eps)
        heard = heard * layer.mixer_in.weight + layer.mixer_in.bias
        h = h + _normalised(heard @ layer.up.weight.T, layer.mixer_norm)
    if whole:
        h = _normalised(h + x, layer.in_norm)
        first, last = (m for m in layer.feed_forward if isinstance(m, nn.Linear))
        h = _normalised(h + last(act(first(h))), layer.out_norm)
    torch.testing.assert_close(found, h)
    assert same is edge


@pytest.mark.parametrize("model", [GNNPlus, PlusMamba, GraphMamba])
def test_dropout_acts_on_the_pooled_graph_in_training_alone(model, graphs):
    torch.manual_seed(0)
    more = {"head_dropout": 0.2} if model is GraphMamba else {"dropout": 0.2}
    built = model(256, 2, 3, pe="none", head_layers=3, activation="gelu", **more).train()
    batch, pooled, read = collate(graphs * 8), [], []
    built.head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    for layer in (m for m in built.head.modules() if isinstance(m, nn.Linear)):
        layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    built(batch)
    kept = read[0] != 0
    # single nodes are zero here and there before they are pooled
    for seen, before in zip(read, (pooled[0], torch.ones(1), torch.ones(1)), strict=True):
        assert 0.17 < (seen == 0)[(before != 0).expand_as(seen)].double().mean() < 0.23
    torch.testing.assert_close(read[0][kept], (pooled[0] / 0.8)[kept])
    read.clear()
    out = built.eval()(batch)
    assert torch.equal(read[0], pooled[1])
    x = pooled[1]
    for layer, last in zip((m for m in built.head.modules() if isinstance(m, nn.Linear)), (False, False, True)):
        x = x @ layer.weight.T + layer.bias
        x = x if last else ACTIVATIONS["gelu"](x)
    torch.testing.assert_close(out, x)


def test_every_so_many_layers_have_a_mamba():
    layers = PlusMamba(16, 7, conv="gin", width=8, every=3, pe="none").layers
    assert [isinstance(layer, PlusMambaLayer) for layer in layers] == [False, False, True] * 2 + [False]


ARRANGEMENTS = {
    "plain": {},
    "jitter": {"jitter": 1.0},
    "buckets": {"buckets": 3},
    "neighbors": {"neighbors": 3},
    "all": {"jitter": 0.5, "buckets": 2, "neighbors": 2},
}
ORDERS = ["degree", "random", "none", "rwse", "eigenvector", "pagerank", "bfs", "rcm", "cluster"]


class Identity(nn.Module):
    """An SSM that does nothing, and remembers what it was given."""

    def forward(self, u, cu_seqlens):
        self.seen = u, cu_seqlens
        return u


def _arranged(batch, order, ties, tokens, draws):
    prioritizer = Prioritizer(order, ties, 0, keep_scores=True)
    chance = Chance() if draws is None else Chance(prioritizer.names(batch), 0, 0, range(draws))
    return arrange(batch, prioritizer.priority(batch, training=draws is None), chance, **tokens)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ARRANGEMENTS)
@pytest.mark.parametrize(("ties", "draws"), [("canonical", 4), ("index", 2), ("index", None)])
def test_identity_ssm_returns_each_node_its_own_row(odd_graphs, order, kind, ties, draws):
    batch, tokens = collate(odd_graphs), ARRANGEMENTS[kind]
    torch.manual_seed(0)
    arranged = _arranged(batch, order, ties, tokens, draws)
    h, ssm = torch.randn(batch.num_nodes, 6), Identity()
    torch.testing.assert_close(PermutedMixer(ssm)(h, arranged), h)
    u, borders = ssm.seen
    draws = draws or 1
    sequences = draws * batch.num_graphs * tokens.get("buckets", 1)
    assert len(borders) == sequences + 1 and int(borders[-1]) == len(u) and (borders.diff() >= 0).all()
    # a sequence holds nodes of one graph only, and each draw every node once, neighbours apart
    sequence = torch.repeat_interleave(torch.arange(sequences), borders.diff().long())
    graph = sequence // tokens.get("buckets", 1) % batch.num_graphs
    assert torch.equal(batch.batch[arranged.node], graph)
    for place in arranged.place:
        assert torch.equal(arranged.node[place], torch.arange(batch.num_nodes))
    if "neighbors" not in tokens:
        assert len(u) == draws * batch.num_nodes


def test_neighbors_come_before_their_node(odd_graphs):
    batch = collate(odd_graphs)
    arranged = _arranged(batch, "degree", "canonical", {"neighbors": 3}, 3)
    joined = {(int(a), int(b)) for a, b in batch.edge_index.T}
    degree = torch.bincount(batch.edge_index[0], minlength=batch.num_nodes)
    for place in arranged.place.sort(dim=1).values:
        before = arranged.cu_seqlens[arranged.cu_seqlens <= place[0]].max().item()
        for at in place.tolist():
            node, front = int(arranged.node[at]), arranged.node[before:at].tolist()
            assert len(front) == min(int(degree[node]), 3)
            assert all((node, other) in joined for other in front)
            before = at + 1


def test_clusters_stay_together_and_are_permuted(make_graph):
    drawn = nx.connected_caveman_graph(4, 6)
    batch = collate([make_graph(drawn), make_graph(nx.path_graph(2))])
    labels = louvain(batch.edge_index, batch.num_nodes, batch.batch)
    assert len(labels[:24].unique()) == 4  # one a cave
    orders = set()
    for draw in range(12):
        arranged = _arranged(batch, "cluster", "canonical", {}, draw + 1)
        along = labels[arranged.node[-26:]][:24]
        changes = int((along[1:] != along[:-1]).sum())
        assert changes == 3
        orders.add(tuple(along[::6].tolist()))
    assert len(orders) > 4


def test_jitter_moves_nodes_that_buckets_and_ties_leave(make_graph):
    batch = collate([make_graph(nx.star_graph(5)), make_graph(nx.path_graph(9))])
    still = _arranged(batch, "degree", "index", {}, 200).node.view(200, -1)
    shaken = _arranged(batch, "degree", "index", {"jitter": 5.0}, 200).node.view(200, -1)
    assert (still[:, 5] == 0).all()  # the hub is last
    assert 0.3 < (shaken[:, 5] == 0).float().mean() < 1.0


def test_mixer_mixes_in_the_order_given():
    """A running sum shows the order: node of rank r holds the sum of ranks 0..r."""

    class RunningSum(nn.Module):
        def forward(self, u, cu_seqlens):
            parts = [u[a:b].cumsum(0) for a, b in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)]
            return torch.cat(parts)

    h = torch.tensor([[1.0], [10.0], [100.0], [5.0]])
    tokens = Arrangement(
        torch.tensor([2, 0, 1, 3]), torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([[1, 2, 0, 3]])
    )
    mixed = PermutedMixer(RunningSum())(h, tokens)
    assert mixed[:, 0].tolist() == [101.0, 111.0, 100.0, 5.0]


def test_norm_of_one_or_no_row_leaves_the_statistics_alone():
    norm = RowNorm(3).train()
    norm(torch.randn(10, 3))
    held = norm.running_mean.clone()
    assert norm(torch.empty(0, 3)).shape == (0, 3)
    assert norm(torch.randn(1, 3)).isfinite().all()
    assert torch.equal(norm.running_mean, held)


@pytest.mark.parametrize("kind", ARRANGEMENTS)
def test_layers_in_training_get_draws_of_their_own(odd_graphs, kind):
    batch, tokens = collate(odd_graphs), ARRANGEMENTS[kind]
    priority = Prioritizer("random", "index", 0, keep_scores=True).priority(batch, training=True)
    torch.manual_seed(0)
    layers = arrange_layers(batch, priority, None, 0, 3, range(1), **tokens)
    torch.manual_seed(0)
    together = arrange(batch, priority, Chance(draws=range(3)), **tokens)
    assert len({tuple(one.node.tolist()) for one in layers}) == 3
    for draw, one in enumerate(layers):
        assert one.cu_seqlens.data_ptr() % 16 == 0
        assert one.cu_seqlens.dtype == torch.int32 and int(one.cu_seqlens[0]) == 0
        assert int(one.cu_seqlens[-1]) == len(one.node) and one.longest >= int(one.cu_seqlens.diff().max())
        assert one.node[one.place[0]].tolist() == list(range(batch.num_nodes))
        assert torch.equal(one.node, together.node.view(3, -1)[draw])
        assert torch.equal(one.cu_seqlens.diff(), together.cu_seqlens.diff().view(3, -1)[draw])


@pytest.mark.parametrize("update_edges", [True, False])
def test_gradients_of_gated_gcn(update_edges):
    torch.manual_seed(0)
    layer = GatedGCN(4, update_edges=update_edges).double()
    x, edge = torch.randn(5, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    ends = torch.randint(0, 4, (2, 9))  # the last node has no edge
    names = [name for name, _ in layer.named_parameters()]

    def run(x, edge, *values):
        node, new = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, ends, edge))
        return (node, new) if update_edges else node

    held = [v.detach().clone().requires_grad_() for v in (x, edge, *layer.parameters())]
    assert torch.autograd.gradcheck(run, held)


def test_a_node_far_from_the_others_does_not_grow_in_the_narrow_branch(graphs):
    """As a Mamba's output would: with a power of the distance."""
    torch.manual_seed(0)
    batch, size = collate(graphs[-1:]), graphs[-1].num_nodes
    layer = PlusMambaLayer(16, "gcn", 8, PermutedMixer(BiMamba(8, expand=1)), dropout=0.0).eval()
    rows = torch.arange(size)
    tokens = Arrangement(rows, batch.cu_seqlens, rows[None])
    heard = {}
    layer.mixer.register_forward_hook(lambda module, inputs, output: heard.update(out=output))
    found, bare = [], []
    h = torch.randn(size, 16)
    for scale in (30.0, 3000.0):
        far = h.clone()
        far[3] *= scale
        with torch.no_grad():
            layer(far, batch.edge_index, torch.zeros(batch.num_edges, 16), tokens)
            found.append(float(heard["out"].abs().max()))
            bare.append(float(layer.mixer.mamba(layer.down(far), batch.cu_seqlens).abs().max()))
    assert bare[1] > 1e4 * bare[0] and found[1] < 2 * found[0]
