"""Node orders against networkx, and the promises they make: labels, batches, seeds, degenerate graphs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph import order
from seqgraph.errors import ConfigError, DataError
from seqgraph.order import ORDERS

DETERMINISTIC = sorted(set(ORDERS) - {"random"})
# These must choose among equal nodes, so their scores may only differ by an automorphism (tested by themselves).
EQUIVARIANT = sorted(set(DETERMINISTIC) - {"rcm", "cluster"})


def edges_of(graph: nx.Graph) -> torch.Tensor:
    pairs = torch.tensor(list(graph.edges()), dtype=torch.int64).reshape(-1, 2).T
    return pairs if graph.is_directed() else torch.cat([pairs, pairs.flip(0)], 1)


def batched(graphs: list[nx.Graph]) -> tuple[torch.Tensor, int, torch.Tensor]:
    sizes = torch.tensor([len(g) for g in graphs])
    starts = sizes.cumsum(0) - sizes
    edges = torch.cat([edges_of(g) + s for g, s in zip(graphs, starts, strict=True)], 1)
    return edges, int(sizes.sum()), torch.repeat_interleave(torch.arange(len(graphs)), sizes)


GRAPHS = {
    "tree": nx.random_labeled_tree(40, seed=3),
    "dense": nx.gnp_random_graph(30, 0.3, seed=1),
    "sparse": nx.gnp_random_graph(40, 0.05, seed=2),
    "grid": nx.convert_node_labels_to_integers(nx.grid_2d_graph(5, 7)),
    "path": nx.path_graph(120),
    "star": nx.star_graph(12),
    "cycle": nx.cycle_graph(9),
    "two": nx.disjoint_union(nx.path_graph(6), nx.complete_graph(4)),
    "lone": nx.empty_graph(3),
    "one": nx.empty_graph(1),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_degree_and_core_number_are_networkx(name):
    graph = GRAPHS[name]
    edges = edges_of(graph)
    assert order.degree(edges, len(graph)).tolist() == [d for _, d in graph.degree()]
    cores = nx.core_number(graph)
    assert order.core_number(edges, len(graph)).tolist() == [cores[v] for v in graph]


@pytest.mark.parametrize("damping", [0.0, 0.5, 0.85, 0.95])
@pytest.mark.parametrize("name", [*GRAPHS, "directed"])
def test_pagerank_is_networkx(name, damping):
    # A directed graph has sinks, whose mass goes to every node.
    graph = nx.gnp_random_graph(30, 0.06, seed=5, directed=True) if name == "directed" else GRAPHS[name]
    expected = nx.pagerank(graph, alpha=damping, tol=1e-14, max_iter=5000)
    found = order.pagerank(edges_of(graph), len(graph), damping=damping)
    np.testing.assert_allclose(found, [expected[v] for v in graph], atol=1e-9)


@pytest.mark.parametrize("name", ["tree", "dense", "two", "directed"])
def test_personalized_pagerank_is_networkx(name):
    graph = nx.gnp_random_graph(30, 0.06, seed=5, directed=True) if name == "directed" else GRAPHS[name]
    expected = nx.pagerank(graph, alpha=0.85, personalization={2: 1.0, 7: 1.0}, tol=1e-14, max_iter=5000)
    found = order.personalized_pagerank(edges_of(graph), len(graph), seeds=torch.tensor([2, 7]))
    np.testing.assert_allclose(found, [expected[v] for v in graph], atol=1e-9)


def test_personalized_pagerank_restarts_at_the_hubs_by_default():
    graph = GRAPHS["tree"]
    most = max(d for _, d in graph.degree())
    hubs = torch.tensor([v for v, d in graph.degree() if d == most])
    edges = edges_of(graph)
    by_default = order.personalized_pagerank(edges, len(graph))
    assert torch.equal(by_default, order.personalized_pagerank(edges, len(graph), seeds=hubs))
    with pytest.raises(DataError, match="seed 40"):
        order.personalized_pagerank(edges, len(graph), seeds=torch.tensor([40]))


@pytest.mark.parametrize("name", ["tree", "dense", "grid", "path", "star", "cycle"])
def test_eigenvector_is_networkx_on_connected_graphs(name):
    graph = GRAPHS[name]
    if not nx.is_connected(graph):
        graph = nx.convert_node_labels_to_integers(graph.subgraph(max(nx.connected_components(graph), key=len)))
    dense = nx.to_numpy_array(graph)
    value, vector = np.linalg.eigh(dense)
    perron = np.abs(vector[:, -1])
    found = order.eigenvector(edges_of(graph), len(graph)).numpy()
    np.testing.assert_allclose(found / np.linalg.norm(found), perron, atol=2e-6)
    np.testing.assert_allclose(np.sqrt((found**2).mean()), value[-1], rtol=1e-5)
    if name != "path":
        reference = nx.eigenvector_centrality_numpy(graph)
        np.testing.assert_allclose(found / np.linalg.norm(found), [abs(reference[v]) for v in graph], atol=2e-6)


def test_eigenvector_treats_components_alike():
    graph = nx.disjoint_union_all([nx.cycle_graph(50), nx.complete_graph(4), nx.empty_graph(1), nx.complete_graph(2)])
    found = order.eigenvector(edges_of(graph), len(graph)).numpy()
    np.testing.assert_allclose(found, [2] * 50 + [3] * 4 + [0] + [1] * 2, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
@pytest.mark.parametrize("name", ["tree", "dense", "sparse", "two", "lone"])
def test_rwse_is_the_diagonal_of_matrix_powers(name, steps):
    graph = GRAPHS[name]
    dense = nx.to_numpy_array(graph)
    dense[dense.sum(1) == 0] = np.eye(len(graph))[dense.sum(1) == 0]
    walk = dense / dense.sum(1, keepdims=True)
    powers = [np.linalg.matrix_power(walk, t) for t in range(1, steps + 1)]
    edges = edges_of(graph)
    found = order.rwse(edges, len(graph), steps=steps)
    np.testing.assert_allclose(found, -sum(np.diag(p) for p in powers), atol=2e-7)
    landing = order.rwse(edges, len(graph), steps=steps, kind="landing")
    np.testing.assert_allclose(landing, sum(p.mean(0) for p in powers), atol=2e-7)


def test_rwse_by_blocks_of_columns(monkeypatch):
    edges, size, batch = batched([GRAPHS["dense"], GRAPHS["one"], GRAPHS["tree"]])
    whole = order.rwse(edges, size, batch)
    monkeypatch.setattr("seqgraph.order.walk._CELLS", 7 * size)
    np.testing.assert_allclose(order.rwse(edges, size, batch), whole, rtol=1e-7)


@pytest.mark.parametrize("name", ["tree", "dense", "sparse", "grid", "two"])
def test_bfs_layers_are_networkx(name):
    graph = GRAPHS[name]
    found = order.bfs(edges_of(graph), len(graph), root=torch.tensor([1]))
    hops = nx.single_source_shortest_path_length(graph, 1)
    inside = sorted(hops)
    assert float(found[1]) == float(found.max())
    distances = [hops[v] for v in inside]
    expected = [max(distances) - d for d in distances]
    assert (found[inside] - found[inside].min()).tolist() == expected
    outside = [v for v in graph if v not in hops]
    assert not outside or float(found[outside].max()) < float(found[inside].min())


def test_bfs_starts_at_the_hub_and_keeps_components_apart():
    graph = nx.disjoint_union(nx.star_graph(5), nx.path_graph(3))
    found = order.bfs(edges_of(graph), len(graph))
    assert found.tolist() == [3, 2, 2, 2, 2, 2, 0, 1, 0]
    # All nodes of a cycle are alike: without a generator all are roots, with one a single node is.
    cycle = edges_of(nx.cycle_graph(6))
    assert order.bfs(cycle, 6).tolist() == [0] * 6
    one = order.bfs(cycle, 6, generator=torch.Generator().manual_seed(0))
    assert sorted(one.tolist()) == [0, 1, 1, 2, 2, 3]


def bandwidth(edges: torch.Tensor, perm: torch.Tensor) -> int:
    place = torch.empty_like(perm).index_copy(0, perm, torch.arange(len(perm)))
    return int((place[edges[0]] - place[edges[1]]).abs().max())


def test_rcm_bandwidth_is_as_good_as_networkx():
    totals = [0, 0]
    for seed in range(6):
        new = dict(enumerate(np.random.default_rng(seed).permutation(60).tolist()))
        for graph, known in [
            (nx.path_graph(60), 1),
            (nx.cycle_graph(60), 2),
            (nx.convert_node_labels_to_integers(nx.grid_2d_graph(6, 10)), 6),
            (nx.random_geometric_graph(60, 0.25, seed=seed), None),
            (nx.random_labeled_tree(60, seed=seed), None),
        ]:
            graph = nx.relabel_nodes(graph, new)
            edges = edges_of(graph)
            found = bandwidth(edges, order.node_order("rcm", edges, 60))
            assert known is None or found == known
            totals[0] += found
            totals[1] += bandwidth(edges, torch.tensor(list(nx.utils.reverse_cuthill_mckee_ordering(graph))))
    assert totals[0] <= totals[1]


def test_rcm_is_a_cuthill_mckee_order():
    """Reversed, each node comes by the place of its first neighbour, and brothers by degree."""
    graph = nx.convert_node_labels_to_integers(nx.connected_watts_strogatz_graph(50, 4, 0.3, seed=1))
    perm = order.node_order("rcm", edges_of(graph), 50).flip(0).tolist()
    place = {v: i for i, v in enumerate(perm)}
    parents = [min(place[u] for u in graph[v]) for v in perm[1:]]
    assert all(parent < i for i, parent in enumerate(parents, start=1))
    assert parents == sorted(parents)
    for a, b, i, j in zip(perm[1:], perm[2:], parents, parents[1:], strict=False):
        assert i < j or graph.degree(a) <= graph.degree(b)


@st.composite
def random_graphs(draw, min_nodes=1):
    size = draw(st.integers(min_nodes, 12))
    pairs = [(a, b) for a in range(size) for b in range(a)]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=24)) if pairs else []
    graph = nx.empty_graph(size)
    graph.add_edges_from(chosen)
    return graph


@settings(max_examples=40, deadline=None)
@given(graph=random_graphs(), data=st.data())
def test_relabelling_permutes_the_scores(graph, data):
    size = len(graph)
    new = torch.tensor(data.draw(st.permutations(range(size))))
    edges = edges_of(graph)
    for name in EQUIVARIANT:
        scores = ORDERS[name](edges, size)
        moved = ORDERS[name](new[edges], size)
        torch.testing.assert_close(moved[new], scores, rtol=1e-9, atol=1e-9, msg=name)
        # Ties must be the same ones, to the bit.
        same = scores[:, None] == scores[None, :]
        assert torch.equal(moved[new][:, None] == moved[new][None, :], same), name
    key = order.canonical_key(edges, size)
    assert torch.equal(order.canonical_key(new[edges], size)[new], key)
    # What a canonical order shows: the colours in token order.
    for name in EQUIVARIANT:
        first = key[order.node_order(ORDERS[name], edges, size, tie="canonical")]
        perm = order.node_order(ORDERS[name], new[edges], size, tie="canonical")
        assert torch.equal(order.canonical_key(new[edges], size)[perm], first), name


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_copies_of_a_graph_tie_exactly(name):
    """Twenty shuffled copies in one graph: sums in another order differ by float noise, the scores must not."""
    part = nx.connected_watts_strogatz_graph(30, 6, 0.4, seed=4)
    edges, size, _ = batched([part] * 20)
    new = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    shuffled = new[edges][:, torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(1))]
    scores = ORDERS[name](shuffled, size)[new].view(20, 30)
    assert bool((scores == scores[0]).all())


@settings(max_examples=40, deadline=None)
@given(graph=random_graphs(min_nodes=2), data=st.data())
def test_rcm_of_a_tree_shows_the_same_tree(graph, data):
    """On forests 1-WL finds all automorphisms, so the matrix in RCM order does not depend on the labels."""
    forest = nx.Graph(nx.minimum_spanning_edges(graph, data=False))
    forest.add_nodes_from(graph)
    size, edges = len(graph), edges_of(forest)
    new = torch.tensor(data.draw(st.permutations(range(size))))

    def picture(edges):
        dense = torch.zeros(size, size)
        dense[edges[0], edges[1]] = 1
        perm = order.node_order("rcm", edges, size, tie="index")
        return dense[perm][:, perm]

    assert torch.equal(picture(edges), picture(new[edges]))


@settings(max_examples=25, deadline=None)
@given(graphs=st.lists(random_graphs(), min_size=1, max_size=4))
def test_a_batch_is_its_graphs_one_by_one(graphs):
    edges, size, batch = batched(graphs)
    keys = [order.canonical_key(edges_of(g), len(g)) for g in graphs]
    assert torch.equal(order.canonical_key(edges, size, batch), torch.cat(keys))
    for name in DETERMINISTIC:
        together = ORDERS[name](edges, size, batch)
        alone = torch.cat([ORDERS[name](edges_of(g), len(g)) for g in graphs])
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9, msg=name)
        shifts = np.cumsum([0, *map(len, graphs)])
        perm = order.node_order(ORDERS[name], edges, size, batch, tie="canonical")
        parts = [
            order.node_order(ORDERS[name], edges_of(g), len(g), tie="canonical") + s for g, s in zip(graphs, shifts)
        ]
        assert torch.equal(perm, torch.cat(parts)), name


@pytest.mark.parametrize("name", ORDERS)
def test_degenerate_graphs(name):
    none = torch.empty(2, 0, dtype=torch.int64)
    assert order.node_order(ORDERS[name], none, 0).tolist() == []
    assert order.node_order(ORDERS[name], none, 1).tolist() == [0]
    # Graphs 0, 2, 3 and 5 of this batch are empty.
    batch = torch.tensor([1, 1, 4, 6])
    perm = order.node_order(ORDERS[name], torch.tensor([[0, 1], [1, 0]]), 4, batch)
    assert sorted(perm[:2].tolist()) == [0, 1]
    assert perm[2:].tolist() == [2, 3]
    # Self loops and repeats.
    messy = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 0, 0, 2, 2]])
    scores = ORDERS[name](messy, 4)
    assert scores.shape == (4,)
    assert scores.dtype == torch.float64
    assert bool(scores.isfinite().all())


def test_repeats_and_loops_count_only_for_degree_and_loops_for_pagerank():
    clean = edges_of(GRAPHS["dense"])
    messy = torch.cat([clean, clean[:, :9], torch.tensor([[3, 4], [3, 4]])], 1)
    size = len(GRAPHS["dense"])
    for name in ["rwse", "bfs", "rcm", "core-number", "eigenvector"]:
        torch.testing.assert_close(ORDERS[name](messy, size), ORDERS[name](clean, size))
    assert order.degree(messy, size).sum() == messy.shape[1]
    loops = nx.Graph(GRAPHS["dense"])
    loops.add_edges_from([(3, 3), (4, 4)])
    expected = nx.pagerank(loops, tol=1e-14, max_iter=1000)
    np.testing.assert_allclose(order.pagerank(messy, size), [expected[v] for v in range(size)], atol=1e-9)


def test_degree_of_directed_edges():
    edges = torch.tensor([[0, 0, 1], [1, 2, 2]])
    assert order.degree(edges, 3).tolist() == [2, 1, 0]
    assert order.degree(edges, 3, direction="in").tolist() == [0, 1, 2]
    assert order.degree(edges, 3, direction="both").tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ORDERS)
def test_same_seed_same_order(name):
    edges, size, batch = batched([GRAPHS["cycle"], GRAPHS["star"], GRAPHS["tree"]])
    draws = [
        order.node_order(ORDERS[name], edges, size, batch, generator=torch.Generator().manual_seed(seed)).tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] or name == "rcm"
    assert batch[torch.tensor(draws[0])].tolist() == batch.tolist()


def test_random_ties_are_uniform_within_equal_degree_only():
    edges = edges_of(nx.star_graph(4))
    generator = torch.Generator().manual_seed(0)
    perms = torch.stack([order.node_order("degree", edges, 5, generator=generator) for _ in range(2000)])
    assert bool((perms[:, -1] == 0).all())
    share = torch.stack([(perms[:, i, None] == torch.arange(1, 5)).double().mean(0) for i in range(4)])
    # 2,000 draws: the standard deviation of a share of 1/4 is 0.0097.
    assert float((share - 0.25).abs().max()) < 0.045


def test_rank_keeps_the_stored_order_for_index():
    scores = torch.tensor([2.0, 1.0, 1.0, 5.0, 5.0, 5.0])
    batch = torch.tensor([0, 0, 0, 1, 1, 1])
    assert order.rank(scores, batch, tie="index").tolist() == [1, 2, 0, 3, 4, 5]
    key = torch.tensor([0, 9, 8, 3, 2, 1])
    assert order.rank(scores, batch, tie="canonical", key=key).tolist() == [2, 1, 0, 5, 4, 3]


def test_a_function_can_be_an_order():
    def backwards(edge_index, num_nodes, batch, *, generator=None):
        return -torch.arange(num_nodes).float()

    assert order.node_order(backwards, torch.empty(2, 0, dtype=torch.int64), 3).tolist() == [2, 1, 0]


def test_what_is_wrong_is_named():
    none = torch.empty(2, 0, dtype=torch.int64)
    with pytest.raises(DataError, match=r"node 1 \(graph 0\) is NaN"):
        order.rank(torch.tensor([0.0, torch.nan]))
    with pytest.raises(DataError, match="edge 1 joins nodes 2 and 7, but there are 3"):
        order.degree(torch.tensor([[0, 2], [1, 7]]), 3)
    with pytest.raises(DataError, match="edge 0 joins nodes -1"):
        order.bfs(torch.tensor([[-1], [0]]), 3)
    with pytest.raises(DataError, match="not sorted: node 2"):
        order.pagerank(none, 3, torch.tensor([0, 1, 0]))
    with pytest.raises(DataError, match="two different graphs"):
        order.rwse(torch.tensor([[0], [1]]), 2, torch.tensor([0, 1]))
    with pytest.raises(DataError, match=r"not \(2, M\)"):
        order.degree(torch.zeros(3, 2, dtype=torch.int64), 3)
    with pytest.raises(DataError, match="float32"):
        order.degree(torch.zeros(2, 2), 3)
    with pytest.raises(DataError, match="batch is"):
        order.degree(none, 3, torch.tensor([0]))
    with pytest.raises(ConfigError, match="needs a key"):
        order.rank(torch.zeros(2), tie="canonical")
    with pytest.raises(ConfigError, match="not one score for each of 3"):
        order.node_order(lambda *a, **k: torch.zeros(2), none, 3)
    with pytest.raises(ConfigError, match="damping"):
        order.pagerank(none, 3, damping=1.0)


def test_an_unknown_name_is_a_plugin_error():
    from seqgraph.errors import PluginError

    with pytest.raises(PluginError, match="degre"):
        order.node_order("degre", torch.empty(2, 0, dtype=torch.int64), 1)


def test_canonical_key_tells_more_than_degree():
    # In a path of 7 the inner nodes share a degree; the colours know how far from the end they are.
    key = order.canonical_key(edges_of(nx.path_graph(7)), 7)
    assert len(set(key.tolist())) == 4
    assert torch.equal(key, key.flip(0))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("tie", ["random", "canonical", "index"])
def test_same_seed_same_order_on_the_gpu(name, tie):
    edges, size, batch = batched(list(GRAPHS.values()))
    on_cpu = order.node_order(ORDERS[name], edges, size, batch, generator=torch.Generator().manual_seed(3), tie=tie)
    moved = [t.cuda() for t in (edges, batch)]
    on_gpu = order.node_order(
        ORDERS[name], moved[0], size, moved[1], generator=torch.Generator().manual_seed(3), tie=tie
    )
    assert torch.equal(on_cpu, on_gpu.cpu())
