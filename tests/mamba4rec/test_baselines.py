"""Popularity, item neighbours, coverage and novelty: by hand, and against what RecTools says."""

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
from seqgraph_mamba4rec.ranking import without_seen


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


NAMES = ("HR", "NDCG", "MRR", "coverage", "novelty")
# These on :func:`scored`, said by RecTools 0.19.0; it wants numpy<2, so it need not be installed.
RECTOOLS = {
    (1, ""): [0.0666666666667, 0.0666666666667, 0.0666666666667, 0.810810810811, 3.19277464556],
    (1, "-unseen"): [0.133333333333, 0.133333333333, 0.133333333333, 0.783783783784, 3.34620962246],
    (5, ""): [0.2, 0.140472573039, 0.120555555556, 0.972972972973, 2.94398744838],
    (5, "-unseen"): [0.2, 0.165807651981, 0.154722222222, 0.972972972973, 3.04273199908],
    (10, ""): [0.283333333333, 0.165938537346, 0.130205026455, 1.0, 2.97514898939],
    (10, "-unseen"): [0.3, 0.197709173526, 0.167585978836, 1.0, 3.09974387528],
}


def scored(tmp_path):
    """Sixty users, forty items of unlike popularity, and scores without ties; the same everywhere."""
    rows = [[(n * n + j * (1 + n % 5)) % 40 for j in range(8)] for n in range(60)]
    data = sequences(tmp_path, "".join(f"u{n} {' '.join(f'i{i}' for i in row)}\n" for n, row in enumerate(rows)))
    user, item = np.ogrid[:60, : data.num_items]
    scores = (user * 97 + item * 53 + user * item * 29) % 1009 + item / 64
    return data, torch.from_numpy(scores).float()


def by_rectools(data, scores, target, k):
    import pandas as pd
    from rectools import Columns
    from rectools.metrics import MRR, NDCG, CatalogCoverage, HitRate, MeanInvUserFreq, calc_metrics

    best = scores.topk(k, 1).indices
    lists = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(scores)), k),
            Columns.Item: best.flatten().numpy(),
            Columns.Rank: np.tile(np.arange(1, k + 1), len(scores)),
        }
    )
    truth = pd.DataFrame({Columns.User: np.arange(len(scores)), Columns.Item: target.numpy()})
    user, item = data.train_events()
    theirs = calc_metrics(
        {
            "HR": HitRate(k),
            "NDCG": NDCG(k, divide_by_achievable=True),
            "MRR": MRR(k),
            "coverage": CatalogCoverage(k, normalize=True),
            "novelty": MeanInvUserFreq(k),
        },
        reco=lists,
        interactions=truth,
        prev_interactions=pd.DataFrame({Columns.User: user, Columns.Item: item}),
        catalog=np.arange(data.num_items),
    )
    return [theirs[name] for name in NAMES]


@pytest.mark.parametrize("suffix", ["", "-unseen"])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_same_metrics_as_rectools_on_the_same_scores(tmp_path, k, suffix):
    data, scores = scored(tmp_path)
    batch = data.collate(data.split("test")[:])
    metrics = Metrics([k], data)
    metrics.update(scores.clone(), batch.target, batch.seen)
    ours = [metrics.compute()[f"{name}@{k}{suffix}"] for name in NAMES]
    assert ours == pytest.approx(RECTOOLS[k, suffix], abs=1e-9)
    if importlib.util.find_spec("rectools") is not None:
        ranked = without_seen(scores, batch.seen) if suffix else scores
        assert ours == pytest.approx(by_rectools(data, ranked, batch.target, k), abs=1e-9)
