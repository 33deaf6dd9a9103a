"""What benchmarks/proteins decides: steps that end together, the learning rate, proteins that are too much alike."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.proteins.planning import planned, slower
from benchmarks.proteins.pretrain_gpu import best_of, chosen
from benchmarks.proteins.tables import LETTERS, related

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
