"""Reads protein FASTA files, one record at a time, and says what is wrong with them by file and record."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from seqgraph.errors import DataError

# The letters of ESM-2's alphabet: 20 amino acids, X B U Z O, and the gaps of alignments.
LETTERS = "ACDEFGHIKLMNPQRSTVWYXBUZO.-"
_FOREIGN = re.compile(f"[^{re.escape(LETTERS + LETTERS.lower())}]")
_MAGIC = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))

OnInvalid = Literal["error", "unk", "skip"]
OnDuplicate = Literal["error", "number"]


@dataclass(frozen=True, slots=True)
class Record:
    """One protein.

    Attributes:
        label: the header without its ">"; a record without one is called after its line, as fair-esm does.
        sequence: upper-case letters without a trailing "*"; foreign letters only under ``on_invalid="unk"``.
        number: its place in the file, from 1.
    """

    label: str
    sequence: str
    number: int


def read_fasta(
    path: str | Path,
    *,
    on_invalid: OnInvalid = "error",
    on_duplicate: OnDuplicate = "error",
    first_word: bool = False,
) -> Iterator[Record]:
    """Yield the records of a FASTA file, plain or compressed (gzip, bzip2, xz), without holding it in memory.

    Lower case is read as upper case, blanks inside a sequence and a stop "*" at its end are dropped.

    Args:
        path: the file.
        on_invalid: what to do with a letter that is not in ``LETTERS`` (``J``, a ``*`` inside, digits):
            "error", "unk" (keep it, to be encoded as ``<unk>``) or "skip" (leave the record out).
            An empty record is left out under "skip" and an error otherwise: it has no embedding.
        on_duplicate: what to do with a header that was seen before: "error", or "number" (``name``, ``name_2``, ...).
        first_word: whether a label is the first word of the header instead of all of it.

    Raises:
        DataError: for a file that is missing, empty, broken or not FASTA, or a record that cannot be used.
    """
    path = Path(path)
    places: dict[str, int] = {}
    found = 0
    for number, line, header, raw in _parse(path):
        found += 1
        label = header or f"seqnum{line:09d}"
        if first_word:
            label = label.split(maxsplit=1)[0]
        sequence = raw.removesuffix("*")
        wrong = _complaint(sequence)
        if wrong and on_invalid == "skip":
            continue
        if wrong and (on_invalid == "error" or not sequence):
            raise DataError(f"{path}: record {number} ({_short(label)}, line {line + 1}): {wrong}", _CURE)
        yield Record(_unique(label, number, places, path, on_duplicate), sequence.upper(), number)
    if not found:
        raise DataError(f"{path}: the file is empty", "expected FASTA: '>name' lines, each followed by a sequence")


_CURE = "mend the record, or use --on-invalid skip to leave such records out, unk to read such letters as <unk>"


def _complaint(sequence: str) -> str | None:
    if not sequence:
        return "the sequence is empty"
    match = _FOREIGN.search(sequence)
    if match is None:
        return None
    return f"letter {match.group()!r} at position {match.start() + 1} is not an amino acid"


def _unique(label: str, number: int, places: dict[str, int], path: Path, on_duplicate: OnDuplicate) -> str:
    """The label, or a numbered one if it is taken; remembers it."""
    if label in places:
        if on_duplicate == "error":
            raise DataError(
                f"{path}: record {number} has the same name as record {places[label]}: {_short(label)}",
                "rename one, or use --on-duplicate number",
            )
        count = 2
        while f"{label}_{count}" in places:
            count += 1
        label = f"{label}_{count}"
    places[label] = number
    return label


def _short(label: str) -> str:
    return label if len(label) <= 60 else label[:57] + "..."


def _open(path: Path) -> IO[str]:
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "give a FASTA file that can be read") from None
    opener = next((opener for magic, opener in _MAGIC if head.startswith(magic)), None)
    raw = path.open("rb") if opener is None else opener(path, "rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace")


def _parse(path: Path) -> Iterator[tuple[int, int, str, str]]:
    """Yield (record number from 1, header's line from 0, header, letters without blanks)."""
    number, start, header = 0, 0, ""
    parts: list[str] = []
    try:
        with _open(path) as lines:
            for index, line in enumerate(lines):
                if line.startswith(">"):
                    if number:
                        yield number, start, header, "".join(parts)
                    number, start, header, parts = number + 1, index, line[1:].strip(), []
                elif number:
                    parts += line.split()
                elif line.strip():
                    raise DataError(
                        f"{path}: line {index + 1} is not FASTA: {line.strip()[:30]!r}",
                        "a record begins with a line '>name'",
                    )
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError) as error:
        raise DataError(f"{path}: the compressed file is broken: {error}", "fetch it again") from None
    if number:
        yield number, start, header, "".join(parts)


def is_nucleotide(sequence: str) -> bool:
    """Whether a sequence of at least 50 letters is written in those of DNA or RNA alone."""
    return len(sequence) >= 50 and not set(sequence) - set("ACGTUN")
