"""Popularity, item neighbours, coverage and novelty: by hand, and against RecTools where it is installed."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.baselines import ItemKNN, judge, popularity
from seqgraph_mamba4rec.data import Sequences
from seqgraph_mamba4rec.metrics import Metrics


def sequences(tmp_path, rows: str, **options) -> Sequences:
    (tmp_path / "s.txt").write_text(rows)
    return Sequences(str(tmp_path / "s.txt"), **options)


def test_popularity_by_hand(tmp_path):
    # Training events: a b c (u), a b (v), a (w), so a 3, b 2, c 1, and nothing for the rest.
    data = sequences(tmp_path, "u a b c d a\nv a b d c\nw a e b\n")
    assert data.train_counts().tolist() == [3, 2, 1, 0, 0]
    got, (every, unseen) = judge(popularity(data), data, k=[2, 1])
    # Test targets a, c, b have the ranks 1, 3, 2 among all; without what was seen: gone, 1 (of c, e), 1 (of b, c, d).
    assert every.tolist() == [1, 3, 2] and unseen.tolist() == [5, 1, 1]
    assert got["HR@2"] == pytest.approx(2 / 3) and got["MRR@2"] == pytest.approx((1 + 1 / 2) / 3)
    assert got["HR@2-unseen"] == pytest.approx(2 / 3) and got["MRR@2-unseen"] == pytest.approx(2 / 3)
    assert got["NDCG@2"] == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert got["HR@1"] == pytest.approx(1 / 3)
    # Everyone is shown a and b: two of five items; a is met by all three users, b by two.
    assert got["coverage@2"] == pytest.approx(2 / 5) and got["coverage@1"] == pytest.approx(1 / 5)
    assert got["novelty@2"] == pytest.approx(-math.log2(2 / 3) / 2) and got["novelty@1"] == pytest.approx(0.0)


def test_coverage_and_novelty_of_short_lists(tmp_path):
    """Where fewer items are left than the list is long, the empty places count neither as shown nor as novel."""
    data = sequences(tmp_path, "u a b c d e\nv a b a b a\n")
    metrics = Metrics([4], data)
    seen = TokenStream.from_ragged([[0, 1, 2, 3], [0]])
    metrics.update(torch.tensor([[5.0, 4, 3, 2, 1], [1, 2, 3, 4, 5]]), torch.tensor([4, 1]), seen)
    got = metrics.compute()
    assert got["coverage@4-unseen"] == pytest.approx(4 / 5)  # e for u; e d c b for v
    met = {"a": 2, "b": 2, "c": 1, "d": 1, "e": 1}  # d and e by nobody in training, counted as one
    info = {item: -math.log2(n / 2) for item, n in met.items()}
    wanted = (info["e"] + sum(info[i] for i in "edcb") / 4) / 2
    assert got["novelty@4-unseen"] == pytest.approx(wanted)


def test_item_knn_by_hand(tmp_path):
    # Training: u a b c a, v a b, w b c; x's only event.
    data = sequences(tmp_path, "u a b c a y z\nv a b y z\nw b c z y\nx c\n")
    scores = ItemKNN(data, neighbours=2, shrink=1.0, decay=0.5)(data.collate(data.split("test")[:]))
    index = {name: i for i, name in enumerate(data.item_ids)}
    users = {"a": {"u", "v"}, "b": {"u", "v", "w"}, "c": {"u", "w", "x"}}

    def alike(i, j):
        return len(users[i] & users[j]) / (math.sqrt(len(users[i]) * len(users[j])) + 1) if i != j else 0.0

    # v's history is a b y: y has met nobody in training.
    for item in "abc":
        wanted = 0.25 * alike("a", item) + 0.5 * alike("b", item)
        assert scores[1, index[item]] == pytest.approx(wanted, rel=1e-5)
    assert scores[1, index["z"]] == 0
    # With one neighbour only the best is kept: b's is a or c (equal users), a's is b.
    one = ItemKNN(data, neighbours=1, shrink=1.0, decay=0.5)(data.collate(data.split("test")[:]))
    assert one[1, index["b"]] == pytest.approx(0.25 * alike("a", "b"), rel=1e-5)
    assert (one[1] > 0).sum() == 2


def test_item_knn_knows_a_world_of_pairs(tmp_path):
    """Items come in pairs that the same users meet; popularity cannot know which."""
    rows = "".join(
        f"u{n} {' '.join(f'i{2 * (n % 5)} i{2 * (n % 5) + 1} z{n % 7}'.split())} q{n % 5}\n" for n in range(60)
    )
    data = sequences(tmp_path, rows)
    knn, trivial = (judge(s, data, "valid", k=3)[0] for s in (ItemKNN(data), popularity(data)))
    assert knn["coverage@3"] > trivial["coverage@3"]
    assert knn["HR@3"] >= trivial["HR@3"]


@pytest.mark.skipif(importlib.util.find_spec("rectools") is None, reason="RecTools is not installed")
def test_same_metrics_as_rectools_on_the_same_scores(tmp_path):
    import pandas as pd
    from rectools import Columns
    from rectools.metrics import MRR, NDCG, CatalogCoverage, HitRate, MeanInvUserFreq, calc_metrics

    g = torch.Generator().manual_seed(0)
    rows = [torch.randperm(40, generator=g)[:8].tolist() for _ in range(60)]
    data = sequences(tmp_path, "".join(f"u{n} {' '.join(f'i{i}' for i in row)}\n" for n, row in enumerate(rows)))
    batch = data.collate(data.split("test")[:])
    scores = torch.randn(60, data.num_items, generator=g)
    for k in (1, 5, 10):
        metrics = Metrics([k], data)
        metrics.update(scores.clone(), batch.target, batch.seen)
        best = scores.topk(k, 1).indices
        lists = pd.DataFrame(
            {
                Columns.User: np.repeat(np.arange(60), k),
                Columns.Item: best.flatten().numpy(),
                Columns.Rank: np.tile(np.arange(1, k + 1), 60),
            }
        )
        truth = pd.DataFrame({Columns.User: np.arange(60), Columns.Item: batch.target.numpy()})
        user, item = data.train_events()
        past = pd.DataFrame({Columns.User: user, Columns.Item: item})
        theirs = calc_metrics(
            {
                f"HR@{k}": HitRate(k),
                f"NDCG@{k}": NDCG(k, divide_by_achievable=True),
                f"MRR@{k}": MRR(k),
                f"coverage@{k}": CatalogCoverage(k, normalize=True),
                f"novelty@{k}": MeanInvUserFreq(k),
            },
            reco=lists,
            interactions=truth,
            prev_interactions=past,
            catalog=np.arange(data.num_items),
        )
        ours = metrics.compute()
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-9)
