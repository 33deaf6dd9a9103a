"""Files of events: RecBole's atomic files, text files of histories, and CSV. Every error names file and line."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from seqgraph.errors import DataError


@dataclass(frozen=True)
class Events:
    """Who met what, in the order of the file.

    Attributes:
        users: index into ``user_ids``, (N,) int64.
        items: index into ``item_ids``, (N,) int64.
        times: timestamps, (N,) float64, or None where the order of the file is the order in time.
        user_ids: raw ids, in order of first appearance.
        item_ids: raw ids, in order of first appearance.
        path: the file, for messages.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    user_ids: list[str]
    item_ids: list[str]
    path: Path

    def select(self, keep: np.ndarray) -> Events:
        """The events where ``keep`` (N,) bool holds, ids renumbered by first appearance."""
        users, user_ids = _renumber(self.users[keep], self.user_ids)
        items, item_ids = _renumber(self.items[keep], self.item_ids)
        times = None if self.times is None else self.times[keep]
        return replace(self, users=users, items=items, times=times, user_ids=user_ids, item_ids=item_ids)


def _renumber(codes: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    found, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[inverse.reshape(-1)].astype(np.int64), [names[found[i]] for i in order]


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank; ``.gz`` is unpacked on the way.

    Raises:
        DataError: for a file that is missing, a folder, empty, damaged or not of that encoding.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}", "check data.root or the path"
        )
    number, some = 0, False
    try:
        with (
            gzip.open(path, "rt", encoding=encoding) if path.suffix == ".gz" else path.open(encoding=encoding) as lines
        ):
            for number, line in enumerate(lines, start=1):
                line = line.rstrip("\r\n")
                if line.strip():
                    some = True
                    yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, after line {number}: not UTF-8 text ({error.reason})", "convert the file") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged gzip file ({error})", "fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not some:
        raise DataError(f"{path}: the file is empty")


def find_inter(root: Path) -> Path:
    """The .inter file that ``root`` names: itself, ``root/<name of root>.inter``, or the only one in the folder.

    Raises:
        DataError: when there is none, or more than one to choose from.
    """
    if not root.is_dir():
        return root
    named = [p for suffix in (".inter", ".inter.gz") if (p := root / f"{root.name}{suffix}").is_file()]
    found = named or sorted([*root.glob("*.inter"), *root.glob("*.inter.gz")])
    if not found:
        raise DataError(f"{root}: no .inter file in this folder", "point data.root to the file itself")
    if len(found) > 1 and not named:
        names = ", ".join(p.name for p in found)
        raise DataError(f"{root}: more than one .inter file ({names})", "point data.root to one of them")
    return found[0]


def read_inter(
    path: Path,
    *,
    order: Literal["timestamp", "file"] = "timestamp",
    user_field: str = "user_id",
    item_field: str = "item_id",
    time_field: str = "timestamp",
) -> Events:
    """Read a RecBole .inter file: a header of tab-separated ``name:type``, then one event a line.

    Args:
        path: the file.
        order: "timestamp" wants the time column; "file" takes the lines as they come and ignores any time.
        user_field: name of the user column.
        item_field: name of the item column.
        time_field: name of the time column.

    Raises:
        DataError: for a header without types, a missing column, a line with too few fields, an empty id or a
            timestamp that is not a finite number; naming the line.
    """
    lines = read_lines(path)
    header = _header(path, next(lines)[1])
    places = [_column(path, header, name) for name in (user_field, item_field)]
    timed = order == "timestamp"
    if timed and time_field not in header:
        raise DataError(
            f"{path}: no column {time_field}:float, so the events have no order in time",
            "add the column, or set data.order=file if each user's lines are in time order",
        )
    u, i = places
    t = header.index(time_field) if timed else -1
    users, items, times = Codes(), Codes(), []
    for number, line in lines:
        row = line.split("\t")
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} fields where the header has {len(header)}")
        if not row[u] or not row[i]:
            raise DataError(f"{path}, line {number}: empty {user_field if not row[u] else item_field}")
        users.add(row[u])
        items.add(row[i])
        if timed:
            times.append(parse_time(row[t], path, number))
    return events_of(path, users, items, np.array(times) if timed else None)


def read_text(path: Path, *, layout: Literal["histories", "pairs"] = "histories") -> Events:
    """Read a text file of histories, fields apart by blanks, in time order.

    Args:
        path: the file; ``.gz`` too.
        layout: "histories": ``user item item ...``, one user a line. "pairs": ``user item``, one event a line.

    Raises:
        DataError: for a line without an item, a user with two lines (histories), or a line that is no pair.
    """
    users, items = Codes(), Codes()
    where: dict[str, int] = {}
    for number, line in read_lines(path):
        user, *row = line.split()
        if layout == "pairs" and len(row) != 1:
            raise DataError(
                f"{path}, line {number}: {len(row) + 1} fields where 'user item' was expected",
                "set data.layout=histories for one user a line",
            )
        if not row:
            raise DataError(f"{path}, line {number}: user {user!r} has no item")
        if layout == "histories" and where.setdefault(user, number) != number:
            raise DataError(
                f"{path}, line {number}: user {user!r} was on line {where[user]} already",
                "set data.layout=pairs for one event a line",
            )
        for item in row:
            users.add(user)
            items.add(item)
    return events_of(path, users, items, None)


def read_titles(path: Path, title_field: str, *, item_field: str = "item_id") -> dict[str, str]:
    """Raw item id to title, from a RecBole .item file.

    Raises:
        DataError: when a column is missing or a line has too few fields.
    """
    lines = read_lines(path)
    header = _header(path, next(lines)[1])
    i, t = (_column(path, header, name) for name in (item_field, title_field))
    titles = {}
    for number, line in lines:
        row = line.split("\t")
        if len(row) <= max(i, t):
            raise DataError(f"{path}, line {number}: {len(row)} fields where the header has {len(header)}")
        titles[row[i]] = row[t]
    return titles


class Request(NamedTuple):
    """An item of a user's history and the line it stands on."""

    item: str
    line: int


def read_requests(path: Path) -> dict[str, list[Request]]:
    """Histories by user from a CSV file with the columns user, item and, if there is one, timestamp.

    With timestamps each user's events are put in order, ties keep the order of the file; without, the order of the
    file is the order in time.

    Raises:
        DataError: for a missing column, a short line, an empty field or a bad timestamp; naming the line.
    """
    lines = read_lines(path)
    header = [name.strip() for name in _fields(next(lines)[1])]
    for name in ("user", "item"):
        if name not in header:
            raise DataError(
                f"{path}: no column {name!r} in the header ({', '.join(header)})",
                "the first line must be user,item or user,item,timestamp",
            )
    u, i = header.index("user"), header.index("item")
    t = header.index("timestamp") if "timestamp" in header else None
    events: dict[str, list[tuple[float, Request]]] = {}
    for number, line in lines:
        row = _fields(line)
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} fields where the header has {len(header)}")
        user, item = row[u].strip(), row[i].strip()
        if not user or not item:
            raise DataError(f"{path}, line {number}: empty {'item' if user else 'user'}")
        time = 0.0 if t is None else parse_time(row[t], path, number)
        events.setdefault(user, []).append((time, Request(item, number)))
    if not events:
        raise DataError(f"{path}: a header and no events")
    return {user: [event for _, event in sorted(row, key=lambda e: e[0])] for user, row in events.items()}


def parse_time(text: str, path: Path, number: int, what: str = "timestamp") -> float:
    """A finite number, or a DataError that names the line."""
    try:
        time = float(text)
    except ValueError:
        time = math.nan
    if not math.isfinite(time):
        cure = "seconds, as a plain number" if what == "timestamp" else None
        raise DataError(f"{path}, line {number}: {what} {text!r} is not a number", cure)
    return time


def _fields(line: str) -> list[str]:
    # A line at a time, so that its number is known; no id holds a line break.
    return next(csv.reader([line]))


class Codes:
    """Numbers names by first appearance."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.codes: list[int] = []

    def add(self, name: str) -> None:
        self.codes.append(self.index.setdefault(name, len(self.index)))

    @classmethod
    def of(cls, names: Iterable[Any]) -> Codes:
        """The names, as text, in this order."""
        codes = cls()
        for name in names:
            codes.add(str(name))
        return codes


def events_of(path: Path, users: Codes, items: Codes, times: np.ndarray | None) -> Events:
    """The events of a file that was read line by line.

    Raises:
        DataError: when there are none.
    """
    if not users.codes:
        raise DataError(f"{path}: a header and no events")
    return Events(
        np.array(users.codes, dtype=np.int64),
        np.array(items.codes, dtype=np.int64),
        times,
        list(users.index),
        list(items.index),
        path,
    )


def _header(path: Path, line: str) -> list[str]:
    fields = line.split("\t")
    if not all(":" in field for field in fields):
        raise DataError(
            f"{path}, line 1: not a RecBole header: {line[:60]!r}",
            "it must name every column with its type, tab between them: user_id:token, item_id:token, timestamp:float",
        )
    return [field.split(":")[0].strip() for field in fields]


def _column(path: Path, header: list[str], name: str) -> int:
    if name not in header:
        raise DataError(
            f"{path}, line 1: no column {name!r} (there are {', '.join(header)})", "name it in data.*_field"
        )
    return header.index(name)
