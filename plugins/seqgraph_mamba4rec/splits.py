"""What is trained on and what is asked for: leave-one-out, a cut in time for all users, or users kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["leave-one-out", "time", "users"]
Targets = Literal["first", "last", "all"]


@dataclass(frozen=True)
class Cut:
    """A split of events that stand user by user in time order.

    Attributes:
        train_stop: where each user's training events end, (U,) int64, exclusive; their begin for none.
        valid: the events to be predicted in validation, (n,) int64, each from all of its user's events before it.
        test: the same for the test.
    """

    train_stop: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def leave_one_out(borders: np.ndarray) -> Cut:
    """The last event of each user is the test, the last but one the validation.

    A user with two events has only the former, a user with one is for training only (as in RecBole).

    Args:
        borders: where each user's events begin, and the end of the last's, (U + 1,) int64.
    """
    counts = np.diff(borders)
    stops = borders[1:]
    return Cut(stops - (counts > 1) - (counts > 2), (stops - 2)[counts > 2], (stops - 1)[counts > 1])


def by_time(
    borders: np.ndarray, times: np.ndarray, valid_share: float, test_share: float, targets: Targets = "first"
) -> Cut:
    """Two moments for all users: training before both, validation between, test after; no event is learnt from that
    lies after a moment that is predicted.

    Args:
        borders: (U + 1,) int64.
        times: of each event, (N,), rising within each user.
        valid_share: share of the events between the two moments, ties aside.
        test_share: share of the events after the second.
        targets: of a user's events in a period that follow some other event of theirs: the "first", the "last" or
            "all" of them.
    """
    ordered = np.sort(times)
    first_test = ordered[min(len(times) - 1, round(len(times) * (1 - test_share)))]
    first_valid = ordered[min(len(times) - 1, round(len(times) * (1 - test_share - valid_share)))]
    train, late = times < first_valid, times >= first_test
    user = np.repeat(np.arange(len(borders) - 1), np.diff(borders))
    follows = np.arange(len(times)) > borders[:-1][user]
    stop = borders[:-1] + np.bincount(user[train], minlength=len(borders) - 1)
    return Cut(stop, _some(follows & ~train & ~late, user, targets), _some(follows & late, user, targets))


def _some(wanted: np.ndarray, user: np.ndarray, targets: Targets) -> np.ndarray:
    at = np.flatnonzero(wanted)
    if targets == "all" or not len(at):
        return at
    new = np.flatnonzero(np.diff(user[at])) + 1
    edge = np.concatenate([[0], new]) if targets == "first" else np.concatenate([new - 1, [len(at) - 1]])
    return at[edge]


def by_user(borders: np.ndarray, valid_share: float, test_share: float, seed: int) -> Cut:
    """Some users are never trained on: what does the model know of people it has not met? Their last event is asked.

    Args:
        borders: (U + 1,) int64.
        valid_share: share of the users with two or more events.
        test_share: share of those.
        seed: of the choice.
    """
    able = np.flatnonzero(np.diff(borders) > 1)
    drawn = np.random.default_rng(seed).permutation(able)
    n_test, n_valid = (round(len(able) * share) for share in (test_share, valid_share))
    test, valid = np.sort(drawn[:n_test]), np.sort(drawn[n_test : n_test + n_valid])
    stop = borders[1:].copy()
    stop[test], stop[valid] = borders[test], borders[valid]
    return Cut(stop, borders[valid + 1] - 1, borders[test + 1] - 1)
