"""Full ranking over all items: ranks of the right items, top-k lists, and the metrics made of ranks.

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
    own = scores.gather(1, target[:, None])  # (S, 1)
    return (~(scores < own)).sum(1)


def without_seen(scores: Tensor, seen: TokenStream) -> Tensor:
    """A copy of the scores (S, V) with minus infinity at the items that each user (segment) has seen."""
    masked = scores.clone()
    masked[seen.segment, seen.values] = -math.inf
    return masked


def user_blocks(num_users: int, num_items: int, budget: int) -> list[slice]:
    """Slices of users whose fp32 scores over all items fit in ``budget`` bytes, at least one user each."""
    rows = max(1, budget // (4 * num_items))
    return [slice(start, min(start + rows, num_users)) for start in range(0, num_users, rows)]


def top_k(
    users: Tensor, items: Tensor, k: int, *, seen: TokenStream | None = None, budget: int = 256 << 20
) -> tuple[Tensor, Tensor]:
    """Exact top-k over all items by inner product, in blocks of users.

    Args:
        users: (S, D).
        items: (V, D).
        k: length of the lists, cut to V.
        seen: per user, the items to leave out.
        budget: bytes of scores held at once.

    Returns:
        scores (S, k), minus infinity where too few items are left, and items (S, k) int64.
    """
    k = min(k, len(items))
    values, indices = [users.new_empty((0, k))], [torch.empty((0, k), dtype=torch.int64, device=users.device)]
    for block in user_blocks(len(users), len(items), budget):
        scores = users[block] @ items.T
        if seen is not None:
            scores = without_seen(scores, seen[block])
        best = scores.topk(k, dim=1)
        values.append(best.values)
        indices.append(best.indices)
    return torch.cat(values), torch.cat(indices)


class RankMetric(Metric):
    """The mean over users of a function of the right item's rank r; zero beyond k.

    HR: 1. NDCG (one right item): 1 / log2(r + 1). MRR: 1 / r.

    Args:
        kind: which of the three.
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
        r = ranks.double()
        gain = {"HR": torch.ones_like(r), "NDCG": 1 / torch.log2(r + 1), "MRR": 1 / r}[self.kind]
        self.total += torch.where(ranks <= self.k, gain, torch.zeros_like(gain)).sum()
        self.count += len(ranks)

    def compute(self) -> Tensor:
        """The mean so far, scalar fp64; zero before any user."""
        return self.total / self.count.clamp_min(1)
