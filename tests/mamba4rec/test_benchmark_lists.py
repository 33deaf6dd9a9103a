"""What benchmarks/recommendation trains: every line is a configuration, and both models have the same trials."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from seqgraph.config import load_config
from seqgraph.errors import UserError
from seqgraph.train.run import train

FOLDER = Path(__file__).parents[2] / "benchmarks" / "recommendation"


def module(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"rec_{name}", FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, found)  # a dataclass looks its module up
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def runner(monkeypatch):
    return module("train_gpu", monkeypatch)


def test_every_line_is_a_configuration_and_names_are_unlike(runner):
    jobs = [runner.Job.parse(text) for lines in runner.LISTS.values() for text in lines]
    assert len({job.name for job in jobs}) == len(jobs) > 60
    for job in jobs:
        first, *words = job.words
        if first.startswith("@"):
            data, model = first[1:].split("/")[:2]
            preset = ("ml-1m" if data == "ml-1m" else "beauty") + ("-sasrec" if model == "sasrec" else "")
            assert any(other.group.startswith(f"{data}/{model}/tune") for other in jobs)
        else:
            preset = first
        load_config(preset, words)


def test_both_models_have_the_same_trials(runner):
    names = [runner.Job.parse(text).name for text in runner.LISTS["tune"]]
    mine = [name for name in names if "/mamba4rec/" in name]
    assert mine and sorted(names) == sorted([*mine, *(name.replace("mamba4rec", "sasrec") for name in mine)])


def test_a_trial_is_picked_by_validation(runner):
    def row(name, valid, test):
        task = {"k": [10, 1], "select_by": "unseen", "select_metric": "NDCG"}
        figures = {"valid": {"NDCG@10-unseen": valid}, "test": {"NDCG@10-unseen": test}}
        return {"name": name, "config": {"task": task}, "words": ["beauty", "model.dropout=0.5", "seed=0"], **figures}

    rows = [row("a/m/tune/x", 0.1, 0.9), row("a/m/tune-2/y", 0.2, 0.1), row("a/m/final/1", 0.9, 0.9)]
    assert runner.best_of(rows, "a/m/tune*")["name"] == "a/m/tune-2/y"
    assert runner.best_of(rows, "a/m/tune")["name"] == "a/m/tune/x" and runner.best_of(rows, "b/*") is None
    assert runner.merged(["p", "a=1", "seed=0", "a=2", "seed=1"]) == ["p", "a=2", "seed=1"]


@pytest.fixture
def order(tmp_path):
    """What a process is told to train."""
    rng = np.random.default_rng(0)
    rows = [[(s + j) % 12 for j in range(n)] for s, n in zip(rng.integers(12, size=60), rng.integers(4, 11, 60))]
    text = "".join(f"u{u} {' '.join(f'i{i}' for i in row)}\n" for u, row in enumerate(rows))
    (tmp_path / "s.txt").write_text(text)
    (tmp_path / "a").mkdir()
    words = "beauty model=gru4rec model.d_model=8 model.d_hidden=8 model.dropout=0.1 task.loss=softmax train.epochs=3"
    words += " train.max_tokens=64 train.accelerator=cpu"
    return {"run": tmp_path / "a" / "0", "name": "a/0", "words": words.split(), "data": str(tmp_path / "s.txt")}


def test_what_was_stopped_before_its_first_epoch_has_a_result_and_goes_on(runner, order, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "STOPPED", False)
    monkeypatch.setattr("seqgraph.train.run.train", partial(train, stop_after=2))
    runner.one(**order)
    (row,) = runner.results(tmp_path)
    assert row["cut"] and runner.STOPPED and (row["epochs"], row["best_epoch"], row["steps"]) == (0, 0, 2)
    assert runner.picked(row) > 0 and row["test"]["HR@10"] > 0
    monkeypatch.setattr("seqgraph.train.run.train", train)
    runner.one(**order)
    (row,) = runner.results(tmp_path)
    assert not row["cut"] and row["epochs"] == 3 and row["best_epoch"] > 0 and runner.picked(row) > 0


def test_a_training_that_failed_is_judged_by_what_it_left(runner, order, tmp_path, monkeypatch):
    def failing(*args, **options):
        with pytest.raises(KeyboardInterrupt):
            train(*args, stop_after=8, **options)
        raise UserError("the loss is nan", "no cure")

    def at_once(*args, **options):
        raise UserError("no data", "no cure")

    monkeypatch.setattr("seqgraph.train.run.train", failing)
    runner.one(**order)
    (row,) = runner.results(tmp_path)
    assert row["cut"] and row["epochs"] >= 1 and runner.picked(row) > 0
    monkeypatch.setattr("seqgraph.train.run.train", at_once)
    with pytest.raises(UserError, match="no data"):
        runner.one(**{**order, "run": tmp_path / "a" / "1", "name": "a/1"})


def test_a_damaged_file_of_ranks_does_not_take_the_other_results_along(runner, order, tmp_path, capsys):
    runner.one(**order)
    for kind in ("json", "npz"):
        (tmp_path / "a" / f"1.{kind}").write_bytes((tmp_path / "a" / f"0.{kind}").read_bytes()[:200])
    row = json.loads((tmp_path / "a" / "0.json").read_text())
    (tmp_path / "a" / "1.json").write_text(json.dumps({**row, "name": "a/1"}))
    runner.pack(tmp_path, tmp_path)
    assert [row["name"] for row in json.loads((tmp_path / "runs.json").read_text())] == ["a/0"]
    assert "a/1: its ranks cannot be read" in capsys.readouterr().out
