"""``seqgraph map``: where the points lie, what colours them, and that the picture is there."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from seqgraph.cli.main import main
from seqgraph.errors import ConfigError, DataError, PluginError
from seqgraph_lc_plm import maps

pytest.importorskip("matplotlib")


@pytest.fixture
def embeddings(tmp_path):
    """Three well separated clouds of 20 in 8 dimensions, in esm-extract's files."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "embeddings"
    folder.mkdir()
    for i in range(60):
        value = torch.randn(8, generator=generator) + 30 * torch.eye(8)[i % 3]
        label = f"sp|P{i:05d}|X kind-{i % 3}"
        torch.save({"label": label, "mean_representations": {2: value}}, folder / f"{i:02d}.pt")
    return folder


def _points(path):
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    return np.array([[float(row["x"]), float(row["y"])] for row in rows]), rows


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
def test_clouds_stay_apart(embeddings, tmp_path, method):
    if method != "pca":
        pytest.importorskip({"tsne": "sklearn", "umap": "umap"}[method])
    words = ["map", str(embeddings), "--method", method, "--header-word", "2", "--csv", str(tmp_path / "m.csv")]
    assert main([*words, "-o", str(tmp_path / "m.png")]) == 0
    points, rows = _points(tmp_path / "m.csv")
    kinds = np.array([int(row["value"][-1]) for row in rows])
    centres = np.stack([points[kinds == k].mean(0) for k in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
    assert (nearest == kinds).all()
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_pca_is_that_of_the_covariance():
    values = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]
    places, name = maps.project(values, "pca")
    assert name == "PCA" and places.shape == (50, 2)
    expected = np.sort(np.linalg.eigvalsh(np.cov(values.T)))[::-1][:2]
    np.testing.assert_allclose(places.var(0, ddof=1), expected)
    flipped, _ = maps.project(-values + 7, "pca")
    np.testing.assert_allclose(np.abs(flipped), np.abs(places))


def test_few_proteins_still_make_a_map(tmp_path):
    for count in (2, 5, 9):
        places, name = maps.project(np.random.default_rng(0).normal(size=(count, 4)))
        assert places.shape == (count, 2) and name == "PCA"
    with pytest.raises(DataError, match="at least 2"):
        maps.project(np.zeros((1, 4)))
    with pytest.raises(DataError, match="not finite"):
        maps.project(np.full((3, 4), np.nan))


def test_a_table_by_label_first_word_or_accession(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("name\tfamily\na b\twhole\na\tfirst\nP12345\taccession\nd\t\n")
    labels = ["a b", "a c", "sp|P12345|NAME_HUMAN x", "none", "d"]
    assert maps.read_column(table, "family", labels) == ["whole", "first", "accession", None, None]
    with pytest.raises(DataError, match=r"no column 'kind'.*name, family"):
        maps.read_column(table, "kind", labels)
    with pytest.raises(DataError, match=r"names none of the 1 proteins, such as 'z'"):
        maps.read_column(table, "family", ["z"])
    with pytest.raises(DataError, match="cannot be read"):
        maps.read_column(tmp_path / "none.csv", "family", labels)


def test_command_colours_by_a_table(embeddings, tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text("id,length,kind\n" + "".join(f"P{i:05d},{i * 3},k{i % 14}\n" for i in range(50)))
    for column in ("length", "kind"):  # a scale; ten groups, others and unknown
        words = ["--table", str(table), "--color", column, "--method", "pca"]
        assert main(["map", str(embeddings), "-o", str(tmp_path / f"{column}.svg"), *words]) == 0
    text = (tmp_path / "kind.svg").read_text()
    assert "k0 (4)" in text and "others" in text
    assert "length" in (tmp_path / "length.svg").read_text()
    again = ["map", str(embeddings), "-o", str(tmp_path / "again.svg"), *words]
    assert main(again) == 0 and (tmp_path / "again.svg").read_text() == text
    capsys.readouterr()


@pytest.mark.parametrize(
    "words, says",
    [
        (("-o", "m.gif"), "end the name in .png, .svg or .pdf"),
        (("-o", "m.png", "--table", "t.csv"), "--table and --color go together"),
        (("-o", "m.png", "--layer", "7"), "has no layer 7"),
        (("-o", "m.png", "--kind", "bos"), "has no bos"),
    ],
)
def test_command_refuses_in_one_line(embeddings, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    assert main(["map", str(embeddings), *words]) == 2
    err = capsys.readouterr().err
    assert says in err and "Hint" in err


def test_methods_that_are_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert maps.choose("auto") == "pca"
    with pytest.raises(PluginError, match="UMAP needs umap-learn") as caught:
        maps.choose("umap")
    assert "pip install umap-learn" in caught.value.hint
    with pytest.raises(PluginError, match="matplotlib"):
        maps.new_figure(Path("a.png"), (1, 1))
    with pytest.raises(ConfigError):
        maps.new_figure(Path("a.gif"), (1, 1))
