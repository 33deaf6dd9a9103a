"""What benchmarks/proteins decides: steps that end together, rates, likeness, which weights count, what is compared."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import seqgraph as sg
from benchmarks.proteins.comparison import downstream, in_brief, tokens_apart
from benchmarks.proteins.downstream import KINDS, models_of
from benchmarks.proteins.downstream_speed import crossing, crossing_point
from benchmarks.proteins.planning import latest, planned, replan, slower
from benchmarks.proteins.pretrain_gpu import best_of, chosen
from benchmarks.proteins.results import draw, merged
from benchmarks.proteins.tables import LETTERS, related
from benchmarks.proteins.training import keep, settle, steps_of
from seqgraph.config import load_config
from seqgraph.train.checkpoint import read_tensors
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


class Ended:
    def poll(self):
        return 0


@pytest.mark.parametrize(
    ("seconds", "most", "expected"),
    [
        ({"lc-plm-8m": 10.0, "esm2-8m": 20.0}, {}, 60),  # half a step a second: 50 more for the slower one, and no more
        ({"lc-plm-8m": 0.1, "esm2-8m": 0.02}, {}, 10010),  # faster than the first plan knew
        ({"lc-plm-8m": 0.1, "esm2-8m": 0.02}, {"8m": 700}, 700),
        ({"esm2-8m": 20.0}, {}, 60),  # the other has failed
        ({"lc-plm-8m": 1e6, "esm2-8m": 1.0}, {}, 11),  # no time is left: one step, by which the schedule ends
        ({}, {}, 1000),
    ],
)
def test_a_plan_made_again_is_one_for_both_models(tmp_path, seconds, most, expected):
    (tmp_path / "plan.json").write_text(json.dumps({"steps": {"8m": 1000}}))
    for name in ("lc-plm-8m", "esm2-8m"):
        (tmp_path / name).mkdir()
        if name in seconds:
            said = {"steps": 10, "taken": 10, "seconds": seconds[name]}
            (tmp_path / name / "settled-0.json").write_text(json.dumps(said))
    sizes, until = {"lc-plm-8m": "8m", "esm2-8m": "8m"}, time.monotonic() + 100.05
    steps = replan(tmp_path, 0, sizes, {name: Ended() for name in sizes}, until, 0.0, most)["8m"]
    assert steps == latest(tmp_path)["steps"]["8m"] and steps == pytest.approx(expected, rel=0.01)


def test_trainings_that_pause_for_plans_end_at_one_step(tmp_path):
    """Of two whose speeds change after each plan, and which the GPU's other work slows down in the end."""
    speeds = {"lc-plm-35m": [10.0, 6.0, 12.0, 9.0, 5.0], "esm2-35m": [5.0, 9.0, 4.0, 8.0, 3.5]}
    sizes, deadline, now = dict.fromkeys(speeds, "35m"), 100.0, 0.0
    for name in speeds:
        (tmp_path / name).mkdir()
    (tmp_path / "plan.json").write_text(json.dumps({"steps": {"35m": 2000}}))
    done, steps = 0, 2000
    for number, share in enumerate([0.1, 0.5, 0.8, 0.95]):
        pause = max(done, min(steps - 1, math.ceil(share * steps)))
        for name, speed in speeds.items():
            took = (pause - done) / speed[number]
            said = {"steps": pause, "taken": pause - done, "seconds": took}
            (tmp_path / name / f"settled-{number}.json").write_text(json.dumps(said))
        now += (pause - done) / min(speed[number] for speed in speeds.values())
        done, until = pause, time.monotonic() + deadline - now
        steps = replan(tmp_path, number, sizes, {name: Ended() for name in sizes}, until, 0.05)["35m"]
        assert steps > done
    end = now + (steps - done) / min(speed[-1] for speed in speeds.values())
    assert 0.9 * deadline < end < 1.05 * deadline


def test_a_training_in_parts_is_the_one_without_pauses(tmp_path):
    """Paused three times, with the same number of steps each time: the same weights, and parts that count once."""
    whole = load_config("lc-plm-sample", ["train.max_steps=12", "train.epochs=100"])
    for number, share in enumerate([0.2, 0.1, 0.7]):
        settle(whole, tmp_path / "parts", number, math.ceil(share * 12))
    said = [json.loads((tmp_path / "parts" / f"settled-{n}.json").read_text()) for n in range(3)]
    assert [(one["steps"], one["taken"]) for one in said] == [(3, 3), (3, 0), (9, 6)]
    settle(whole, tmp_path / "parts", 2, 11)  # said already
    train(whole, output=tmp_path / "parts" / "run", resume=True, quiet=True)
    train(whole, output=tmp_path / "whole", quiet=True)
    weights = [
        read_tensors(path / "last" / "model.safetensors") for path in (tmp_path / "parts" / "run", tmp_path / "whole")
    ]
    assert steps_of(tmp_path / "whole") == 12
    for name, value in weights[0].items():
        assert value.equal(weights[1][name]), name


def test_the_rate_with_the_lowest_loss_is_chosen():
    def result(rate, loss, complete=True):
        return {"preset": "esm2-8m", "lr": rate, "complete": complete, "valid": {} if loss is None else {"loss": loss}}

    results = [result(4e-4, 2.86), result(8e-4, 2.840), result(2e-3, 2.843), result(5e-3, None, False)]
    assert best_of(results, "esm2-8m")["lr"] == chosen(results, "esm2-8m") == 8e-4
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
    options = argparse.Namespace(final=tmp_path, untrained=["lc-plm-35m", "esm2-35m"], seeds=2, kinds=KINDS)
    models = {(m["model"], m["kind"]): m["path"] for m in models_of(options)}
    assert models["lc-plm-35m", "trained"] == str(run / "last")
    assert ("esm2-35m", "random") in models and ("esm2-35m", "trained") not in models
    assert keep(run, tmp_path / "half", complete=False) > 0
    whole, half = (sg.load(path).embed(["MKTAYIAKQR"]) for path in (run / "last", tmp_path / "half"))
    np.testing.assert_allclose(whole, half, atol=2e-3)
    options.final = None
    assert [m["kind"] for m in models_of(options)] == ["random", "random", "simple"]
    options.kinds = ["simple"]
    assert [m["kind"] for m in models_of(options)] == ["simple"]


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


def test_the_brief_table_says_where_tokens_are_not_equal_and_counts_the_claims_tasks():
    def result(preset, tokens, loss):
        return {"preset": preset, "tokens": tokens, "test": {"loss": loss}, "unigram": 2.9}

    small = [result("lc-plm-8m", 26_000_000, 2.75), result("esm2-8m", 26_000_000, 2.8)]
    large = [result("lc-plm-35m", 28_000_000, 2.7), result("esm2-35m", 17_000_000, 2.8)]
    same = {"data": "d", "features": "f", "head": "linear", "measure": "m", "seed": 0, "size": 9}
    rows = [
        {**same, "task": task, "model": model, "kind": kind, "value": value if kind == "trained" else 0.5}
        for task, values in {"function": (0.9, 0.8), "yeast pairs": (0.9, 0.8), "interactions": (0.7, 0.8)}.items()
        for model, value in zip(("lc-plm-8m", "esm2-8m"), values, strict=True)
        for kind in ("trained", "random")
    ]
    rows += [{**same, "task": t, "model": "simple", "kind": "simple", "value": 0.4} for t in {r["task"] for r in rows}]
    one, other = in_brief([{"results": small}, {"results": large}], rows)[2:]
    assert one == "| 8M | 26.0 M | 2.7500 | 2.8000 | 2.9000 | 1 of 2 | 1 of 2 |"
    assert "not equal: 28.0 M and 17.0 M" in other and "not measured" in other


def test_a_page_takes_what_was_measured_before_only_where_nothing_newer_is():
    def row(model, kind, value):
        return {"model": model, "kind": kind, "value": value}

    new = [row("lc-plm-8m", "trained", 1), row("lc-plm-8m", "trained", 2)]
    old = [row("lc-plm-8m", "trained", 3), row("lc-plm-8m", "random", 4), row("simple", "simple", 5)]
    older = [row("simple", "simple", 6), row("esm2-8m", "random", 7)]
    assert [r["value"] for r in merged([new, old, older])] == [1, 2, 4, 5, 7]


def test_the_picture_of_speeds_says_where_lc_plm_overtakes(tmp_path):
    """Rates 1 and 4, then 1 and 1/4: halfway between on the logarithm of the length."""
    theirs, ours = {1024: 4.0, 4096: 0.25}, {1024: 1.0, 4096: 1.0}
    assert crossing_point(ours, theirs) == pytest.approx(2048) and crossing(ours, theirs) == "from 2,048 on"
    assert crossing_point(theirs, ours) is None and crossing(theirs, ours) == "not up to 4,096"
    assert crossing_point({256: 2.0}, {256: 1.0}) == 256 and crossing({256: 2.0}, {256: 1.0}) == "from below 256 on"
    assert crossing_point({}, ours) is None and crossing({}, ours) == "not measured"
    pytest.importorskip("matplotlib")
    speed = [
        {"size": "8m", "model": model, "way": way, "length": n, "tokens_per_second": 1e6 * rate}
        for way, sides in {"forward": (ours, theirs), "training": (theirs, ours)}.items()
        for model, rates in zip(("lc-plm", "esm2 sdpa"), sides, strict=True)
        for n, rate in rates.items()
    ]
    draw([speed], ["a GPU, alone"], tmp_path / "speed.svg")
    text = (tmp_path / "speed.svg").read_text()
    assert "LC-PLM ahead from 2,048 on" in text and "ESM-2 ahead up to the longest" in text and "a GPU" in text
