"""Full ranking over all items: ranks of the right items, and the metrics made of them and of the lists.

Ties are settled against the model: an item that scores the same as the right one counts as ranked before it, and
so does one whose score is NaN. A model that gives every item one score therefore gets zero, not what the numbering
of the items happens to give.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from seqgraph.stream import TokenStream

Kind = Literal["HR", "NDCG", "MRR"]
KINDS: tuple[Kind, ...] = ("HR", "NDCG", "MRR")


def rank_of(scores: Tensor, target: Tensor) -> Tensor:
    """The place of each row's right item, from 1; ties and NaN count against it.

    Args:
        scores: (S, V).
        target: (S,) int64.

    Returns:
        (S,) int64.
    """
    below = scores < scores.gather(1, target[:, None])
    # Counted as bytes: on a CPU half the time of counting bools.
    return scores.shape[1] - below.view(torch.uint8).sum(1)


def without_seen(scores: Tensor, seen: TokenStream) -> Tensor:
    """A copy of the scores (S, V) with minus infinity at the items that each user (segment) has seen."""
    return without_seen_(scores.clone(), seen)


def without_seen_(scores: Tensor, seen: TokenStream) -> Tensor:
    """:func:`without_seen` in place."""
    scores[seen.segment, seen.values] = -math.inf
    return scores


def user_blocks(num_users: int, num_items: int, budget: int) -> list[slice]:
    """Slices of users whose fp32 scores over all items fit in ``budget`` bytes, at least one user each."""
    rows = max(1, budget // (4 * num_items))
    return [slice(start, min(start + rows, num_users)) for start in range(0, num_users, rows)]


def all_scores(users: Tensor, items: Tensor) -> Tensor:
    """Inner products (S, V) of users (S, D) and items (V, D), fp32 or wider whatever autocast says.

    In bf16 a thousand items share one score, and every tie counts against the model.
    """
    wide = torch.promote_types(items.dtype, torch.float32)
    with torch.autocast(users.device.type, enabled=False):
        return users.to(wide) @ items.to(wide).T


def gain(ranks: Tensor, kind: Kind, k: int) -> Tensor:
    """What a list of k items is worth to each user, (S,) fp64, from the right item's rank r, (S,) int64 from 1.

    HR: 1. NDCG (one right item): 1 / log2(r + 1). MRR: 1 / r. Zero beyond k.
    """
    r = ranks.double()
    worth = {"HR": torch.ones_like(r), "NDCG": 1 / torch.log2(r + 1), "MRR": 1 / r}[kind]
    return torch.where(ranks <= k, worth, torch.zeros_like(worth))


class RankMetric(Metric):
    """The mean over users of :func:`gain`.

    Args:
        kind: "HR", "NDCG" or "MRR".
        k: length of the list.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, kind: Kind, k: int = 10) -> None:
        super().__init__()
        self.kind, self.k = kind, k
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ranks: Tensor) -> None:
        """Add users by their ranks, (S,) int64 from 1."""
        self.total += gain(ranks, self.kind, self.k).sum()
        self.count += len(ranks)

    def compute(self) -> Tensor:
        """The mean so far, scalar fp64; zero before any user."""
        return self.total / self.count.clamp_min(1)


class Coverage(Metric):
    """The share of all items that stand in at least one user's list.

    Args:
        k: length of the lists.
        num_items: V.
    """

    full_state_update = False
    higher_is_better = True
    shown: Tensor

    def __init__(self, k: int, num_items: int) -> None:
        super().__init__()
        self.k = k
        self.add_state("shown", torch.zeros(num_items, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, lists: Tensor, valid: Tensor) -> None:
        """Add users by their lists (S, >= k) int64, best first, and which places are filled, bool."""
        items, filled = lists[:, : self.k].flatten(), valid[:, : self.k].flatten()
        self.shown.index_add_(0, items, filled.long())

    def compute(self) -> Tensor:
        """The share so far, scalar fp64."""
        return (self.shown > 0).double().mean()


class Novelty(Metric):
    """The mean self-information of what is shown: -log2(users who met the item in training / users), over each list,
    then over users; an item that nobody met counts as met by one.

    Args:
        k: length of the lists.
        users: how many users met each item in training, (V,).
        num_users: users in training.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor
    information: Tensor

    def __init__(self, k: int, users: Tensor, num_users: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("information", -torch.log2(users.clamp_min(1).double() / num_users), persistent=False)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, lists: Tensor, valid: Tensor) -> None:
        """Add users by their lists (S, >= k) int64, best first, and which places are filled, bool."""
        filled = valid[:, : self.k]
        worth = torch.where(filled, self.information[lists[:, : self.k]], 0.0).sum(1)
        self.total += (worth / filled.sum(1).clamp_min(1)).sum()
        self.count += len(lists)

    def compute(self) -> Tensor:
        """The mean so far, scalar fp64; zero before any user."""
        return self.total / self.count.clamp_min(1)
