"""Reads tables of proteins and of clusters: tab or comma separated, plain or compressed, by the names of columns."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from seqgraph.errors import ConfigError, DataError

_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))


def read_columns(
    path: Path, wanted: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line from 1, the wanted cells) of each row.

    The separator is the comma for .csv, the tab otherwise. White space around a cell is dropped, empty lines too.

    Args:
        path: the table; gzip, bzip2 and xz are seen by their first bytes.
        wanted: names of columns.
        columns: names of all the columns, for a table without a header.

    Raises:
        ConfigError: for a column that is not there, naming those that are.
        DataError: for a file that is missing, broken or empty, or a row with too few cells, naming the line.
    """
    comma = ".csv" in [suffix.lower() for suffix in path.suffixes]
    try:
        with _open(path) as text:
            rows = csv.reader(text) if comma else (line.rstrip("\r\n").split("\t") for line in text)
            yield from _cells(path, rows, wanted, columns)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(f"{path}: the compressed file is broken: {error}", "fetch it again") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table: {error}", "give tab or comma separated text") from None


def _cells(
    path: Path, rows: Iterator[list[str]], wanted: Sequence[str], columns: Sequence[str] | None
) -> Iterator[tuple[int, list[str]]]:
    line, found = 0, 0
    if columns is None:
        columns, line = [cell.strip() for cell in next(rows, [])], 1
    if missing := [name for name in wanted if name not in columns]:
        raise ConfigError(
            f"{path}: no column {missing[0]!r}; there are: {', '.join(c[:30] for c in columns[:12])}",
            "name the right one; a table without a header needs columns=[name,name,...]",
        )
    places = [list(columns).index(name) for name in wanted]
    for row in rows:
        line += 1
        if not any(row):
            continue
        if len(row) <= max(places, default=0):
            raise DataError(
                f"{path}: line {line} has {len(row)} cells, {max(places) + 1} are needed",
                "mend the line, or correct the names of the columns (null: the first line has them)",
            )
        found += 1
        yield line, [row[place].strip() for place in places]
    if not found:
        raise DataError(f"{path}: the table has no rows")


def _open(path: Path) -> io.TextIOWrapper:
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "check the path, or give its folder by --data-root") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    opener = next((opener for magic, opener in _OPENERS if head.startswith(magic)), None)
    raw = path.open("rb") if opener is None else opener(path, "rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")  # type: ignore[arg-type]
