"""What benchmarks/proteins decides: steps that end together, rates, likeness, which weights count, what is compared."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import seqgraph as sg
from benchmarks.proteins.comparison import downstream, tokens_apart
from benchmarks.proteins.downstream import models_of
from benchmarks.proteins.planning import planned, replan, slower
from benchmarks.proteins.pretrain_gpu import best_of, chosen
from benchmarks.proteins.tables import LETTERS, related
from benchmarks.proteins.training import keep
from seqgraph.train.run import train
from seqgraph.train.state import Interrupted

RATES = {"lc-plm-8m-a": 90.0, "lc-plm-8m-b": 100.0, "esm2-8m-a": 150.0, "esm2-8m-b": 160.0}
RATES |= {"lc-plm-35m": 40.0, "esm2-35m": 50.0}
SIZES = {name: "35m" if "35m" in name else "8m" for name in RATES}


def test_the_last_of_each_size_ends_on_time():
    """On a GPU that is shared equally: with n trainings left each has six n-ths of its rate."""
    slow = [n for size in ("8m", "35m") for n in slower({n: r for n, r in RATES.items() if SIZES[n] == size})]
    assert sorted(slow) == ["lc-plm-35m", "lc-plm-8m-a", "lc-plm-8m-b"]
    tokens = planned(SIZES, RATES, {name: 2 * RATES[name] for name in slow}, 500.0)
    left, ends, now = {name: tokens[SIZES[name]] for name in RATES}, {}, 0.0
    while left:
        share = len(RATES) / len(left)
        first = min(left, key=lambda name: left[name] / RATES[name])
        took = left[first] / (RATES[first] * share)
        now += took
        left = {name: rest - took * RATES[name] * share for name, rest in left.items() if name != first}
        ends[first] = now
    for size in ("8m", "35m"):
        assert 460 < max(end for name, end in ends.items() if SIZES[name] == size) < 501


@pytest.mark.parametrize("alone", [{}, {"lc-plm-8m-a": 90.0}, {"lc-plm-8m-a": 80.0}])
def test_a_plan_for_one_training(alone):
    assert planned({"lc-plm-8m-a": "8m"}, {"lc-plm-8m-a": 90.0}, alone, 10.0)["8m"] == pytest.approx(900)


@pytest.mark.parametrize(("seconds", "expected"), [({"lc-plm-8m": 10.0, "esm2-8m": 20.0}, 60), ({}, 1000),
                                                   ({"lc-plm-8m": 0.1, "esm2-8m": 0.1}, 1000)])  # fmt: skip
def test_a_plan_that_was_too_long_is_shortened_for_both_models(tmp_path, seconds, expected):
    class Ended:
        def poll(self):
            return 0

    (tmp_path / "plan.json").write_text(json.dumps({"steps": {"8m": 1000}}))
    for name in ("lc-plm-8m", "esm2-8m"):
        (tmp_path / name).mkdir()
        if name in seconds:
            (tmp_path / name / "settled.json").write_text(json.dumps({"steps": 10, "seconds": seconds[name]}))
    sizes, now = {"lc-plm-8m": "8m", "esm2-8m": "8m"}, time.monotonic()
    # half a step a second, 100 seconds: 50 steps more for the slower one, and no more for the faster one
    steps = replan(tmp_path, sizes, {name: Ended() for name in sizes}, now, now + 100.5, 0.0)
    assert steps == json.loads((tmp_path / "replan.json").read_text())["steps"] == {"8m": expected}


def test_the_lowest_rate_among_equals_is_chosen():
    def result(rate, loss, complete=True):
        return {"preset": "esm2-8m", "lr": rate, "complete": complete, "valid": {} if loss is None else {"loss": loss}}

    results = [result(4e-4, 2.86), result(8e-4, 2.843), result(2e-3, 2.840), result(5e-3, None, False)]
    assert best_of(results, "esm2-8m")["lr"] == 2e-3
    assert chosen(results, "esm2-8m") == 8e-4
    assert chosen([*results, result(2e-4, 2.7, False)], "esm2-8m") == 8e-4  # a whole training before one that was cut
    assert best_of(results, "lc-plm-8m") is None


def test_like_proteins_are_found_and_others_are_not():
    draw = np.random.default_rng(0)
    long = ["".join(draw.choice(list(LETTERS), 5000)) for _ in range(64)]
    copy = np.array(list(long[40][1000:1400]))
    places = draw.random(400) < 0.35
    copy[places] = draw.choice(list(LETTERS), places.sum())
    some = ["".join(draw.choice(list(LETTERS), n)) for n in (30, 300, 1022)] + ["".join(copy), "MKV", "X" * 50]
    assert related(some, long).tolist() == [False, False, False, True, False, False]


def test_a_training_that_was_stopped_is_measured_downstream(tmp_path):
    """By the weights that its losses are of, the last ones, also where random weights of its preset are asked for."""
    run = tmp_path / "lc-plm-35m-seed0" / "run"
    with pytest.raises(Interrupted):
        train("lc-plm-sample", output=run, quiet=True, stop_after=2)
    (run / "best").mkdir()  # of an earlier evaluation, and worse
    result = {"preset": "lc-plm-35m", "seed": 0, "valid": {"loss": 2.8}, "complete": False, "failed": ""}
    (run.parent / "result.json").write_text(json.dumps(result))
    options = argparse.Namespace(final=tmp_path, untrained=["lc-plm-35m", "esm2-35m"], seeds=2)
    models = {(m["model"], m["kind"]): m["path"] for m in models_of(options)}
    assert models["lc-plm-35m", "trained"] == str(run / "last")
    assert ("esm2-35m", "random") in models and ("esm2-35m", "trained") not in models
    assert keep(run, tmp_path / "half", complete=False) > 0
    whole, half = (sg.load(path).embed(["MKTAYIAKQR"]) for path in (run / "last", tmp_path / "half"))
    np.testing.assert_allclose(whole, half, atol=2e-3)
    options.final = None
    assert [m["kind"] for m in models_of(options)] == ["random", "random", "simple"]


def test_models_after_unequal_tokens_are_not_compared():
    results = [{"preset": "lc-plm-35m", "tokens": 28_000_000}, {"preset": "esm2-35m", "tokens": 17_000_000}]
    assert "28,000,000" in tokens_apart(results) and "17,000,000" in tokens_apart(results)
    assert not tokens_apart([results[0], {"preset": "esm2-35m", "tokens": 27_900_000}])


def test_a_page_of_random_weights_alone_counts_no_gains():
    row = {"task": "yeast pairs", "data": "pairs", "head": "linear", "measure": "accuracy", "size": 9, "seed": 0}
    rows = [{**row, "model": m, "features": m, "kind": "random", "value": 0.5} for m in ("lc-plm-35m", "esm2-35m")]
    rows.append({**row, "model": "simple", "features": "one-hot", "kind": "simple", "value": 0.6})
    text = "\n".join(downstream(rows))
    assert "| 0.500 | 0.500 | 0.600 |" in text and "35M |" not in text and "were not measured" in text
