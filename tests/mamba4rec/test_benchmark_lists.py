"""What benchmarks/recommendation trains: every line is a configuration, and both models have the same trials."""

import importlib.util
import json
import sys
import time
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from seqgraph.config import load_config
from seqgraph.errors import UserError
from seqgraph.train.run import train
from seqgraph_mamba4rec.ranking import KINDS

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


@pytest.fixture
def worker(monkeypatch):
    return module("train_worker", monkeypatch)


@pytest.fixture
def kept(monkeypatch):
    return module("train_runs", monkeypatch)


def test_every_line_is_a_configuration_and_names_are_unlike(runner):
    jobs = [runner.Job.parse(text) for lines in runner.LISTS.values() for text in lines]
    assert len(jobs) > 60
    for lines in runner.LISTS.values():
        assert len({runner.Job.parse(text).name for text in lines}) == len(lines)
    for job in jobs:
        first, *words = job.words
        if first.startswith("@"):  # the best of a group: any of it will do here
            preset, *own = next(other.words for other in jobs if fnmatch(other.group, first[1:]))
            words = own + words
        else:
            preset = first
        load_config(preset, words)


def test_what_a_line_says_beside_settings(runner):
    job = runner.Job.parse("a/m/x/1=beauty share=14 model.dropout=0.5 after=a/m/x/0")
    assert (job.group, job.words, job.share, job.after) == ("a/m/x", ["beauty", "model.dropout=0.5"], "14", "a/m/x/0")
    names = {runner.Job.parse(text).name for text in runner.LISTS["second"]}
    assert {job.after for job in map(runner.Job.parse, runner.LISTS["second"])} <= names | {None}


def test_both_models_have_the_same_trials(runner):
    names = [runner.Job.parse(text).name for text in runner.LISTS["tune"]]
    mine = [name for name in names if "/mamba4rec/" in name]
    assert mine and sorted(names) == sorted([*mine, *(name.replace("mamba4rec", "sasrec") for name in mine)])


def test_both_models_have_the_same_seconds_beside_the_learned_term(runner):
    jobs = list(map(runner.Job.parse, runner.LISTS["third"]))
    of = {job.name: (job.seconds(), "model.seen=bias" in job.words, job.words[-1]) for job in jobs}
    mine = [name for name in of if "/mamba4rec/" in name]
    assert len(mine) * 2 == len(of) and all(of[name] == of[name.replace("mamba4rec", "sasrec")] for name in mine)
    assert all(told == ("/seen/" in name) and seconds > 0 for name, (seconds, told, _) in of.items())


def test_the_presets_are_what_was_chosen_by_epochs_in_place_of_the_clock(runner):
    clock = {"epochs": 1, "seconds": None}
    wide = ("sports", "toys", "video-games")
    told = {"ml-1m-sasrec", "beauty-sasrec", "video-games-sasrec"}
    lines = [text for text in runner.LISTS["chosen"] if not text.startswith(wide)]
    compared = []
    for job in map(runner.Job.parse, lines + runner.LISTS["wide-chosen"]):
        (data, model, kind, seed), (first, *words) = job.name.split("/"), job.words
        preset = f"{data}-sasrec" if model == "sasrec" else data
        if (model == "sasrec" and preset not in told) or (data == "beauty" and kind == "item-dropout"):
            continue  # with another file they are these
        ran, now = load_config(first, words), load_config(preset, [f"seed={seed}"])
        assert now.model == ran.model and now.task == ran.task and now.seed == ran.seed
        assert now.data.fields["file"].endswith(f"/{ran.data.fields['file']}") or data == "ml-1m"
        assert {**now.data.fields, "file": 0} == {**ran.data.fields, "file": 0}
        assert now.train.model_copy(update=clock) == ran.train.model_copy(update=clock)
        compared.append(preset)
    assert set(compared) == {"ml-1m", "beauty", *wide, *told}


def test_what_won_is_what_the_finals_had(runner):
    rows = json.loads((RESULTS / "recommendation-runs.json").read_text())
    had = {row["name"]: row["words"] for row in rows}
    clock = {"epochs": 1, "seconds": None}
    for job in map(runner.Job.parse, runner.LISTS["wide-chosen"]):
        ran, said = (load_config(words[0], words[1:]) for words in (had[job.name], job.words))
        assert ran.model_copy(update={"train": said.train}) == said
        assert ran.train.model_copy(update=clock) == said.train.model_copy(update=clock)


def test_a_list_ends_where_nothing_of_it_can_begin(runner, tmp_path, capsys):
    """A configuration that is in no list and not in WORK, and one that takes longer than is left."""
    jobs = [runner.Job("a/m/final/0", ["@a/m/tune"]), runner.Job("a/m/long/0", ["ml-100k", "train.seconds=999"])]
    options = SimpleNamespace(jobs=2, set=[], data=tmp_path, out=tmp_path)
    runner.Keeper(jobs, tmp_path, options, {}, time.monotonic() + 60).keep()
    assert "not begun: a/m/final/0, a/m/long/0" in capsys.readouterr().out


def test_a_trial_is_picked_by_validation(kept):
    def row(name, valid, test):
        task = {"k": [10, 1], "select_by": "unseen", "select_metric": "NDCG"}
        figures = {"valid": {"NDCG@10-unseen": valid}, "test": {"NDCG@10-unseen": test}}
        return {"name": name, "config": {"task": task}, "words": ["beauty", "model.dropout=0.5", "seed=0"], **figures}

    rows = [row("a/m/tune/x", 0.1, 0.9), row("a/m/tune-2/y", 0.2, 0.1), row("a/m/final/1", 0.9, 0.9)]
    assert kept.best_of(rows, "a/m/tune*")["name"] == "a/m/tune-2/y"
    assert kept.best_of(rows, "a/m/tune")["name"] == "a/m/tune/x" and kept.best_of(rows, "b/*") is None
    assert kept.merged(["p", "a=1", "seed=0", "a=2", "seed=1"]) == ["p", "a=2", "seed=1"]


RESULTS = FOLDER.parent / "results"


def trained(name, value=0.1, select_by="unseen"):
    """A row of runs.json."""
    task = {"k": [10], "select_by": select_by, "select_metric": "NDCG"}
    both = {f"{kind}@10{end}": value + more for kind in KINDS for end, more in (("", 0), ("-unseen", 0.3))}
    return {
        "name": name, "words": ["ml-1m", "seed=0"], "config": {"task": task}, "data": "f1", "test": both,
        "valid": both, "parameters": 1234, "cut": False, "epochs": 3, "best_epoch": 2, "steps": 9, "seconds": 4.0,
        "wall": 5.0, "epoch_seconds": 1.0, "peak_mib": 7, "device": "GPU", "versions": {"torch": "2"},
    }  # fmt: skip


def folder(path, rows, ranked=None):
    """What train_gpu.py brings back, with ranks of all runs or of those in ``ranked``."""
    path.mkdir()
    (path / "runs.json").write_text(json.dumps(rows))
    rng = np.random.default_rng(len(rows))
    names = [row["name"] for row in rows] if ranked is None else ranked
    np.savez(
        path / "ranks.npz", **{f"{n}/{which}": rng.integers(1, 30, 40) for n in names for which in ("all", "unseen")}
    )
    return path


def report_main(monkeypatch, *words):
    report = module("report", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, words)])
    report.main()


def test_the_page_never_puts_both_protocols_in_a_table(monkeypatch, tmp_path):
    values = {"mamba4rec": 0.31, "sasrec": 0.05}
    rows = [trained(f"ml-1m/{model}/final/{seed}", value) for model, value in values.items() for seed in (0, 1)]
    report_main(monkeypatch, folder(tmp_path / "new", rows), "-o", tmp_path / "x.md")
    page = (tmp_path / "x.md").read_text()
    plain, masked = page.split("### ml-1m: ")[1:]
    assert ".3100 ± .0000" in plain and ".6100" not in plain and ".6100 ± .0000" in masked.partition("## ")[0]
    page = page[page.index("## What was asked for") :]
    plain, masked = page.partition("## How")[0].split("\nItems that the user has seen left out (masked):")
    assert "| ml-1m | strong | .3300, .1930 | .3100, .3100 | HR missed | .0500, .0500 | missed | 2 |" in plain
    assert "| ml-1m | strong | .3290, .1890 | .6100, .6100 | reached | .3500, .3500 | reached | 2 |" in masked
    plain, masked = page.partition("## Trials")[0].split("\nItems that the user has seen left out (masked):")[1:]
    assert plain.count("| ml-1m | strong |") == 1 + 3 and masked.count("| ml-1m | strong |") == 3
    kept = {row["name"]: row for row in json.loads((tmp_path / "x-runs.json").read_text())}
    assert kept["ml-1m/sasrec/final/0"]["test"]["HR@10-unseen"] == 0.35


def test_the_committed_page_is_what_the_runs_beside_it_make(monkeypatch, tmp_path, capsys):
    names = [path.name for path in RESULTS.glob("recommendation*")]
    assert {"recommendation.md", "recommendation-runs.json", "recommendation-intervals.json"} < set(names)
    for name in names:
        (tmp_path / name).write_text((RESULTS / name).read_text())
    report_main(monkeypatch, "-o", tmp_path / "recommendation.md")
    assert all(": not compared, " in line for line in capsys.readouterr().err.splitlines())  # and none is another
    for name in names:
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text(), f"run report.py for {name}"


def test_a_folder_that_is_not_there_is_no_folder_without_runs(monkeypatch, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        report_main(monkeypatch, tmp_path / "nowhere", "-o", tmp_path / "x.md")
    with pytest.raises(SystemExit):
        report_main(monkeypatch, "--drop", "deep", "-o", tmp_path / "x.md")
    assert "name one" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_comparison_goes_with_the_ranks_it_was_made_of(monkeypatch, tmp_path, capsys):
    first = [trained(f"{data}/{m}/final/0") for data in ("ml-1m", "beauty") for m in ("mamba4rec", "sasrec")]
    again, second = trained("ml-1m/sasrec/final/0", 0.2), trained("beauty/sasrec/final/1")

    def made(*words):
        report_main(monkeypatch, *words, "-o", tmp_path / "x.md")
        rows = json.loads((tmp_path / "x-intervals.json").read_text())
        said = (tmp_path / "x.md").read_text().partition("are gone: ")[2].partition(".")[0]
        return {row["data"]: row for row in rows if row["metric"] == "HR@10"}, said, capsys.readouterr().err

    old, said, _ = made(folder(tmp_path / "first", first))
    assert set(old) == {"ml-1m", "beauty"} and said == ""
    assert made() == (old, "", "")
    assert made(tmp_path / "first") == (old, "", "")  # the same runs again are none that changed
    rows, said, told = made(folder(tmp_path / "again", [again]))  # its own ranks are there, the other model's are not
    assert rows == {"beauty": old["beauty"]} and said == "ml-1m, strong"
    assert "ml-1m/sasrec/final/0: replaced" in told and "no ranks of ml-1m/mamba4rec/final/0\n" in told
    assert made()[:2] == (rows, said)
    rows, said, _ = made(tmp_path / "first", tmp_path / "again")
    assert set(rows) == {"ml-1m", "beauty"} and said == "" and rows["ml-1m"]["b"] != old["ml-1m"]["b"]
    rows, said, told = made(folder(tmp_path / "second", [second]))  # a further seed
    assert set(rows) == {"ml-1m"} and said == "beauty, strong" and "beauty/sasrec/final/0" in told
    rows, said, _ = made(
        folder(tmp_path / "bare", [trained("ml-1m/sasrec/final/0", 0.4)], ranked=[]), tmp_path / "second"
    )
    assert rows == {} and said == "ml-1m, strong; beauty, strong"


def test_of_trials_the_best_on_validation_is_shown_and_old_runs_can_be_dropped(monkeypatch, tmp_path):
    report = module("report_runs", monkeypatch)
    old = {"a/m/faithful/0": 0.1, "a/m/faithful/1": 0.1, "a/m/final/0": 0.3, "a/m/tune/x": 0.9}
    new = {"a/m/faithful/0": 0.2, "a/m/all/p": 0.1, "a/m/all/q": 0.2, "a/m/tune-2/y": 0.95}
    folders = [
        folder(tmp_path / name, [trained(run, valid, select_by="all") for run, valid in rows.items()])
        for name, rows in (("old", old), ("new", new))
    ]
    runs, ranks, changed = report.read(tmp_path / "none.json", folders, "faithful")

    def shown(kind):
        return [found["name"] for found in report.of(runs, "a", "m", kind)]

    def add(name, valid):
        runs[name] = report.kept(trained(name, valid, select_by="all"))

    assert shown("faithful") == ["a/m/faithful/0"] and "a/m/faithful/1/all" not in ranks and not changed
    assert runs["a/m/faithful/0"]["valid"]["NDCG@10"] == 0.2
    assert shown("strong") == ["a/m/final/0"] and shown("all") == ["a/m/all/q"] and shown("tune") == ["a/m/tune-2/y"]
    report.write(tmp_path / "kept.json", list(runs.values()))
    again, _, changed = report.read(tmp_path / "kept.json", folders[1:], "final")
    assert changed == {"a/m/final/0"} and set(again) == set(runs) - changed
    del runs["a/m/final/0"]
    assert shown("strong") == ["a/m/tune-2/y"] and shown("deep") == shown("best") == []
    add("a/m/deep/0", 0.99)
    assert shown("best") == ["a/m/deep/0"]
    add("a/m/seen/0", 1.0)
    add("b/m/own/0", 0.9)
    assert shown("best") == ["a/m/deep/0"] and shown("seen") == ["a/m/seen/0"]  # told more: another row
    add("a/m/deep/1", 0.5)
    assert shown("best") == ["a/m/tune-2/y"]  # the mean over seeds counts


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


def test_what_was_stopped_before_its_first_epoch_has_a_result_and_goes_on(worker, kept, order, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "STOPPED", False)
    monkeypatch.setattr("seqgraph.train.run.train", partial(train, stop_after=2))
    worker.one(**order)
    (row,) = kept.results(tmp_path)
    assert row["cut"] and worker.STOPPED and (row["epochs"], row["best_epoch"], row["steps"]) == (0, 0, 2)
    assert kept.picked(row) > 0 and row["test"]["HR@10"] > 0
    monkeypatch.setattr("seqgraph.train.run.train", train)
    worker.one(**order)
    (row,) = kept.results(tmp_path)
    assert not row["cut"] and row["epochs"] == 3 and row["best_epoch"] > 0 and kept.picked(row) > 0


def test_a_training_that_failed_is_judged_by_what_it_left(worker, kept, order, tmp_path, monkeypatch):
    def failing(*args, **options):
        with pytest.raises(KeyboardInterrupt):
            train(*args, stop_after=8, **options)
        raise UserError("the loss is nan", "no cure")

    def at_once(*args, **options):
        raise UserError("no data", "no cure")

    monkeypatch.setattr("seqgraph.train.run.train", failing)
    worker.one(**order)
    (row,) = kept.results(tmp_path)
    assert row["cut"] and row["epochs"] >= 1 and kept.picked(row) > 0
    monkeypatch.setattr("seqgraph.train.run.train", at_once)
    with pytest.raises(UserError, match="no data"):
        worker.one(**{**order, "run": tmp_path / "a" / "1", "name": "a/1"})


def test_a_damaged_file_of_ranks_does_not_take_the_other_results_along(worker, kept, order, tmp_path, capsys):
    worker.one(**order)
    for kind in ("json", "npz"):
        (tmp_path / "a" / f"1.{kind}").write_bytes((tmp_path / "a" / f"0.{kind}").read_bytes()[:200])
    row = json.loads((tmp_path / "a" / "0.json").read_text())
    (tmp_path / "a" / "1.json").write_text(json.dumps({**row, "name": "a/1"}))
    kept.pack(tmp_path, tmp_path)
    assert [row["name"] for row in json.loads((tmp_path / "runs.json").read_text())] == ["a/0"]
    assert "a/1: its ranks cannot be read" in capsys.readouterr().out
