"""Events in CSV, Parquet and MovieLens' original files. Every error names the file, and the line of text."""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seqgraph.errors import DataError, PluginError
from seqgraph_mamba4rec.reading import Codes, Events, events_of, parse_time, read_lines

Order = Literal["timestamp", "file"]


def read_csv(
    path: Path,
    *,
    order: Order = "timestamp",
    user_field: str = "user",
    item_field: str = "item",
    time_field: str = "timestamp",
    delimiter: str = ",",
) -> Events:
    """Read a CSV file with a header; other columns are left alone.

    Args:
        path: the file; ``.gz`` too.
        order: "timestamp" wants the time column, numbers or ISO 8601 dates (UTC where no zone is said); "file" takes
            the lines as they come.
        user_field: name of the user column.
        item_field: name of the item column.
        time_field: name of the time column.
        delimiter: between the fields.

    Raises:
        DataError: for a missing column, a line with too few or too many fields, an empty id, or a time that is
            neither; naming the line.
    """
    lines = read_lines(path)
    header = [name.strip() for name in _fields(next(lines)[1], delimiter)]
    u, i = (_place(path, header, name) for name in (user_field, item_field))
    t = _place(path, header, time_field, timed=True) if order == "timestamp" else -1
    users, items, times = Codes(), Codes(), []
    for number, line in lines:
        row = _fields(line, delimiter)
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} fields where the header has {len(header)}")
        user, item = row[u].strip(), row[i].strip()
        if not user or not item:
            raise DataError(f"{path}, line {number}: empty {item_field if user else user_field}")
        users.add(user)
        items.add(item)
        if t >= 0:
            times.append(_moment(row[t].strip(), path, number))
    return events_of(path, users, items, np.array(times) if t >= 0 else None)


def read_parquet(
    path: Path,
    *,
    order: Order = "timestamp",
    user_field: str = "user",
    item_field: str = "item",
    time_field: str = "timestamp",
) -> Events:
    """Read a Parquet file by columns, with pyarrow.

    Times may be numbers, dates or timestamps. Arguments as those of :func:`read_csv`.

    Raises:
        PluginError: when pyarrow is not installed.
        DataError: for a file that is none, a missing column, or an empty value, naming the row (from 0).
    """
    try:
        from pyarrow import ArrowException, compute, parquet
    except ImportError:
        raise PluginError(f"{path}: reading Parquet needs pyarrow", "pip install pyarrow") from None
    if not path.is_file():
        raise DataError(f"{path}: no such file", "check data.root")
    try:
        header = parquet.read_schema(path).names
        fields = [user_field, item_field, *([time_field] if order == "timestamp" else [])]
        for field in fields:
            _place(path, header, field, timed=field == time_field)
        table = parquet.read_table(path, columns=fields)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})") from error
    if not len(table):
        raise DataError(f"{path}: columns and no events")
    for field in fields:
        missing = np.flatnonzero(compute.is_null(table[field], nan_is_null=True).to_numpy())
        if len(missing):
            raise DataError(f"{path}, row {missing[0]}: empty {field}")
    users, items = (Codes.of(table[field].to_pylist()) for field in fields[:2])
    times = None if order == "file" else _seconds(table[time_field].to_numpy(), path, time_field)
    return events_of(path, users, items, times)


def _seconds(column: np.ndarray, path: Path, name: str) -> np.ndarray:
    if np.issubdtype(column.dtype, np.datetime64):
        return column.astype("datetime64[ns]").astype(np.int64) / 1e9
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: column {name} holds no times ({error})", "numbers, dates or timestamps") from error


def _moment(text: str, path: Path, number: int) -> float:
    if "-" in text[1:] and ":" not in text[:4] and not text[:1].isalpha():
        try:
            date = datetime.fromisoformat(text)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            pass
    try:
        return parse_time(text, path, number)
    except DataError as error:
        raise DataError(error.message, "seconds as a plain number, or a date like 2026-01-31T12:00:00Z") from None


def _fields(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter))


def _place(path: Path, header: list[str], name: str, *, timed: bool = False) -> int:
    if name in header:
        return header.index(name)
    cure = f"name it in data.{'time' if timed else '*'}_field"
    if timed:
        cure += ", or set data.order=file if each user's lines are in time order"
    raise DataError(f"{path}: no column {name!r} (there are {', '.join(header)})", cure)


# ---------------------------------------------------------------------------------------------- MovieLens
_RATINGS = ("ratings.csv", "ratings.dat", "u.data")
_TITLES = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}
_SEPARATORS = {"ratings.dat": "::", "u.data": "\t", "movies.dat": "::", "u.item": "|"}


def read_movielens(root: Path, min_rating: float | None = None) -> tuple[Events, dict[str, str]]:
    """Read an unpacked MovieLens archive: 100k's u.data, 1M's and 10M's ratings.dat, or a ratings.csv.

    Args:
        root: the folder, or the ratings file in it; ``.gz`` too.
        min_rating: leave out ratings below it.

    Returns:
        The events, and raw film id to title (empty where the file of titles is not there).

    Raises:
        DataError: when there is no such file, naming the line where one is damaged.
    """
    path, kind = _movielens_file(root, _RATINGS)
    if path is None:
        raise DataError(f"{root}: none of {', '.join(_RATINGS)} is here", "unpack a MovieLens archive there")
    users, items, times = Codes(), Codes(), []
    split = _splitter(kind)
    for number, line in read_lines(path, encoding="latin-1"):
        row = split(line)
        if len(row) != 4:
            raise DataError(f"{path}, line {number}: {len(row)} fields where user, film, rating, time were expected")
        if number == 1 and kind == "ratings.csv" and row[0] == "userId":
            continue
        if min_rating is not None and parse_time(row[2], path, number, "rating") < min_rating:
            continue
        users.add(row[0])
        items.add(row[1])
        times.append(parse_time(row[3], path, number))
    return events_of(path, users, items, np.array(times)), _movielens_titles(path, kind)


def _movielens_titles(ratings: Path, kind: str) -> dict[str, str]:
    path, name = _movielens_file(ratings.parent, (_TITLES[kind],))
    if path is None:
        return {}
    split = _splitter(name)
    # 25M's CSV is UTF-8, everything older is Latin-1.
    lines = read_lines(path, encoding="utf-8" if name == "movies.csv" else "latin-1")
    return {row[0]: row[1] for row in (split(line) for _, line in lines) if len(row) > 1}


def _movielens_file(root: Path, names: tuple[str, ...]) -> tuple[Path | None, str]:
    if root.is_file():
        return (root, root.name.removesuffix(".gz")) if root.name.removesuffix(".gz") in names else (None, "")
    for name in names:
        for suffix in ("", ".gz"):
            if (root / (name + suffix)).is_file():
                return root / (name + suffix), name
    return None, ""


def _splitter(kind: str) -> Callable[[str], list[Any]]:
    separator = _SEPARATORS.get(kind)
    return (lambda line: line.split(separator)) if separator else (lambda line: _fields(line, ","))
