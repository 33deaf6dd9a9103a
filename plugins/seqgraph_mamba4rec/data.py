"""Data sets of user histories, leave-one-out: the last event is the test, the one before it the validation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import DataError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.history import histories
from seqgraph.train.task import Dataset, Split
from seqgraph_mamba4rec.reading import Events, find_inter, read_inter, read_text, read_titles

Duplicates = Literal["keep", "first", "last", "error"]
Examples = Literal["histories", "prefixes"]


@dataclass(frozen=True)
class Example:
    """One history and what comes after it.

    Attributes:
        history: item ids, (L,) int64, oldest first.
        target: the items that follow the last len(target) positions of the history, (1,) or (L,) int64.
        seen: all items of the user before the target, (n,) int64; None in training.
    """

    history: np.ndarray
    target: np.ndarray
    seen: np.ndarray | None

    def __len__(self) -> int:
        return len(self.history)


@dataclass(frozen=True)
class HistoryBatch:
    """Packed histories and what to predict where.

    Attributes:
        stream: item ids (T,), one segment a history; ``source`` is the item id.
        at: the tokens that predict, (P,) int64.
        target: the right item of each, (P,) int64.
        seen: what each user has seen, item ids packed, one segment a history; None in training.
    """

    stream: TokenStream
    at: Tensor
    target: Tensor
    seen: TokenStream | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> HistoryBatch:
        """Move every field to a device."""
        seen = None if self.seen is None else self.seen.to(device, non_blocking)
        at, target = (t.to(device, non_blocking=non_blocking) for t in (self.at, self.target))
        return HistoryBatch(self.stream.to(device, non_blocking), at, target, seen)

    def pin_memory(self) -> HistoryBatch:
        """Copy every field to page-locked memory."""
        seen = None if self.seen is None else self.seen.pin_memory()
        return HistoryBatch(self.stream.pin_memory(), self.at.pin_memory(), self.target.pin_memory(), seen)


class ExampleList(Sequence[Example]):
    """Examples cut from the flat events on demand.

    Args:
        items: item ids of all users, user by user in time order, (N,) int64.
        start: where each history begins, (n,) int64.
        stop: where it ends, (n,) int64, exclusive; the item at ``stop`` is its last target.
        first: where the user's events begin, (n,) int64, when what was seen is needed.
        every: whether every position of the history predicts, or only its last.
    """

    def __init__(
        self, items: np.ndarray, start: np.ndarray, stop: np.ndarray, first: np.ndarray | None, every: bool
    ) -> None:
        self.items, self.start, self.stop, self.first, self.every = items, start, stop, first, every

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        a, b = int(self.start[index]), int(self.stop[index])
        target = self.items[a + 1 : b + 1] if self.every else self.items[b : b + 1]
        seen = None if self.first is None else self.items[int(self.first[index]) : b]
        return Example(self.items[a:b], target, seen)

    def lengths(self) -> list[int]:
        """Tokens of each history."""
        return (self.stop - self.start).tolist()


class HistoryDataset(Dataset):
    """Events as histories, split leave-one-out. Subclasses only read.

    A user's events are sorted by time; ties keep the order of the file. The last event is the test target and the
    last but one the validation target; a user with two events has only the former, a user with one is for training
    only (all of it as in RecBole, and as in :func:`seqgraph.tokenize.leave_one_out`). Item ids are numbered from 0
    by first appearance in the file (RecBole's ids minus one).

    Args:
        events: what was read.
        max_history: items a prediction may look at. Training histories longer than that are cut into consecutive
            windows, counted from the end, so that each event is still predicted once.
        examples: "histories" predicts the next item at every position; "prefixes" makes an example of every prefix
            and predicts at its last position only, as RecBole's augmentation does (the faithful setting).
        k_core: drop users and items with fewer events, again and again until none is left; 0 for no filter.
        duplicates: a user meeting an item again: "keep" all events, only the "first" or the "last", or "error".
        titles: raw item id to title.
    """

    def __init__(
        self,
        events: Events,
        *,
        max_history: int | None = 50,
        examples: Examples = "histories",
        k_core: int = 0,
        duplicates: Duplicates = "keep",
        titles: dict[str, str] | None = None,
    ) -> None:
        events = _core(_without_duplicates(events, duplicates), k_core)
        self.settings = {
            "max_history": max_history, "examples": examples, "k_core": k_core, "duplicates": duplicates
        }  # fmt: skip
        self.max_history, self.examples = max_history, examples
        self.item_ids, self.user_ids = events.item_ids, events.user_ids
        self.titles = titles or {}
        columns = {"user": events.users, "item": events.items, "time": events.times}
        stream = histories(columns, num_users=len(self.user_ids))
        self.items = stream.values.numpy()
        self.borders = stream.cu_seqlens.numpy().astype(np.int64)
        counts = np.diff(self.borders)
        if not (counts >= 3).any():
            raise DataError(
                f"{events.path}: no user has three events, so there is nothing to hold out", "lower data.k_core"
            )
        self._splits: dict[str, ExampleList] = {}

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.item_ids)

    @property
    def num_users(self) -> int:
        """Users, those with a single event included."""
        return len(self.user_ids)

    def split(self, name: Split) -> ExampleList:
        """The examples of "train", "valid" or "test"."""
        if name not in self._splits:
            self._splits[name] = self._train() if name == "train" else self._held_out(name)
        return self._splits[name]

    def lengths(self, name: Split) -> list[int]:
        """Tokens of each example."""
        return self.split(name).lengths()

    def _train_stop(self) -> np.ndarray:
        """Where each user's training events end."""
        counts = np.diff(self.borders)
        return self.borders[1:] - (counts > 1) - (counts > 2)

    def _train(self) -> ExampleList:
        first, last = self.borders[:-1], self._train_stop() - 1
        inputs = np.maximum(last - first, 0)
        limit = self.max_history or int(max(inputs.max(), 1))
        step = 1 if self.examples == "prefixes" else limit
        windows = -(-inputs // step)
        user = np.repeat(np.arange(len(inputs)), windows)
        # The number of each window within its user, from the last one back.
        back = np.arange(len(user)) - np.repeat(windows.cumsum() - windows, windows)
        stop = last[user] - back * step
        start = np.maximum(first[user], stop - limit)
        return ExampleList(self.items, start, stop, None, every=self.examples == "histories")

    def _held_out(self, name: Split) -> ExampleList:
        users = np.flatnonzero(np.diff(self.borders) >= (2 if name == "test" else 3))
        first, stop = self.borders[users], self.borders[users + 1] - (1 if name == "test" else 2)
        start = np.maximum(first, stop - self.max_history) if self.max_history else first
        return ExampleList(self.items, start, stop, first, every=False)

    def collate(self, examples: list[Example]) -> HistoryBatch:
        """Pack some examples."""
        return pack(examples)

    def train_counts(self) -> Tensor:
        """How often each item occurs in the training events, (V,) int64."""
        keep = np.zeros(len(self.items), dtype=bool)
        for start, stop in zip(self.borders[:-1], self._train_stop(), strict=True):
            keep[start:stop] = True
        return torch.from_numpy(np.bincount(self.items[keep], minlength=self.num_items))

    def model_defaults(self) -> dict[str, Any]:
        """The number of items."""
        return {"num_items": self.num_items}

    def assets(self) -> dict[str, Any]:
        """Raw item ids by row, titles, and how much history the model was trained on."""
        known = {i: self.titles[i] for i in self.item_ids if i in self.titles}
        return {"item_ids": self.item_ids, "titles": known, "max_history": self.max_history}

    def fingerprint(self) -> str:
        """16 hex digits of the histories in their final order, the raw ids, and the settings."""
        digest = hashlib.sha256(json.dumps([self.settings, self.item_ids, self.user_ids]).encode())
        digest.update(self.items.astype("<i8").tobytes())
        digest.update(self.borders.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def pack(examples: Sequence[Example]) -> HistoryBatch:
    """One batch of some examples, without padding."""
    lengths = torch.tensor([len(e) for e in examples])
    items = torch.from_numpy(np.concatenate([e.history for e in examples]))
    stream = TokenStream.from_lengths(items, lengths, source=items)
    target = TokenStream.from_ragged([torch.from_numpy(e.target) for e in examples])
    # Target j of an example with n targets belongs to the history's position L - n + j.
    shift = stream.cu_seqlens[1:].long() - target.cu_seqlens[1:].long()
    at = torch.arange(target.num_tokens) + shift[target.segment]
    seen = None
    if examples[0].seen is not None:
        seen = TokenStream.from_ragged([torch.from_numpy(e.seen) for e in examples])
    return HistoryBatch(stream, at, target.values, seen)


class MovieLens100K(HistoryDataset):
    """MovieLens-100k (Harper and Konstan 2015): 943 users, 1,682 films, 100,000 ratings, never shipped here.

    Args:
        root: a folder with ``ml-100k.inter`` (and ``ml-100k.item`` for titles), gzip too. None takes the copy in
            the installed RecBole, which is not imported for that.
        order: "timestamp", or "recbole" for the histories that RecBole's rounding of the timestamps gives.
        **options: see :class:`HistoryDataset`.

    Raises:
        DataError: when there is no such file, or RecBole is not installed.
    """

    def __init__(
        self, root: str | None = None, order: Literal["timestamp", "recbole"] = "timestamp", **options: Any
    ) -> None:
        path = find_inter(Path(root) if root else _installed_ml_100k())
        super().__init__(_read(path, order), titles=_titles_beside(path, "movie_title"), **options)


class RecBoleInter(HistoryDataset):
    """Any RecBole atomic file.

    Args:
        root: the .inter file (gzip too), or the folder that holds it.
        order: "timestamp"; "recbole" for the histories that RecBole's rounding of the timestamps gives; or "file"
            when each user's lines are in time order.
        user_field: name of the user column.
        item_field: name of the item column.
        time_field: name of the time column.
        title_field: the column of the .item file beside it that names an item.
        **options: see :class:`HistoryDataset`.

    Raises:
        DataError: naming file and line.
    """

    def __init__(
        self,
        root: str | None = None,
        order: Literal["timestamp", "recbole", "file"] = "timestamp",
        user_field: str = "user_id",
        item_field: str = "item_id",
        time_field: str = "timestamp",
        title_field: str | None = None,
        **options: Any,
    ) -> None:
        path = find_inter(_given(root, "recbole-inter"))
        events = _read(path, order, user_field=user_field, item_field=item_field, time_field=time_field)
        titles = _titles_beside(path, title_field) if title_field else None
        super().__init__(events, titles=titles, **options)


class Sequences(HistoryDataset):
    """Histories in a text file: SASRec's, S3-Rec's and LRURec's formats.

    Args:
        root: the file; ``.gz`` too.
        layout: "histories" (``user item item ...``) or "pairs" (``user item``).
        **options: see :class:`HistoryDataset`.

    Raises:
        DataError: naming file and line.
    """

    def __init__(
        self, root: str | None = None, layout: Literal["histories", "pairs"] = "histories", **options: Any
    ) -> None:
        super().__init__(read_text(_given(root, "sequences"), layout=layout), **options)


def _read(path: Path, order: Literal["timestamp", "recbole", "file"], **fields: str) -> Events:
    events = read_inter(path, order="file" if order == "file" else "timestamp", **fields)
    if order == "recbole" and events.times is not None:
        from seqgraph_mamba4rec.recbole_adapter import rounded_times

        events = replace(events, times=rounded_times(events.times))
    return events


def _given(root: str | None, name: str) -> Path:
    if not root:
        raise DataError(f"the data set {name} needs a file", "pass --data-root FILE, or set data.root")
    return Path(root)


def _installed_ml_100k() -> Path:
    from seqgraph_mamba4rec.recbole_adapter import ml_100k_folder

    return ml_100k_folder()


def _titles_beside(inter: Path, title_field: str) -> dict[str, str]:
    stem = inter.name.removesuffix(".gz").removesuffix(".inter")
    found = [p for suffix in (".item", ".item.gz") if (p := inter.parent / f"{stem}{suffix}").is_file()]
    return read_titles(found[0], title_field) if found else {}


def _without_duplicates(events: Events, policy: Duplicates) -> Events:
    if policy == "keep":
        return events
    time = np.arange(len(events.users)) if events.times is None else events.times
    order = np.lexsort((time, events.users))
    pair = events.users[order] * len(events.item_ids) + events.items[order]
    _, place = np.unique(pair if policy != "last" else pair[::-1], return_index=True)
    if policy == "error":
        again = np.setdiff1d(np.arange(len(pair)), place)
        if len(again):
            e = order[again[0]]
            user, item = events.user_ids[events.users[e]], events.item_ids[events.items[e]]
            raise DataError(
                f"{events.path}: user {user!r} meets item {item!r} more than once ({len(again)} such events)",
                "set data.duplicates to keep, first or last",
            )
        return events
    keep = np.zeros(len(pair), dtype=bool)
    keep[order[place if policy == "first" else len(pair) - 1 - place]] = True
    return events.select(keep)


def _core(events: Events, k: int) -> Events:
    while k > 1:
        rare_user = np.bincount(events.users) < k
        rare_item = np.bincount(events.items) < k
        keep = ~(rare_user[events.users] | rare_item[events.items])
        if keep.all():
            break
        if not keep.any():
            raise DataError(f"{events.path}: nothing is left of the {k}-core", "lower data.k_core")
        events = events.select(keep)
    return events
