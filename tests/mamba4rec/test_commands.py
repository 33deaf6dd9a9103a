"""The plugin from outside: what it registers, a run from a text file, and ``seqgraph recommend`` on it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import torch

import seqgraph as sg
from seqgraph.cli.main import main
from seqgraph.config import load_config
from seqgraph.plugin import manager
from seqgraph.train.run import build_data, build_task, train
from seqgraph_mamba4rec.data import Sequences

ITEMS = 12
PUBLISHED = {
    "ml-1m": (6_040, 3_416),
    "ml-1m-faithful": (6_040, 3_416),
    "ml-1m-sasrec": (6_040, 3_416),
    "beauty": (22_363, 12_101),
    "beauty-sasrec": (22_363, 12_101),
    "sports": (35_598, 18_357),
    "toys": (19_412, 11_924),
    "video-games": (24_303, 10_672),
    "video-games-sasrec": (24_303, 10_672),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model of a world in which item i is always followed by i + 1 (mod 12)."""
    folder = tmp_path_factory.mktemp("rec")
    data = folder / "world.txt"
    g = torch.Generator().manual_seed(0)
    starts, lengths = torch.randint(ITEMS, (80,), generator=g), torch.randint(4, 11, (80,), generator=g)
    rows = [[f"i{(s + j) % ITEMS}" for j in range(n)] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    data.write_text("".join(f"u{u} {' '.join(row)}\n" for u, row in enumerate(rows)))
    config = {
        "model": {"name": "mamba4rec", "d_model": 16, "d_state": 4, "dropout": 0.0},
        "data": {"name": "sequences", "root": str(data)},
        "task": {"name": "next-item", "k": 3, "lists": True},
        "train": {"epochs": 12, "lr": 0.02, "max_tokens": 128, "accelerator": "cpu"},
        "seed": 0,
    }
    result = train(config, output=folder / "run", quiet=True)
    return folder / "run", result


def requests(tmp_path, text):
    path = tmp_path / "users.csv"
    path.write_text(text)
    return str(path)


def test_the_plugin_registers_everything_and_stays_light():
    for kind, names in {
        "models": ["mamba4rec", "sasrec", "gru4rec", "lrurec", "bimamba4rec"],
        "datasets": ["ml-100k", "movielens", "recbole-inter", "events", "sequences"],
        "tasks": ["next-item", "cloze"],
        "presets": ["ml-100k", "mamba4rec-faithful", "bimamba4rec", *PUBLISHED],
        "commands": ["recommend", "rec"],
    }.items():
        for name in names:
            descriptor = manager.get(kind, name)
            assert manager.provider(descriptor).name == "mamba4rec"
            assert manager.resolve(descriptor) is not None
    code = "import sys, seqgraph_mamba4rec.plugin, seqgraph_mamba4rec.config; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "recbole", "pandas"} & set(loaded)


def test_presets_are_valid_and_say_what_they_are():
    strong = load_config("ml-100k")
    assert strong.model.fields["init"] == "mamba" and strong.data.name == "ml-100k"
    model = manager.resolve(manager.get("models", "mamba4rec"))(5, d_model=16)
    task = manager.resolve(manager.get("tasks", "next-item"))
    monitors = [task(model, **part.task.fields).monitor for part in (strong, load_config("mamba4rec-faithful"))]
    assert monitors == ["NDCG@10-unseen", "NDCG@10"]
    faithful = load_config("mamba4rec-faithful", data_root="x.txt")
    assert faithful.model.fields["init"] == "mamba4rec" and faithful.data.fields["examples"] == "prefixes"
    assert faithful.data.fields["root"] == "x.txt" and faithful.train.max_items == 2048


@pytest.mark.parametrize("name", ["ml-1m", "beauty", "sports", "toys", "video-games"])
def test_presets_find_their_data(shared_data, name):
    config = load_config(name, data_root=shared_data / "recommendation")
    data = build_data(config)
    assert (data.num_users, data.num_items) == PUBLISHED[name]
    build_task(config, data)


def test_compared_presets_differ_in_model_rate_and_epochs_alone():
    for ours, theirs in (("ml-1m", "ml-1m-sasrec"), ("beauty", "beauty-sasrec")):
        a, b = load_config(ours), load_config(theirs)
        assert a.data == b.data and a.task == b.task
        own = {"lr": 1, "epochs": 1}  # tuned apart; what was done in the same time
        assert a.train.model_copy(update=own) == b.train.model_copy(update=own)
        assert a.model.fields["d_model"] == b.model.fields["d_model"]


def test_a_run_learns_and_beats_popularity(run):
    folder, _ = run
    model = sg.load(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    test, trivial = metrics["test"], metrics["baseline"]
    assert test["HR@3"] == 1.0 and test["MRR@3"] > 0.9
    kinds = ("HR", "NDCG", "MRR", "coverage", "novelty")
    assert set(test) == {"loss", *(f"{m}@3{s}" for m in kinds for s in ("", "-unseen"))}
    assert set(trivial) == set(test) - {"loss"} and trivial["coverage@3"] == 3 / 12 < test["coverage@3"]
    assert trivial["MRR@3"] < 0.5
    (row,) = model.recommend([["i3", "i4", "i5"]], k=1)
    assert row[0].item == "i6"


def test_recommend_prints_and_writes(run, tmp_path, capsys):
    users = requests(tmp_path, "user,item,timestamp\nann,i5,2\nann,i4,1\nbob,i11,7\n")
    assert main(["recommend", str(run[0]), users, "-k", "2", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert [row["user"] for row in got] == ["ann", "bob"]
    assert [row["items"][0]["item"] for row in got] == ["i6", "i0"]
    assert [i["rank"] for i in got[0]["items"]] == [1, 2]
    out = tmp_path / "out.csv"
    assert main(["recommend", str(run[0]), users, "-k", "2", "-o", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [(r["user"], r["rank"], r["item"]) for r in rows][::2] == [("ann", "1", "i6"), ("bob", "1", "i0")]
    assert main(["recommend", str(run[0]), users, "-o", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())[1]["user"] == "bob"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.json", "users.csv"]  # nothing half written
    capsys.readouterr()
    assert main(["recommend", str(run[0]), users, "-k", "1"]) == 0
    table = capsys.readouterr().out
    assert "ann" in table and "i6" in table


def test_filter_seen_is_an_option(run, tmp_path, capsys):
    users = requests(tmp_path, "user,item\nann," + "\nann,".join(f"i{i % ITEMS}" for i in range(ITEMS)) + "\n")
    lists = {}
    for flag in ("--filter-seen", "--no-filter-seen"):
        assert main(["recommend", str(run[0]), users, "-k", "3", flag, "--json"]) == 0
        lists[flag] = json.loads(capsys.readouterr().out)[0]["items"]
    assert lists["--filter-seen"] == [] and lists["--no-filter-seen"][0]["item"] == "i0"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("user,item\nann,i1\nann,nope\n", [], "users.csv, line 3: item 'nope' was not in the training data"),
        ("user,item\nann,nope\n", ["--skip-unknown"], "users.csv: user 'ann' has no item that the model knows"),
        ("user,film\nann,i1\n", [], "users.csv: no column 'item'"),
        ("", [], "users.csv: the file is empty"),
        ("user,item\nann,i1\n", ["-o", "out.txt"], "must end in .csv or .json"),
        ("user,item\nann,i1\n", ["-o", "users.csv/out.csv"], "cannot write"),
    ],
)
def test_bad_requests_are_one_clear_error(run, tmp_path, monkeypatch, capsys, text, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["recommend", str(run[0]), requests(tmp_path, text), *options]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "Traceback" not in said


def test_prefixes_and_histories_train_the_same_predictions(tmp_path):
    """The faithful setting differs from the strong one in cost, not in what is predicted from what."""
    from seqgraph_mamba4rec.model import Mamba4Rec
    from seqgraph_mamba4rec.task import NextItem

    path = tmp_path / "s.txt"
    path.write_text("u a b c d e f\nv b d a\nw c c a b\n")
    torch.manual_seed(0)
    losses, gradients, tokens = [], [], []
    model = Mamba4Rec(6, d_model=16, d_state=4, dropout=0.0)
    for examples in ("histories", "prefixes"):
        data = Sequences(str(path), max_history=None, examples=examples)
        batch = data.collate(data.split("train")[:])
        out = NextItem(model).training_step(batch)
        losses.append(out["loss"])
        gradients.append(torch.autograd.grad(out["loss"], list(model.parameters())))
        tokens.append(batch.stream.num_tokens)
        assert out["size"] == 4 - 1 + 0 + 2 - 1
    torch.testing.assert_close(losses[0], losses[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert tokens[1] > tokens[0]


def test_items_may_be_called_by_name(run, tmp_path):
    from pathlib import Path

    from seqgraph.errors import DataError
    from seqgraph_mamba4rec.reading import read_requests
    from seqgraph_mamba4rec.recommend import recommend_users

    model = sg.load(run[0])
    model.assets["titles"] = {"i5": "Five", "i7": "Twin", "i8": "twin"}
    options = {"k": 1, "filter_seen": True, "skip_unknown": False}
    for name in ("five", "FIVE", "i5"):
        path = Path(requests(tmp_path, f"user,item\nann,i4\nann,{name}\n"))
        assert recommend_users(model, read_requests(path), path, **options)["ann"][0].item == "i6"
    path = Path(requests(tmp_path, "user,item\nann,twin\n"))
    with pytest.raises(DataError, match=r"2 items are called 'twin' \(give an id: i7, i8\)"):
        recommend_users(model, read_requests(path), path, **options)
