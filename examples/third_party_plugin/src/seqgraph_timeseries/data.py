"""Series from a CSV file, cut into windows."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import DataError
from seqgraph.stream import TokenStream
from seqgraph.train.task import Dataset, Split

SHARES = {"train": (0.0, 0.7), "valid": (0.7, 0.8), "test": (0.8, 1.0)}
# Faster than any wind that was ever measured on the ground, in miles an hour.
IMPOSSIBLE_WIND = 260.0


class Windows(Sequence[Tensor]):
    """Every stretch of ``length`` steps of a table (steps, V), each as (V, length)."""

    def __init__(self, table: Tensor, length: int) -> None:
        self.table, self.length = table, length

    def __len__(self) -> int:
        return max(len(self.table) - self.length + 1, 0)

    def __getitem__(self, index: Any) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.table[index : index + self.length].T


class Series(Dataset):
    """A CSV file: a heading, a first column of times, then a column a series; gzip if it ends in ``.gz``.

    Split in time: 70 % train, 10 % valid, 20 % test. The windows of valid and test may look back into the split
    before, as a forecaster would. Scaled by the mean and standard deviation of the training part. Missing cells are
    interpolated in time.

    Args:
        root: the file; by default the hourly weather of three New York airports in 2013, which ships.
        lookback: steps that are read.
        horizon: steps that are forecast.

    Raises:
        DataError: naming the file and the line.
    """

    def __init__(self, *, root: str | None = None, lookback: int = 96, horizon: int = 24) -> None:
        self.lookback, self.horizon = lookback, horizon
        shipped = importlib.resources.files("seqgraph_timeseries") / "data" / "weather_nyc_2013.csv.gz"
        path = Path(root) if root is not None else Path(str(shipped))
        self.variates, table = read_csv(path)
        if root is None:
            wind = [i for i, name in enumerate(self.variates) if name.endswith("wind_speed")]
            table[:, wind] = np.where(table[:, wind] > IMPOSSIBLE_WIND, np.nan, table[:, wind])
        table = interpolate(table, path, self.variates)
        borders = [round(share * len(table)) for share in (0, *(end for _, end in SHARES.values()))]
        if min(np.diff(borders)) < horizon or borders[1] < lookback + horizon:
            raise DataError(f"{path}: {len(table)} rows are too few to read {lookback} and forecast {horizon}")
        self.mean = table[: borders[1]].mean(0)
        self.std = table[: borders[1]].std(0)
        flat = [name for name, std in zip(self.variates, self.std, strict=True) if not std > 0]
        if flat:
            raise DataError(f"{path}: the series {', '.join(flat)} never changes in the training part", "leave it out")
        self.digest = hashlib.sha256(table.tobytes()).hexdigest()[:16]
        scaled = torch.from_numpy((table - self.mean) / self.std).float()  # (steps, V)
        self.parts = {
            name: Windows(scaled[max(start - lookback, 0) : end], lookback + horizon)
            for name, start, end in zip(SHARES, borders, borders[1:], strict=False)
        }

    def split(self, name: Split) -> Windows:
        """Windows (V, lookback + horizon), one for each step at which the forecast can begin."""
        return self.parts[name]

    def lengths(self, name: Split) -> list[int]:
        """A token a variate."""
        return [len(self.variates)] * len(self.parts[name])

    def collate(self, examples: list[Tensor]) -> TokenStream:
        """A segment a window, values (T, lookback + horizon)."""
        return TokenStream.from_ragged(examples)

    def model_defaults(self) -> dict[str, Any]:
        """The model reads and forecasts as many steps as the windows have."""
        return {"lookback": self.lookback, "horizon": self.horizon}

    def assets(self) -> dict[str, Any]:
        """Names and scale of the series."""
        return {"variates": self.variates, "mean": self.mean.tolist(), "std": self.std.tolist()}

    def fingerprint(self) -> str:
        """Hash of the values and the window."""
        return f"{self.digest}-{self.lookback}-{self.horizon}"


def read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of the series, and their values (steps, V) with NaN where a cell is empty.

    Raises:
        DataError: for a file that is missing, empty or malformed, naming the line.
    """
    try:
        with _open(path) as file:
            rows = list(csv.reader(file))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: {reason}", "data.root must name a CSV file") from error
    if len(rows) < 2 or len(rows[0]) < 2:
        raise DataError(f"{path} holds no series", "a heading, a first column of times, then a column a series")
    values = np.empty((len(rows) - 1, len(rows[0]) - 1))
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise DataError(f"{path}, line {line}: {len(row)} cells, the heading has {len(rows[0])}")
        for column, cell in enumerate(row[1:]):
            try:
                values[line - 2, column] = float(cell) if cell.strip() else np.nan
            except ValueError:
                raise DataError(f"{path}, line {line}: {rows[0][column + 1]} is {cell!r}, not a number") from None
    return rows[0][1:], values


def interpolate(table: np.ndarray, path: Path, names: Sequence[str]) -> np.ndarray:
    """Fill cells that are not finite, linearly in time, the nearest value at the ends; (steps, V).

    Raises:
        DataError: for a series without any value.
    """
    steps, filled = np.arange(len(table)), table.copy()
    for column, name in enumerate(names):
        known = np.isfinite(table[:, column])
        if not known.any():
            raise DataError(f"{path}: the series {name} has no value")
        filled[:, column] = np.interp(steps, steps[known], table[known, column])
    return filled


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")  # type: ignore[return-value]
    return path.open(encoding="utf-8", newline="")
