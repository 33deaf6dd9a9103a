"""All the metrics of one evaluation, both protocols updated from the same scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.histories import HistoryDataset
from seqgraph_mamba4rec.ranking import KINDS, Coverage, Novelty, RankMetric, rank_of, without_seen_

SUFFIXES = ("", "-unseen")


class Metrics(nn.Module):
    """HR, NDCG and MRR at each k by name, of all items and of the unseen ones; coverage and novelty beside them.

    Args:
        ks: lengths of the lists that are judged.
        data: knows the items and who met them in training; without it there is neither coverage nor novelty.
    """

    def __init__(self, ks: Sequence[int], data: HistoryDataset | None = None) -> None:
        super().__init__()
        self.longest = max(ks)
        self.of = nn.ModuleDict({f"{kind}@{k}{s}": RankMetric(kind, k) for s in SUFFIXES for k in ks for kind in KINDS})
        self.lists = nn.ModuleDict()
        if data is not None:
            met, users = data.train_users(), int((data.cut.train_stop > data.borders[:-1]).sum())
            for s in SUFFIXES:
                for k in ks:
                    self.lists[f"coverage@{k}{s}"] = Coverage(k, data.num_items)
                    self.lists[f"novelty@{k}{s}"] = Novelty(k, met, users)

    def by_name(self) -> dict[str, Metric]:
        """Name to metric."""
        return {name: m for group in (self.of, self.lists) for name, m in group.items() if isinstance(m, Metric)}

    def update(self, scores: Tensor, target: Tensor, seen: TokenStream) -> tuple[Tensor, Tensor]:
        """Add some users.

        Args:
            scores: (S, V); what the users have seen is overwritten in it.
            target: the right items, (S,) int64.
            seen: per user the items seen.

        Returns:
            The right items' ranks among all items, and among those not seen, (S,) int64 each.
        """
        every = self._add(scores, target, "")
        return every, self._add(without_seen_(scores, seen), target, "-unseen")

    def _add(self, scores: Tensor, target: Tensor, suffix: str) -> Tensor:
        ranks = rank_of(scores, target)
        for name, metric in self.of.items():
            if name.endswith("-unseen") == bool(suffix):
                metric.update(ranks)  # type: ignore[operator]
        if len(self.lists):
            best = scores.topk(min(self.longest, scores.shape[1]), dim=1)
            for name, metric in self.lists.items():
                if name.endswith("-unseen") == bool(suffix):
                    metric.update(best.indices, best.values > -torch.inf)  # type: ignore[operator]
        return ranks

    def compute(self) -> dict[str, float]:
        """Name to value."""
        return {name: float(metric.compute()) for name, metric in self.by_name().items()}
