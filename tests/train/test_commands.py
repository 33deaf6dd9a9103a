"""The commands train, evaluate and report, run in this process."""

from __future__ import annotations

import json
import re
import sys

import pytest
import yaml

from seqgraph.cli.main import main
from seqgraph.errors import CheckpointError, PluginError
from seqgraph.report import collect, write_report
from seqgraph.train.run import train


@pytest.fixture
def file(tmp_path, toy_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(toy_config(train__epochs=2)))
    return path.name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, one of two seeds; made by the first test that asks."""
    folder = tmp_path_factory.mktemp("runs")

    def make(toy_config):
        if not (folder / "one").exists():
            train(toy_config(train__epochs=2), output=folder / "one", quiet=True)
            train(toy_config(train__epochs=2, seed=[1, 2], model__d_model=4), output=folder / "two", quiet=True)
        return folder / "one", folder / "two"

    return make


def test_train_then_evaluate(file, tmp_path, capsys):
    assert main(["train", file, "train.lr=1e-2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["folder"] == "runs/small" and (tmp_path / "runs" / "small" / "best").is_dir()
    assert main(["evaluate", "runs/small", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["mse"] == pytest.approx(result["mean"]["mse"], abs=1e-7)
    assert main(["evaluate", "runs/small", "--split", "valid"]) == 0
    said = capsys.readouterr().out
    assert "mse" in said and said.endswith("\ndata toy-48-0\n")
    for folder in ("small", "small/best"):
        assert json.loads((tmp_path / "runs" / folder / "metrics.json").read_text())["data"] == found["data"]
    assert found["data"] == "toy-48-0"


def test_evaluate_says_which_data_it_read_and_that_others_were_trained_on(file, tmp_path, capsys):
    assert main(["train", file, "--json"]) == 0
    for path in (tmp_path / "runs" / "small").rglob("config.json"):
        saved = json.loads(path.read_text())
        saved["run"]["data"]["seed"] = 5
        path.write_text(json.dumps(saved))
    capsys.readouterr()
    assert main(["evaluate", "runs/small", "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["data"] == "toy-48-5"
    assert "trained on the data toy-48-0, evaluated on toy-48-5" in " ".join(found.err.split())


def test_train_prints_what_it_is_about(file, capsys):
    assert main(["train", file, "-o", "out", "seed=3"]) == 0
    said = capsys.readouterr().out
    for text in ("toy-data", "train 48", "toy-48-0", "73 parameters", "seed 3", "epoch 2/2", "valid_mse", "trivial"):
        assert text in said
    assert "\x1b" not in said and "Lightning" not in said


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train", "nothing.yaml"], "nothing.yaml"),
        (["train", "nopreset"], "no preset is named 'nopreset'"),
        (["train", "small.yaml", "train.epoch=3"], "train.epochs"),
        (["train", "small.yaml", "--resume", "-o", "empty"], "no run to resume"),
        (["evaluate", "empty"], "no such folder"),
        (["report", "empty"], "not a run"),
    ],
)
def test_mistakes_are_one_line_and_a_hint(file, capsys, arguments, said):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and said in error and "Hint: " in error and "Traceback" not in error


def test_report(toy_config, runs, tmp_path, capsys):
    one, two = runs(toy_config)
    assert main(["report", str(one), str(two), "-o", str(tmp_path / "r" / "report.html")]) == 0
    page = (tmp_path / "r" / "report.html").read_text()
    summary = json.loads((two / "summary.json").read_text())
    assert f"{summary['mean']['mse']:.4g} ± {summary['std']['mse']:.2g}" in page
    assert f"{summary['baseline']['mse']:.4g}" in page and "trivial predictor" in page
    assert page.count("<svg") == page.count("</svg>") == 2  # loss, mse
    assert "model.d_model" in page and re.search(r"<td>8</td>\s*<td>4</td>", page)
    # One file that needs nothing else, and the same for the same runs.
    assert not re.search(r"(src|href)=\"(?!#)", page)
    write_report([one, two], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_report_of_a_run_that_is_not_finished(toy_config, runs, tmp_path):
    import shutil

    one, _ = runs(toy_config)
    shutil.copytree(one, tmp_path / "half")
    (tmp_path / "half" / "metrics.json").unlink()
    assert not collect(tmp_path / "half").finished
    assert "not finished" in write_report([tmp_path / "half"], tmp_path / "r.html").read_text()
    (tmp_path / "half" / "log.jsonl").write_text('{"epoch": 1')
    with pytest.raises(CheckpointError, match=r"log\.jsonl"):
        write_report([tmp_path / "half"], tmp_path / "r.html")


def test_report_without_its_extra(toy_config, runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(PluginError, match="matplotlib") as error:
        write_report(runs(toy_config), tmp_path / "r.html")
    assert "seqgraph[report]" in error.value.hint
