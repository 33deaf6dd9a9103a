"""Graph tokenizers against networkx and naive loops."""

from __future__ import annotations

from dataclasses import dataclass, replace

import networkx as nx
import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import ConfigError, DataError
from seqgraph.order.graph import _compress, pair_keys, simple_edges
from seqgraph.tokenize import lanes, neighborhood, neighborhoods, nodes, walks, window
from seqgraph.tokenize.graph import Graphs, read_graphs


@dataclass
class Data:
    """As much of PyG's Data as the tokenizers read."""

    edge_index: torch.Tensor
    num_nodes: int | None = None
    x: torch.Tensor | None = None
    batch: torch.Tensor | None = None
    ptr: torch.Tensor | None = None


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data_of(graph: nx.Graph) -> Data:
    pairs = torch.tensor(list(graph.edges()), dtype=torch.int64).reshape(-1, 2).T
    return Data(pairs if graph.is_directed() else torch.cat([pairs, pairs.flip(0)], 1), len(graph))


@st.composite
def graphs(draw):
    size = draw(st.integers(1, 9))
    ends = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))
    pairs = draw(st.lists(ends, max_size=20))
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    if draw(st.booleans()):
        edges = torch.cat([edges, edges.flip(0)], 1)
    return Data(edges, size)


LAWS = [
    {},
    {"backtracking": True},
    {"backtracking": True, "p": 0.3, "q": 3.0},
    {"q": 0.5, "restart": 0.1},
    {"sink": "restart"},
    {"sink": "stay", "restart": 0.2},
]
NONE = torch.empty(2, 0, dtype=torch.int64)
DEGENERATE = [Data(NONE, 0), Data(NONE, 1), Data(NONE, 4), Data(torch.tensor([[0], [0]]), 1)]


# ---------------------------------------------------------------------- nodes
@settings(max_examples=30, deadline=None)
@given(data=graphs(), seed=st.integers(0, 9))
def test_reading_node_tokens_back_gives_the_nodes(data, seed):
    """The identity as a sequence model must be the identity on the graph (field notes: 7 of 16 rows in a notebook)."""
    data.x = torch.randn(data.num_nodes, 3)
    stream = nodes(data, order="degree", generator=seeded(seed)).validate()
    assert torch.equal(stream.scatter_to_source(data.num_nodes, "sum"), data.x)
    assert torch.equal(stream.values, data.x[stream.source])


def test_nodes_are_in_order_graph_by_graph():
    # A star, an empty graph, a path, and an empty graph at the end.
    edges = torch.tensor([[0, 0, 0, 4, 5, 1, 2, 3, 5, 6], [1, 2, 3, 5, 6, 0, 0, 0, 4, 5]])
    data = Data(edges, 7, batch=torch.tensor([0, 0, 0, 0, 2, 2, 2]), ptr=torch.tensor([0, 4, 4, 7, 7]))
    stream = nodes(data, order="degree", tie="index").validate()
    assert stream.lengths.tolist() == [4, 0, 3, 0]
    assert stream.values.tolist() == [1, 2, 3, 0, 4, 6, 5]
    assert stream.source.tolist() == stream.values.tolist()
    several = nodes(data, order="rwse", steps=3, generator=seeded())
    assert several.equal(nodes(data, order="rwse", steps=3, generator=seeded()))


def test_nodes_of_a_pyg_batch_through_the_front_door():
    geometric = pytest.importorskip("torch_geometric.data")
    import seqgraph

    one = geometric.Data(x=torch.randn(3, 2), edge_index=torch.tensor([[0, 1], [1, 0]]))
    empty = geometric.Data(x=torch.randn(0, 2), edge_index=NONE)
    batch = geometric.Batch.from_data_list([one, empty, one, empty])
    stream = seqgraph.tokenize("nodes", batch, order="pagerank", generator=seeded())
    assert stream.lengths.tolist() == [3, 0, 3, 0]
    assert torch.equal(stream.values, batch.x[stream.source])
    assert seqgraph.tokenize("nodes", one).num_segments == 1


def test_bad_graphs_are_named():
    with pytest.raises(DataError, match="has no edge_index"):
        nodes(object())
    with pytest.raises(DataError, match="neither x nor num_nodes"):
        walks(Data(NONE))
    with pytest.raises(DataError, match="node 1 hold NaN"):
        nodes(Data(NONE, x=torch.tensor([[0.0], [torch.nan]])))
    for tokenizer in (nodes, neighborhoods, walks):
        with pytest.raises(DataError, match="edge 0 joins nodes 0 and 3"):
            tokenizer(Data(torch.tensor([[0], [3]]), 3))
    with pytest.raises(ConfigError, match="length -1"):
        walks(Data(NONE, 1), length=-1)
    with pytest.raises(ConfigError, match="p 0"):
        walks(Data(NONE, 1), p=0)
    with pytest.raises(ConfigError, match="restart 2"):
        walks(Data(NONE, 1), restart=2)
    with pytest.raises(ConfigError, match="sink 'halt'"):
        walks(Data(NONE, 1), sink="halt")
    for tokenizer in (neighborhoods, walks):
        with pytest.raises(DataError, match=r"keys are \(2,\)"):
            tokenizer(Data(NONE, 1), keys=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="walks 0"):
        neighborhoods(Data(NONE, 1), walks=0)


# ---------------------------------------------------------------------- walks
@settings(max_examples=40, deadline=None)
@given(data=graphs(), length=st.integers(0, 7), seed=st.integers(0, 99), back=st.booleans())
def test_walks_are_walks(data, length, seed, back):
    found = walks(data, length=length, window=3, backtracking=back, generator=seeded(seed))
    stream = found.stream.validate()
    assert stream.num_segments == data.num_nodes
    degree = torch.bincount(data.edge_index[0], minlength=data.num_nodes)
    neighbors = [set(data.edge_index[1][data.edge_index[0] == v].tolist()) for v in range(data.num_nodes)]
    edges = iter(found.edge.split(stream.lengths.tolist()))
    for start, walk in enumerate(stream.unbind()):
        path, taken = walk.values.tolist(), next(edges).tolist()
        assert path[0] == start
        assert taken[0] == -1
        assert len(path) == length + 1 or degree[path[-1]] == 0
        for a, b, edge in zip(path, path[1:], taken[1:], strict=False):
            assert data.edge_index[:, edge].tolist() == [a, b]
        for a, b, c in zip(path, path[1:], path[2:], strict=False):
            # Back only where there is no other way.
            assert back or a != c or neighbors[b] == {a}


def features_by_loop(edge_index, stream, window):
    simple = {(a, b) for a, b in edge_index.T.tolist() if a != b}
    rows = []
    for walk in stream.unbind():
        path = walk.source.tolist()
        for t, node in enumerate(path):
            past = [path[t - k] if t >= k else None for k in range(window + 1)]
            same = [float(past[k] == node) for k in range(1, window + 1)]
            joined = [float((past[k], node) in simple or (node, past[k]) in simple) for k in range(2, window + 1)]
            rows.append(same + joined)
    return torch.tensor(rows).reshape(stream.num_tokens, max(2 * window - 1, 0))


@settings(max_examples=30, deadline=None)
@given(data=graphs(), size=st.sampled_from([0, 1, 2, 3, 5, 8, 15, 16, 17, 33]), seed=st.integers(0, 99))
def test_window_features_against_a_loop(data, size, seed):
    found = walks(data, length=6 + size, rate=2, window=size, backtracking=True, generator=seeded(seed))
    expected = features_by_loop(data.edge_index, found.stream, size)
    assert torch.equal(found.features, expected)
    assert torch.equal(window.window_features(data.edge_index, data.num_nodes, found.stream, size), expected)
    # What runs on a GPU must say the same.
    pairs = pair_keys(data.edge_index, data.num_nodes)
    assert torch.equal(window.window_in_torch(pairs, data.num_nodes, found.stream, size), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "_CELLS", 40)
        assert torch.equal(window.window_in_torch(pairs, data.num_nodes, found.stream, size), expected)


def test_window_features_of_hubs():
    """Rows longer than those that are compared as a whole, and signatures that are full."""
    data = data_of(nx.compose(nx.star_graph(300), nx.complete_graph(80)))
    for size in (6, 20):
        found = walks(data, length=30, window=size, generator=seeded(3))
        assert torch.equal(found.features, features_by_loop(data.edge_index, found.stream, size))
        assert 0.1 < float(found.features.mean()) < 0.9


@pytest.mark.parametrize("size", [1, 3, 8, 16, 18])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_window_features_on_several_threads(size, kind):
    """Each thread writes its own rows and no others, whatever the width of a row and of an index."""
    data = data_of(nx.gnm_random_graph(700, 2100, seed=1))
    found = walks(data, length=11, rate=3, window=0, generator=seeded(1))
    table = window.WindowTable.of(simple_edges(data.edge_index, 700))
    table = replace(table, rowptr=table.rowptr.astype(kind), col=table.col.astype(kind))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        features = window.window_on_cpu(table, found.stream, size)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(features, features_by_loop(data.edge_index, found.stream, size))


def test_lanes_are_what_they_say():
    @numba.njit
    def use(array, at, value, target, place):
        bits = lanes.equal_bits(array, at, value)
        lanes.put_bits(target, place, bits)
        return bits

    for kind in (np.int32, np.int64):
        array, target = np.arange(40, dtype=kind) % 7, np.full(40, np.nan, np.float32)
        bits = use(array, 5, kind(3), target, 9)
        seen = array[5 : 5 + lanes.LANES] == 3
        assert bits == sum(1 << j for j in range(lanes.LANES) if seen[j])
        assert np.array_equal(target[9 : 9 + lanes.LANES], seen.astype(np.float32))
        assert np.isnan(np.delete(target, range(9, 9 + lanes.LANES))).all()


def test_rate_of_starts():
    data = data_of(nx.disjoint_union_all([nx.cycle_graph(50)] * 40))
    data.batch = torch.arange(40).repeat_interleave(50)
    few = walks(data, length=1, rate=0.25, generator=seeded())
    assert 420 < few.stream.num_segments < 580
    assert walks(data, length=1, rate=2, generator=seeded()).stream.num_segments == 4000
    half = walks(data, length=1, rate=1.5, generator=seeded()).stream
    started = torch.bincount(half.values[half.cu_seqlens[:-1].long()])
    assert set(started.tolist()) == {1, 2}
    # Every graph is seen, however small the rate.
    none = walks(data, length=1, rate=0.0, generator=seeded()).stream
    assert data.batch[none.source[none.cu_seqlens[:-1].long()]].tolist() == list(range(40))


def test_walks_have_a_seed():
    data = data_of(nx.connected_watts_strogatz_graph(40, 4, 0.2, seed=0))
    a, b, c = (walks(data, length=9, generator=seeded(s)) for s in (1, 1, 2))
    assert a.stream.equal(b.stream)
    assert torch.equal(a.edge, b.edge)
    assert not torch.equal(a.stream.values, c.stream.values)
    assert a.to("cpu").stream.equal(a.stream)


def test_a_walk_depends_on_its_key_alone():
    """Alone, in a batch, under other labels, or beside more walks: the same key and number, the same walk."""
    part = nx.connected_watts_strogatz_graph(20, 4, 0.2, seed=0)
    one, many = data_of(part), data_of(nx.disjoint_union_all([part] * 3))
    many.batch = torch.arange(3).repeat_interleave(20)
    keys = torch.randint(-(2**62), 2**62, (20,), generator=seeded())
    settings = {"length": 5, "window": 3}
    few = walks(one, rate=1.5, **settings, keys=keys, generator=seeded(1))
    more = walks(many, rate=1.5, **settings, keys=keys.repeat(3), generator=seeded(1))
    for shift in (0, 20, 40):
        part_of = more.stream[range(shift // 20 * few.stream.num_segments, (shift // 20 + 1) * few.stream.num_segments)]
        assert torch.equal(part_of.values, few.stream.values + shift)
    assert torch.equal(more.features, few.features.repeat(3, 1))
    small = neighborhoods(one, walks=2, keys=keys, generator=seeded(1))
    large = neighborhoods(many, walks=2, keys=keys.repeat(3), generator=seeded(1))
    assert torch.equal(large.node, torch.cat([small.node + shift for shift in (0, 20, 40)]))
    values = torch.cat([small.stream.values + 3 * shift + 2 * shift for shift in (0, 20, 40)])
    assert torch.equal(large.stream.values, values)


def test_graphs_are_read_once():
    data = data_of(nx.connected_watts_strogatz_graph(40, 4, 0.2, seed=0))
    kept = read_graphs(data)
    assert read_graphs(kept) is kept
    assert kept.stored is kept.stored
    assert walks(kept, generator=seeded()).stream.equal(walks(data, generator=seeded()).stream)
    tokens = neighborhoods(kept.to("cpu"), generator=seeded())
    assert tokens.stream.equal(neighborhoods(data, generator=seeded()).stream)


@pytest.mark.parametrize("sink", ["stay", "restart"])
def test_walks_of_one_length(sink):
    """A sink does not end a walk; every edge said to be taken is one, and a jump has none."""
    data = Data(torch.tensor([[0, 1, 2, 4], [1, 2, 3, 0]]), 6)
    found = walks(data, length=9, rate=3, sink=sink, generator=seeded())
    assert set(found.stream.lengths.tolist()) == {10}
    for walk, taken in zip(found.stream.unbind(), found.edge.view(-1, 10).tolist(), strict=True):
        path = walk.values.tolist()
        for a, b, edge in zip(path, path[1:], taken[1:], strict=False):
            if edge >= 0:
                assert data.edge_index[:, edge].tolist() == [a, b]
            else:
                assert a in (3, 5)
                assert b == (a if sink == "stay" else path[0])


@pytest.mark.parametrize("data", DEGENERATE)
@pytest.mark.parametrize("size", [0, 1, 4])
def test_walks_on_degenerate_graphs(data, size):
    for law in ({}, {"backtracking": True, "p": 0.5, "q": 2.0}, {"restart": 0.5, "sink": "stay"}):
        found = walks(data, length=3, window=size, **law, generator=seeded())
        found.stream.validate()
        assert found.stream.num_segments == data.num_nodes
        assert found.features.shape == (found.stream.num_tokens, max(2 * size - 1, 0))


# ---------------------------------------------------------------------- neighbourhoods
@settings(max_examples=30, deadline=None)
@given(data=graphs(), m=st.integers(0, 3), s=st.integers(0, 3), many=st.integers(1, 3), seed=st.integers(0, 99))
def test_neighborhood_tokens(data, m, s, many, seed):
    found = neighborhoods(data, max_length=m, walks=many, repeats=s, generator=seeded(seed))
    stream, size, length = found.stream.validate(), data.num_nodes, m * s + 1
    assert stream.lengths.tolist() == [length] * size
    assert stream.source.tolist() == [v for v in range(size) for _ in range(length)]
    assert found.walk_length.tolist() == [*(i for i in range(m, 0, -1) for _ in range(s)), 0] * size
    assert sorted(stream.values.tolist()) == list(range(size * length))
    directed = nx.MultiDiGraph()
    directed.add_nodes_from(range(size))
    directed.add_edges_from((a, b, i) for i, (a, b) in enumerate(data.edge_index.T.tolist()))
    members = [found.node[found.token == t].tolist() for t in range(size * length)]
    for place, token in enumerate(stream.values.tolist()):
        center, hops = int(stream.source[place]), int(found.walk_length[place])
        inside = members[token]
        # A union of walks: sorted, holds the centre, within reach, no larger than the walks allow.
        assert inside == sorted(set(inside))
        assert center in inside
        reach = nx.single_source_shortest_path_length(directed, center, cutoff=hops)
        assert set(inside) <= set(reach)
        assert len(inside) <= 1 + many * hops
        expected = {(a, b, i) for a, b, i in directed.subgraph(inside).edges(keys=True)}
        mine = (found.token[found.edge_index[0]] == token).nonzero()[:, 0]
        assert torch.equal(found.token[found.edge_index[1][mine]], torch.full_like(mine, token))
        ends = found.node[found.edge_index[:, mine]].T.tolist()
        assert {(a, b, i) for (a, b), i in zip(ends, found.edge[mine].tolist(), strict=True)} == expected
        assert len(mine) == len(expected)
    assert members[-1] == [size - 1]


@settings(max_examples=40, deadline=None)
@given(data=graphs(), m=st.integers(0, 4), s=st.integers(0, 3), many=st.integers(1, 4), seed=st.integers(0, 2**40))
def test_compiled_and_torch_subgraphs_are_alike(data, m, s, many, seed):
    graphs_ = read_graphs(data)
    keys = torch.randint(-(2**62), 2**62, (data.num_nodes,), generator=seeded(seed))
    lengths = torch.tensor([*(i for i in range(m, 0, -1) for _ in range(s)), 0])
    fast = neighborhood.sample_subgraphs(graphs_.walk_table, keys, lengths, many, seed)
    plain = neighborhood._subgraphs_torch(graphs_.stored, keys, lengths, many, seed, m)
    for a, b in zip(fast, plain, strict=True):
        assert torch.equal(torch.from_numpy(a), b)
    tokens = neighborhoods(data, max_length=m, walks=many, repeats=s, keys=keys, generator=seeded(seed))
    again = tokens.shuffled(seeded(7), keys=keys).stream.values
    assert torch.equal(again, tokens._shuffle_torch(neighborhood.draw_seed(seeded(7)), keys))


def test_subgraphs_of_hubs():
    """Rows that are searched rather than read, with repeats and a self loop."""
    star = data_of(nx.star_graph(500)).edge_index
    data = Data(torch.cat([star, star[:, :40], torch.zeros(2, 1, dtype=torch.int64)], 1), 501)
    graphs_, lengths = read_graphs(data), torch.tensor([3, 2, 1, 0])
    fast = neighborhood.sample_subgraphs(graphs_.walk_table, torch.arange(501), lengths, 4, 3)
    plain = neighborhood._subgraphs_torch(graphs_.stored, torch.arange(501), lengths, 4, 3, 3)
    for a, b in zip(fast, plain, strict=True):
        assert torch.equal(torch.from_numpy(a), b)


def test_neighborhoods_see_what_the_walks_reach():
    """With many walks of length m on a connected graph, the token is the m-hop ball."""
    graph = nx.connected_watts_strogatz_graph(20, 4, 0.2, seed=2)
    found = neighborhoods(data_of(graph), max_length=2, walks=400, repeats=1, generator=seeded())
    for place, token in enumerate(found.stream.values.tolist()):
        center, hops = int(found.stream.source[place]), int(found.walk_length[place])
        ball = nx.single_source_shortest_path_length(graph, center, cutoff=hops)
        # A walk of two steps may also be back at its centre's neighbours, so that nothing in the ball is left out.
        assert found.node[found.token == token].tolist() == sorted(ball)


def test_repeats_are_shuffled_within_one_length_only():
    data = data_of(nx.cycle_graph(12))
    found = neighborhoods(data, max_length=2, walks=1, repeats=3, generator=seeded())
    again = found.shuffled(seeded(5))
    assert not torch.equal(found.stream.values, again.stream.values)
    blocks, others = (t.stream.values.view(12, 7) for t in (found, again))
    for part in (slice(0, 3), slice(3, 6), slice(6, 7)):
        assert torch.equal(blocks[:, part].sort(1).values, others[:, part].sort(1).values)
        expected = torch.arange(84).view(12, 7)[:, part]
        assert torch.equal(blocks[:, part].sort(1).values, expected)
    assert again.stream.equal(found.shuffled(seeded(5)).stream)


@pytest.mark.parametrize("data", DEGENERATE)
def test_neighborhoods_of_degenerate_graphs(data):
    found = neighborhoods(data, generator=seeded())
    assert found.num_tokens == 5 * data.num_nodes
    assert found.node.tolist() == [v for v in range(data.num_nodes) for _ in range(5)]
    assert found.edge_index.shape == (2, 5 if data.edge_index.numel() else 0)
    assert found.to("cpu").num_tokens == found.num_tokens


def test_gpu_adjacency_is_the_cpus():
    data = data_of(nx.gnm_random_graph(40, 90, seed=2))
    edges = torch.cat([data.edge_index, data.edge_index[:, :9], torch.tensor([[39, 5], [39, 5]])], 1)
    stored = read_graphs(Data(edges, 43)).stored
    rows = _compress(stored.row, stored.col, stored.edge, 43)
    assert torch.equal(rows.rowptr, stored.rowptr)
    assert not len(_compress(*[torch.empty(0, dtype=torch.int64)] * 3, 0).row)
    joined = set((simple_edges(edges, 43).key).tolist())
    assert set(pair_keys(edges, 43).tolist()) == joined | {39 * 43 + 39, 5 * 43 + 5}


@pytest.mark.parametrize(
    "settings",
    [{"sink": "stay"}, {"sink": "restart", "restart": 0.1, "rate": 2}, {"sink": "stay", "backtracking": True}],
)
def test_walks_of_one_length_do_not_wait_for_a_gpu(settings):
    """On the device "meta" there is nothing to read: whatever asks for a value or a count raises."""
    edges, batch = (torch.zeros(shape, dtype=torch.int64, device="meta") for shape in ((2, 90), (40,)))
    found = walks(Graphs(edges, 40, batch, 1, None), length=5, window=4, **settings)
    assert found.features.shape == (40 * 6 * settings.get("rate", 1), 7)
    with pytest.raises((RuntimeError, NotImplementedError)):
        walks(Graphs(edges, 40, batch, 1, None), length=5, sink="end")


@pytest.mark.gpu
def test_graph_tokens_are_the_same_on_the_gpu():
    data = data_of(nx.gnp_random_graph(60, 0.06, seed=1))
    moved = Data(data.edge_index.cuda(), data.num_nodes)
    for law in LAWS:
        cpu, gpu = (walks(d, length=12, rate=1.5, **law, generator=seeded(4)) for d in (data, moved))
        assert cpu.stream.equal(gpu.stream.to("cpu"))
        assert torch.equal(cpu.edge, gpu.edge.cpu())
        assert torch.equal(cpu.features, gpu.features.cpu())
    cpu, gpu = (neighborhoods(d, generator=seeded(4)) for d in (data, moved))
    assert cpu.stream.equal(gpu.stream.to("cpu"))
    for name in ("node", "token", "edge_index", "edge", "walk_length"):
        assert torch.equal(getattr(cpu, name), getattr(gpu, name).cpu()), name
