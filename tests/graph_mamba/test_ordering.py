"""Priorities, ties and their noise."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import PluginError
from seqgraph_graph_mamba.example import relabel
from seqgraph_graph_mamba.graph import collate
from seqgraph_graph_mamba.ordering import node_colours, node_names, permutations, rank_groups, seeded_noise


def test_important_nodes_last_and_graphs_apart(make_model, graphs):
    batch = collate(graphs)
    order = make_model().node_order(batch)
    assert torch.equal(order.sort().values, torch.arange(batch.num_nodes))
    assert torch.equal(batch.batch[order], batch.batch)
    degree = torch.bincount(batch.edge_index[0], minlength=batch.num_nodes)[order]
    inside = batch.batch[1:] == batch.batch[:-1]
    assert (degree[1:] >= degree[:-1])[inside].all()


def test_equal_nodes_are_permuted_uniformly():
    """A hundred nodes without edges all tie: over many draws each place is as likely as another."""
    draws = 2000
    noise = seeded_noise(torch.arange(10), 0, 0, range(draws))
    place = permutations(torch.zeros(10, dtype=torch.int64), noise).argsort(1)  # (draws, 10)
    counts = torch.stack([torch.bincount(place[:, i], minlength=10) for i in range(10)])
    assert ((counts - draws / 10).abs() < 5 * (draws * 0.09) ** 0.5).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["canonical", "index"]))
def test_noise_does_not_depend_on_the_batch(seed, ties):
    from seqgraph_graph_mamba.example import items

    graphs = items(seed)
    batch = collate(graphs)
    noise = seeded_noise(node_names(batch, ties), 3, 1, range(2))
    alone = [seeded_noise(node_names(collate([g]), ties), 3, 1, range(2)) for g in graphs]
    assert torch.equal(noise, torch.cat(alone, dim=1))
    assert not torch.equal(noise, seeded_noise(node_names(batch, ties), 4, 1, range(2)))
    assert not torch.equal(noise, seeded_noise(node_names(batch, ties), 3, 2, range(2)))


def test_colours_follow_the_nodes_and_see_their_surroundings():
    path = nx.path_graph(7)
    edges = torch.tensor([*path.edges, *[(b, a) for a, b in path.edges]]).T
    from seqgraph_graph_mamba.graph import Graph

    same = Graph(torch.zeros(7, 1, dtype=torch.int64), edges)
    colours = node_colours(collate([same])).tolist()
    assert colours == colours[::-1] and len(set(colours)) == 4  # symmetric nodes alike, others not
    generator = torch.Generator().manual_seed(0)
    other, _ = relabel(same, generator)
    assert sorted(node_colours(collate([other])).tolist()) == sorted(colours)


def test_rounding_does_not_split_equal_nodes():
    scores = torch.tensor([0.3, 0.1 + 0.2, 0.30001, -5.0], dtype=torch.float64)
    groups = rank_groups(scores, torch.zeros(4, dtype=torch.int64))
    assert groups.tolist() == [1, 1, 2, 0]


def test_training_draws_anew_and_inference_does_not(make_model, graphs):
    model, batch = make_model(), collate(graphs)
    assert torch.equal(model(batch), model(batch))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    assert not torch.equal(model(batch), model(batch))


def test_unknown_order_is_named(make_model):
    with pytest.raises(PluginError, match="degre"):
        make_model(order="degre")


def test_any_function_is_an_order(graphs):
    from seqgraph_graph_mamba.model import GraphMamba

    def by_number(edge_index, num_nodes, batch, *, generator=None):
        return -torch.arange(num_nodes, dtype=torch.float32)

    batch = collate(graphs[-1:])
    order = GraphMamba(16, 1, order=by_number, pe="none").eval().node_order(batch)
    assert order.tolist() == list(range(22, -1, -1))
