"""Positional encodings, against dense definitions, on graphs of every kind."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.sparse.linalg import ArpackNoConvergence

from seqgraph.errors import DataError
from seqgraph_graph_mamba import positional
from seqgraph_graph_mamba.graph import Graph, collate
from seqgraph_graph_mamba.positional import (
    LaplacianEncoder,
    RandomWalkEncoder,
    encode_batch,
    encode_positions,
    laplacian_encoding,
    random_walk_encoding,
)


def _edges(graph: nx.Graph) -> np.ndarray:
    directed = nx.DiGraph(graph)
    return np.array(directed.edges, dtype=np.int64).reshape(-1, 2).T


KINDS = {
    "single": nx.empty_graph(1),
    "edgeless": nx.empty_graph(4),
    "path": nx.path_graph(6),
    "complete": nx.complete_graph(5),
    "disconnected": nx.disjoint_union(nx.cycle_graph(5), nx.star_graph(3)),
    "many parts": nx.disjoint_union_all(
        [nx.star_graph(1), nx.path_graph(6), *[nx.empty_graph(1)] * 3, nx.cycle_graph(4)]
    ),
    "directed": nx.gn_graph(9, seed=1),
    "loops": nx.Graph([(0, 0), (0, 1), (1, 2), (2, 2)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_landing_probabilities_are_the_diagonal_of_powers(kind):
    graph = KINDS[kind]
    adjacency = nx.to_numpy_array(nx.DiGraph(graph), nodelist=sorted(graph))
    step = adjacency / np.maximum(adjacency.sum(1, keepdims=True), 1)
    expected = np.stack([np.diag(np.linalg.matrix_power(step, k)) for k in range(1, 8)], axis=1)
    found = random_walk_encoding(_edges(graph), len(graph), 7)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [2048, 4])
@pytest.mark.parametrize("k", [3, 9])
def test_laplacian_pairs_satisfy_their_equation(kind, limit, k, monkeypatch):
    monkeypatch.setattr(positional, "_DENSE_LIMIT", limit)
    graph = KINDS[kind]
    encoding = laplacian_encoding(_edges(graph), len(graph), k).astype(np.float64)
    assert encoding.shape == (len(graph), k, 2)
    simple = nx.Graph(graph)
    simple.remove_edges_from(list(nx.selfloop_edges(simple)))
    laplacian = nx.laplacian_matrix(simple, nodelist=sorted(simple)).toarray()
    known = min(k, len(graph))
    expected = np.linalg.eigvalsh(laplacian)[:known]
    np.testing.assert_allclose(encoding[0, :known, 1], expected, atol=1e-5)
    for i in range(known):
        vector = encoding[:, i, 0]
        np.testing.assert_allclose(laplacian @ vector, expected[i] * vector, atol=1e-5)
    found = encoding[:, :known, 0]
    np.testing.assert_allclose(found.T @ found, np.eye(known), atol=1e-5)
    assert (encoding[:, known:, 0] == 0).all() and (encoding[:, known:, 1] == positional.ABSENT).all()


def test_the_same_answer_twice_on_a_large_graph():
    edges = _edges(nx.random_regular_graph(3, 2100, seed=0))
    assert np.array_equal(laplacian_encoding(edges, 2100, 4), laplacian_encoding(edges, 2100, 4))


def test_a_large_graph_in_many_parts_has_a_vector_for_each():
    """Cora has 78 parts: an iteration from one start vector does not end there."""
    parts = [nx.random_regular_graph(3, 2100, seed=0), *[nx.cycle_graph(5 + i % 3) for i in range(80)]]
    graph = nx.disjoint_union_all(parts)
    encoding = laplacian_encoding(_edges(graph), len(graph), 10)
    assert (encoding[..., 1] == 0).all()
    # in fp32 numpy may add the 2,100 equal squares one by one, which alone is off by 1.3e-5
    vectors = encoding[..., 0].astype(np.float64)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(10), atol=1e-6)
    source, target = _edges(graph)
    assert np.array_equal(encoding[source], encoding[target])


def test_vectors_that_are_not_found_are_the_users_to_know(monkeypatch):
    def give_up(*args, **kwargs):
        raise ArpackNoConvergence("no", np.zeros(0), np.zeros((0, 0)))

    monkeypatch.setattr(positional.scipy.sparse.linalg, "eigsh", give_up)
    with pytest.raises(DataError, match="3 lowest eigenvectors of a graph of 2,100 nodes"):
        laplacian_encoding(_edges(nx.cycle_graph(2100)), 2100, 3)


@pytest.mark.parametrize("kind", ["rwse", "laplacian"])
def test_batch_equals_one_by_one(kind, graphs):
    together = encode_batch(collate(graphs), kind, 5)
    assert torch.equal(together, torch.cat([encode_positions(g, kind, 5) for g in graphs]))


def test_signs_flip_in_training_only():
    torch.manual_seed(0)
    graph = Graph(torch.zeros(6, 1), torch.from_numpy(_edges(nx.path_graph(6))))
    batch, pe = collate([graph]), encode_positions(graph, "laplacian", 3)
    encoder = LaplacianEncoder(8)
    results = {tuple(encoder.train()(pe, batch).detach().flatten().tolist()) for _ in range(40)}
    assert 2 <= len(results) <= 8
    assert torch.equal(encoder.eval()(pe, batch), encoder(pe, batch))


def test_a_return_that_is_rare_in_training_is_no_outlier_without_bound():
    """Three steps lead back in a ring of three alone: next to no molecule has one."""
    encoder, batch = RandomWalkEncoder(3, 4, norm=True).eval(), collate([Graph(torch.zeros(1, 1), torch.zeros(2, 0))])
    encoder.norm.running_mean.zero_()
    encoder.norm.running_var.copy_(torch.tensor([0.0, 1.0, 1e-8]))
    first, second = (encoder(torch.tensor([[0.0, 0.5, value]]), batch) for value in (0.1, 10.0))
    assert torch.equal(first, second)
    assert not torch.equal(first, encoder(torch.tensor([[0.0, 0.5, 0.01]]), batch))
