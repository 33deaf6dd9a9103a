"""Ranks, metrics and lists: by hand, against sorting, and against RecBole's own evaluator."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.data import MovieLens100K, Sequences
from seqgraph_mamba4rec.gru4rec import GRU4Rec
from seqgraph_mamba4rec.metrics import Metrics
from seqgraph_mamba4rec.ranking import RankMetric, all_scores, rank_of, user_blocks, without_seen
from seqgraph_mamba4rec.task import NextItem

needs_recbole = pytest.mark.skipif(
    importlib.util.find_spec("recbole") is None, reason="RecBole is not installed (no wheel of ray 2.6.3 for it)"
)


def test_metrics_by_hand():
    ranks = torch.tensor([1, 2, 3, 11, 10])
    metric = {kind: RankMetric(kind, 10) for kind in ("HR", "NDCG", "MRR")}
    for m in metric.values():
        m.update(ranks[:2])
        m.update(ranks[2:])
    assert metric["HR"].compute().item() == pytest.approx(4 / 5)
    ndcg = 1 + 1 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(11)
    assert metric["NDCG"].compute().item() == pytest.approx(ndcg / 5)
    assert metric["MRR"].compute().item() == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 10) / 5)


def test_rank_counts_ties_and_nan_against_the_model():
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0], [0, 0, 0, 0], [math.nan, 1, 2, 3], [5, math.nan, math.nan, 1]])
    assert rank_of(scores, torch.tensor([0, 2, 0, 0])).tolist() == [2, 4, 4, 3]
    seen = TokenStream.from_ragged([[0, 2], [], [3], [0]])
    masked = without_seen(scores, seen)
    assert rank_of(masked, torch.tensor([3, 2, 2, 3])).tolist() == [1, 4, 2, 3]
    assert rank_of(masked, torch.tensor([0, 0, 3, 0]))[0] == 4  # an item that is taken out is never found
    assert scores[0, 0] == 3  # the caller's scores are left alone


@given(users=st.integers(0, 9), items=st.integers(2, 40), budget=st.integers(1, 2000))
def test_blocks_of_users_keep_to_the_budget(users, items, budget):
    blocks = user_blocks(users, items, budget)
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(users))
    assert all(b.stop - b.start == 1 or 4 * items * (b.stop - b.start) <= budget for b in blocks)


def test_scores_are_fp32_under_autocast():
    """bf16 has 256 steps an octave: a thousand items would share them, and all ties count against the model."""
    g = torch.Generator().manual_seed(0)
    users, items = torch.randn(3, 16, generator=g), torch.randn(4000, 16, generator=g)
    with torch.autocast("cpu", torch.bfloat16):
        scores = all_scores(users.bfloat16(), items)
    assert scores.dtype == torch.float32
    assert min(len(row.unique()) for row in scores) > 3990 > 2 * len(scores[0].bfloat16().unique())


def test_evaluation_holds_no_more_scores_than_its_budget(tmp_path):
    """Users x items would be 15 times the budget; neither ranking, masking nor lists may ask for it."""
    (tmp_path / "s.txt").write_text("".join(f"u{n} i{n} i{n + 1} i{n + 2} i{n + 3}\n" for n in range(600)))
    data = Sequences(str(tmp_path / "s.txt"))
    model = GRU4Rec(data.num_items, d_model=4, d_hidden=4)
    whole, parts = (NextItem(model, k=[10, 5], lists=True) for _ in range(2))
    parts.budget = 4 * data.num_items * 40
    batch = data.collate(data.split("test")[:])
    with torch.no_grad():
        for task in (whole, parts):
            task.setup(data)
            task.eval().ranks = []
        whole.evaluation_step(batch)
        with Largest() as seen:
            parts.evaluation_step(batch)
    assert whole.ranked.compute() == pytest.approx(parts.ranked.compute())
    assert torch.equal(whole.ranks[0][1], torch.cat([rank for _, rank, _ in parts.ranks]))
    assert seen.size <= parts.budget < 4 * 600 * data.num_items


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operator gave."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, list | tuple) else [out]:
            if isinstance(t, torch.Tensor):
                self.size = max(self.size, t.numel() * t.element_size())
        return out


def test_ten_million_items_are_ranked_one_user_at_a_time_if_need_be():
    items = torch.zeros(10_000_000, 1)
    items[7], items[5] = 2.0, 1.0
    users = torch.ones(2, 1)
    ranks = []
    for block in user_blocks(2, len(items), 64 << 20):
        scores = all_scores(users[block], items)
        assert scores.nbytes <= 64 << 20
        ranks += rank_of(scores, torch.tensor([5])).tolist()
    assert ranks == [2, 2]


def test_items_without_training_can_be_asked_for(tmp_path):
    (tmp_path / "s.txt").write_text("u a b c z\nv b c a b\n")
    data = Sequences(str(tmp_path / "s.txt"))
    task = NextItem(GRU4Rec(data.num_items, d_model=4, d_hidden=4), lists=True).eval()
    task.setup(data)
    assert data.train_counts()[data.item_ids.index("z")] == 0
    with torch.no_grad():
        out = task.evaluation_step(data.collate(data.split("test")[:]))
    assert out["loss"].isfinite() and all(map(math.isfinite, task.ranked.compute().values()))


# ---------------------------------------------------------------------------------------------- RecBole
@needs_recbole
@pytest.mark.parametrize("masked", [False, True])
def test_same_metrics_as_recboles_evaluator_on_the_same_scores(masked):
    from seqgraph_mamba4rec.recbole_adapter import evaluate_scores

    g = torch.Generator().manual_seed(4)
    scores = torch.randn(400, 60, generator=g)
    target = torch.randint(60, (400,), generator=g)
    # Histories that do not hold the target: RecBole has no notion of a right item that is taken out.
    rows = [torch.randperm(60, generator=g)[:12] for _ in range(400)]
    seen = TokenStream.from_ragged([r[r != t] for r, t in zip(rows, target)])
    for k in (1, 5, 10):
        metrics = Metrics([k])
        metrics.update(scores.clone(), target, seen)
        theirs = evaluate_scores(scores, target, seen=seen if masked else None, k=k)
        suffix = "-unseen" if masked else ""
        ours = {name: metrics.compute()[name + suffix] for name in theirs}
        assert ours == pytest.approx(theirs, abs=1e-9)
        assert 0 < theirs[f"HR@{k}"] < 1


@needs_recbole
def test_recbole_leaves_nothing_behind():
    """Importing its models turns autograd's anomaly detection on, which slows down every backward pass after it."""
    from seqgraph_mamba4rec.recbole_adapter import repaired

    sys.modules.pop("recbole.model.sequential_recommender.sine", None)
    with repaired():
        importlib.import_module("recbole.model.sequential_recommender.sine")
        assert torch.is_anomaly_enabled()
    assert not torch.is_anomaly_enabled() and not hasattr(np, "float_") and "ray" not in sys.modules


@needs_recbole
def test_same_split_as_recboles_sequential_loader(tmp_path, monkeypatch):
    """Histories, targets and item numbers of every ml-100k user, with the ties of 44 % of them."""
    from seqgraph_mamba4rec.recbole_adapter import repaired

    monkeypatch.chdir(tmp_path)
    with repaired():
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.model.sequential_recommender.gru4rec import GRU4Rec

        options = {
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "train_neg_sample_args": None,
            "MAX_ITEM_LIST_LENGTH": 50,
            "eval_batch_size": 4096,
            "state": "ERROR",
            "checkpoint_dir": str(tmp_path),
        }
        config = Config(model=GRU4Rec, dataset="ml-100k", config_dict=options)
        dataset = create_dataset(config)
        loaders = dict(zip(("train", "valid", "test"), data_preparation(config, dataset), strict=True))
    ours = MovieLens100K(max_history=50, examples="prefixes", order="recbole")
    assert dataset.field2id_token["item_id"][1:].tolist() == ours.item_ids
    for split in ("train", "valid", "test"):
        rows = loaders[split].dataset.inter_feat
        columns = (rows["item_id_list"], rows["item_length"].tolist(), rows["item_id"].tolist())
        theirs = sorted((*seq[:n].tolist(), target) for seq, n, target in zip(*columns, strict=True))
        mine = sorted((*(e.history + 1).tolist(), int(e.target[-1]) + 1) for e in ours.split(split))
        assert len(theirs) == {"train": 97_171, "valid": 943, "test": 943}[split]
        assert mine == theirs
    # Exact timestamps put some neighbours in another order: that, and nothing else, is what RecBole's rounding does.
    exact = MovieLens100K(max_history=50).split("test")
    moved = sum(not np.array_equal(a.history, b.history) for a, b in zip(exact, ours.split("test"), strict=True))
    assert 0 < moved < 0.05 * len(exact)
