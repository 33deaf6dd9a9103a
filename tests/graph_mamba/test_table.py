"""Batches cut from flat tensors are the graphs themselves, on any device."""

from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import ConfigError, DataError
from seqgraph_graph_mamba.data import GraphDataset
from seqgraph_graph_mamba.graph import Graph, GraphBatch, collate
from seqgraph_graph_mamba.table import GraphRow, GraphTable, join_tables


def made(generator: torch.Generator, kind: str, *, edges: bool = True) -> Graph:
    """A graph of 1 to 9 nodes with everything that a graph may have."""
    nodes = int(torch.randint(1, 10, (), generator=generator))
    count = int(torch.randint(0, 12, (), generator=generator)) if edges else 0
    pairs = torch.randint(0, nodes, (2, 4), generator=generator)
    return Graph(
        x=torch.rand(nodes, 3, generator=generator),
        edge_index=torch.randint(0, nodes, (2, count), generator=generator),
        edge_attr=torch.randint(0, 5, (count, 2), generator=generator).byte(),
        y={"graph": torch.rand(2, generator=generator), "node": torch.randint(0, 3, (nodes,), generator=generator)}.get(
            kind
        ),
        pairs=pairs if kind == "links" else None,
        pair_y=torch.randint(0, 2, (4,), generator=generator).float() if kind == "links" else None,
        pe=torch.rand(nodes, 2, generator=generator),
        columns={"colour": torch.arange(nodes)},
    )


def table_of(graphs: list[Graph]) -> GraphTable:
    table = GraphTable.from_graphs(graphs).with_pe(torch.cat([g.pe for g in graphs if g.pe is not None]))
    columns = {"colour": torch.cat([g.columns["colour"] for g in graphs])}
    return GraphTable(**{**vars(table), "columns": columns})


def same(ours: GraphBatch, theirs: GraphBatch) -> None:
    for field in fields(GraphBatch):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), field.name
        elif field.name == "columns":
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        else:
            assert a == b, field.name
    assert torch.equal(ours.batch, theirs.batch)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["graph", "node", "links"]))
def test_a_batch_by_index_is_the_graphs_packed(seed, kind):
    generator = torch.Generator().manual_seed(seed)
    graphs = [made(generator, kind) for _ in range(8)]
    table = table_of(graphs)
    rows = torch.randint(0, 8, (5,), generator=generator).tolist()  # repeats, in any order
    same(table.batch(rows), collate([graphs[i] for i in rows]))
    same(table.batch(rows), collate([table[i] for i in rows]))
    again = GraphTable.from_arrays(table.to_arrays())
    assert torch.equal(again.batch(rows).edge_index, table.batch(rows).edge_index)


def test_edgeless_graphs_and_one_node():
    generator = torch.Generator().manual_seed(0)
    graphs = [made(generator, "graph", edges=i % 2 == 0) for i in range(6)]
    table = table_of(graphs)
    same(
        table.batch([1, 3]),
        GraphBatch(**{**vars(collate([graphs[1], graphs[3]])), "edge_attr": torch.empty(0, 2).long()}),
    )
    same(table.batch([5, 0]), collate([graphs[5], graphs[0]]))


def test_rows_are_graphs_and_are_cut_late(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    graphs = [made(generator, "graph") for _ in range(6)]
    splits = {name: np.arange(i, 6, 3) for i, name in enumerate(("train", "valid", "test"))}
    data = GraphDataset(table_of(graphs), splits, targets=["a", "b"], kind="regression")
    row = data.split("valid")[1]
    assert isinstance(row, Graph) and len(row) == len(graphs[4]) and torch.equal(row.x, graphs[4].x)
    assert torch.equal(row.edge_index, graphs[4].edge_index) and torch.equal(row.y, graphs[4].y)
    assert row.pairs is None and row.pair_y is None and row.num_edges == graphs[4].num_edges
    monkeypatch.setattr(GraphTable, "__getitem__", lambda self, i: pytest.fail("a graph was cut out"))
    batch = data.collate([data.split("train")[i] for i in (1, 0)])
    same(batch, collate([graphs[3], graphs[0]]))


def test_rows_of_another_table_are_packed_one_by_one():
    generator = torch.Generator().manual_seed(0)
    graphs = [made(generator, "graph") for _ in range(6)]
    splits = {name: np.arange(i, 6, 3) for i, name in enumerate(("train", "valid", "test"))}
    data, other = (GraphDataset(table_of(graphs), splits, targets=["a", "b"], kind="regression") for _ in range(2))
    mixed = [data.split("train")[0], other.split("train")[1], graphs[2]]
    same(data.collate(mixed), collate([graphs[0], graphs[3], graphs[2]]))


def test_tables_join():
    generator = torch.Generator().manual_seed(0)
    graphs = [made(generator, "links") for _ in range(6)]
    parts = [GraphTable.from_graphs(graphs[:2]), GraphTable.from_graphs(graphs[2:])]
    whole, joined = GraphTable.from_graphs(graphs), join_tables(parts)
    assert all(np.array_equal(a, joined.to_arrays()[name]) for name, a in whole.to_arrays().items())
    with pytest.raises(DataError, match="the splits differ in x"):
        join_tables([parts[0], GraphTable(**{**vars(parts[1]), "x": parts[1].x.double()})])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("edge_index", torch.tensor([[0, 9], [0, 0]], dtype=torch.int32), "graph 1: an edge names a node outside"),
        ("x", torch.tensor([[0.0], [float("nan")], [1.0]]), "graph 1: x has NaN"),
    ],
)
def test_the_first_bad_graph_of_a_table_is_named(field, value, says):
    table = GraphTable.from_graphs(
        [
            Graph(torch.zeros(1, 1), torch.tensor([[0], [0]]), y=torch.zeros(1)),
            Graph(torch.zeros(2, 1), torch.tensor([[1], [0]]), y=torch.zeros(1)),
        ]
    ).validate()
    with pytest.raises(DataError, match=says):
        GraphTable(**{**vars(table), field: value}).validate("f.pt")


@pytest.mark.parametrize("field", ["x", "edge_attr"])
@pytest.mark.parametrize("columns", [3, 2])
def test_graphs_of_other_features_are_named(field, columns):
    edges = torch.tensor([[0], [1]])
    lonely = Graph(torch.zeros(2, 2), edges[:, :0], torch.zeros(0, 0), y=torch.zeros(1))
    plain = Graph(torch.zeros(2, 2), edges, torch.zeros(1, 2), y=torch.zeros(1))
    other = Graph(**{**vars(plain), field: torch.zeros(1 + (field == "x"), columns, dtype=torch.int64)})
    assert len(GraphTable.from_graphs([lonely, plain])) == 2
    first = 0 if field == "x" else 1
    with pytest.raises(DataError, match=f"graph 2: {field} has {columns} columns of .*int64, that of graph {first} 2"):
        GraphTable.from_graphs([lonely, plain, other])


def test_what_only_some_graphs_have_is_refused():
    plain = Graph(torch.zeros(2, 1), torch.tensor([[0], [1]]), y=torch.zeros(1))
    for change, says in (
        ({"edge_attr": torch.zeros(1, 1)}, "edge features|edge_attr"),
        ({"y": torch.zeros(2, dtype=torch.int64)}, "classes of nodes"),
        ({"y": None, "pairs": torch.zeros(2, 1).long(), "pair_y": torch.ones(1)}, "pairs|has no y"),
    ):
        other = Graph(**{**vars(plain), **change})
        for function in (GraphTable.from_graphs, collate):
            with pytest.raises(DataError, match=says):
                function([plain, other])
    with pytest.raises(DataError, match="no targets"):
        GraphTable.from_graphs([Graph(plain.x, plain.edge_index)])


def _small(**more) -> GraphDataset:
    generator = torch.Generator().manual_seed(0)
    splits = {name: np.arange(i, 6, 3) for i, name in enumerate(("train", "valid", "test"))}
    graphs = [made(generator, "graph") for _ in range(6)]
    return GraphDataset(table_of(graphs), splits, targets=["a", "b"], kind="regression", **more)


def test_without_a_gpu_batches_stay_on_the_cpu():
    data, model = _small(), torch.nn.Linear(1, 1)
    data.follow(model)
    assert data.home().type == "cpu" and data.placed() is data.table
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"data\.device=cuda"):
            _small(device="cuda")


def test_a_data_set_can_be_sent_to_a_worker():
    data, model = _small(), torch.nn.Linear(1, 1)
    data.follow(model)
    again = pickle.loads(pickle.dumps(data))
    rows = [again.split("train")[i] for i in range(2)]
    assert isinstance(rows[0], GraphRow)
    same(again.collate(rows), data.collate([data.split("train")[i] for i in range(2)]))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["graph", "node", "links"])
def test_a_batch_cut_on_a_gpu_is_the_cpus_and_does_not_wait(kind):
    generator = torch.Generator().manual_seed(0)
    table = table_of([made(generator, kind) for _ in range(40)])
    rows = np.arange(39, -1, -2)
    there = table.to("cuda")
    there.batch(rows)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = there.batch(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch.x.is_cuda
    same(batch.to("cpu"), table.batch(rows))


@pytest.mark.gpu
def test_data_move_to_the_models_gpu_once():
    data, model = _small(), torch.nn.Linear(1, 1).cuda()
    assert data.home().type == "cpu"
    data.follow(model)
    rows = [data.split("train")[i] for i in range(2)]
    assert data.collate(rows).x.is_cuda and data.placed() is data.placed()
    model.cpu()
    assert not data.collate(rows).x.is_cuda
    forced = _small(device="cpu")
    forced.follow(model.cuda())
    assert not forced.collate([forced.split("train")[0]]).x.is_cuda
