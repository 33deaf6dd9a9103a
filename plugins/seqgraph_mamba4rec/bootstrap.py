"""Is one recommender better than another? A paired bootstrap over users (Efron 1979; Sakai 2006 for rankings)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """What the same users say about two systems.

    Attributes:
        a: mean of the first.
        b: mean of the second.
        difference: a - b.
        low: lower end of the interval of the difference.
        high: upper end.
        p: two-sided: how often, at twice the rarer side, a sample of users turns the sign (or finds no difference).
        users: how many there are.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    users: int


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    *,
    users: np.ndarray | None = None,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The percentile interval of mean(a) - mean(b) when users are drawn anew with replacement.

    Both systems' figures of a drawn user go together, so that what makes a user hard for both cancels. What the
    interval does not hold is the luck of training: average several seeds before, and give their spread beside it.

    Args:
        a: a metric of the first system, (n,), one prediction each.
        b: of the second, for the same predictions.
        users: whose each prediction is, (n,) integers; a user's predictions are drawn together. None: one each.
        level: of the interval.
        samples: how often users are drawn.
        seed: of the draws.

    Raises:
        ValueError: when the two do not fit, or are empty.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"two rows of the same length are needed, not {a.shape} and {b.shape}")
    whose = np.arange(len(a)) if users is None else np.unique(users, return_inverse=True)[1]
    count = np.bincount(whose)
    total = np.bincount(whose, weights=a - b)
    rng = np.random.default_rng(seed)
    drawn = np.empty(samples)
    rows = max(1, _DRAWS_AT_ONCE // len(count))
    for start in range(0, samples, rows):
        pick = rng.integers(len(count), size=(min(rows, samples - start), len(count)))
        drawn[start : start + len(pick)] = total[pick].sum(1) / count[pick].sum(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    sides = ((drawn <= 0).mean(), (drawn >= 0).mean())
    p = min(1.0, 2 * float(min(sides)))
    return Interval(float(a.mean()), float(b.mean()), float((a - b).mean()), float(low), float(high), p, len(count))
