"""What benchmarks/recommendation trains: every line is a configuration, and both models have the same trials."""

import importlib.util
import sys
from pathlib import Path

import pytest

from seqgraph.config import load_config

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
    assert len({job.name for job in jobs}) == len(jobs) > 80
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
