"""From a run configuration to results: one run a seed, a summary over them, and evaluation afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqgraph.config import RunConfig


@dataclass(frozen=True)
class RunResult:
    """What a training gave.

    Attributes:
        folder: the run's folder; one seed: with ``best`` and ``last``; several: with ``seed-0`` and so on.
        seeds: the seeds.
        metrics: test metrics at the best epoch, one dict a seed.
        mean: their mean over the seeds.
        std: their standard deviation (n - 1); empty for one seed.
        baseline: test metrics of the trivial predictor.
    """

    folder: Path
    seeds: tuple[int, ...]
    metrics: tuple[dict[str, float], ...]
    mean: dict[str, float]
    std: dict[str, float]
    baseline: dict[str, float]


def train(
    config: RunConfig | str | Path | Mapping[str, Any],
    *,
    output: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    stop_after: int | None = None,
) -> RunResult:
    """Train what a configuration describes, once a seed."""
    raise SystemExit("not yet")


def evaluate(run: str | Path, split: str = "test") -> dict[str, float]:
    """Metrics of a run's best checkpoint on one split."""
    raise SystemExit("not yet")
