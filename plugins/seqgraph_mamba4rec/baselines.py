"""What needs no training: the popular items, and the neighbours of a user's items; ranked as every model is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from seqgraph.train.task import Split
from seqgraph_mamba4rec.histories import HistoryBatch, HistoryDataset
from seqgraph_mamba4rec.metrics import Metrics
from seqgraph_mamba4rec.ranking import user_blocks

Scorer = Callable[[HistoryBatch], Tensor]
"""From a batch of S histories to scores of all items, (S, V), which may be overwritten."""

_ITEMS_AT_ONCE = 512


def popularity(data: HistoryDataset) -> Scorer:
    """The list that is the same for everyone: the items by their training events."""
    counts = data.train_counts().float()
    return lambda batch: counts.repeat(len(batch.target), 1)


class ItemKNN:
    """Items like those of the history: cosine of the sets of users who met them.

    The score of item j is the sum over the history's items i of decay^age * n_ij / (sqrt(n_i n_j) + shrink), over
    the ``neighbours`` most similar j of each i; n counts training users, and the last item has age 0.

    Args:
        data: whose training events are counted.
        neighbours: kept for each item.
        shrink: added to the denominator, against the luck of rare items.
        decay: weight of an item against that of the one after it.
    """

    def __init__(self, data: HistoryDataset, neighbours: int = 100, shrink: float = 10.0, decay: float = 0.9) -> None:
        self.decay, size = decay, data.num_items
        users, items = data.train_events()
        ones = np.ones(len(users), dtype=np.float32)
        met = sparse.csc_matrix((ones, (users, items)), shape=(data.num_users, size))
        met.data[:] = 1  # an item met twice is met
        root = np.sqrt(np.asarray(met.sum(0)).ravel())
        keep, rows, columns, values = min(neighbours, size - 1), [], [], []
        for start in range(0, size, _ITEMS_AT_ONCE):
            block = np.arange(start, min(start + _ITEMS_AT_ONCE, size))
            alike = (met[:, block].T @ met).toarray() / (root[block, None] * root + shrink + 1e-12)
            alike[np.arange(len(block)), block] = 0
            best = np.argpartition(-alike, keep - 1, axis=1)[:, :keep]
            rows.append(np.repeat(block, keep))
            columns.append(best.ravel())
            values.append(np.take_along_axis(alike, best, 1).ravel())
        place = (np.concatenate(rows), np.concatenate(columns))
        self.alike = sparse.csr_matrix((np.concatenate(values), place), shape=(size, size))

    def __call__(self, batch: HistoryBatch) -> Tensor:
        """Scores (S, V) of a batch on the CPU."""
        stream = batch.stream
        age = stream.lengths[stream.segment] - 1 - stream.position
        weight = (self.decay**age).float().numpy()
        shape = (stream.num_segments, self.alike.shape[0])
        past = sparse.csr_matrix((weight, (stream.segment.numpy(), stream.values.numpy())), shape=shape)
        return torch.from_numpy((past @ self.alike).toarray().astype(np.float32))


def judge(
    score: Scorer,
    data: HistoryDataset,
    split: Split = "test",
    *,
    k: int | Sequence[int] = 10,
    lists: bool = True,
    budget: int = 256 << 20,
) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
    """Rank all items for every user of a split.

    Args:
        score: gives the scores.
        data: the histories.
        split: "valid" or "test".
        k: lengths of the lists.
        lists: coverage and novelty as well.
        budget: bytes of scores held at once.

    Returns:
        The metrics by name, and the ranks among all and among unseen items, (n,) int64 each, in the split's order.
    """
    metrics = Metrics((k,) if isinstance(k, int) else k, data if lists else None)
    examples, ranks = data.split(split), []
    for block in user_blocks(len(examples), data.num_items, budget):
        batch = data.collate(examples[block])
        if batch.seen is not None:
            ranks.append(metrics.update(score(batch), batch.target, batch.seen))
    every, unseen = zip(*ranks, strict=True)
    return metrics.compute(), (torch.cat(every), torch.cat(unseen))
