"""The five LRGB sets from PyG's files, raw and processed, and from LRGB's tables."""

from __future__ import annotations

import csv
import gzip
import os
import pickle
import re

import numpy as np
import pytest
import torch

from seqgraph.config import load_config
from seqgraph.errors import ConfigError, DataError
from seqgraph_graph_mamba import lrgb
from seqgraph_graph_mamba.features import smiles_graph
from seqgraph_graph_mamba.graph import standardize
from seqgraph_graph_mamba.lrgb import CocoSp, PascalVocSp, PcqmContact, PeptidesFunc, PeptidesStruct
from seqgraph_graph_mamba.reading import read_csv
from seqgraph_graph_mamba.task import ClassPrediction, GraphRegression, LinkPrediction

SPLITS = ("train", "val", "test")
MOLECULES = ("CCO", "c1ccccc1O", "CC(N)C(=O)O", "[Na+].[Cl-]", "C#N", "O=C=O")
_COCO = [k for k in range(91) if k not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQGRAPH_CACHE", str(tmp_path / "cache"))


def superpixels(generator: torch.Generator, classes: list[int], *, as_list: bool):
    nodes, edges = int(torch.randint(3, 9, (), generator=generator)), 12
    y = torch.tensor(classes)[torch.randint(0, len(classes), (nodes,), generator=generator)]
    return (
        torch.randn(nodes, 14, generator=generator, dtype=torch.float64) * 5 + 100,
        torch.rand(edges, 2, generator=generator) + 3,
        torch.randint(0, nodes, (2, edges), generator=generator),
        y.tolist() if as_list else y,
    )


def contact(smiles: str, generator: torch.Generator):
    graph = smiles_graph(smiles)
    pairs = torch.randint(0, len(graph), (2, 5), generator=generator)
    return graph.x.long(), graph.edge_attr.long(), graph.edge_index, pairs, torch.tensor([1, 0, 1, 0, 0])


def molecule(smiles: str, targets: int):
    graph = smiles_graph(smiles)
    y = torch.arange(targets)[None].float() - len(graph)
    return graph.x.long(), graph.edge_attr.long(), graph.edge_index, y if targets == 11 else (y > -4).float()


def elements(cls, generator: torch.Generator) -> list:
    if cls is PcqmContact:
        return [contact(s, generator) for s in MOLECULES]
    if issubclass(cls, lrgb._Peptides):
        return [molecule(s, len(cls.target_names)) for s in MOLECULES]
    classes = _COCO if cls is CocoSp else list(range(21))
    return [superpixels(generator, classes, as_list=cls is PascalVocSp) for _ in range(6)]


def write_raw(cls, root) -> dict[str, list]:
    raw = root / cls.name / "raw"
    raw.mkdir(parents=True)
    held = {}
    for seed, name in enumerate(SPLITS):
        held[name] = elements(cls, torch.Generator().manual_seed(seed))
        if cls.suffix == "pickle":
            (raw / f"{name}.pickle").write_bytes(pickle.dumps(held[name]))
        else:
            torch.save(held[name], raw / f"{name}.pt")
    return held


ALL = [PeptidesFunc, PeptidesStruct, PascalVocSp, CocoSp, PcqmContact]


@pytest.mark.parametrize("cls", ALL)
def test_raw_files_are_read_and_kept(cls, tmp_path, monkeypatch):
    held = write_raw(cls, tmp_path)
    data = cls(str(tmp_path))
    assert [len(data.split(n)) for n in ("train", "valid", "test")] == [6, 6, 6]
    for name, theirs in (("train", "train"), ("valid", "val"), ("test", "test")):
        for ours, element in zip(data.split(name), held[theirs], strict=True):
            raw = standardize_undone(data, ours)
            torch.testing.assert_close(raw.x.float(), element[0].float(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(raw.edge_attr.float(), element[1].float(), rtol=1e-4, atol=1e-4)
            assert torch.equal(ours.edge_index.long(), element[2])
            if cls is PcqmContact:
                assert torch.equal(ours.pairs.long(), element[3]) and torch.equal(ours.pair_y.long(), element[4])
            elif cls is CocoSp:
                assert [_COCO[k] for k in ours.y.tolist()] == element[3].tolist()
            elif cls is PascalVocSp:
                assert ours.y.tolist() == element[3]
            else:
                assert torch.equal(ours.y, element[3][0])
    for name in ("_read_split", "_finish"):
        monkeypatch.setattr(cls, name, lambda *args: pytest.fail("read again"))
    again = cls(str(tmp_path / cls.name))
    assert again.fingerprint() == data.fingerprint() and torch.equal(again.table.x, data.table.x)
    assert data.level == ("graph" if issubclass(cls, lrgb._Peptides) else "node")


def standardize_undone(data, graph):
    """The graph as it was in the file."""
    f = data.features
    if not f:
        return graph
    x = graph.x * torch.tensor(f["x_std"]) + torch.tensor(f["x_mean"])
    edge_attr = graph.edge_attr * torch.tensor(f["edge_std"]) + torch.tensor(f["edge_mean"])
    return type("Raw", (), {"x": x, "edge_attr": edge_attr})


@pytest.mark.parametrize("cls", ALL)
def test_pygs_processed_files_are_the_same(cls, tmp_path):
    """Process the raw files with PyG, which is allowed to run pickles that we have written."""
    from torch_geometric.datasets import LRGBDataset

    write_raw(cls, tmp_path)
    LRGBDataset(str(tmp_path), cls.name)
    ours = cls(str(tmp_path))
    (tmp_path / cls.name / "raw").rename(tmp_path / "elsewhere")
    theirs = cls(str(tmp_path))
    for name, value in ours.table.to_arrays().items():
        np.testing.assert_allclose(theirs.table.to_arrays()[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("cls", [PascalVocSp, CocoSp])
def test_superpixels_are_standardised_by_the_training_split(cls, tmp_path):
    write_raw(cls, tmp_path)
    data = cls(str(tmp_path))
    x = torch.cat([g.x for g in data.split("train")])
    edge = torch.cat([g.edge_attr for g in data.split("train")])
    for features in (x, edge):
        torch.testing.assert_close(features.mean(0), torch.zeros(features.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(features.std(0, unbiased=False), torch.ones(features.shape[1]), atol=1e-4, rtol=0)
    assert abs(float(torch.cat([g.x for g in data.split("test")]).mean())) > 1e-6
    raw = pickle.loads((tmp_path / cls.name / "raw" / "test.pickle").read_bytes())[0]
    graph = lrgb.Graph(raw[0].float(), raw[2], raw[1].float())
    torch.testing.assert_close(standardize(graph, data.assets()["features"]).x, data.split("test")[0].x)


class _Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("cls", [PascalVocSp, PcqmContact])
def test_a_hostile_file_is_refused_and_named(cls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_raw(cls, tmp_path)
    path = tmp_path / cls.name / "raw" / f"val.{cls.suffix}"
    for held in (
        _Hostile(),
        [_Hostile()],
        [(torch.zeros(1, 14), torch.zeros(0, 2), torch.zeros(2, 0).long(), _Hostile())],
    ):
        if cls.suffix == "pickle":
            path.write_bytes(pickle.dumps(held))
        else:
            torch.save(held, path)
        with pytest.raises(DataError, match=rf"val\.{cls.suffix}") as caught:
            cls(str(tmp_path))
        assert cls.name in caught.value.hint
        assert re.search(r"it asks for (posix|nt)\.\w+$", caught.value.message)  # and no advice to run it all the same
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html></html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", b""]
)
def test_what_torch_did_not_write_is_not_called_hostile(content, tmp_path):
    write_raw(PcqmContact, tmp_path)
    path = tmp_path / PcqmContact.name / "raw" / f"val.{PcqmContact.suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"val\.{PcqmContact.suffix}") as caught:
        PcqmContact(str(tmp_path))
    assert re.search(r"torch\.save did not write it \(Unsupported operand \d+\)$|is empty$", caught.value.message)


def test_what_is_wrong_in_a_file_is_named(tmp_path):
    raw = tmp_path / "pascalvoc-sp" / "raw"
    write_raw(PascalVocSp, tmp_path)
    good = elements(PascalVocSp, torch.Generator().manual_seed(0))
    x, edge_attr, edge_index, y = good[1]
    for element, says in (
        ((x, edge_attr, edge_index + 99, y), r"train\.pickle, graph 1: an edge names"),
        ((x * float("nan"), edge_attr, edge_index, y), r"train\.pickle, graph 1: x has NaN"),
        ((x, edge_attr, edge_index, [21] * len(y)), r"a node's class is 21"),
        ((x, edge_attr), r"train\.pickle, graph 1 is not what PyG keeps"),
        (7, r"train\.pickle, graph 1 is not what PyG keeps"),
    ):
        (raw / "train.pickle").write_bytes(pickle.dumps([good[0], element, *good[2:]]))
        with pytest.raises(DataError, match=says):
            PascalVocSp(str(tmp_path))
    (raw / "train.pickle").write_bytes(pickle.dumps(good)[:300])
    with pytest.raises(DataError, match=r"train\.pickle is not a pickle that can be read"):
        PascalVocSp(str(tmp_path))
    (raw / "train.pickle").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.pickle is empty"):
        PascalVocSp(str(tmp_path))


def test_a_pair_of_no_nodes_is_named(tmp_path):
    write_raw(PcqmContact, tmp_path)
    path = tmp_path / "pcqm-contact" / "raw" / "test.pt"
    held = elements(PcqmContact, torch.Generator().manual_seed(0))
    held[2] = (*held[2][:3], held[2][3] + 50, held[2][4])
    torch.save(held, path)
    with pytest.raises(DataError, match=r"test\.pt, graph 2: a pair names"):
        PcqmContact(str(tmp_path))


@pytest.mark.parametrize("cls", ALL)
def test_missing_files_tell_what_to_do(cls, tmp_path, monkeypatch):
    for root in (None, str(tmp_path)):
        with pytest.raises(DataError) as caught:
            cls(root)
        for word in (f"{cls.name}/raw/train.{cls.suffix}", "zenodo.org/records/6975830", "data.download=true"):
            assert word in caught.value.hint
    from torch_geometric.datasets import LRGBDataset

    def no_network(self):
        raise OSError("no route to host")

    monkeypatch.setattr(LRGBDataset, "download", no_network)
    with pytest.raises(DataError, match=f"{cls.name} could not be downloaded: no route to host"):
        cls(str(tmp_path), download=True)


def test_pyg_downloads_what_is_missing(tmp_path, monkeypatch):
    from torch_geometric.datasets import LRGBDataset

    def fetch(self):
        os.rmdir(os.path.join(self.root, self.name))
        write_raw(PascalVocSp, tmp_path)

    monkeypatch.setattr(LRGBDataset, "download", fetch)
    assert len(PascalVocSp(str(tmp_path), download=True).table) == 18


# ---------------------------------------------------------------- Peptides-struct from its table
def write_struct(tmp_path, rows: int = 12) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(rows, 11)) * 1000 + 5000
    with gzip.open(tmp_path / PeptidesStruct.CSV, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "smiles", *lrgb.PEPTIDES_STRUCT_TARGETS])
        for i, row in enumerate(values):
            writer.writerow([i, MOLECULES[i % 3], *map(repr, row.tolist())])
    order = np.random.default_rng(1).permutation(rows)
    splits = {"train": order[:8], "val": order[8:10], "test": order[10:]}
    (tmp_path / PeptidesStruct.SPLITS).write_bytes(pickle.dumps(splits))
    return values


def test_struct_is_measured_in_z_scores_and_physical_units(tmp_path, make_model):
    values = write_struct(tmp_path)
    data = PeptidesStruct(str(tmp_path))
    scores = (values - values.mean(0)) / values.std(0, ddof=1)  # of the whole file, as LRGB does with pandas
    np.testing.assert_allclose(data.table.y, scores, atol=1e-5)
    again = PeptidesStruct(str(tmp_path))  # from the cache
    np.testing.assert_allclose(again.scale[0], values.mean(0))
    model = make_model(d_out=11)
    task = GraphRegression(model, monitor="mae")
    task.setup(data)
    split = data.split("test")
    batch = data.collate(list(split))
    output = model(batch).detach().double().numpy()
    task.evaluation_step(batch)
    found = {name: float(metric.compute()) for name, metric in task.metrics().items()}
    assert found["mae"] == pytest.approx(np.abs(output - scores[data.splits["test"]]).mean(), rel=1e-4)
    physical = output * values.std(0, ddof=1) + values.mean(0)
    expected = np.abs(physical - values[data.splits["test"]]).mean()
    assert found["mae_physical"] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(model.predict([row["smiles"] for row in _rows(tmp_path, data)]), physical, rtol=1e-4)
    assert set(task.baseline(data)) == {"rmse", "mae", "mae_physical"}
    task.setup(data)  # idempotent
    assert task.mean.abs().max() < 1e-6 and (task.deviation - 1).abs().max() < 1e-6


def _rows(tmp_path, data):
    _, rows = read_csv(tmp_path / PeptidesStruct.CSV)
    return [rows[i] for i in data.splits["test"]]


# ---------------------------------------------------------------- the tasks
def test_nodes_of_superpixels_are_classified(tmp_path, make_model):
    write_raw(PascalVocSp, tmp_path)
    data = PascalVocSp(str(tmp_path))
    model = make_model(**data.model_defaults())
    task = ClassPrediction(model, loss="weighted", monitor="f1")
    task.setup(data)
    batch = data.collate([data.split("train")[i] for i in range(3)])
    found = task.training_step(batch)
    found["loss"].backward()
    logits = model.train(False)(batch).detach()
    assert logits.shape == (batch.num_nodes, 21) and int(found["size"]) == batch.num_nodes
    # LRGB's weighted cross-entropy: a class weighs (V - n) / V, the mean is over weights
    counts = torch.bincount(batch.y, minlength=21)
    weight = (batch.num_nodes - counts) / batch.num_nodes
    expected = torch.nn.functional.nll_loss(logits.log_softmax(1), batch.y, weight=weight)
    assert float(task.evaluation_step(batch)["loss"].detach()) == pytest.approx(float(expected), rel=1e-5)
    assert set(task.metrics()["counts"].compute()) == {"accuracy", "f1"}
    assert set(task.baseline(data)) == {"accuracy", "f1"}
    with pytest.raises(ConfigError, match=r"task\.name=graph-classes or node-classification"):
        GraphRegression(make_model(**data.model_defaults())).setup(data)


def test_contacts_are_linked(tmp_path, make_model):
    write_raw(PcqmContact, tmp_path)
    data = PcqmContact(str(tmp_path))
    model = make_model(**data.model_defaults(), pe="none")
    task = LinkPrediction(model)
    task.setup(data)
    batch = data.collate([data.split("train")[i] for i in range(3)])
    task.training_step(batch)["loss"].backward()
    h = model(batch).detach()
    scores = (h[batch.pairs[0]] * h[batch.pairs[1]]).sum(1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, batch.pair_y)
    assert float(task.evaluation_step(batch)["loss"].detach()) == pytest.approx(float(expected), rel=1e-4)
    names = {"mrr", "mrr_filtered", "mrr_filtered_noself"}
    assert set(task.metrics()["ranking"].compute()) == names == set(task.baseline(data))
    with pytest.raises(ConfigError, match="link-prediction"):
        ClassPrediction(make_model(**data.model_defaults())).setup(data)


@pytest.mark.parametrize("cls", ALL)
def test_configurations_validate(cls):
    tasks = {"pcqm-contact": "link-prediction", "pascalvoc-sp": "node-classification", "coco-sp": "node-classification"}
    data = {"name": cls.name, "root": "x", "download": True, "device": "cpu"}
    task = {"name": tasks.get(cls.name, "graph-regression")}
    load_config({"model": {"name": "graph-mamba"}, "data": data, "task": task})
