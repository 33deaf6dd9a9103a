"""Every model of graphs: what none of them may get wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from model_cases import MODELS, VARIANTS, make

from seqgraph.config import arguments, build_part, load_config
from seqgraph.errors import ConfigError
from seqgraph.plugin import manager
from seqgraph_graph_mamba import example
from seqgraph_graph_mamba.graph import Graph, collate
from seqgraph_graph_mamba.layer import PermutedMixer


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("level", ["graph", "node"])
def test_alone_equals_in_a_batch(variant, level, graphs, odd_graphs):
    graphs = [*graphs, *odd_graphs]
    model = make(variant, level=level)
    with torch.no_grad():
        together, alone = model(collate(graphs)), torch.cat([model(collate([g])) for g in graphs])
        backwards = model(collate(graphs[::-1]))
    rows = [1] * len(graphs) if level == "graph" else [len(g) for g in graphs]
    backwards = torch.cat(backwards.split(rows[::-1])[::-1])
    assert together.shape == (sum(rows), 3) and together.isfinite().all()
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(together, backwards, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_relabelled_nodes_give_relabelled_rows(variant, graphs):
    model, generator = make(variant, level="node"), torch.Generator().manual_seed(5)
    for graph in graphs:
        new = torch.randperm(len(graph), generator=generator)
        edges = torch.randperm(graph.num_edges, generator=generator)
        x = torch.empty_like(graph.x)
        x[new] = graph.x
        other = Graph(x, new[graph.edge_index[:, edges]], graph.edge_attr[edges])
        with torch.no_grad():
            torch.testing.assert_close(model(collate([graph])), model(collate([other]))[new], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "draws"), [("graph-mamba", "n_permutations"), ("gmn", "n_samples")])
def test_draws_by_number_are_the_same_in_distribution(name, draws, graphs):
    """Ties by number follow the numbering: one draw differs between two of them, the mean of many does not."""
    model, generator = make(name, ties="index", order="random", **{draws: 150}), torch.Generator().manual_seed(5)
    batch = collate(graphs[-1:])
    other = collate([example.relabel(graphs[-1], generator)[0]])
    with torch.no_grad():
        ours, theirs = (
            torch.stack([model.read(b, model.encode(b, draw=d)) for d in range(150)]) for b in (batch, other)
        )
    assert not torch.allclose(ours[0], theirs[0], atol=1e-4)
    error = (ours.var(0) + theirs.var(0)).div(150).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant, graphs):
    model = make(variant).train()
    model(collate(graphs)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_trains_and_stays_near(variant, graphs):
    model, batch = make(variant), collate(graphs)
    exact = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(batch).float(), exact, atol=0.1, rtol=0.1)
        loss = model.train()(batch).float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_odd_graphs_train(variant, odd_graphs):
    """A single node, no edges, disconnected, directed, self-looped and parallel edges: alone and together."""
    model = make(variant).train()
    for batch in ([g] for g in odd_graphs):
        assert model(collate(batch)).isfinite().all()
    loss = model(collate(odd_graphs)).square().sum()
    loss.backward()
    assert loss.isfinite() and all(b.isfinite().all() for b in model.buffers())


@pytest.mark.parametrize("variant", VARIANTS)
def test_floating_features_without_edge_features(variant):
    model = make(variant, node_features="linear", d_node=2, edge_features="none").train()
    lonely = Graph(torch.randn(1, 2), torch.empty(2, 0, dtype=torch.int64))
    odd = Graph(torch.randn(3, 2), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 2]]))
    for batch in ([lonely], [lonely, lonely], [odd], [odd, lonely]):
        assert model(collate(batch)).isfinite().all()
    with pytest.raises(ConfigError, match="2 floating columns"):
        model(collate(example.items(0)))


@pytest.mark.parametrize("variant", ["graph-mamba", "gmn", "walk-mamba", "gmn, walks"])
def test_training_draws_anew_and_inference_does_not(variant, graphs):
    model, batch = make(variant), collate(graphs)
    assert torch.equal(model(batch), model(batch))
    again = make(variant, **{"walk_seed" if "walk-" in variant else "order_seed": 1})
    assert not torch.equal(model(batch), again(batch))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    assert not torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("variant", ["gmn, no pe", "walk-mamba, gated", "graph-mamba, both ways"])
def test_samples_are_averaged_over_outputs(variant, graphs):
    model, batch = make(variant), collate(graphs)
    assert model.passes == 2
    single = [model.read(batch, model.encode(batch, draw=d)) for d in range(2)]
    assert not torch.allclose(single[0], single[1])
    torch.testing.assert_close(model(batch), torch.stack(single).mean(0))


class Identity(nn.Module):
    """An SSM that does nothing."""

    def forward(self, u, *_):
        return u


SEQUENCES = ["graph-mamba", "graph-mamba, both ways", "gmn", "gmn, ppr", "gmn, nodes", "plus-mamba", "plus-mamba, few"]


@pytest.mark.parametrize(
    ("variant", "changes"), [*((name, {}) for name in SEQUENCES), ("graph-mamba", {"buckets": 3, "neighbors": 2})]
)
@pytest.mark.parametrize("training", [False, True])
def test_identity_ssm_in_a_whole_model(variant, changes, training, odd_graphs):
    """With an identity for the SSM every mixer of a whole model hands each node its own row back."""
    model, seen = make(variant, **changes).train(training), []
    mixers = sum(isinstance(module, PermutedMixer) for module in model.modules())
    for module in model.modules():
        if isinstance(module, PermutedMixer):
            module.mamba = Identity()
            module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model(collate(odd_graphs))
    assert len(seen) == mixers * (1 if training else model.passes) > 0
    for given, returned in seen:
        torch.testing.assert_close(returned, given)


@pytest.mark.parametrize("name", MODELS)
def test_columns_of_a_data_set_change_nothing(name, graphs):
    model, batch = make(name), collate(graphs)
    columns = model.node_columns(batch)
    assert all(len(column) == batch.num_nodes for column in columns.values())
    held = [{k: v.split([len(g) for g in graphs])[i] for k, v in columns.items()} for i in range(len(graphs))]
    carried = collate([Graph(g.x, g.edge_index, g.edge_attr, columns=c) for g, c in zip(graphs, held, strict=True)])
    assert columns.keys() == carried.columns.keys()
    assert torch.equal(model(batch), model(carried))


@pytest.mark.parametrize("name", MODELS)
def test_integer_codes_of_other_kinds(name):
    changes = {"node_features": "codes", "node_sizes": (28,), "edge_features": "codes", "edge_sizes": (4,)}
    model = make(name, **changes)
    graph = Graph(torch.tensor([[0], [27]]), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[3], [3]]))
    assert model(collate([graph])).isfinite().all()
    wrong = Graph(torch.tensor([[0], [28]]), graph.edge_index, graph.edge_attr)
    with pytest.raises(RuntimeError):
        model(collate([wrong]))


@pytest.mark.parametrize("name", MODELS)
def test_model_is_chosen_by_an_override(name):
    config = load_config("peptides-func", [f"model={name}"])
    assert config.model.name == name and config.data.name == "peptides-func"
    if name != "graph-mamba":  # the preset's own model keeps the preset's fields
        assert config.model.fields == {}
        assert load_config("ogbg-molesol", [f"model={name}", "model.n_layers=2"]).model.fields == {"n_layers": 2}


PEPTIDES = [e.descriptor.name for e in manager.entries("presets") if e.descriptor.name.startswith("peptides-func")]


@pytest.mark.parametrize("preset", PEPTIDES)
def test_presets_of_peptides_keep_to_the_budget(preset):
    config = load_config(preset)
    fields = arguments(build_part(config, "model", {"d_out": 10}))
    model = manager.resolve(manager.get("models", config.model.name))(**fields)
    assert 300_000 < sum(p.numel() for p in model.parameters()) <= 500_000


def test_presets_cover_the_models():
    molecules = {"ogbg-molbace-gin-vn", "ogbg-molbbbp-gin-vn", "ogbg-molesol-gin-vn", "ogbg-molfreesolv-gin-vn"}
    assert {load_config(preset).model.name for preset in molecules} == {"gin-vn"}
    assert {load_config(preset).model.name for preset in PEPTIDES} == set(MODELS) - {"gin-vn"}
