"""Batches by a token budget, cut from length buckets, shared between processes, and resumable in mid epoch."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from seqgraph.errors import ConfigError, DataError
from seqgraph.train.level import Leveler

_POOL = 64
"""Batches that a length bucket is made of: enough that lengths within a batch are alike, few enough to mix well."""


class BatchKey(NamedTuple):
    """Which examples make a batch, and which batch of which epoch it is (what its randomness is seeded by).

    Where batches are kept for some epochs, ``epoch`` counts the times that they were made anew. ``level`` says that the
    batch has the sizes of all that are level.
    """

    epoch: int
    number: int
    indices: list[int]
    level: bool = False


class TokenBatches:
    """A sampler of batches that hold at most ``max_tokens`` tokens each.

    Every example is in exactly one batch of an epoch. With ``shuffle`` the examples are permuted by (seed, epoch),
    sorted by length within pools of some dozens of batches, cut by the budget, and the batches permuted. All
    processes get the same number of batches: the largest are halved until they divide, and nothing is repeated or
    left out. Process r takes batches r, r + world, …, so that ``world`` processes and ``accumulate=world`` on one
    process see the same examples in each step.

    An example longer than the budget goes alone: the budget is broken rather than the example. Where every batch
    is a single example and they do not divide by the processes, the smallest are joined, above the budget. An empty
    example counts as one token.

    With ``keep`` above 1 the batches are made anew only every so many epochs; each epoch has its own order of them.

    With ``sizes`` all shuffled batches but the last few of an epoch are level: they have as many examples, and the same
    sums of tokens and sizes, in every epoch (:mod:`seqgraph.train.level`).

    Args:
        lengths: tokens of each example, (n,).
        max_tokens: the budget.
        max_items: examples of a batch at most; None for no limit.
        shuffle: whether each epoch has its own order; without it the examples come as they are.
        buckets: whether shuffled batches hold examples of like length; see ``Dataset.length_buckets``.
        seed: of the order.
        draw: the examples of an epoch, distinct indices by its number; None for all in each. With ``keep`` the number
            is how often batches were made before.
        keep: epochs for which the same examples stay together.
        sizes: of each example, (n, D) integers, for level batches; None for batches of any sizes.
        rank: this process.
        world: the number of processes.
        name: what the examples are, for the error messages.

    Raises:
        DataError: when there is no example.
        ConfigError: when there are fewer examples than processes, and for level batches of several processes.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        max_tokens: int,
        *,
        max_items: int | None = None,
        shuffle: bool = True,
        buckets: bool = True,
        seed: int = 0,
        draw: Callable[[int], Sequence[int] | np.ndarray] | None = None,
        keep: int = 1,
        sizes: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
        name: str = "examples",
    ) -> None:
        self.lengths = np.maximum(np.asarray(lengths, dtype=np.int64).reshape(-1), 1)
        if not len(self.lengths):
            raise DataError(f"there are no {name}", "check the data set's files and its split")
        if len(self.lengths) < world:
            raise ConfigError(f"{len(self.lengths)} {name} for {world} processes", "use fewer processes")
        if max_tokens < 1 or (max_items is not None and max_items < 1):
            raise ConfigError("max_tokens and max_items must be at least 1")
        self.max_tokens, self.max_items = max_tokens, max_items
        self.shuffle, self.buckets, self.seed, self.rank, self.world = shuffle, buckets, seed, rank, world
        self.draw, self.keep = draw, keep
        self.leveler: Leveler | None = None
        if sizes is not None:
            if world > 1:
                raise ConfigError("level batches for several processes", "use one process, or train.level=false")
            vectors = np.column_stack([self.lengths, np.asarray(sizes, dtype=np.int64)])
            limits = np.full(vectors.shape[1], np.iinfo(np.int64).max)
            limits[0] = max_tokens
            self.leveler = Leveler(vectors, self._usual(self.lengths), limits)
        self.epoch, self.position = 0, 0
        self.limit: int | None = None
        self._made: tuple[int, list[np.ndarray]] | None = None
        self._order: tuple[int, np.ndarray] | None = None

    def seek(self, epoch: int, position: int = 0) -> None:
        """Go to a batch of this process's share of an epoch; the next iteration begins there."""
        self.epoch, self.position = epoch, position

    def advance(self, batches: int = 1) -> None:
        """Say that the trainer has used so many batches. (A loader fetches ahead, so iterating does not tell.)"""
        self.position += batches

    def state_dict(self) -> dict[str, int]:
        """Where we are: epoch, position, and what the order depends on; of level batches a checksum, as well."""
        keys = ("epoch", "position", "seed", "world", "max_tokens")
        order = 0 if self.leveler is None else zlib.crc32(np.concatenate(self._batches(self.epoch)).tobytes())
        return {**{key: int(getattr(self, key)) for key in keys}, "size": len(self.lengths), "level_order": order}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go back to a saved place.

        Raises:
            ConfigError: when the order would not be the same, so that an exact resume is impossible.
        """
        self.seek(state["epoch"], state["position"])
        for key, value in self.state_dict().items():
            was = {"level_order": 0, **state}[key]  # which came later than some runs
            if was != value:
                raise ConfigError(
                    f"the run to resume has {key} {was}, this one {value}: the batches would differ",
                    "resume with the number of processes, the data and the settings it was begun with",
                )

    def total(self, epoch: int | None = None) -> int:
        """Batches of this process in an epoch, from its beginning."""
        return len(self._batches(self.epoch if epoch is None else epoch)) // self.world

    def tokens(self, position: int) -> int:
        """Tokens of one of this process's batches of the epoch."""
        return int(self.lengths_of(position).sum())

    def level(self) -> int:
        """How many batches of the epoch are level."""
        return 0 if self.leveler is None else sum(map(self.leveler.level, self._batches(self.epoch)))

    def lengths_of(self, position: int) -> np.ndarray:
        """Tokens of each example in one of this process's batches of the epoch."""
        return self.lengths[self._batches(self.epoch)[self._number(position)]]

    def __len__(self) -> int:
        """Batches that the next iteration gives: from the position to the end, or to ``limit``."""
        return max(0, self._end() - self.position)

    def __iter__(self) -> Iterator[BatchKey]:
        batches, epoch = self._batches(self.epoch), self.epoch
        for step in range(self.position, self._end()):
            number = self._number(step, epoch)
            level = self.leveler is not None and self.leveler.level(batches[number])
            yield BatchKey(epoch // self.keep, number, batches[number].tolist(), level)

    def _end(self) -> int:
        total = self.total()
        return total if self.limit is None else min(total, self.limit)

    def _number(self, position: int, epoch: int | None = None) -> int:
        """Which of all batches one of this process's is."""
        place, epoch = position * self.world + self.rank, self.epoch if epoch is None else epoch
        if self.keep == 1 or not self.shuffle:
            return place
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch // self.keep, epoch])
            self._order = (epoch, generator.permutation(len(self._batches(epoch))))
        return int(self._order[1][place])

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """All batches of an epoch, of all processes."""
        key = epoch // self.keep if self.shuffle or self.draw else 0
        if self._made is None or self._made[0] != key:
            self._made = (key, self._make(key))
        return self._made[1]

    def _make(self, turn: int) -> list[np.ndarray]:
        """The batches of an epoch, or of the epochs that they are kept for."""
        order = self._drawn(turn)
        generator = np.random.default_rng([self.seed, turn])
        if self.shuffle:
            generator.shuffle(order)
        if self.shuffle and self.leveler is not None:
            level, order = self.leveler.deal(order, generator)
            batches = level + self._shared_out(order)
        else:
            if self.shuffle and self.buckets:
                pool = _POOL * self._usual(self.lengths[order])
                order = order[np.lexsort((self.lengths[order], np.arange(len(order)) // pool))]
            batches = self._cut(order)
        self._divide(batches)
        if self.shuffle:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def _usual(self, lengths: np.ndarray) -> int:
        """Examples that a batch has room for on the average."""
        each = max(1, int(self.max_tokens / lengths.mean()))
        return min(each, self.max_items) if self.max_items else each

    def _shared_out(self, rest: np.ndarray) -> list[np.ndarray]:
        """Batches of about as many examples each, so that none has but one or two."""
        batches = self._cut(rest)
        for count in range(max(1, len(batches)), 2 * len(batches) + 1):
            parts = np.array_split(rest, count)
            if all(len(self._cut(part)) == 1 for part in parts):
                return parts
        return batches

    def _drawn(self, turn: int) -> np.ndarray:
        if self.draw is None:
            return np.arange(len(self.lengths))
        order = np.array(self.draw(turn), dtype=np.int64)
        if len(order) < self.world:
            raise ConfigError(f"epoch {turn * self.keep + 1} has {len(order)} examples for {self.world} processes")
        return order

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        ends = self.lengths[order].cumsum().tolist()  # a list: bisect on it is faster than numpy, one number at a time
        batches, start, used = [], 0, 0
        while start < len(order):
            stop = max(bisect_right(ends, used + self.max_tokens, start), start + 1)
            if self.max_items:
                stop = min(stop, start + self.max_items)
            batches.append(order[start:stop])
            start, used = stop, ends[stop - 1]
        return batches

    def _divide(self, batches: list[np.ndarray]) -> None:
        """Make the number of batches a multiple of the processes, in place."""
        examples = sum(map(len, batches))
        if examples - len(batches) < -len(batches) % self.world:  # too few that could be halved
            for _ in range(len(batches) % self.world):
                batches.sort(key=lambda batch: -self.lengths[batch].sum())
                batches[-2:] = [np.concatenate(batches[-2:])]
        while len(batches) % self.world:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            half = len(batches[largest]) // 2
            batches.append(batches[largest][half:])
            batches[largest] = batches[largest][:half]


class BatchSource(torch.utils.data.Dataset):
    """Turns a :class:`BatchKey` into a batch, with randomness that depends on the key and the seed alone.

    So a batch is the same whoever prepares it: the training process, a worker, or a resumed run.

    Args:
        data: the data set.
        split: "train", "valid" or "test".
        seed: of the randomness in ``collate``.
    """

    def __init__(self, data: Any, split: str, seed: int = 0) -> None:
        self.data, self.examples, self.seed = data, data.split(split), seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: BatchKey) -> Any:
        state = np.random.SeedSequence([self.seed, key.epoch, key.number]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed: it would seed the GPU's generator too, which training goes on with
            torch.default_generator.manual_seed(int(state) >> 1)
            return self.data.collate([self.examples[i] for i in key.indices])


def token_batches(
    data: Any,
    split: str,
    max_tokens: int,
    *,
    max_items: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    keep: int = 1,
    level: bool = False,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> torch.utils.data.DataLoader:
    """A loader over one split of a data set; its ``sampler`` is a :class:`TokenBatches`.

    Each iteration begins at the sampler's place; see :meth:`TokenBatches.seek`.

    Raises:
        DataError: when the split is empty.
        ConfigError: for level batches of data that do not say what their examples' sizes are.
    """
    sizes = data.sizes(split) if level and hasattr(data, "sizes") else None
    if level and sizes is None:
        raise ConfigError(
            f"train.level needs each example's sizes, and {type(data).__name__} does not say them",
            "leave train.level out, or give the data set sizes()",
        )
    draw = getattr(data, "draw", None) if shuffle else None
    sampler = TokenBatches(
        data.lengths(split),
        max_tokens,
        max_items=max_items,
        shuffle=shuffle,
        buckets=getattr(data, "length_buckets", True),
        seed=seed,
        draw=None if draw is None or draw(split, 0, seed) is None else lambda epoch: draw(split, epoch, seed),
        keep=keep,
        sizes=sizes,
        rank=rank,
        world=world,
        name=f"examples in the {split} split",
    )
    return torch.utils.data.DataLoader(
        BatchSource(data, split, seed),
        sampler=sampler,  # type: ignore[arg-type]  # a key names a batch, not an example
        batch_size=None,
        num_workers=workers,
        # A generator of its own: the loader draws a number at each start, which must not move the training's.
        generator=torch.Generator().manual_seed(seed),
    )
