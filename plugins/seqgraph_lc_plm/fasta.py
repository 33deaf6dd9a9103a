"""Reads protein FASTA files, one record at a time, and says what is wrong with them by file and record."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from seqgraph.errors import DataError

# The letters of ESM-2's alphabet: 20 amino acids, X B U Z O, and the gaps of alignments.
LETTERS = "ACDEFGHIKLMNPQRSTVWYXBUZO.-"
_FOREIGN = re.compile(f"[^{re.escape(LETTERS + LETTERS.lower())}]")
_MAGIC = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))

OnInvalid = Literal["error", "unk", "skip"]
OnDuplicate = Literal["error", "number", "keep"]

# Titin has 35,000 residues; the longest proteins known have some 45,000.
LONGEST = 1_000_000
_PIECE = 1 << 16  # letters that are read at a time, so that a file of one huge line is no trouble


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
    """Yield the records of a FASTA file, plain or compressed (gzip, bzip2, xz), one at a time.

    Lower case is read as upper case, blanks inside a sequence and a stop "*" at its end are dropped. Memory holds one
    record, and every header seen so far unless ``on_duplicate`` is "keep".

    Args:
        path: the file.
        on_invalid: what to do with a letter that is not in ``LETTERS`` (``J``, a ``*`` inside, digits):
            "error", "unk" (keep it, to be encoded as ``<unk>``) or "skip" (leave the record out).
            A record that is empty, or longer than ``LONGEST``, is left out under "skip" and an error otherwise.
        on_duplicate: what to do with a header that was seen before: "error", "number" (``name``, ``name_2``, ...) or
            "keep" (nothing).
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
        if wrong and (on_invalid == "error" or not 0 < len(sequence) <= LONGEST):
            raise DataError(f"{path}: record {number} ({short(label)}, line {line + 1}): {wrong}", _CURE)
        if on_duplicate != "keep":
            label = _unique(label, number, places, path, on_duplicate)
        yield Record(label, sequence.upper(), number)
    if not found:
        raise DataError(f"{path}: the file is empty", _FASTA)


_FASTA = "expected FASTA: a line '>name', then the sequence"
_CURE = "mend the record, or use --on-invalid skip to leave such records out, unk to read such letters as <unk>"


def _complaint(sequence: str) -> str | None:
    if not sequence:
        return "the sequence is empty"
    if len(sequence) > LONGEST:
        return f"more than {LONGEST:,} letters: no protein is that long"
    match = _FOREIGN.search(sequence)
    if match is None:
        return None
    return f"letter {match.group()!r} at position {match.start() + 1} is not an amino acid"


def _unique(label: str, number: int, places: dict[str, int], path: Path, on_duplicate: OnDuplicate) -> str:
    """The label, or a numbered one if it is taken; remembers it."""
    if label in places:
        if on_duplicate == "error":
            raise same_name(path, number, places[label], label)
        count = 2
        while f"{label}_{count}" in places:
            count += 1
        label = f"{label}_{count}"
    places[label] = number
    return label


def same_name(path: Path, number: int, first: int, label: str) -> DataError:
    """The error for a record that is called like an earlier one."""
    return DataError(
        f"{path}: record {number} has the same name as record {first}: {short(label)}",
        "rename one, or use --on-duplicate number",
    )


def short(label: str) -> str:
    """A header as messages show it."""
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
    """Yield (record number from 1, header's line from 0, header, letters without blanks; few more than LONGEST)."""
    number, start, header, letters = 0, 0, "", 0
    parts: list[str] = []
    try:
        with _open(path) as file:
            for index, begins, piece in _pieces(file):
                if begins and piece.startswith(">"):
                    if number:
                        yield number, start, header, "".join(parts)
                    if len(piece) >= _PIECE:
                        raise DataError(f"{path}: line {index + 1}: the header is longer than {_PIECE} letters", _FASTA)
                    number, start, header, parts, letters = number + 1, index, piece[1:].strip(), [], 0
                elif number:
                    if letters <= LONGEST:
                        more = piece.split()
                        parts += more
                        letters += sum(map(len, more))
                elif piece.strip():
                    raise DataError(f"{path}: line {index + 1} is not FASTA: {piece.strip()[:30]!r}", _FASTA)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError) as error:
        raise DataError(f"{path}: the compressed file is broken: {error}", "fetch it again") from None
    if number:
        yield number, start, header, "".join(parts)


def _pieces(file: IO[str]) -> Iterator[tuple[int, bool, str]]:
    """Yield (line from 0, whether the piece begins it, piece); a piece has at most _PIECE letters."""
    index, begins = 0, True
    while piece := file.readline(_PIECE):
        yield index, begins, piece
        begins = piece.endswith("\n")
        index += begins


class Nucleotides:
    """Tells a file of DNA or RNA from one of proteins.

    A record reads as nucleotides when all its letters are codes of nucleotides, IUPAC's ambiguous ones among them, and
    nine of ten are A C G T U N; a file does when nine of ten of its letters are in such records, at least 30 in all and
    of three kinds or more. In proteins those six letters are about a quarter.
    """

    def __init__(self) -> None:
        self._records = self._like = self._letters = self._letters_like = 0
        self._kinds: set[str] = set()

    def add(self, sequence: str) -> None:
        """Count a record, in upper case."""
        self._records += 1
        self._letters += len(sequence)
        if is_nucleotide(sequence):
            self._like += 1
            self._letters_like += len(sequence)
            self._kinds |= _BASES & set(sequence)

    @property
    def found(self) -> bool:
        """Whether what was counted is DNA or RNA."""
        return len(self._kinds) >= 3 and self._letters_like >= max(30, _MOST * self._letters)

    def refuse(self, what: str | Path, hint: str = "") -> None:
        """Raise for DNA or RNA.

        Args:
            what: the file, or what else was read.
            hint: what may be done besides translating it.

        Raises:
            DataError: when :attr:`found`.
        """
        if not self.found:
            return
        many = f"all {self._records}" if self._like == self._records else f"{self._like} of {self._records}"
        raise DataError(
            f"{what} looks like DNA or RNA: {many} records are written in the letters of nucleotides",
            "translate it to protein first" + (f"; {hint}" if hint else ""),
        )


def refuse_nucleotides(sequences: Iterable[str], what: str | Path) -> None:
    """Raise for sequences, in upper case, that are DNA or RNA; see :class:`Nucleotides`.

    Raises:
        DataError: naming ``what`` they are.
    """
    nucleotides = Nucleotides()
    for sequence in sequences:
        nucleotides.add(sequence)
    nucleotides.refuse(what)


_BASES = frozenset("ACGTU")
_CODES = frozenset("ACGTUNRYSWKMBDHVX.-")
_MOST = 0.9


def is_nucleotide(sequence: str) -> bool:
    """Whether an upper-case sequence reads as DNA or RNA; see :class:`Nucleotides`."""
    return _CODES.issuperset(sequence) and sum(map(sequence.count, "ACGTUN")) >= _MOST * len(sequence)
