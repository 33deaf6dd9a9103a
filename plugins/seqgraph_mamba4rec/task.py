"""The task: predict the next item of a history; judged by full ranking over all items."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqgraph.stream import TokenStream
from seqgraph.train.task import Dataset, Split, Task
from seqgraph_mamba4rec.data import HistoryBatch, HistoryDataset
from seqgraph_mamba4rec.loss import softmax_loss
from seqgraph_mamba4rec.ranking import KINDS, RankMetric, rank_of, user_blocks, without_seen


class NextItem(Task):
    """Softmax loss over all items; HR, NDCG and MRR at k over the ranking of all items, in two protocols.

    ``HR@10``: every item is ranked, those that the user has seen among them (RecBole's protocol for sequential
    models). ``HR@10-unseen``: the seen items are taken out of the ranking first (SASRec+, gSASRec, HSTU). The two
    answer different questions and must not stand in one column.

    Args:
        model: encodes a stream of item ids to vectors (T, D) and has an ``item_embedding``.
        k: length of the lists that are judged.
        select_by: the ranking whose NDCG on the validation events picks the best epoch: of "all" items, or of the
            "unseen" ones.
        memory_mib: largest block of scores held at once, MiB.
    """

    mode = "max"

    def __init__(
        self, model: nn.Module, k: int = 10, select_by: Literal["all", "unseen"] = "all", memory_mib: int = 256
    ) -> None:
        super().__init__(model)
        self.monitor = f"NDCG@{k}" if select_by == "all" else f"NDCG@{k}-unseen"
        self.budget = memory_mib << 20
        self.k = k
        self.ranked = Metrics(k)

    def training_step(self, batch: HistoryBatch) -> dict[str, Tensor]:
        """Mean cross-entropy over the batch's predictions."""
        hidden = self.model(batch.stream).values[batch.at]  # (P, D)
        loss = softmax_loss(hidden, self._items(), batch.target, budget=self.budget)
        return {"loss": loss, "size": torch.tensor(len(batch.target))}

    def evaluation_step(self, batch: HistoryBatch) -> dict[str, Tensor]:
        """Rank every item for every user of the batch, in blocks of users; returns the mean cross-entropy."""
        users = self.model(batch.stream).values[batch.at]  # (S, D)
        items, seen = self._items(), batch.seen
        if seen is None:
            raise ValueError("a training batch cannot be evaluated: it does not say what the users have seen")
        total = users.new_zeros((), dtype=torch.float64)
        for block in user_blocks(len(users), len(items), self.budget):
            scores = (users[block] @ items.T).float()  # (block, V)
            target = batch.target[block]
            total += F.cross_entropy(scores, target, reduction="sum")
            self.ranked.update(scores, target, seen[block])
        return {"loss": total / max(1, len(users)), "size": torch.tensor(len(users))}

    def _items(self) -> Tensor:
        """The item vectors that the softmax is tied to, (V, D)."""
        return cast(nn.Embedding, self.model.item_embedding).weight

    def metrics(self) -> dict[str, RankMetric]:
        """``{HR,NDCG,MRR}@k`` and ``{HR,NDCG,MRR}@k-unseen``."""
        return self.ranked.by_name()

    def baseline(self, data: Dataset) -> dict[str, float]:
        """Popularity in the training events, by the same evaluator, on the test split."""
        return popularity(data, k=self.k, budget=self.budget)


class Metrics(nn.Module):
    """The six metrics by name, both protocols updated from the same scores.

    Args:
        k: length of the lists that are judged.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.of = nn.ModuleDict(
            {f"{kind}@{k}{suffix}": RankMetric(kind, k) for suffix in ("", "-unseen") for kind in KINDS}
        )

    def by_name(self) -> dict[str, RankMetric]:
        """Name to metric."""
        return {name: metric for name, metric in self.of.items() if isinstance(metric, RankMetric)}

    def update(self, scores: Tensor, target: Tensor, seen: TokenStream) -> None:
        """Add some users: scores (S, V), right items (S,), and per user the items seen."""
        every, unseen = rank_of(scores, target), rank_of(without_seen(scores, seen), target)
        for name, metric in self.by_name().items():
            metric.update(unseen if name.endswith("-unseen") else every)

    def compute(self) -> dict[str, float]:
        """Name to value."""
        return {name: float(metric.compute()) for name, metric in self.by_name().items()}


def popularity(data: Dataset, split: Split = "test", *, k: int = 10, budget: int = 256 << 20) -> dict[str, float]:
    """The metrics of the list that is the same for everyone: the items by their training events."""
    if not isinstance(data, HistoryDataset):
        return {}
    counts = data.train_counts().float()
    examples, metrics = data.split(split), Metrics(k)
    for block in user_blocks(len(examples), len(counts), budget):
        batch: Any = data.collate(examples[block])
        metrics.update(counts.expand(len(batch.target), -1), batch.target, batch.seen)
    return metrics.compute()
