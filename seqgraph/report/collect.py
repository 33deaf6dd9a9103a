"""Reads what runs left behind."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqgraph.errors import CheckpointError
from seqgraph.train.checkpoint import CONFIG, METRICS, read_json
from seqgraph.train.store import flatten, read_log


@dataclass(frozen=True)
class Run:
    """A run, of one seed or several.

    Attributes:
        name: as it is shown: the folder.
        config: the resolved configuration.
        facts: of the data and the model: fingerprint, split sizes, parameters.
        seeds: the seeds that there are results or a log of.
        logs: rows of each seed's log.
        results: ``metrics.json`` of each seed; empty where it is not finished.
    """

    name: str
    config: dict[str, Any]
    facts: dict[str, Any]
    seeds: tuple[int, ...]
    logs: tuple[list[dict[str, Any]], ...]
    results: tuple[dict[str, Any], ...]

    @property
    def finished(self) -> bool:
        """Whether every seed has results."""
        return all(self.results) and len(self.seeds) == len(self.config["seed"])

    def values(self, kind: str, metric: str) -> list[float]:
        """A metric of each seed that has it; kind is "valid", "test" or "baseline"."""
        return [r[kind][metric] for r in self.results if metric in r.get(kind, {})]

    def mean_std(self, kind: str, metric: str) -> tuple[float, float | None] | None:
        """Mean over the seeds and standard deviation (n - 1), the latter for two seeds or more."""
        values = self.values(kind, metric)
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    @property
    def metrics(self) -> list[str]:
        """Names of the test metrics, or of the validation's while it is not finished."""
        return list(dict.fromkeys(name for r in self.results for kind in ("test", "valid") for name in r.get(kind, {})))


def collect(folder: Path) -> Run:
    """Read a run.

    Raises:
        CheckpointError: when the folder is not a run, or a file of it is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is not a run: it has no config.json", "name folders of seqgraph train -o")
    whole = read_json(folder / CONFIG)
    if "run" not in whole:
        raise CheckpointError(f"{folder / CONFIG} is not of a run", "name folders of seqgraph train -o")
    config = whole["run"]
    parts = [(seed, folder / f"seed-{seed}") for seed in config["seed"]]
    parts = [(seed, path) for seed, path in parts if path.is_dir()] or [(config["seed"][0], folder)]
    return Run(
        name=str(folder),
        config=config,
        facts=whole.get("facts", {}),
        seeds=tuple(seed for seed, _ in parts),
        logs=tuple(read_log(path) for _, path in parts),
        results=tuple(read_json(path / METRICS) if (path / METRICS).is_file() else {} for _, path in parts),
    )


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Dotted keys of the configuration in which the runs are not the same, with each run's value."""
    flat = [flatten({k: v for k, v in run.config.items() if k != "seed"}) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    values = {key: [json.dumps(one[key]) if key in one else "" for one in flat] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}
