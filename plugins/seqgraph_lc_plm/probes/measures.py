"""Rows of the table, and the one measure that scikit-learn, scipy and torchmetrics lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqgraph.errors import PluginError


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        task: name of the task.
        data: which test set or split.
        features: what the probe saw.
        head: the probe.
        measure: of what.
        value: the number.
        size: of the test set.
    """

    task: str
    data: str
    features: str
    head: str
    measure: str
    value: float
    size: int


def f_max(scores: np.ndarray, truth: np.ndarray, thresholds: int = 101) -> float:
    """CAFA's protein-centric maximal F (Radivojac et al. 2013, Nature Methods 10, eq. 1 to 3).

    At each threshold precision is averaged over the proteins with a prediction, recall over all.

    Args:
        scores: (N, C) from 0 to 1.
        truth: (N, C) bool; every protein has a term.
        thresholds: how many, evenly from 0 to 1.
    """
    best, has = 0.0, truth.sum(1)
    for threshold in np.linspace(0, 1, thresholds):
        said = scores >= threshold
        many = said.sum(1)
        right = (said & truth).sum(1)
        if not (there := many > 0).any():
            break
        precision = float((right[there] / many[there]).mean())
        recall = float((right / has).mean())
        if precision + recall > 0:
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, one line a data set, head and features."""
    lines = ["| task | data | features | probe | measure | value | n |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r.task} | {r.data} | {r.features} | {r.head} | {r.measure} | {r.value:.4f} | {r.size:,} |" for r in rows
    ]
    return "\n".join(lines)


def need_sklearn() -> None:
    """Raise PluginError where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise PluginError("the probes need scikit-learn", 'pip install "seqgraph[report]"') from None
