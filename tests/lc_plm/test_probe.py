"""Downstream tasks: features, probes and measures against independent ones; every task on tiny data in its layout."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import random
import zipfile

import numpy as np
import pytest
import torch

from seqgraph.cli.main import main
from seqgraph.errors import ConfigError, DataError
from seqgraph.train import checkpoint
from seqgraph_lc_plm.model import LcPlm
from seqgraph_lc_plm.mutate import parse, score
from seqgraph_lc_plm.probes import links, pairs, sets, tasks
from seqgraph_lc_plm.probes.features import Embeddings, KMers, OneHotWindow, random_twin, split_rows
from seqgraph_lc_plm.probes.linear import fit, fit_best, nearest
from seqgraph_lc_plm.probes.measures import Row, f_max, table

sklearn = pytest.importorskip("sklearn")
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
OF_STATE = {**dict.fromkeys("ALMEQKRHDN", "H"), **dict.fromkeys("VIYFWT", "E")}


# ---------------------------------------------------------------------- probes
@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_a_probe_is_scikit_learns_logistic_regression(kind):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    draw = np.random.default_rng(0)
    x = (draw.normal(size=(300, 6)) * [1, 5, 0.1, 2, 1, 1] + 3).astype(np.float32)
    slopes = draw.normal(size=(6, 3))
    scores = (x - 3) @ slopes + draw.normal(size=(300, 3))
    penalty = 1e-2
    scaled = StandardScaler().fit_transform(x)
    make = lambda: LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=2000)  # noqa: E731
    if kind == "classes":
        y = scores.argmax(1)
        want = make().fit(scaled, y).predict_log_proba(scaled)
        found = fit(x, y, penalty=penalty).logits(x).log_softmax(1).numpy()
    else:
        y = scores > 0
        want = np.stack([make().fit(scaled, y[:, i]).decision_function(scaled) for i in range(3)], 1)
        found = fit(x, y, kind="labels", penalty=penalty).logits(x).numpy()
    assert np.abs(found - want).max() < 2e-2 * max(1, np.abs(want).max() / 10)
    probe = fit(x, y, kind=kind, penalty=penalty)
    assert np.array_equal(probe.predict(x), found.argmax(1) if kind == "classes" else found > 0)
    again = fit(x, y, kind=kind, penalty=penalty)
    assert torch.equal(probe.weight, again.weight) and torch.equal(probe.bias, again.bias)


def test_the_penalty_is_chosen_by_the_validation_rows(monkeypatch):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(40, 30)).astype(np.float32), draw.integers(2, size=40)  # nothing to be learnt
    held = draw.normal(size=(200, 30)).astype(np.float32), draw.integers(2, size=200)
    assert fit_best((x, y), held, penalties=(1e-4, 1e-2, 10.0)).penalty == 10.0
    monkeypatch.setattr("seqgraph_lc_plm.probes.linear._ROWS", {"cpu": 7})
    chunked = fit(x, y, penalty=0.1)
    monkeypatch.undo()
    assert torch.allclose(chunked.weight, fit(x, y, penalty=0.1).weight, atol=1e-3)


def test_nearest_and_f_max():
    from sklearn.neighbors import NearestNeighbors

    draw = np.random.default_rng(0)
    known, asked = draw.normal(size=(50, 8)) + 3, draw.normal(size=(20, 8)) + 3
    mean = known.mean(0)
    want = NearestNeighbors(n_neighbors=1, metric="cosine").fit(known - mean).kneighbors(asked - mean)[1][:, 0]
    assert np.array_equal(nearest(asked, known), want)
    truth = draw.random((30, 12)) < 0.3
    truth[:, 0] = True
    scores = draw.random((30, 12)) * 0.7 + truth * 0.2
    best = 0.0
    for step in range(101):  # protein by protein, as the paper writes it
        precisions, recalls = [], []
        for said, right in zip(scores >= step / 100, truth, strict=True):
            if said.any():
                precisions.append((said & right).sum() / said.sum())
            recalls.append((said & right).sum() / right.sum())
        if precisions:
            p, r = np.mean(precisions), np.mean(recalls)
            best = max(best, 2 * p * r / (p + r) if p + r else 0)
    assert f_max(scores, truth) == pytest.approx(best, abs=1e-12)
    assert f_max(truth.astype(float), truth) == 1.0
    assert "| a | b | c | d | e | 0.5000 | 1,000 |" in table([Row("a", "b", "c", "d", "e", 0.5, 1000)])


# ---------------------------------------------------------------------- features
def test_simple_features():
    rows = OneHotWindow(reach=1).residues(["ACX", "A"])
    assert rows.shape == (4, 63)
    assert [sorted(np.flatnonzero(row).tolist()) for row in rows] == [[21, 43], [0, 22, 62], [1, 41], [21]]
    text = "ACACX"
    shares = KMers(2).means([text, "A"])
    assert shares.shape == (2, 400) and shares[1].sum() == 0
    assert shares[0, 0 * 20 + 1] == pytest.approx(2 / 3) and shares[0, 1 * 20 + 0] == pytest.approx(1 / 3)
    assert KMers(1).means(["AAC"])[0, :2].tolist() == pytest.approx([2 / 3, 1 / 3])
    with pytest.raises(ConfigError, match="one length"):
        OneHotWindow().means(["A", "AC"])


def test_embeddings_are_the_models_and_are_computed_once(tiny, proteins, tmp_path, monkeypatch):
    texts = proteins(30, 5, 17, 1)
    source = Embeddings(tiny, "tiny", cache=tmp_path, max_tokens=40)
    assert np.allclose(source.means(texts), tiny.embed(texts).numpy(), atol=1e-5)
    want = torch.cat(tiny.embed(texts, pooling="residue")).numpy()
    assert np.allclose(source.residues(texts), want, atol=2e-3)
    parts = split_rows(source.residues(texts), texts)
    assert [len(part) for part in parts] == [30, 5, 17, 1]
    sites = source.sites(proteins(9, 9), [2, 7])
    both = tiny.embed(proteins(9, 9), pooling="residue")
    assert np.allclose(sites, torch.stack([rows[[2, 7]].flatten() for rows in both]).numpy(), atol=1e-5)
    assert len(list(tmp_path.glob("*.npy"))) == 3 and not list(tmp_path.glob("*.new"))
    monkeypatch.setattr(Embeddings, "_states", None)  # nothing may be computed again
    again = Embeddings(tiny, "other name", cache=tmp_path)
    assert np.array_equal(again.means(texts), source.means(texts))
    with pytest.raises(TypeError):
        again.means(texts[1:])
    with pytest.raises(TypeError):
        Embeddings(random_twin(tiny), "random", cache=tmp_path).means(texts)


def test_random_twins_have_the_shape_and_other_weights(tiny):
    kinds = [tiny, LcPlm(d_model=16, n_layers=1, vocab_size=33, tie_head=True, share="none", expand=3)]
    kinds.append(LcPlm(d_model=32, n_layers=1, vocab_size=33, mixer="ssd", headdim=16, d_state=8))
    for model in kinds:
        twin = random_twin(model)
        shapes = {name: value.shape for name, value in twin.state_dict().items()}
        assert shapes == {name: value.shape for name, value in model.state_dict().items()}
        assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in model.parameters())
        assert not torch.equal(twin.backbone.embedding.weight, model.backbone.embedding.weight)
        assert torch.equal(twin.backbone.embedding.weight, random_twin(model).backbone.embedding.weight)
    pytest.importorskip("esm")
    from seqgraph_lc_plm.esm2_training import TrainableEsm2

    model = TrainableEsm2(d_model=16, n_layers=2, heads=4)
    assert random_twin(model).embed(["MKT"]).shape == (1, 16)


# ---------------------------------------------------------------------- splits
def test_edges_are_split_as_published():
    draw = np.random.default_rng(0)
    edges = np.array(sorted({tuple(sorted(pair)) for pair in draw.integers(200, size=(600, 2)).tolist()
                             if pair[0] != pair[1]})).T  # fmt: skip
    count = edges.shape[1]
    for how in pairs.SPLITS:
        test = pairs.edge_split(edges, 200, how, seed=1)
        assert 0.2 * count - 1 <= test.sum() < 0.2 * count + 30
        assert np.array_equal(test, pairs.edge_split(edges, 200, how, seed=1))
        assert not np.array_equal(test, pairs.edge_split(edges, 200, how, seed=2))
        seen, asked = set(edges[:, ~test].ravel().tolist()), edges[:, test].T.tolist()
        unseen = sum(a not in seen or b not in seen for a, b in asked) / len(asked)
        # every tested edge of a search touches a protein that training has not seen
        assert unseen == 1 if how != "random" else unseen < 0.5
    bfs, dfs = (pairs.edge_split(edges, 200, how, seed=1) for how in ("bfs", "dfs"))
    assert not np.array_equal(bfs, dfs)
    two = np.array([[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]])  # components smaller than the share
    assert pairs.edge_split(two, 10, "bfs", 0, share=0.6).sum() == 3
    x = draw.normal(size=(200, 4))
    assert np.allclose(pairs.pair_features(x, edges), pairs.pair_features(x, edges[::-1]))


# ---------------------------------------------------------------------- every task on tiny data in its layout
def tsv(rows, pack):
    return pack("".join("\t".join(map(str, row)) + "\n" for row in rows).encode())


def zipped(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(f"splits/{name}", text)


def written(rows):
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


@pytest.fixture
def root(tmp_path, proteins):
    """All data sets, tiny, where the right answer can be read off the letters."""
    root = tmp_path / "data"
    texts = proteins(*[30] * 40, seed=1)
    states = ["".join(OF_STATE.get(letter, "C") for letter in text) for text in texts]
    header = [f"c{i} SET={'test' if i > 33 else 'train'} VALIDATION={i in (30, 31, 32)}" for i in range(40)]
    fasta = lambda names, bodies: "".join(f">{n}\n{b}\n" for n, b in zip(names, bodies, strict=True))  # noqa: E731
    zipped(root / sets.FLIP_ZIP, {
        "sequences.fasta": fasta([f"c{i}" for i in range(40)], texts),
        "sampled.fasta": fasta(header, states),
        "mask.fasta": fasta([f"c{i}" for i in range(40)], ["0" + "1" * 29] * 40),
    })  # fmt: skip
    ones = " ".join(["1.0"] * 30)
    for name, column, kept in (
        (sets.CB513, "sequence", " ".join(["0.0"] * 10 + ["1.0"] * 20)),
        (sets.TS115, "input", ones),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        # the first is a training chain, too
        rows = [
            [
                texts[0] if name == sets.CB513 else texts[39],
                "".join(states[0 if name == sets.CB513 else 39]),
                ones,
                kept,
            ]
        ]
        rows += [[texts[35], states[35], ones, kept]]
        text = written([[column, "dssp3", "disorder", "cb513_mask"], *rows])
        (root / name).write_bytes(gzip.compress(text.encode()))
    # folds are made of their own letters
    draw = random.Random(0)
    lines = []
    for fold in range(4):
        for superfamily in range(1, 4):
            for i in range(5):
                text = "".join(draw.choices(LETTERS[5 * fold : 5 * fold + 5], k=25)).lower()
                lines.append(f">d{fold}{superfamily}{i} a.{fold}.{superfamily}.1 (A:) name\n{text}\n")
    (root / sets.ASTRAL).parent.mkdir(parents=True)
    (root / sets.ASTRAL).write_bytes(gzip.compress("".join(lines).encode()))
    # fitness: how many changes away, and in ProteinGym's form
    base = texts[0][:20]
    rows = [["sequence", "target", "set", "validation"]]
    for i in range(60):
        change = {place: draw.choice(LETTERS) for place in draw.sample((3, 7, 11), k=1 + i % 3)}
        text = "".join(change.get(place, letter) for place, letter in enumerate(base))
        rows.append([text, -sum(a != b for a, b in zip(text, base, strict=True)), "train" if i < 40 else "test", ""])
    zipped(root / sets.GB1, {f"{split}.csv": written(rows) for split in tasks.GB1_SPLITS})
    gym = root / sets.GYM
    gym.mkdir()
    mutants = [f"{base[i]}{i + 1}{'A' if base[i] != 'A' else 'C'}" for i in range(12)]
    gym_rows = [["mutant", "DMS_score", "DMS_score_bin"], *([m, i / 7, 0] for i, m in enumerate(mutants))]
    (gym / "ONE.csv.gz").write_bytes(gzip.compress(written(gym_rows).encode()))
    reference = written([["DMS_id", "target_seq"], ["ONE", base], ["TWO", base]])
    (gym / "DMS_substitutions.csv.gz").write_bytes(gzip.compress(reference.encode()))
    # interactions
    names = [[f"p{i}", text] for i, text in enumerate(texts)]
    acts = [["item_id_a", "item_id_b", "mode", "action", "x", "y", "score"]]
    for a in range(40):
        for b in ((a + 1) % 40, (a + 5) % 40):
            for mode in ("binding", *(("reaction",) if a % 2 else ())):
                acts += [[f"p{a}", f"p{b}", mode, "", "t", "t", 900], [f"p{b}", f"p{a}", mode, "", "t", "f", 900]]
    for path, rows_ in zip(pairs.SHS27K, (acts, names), strict=True):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(tsv(rows_, gzip.compress))
    yeast = [[f"p{a}", f"p{b}", int(a < 20)] for a in range(40) for b in range(a % 20 // 4, 40, 7) if a != b]
    for path, rows_ in zip(pairs.YEAST, (yeast, names), strict=True):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(tsv(rows_, gzip.compress))
    # function: two terms under one, told apart by the letters
    (root / sets.SWISSPROT).mkdir()
    swiss, annotated = [], []
    for i in range(240):
        kind = i % 2
        text = "".join(draw.choices(LETTERS[10 * kind : 10 * kind + 10], k=20))
        swiss.append([f"Q{i}", i // 2 if i < 160 else i, "train" if i < 200 else "valid" if i < 220 else "test", text])
        annotated.append([f"Q{i}", "0000002" if kind else "0000003", "", ""])
    tree = [["GO:0003674", "GO:0000001", 1, "is_a"], ["GO:0000001", "GO:0000002", 1, "is_a"],
            ["GO:0000001", "GO:0000003", 1, "part_of"], ["GO:0008150", "GO:0000002", 1, "regulates"]]  # fmt: skip
    for name, rows_ in (("swissprot_2014_01", swiss), ("go_annotations", annotated), ("go_graph", tree)):
        (root / sets.SWISSPROT / f"{name}.tsv.xz").write_bytes(tsv(rows_, lzma.compress))
    return root


def values(rows):
    return {(row.data, row.features, row.head): row.value for row in rows}


def test_secondary_structure(root, tiny):
    data = sets.secondary_structure(root)
    assert {name: len(chains.sequences) for name, chains in data.items()} == {
        "train": 30, "valid": 3, "NEW364": 6, "CB513": 2, "TS115": 2,
    }  # fmt: skip
    assert len(data["train"].sequences) == 30 and data["CB513"].sequences[0] not in data["train"].sequences
    assert (data["CB513"].states >= 0).sum() == 40 and (data["train"].states[::30] == -1).all()
    found = values(tasks.secondary_structure(root, [Embeddings(tiny, "tiny")]))
    for name in ("CB513", "TS115", "NEW364"):
        assert found[name, "one-hot, window 15", "linear"] > 0.95
        assert found[name, "none", "commonest state"] < 0.7
        assert 0.5 < found[name, "tiny", "linear"] <= 1


def test_remote_homology(root, tiny):
    data = sets.domains(root)
    split = sets.superfamily_split(data)
    held = [set(data.superfamilies[places].tolist()) for places in split.values()]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    assert set(data.folds[split["test"]]) == set(data.folds[split["train"]]) and len(split["test"]) == 20
    found = values(tasks.remote_homology(root, [Embeddings(tiny, "tiny")]))
    for head in ("nearest neighbour", "linear"):
        assert found["superfamilies, seed 0", "1-mers", head] == 1
    assert found["superfamilies, seed 0", "none", "commonest fold"] == 0.25


def test_fitness(root, tiny):
    from scipy.stats import spearmanr

    found = values(tasks.zero_shot(root, [("tiny", tiny)]))
    assay = sets.assays(root)[0]
    scores = score(tiny, assay.sequence, [parse(text) for text in assay.mutants])
    assert found["ONE", "tiny", "masked marginals"] == pytest.approx(spearmanr(scores, assay.scores).statistic)
    assert len(sets.assays(root)) == 1 and ("ONE", "letters of the protein", "log-frequencies") in found
    found = values(tasks.gb1(root, [Embeddings(tiny, "tiny")], splits=("one_vs_rest",)))
    assert found["GB1 one_vs_rest", "none", "fewer mutations"] == pytest.approx(1)
    assert found["GB1 one_vs_rest", "one-hot", "ridge"] > 0.8
    assert {head for _, name, head in found if name == "tiny"} == {"ridge, mean", "ridge, varied sites"}


def test_interactions_with_and_without_neighbours(root, tiny):
    graph, labels = pairs.shs27k(root)
    assert graph.edge_index.shape == (2, 80) and labels.shape == (80, 7)
    assert labels[:, pairs.KINDS.index("binding")].all() and 0.2 < labels[:, 0].mean() < 0.8
    rows = pairs.interactions(root, [Embeddings(tiny, "tiny")], seeds=(0,))
    found = values(rows)
    assert {name for _, name, _ in found} == {"none", "1-mers", "2-mers", "tiny", "tiny, beside neighbours"}
    assert all(0.4 < value <= 1 for value in found.values()) and {row.measure for row in rows} == {"micro-F1"}
    test = pairs.edge_split(graph.edge_index.numpy(), len(graph.names), "bfs", 0)
    left = {tuple(line.split("\t")) for line in pairs.training_edges(root, "bfs", 0).splitlines()}
    asked = {(graph.names[a], graph.names[b]) for a, b in graph.edge_index[:, torch.from_numpy(test)].T.tolist()}
    assert len(left) + len(asked) == 80 and not left & asked
    found = values(pairs.yeast(root, [Embeddings(tiny, "tiny")]))
    assert found["pairs held out", "2-mers", "linear"] > found["pairs held out", "none", "commonest"] - 0.05
    assert ("proteins held out", "tiny", "linear") in found


def test_links_with_and_without_neighbours(root, tiny):
    rows = links.links(root, [Embeddings(tiny, "tiny")], splits=("random", "bfs"), seeds=(0, 1))
    found = values(rows)
    names = {"none", "1-mers", "2-mers", "tiny", "tiny, beside neighbours"}
    assert {name for _, name, _ in found} == names and {row.measure for row in rows} == {"AUROC"}
    assert {row.data for row in rows} == {"SHS27k random, seed 0,1", "SHS27k bfs, seed 0,1"}
    assert all(0 <= value <= 1 for value in found.values()) and {row.size for row in rows} == {32}
    assert links.links(root, [Embeddings(tiny, "tiny")], splits=("random", "bfs"), seeds=(0, 1)) == rows
    few = links.links(root, [], splits=("random",), seeds=(0,), limit=70)
    assert {row.features for row in few} == {"none", "1-mers", "2-mers"}


def test_function(root, tiny):
    found = pairs.function(root, [Embeddings(tiny, "tiny")], least=20)
    assert found[0].data == "Swiss-Prot, 3 terms"  # the two, and the one above both; not the root
    best = values(found)
    assert best["Swiss-Prot, 3 terms", "1-mers", "linear"] > 0.99
    # the term above at recall 1/2 and precision 1, or all three at precision 2/3
    assert best["Swiss-Prot, 3 terms", "none", "frequencies"] == pytest.approx(0.8, abs=0.02)


def test_the_command_writes_the_table(root, tiny, tmp_path, capsys):
    fields = {"d_model": 16, "n_layers": 2, "d_state": 4, "vocab_size": 40}
    checkpoint.save(tmp_path / "model", tiny, name="lc-plm", fields=fields)
    words = ["probe", "remote-homology,yeast", str(tmp_path / "model"), "--data-root", str(root), "--nogpu"]
    assert main([*words, "-o", str(tmp_path / "rows.json"), "--cache", str(tmp_path / "cache")]) == 0
    printed = capsys.readouterr().out
    rows = [Row(**row) for row in json.loads((tmp_path / "rows.json").read_text())]
    assert table(rows) in printed
    assert any(row.features.endswith("random weights") for row in rows)
    assert main([*words, "--cache", str(tmp_path / "cache")]) == 0
    assert capsys.readouterr().out == printed  # the same numbers once more
    assert main(["probe", "homology", "x", "--data-root", str(root)]) == 2
    assert "no task 'homology'" in capsys.readouterr().err
    assert main(["probe", "gb1", str(tmp_path / "model"), "--data-root", str(tmp_path), "--nogpu"]) == 2
    assert "gb1.splits.zip: no such file" in capsys.readouterr().err


# ---------------------------------------------------------------------- the data themselves
def test_the_published_data_have_their_published_sizes(protein_data):
    with pytest.raises(DataError):
        sets.gb1(protein_data / "nowhere", "one_vs_rest")
    data = sets.secondary_structure(protein_data)
    sizes = {name: len(chains.sequences) for name, chains in data.items()}
    assert sizes["CB513"] == 511 and sizes["TS115"] == 115 and sizes["NEW364"] == 364 and sizes["valid"] <= 1080
    assert 9700 <= sizes["train"] <= 9712
    for split, test in (("one_vs_rest", 8705), ("two_vs_rest", 8309), ("three_vs_rest", 5743)):
        assert int(sets.gb1(protein_data, split).test.sum()) == test
    assert {a.name: len(a.mutants) for a in sets.assays(protein_data)} == {
        "BLAT_ECOLX_Stiffler_2015": 4996, "HSP82_YEAST_Flynn_2019": 13194, "IF1_ECOLI_Kelsic_2016": 1367,
    }  # fmt: skip
    domains = sets.domains(protein_data)
    assert len(domains.sequences) == 14323 and len({*domains.superfamilies.tolist()}) == 2024
    graph, labels = pairs.shs27k(protein_data)
    assert graph.edge_index.shape[1] == 7624 and labels.sum() == 17367
