"""Reading files: CSV with row numbers, LRGB's split pickle without running it, PyG's tensors."""

from __future__ import annotations

import csv
import gzip
import io
import math
import pickle
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from seqgraph.errors import DataError


def existing_file(path: Path, hint: str) -> Path:
    """The path, if it is a file with something in it.

    Raises:
        DataError: for a missing file, a folder, or an empty file.
    """
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {kind}", hint)
    if not path.stat().st_size:
        raise DataError(f"{path} is empty", hint)
    return path


def read_text(path: Path) -> str:
    """A UTF-8 text file, plain or gzipped (by its first bytes).

    Raises:
        DataError: for a damaged archive, or bytes that are not text.
    """
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}", "fetch it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} is {content[error.start]:#04x}") from error


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a .csv or .tsv file, plain or gzipped; row i is line i + 2 unless a cell has line breaks.

    Raises:
        DataError: for no header, no rows, doubled columns, or a row of another length.
    """
    text = read_text(path)
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}") from error
    if len(rows) < 2:
        raise DataError(
            f"{path} has {'a header but no rows' if rows else 'no header'}", "it must be a CSV with a header"
        )
    header = [name.strip() for name in rows[0]]
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(f"{path}: column {doubled[0]!r} is there twice")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: {len(row)} cells under {len(header)} columns")
    return header, [dict(zip(header, row, strict=True)) for row in rows[1:]]


def find_column(header: list[str], wanted: str, path: Path) -> str:
    """The column of that name, in any letter case.

    Raises:
        DataError: naming the columns there are.
    """
    found = [name for name in header if name == wanted] or [n for n in header if n.lower() == wanted.lower()]
    if not found:
        raise DataError(f"{path} has no column {wanted!r}", f"it has {', '.join(map(repr, header))}")
    return found[0]


def read_number(cell: str, where: str) -> float:
    """A target: a finite number, or NaN for an empty cell (an unknown value).

    Raises:
        DataError: for anything else.
    """
    cell = cell.strip()
    if not cell or cell.lower() in ("nan", "na"):
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        raise DataError(f"{where}: {cell!r} is not a number", "leave the cell empty if it is unknown") from None
    if math.isinf(value):
        raise DataError(f"{where}: {cell!r} is infinite", "leave the cell empty if it is unknown")
    return value


class _ArrayUnpickler(pickle.Unpickler):
    """Knows numpy arrays and nothing else, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_index_pickle(path: Path, names: Iterable[str], size: int) -> dict[str, np.ndarray]:
    """Row numbers of splits from a pickled dict of numpy arrays; nothing in the file is executed.

    Args:
        path: the file.
        names: keys that must be there.
        size: number of rows that the numbers index.

    Returns:
        One (n,) int64 array a name; together they name each row at most once.

    Raises:
        DataError: for anything else in the file.
    """
    hint = "it must be LRGB's splits_random_stratified_peptide.pickle"
    try:
        with path.open("rb") as file:
            held = _ArrayUnpickler(file).load()
    except Exception as error:  # a hostile or damaged pickle may raise anything
        raise DataError(f"{path} is not a pickle of integer arrays: {error}", hint) from error
    splits = {}
    for name in names:
        index = held.get(name) if isinstance(held, dict) else None
        if not isinstance(index, np.ndarray) or index.ndim != 1 or index.dtype.kind not in "iu" or not len(index):
            raise DataError(f"{path}: {name!r} is not an array of row numbers", hint)
        if index.min() < 0 or index.max() >= size:
            raise DataError(f"{path}: {name!r} names row {index.max()} of {size}", hint)
        splits[name] = index.astype(np.int64)
    everything = np.concatenate(list(splits.values()))
    if len(np.unique(everything)) != len(everything):
        raise DataError(f"{path}: a row is in two splits", hint)
    return splits
