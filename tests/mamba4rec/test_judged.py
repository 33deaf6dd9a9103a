"""Ranks by user: kept, found again, compared; the bootstrap against its normal limit and by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from seqgraph.cli.main import main
from seqgraph.errors import CheckpointError, ConfigError, DataError
from seqgraph.train.run import evaluate, train
from seqgraph_mamba4rec.bootstrap import paired_bootstrap
from seqgraph_mamba4rec.judged import Ranks, compare, evaluate_users, stored_ranks


def test_interval_tends_to_the_normal_one():
    rng = np.random.default_rng(0)
    a, b = rng.random(2000), rng.random(2000)
    found = paired_bootstrap(a, b, samples=4000)
    half = 1.96 * (a - b).std(ddof=1) / np.sqrt(2000)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.high - found.difference == pytest.approx(half, rel=0.1)
    assert found.difference - found.low == pytest.approx(half, rel=0.1)
    assert paired_bootstrap(a, b, samples=4000) == found  # the same seed, the same answer


def test_pairing_takes_out_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    found = paired_bootstrap(hard + 0.01 + rng.normal(0, 0.02, 500), hard, samples=2000)
    assert 0 < found.low < 0.01 < found.high < 0.02 and found.p < 0.001
    same = paired_bootstrap(hard, hard, samples=500)
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)


def test_a_users_predictions_go_together():
    """Ten copies of every user tell no more than one."""
    rng = np.random.default_rng(0)
    a, b = rng.random(200), rng.random(200)
    once = paired_bootstrap(a, b, samples=4000)
    ten = paired_bootstrap(np.repeat(a, 10), np.repeat(b, 10), users=np.repeat(np.arange(200), 10), samples=4000)
    blind = paired_bootstrap(np.repeat(a, 10), np.repeat(b, 10), samples=4000)
    assert (ten.low, ten.high) == pytest.approx((once.low, once.high)) and ten.users == 200
    assert blind.high - blind.low < 0.5 * (ten.high - ten.low)
    for bad in ((a, b[:5]), (a[:0], b[:0])):
        with pytest.raises(ValueError, match="same length"):
            paired_bootstrap(*bad)


def made(rank, unseen=None, **changes) -> Ranks:
    n = len(rank)
    fields = {"split": "test", "data": "d", "weights": "w", "users": [f"u{i}" for i in range(n)], "items": ["i"] * n}
    return Ranks(**(fields | {"rank": rank, "rank_unseen": unseen or rank, "metrics": {}} | changes))


def test_worth_of_ranks():
    ranks = made([1, 3, 11], [1, 1, 10])
    assert ranks.worth("HR@10").tolist() == [1, 1, 0] and ranks.worth("MRR@10-unseen").tolist() == [1, 1, 0.1]
    assert ranks.worth("NDCG@3").tolist() == [1, 0.5, 0]
    for bad in ("HR", "AUC@10", "HR@x", "HR@0"):
        with pytest.raises(ConfigError, match="no metric"):
            ranks.worth(bad)


def test_seeds_are_averaged_before_users_are_drawn():
    ours, theirs = [made([1, 2, 20]), made([1, 20, 20])], [made([20, 20, 1])]
    found = compare(ours, theirs, "HR@10", samples=200)
    assert (found.a, found.b) == (pytest.approx(0.5), pytest.approx(1 / 3)) and found.users == 3
    for other in (made([1, 2, 3], items=["i", "i", "j"]), made([1, 2]), made([1, 2, 3], split="valid")):
        with pytest.raises(DataError, match="not the same events"):
            compare(ours, [other], "HR@10")


# ---------------------------------------------------------------------------------------------- runs
@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Two small runs on one file, one of them of two seeds."""
    folder = tmp_path_factory.mktemp("judged")
    rng = np.random.default_rng(0)
    rows = [[(s + j) % 12 for j in range(n)] for s, n in zip(rng.integers(12, size=60), rng.integers(4, 11, 60))]
    (folder / "s.txt").write_text("".join(f"u{u} {' '.join(f'i{i}' for i in row)}\n" for u, row in enumerate(rows)))
    for name, epochs, seeds in (("good", 10, [0]), ("bad", 1, [0, 1])):
        config = {
            "model": {"name": "gru4rec", "d_model": 8, "d_hidden": 16, "dropout": 0.0},
            "data": {"name": "sequences", "root": str(folder / "s.txt")},
            "task": {"name": "next-item", "k": [3, 1]},
            "train": {"epochs": epochs, "lr": 0.03, "max_tokens": 128, "accelerator": "cpu"},
            "seed": seeds,
        }
        train(config, output=folder / name, quiet=True)
    return folder


def test_evaluating_keeps_every_users_rank(world):
    ranks, path = evaluate_users(world / "good", k=(1, 3))
    assert path == world / "good" / "best" / "ranks-test.json" and Ranks.load(path.parent, "test") == ranks
    assert len(ranks.users) == 60 and ranks.users[0] == "u0"
    direct = evaluate(world / "good", accelerator="cpu")
    for name in ("HR@3", "NDCG@3", "MRR@3", "HR@1-unseen"):
        assert ranks.worth(name).mean() == pytest.approx(direct[name]) == pytest.approx(ranks.metrics[name])
    last = {line.split()[0]: line.split()[-1] for line in (world / "s.txt").read_text().splitlines()}
    assert dict(zip(ranks.users, ranks.items)) == last


def test_kept_ranks_are_made_again_when_the_weights_change(world, tmp_path):
    shutil.copytree(world / "good", tmp_path / "run")
    (first,) = stored_ranks(tmp_path / "run")
    file = tmp_path / "run" / "best" / "ranks-test.json"
    marked = json.loads(file.read_text()) | {"data": "marked"}
    file.write_text(json.dumps(marked))
    assert stored_ranks(tmp_path / "run")[0].data == "marked"  # read, not made
    shutil.copy(world / "bad" / "seed-0" / "best" / "model.safetensors", tmp_path / "run" / "best")
    (again,) = stored_ranks(tmp_path / "run")
    assert again.data == first.data and again.rank != first.rank
    file.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        stored_ranks(tmp_path / "run")
    with pytest.raises(ConfigError, match="split 'train'"):
        evaluate_users(world / "good", "train")


def test_the_commands(world, tmp_path, capsys):
    assert main(["rec", "evaluate", str(world / "good"), "-k", "1,5", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert {"HR@1", "HR@5", "coverage@5", "novelty@1-unseen"} <= set(got["metrics"]) and "HR@10" not in got["metrics"]
    assert (
        main(["rec", "compare", str(world / "good"), str(world / "bad"), "-k", "3", "--json", "--samples", "500"]) == 0
    )
    found = json.loads(capsys.readouterr().out)["MRR@3"]
    assert found["low"] > 0 and found["users"] == 60
    assert found["difference"] == pytest.approx(found["a"] - found["b"])
    options = ["--data-root", str(world / "s.txt"), "-k", "3", "-o", str(tmp_path / "b")]
    assert main(["rec", "baselines", str(world / "good"), *options, "--json"]) == 0
    trivial = json.loads(capsys.readouterr().out)
    assert trivial["item-knn"]["HR@3"] > trivial["popularity"]["HR@3"]
    assert main(["rec", "compare", str(world / "good"), str(tmp_path / "b" / "item-knn")]) == 0
    table = capsys.readouterr().out
    assert "60 users" in table and "NDCG@10-unseen" in table
    assert main(["rec", "evaluate", str(world / "good"), "-k", "ten"]) == 2
    assert main(["rec", "compare", str(world / "good"), str(tmp_path)]) == 2
