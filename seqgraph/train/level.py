"""Batches of equal sizes without padding: as many examples, and as many of all that examples are made of, in each.

A recorded step holds the sizes of its batch (:mod:`seqgraph.train.replay`), so one recording serves all such batches.
A random order is cut into batches, and each is repaired: one or two of its examples change places with examples that
come later, so that the sums come out. With many small examples there are far more such pairs than values of the sums.
"""

from __future__ import annotations

import numpy as np

# Pairs of an example of the batch and a later one that are looked at together: half a million choices of two pairs.
_PAIRS = 1024
# Repairs of one batch: each but the last brings the sums nearer, with other later examples.
_REPAIRS = 12
# Batches of an epoch that may fail, at least, before the rest is left as it is.
_FAILURES = 8
# The examples left over take what all batches lack together: their mean is off by no more deviations than this.
_OFF = 0.5
# Examples left over that are few, as a share of all; one batch always is.
_FEW = 0.005
# Looks for the sums to be had that are nearest the mean's.
_LOOKS = 40
# Deviations are counted in these parts of one: in integers every processor makes the same choices.
_PARTS = 1024


class Leveler:
    """Deals examples into batches with the same sums of sizes, anew for each order.

    How many examples a batch has, and the sums, hang on the sizes alone. Sums that are off the mean's must be made up
    for by examples left over. Of the numbers of examples down to 7/8 of ``items`` the largest is taken that wants few
    of these, or the one that wants fewest.

    Args:
        sizes: what each example is made of, (n, D) integers: its nodes and edges, say.
        items: examples of a batch at most; at least 1.
        limits: what each sum is at most, (D,); batches are smaller where the mean's sums would not fit.

    Attributes:
        items: examples of a level batch, 0 where none was found.
        target: their sums, (D,) int64.
    """

    def __init__(self, sizes: np.ndarray, items: int, limits: np.ndarray | None = None) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64).reshape(len(sizes), -1)
        # Sums of sizes as one number, modulo 2^64: different sums meet by a chance of 2^-60 or so, and are checked.
        self._code = np.random.default_rng(0).integers(1 << 62, size=self.sizes.shape[1], dtype=np.int64) | 1
        self.codes = self.sizes @ self._code
        deviations = self.sizes - self.sizes.mean(0)
        values, vectors = np.linalg.eigh(np.atleast_2d(deviations.T @ deviations / len(deviations)))
        used = values > 1e-9 * max(float(values[-1]), 1e-9)
        self._whiten = vectors[:, used] / np.sqrt(values[used])  # (D, D'): deviations in all directions alike
        self._white = self._parts(deviations)
        self.items, self.target, self._spare = 0, np.zeros(self.sizes.shape[1], dtype=np.int64), len(self.sizes)
        items = min(items, len(self.sizes))
        for count in range(items, max(0, items - items // 8 - 1), -1):
            target, off = self._nearest(count)
            if limits is not None and (target > limits).any():
                continue
            # what is left of an epoch, so that its mean is off by little
            spare = int(np.ceil(off * (len(self.sizes) // count) / _OFF))
            if spare < self._spare:
                self.items, self.target, self._spare = count, target, spare
            if spare <= max(count, _FEW * len(self.sizes)):
                break

    def _parts(self, deviations: np.ndarray) -> np.ndarray:
        return np.rint(deviations @ self._whiten * _PARTS).astype(np.int64)

    def _nearest(self, count: int) -> tuple[np.ndarray, float]:
        """Sums of so many examples that come near those of the mean, and how far off they are, in deviations."""
        generator = np.random.default_rng(count)
        order = generator.permutation(len(self.sizes))
        inside, others = order[:count], order[count:]
        off = self._white[inside].sum(0)
        for _ in range(_LOOKS if len(others) else 0):
            place = generator.integers(len(others), size=max(1, _PAIRS // count))
            after = off + self._white[others[place]] - self._white[inside][:, None]  # (count, P, D')
            best = int(np.square(after).sum(-1).argmin())
            i, j = best // len(place), place[best % len(place)]
            if np.square(after[i, best % len(place)]).sum() < np.square(off).sum():
                inside[i], others[j] = others[j], inside[i]
                off = self._white[inside].sum(0)
        return self.sizes[inside].sum(0), float(np.sqrt(np.square(off).sum())) / _PARTS

    def level(self, batch: np.ndarray) -> bool:
        """Whether some examples are one of the level batches."""
        return len(batch) == self.items and bool((self.sizes[batch].sum(0) == self.target).all())

    def deal(self, order: np.ndarray, generator: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
        """Level batches of the examples that ``order`` (m,) names, in random order already, and those left over."""
        order, count = np.array(order, dtype=np.int64), self.items
        if not count:
            return [], order
        batches: list[np.ndarray] = []
        start, failures = 0, 0
        while len(order) - start - count >= self._spare and failures < max(_FAILURES, len(order) // count // 16):
            if self._repair(order, start, generator):
                batches.append(order[start : start + count])
                start += count
            else:  # its examples come last
                failures += 1
                order = np.concatenate([order[:start], np.roll(order[start:], -count)])
        return batches, order[start:]

    def _repair(self, order: np.ndarray, start: int, generator: np.random.Generator) -> bool:
        """Make the examples from ``start`` a level batch by changing places with later ones; whether it came out."""
        stop = start + self.items
        goal = self.target[None] @ self._code
        for _ in range(_REPAIRS):
            inside = order[start:stop]
            lack = goal - self.codes[inside].sum(keepdims=True)  # (1,), as a number alone warns of its overflow
            if not lack.any():
                return self.level(inside)
            later = len(order) - stop
            if not later:
                return False
            width = min(later, max(8, _PAIRS // self.items))
            place = stop + (generator.integers(later) + np.arange(width)) % later
            gains = (self.codes[order[place]] - self.codes[inside][:, None]).ravel()  # of each pair's exchange
            found = self._one(gains, lack) or self._two(gains, lack, width, generator)
            if not found:
                off = self._parts(self.sizes[inside].sum(0) - self.target)
                moves = (self._white[order[place]] - self._white[inside][:, None]).reshape(len(gains), len(off))
                found = [int(np.square(off + moves).sum(1).argmin())]
            for pair in found:
                i, j = start + pair // width, place[pair % width]
                order[i], order[j] = order[j], order[i]
        return False

    @staticmethod
    def _one(gains: np.ndarray, lack: np.ndarray) -> list[int]:
        return np.flatnonzero(gains == lack)[:1].tolist()

    @staticmethod
    def _two(gains: np.ndarray, lack: np.ndarray, width: int, generator: np.random.Generator) -> list[int]:
        """Two pairs without a common example that together gain what is lacking."""
        rank = gains.argsort(kind="stable")
        ordered = gains[rank]
        place = np.searchsorted(ordered, lack - gains).clip(max=len(gains) - 1)
        firsts = np.flatnonzero(ordered[place] == lack - gains)
        seconds = rank[place[firsts]]
        apart = (firsts // width != seconds // width) & (firsts % width != seconds % width)
        if not apart.any():
            return []
        chosen = generator.choice(np.flatnonzero(apart))
        return [int(firsts[chosen]), int(seconds[chosen])]
