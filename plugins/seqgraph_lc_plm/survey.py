"""Reads a FASTA file once before anything is computed: what is in it, that it can be used, and how it is cut."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqgraph.errors import DataError
from seqgraph_lc_plm.fasta import Nucleotides, OnDuplicate, OnInvalid, Record, read_fasta, same_name, short

_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Source:
    """A FASTA file and how it is read.

    Attributes:
        path: the file.
        truncate: residues that are kept of a protein, from its start; 0 keeps all.
        on_invalid: see :func:`read_fasta`.
        on_duplicate: "error" or "number".
        first_word: whether a protein is called by the first word of its header instead of all of it.
        nucleotides: whether a file of DNA or RNA is read all the same.
        longest: a longer protein, after truncation, is an error; None for no bound.
    """

    path: Path
    truncate: int = 0
    on_invalid: OnInvalid = "error"
    on_duplicate: OnDuplicate = "error"
    first_word: bool = False
    nucleotides: bool = False
    longest: int | None = None

    def records(self) -> Iterator[Record]:
        """The proteins, truncated, one at a time, under the names that the file gives them."""
        reader = read_fasta(self.path, on_invalid=self.on_invalid, on_duplicate="keep", first_word=self.first_word)
        for record in reader:
            kept = record.sequence[: self.truncate] if self.truncate else record.sequence
            yield Record(record.label, kept, record.number)

    def named(self, survey: Survey) -> Iterator[Record]:
        """The proteins under names that are all different."""
        names = _Names(survey) if len(survey.hashes) else None
        for record in self.records():
            yield record if names is None else Record(names.next(record.label), record.sequence, record.number)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where the stream of proteins is cut into parts, the units of work and of resuming.

    A part is closed by the protein that reaches a bound, so that the cuts depend on the lengths alone.

    Attributes:
        tokens: of a part, residues and specials.
        bytes: of a part's results; 0 for no bound.
        per_record: bytes that a protein's results take besides those of its residues.
        per_residue: bytes that each of its residues takes.
    """

    tokens: int
    bytes: int = 0
    per_record: int = 0
    per_residue: int = 0

    def split(self, records: Iterable[Record]) -> Iterator[list[Record]]:
        """The parts, one at a time."""
        part: list[Record] = []
        meter = _Meter(self)
        for record in records:
            part.append(record)
            if meter.add(len(record.sequence)):
                yield part
                part = []
        if part:
            yield part

    def sizes(self, lengths: np.ndarray) -> list[tuple[int, int]]:
        """Records and residues of each part of proteins of these lengths."""
        meter, parts, open_part = _Meter(self), [], [0, 0]
        for start in range(0, len(lengths), _CHUNK):  # a list of all would take nine times the array
            for length in lengths[start : start + _CHUNK].tolist():
                open_part = [open_part[0] + 1, open_part[1] + length]
                if meter.add(length):
                    parts.append((open_part[0], open_part[1]))
                    open_part = [0, 0]
        return [*parts, (open_part[0], open_part[1])] if open_part[0] else parts


@dataclass(slots=True)
class _Meter:
    cut: Cut
    tokens: int = 0
    bytes: int = 0

    def add(self, length: int) -> bool:
        """Count a protein; whether it closes the part."""
        self.tokens += length + 2
        self.bytes += self.cut.per_record + length * self.cut.per_residue
        if self.tokens < self.cut.tokens and not (self.cut.bytes and self.bytes >= self.cut.bytes):
            return False
        self.tokens = self.bytes = 0
        return True


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a FASTA file holds, and that every record can be embedded.

    Attributes:
        records: proteins that will be embedded.
        residues: their length together, after truncation.
        digest: of names and sequences.
        lengths: of the proteins, (records,) uint32.
        hashes: of all names, sorted, (records,) uint64; empty where no name occurs twice.
    """

    records: int
    residues: int
    digest: str
    lengths: np.ndarray = field(repr=False)
    hashes: np.ndarray = field(repr=False)

    @property
    def repeated(self) -> np.ndarray:
        """Hashes of the names that occur more than once, sorted."""
        return np.unique(self.hashes[1:][self.hashes[1:] == self.hashes[:-1]])


def survey(source: Source) -> Survey:
    """Read the file as a whole, twelve bytes a record in memory.

    Raises:
        DataError: for a file that cannot be read twice, and for the first record that cannot be used.
    """
    path = source.path
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is a pipe, and the file is read twice", "write it to a file first; .gz will do")
    records = residues = 0
    nucleotides = Nucleotides()
    names, lengths, digest = array("Q"), array("I"), hashlib.blake2b(digest_size=16)
    for record in source.records():
        length = len(record.sequence)
        if source.longest is not None and length > source.longest:
            raise DataError(
                f"{path}: record {record.number} ({short(record.label)}) has {length:,} residues; contacts are for "
                f"at most {source.longest:,}",
                "raise --contacts-max, use --truncation_seq_length, or leave out contacts",
            )
        records, residues = records + 1, residues + length
        if not source.nucleotides:
            nucleotides.add(record.sequence)
        names.append(_hash(record.label))
        digest.update(f"{record.label}\0{record.sequence}\0".encode())
        lengths.append(length)
    if not records:
        raise DataError(f"{path}: no record is left to embed", "every one was skipped as invalid")
    nucleotides.refuse(path, "--nucleotides reads the letters as amino acids all the same")
    hashes = np.sort(np.frombuffer(names, np.uint64))
    found = Survey(
        records=records,
        residues=residues,
        digest=digest.hexdigest(),
        lengths=np.frombuffer(lengths, np.uint32),
        hashes=hashes if (hashes[1:] == hashes[:-1]).any() else hashes[:0],
    )
    if len(found.hashes) and source.on_duplicate == "error":
        _complain(source, found)
    return found


def _complain(source: Source, found: Survey) -> None:
    """Raise for two records of one name; two names of one hash are no trouble."""
    doubtful = set(found.repeated.tolist())
    places: dict[str, int] = {}
    for record in source.records():
        if _hash(record.label) not in doubtful:
            continue
        if record.label in places:
            raise same_name(source.path, record.number, places[record.label], record.label)
        places[record.label] = record.number


class _Names:
    """Makes names different: a name that comes again gets _2, _3, ..., past those that the file uses itself."""

    def __init__(self, found: Survey) -> None:
        self._taken = found.hashes
        self._repeated = set(found.repeated.tolist())
        self._count: dict[str, int] = {}

    def next(self, label: str) -> str:
        if _hash(label) not in self._repeated:
            return label
        count = self._count.get(label, 0) + 1
        self._count[label] = count
        if count == 1:
            return label
        while self._is_taken(f"{label}_{count}"):
            count += 1
        self._count[label] = count
        return f"{label}_{count}"

    def _is_taken(self, label: str) -> bool:
        code = np.uint64(_hash(label))
        place = int(np.searchsorted(self._taken, code))
        return place < len(self._taken) and self._taken[place] == code


def _hash(label: str) -> int:
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little")
