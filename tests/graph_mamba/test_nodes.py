"""Graphs whose nodes are classified: whole or sampled, split by masks, and the sampler itself."""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.config import load_config
from seqgraph.errors import ConfigError, DataError
from seqgraph.train.batching import token_batches
from seqgraph.train.run import evaluate, train
from seqgraph_graph_mamba.graph import Graph
from seqgraph_graph_mamba.neighbors import NeighborSampler
from seqgraph_graph_mamba.node_sets import Heterophilous, OgbNodes, Planetoid, PygNodes
from seqgraph_graph_mamba.nodes import NodeDataset
from seqgraph_graph_mamba.task import ClassPrediction


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQGRAPH_CACHE", str(tmp_path / "cache"))


def ring(nodes: int = 30, folds: int = 3, **more) -> NodeDataset:
    """A ring with features, two classes, and some ways to split it."""
    generator = np.random.default_rng(0)
    ends = np.stack([np.arange(nodes), (np.arange(nodes) + 1) % nodes])
    x = generator.normal(size=(nodes, 4)) * [1, 10, 100, 0] + 5
    y = torch.from_numpy(generator.integers(0, 2, nodes))
    part = np.stack([generator.permutation(nodes) % 3 for _ in range(folds)])
    masks = {name: part == i for i, name in enumerate(("train", "valid", "test"))}
    both = np.concatenate([ends, ends[::-1]], axis=1)
    return NodeDataset(Graph(torch.tensor(x).float(), torch.from_numpy(both), y=y), masks, **more)


# ---------------------------------------------------------------- splits and features
def test_each_split_asks_for_its_own_nodes():
    data = ring(fold=1)
    for name in ("train", "valid", "test"):
        batch = data.collate([data.split(name)[0]])
        asked = torch.from_numpy(data.masks[name][1])
        assert torch.equal(batch.y >= 0, asked) and torch.equal(batch.y[asked], data.table.y[asked])
        assert batch.num_graphs == 1 and data.lengths(name).tolist() == [30]
        assert data.collate([data.split(name)[0]]) is batch  # made once
    assert data.model_defaults() == {
        "d_out": 2,
        "level": "node",
        "node_features": "linear",
        "d_node": 4,
        "edge_features": "none",
    }


def test_features_are_standardised_by_the_training_nodes_of_the_fold():
    data = ring(fold=2)
    train = torch.from_numpy(data.masks["train"][2])
    x = data.table.x
    torch.testing.assert_close(x[train].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[train].std(0, unbiased=False), torch.tensor([1.0, 1, 1, 0]), atol=1e-4, rtol=0)
    assert x[~train].mean(0)[:3].abs().max() > 1e-3
    plain, rows = ring(fold=2, normalize="none").table.x, ring(fold=2, normalize="rows").table.x
    torch.testing.assert_close(rows, plain / plain.sum(1, keepdim=True).clamp_min(1e-12))


def test_the_fold_follows_the_seed_of_the_run():
    data = ring()
    prints, means = set(), []
    for seed in (0, 1, 2, 3):
        torch.manual_seed(seed)
        data.model_defaults()
        assert data.fold == seed % 3
        fixed = ring(fold=seed % 3)
        assert torch.equal(data.table.x, fixed.table.x) and data.assets() == fixed.assets()
        assert torch.equal(data.split("test").y, fixed.split("test").y)
        prints.add(data.fingerprint())
        means.append(data.assets()["features"]["x_mean"])
    assert len(prints) == 3 and means[0] == means[3] != means[1]
    torch.manual_seed(1)
    asked = ring(fold=2)
    asked.model_defaults()
    assert asked.fold == 2
    with pytest.raises(ConfigError, match="folds 0 to 2"):
        ring(fold=3)


def test_a_split_without_classes_is_refused():
    masks = {name: np.ones((1, 2), dtype=bool) for name in ("train", "valid", "test")}
    graph = Graph(torch.zeros(2, 1), torch.zeros(2, 0).long(), y=torch.tensor([0, 1]))
    masks["valid"][:] = False
    with pytest.raises(DataError, match="no node of the valid split"):
        NodeDataset(graph, masks)
    with pytest.raises(DataError, match="class for each of its nodes"):
        NodeDataset(Graph(graph.x, graph.edge_index), masks)


# ---------------------------------------------------------------- the published sets
def test_minesweeper_is_the_published_one(shared_data):
    folder = str(shared_data / "graph" / "heterophilous")
    data = Heterophilous(folder, fold=0)
    assert data.table.x.shape == (10_000, 7) and data.table.edge_index.shape == (2, 78_804)
    assert [int((data.split(n).y >= 0).sum()) for n in ("train", "valid", "test")] == [5_000, 2_500, 2_500]
    assert data.folds == 10 and data.model_defaults()["d_out"] == 2


@pytest.mark.parametrize("which", ["cora", "citeseer"])
def test_planetoid_is_pygs(shared_data, which):
    from torch_geometric.io import read_planetoid_data

    folder = shared_data / "graph" / "planetoid"
    data = Planetoid(str(folder), which=which, normalize="none")
    theirs = read_planetoid_data(str(folder), which)
    assert torch.equal(data.table.x, theirs.x)
    ours = {tuple(e) for e in data.table.edge_index.T.tolist()}
    assert ours == {tuple(e) for e in theirs.edge_index.T.tolist()} and len(ours) == theirs.num_edges
    for name, mask in (("train", theirs.train_mask), ("valid", theirs.val_mask), ("test", theirs.test_mask)):
        y = data.split(name).y
        assert torch.equal(y >= 0, mask) and torch.equal(y[mask], theirs.y[mask])
    assert Planetoid(str(folder), which=which).table.x.sum(1).max() == pytest.approx(1.0)


def write_ogbn(folder, nodes: int = 40) -> None:
    generator = np.random.default_rng(0)
    (folder / "raw").mkdir(parents=True)
    (folder / "split" / "time").mkdir(parents=True)
    tables = {
        "edge": generator.integers(0, nodes, (90, 2)),
        "node-feat": generator.normal(size=(nodes, 5)).round(4),
        "node-label": generator.integers(0, 4, (nodes, 1)),
    }
    for name, table in tables.items():
        with gzip.open(folder / "raw" / f"{name}.csv.gz", "wt") as file:
            file.writelines(",".join(map(str, row)) + "\n" for row in table.tolist())
    for i, name in enumerate(("train", "valid", "test")):
        with gzip.open(folder / "split" / "time" / f"{name}.csv.gz", "wt") as file:
            file.writelines(f"{row}\n" for row in range(i, nodes, 3))


def test_ogbn_is_read_and_sampled(tmp_path):
    write_ogbn(tmp_path / "ogbn_arxiv")
    data = OgbNodes(str(tmp_path), neighbors=[3, 2])
    assert len(data.table.x) == 40 and data.kind == "classes" and len(data.split("train")) == 14
    loader = token_batches(data, "train", 60, shuffle=True)
    seen = []
    for batch in loader:
        assert batch.num_nodes <= 60 and batch.longest == batch.num_nodes and batch.num_graphs == 1
        seen.append(int((batch.y >= 0).sum()))
    assert sum(seen) == 14
    (tmp_path / "ogbn_arxiv" / "raw" / "edge.csv.gz").write_bytes(gzip.compress(b"1,2\nx,3\n"))
    with pytest.raises(DataError, match=r"edge\.csv\.gz: .*'x'"):
        OgbNodes(str(tmp_path))


def test_one_pyg_graph_with_masks(tmp_path):
    from torch_geometric.data import Data

    data = ring(folds=2)
    masks = {f"{k}_mask": torch.from_numpy(data.masks[n].T) for k, n in zip(("train", "val", "test"), data.masks)}
    held = Data(x=data._raw, edge_index=data.table.edge_index.long(), y=data.table.y, **masks)
    torch.save(held, tmp_path / "a.pt")
    again = PygNodes(str(tmp_path / "a.pt"), fold=1)
    ours = ring(folds=2, fold=1)
    assert torch.equal(again.table.x, ours.table.x) and torch.equal(again.split("test").y, ours.split("test").y)
    del held.val_mask
    torch.save([held], tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt: val_mask"):
        PygNodes(str(tmp_path / "a.pt"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: Heterophilous(), r"data\.root"),
        (lambda p: Heterophilous(str(p), which="roman_empire"), r"roman_empire\.npz does not exist"),
        (lambda p: Heterophilous(str(p), which="broken"), r"broken\.npz is not an archive"),
        (lambda p: Heterophilous(str(p), which="short"), r"short\.npz: edges .* do not fit"),
        (lambda p: Planetoid(str(p)), r"has no ind\.cora\.x"),
        (lambda p: OgbNodes(str(p)), r"has no raw/edge\.csv\.gz"),
        (lambda p: PygNodes(str(p / "none.pt")), "does not exist"),
    ],
)
def test_files_that_are_missing_or_wrong(tmp_path, make, says):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    masks = {f"{name}_masks": np.ones((1, 3), dtype=bool) for name in ("train", "val", "test")}
    np.savez(
        tmp_path / "short.npz", node_features=np.zeros((4, 2)), node_labels=np.zeros(4), edges=np.zeros((1, 2)), **masks
    )
    with pytest.raises(DataError, match=says):
        make(tmp_path)


def test_a_hostile_planetoid_file_is_refused(tmp_path, shared_data):
    import os
    import shutil

    for file in (shared_data / "graph" / "planetoid").glob("ind.cora.*"):
        shutil.copyfile(file, tmp_path / file.name)

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    for part in ("graph", "allx", "ally"):
        whole = (tmp_path / f"ind.cora.{part}").read_bytes()
        (tmp_path / f"ind.cora.{part}").write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(DataError, match=rf"ind\.cora\.{part}.*mkdir"):
            Planetoid(str(tmp_path))
        (tmp_path / f"ind.cora.{part}").write_bytes(whole)
    assert not (tmp_path / "owned").exists()


# ---------------------------------------------------------------- the sampler
def graph_of(seed: int, nodes: int = 25, edges: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, nodes, (2, edges))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_samples_are_what_they_should_be(seed, joint, fanouts):
    edge_index = graph_of(seed)
    sampler = NeighborSampler(edge_index, 25, fanouts, joint=joint)
    seeds = np.random.default_rng(seed).permutation(25)[:6]
    found = sampler.sample(seeds, seed)
    assert np.array_equal(found.nodes[found.seeds], seeds)
    # every edge is one of the graph's, and none is there twice in one graph of the sample
    assert np.array_equal(found.nodes[found.edge_index], edge_index[:, found.edges])
    owner = np.repeat(np.arange(len(found.sizes)), found.sizes)
    assert np.array_equal(owner[found.edge_index[0]], owner[found.edge_index[1]])
    assert len(set(zip(owner[found.edge_index[1]], found.edges, strict=True))) == len(found.edges)
    # every node is there once in each graph
    assert len(set(zip(owner, found.nodes, strict=True))) == len(found.nodes)
    assert found.sizes.sum() == len(found.nodes) <= sampler.bounds(seeds).sum()
    assert len(found.sizes) == (1 if joint else 6)
    # hop by hop, each node reached before the last hop has min(fan-out, degree) edges
    degree = np.bincount(edge_index[1], minlength=25)
    taken = np.bincount(found.edge_index[1], minlength=len(found.nodes))
    depth = np.full(len(found.nodes), 99)
    depth[found.seeds] = 0
    for _ in fanouts:
        np.minimum.at(depth, found.edge_index[0], depth[found.edge_index[1]] + 1)
    reach = np.append(fanouts, 0)[np.minimum(depth, len(fanouts))]
    assert np.array_equal(taken, np.minimum(reach, degree[found.nodes]))
    same = sampler.sample(seeds, seed)
    assert all(np.array_equal(a, b) for a, b in zip(vars(found).values(), vars(same).values(), strict=True))


def test_what_a_node_samples_does_not_hang_on_its_batch():
    edge_index = graph_of(3)
    sampler = NeighborSampler(edge_index, 25, [3], joint=False)
    alone = {v: set(sampler.sample(np.array([v]), 7).edges.tolist()) for v in range(25)}
    found = sampler.sample(np.arange(24, -1, -1), 7)
    owner = np.repeat(np.arange(25), found.sizes)[found.edge_index[1]]
    for graph, v in enumerate(range(24, -1, -1)):
        assert set(found.edges[owner == graph].tolist()) == alone[v]
    assert {v: set(sampler.sample(np.array([v]), 8).edges.tolist()) for v in range(25)} != alone


def test_edges_are_drawn_evenly():
    hub = np.stack([np.arange(1, 11), np.zeros(10, dtype=np.int64)])
    sampler = NeighborSampler(hub, 11, [3])
    counts = np.zeros(10)
    for seed in range(4000):
        counts[sampler.sample(np.array([0]), seed).edges] += 1
    # 1,200 expected, standard deviation 29
    assert counts.sum() == 12_000 and np.abs(counts - 1200).max() < 130


def test_a_large_fanout_takes_everything():
    edge_index = graph_of(5)
    found = NeighborSampler(edge_index, 25, [100] * 4).sample(np.array([0]), 0)
    reached = {0}
    for _ in range(4):
        reached |= {int(a) for a, b in edge_index.T if int(b) in reached}
    assert set(found.nodes.tolist()) == reached
    lonely = NeighborSampler(np.zeros((2, 0), dtype=np.int64), 3, [4, 4], joint=False).sample(np.array([2, 2]), 0)
    assert lonely.nodes.tolist() == [2, 2] and lonely.sizes.tolist() == [1, 1] and lonely.edges.size == 0
    with pytest.raises(ConfigError, match="fan-outs"):
        NeighborSampler(edge_index, 25, [])


def test_memory_of_a_sample_is_bounded_by_the_budget():
    """A million edges into one node cost what the fan-out allows."""
    hub = np.stack([np.arange(1, 200_001), np.zeros(200_000, dtype=np.int64)])
    sampler = NeighborSampler(hub, 200_001, [10, 10])
    assert sampler.bounds(np.array([0, 1])).tolist() == [111, 1]
    found = sampler.sample(np.array([0]), 0)
    assert len(found.nodes) == 11 and len(found.edges) == 10


# ---------------------------------------------------------------- trained
def test_samples_train_and_give_each_seed_its_row(make_model):
    data = ring(neighbors=[2, 2], joint=False, fold=0)
    model = make_model(**data.model_defaults())
    task = ClassPrediction(model)
    task.setup(data)
    torch.manual_seed(5)
    examples = [data.split("test")[i] for i in range(4)]
    batch = data.collate(examples)
    assert batch.num_graphs == 4 and int((batch.y >= 0).sum()) == 4
    first = batch.cu_seqlens[:-1].long()
    nodes = [e.node for e in examples]
    assert torch.equal(batch.y[first], data.table.y[nodes]) and torch.equal(batch.x[first], data.table.x[nodes])
    task.training_step(batch)["loss"].backward()
    task.evaluation_step(batch)
    assert set(task.metrics()) == {"counts", "rocauc"} and task.baseline(data)["rocauc"] == 0.5
    with pytest.raises(ConfigError, match="monitor=rocauc with 3 classes"):
        ClassPrediction(make_model(d_out=3, level="node"), monitor="rocauc")


def test_a_large_sampled_graph_is_not_encoded(make_model, monkeypatch):
    monkeypatch.setattr("seqgraph_graph_mamba.nodes._ENCODABLE", 20)
    data = ring(neighbors=[2])
    with pytest.raises(ConfigError, match="would take hours"):
        ClassPrediction(make_model(**data.model_defaults(), pe="rwse")).setup(data)
    ClassPrediction(make_model(**data.model_defaults(), pe="none")).setup(data)


def test_a_large_whole_graph_is_encoded_with_a_warning(make_model, monkeypatch, capsys):
    monkeypatch.setattr("seqgraph_graph_mamba.nodes._ENCODABLE", 20)
    data = ring()
    for said in (f"model.pe=rwse of a graph of {len(data.table.x)} nodes may take hours", ""):
        ClassPrediction(make_model(**data.model_defaults(), pe="rwse")).setup(data)
        error = " ".join(capsys.readouterr().err.split())
        assert error.startswith(said) and bool(error) == bool(said)
    assert data.table.pe is not None


def test_ten_masks_from_the_command_line(tmp_path, shared_data):
    """Mean and deviation over folds: a seed each."""
    config = load_config(
        {
            "model": {"name": "graph-mamba", "d_model": 8, "n_layers": 1, "d_state": 4, "pe": "none", "ties": "index"},
            "data": {"name": "heterophilous", "root": str(shared_data / "graph" / "heterophilous"), "which": "cornell"},
            "task": {"name": "node-classification"},
            "train": {"epochs": 1, "accelerator": "cpu"},
            "seed": [0, 1],
        }
    )
    result = train(config, output=tmp_path / "run", quiet=True)
    assert result.metrics[0] != result.metrics[1] and set(result.mean) == {"loss", "accuracy", "f1"}
    assert result.std["accuracy"] >= 0
    for seed in (0, 1):  # each is evaluated on its own split
        assert evaluate(tmp_path / "run" / f"seed-{seed}", accelerator="cpu") == pytest.approx(result.metrics[seed])
