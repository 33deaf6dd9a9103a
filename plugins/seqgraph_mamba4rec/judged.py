"""Each user's rank of the right item, of runs and of baselines: made, kept beside the run, and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqgraph.errors import CheckpointError, ConfigError, DataError
from seqgraph_mamba4rec.bootstrap import Interval, paired_bootstrap
from seqgraph_mamba4rec.histories import HistoryDataset
from seqgraph_mamba4rec.ranking import KINDS, gain


@dataclass(frozen=True)
class Ranks:
    """The ranks that one system gives.

    Attributes:
        split: "valid" or "test".
        data: the data set's fingerprint.
        weights: a hash of the weights they were made with; what made them, for a baseline.
        users: raw user id of each prediction.
        items: raw id of the right item of each.
        rank: its rank among all items, from 1.
        rank_unseen: among the items that the user has not seen.
        metrics: of all of it, by name.
    """

    split: str
    data: str
    weights: str
    users: list[str]
    items: list[str]
    rank: list[int]
    rank_unseen: list[int]
    metrics: dict[str, float]

    def save(self, folder: Path) -> Path:
        """Write ``ranks-SPLIT.json``; returns the file."""
        from seqgraph.train.checkpoint import write_file

        path = folder / f"ranks-{self.split}.json"
        write_file(path, json.dumps(asdict(self)) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path, split: str) -> Ranks | None:
        """Read what :meth:`save` wrote; None where there is nothing.

        Raises:
            CheckpointError: when the file is damaged.
        """
        path = folder / f"ranks-{split}.json"
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}", "delete it; it is made again") from None

    def worth(self, metric: str) -> np.ndarray:
        """Each prediction's share in a metric such as "NDCG@10" or "HR@5-unseen", (n,) fp64.

        Raises:
            ConfigError: for a name that is no such metric.
        """
        kind, _, rest = metric.partition("@")
        k = rest.removesuffix("-unseen")
        if kind not in KINDS or not k.isdigit() or int(k) < 1:
            raise ConfigError(
                f"there is no metric {metric!r} of users", "HR@10, NDCG@10 or MRR@10, with -unseen or not"
            )
        ranks = self.rank_unseen if rest.endswith("-unseen") else self.rank
        return gain(torch.tensor(ranks), kind, int(k)).numpy()


def ranks_of(data: HistoryDataset, split: str, found: Sequence[Any], weights: str, metrics: dict[str, float]) -> Ranks:
    """Ranks from (number of the user, right item's rank among all, among unseen items), tensors (n,) each."""
    user, every, unseen = found
    items = [data.item_ids[i] for i in data.items[getattr(data.cut, split)]]
    names = [data.user_ids[u] for u in user.tolist()]
    return Ranks(split, data.fingerprint(), weights, names, items, every.tolist(), unseen.tolist(), metrics)


def evaluate_users(
    run: Path,
    split: str = "test",
    *,
    k: Sequence[int] = (10,),
    accelerator: str = "auto",
    precision: str | None = None,
) -> tuple[Ranks, Path]:
    """Rank every item for every user of a split with a run's best weights, and keep the ranks beside them.

    Args:
        run: a run of one seed, or a checkpoint folder.
        split: "valid" or "test".
        k: lengths of the lists, for the metrics.
        accelerator: "auto", "cpu" or "gpu".
        precision: "32" or "bf16"; None for the training's.

    Returns:
        The ranks, and the file they are in.

    Raises:
        ConfigError: for another split, or a run that does not rank items.
    """
    from seqgraph.config import load_config
    from seqgraph.train import checkpoint
    from seqgraph.train.batching import token_batches
    from seqgraph.train.evaluation import evaluate_task
    from seqgraph.train.fit import device_type
    from seqgraph.train.run import build_data, build_task
    from seqgraph_mamba4rec.task import NextItem

    if split not in ("valid", "test"):
        raise ConfigError(f"there is nobody to judge in the split {split!r}", "the splits are valid and test")
    folder = checkpoint.find(run)
    saved = checkpoint.read_config(folder).get("run")
    if saved is None:
        raise CheckpointError(f"{folder} was not written by a run", "it has no data set to be evaluated on")
    extra = [f"train.accelerator={accelerator}", "train.strategy=auto", "train.devices=1"]
    extra += [f"task.k={list(k)}", "task.lists=true"] + ([f"train.precision={precision}"] if precision else [])
    config = load_config(saved, extra)
    data = build_data(config)
    if not isinstance(data, HistoryDataset):
        raise ConfigError(f"{run} is no run of a recommender", "its data set holds no histories")
    task, _ = build_task(config, data)
    assert isinstance(task, NextItem)
    checkpoint.load_state(task.model, folder / checkpoint.MODEL)
    task.ranks = []
    tokens = config.train.eval_tokens or config.train.max_tokens
    device = torch.device(device_type(config.train))
    loader = token_batches(data, split, tokens, max_items=config.train.max_items)  # type: ignore[arg-type]
    metrics = evaluate_task(task.to(device), loader, device=device, precision=config.train.precision)
    columns = [torch.cat(column).cpu() for column in zip(*task.ranks, strict=True)]
    ranks = ranks_of(data, split, columns, _digest(folder), metrics)
    return ranks, ranks.save(folder)


def stored_ranks(run: Path, split: str = "test", *, accelerator: str = "auto") -> list[Ranks]:
    """The ranks of a run, one of each seed, or of a baseline's folder; made where they are missing or old."""
    from seqgraph.train import checkpoint

    seeds = sorted(child for child in run.glob("seed-*") if child.is_dir()) if run.is_dir() else []
    if seeds:
        return [ranks for seed in seeds for ranks in stored_ranks(seed, split, accelerator=accelerator)]
    own = Ranks.load(run, split)
    if own is not None and not (run / checkpoint.MODEL).is_file():
        return [own]
    folder = checkpoint.find(run)
    kept = Ranks.load(folder, split)
    if kept is None or kept.weights != _digest(folder):
        kept = evaluate_users(folder, split, accelerator=accelerator)[0]
    return [kept]


def compare(a: list[Ranks], b: list[Ranks], metric: str, *, samples: int = 10_000, level: float = 0.95) -> Interval:
    """The difference of two systems, each the mean over its seeds, with a paired interval over users.

    Raises:
        DataError: when they were not asked for the same events.
    """
    first = a[0]
    for other in [*a[1:], *b]:
        if (first.users, first.items, first.split) != (other.users, other.items, other.split):
            raise DataError(
                f"not the same events are asked for: {len(first.users)} of data {first.data}, "
                f"{len(other.users)} of data {other.data}",
                "compare runs on the same file, filters, tie order and split",
            )
    means = [np.mean([ranks.worth(metric) for ranks in side], axis=0) for side in (a, b)]
    users = np.unique(first.users, return_inverse=True)[1]
    return paired_bootstrap(*means, users=users, samples=samples, level=level)


def _digest(folder: Path) -> str:
    from seqgraph.train import checkpoint

    with (folder / checkpoint.MODEL).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
