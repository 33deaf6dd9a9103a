"""The best k of all items: exact by both backends, whatever the blocks."""

from __future__ import annotations

import pytest
import torch

from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.topk import ItemIndex, in_order

BACKENDS = ["torch", "faiss"]


def case(users=7, items=500, D=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    seen = [torch.randperm(items, generator=g)[: 30 * (i % 7)] for i in range(users)]
    return torch.randn(users, D, generator=g), torch.randn(items, D, generator=g), TokenStream.from_ragged(seen)


def sorted_whole(users, items, k, seen=None):
    """Every score in fp64, sorted in Python."""
    rows = []
    hidden = [set() for _ in users] if seen is None else [set(s.values.tolist()) for s in seen.unbind()]
    for scores, left_out in zip((users.double() @ items.double().T).tolist(), hidden, strict=True):
        rows.append(sorted((-s, i) for i, s in enumerate(scores) if i not in left_out)[:k])
    return rows


def index(items, backend, **options):
    if backend == "faiss":
        pytest.importorskip("faiss", reason="FAISS is not installed")
    return ItemIndex(items, backend=backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 10, 499, 500, 900])
@pytest.mark.parametrize("hide", [False, True])
def test_exact(backend, k, hide):
    users, items, seen = case()
    scores, found = index(items, backend).search(users, k, seen=seen if hide else None)
    assert scores.shape == found.shape == (7, min(k, 500)) and found.dtype == torch.int64
    for row_scores, row, expected in zip(
        scores.tolist(), found.tolist(), sorted_whole(users, items, k, seen if hide else None), strict=True
    ):
        given = [(i, s) for i, s in zip(row, row_scores, strict=True) if s > -torch.inf]
        assert [i for i, _ in given] == [i for _, i in expected]
        assert [s for _, s in given] == pytest.approx([-s for s, _ in expected], abs=1e-5)
        assert row_scores[len(given) :] == [-torch.inf] * (len(row) - len(given))


@pytest.mark.parametrize("budget", [40, 4 * 64 * 7, 4 * 500 * 3, 1 << 20])
def test_blocks_of_any_size_agree(budget):
    users, items, seen = case(users=150, seed=1)
    whole = ItemIndex(items).search(users, 12, seen=seen)
    blocks = ItemIndex(items, backend="torch", budget=budget).search(users, 12, seen=seen)
    assert torch.equal(blocks[1], whole[1])
    torch.testing.assert_close(blocks[0], whole[0])


def test_no_block_is_larger_than_the_budget(monkeypatch):
    users, items, _ = case(users=100, items=3000)
    largest = 0
    topk = torch.Tensor.topk

    def watched(self, *args, **kwargs):
        nonlocal largest
        largest = max(largest, 4 * self.numel())
        return topk(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", watched)
    ItemIndex(items, backend="torch", budget=1 << 15).search(users, 5)
    assert 0 < largest <= 1 << 15


@pytest.mark.parametrize("backend", BACKENDS)
def test_nobody_nothing_and_ties(backend):
    users, items, _ = case()
    scores, found = index(items, backend).search(users[:0], 5)
    assert scores.shape == found.shape == (0, 5)
    same = index(torch.ones(4, 3), backend).search(torch.ones(2, 3), 9)
    assert same[1].tolist() == [[0, 1, 2, 3]] * 2  # of equal scores the lower row first
    with pytest.raises(ValueError, match="k is 1 or more"):
        index(torch.ones(4, 3), backend).search(torch.ones(2, 3), 0)
    alone, other = in_order(torch.tensor([[1.0, 3.0, 1.0]]), torch.tensor([[9, 5, 2]]))
    assert alone.tolist() == [[3.0, 1.0, 1.0]] and other.tolist() == [[5, 2, 9]]


def test_who_searches(monkeypatch):
    items = torch.randn(10, 4)
    assert ItemIndex(items).backend == "torch"
    try:
        import faiss  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError):
            ItemIndex(items, backend="faiss")
    else:
        index, users = ItemIndex(items, faiss_from=10), torch.randn(20, 4)
        searched = []
        monkeypatch.setattr(
            ItemIndex, "_by_faiss", lambda self, users, *_: searched.append(len(users)) or (users, users)
        )
        for n in (1, 4, 5, 20):
            index.search(users[:n], 3)
        assert searched == [1, 4]
