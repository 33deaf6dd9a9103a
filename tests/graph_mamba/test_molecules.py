"""OGB's and MoleculeNet's molecules, ZINC, TUDataset, files and lists of graphs, and the baseline without graphs."""

from __future__ import annotations

import gzip
import json
import zipfile

import numpy as np
import pytest
import torch

from seqgraph.cli.main import main
from seqgraph.errors import ConfigError, DataError
from seqgraph_graph_mamba import cache, molecules
from seqgraph_graph_mamba.benchmarks import PygFile, TUDataset, Zinc12k
from seqgraph_graph_mamba.codes import PYG_ATOM_SIZES
from seqgraph_graph_mamba.data import GraphDataset
from seqgraph_graph_mamba.features import smiles_graph
from seqgraph_graph_mamba.fingerprints import count_fingerprints, fingerprint_baseline
from seqgraph_graph_mamba.molecules import MoleculeNet, OgbMolecules, molecule_graphs
from seqgraph_graph_mamba.reading import read_csv
from seqgraph_graph_mamba.table import GraphTable
from seqgraph_graph_mamba.task import ClassPrediction, GraphClassification


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQGRAPH_CACHE", str(tmp_path / "cache"))


# ---------------------------------------------------------------- OGB
@pytest.mark.parametrize(
    ("which", "kind", "sizes"),
    [
        ("bace", "classification", [1210, 151, 152]),
        ("bbbp", "classification", [1631, 204, 204]),
        ("freesolv", "regression", [513, 64, 65]),
    ],
)
def test_ogbs_files_are_its_smiles(shared_data, which, kind, sizes):
    root = shared_data / "graph" / "ogbg-small"
    data = OgbMolecules(str(root), which=which)
    assert [len(data.split(n)) for n in ("train", "valid", "test")] == sizes and data.kind == kind
    path = root / f"ogbg_mol{which}" / "mapping" / "mol.csv.gz"
    _, rows = read_csv(path)
    graphs, _, _ = molecule_graphs(rows, "smiles", data.targets, path)
    for name, value in GraphTable.from_graphs(graphs).to_arrays().items():
        np.testing.assert_allclose(data.table.to_arrays()[name], value, rtol=1e-6, err_msg=name)
    assert data.smiles == [row["smiles"] for row in rows]


@pytest.mark.parametrize("raw", [True, False])
def test_a_large_ogb_set_is_read_once(shared_data, tmp_path, monkeypatch, raw):
    import shutil

    folder = tmp_path / "ogbg_molfreesolv"
    shutil.copytree(shared_data / "graph" / "ogbg-small" / folder.name, folder, copy_function=shutil.copyfile)
    if not raw:
        shutil.rmtree(folder / "raw")
    plain = OgbMolecules(str(tmp_path), which="freesolv")
    assert not list(cache.cache_folder().rglob("*.npz"))  # small sets are not kept
    monkeypatch.setattr(molecules, "_CACHE_ABOVE", 0)
    first = OgbMolecules(str(tmp_path), which="freesolv")
    for name in ("_read_raw", "molecule_graphs"):
        monkeypatch.setattr(molecules, name, lambda *_: pytest.fail("read again"))
    second = OgbMolecules(str(tmp_path), which="freesolv")
    for name, value in plain.table.to_arrays().items():
        assert np.array_equal(first.table.to_arrays()[name], value)
        assert np.array_equal(second.table.to_arrays()[name], value)


def test_a_short_ogb_file_is_named(shared_data, tmp_path):
    import shutil

    folder = tmp_path / "ogbg_molfreesolv"
    shutil.copytree(shared_data / "graph" / "ogbg-small" / "ogbg_molfreesolv", folder)
    path = folder / "raw" / "node-feat.csv.gz"
    path.chmod(0o644)
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    for content, says in (
        (b"".join(lines[:-1]), r"node-feat\.csv\.gz has 5599 rows instead of 5600"),
        (b"1,2\n" + b"".join(lines), r"node-feat\.csv\.gz"),
        (b"a,b,c,d,e,f,g,h,i\n", r"node-feat\.csv\.gz: .*'a'"),
    ):
        path.parent.chmod(0o755)
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match=says):
            OgbMolecules(str(folder), which="freesolv")
    with pytest.raises(DataError, match=r"ogbg-molhiv needs data\.root"):
        OgbMolecules(which="hiv")


# ---------------------------------------------------------------- MoleculeNet
def test_moleculenet_leaves_unreadable_rows_out(shared_data, capsys, monkeypatch):
    root = shared_data / "graph" / "moleculenet"
    data = MoleculeNet(str(root), which="bbbp")
    assert len(data.table) == 2039 and data.targets == ["p_np"] and data.kind == "classification"
    assert "left out 11 of 2050 rows" in capsys.readouterr().err
    monkeypatch.setattr(molecules, "molecule_graphs", lambda *a, **k: pytest.fail("parsed again"))
    monkeypatch.setattr(molecules, "_make_splits", lambda *a, **k: pytest.fail("split again"))
    again = MoleculeNet(str(root / "BBBP.csv.gz"), which="bbbp")
    assert "left out 11 of 2050 rows" in capsys.readouterr().err
    assert again.fingerprint() == data.fingerprint() and again.smiles == data.smiles
    assert all(np.array_equal(again.splits[n], data.splits[n]) for n in data.splits)
    monkeypatch.undo()
    sider = MoleculeNet(str(root), which="sider")
    assert len(sider.targets) == 27 and len(sider.table) == 1427
    with pytest.raises(DataError, match=r"tox21\.csv does not exist"):
        MoleculeNet(str(root.parent / "zinc12k"), which="tox21")


# ---------------------------------------------------------------- ZINC-12k
def test_zinc_is_the_benchmark(shared_data):
    data = Zinc12k(str(shared_data / "graph" / "zinc12k"))
    assert [len(data.split(n)) for n in ("train", "valid", "test")] == [10_000, 1_000, 1_000]
    assert data.table.num_nodes.mean() == pytest.approx(23.155, abs=0.01)
    assert data.model_defaults() == {
        "d_out": 1,
        "node_features": "codes",
        "node_sizes": [28],
        "edge_features": "codes",
        "edge_sizes": [4],
    }


@pytest.mark.slow
def test_zincs_pickles_are_its_arrays(shared_data, tmp_path):
    source = shared_data / "graph" / "zinc12k"
    with zipfile.ZipFile(source / "ZINC_bench_gnn_goli-drive-download.zip") as archive:
        for name in archive.namelist():
            if "data_from_benchmark" in name and name.rsplit("/")[-1].startswith(("train", "val", "test")):
                (tmp_path / name.rsplit("/")[-1]).write_bytes(archive.read(name))
    ours, theirs = Zinc12k(str(source)), Zinc12k(str(tmp_path))
    for name, value in ours.table.to_arrays().items():
        assert np.array_equal(theirs.table.to_arrays()[name], value), name


def test_a_wrong_zinc_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has no train\.pickle"):
        Zinc12k(str(tmp_path))
    np.savez(tmp_path / "zinc12k.npz", atom_type=np.zeros(3))
    with pytest.raises(DataError, match=r"zinc12k\.npz is not an archive"):
        Zinc12k(str(tmp_path))


# ---------------------------------------------------------------- TUDataset
def write_tu(folder, *, graphs: int = 20, attributes: bool = True) -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 6, graphs)
    first = np.concatenate([[0], sizes.cumsum()])
    edges = np.concatenate([generator.integers(0, n, (4, 2)) + a for n, a in zip(sizes, first, strict=False)])
    edges = edges[generator.permutation(len(edges))] + 1
    tables = {
        "A": edges,
        "graph_indicator": np.repeat(np.arange(graphs), sizes)[:, None] + 1,
        "graph_labels": np.where(np.arange(graphs) % 2, -1, 1)[:, None],
        "node_labels": generator.integers(3, 6, (sizes.sum(), 1)),
        "edge_labels": generator.integers(0, 2, (len(edges), 1)),
    }
    if attributes:
        tables["node_attributes"] = generator.normal(size=(sizes.sum(), 2)).round(3)
    folder.mkdir(parents=True)
    for name, table in tables.items():
        text = "".join(", ".join(map(str, row)) + "\n" for row in table.tolist())
        (folder / f"TOY_{name}.txt").write_text(text)


def test_tudataset_is_pygs(tmp_path):
    from torch_geometric.io import read_tu_data

    write_tu(tmp_path / "TOY")
    data = TUDataset(str(tmp_path), which="TOY")
    theirs, slices, _ = read_tu_data(str(tmp_path / "TOY"), "TOY")
    assert torch.equal(data.table.x[:, 2:], theirs.x[:, 2:]) and torch.equal(data.table.y[:, 0].long(), theirs.y)
    mean, std = (torch.tensor(data.features[name]) for name in ("x_mean", "x_std"))
    torch.testing.assert_close(data.table.x * std + mean, theirs.x)
    assert torch.equal(data.table.node_ptr, slices["x"])
    for i in (0, 7, 19):
        ours = {tuple(e) for e in data.table[i].edge_index.T.tolist() if e[0] != e[1]}
        low, high = slices["edge_index"][i], slices["edge_index"][i + 1]
        assert ours == {tuple(e) for e in theirs.edge_index[:, low:high].T.tolist()}
    assert data.targets == ["class -1", "class 1"] and data.kind == "classes"
    labels = data.table.y[:, 0].numpy()
    folds = [TUDataset(str(tmp_path), which="TOY", fold=k) for k in range(10)]
    assert sorted(np.concatenate([f.splits["test"] for f in folds]).tolist()) == list(range(20))
    assert all(sorted(labels[f.splits["test"]]) == [0, 1] for f in folds)


def test_attributes_of_tudataset_are_standardised_and_labels_are_not(tmp_path):
    write_tu(tmp_path / "TOY")
    data = TUDataset(str(tmp_path), which="TOY", fold=3)
    nodes, _ = data.training_rows()
    x = data.table.x[nodes]
    torch.testing.assert_close(x[:, :2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, :2].std(0, correction=0), torch.ones(2))
    assert (data.table.x[:, 2:].sum(1) == 1).all() and set(data.table.edge_attr.unique().tolist()) == {0.0, 1.0}
    for name, kept in (("x", 2), ("edge", 0)):
        assert not any(data.features[f"{name}_mean"][kept:]) and set(data.features[f"{name}_std"][kept:]) == {1.0}


def test_classes_of_graphs_are_learnt(tmp_path, make_model):
    write_tu(tmp_path / "TOY", attributes=False)
    data = TUDataset(str(tmp_path / "TOY"), which="TOY")
    model = make_model(**data.model_defaults())
    task = ClassPrediction(model, monitor="rocauc")
    task.setup(data)
    batch = data.collate([data.split("train")[i] for i in range(6)])
    task.training_step(batch)["loss"].backward()
    found = task.evaluation_step(batch)
    expected = torch.nn.functional.cross_entropy(model(batch), batch.y[:, 0].long())
    assert float(found["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert task.baseline(data)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("A", "1, 2\n1, x\n", r"TOY_A\.txt: .*' x' .* row 1"),
        ("A", "1, 99999\n", r"TOY_A\.txt: an edge names node 99999"),
        ("A", "1, 60\n", r"TOY_A\.txt, row 1: the edge joins two graphs"),
        ("graph_indicator", "2\n1\n", r"not sorted by graph"),
        ("graph_labels", "1\n", r"TOY_graph_labels\.txt has 1 rows instead of 20"),
        ("node_labels", "1\n2\n", r"TOY_node_labels\.txt has 2 rows instead of"),
    ],
)
def test_a_wrong_tu_file_is_named(tmp_path, name, text, says):
    write_tu(tmp_path / "TOY")
    (tmp_path / "TOY" / f"TOY_{name}.txt").write_text(text)
    with pytest.raises(DataError, match=says):
        TUDataset(str(tmp_path), which="TOY")


# ---------------------------------------------------------------- lists and files of graphs
def pyg_list(count: int = 10, **more):
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(0)
    graphs = []
    for i in range(count):
        edge_index = torch.randint(0, i + 2, (2, 2 * i + 1), generator=generator)
        graphs.append(
            Data(
                x=torch.randn(i + 2, 3, generator=generator),
                edge_index=edge_index,
                **{"y": torch.tensor([float(i)]), **more},
            )
        )
    return graphs


def test_any_list_of_pyg_graphs(tmp_path):
    graphs = pyg_list()
    data = GraphDataset.from_list(graphs, targets=["size"], standardize=False)
    assert data.kind == "regression" and data.model_defaults()["d_node"] == 3
    for ours, theirs in zip((data.table[i] for i in range(10)), graphs, strict=True):
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.edge_index.long(), theirs.edge_index)
    torch.save(graphs, tmp_path / "a.pt")
    again = PygFile(str(tmp_path / "a.pt"), standardize=False)
    assert torch.equal(again.table.x, data.table.x) and again.splits.keys() == data.splits.keys()
    scaled = PygFile(str(tmp_path / "a.pt"))
    train = torch.cat([g.x for g in scaled.split("train")])
    torch.testing.assert_close(train.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    labels = GraphDataset.from_list(pyg_list(y=torch.tensor([[0.0, 1.0]])))
    assert labels.kind == "classification" and labels.targets == ["target 0", "target 1"]
    nodes = pyg_list()
    for graph in nodes:
        graph.y = torch.arange(graph.num_nodes) % 2
    assert GraphDataset.from_list(nodes, level="node").model_defaults()["level"] == "node"
    graphs[3].edge_index[0, 0] = 99
    for make in (
        lambda: GraphDataset.from_list(graphs),
        lambda: (torch.save(graphs, tmp_path / "a.pt"), PygFile(str(tmp_path / "a.pt"))),
    ):
        with pytest.raises(DataError, match="graph 3: an edge names"):
            make()


def test_any_networkx_graphs():
    networkx = pytest.importorskip("networkx")
    graphs = []
    for i in range(6):
        graph = networkx.path_graph(i + 3)
        for node in graph.nodes:
            graph.nodes[node]["x"] = [float(node), 1.0]
            if node:
                graph.nodes[node]["part"] = node % 2
        graph.graph["energy"] = [float(i), 2.0 * i]
        graphs.append(graph)
    splits = {"train": [0, 1, 2, 3], "valid": [4], "test": [5]}
    data = GraphDataset.from_list(graphs, target="energy", splits=splits)
    assert data.table.y.tolist() == [[i, 2.0 * i] for i in range(6)] and len(data.split("train")) == 4
    nodes = GraphDataset.from_list(graphs, target="part", level="node", splits=splits)
    assert nodes.table[0].y.tolist() == [-1, 1, 0] and nodes.kind == "classes"
    del graphs[2].graph["energy"]
    with pytest.raises(DataError, match="graph 2 has no 'energy'"):
        GraphDataset.from_list(graphs, target="energy", splits=splits)


def test_molecules_of_pyg_train_with_their_own_codes_and_no_others(make_model):
    from torch_geometric.utils import from_smiles

    texts = ["CCO", "c1ccccc1", "CC(=O)O", "CCN", "CC#N", "OCC(N)=O", "C1CC1", "CCCl", "COC", "CC=O"]
    theirs = []
    for i, text in enumerate(texts):
        theirs.append(from_smiles(text))
        theirs[-1].y = torch.tensor([float(i % 2)])
    pyg = GraphDataset.from_list(theirs)
    ours = GraphDataset.from_list([smiles_graph(t, y=torch.tensor([float(i % 2)])) for i, t in enumerate(texts)])
    assert (pyg.codes, ours.codes) == ("pyg", "ogb")
    assert tuple(pyg.model_defaults()["node_sizes"]) == PYG_ATOM_SIZES and ours.model_defaults() == {"d_out": 1}
    own, atom = make_model(**pyg.model_defaults()), make_model(d_out=1)
    own.assets, atom.assets = pyg.assets(), ours.assets()
    GraphClassification(own).setup(pyg)
    GraphClassification(atom).setup(ours)
    for model, data, says in (
        (atom, pyg, "codes of PyG's from_smiles, the model reads OGB's"),
        (own, ours, "in OGB's codes, the model"),
    ):
        with pytest.raises(ConfigError, match=says):
            GraphClassification(model).setup(data)


@pytest.mark.parametrize(
    ("held", "says"), [({"a": 1}, "no list of PyG's Data"), ([], "no list"), (torch.zeros(2), "no list")]
)
def test_another_file_is_refused(tmp_path, held, says):
    torch.save(held, tmp_path / "a.pt")
    with pytest.raises(DataError, match=says):
        PygFile(str(tmp_path / "a.pt"))


# ---------------------------------------------------------------- the baseline without graphs
def test_fingerprints_count_substructures():
    counts = count_fingerprints(["CCCCCC", "CCCCCCC", "c1ccccc1"], radius=1, size=256)
    assert counts.shape == (3, 256) and counts[1].sum() == counts[0].sum() + 2  # one atom, one neighbourhood more
    assert counts[1].max() > counts[0].max() > 1
    with pytest.raises(DataError, match="molecule 1"):
        count_fingerprints(["C", "C1CC"])


@pytest.mark.parametrize("learner", ["sklearn", "lightgbm"])
def test_the_baseline_beats_the_trivial_predictor(learner):
    pytest.importorskip("sklearn" if learner == "sklearn" else learner)
    data = OgbMolecules()
    found = fingerprint_baseline(data, learner=learner, trees=15, size=256)
    deviation = float(data.split("test").y.std())
    assert found["test"]["rmse"] < 0.75 * deviation and found["learner"] == learner
    assert set(found["valid"]) == {"rmse", "mae"}
    assert "valid" not in fingerprint_baseline(data, learner=learner, trees=2, size=64, with_valid=True)


def test_the_baseline_of_labels_and_its_file(tmp_path, capsys):
    pytest.importorskip("sklearn")
    rows = "".join(
        f"{'C' * (i % 9 + 1)}{'O' if i % 3 else 'N'},{int(i % 3 > 0)},{'' if i % 5 else 1}\n" for i in range(60)
    )
    (tmp_path / "a.csv").write_text("smiles,alcohol,rare\n" + rows)
    words = ["baseline", "ogbg-molesol", "data.name=smiles-csv", f"data.root={tmp_path / 'a.csv'}", "data.split=random"]
    out = tmp_path / "out.json"
    assert main([*words, "--learner", "sklearn", "--trees", "20", "--size", "64", "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["test"]["rocauc"] == 1.0 and found["trees"] == 20 and "rocauc 1.0000" in capsys.readouterr().out


def test_the_baseline_needs_molecules(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no SMILES"):
        fingerprint_baseline(GraphDataset.from_list(pyg_list()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="scikit-learn is not installed"):
        fingerprint_baseline(OgbMolecules(), learner="sklearn")


def test_the_graph_that_does_not_fit_is_named_with_its_file(tmp_path):
    from torch_geometric.data import Data

    graphs = [
        Data(x=torch.zeros(2, columns), edge_index=torch.tensor([[0], [1]]), y=torch.ones(1, 1)) for columns in (3, 5)
    ]
    torch.save(graphs, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt, graph 1: x has 5 columns"):
        PygFile(str(tmp_path / "a.pt"))
