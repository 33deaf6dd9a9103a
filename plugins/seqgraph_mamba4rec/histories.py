"""Data sets of user histories: filters, order, split, windows, and packed batches of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.history import histories
from seqgraph.train.task import Dataset
from seqgraph.train.task import Split as Part
from seqgraph_mamba4rec.reading import Events
from seqgraph_mamba4rec.splits import Split, Targets, by_time, by_user, leave_one_out

Duplicates = Literal["keep", "first", "last", "error"]
Examples = Literal["histories", "prefixes"]
Ties = Literal["file", "reversed", "item"]


@dataclass(frozen=True)
class HistoryBatch:
    """Packed histories and what to predict where.

    Attributes:
        stream: item ids (T,), one segment a history; ``source`` is the item id.
        at: the tokens that predict, (P,) int64.
        target: the right item of each, (P,) int64.
        seen: what each user has seen, item ids packed, one segment a history; None in training.
        user: the number of the user of each history, (S,) int64; None where nobody asks.
    """

    stream: TokenStream
    at: Tensor
    target: Tensor
    seen: TokenStream | None = None
    user: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> HistoryBatch:
        """Move every field to a device."""
        seen = None if self.seen is None else self.seen.to(device, non_blocking)
        move = partial(Tensor.to, device=device, non_blocking=non_blocking)
        user = None if self.user is None else move(self.user)
        return HistoryBatch(self.stream.to(device, non_blocking), move(self.at), move(self.target), seen, user)

    def pin_memory(self) -> HistoryBatch:
        """Copy every field to page-locked memory."""
        seen = None if self.seen is None else self.seen.pin_memory()
        user = None if self.user is None else self.user.pin_memory()
        return HistoryBatch(self.stream.pin_memory(), self.at.pin_memory(), self.target.pin_memory(), seen, user)


class Example:
    """One history of a list, and what comes after it. Cut from the flat events when asked.

    Args:
        of: the list.
        index: its place there.
    """

    __slots__ = ("index", "of")

    def __init__(self, of: ExampleList, index: int) -> None:
        self.of, self.index = of, index

    def __len__(self) -> int:
        return int(self.of.stop[self.index] - self.of.start[self.index])

    @property
    def history(self) -> np.ndarray:
        """Item ids, (L,) int64, oldest first."""
        return self.of.items[self.of.start[self.index] : self.of.stop[self.index]]

    @property
    def target(self) -> np.ndarray:
        """The items that follow the last len(target) positions of the history, (1,) or (L,) int64."""
        b = self.of.stop[self.index]
        return self.of.items[(self.of.start[self.index] if self.of.every else b - 1) + 1 : b + 1]

    @property
    def seen(self) -> np.ndarray | None:
        """All items of the user before the target, (n,) int64; None in training."""
        return None if self.of.first is None else self.of.items[self.of.first[self.index] : self.of.stop[self.index]]

    @property
    def user(self) -> int:
        """The user's number."""
        return int(self.of.user[self.index])


class ExampleList(Sequence[Example]):
    """Examples over the flat events.

    Args:
        items: item ids of all users, user by user in time order, (N,) int64.
        user: whose each history is, (n,) int64.
        start: where each history begins, (n,) int64.
        stop: where it ends, (n,) int64, exclusive; the item at ``stop`` is its last target.
        first: where the user's events begin, (n,) int64, when what was seen is needed.
        every: whether every position of the history predicts, or only its last.
    """

    def __init__(
        self,
        items: np.ndarray,
        user: np.ndarray,
        start: np.ndarray,
        stop: np.ndarray,
        first: np.ndarray | None,
        every: bool,
    ) -> None:
        self.items, self.user, self.start, self.stop, self.first, self.every = items, user, start, stop, first, every

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [Example(self, i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return Example(self, int(index) % len(self))

    def lengths(self) -> list[int]:
        """Tokens of each history."""
        return (self.stop - self.start).tolist()

    def pack(self, index: np.ndarray) -> HistoryBatch:
        """One batch of the examples with these numbers, (S,) int64, without padding."""
        a, b = self.start[index], self.stop[index]
        stream = _stream(self.items, a, b)
        if self.every:
            at, target = torch.arange(stream.num_tokens), _stream(self.items, a + 1, b + 1).values
        else:
            at, target = stream.cu_seqlens[1:].long() - 1, torch.from_numpy(self.items[b])
        seen = None if self.first is None else _stream(self.items, self.first[index], b)
        return HistoryBatch(stream, at, target, seen, torch.from_numpy(self.user[index]))


def _stream(items: np.ndarray, start: np.ndarray, stop: np.ndarray) -> TokenStream:
    """The pieces items[start:stop] end to end."""
    lengths = stop - start
    ends = lengths.cumsum()
    place = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(start - ends + lengths, lengths)
    values = torch.from_numpy(items[place])
    return TokenStream.from_lengths(values, torch.from_numpy(lengths), source=values)


class HistoryDataset(Dataset):
    """Events as histories. Subclasses only read.

    A user's events are sorted by time. Item ids are numbered from 0 by first appearance in the file (RecBole's ids
    minus one).

    Args:
        events: what was read.
        max_history: items a prediction may look at. Training histories longer than that are cut into consecutive
            windows, counted from the end, so that each event is still predicted once.
        examples: "histories" predicts the next item at every position; "prefixes" makes an example of every prefix
            and predicts at its last position only, as RecBole's augmentation does (the faithful setting).
        k_core: drop users and items with fewer events, again and again until none is left; 0 for no filter.
        duplicates: a user meeting an item again: "keep" all events, only the "first" or the "last", or "error".
        ties: which of a user's events at the same time comes first: as in the "file", that "reversed", or the
            smaller raw id of the "item" (as a number where all are numbers).
        split: "leave-one-out", "time" or "users": see :mod:`seqgraph_mamba4rec.splits`.
        valid_share: for "time" the share of events, for "users" of users, in validation.
        test_share: the same in the test.
        targets: for "time", which events of a user are asked for: "first", "last" or "all".
        split_seed: for "users", of the choice.
        titles: raw item id to title.
        retime: what is done to the times that are left after the filters, before they put events in order.

    Raises:
        DataError: when nothing is left to train on or to ask for; for a split in time of events without times.
        ConfigError: for shares that leave nothing for training.
    """

    def __init__(
        self,
        events: Events,
        *,
        max_history: int | None = 50,
        examples: Examples = "histories",
        k_core: int = 0,
        duplicates: Duplicates = "keep",
        ties: Ties = "file",
        split: Split = "leave-one-out",
        valid_share: float = 0.1,
        test_share: float = 0.1,
        targets: Targets = "first",
        split_seed: int = 0,
        titles: dict[str, str] | None = None,
        retime: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        events = _core(_without_duplicates(_tied(events, ties), duplicates), k_core)
        if retime is not None and events.times is not None:
            events = replace(events, times=retime(events.times))
        self.settings: dict[str, Any] = {
            "max_history": max_history, "examples": examples, "k_core": k_core, "duplicates": duplicates
        }  # fmt: skip
        self.max_history, self.examples = max_history, examples
        # Prefixes of like length are all early or all late in their histories: batches of them would lean.
        self.length_buckets = examples == "histories"
        self.item_ids, self.user_ids = events.item_ids, events.user_ids
        self.titles = titles or {}
        columns = {"user": events.users, "item": events.items, "time": events.times}
        stream = histories(columns, num_users=len(self.user_ids))
        self.items = stream.values.numpy()
        self.borders = stream.cu_seqlens.numpy().astype(np.int64)
        if valid_share + test_share >= 1:
            raise ConfigError(f"data.valid_share + data.test_share is {valid_share + test_share:g}", "keep it below 1")
        if split == "leave-one-out":
            self.cut = leave_one_out(self.borders)
        elif split == "time":
            if events.times is None:
                raise DataError(f"{events.path}: no timestamps to split by", "set data.split=leave-one-out or users")
            self.cut = by_time(self.borders, events.times[stream.source.numpy()], valid_share, test_share, targets)
        else:
            self.cut = by_user(self.borders, valid_share, test_share, split_seed)
        if split != "leave-one-out":
            self.settings |= {"split": split, "shares": [valid_share, test_share]}
            self.settings |= {"targets": targets} if split == "time" else {"split_seed": split_seed}
        self._check(events, split)
        self._splits: dict[str, ExampleList] = {}

    def _check(self, events: Events, split: str) -> None:
        # Leave-one-out holds two of a user's events out, each after another one; the other splits one.
        needed, word = (3, "three") if split == "leave-one-out" else (2, "two")
        if np.diff(self.borders).max() < needed:
            raise DataError(
                f"{events.path}: no user has {word} events, so there is nothing to hold out",
                "lower data.k_core" if self.settings["k_core"] > 1 else "give longer histories",
            )
        for name in ("valid", "test"):
            if not len(getattr(self.cut, name)):
                raise DataError(f"{events.path}: nothing falls into the {name} split", f"raise data.{name}_share")

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.item_ids)

    @property
    def num_users(self) -> int:
        """Users, those with a single event included."""
        return len(self.user_ids)

    def split(self, name: Part) -> ExampleList:
        """The examples of "train", "valid" or "test"."""
        if name not in self._splits:
            self._splits[name] = self._train() if name == "train" else self._held_out(getattr(self.cut, name))
        return self._splits[name]

    def lengths(self, name: Part) -> list[int]:
        """Tokens of each example."""
        return self.split(name).lengths()

    def _train(self) -> ExampleList:
        first, last = self.borders[:-1], self.cut.train_stop - 1
        inputs = np.maximum(last - first, 0)
        limit = self.max_history or int(max(inputs.max(), 1))
        step = 1 if self.examples == "prefixes" else limit
        windows = -(-inputs // step)
        user = np.repeat(np.arange(len(inputs)), windows)
        # The number of each window within its user, from the last one back.
        back = np.arange(len(user)) - np.repeat(windows.cumsum() - windows, windows)
        stop = last[user] - back * step
        start = np.maximum(first[user], stop - limit)
        return ExampleList(self.items, user, start, stop, None, every=self.examples == "histories")

    def _held_out(self, at: np.ndarray) -> ExampleList:
        user = np.searchsorted(self.borders, at, side="right") - 1
        first = self.borders[user]
        start = np.maximum(first, at - self.max_history) if self.max_history else first
        return ExampleList(self.items, user, start, at, first, every=False)

    def collate(self, examples: list[Example]) -> HistoryBatch:
        """Pack some examples of one split."""
        return examples[0].of.pack(np.array([e.index for e in examples]))

    def train_events(self) -> tuple[np.ndarray, np.ndarray]:
        """User and item of every training event, (n,) int64 each."""
        user = np.repeat(np.arange(self.num_users), np.diff(self.borders))
        keep = np.arange(len(self.items)) < self.cut.train_stop[user]
        return user[keep], self.items[keep]

    def train_counts(self) -> Tensor:
        """How often each item occurs in the training events, (V,) int64."""
        return torch.from_numpy(np.bincount(self.train_events()[1], minlength=self.num_items))

    def train_users(self) -> Tensor:
        """How many users have met each item in training, (V,) int64."""
        user, item = self.train_events()
        pairs = np.unique(user * self.num_items + item)
        return torch.from_numpy(np.bincount(pairs % self.num_items, minlength=self.num_items))

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
        if "split" in self.settings:
            for part in (self.cut.train_stop, self.cut.valid, self.cut.test):
                digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def _tied(events: Events, ties: Ties) -> Events:
    """The events in an order in which a stable sort by time settles ties as asked."""
    if ties == "file" or events.times is None:
        return events
    if ties == "reversed":
        order = np.arange(len(events.users))[::-1]
    else:
        names = np.array(events.item_ids)
        try:
            key = names.astype(np.float64)
        except ValueError:
            key = names
        order = np.argsort(np.unique(key, return_inverse=True)[1][events.items], kind="stable")
    return replace(events, users=events.users[order], items=events.items[order], times=events.times[order])


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
