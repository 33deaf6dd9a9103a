"""Clusters, pushed PageRank, pruned returns, and noise: what large graphs and Graph-Mamba's variants are ordered by."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph import order
from seqgraph.errors import ConfigError
from seqgraph.order import returns
from seqgraph.order.graph import simple_edges

NONE = torch.empty(2, 0, dtype=torch.int64)


def edges_of(graph: nx.Graph) -> torch.Tensor:
    pairs = torch.tensor(list(graph.edges()), dtype=torch.int64).reshape(-1, 2).T
    return torch.cat([pairs, pairs.flip(0)], 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(labels: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset((labels == label).nonzero()[:, 0].tolist()) for label in labels.unique()}


# ---------------------------------------------------------------------- clusters
def test_clusters_of_a_ring_of_cliques():
    graph = nx.ring_of_cliques(6, 5)
    found = order.louvain(edges_of(graph), 30)
    assert parts(found) == {frozenset(range(i, i + 5)) for i in range(0, 30, 5)}
    assert sorted(found.unique().tolist()) == list(range(6))


@pytest.mark.parametrize(
    "graph",
    [
        lambda seed: nx.gnp_random_graph(300, 0.02, seed=seed),
        lambda seed: nx.connected_watts_strogatz_graph(300, 6, 0.1, seed=seed),
        lambda seed: nx.barabasi_albert_graph(300, 3, seed=seed),
        lambda seed: nx.planted_partition_graph(8, 40, 0.3, 0.01, seed=seed),
        lambda seed: nx.random_labeled_tree(300, seed=seed),
    ],
    ids=["gnp", "small-world", "power-law", "planted", "tree"],
)
def test_modularity_is_networkx(graph):
    """The mean over six graphs is within 0.005; nodes that are looked at once only cost 0.01."""
    found = expected = 0.0
    for seed in range(6):
        drawn = graph(seed)
        found += nx.community.modularity(drawn, parts(order.louvain(edges_of(drawn), len(drawn))))
        expected += nx.community.modularity(drawn, nx.community.louvain_communities(drawn, seed=seed))
    assert found > expected - 6 * 0.005


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), degree=st.floats(0, 5))
def test_no_single_move_would_help(seed, size, degree):
    """At the end of the last round no node gains by a move, no cluster spans two components, and labels start at 0."""
    graph = nx.gnp_random_graph(size, min(degree / size, 1), seed=seed)
    labels = order.louvain(edges_of(graph), size)
    assert sorted(labels.unique().tolist()) == list(range(len(labels.unique())))
    for a, b in [(a, b) for a in graph for b in graph if labels[a] == labels[b]]:
        assert nx.has_path(graph, a, b)
    if graph.number_of_edges():
        whole = nx.community.modularity(graph, parts(labels))
        assert whole >= nx.community.modularity(graph, [{v} for v in graph]) - 1e-12
        # Two clusters as one would not help either: they were nodes of the last round.
        own = sorted(parts(labels), key=min)
        for i in range(len(own)):
            for j in range(i):
                joined = [*(own[k] for k in range(len(own)) if k not in (i, j)), own[i] | own[j]]
                assert nx.community.modularity(graph, joined) <= whole + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 25), data=st.data())
def test_relabelling_permutes_the_clusters(seed, size, data):
    """Among nodes that have colours of their own, nothing depends on the labels."""
    graph = nx.gnp_random_graph(size, 0.3, seed=seed)
    edges = edges_of(graph)
    new = torch.tensor(data.draw(st.permutations(range(size))))
    if len(order.canonical_key(edges, size).unique()) < size:
        return
    for generator in (None, 3):
        settings_ = {} if generator is None else {"generator": seeded(generator)}
        scores = order.cluster(edges, size, **settings_)
        settings_ = {} if generator is None else {"generator": seeded(generator)}
        assert torch.equal(order.cluster(new[edges], size, **settings_)[new], scores)


def test_clusters_come_by_size_or_shuffled():
    graph = nx.disjoint_union_all([nx.complete_graph(4), nx.complete_graph(6), nx.empty_graph(1), nx.complete_graph(3)])
    edges = edges_of(graph)
    assert order.cluster(edges, 14).tolist() == [2] * 4 + [3] * 6 + [0] + [1] * 3
    drawn = [order.cluster(edges, 14, generator=seeded(seed)) for seed in (1, 1, *range(2, 30))]
    assert torch.equal(drawn[0], drawn[1])
    assert len({tuple(scores.tolist()) for scores in drawn}) > 10
    for scores in drawn:
        assert parts(scores) == parts(order.louvain(edges, 14))
        assert sorted(scores.unique().tolist()) == [0, 1, 2, 3]
    twice = order.cluster(torch.cat([edges, edges + 14], 1), 28, torch.arange(2).repeat_interleave(14))
    assert torch.equal(twice, order.cluster(edges, 14).repeat(2))


def test_clusters_of_degenerate_graphs():
    assert order.louvain(NONE, 0).tolist() == []
    assert order.louvain(NONE, 1).tolist() == [0]
    assert order.cluster(NONE, 3).tolist() == [0, 1, 2]
    batch = torch.tensor([1, 1, 4])
    assert order.louvain(torch.tensor([[0, 0, 2], [1, 0, 2]]), 3, batch).tolist() == [0, 0, 0]
    assert order.cluster(torch.tensor([[0, 0, 2], [1, 0, 2]]), 3, batch).tolist() == [0, 0, 0]


# ---------------------------------------------------------------------- pushed PageRank
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-7])
def test_pushed_mass_is_near_the_exact_one(directed, epsilon):
    graph = nx.gnp_random_graph(200, 0.02, seed=3, directed=directed)
    edges = torch.tensor(list(graph.edges())).T if directed else edges_of(graph)
    seeds = torch.tensor([5, 60])
    exact = order.personalized_pagerank(edges, 200, seeds=seeds)
    pushed = order.personalized_pagerank(edges, 200, seeds=seeds, epsilon=epsilon)
    assert abs(float(pushed.sum()) - 1) < 1e-9
    # Each node's leftover is below epsilon * its edges (or its own, for a sink), and ends somewhere.
    left = torch.bincount(edges[0], minlength=200).clamp_min(1).double().sum() * epsilon
    assert float((pushed - exact).abs().sum()) <= 2 * float(left)


def test_pushed_mass_does_not_depend_on_labels_or_company():
    graph = nx.barabasi_albert_graph(300, 3, seed=1)
    edges = edges_of(graph)
    new = torch.randperm(300, generator=seeded())
    scores = order.personalized_pagerank(edges, 300, epsilon=1e-2)
    assert torch.equal(order.personalized_pagerank(new[edges], 300, epsilon=1e-2)[new], scores)
    assert 0.1 < float((scores == 0).double().mean()) < 0.9
    both = torch.cat([edges, edges + 300], 1)
    batch = torch.arange(2).repeat_interleave(300)
    assert torch.equal(order.personalized_pagerank(both, 600, batch, epsilon=1e-2), scores.repeat(2))


def test_pushing_on_degenerate_graphs():
    loops = torch.tensor([[0], [0]])
    for edges, size in ((NONE, 0), (NONE, 1), (NONE, 3), (loops, 1), (loops, 2)):
        for epsilon in (1.0, 1e-3, 1e-12):
            scores = order.personalized_pagerank(edges, size, epsilon=epsilon)
            assert scores.shape == (size,)
            assert not size or abs(float(scores.sum()) - 1) < 1e-9
    with pytest.raises(ConfigError, match="epsilon"):
        order.personalized_pagerank(NONE, 1, epsilon=-1.0)


# ---------------------------------------------------------------------- pruned returns
@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_unpruned_returns_are_exact(steps):
    graph = nx.disjoint_union_all([nx.gnp_random_graph(60, 0.08, seed=2), nx.path_graph(9), nx.empty_graph(2)])
    edges = edges_of(graph)
    exact = order.rwse(edges, len(graph), steps=steps, prune=0)
    torch.testing.assert_close(order.rwse(edges, len(graph), steps=steps, prune=1e-12), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_followed_walks_are_the_dense_powers(steps):
    graph = nx.disjoint_union_all([nx.gnp_random_graph(60, 0.08, seed=2), nx.path_graph(9), nx.empty_graph(2)])
    walk = torch.from_numpy(nx.to_numpy_array(graph))
    walk = torch.where(
        walk.sum(1, keepdim=True) > 0, walk / walk.sum(1, keepdim=True).clamp_min(1), torch.eye(len(walk))
    )
    power, dense = torch.eye(len(walk), dtype=torch.float64), []
    for _ in range(steps):
        power = power @ walk
        dense.append(power.diagonal().clone())
    found = returns.followed_returns(simple_edges(edges_of(graph), len(graph)), steps)
    torch.testing.assert_close(found, torch.stack(dense, 1), rtol=0, atol=1e-14)


def test_pruning_leaves_out_long_returns_only():
    graph = nx.random_regular_graph(4, 500, seed=0)
    edges = edges_of(graph)
    rows = simple_edges(edges, 500)
    some = torch.arange(500)
    exact = returns.pruned_returns(rows, some, 12, 1e-9)
    pruned = returns.pruned_returns(rows, some, 12, 1 / 20)
    # Two steps spread a walk over 16 ways; on a third goes only what is back at its start, a quarter.
    torch.testing.assert_close(pruned[:, :4], exact[:, :4], rtol=1e-6, atol=1e-8)
    assert bool((pruned[:, 5::2] < exact[:, 5::2] - 1e-4).all())
    assert bool((pruned <= exact + 1e-7).all())
    assert bool((pruned[:, 5] > 0).all())


def test_pruned_returns_do_not_depend_on_labels_threads_or_company(monkeypatch):
    monkeypatch.setattr(returns, "_GROUP", 16)
    large, small = nx.barabasi_albert_graph(5000, 2, seed=0), nx.gnp_random_graph(30, 0.2, seed=1)
    edges, few = edges_of(large), edges_of(small)
    new = torch.randperm(5000, generator=seeded())
    scores = order.rwse(edges, 5000, steps=6)
    assert torch.equal(scores, order.rwse(edges, 5000, steps=6, prune=1e-3))
    assert torch.equal(order.rwse(new[edges], 5000, steps=6)[new], scores)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(order.rwse(edges, 5000, steps=6), scores)
    finally:
        torch.set_num_threads(before)
    # A small graph beside a large one is as exact as alone.
    both, batch = torch.cat([few, edges + 30], 1), torch.cat([torch.zeros(30), torch.full((5000,), 2)]).long()
    together = order.rwse(both, 5030, batch, steps=6)
    assert torch.equal(together[30:], scores)
    torch.testing.assert_close(together[:30], order.rwse(few, 30, steps=6), rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError, match="prune"):
        order.rwse(few, 30, prune=2.0)


# ---------------------------------------------------------------------- noise
def test_jitter_is_as_wide_as_asked():
    edges = edges_of(nx.star_graph(50))
    calm = order.node_order("degree", edges, 51, tie="index", jitter=0.1, generator=seeded())
    assert int(calm[-1]) == 0
    assert calm.tolist() != order.node_order("degree", edges, 51, tie="index", generator=seeded()).tolist()
    # The hub is 7 standard deviations above: noise of 100 of them loses it among the others.
    wild = [
        int((order.node_order("degree", edges, 51, jitter=100.0, generator=seeded(s)) == 0).nonzero())
        for s in range(40)
    ]
    assert min(wild) < 12
    assert max(wild) > 38
    same = order.node_order("degree", edges_of(nx.cycle_graph(5)), 5, tie="index", jitter=1.0, generator=seeded())
    assert same.tolist() == list(range(5))
    with pytest.raises(ConfigError, match="jitter"):
        order.node_order("degree", NONE, 2, jitter=-1.0)
    for size in (0, 1):
        assert order.node_order("eigenvector", NONE, size, jitter=1.0).tolist() == list(range(size))


@pytest.mark.gpu
def test_large_orders_are_the_same_on_the_gpu():
    edges = edges_of(nx.barabasi_albert_graph(5000, 3, seed=0))
    for name, options in (
        ("cluster", {}),
        ("cluster", {"generator": 3}),
        ("rwse", {"steps": 4}),
        ("personalized-pagerank", {"epsilon": 1e-5}),
    ):
        function = order.ORDERS[name]
        chosen = [{k: seeded(v) if k == "generator" else v for k, v in options.items()} for _ in range(2)]
        on_gpu = function(edges.cuda(), 5000, **chosen[1])
        assert on_gpu.is_cuda
        assert torch.equal(function(edges, 5000, **chosen[0]), on_gpu.cpu()), name
    shaken = [order.node_order("degree", e, 5000, jitter=0.5, generator=seeded(2)) for e in (edges, edges.cuda())]
    assert torch.equal(shaken[0], shaken[1].cpu())
