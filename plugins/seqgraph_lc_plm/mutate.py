"""Variants of a protein and their zero-shot scores, in ProteinGym's form."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph_lc_plm.base import ProteinLM
from seqgraph_lc_plm.fasta import LETTERS, read_fasta, refuse_nucleotides
from seqgraph_lc_plm.scoring import Method, log_probabilities

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
_ONE = re.compile(r"([A-Za-z])(\d+)([A-Za-z])\Z")
# How tables name the protein as it is.
_WILD = ("", "wt", "_wt", "wild-type", "wildtype", "p.=")


@dataclass(frozen=True, slots=True)
class Substitution:
    """One residue for another.

    Attributes:
        old: letter that the protein has.
        place: from 0.
        new: letter in its stead.
    """

    old: str
    place: int
    new: str


@dataclass(frozen=True)
class Table:
    """A CSV file of variants.

    Attributes:
        path: where it is.
        columns: their names.
        rows: of texts, (N,) of (columns,).
    """

    path: Path
    columns: list[str]
    rows: list[list[str]]

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a CSV file, plain or gzip, with a header.

        Raises:
            DataError: for a file that is missing, empty or broken, or a row of another number of cells.
        """
        try:
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode("utf-8-sig")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file", "check the path") from None
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}", "give a CSV file, plain or gzip") from None
        lines = [row for row in csv.reader(io.StringIO(text)) if row]
        if len(lines) < 2:
            raise DataError(f"{path}: no variants in it", "expected a header with a column 'mutant', then the rows")
        columns, rows = lines[0], lines[1:]
        for number, row in enumerate(rows, start=1):
            if len(row) != len(columns):
                raise DataError(f"{path}: row {number} has {len(row)} cells, the header {len(columns)}", "mend the row")
        return cls(path, columns, rows)

    def column(self, name: str) -> list[str]:
        """The cells of a column.

        Raises:
            DataError: when there is none of the name.
        """
        if name not in self.columns:
            raise DataError(f"{self.path}: no column {name!r}", f"there are: {', '.join(self.columns)}")
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def text(self, name: str, values: Iterable[float]) -> str:
        """The table as CSV with one more column.

        Raises:
            ConfigError: when it has one of that name.
        """
        self.refuse(name)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*self.columns, name])
        writer.writerows([*row, f"{value:.6f}"] for row, value in zip(self.rows, values, strict=True))
        return out.getvalue()

    def refuse(self, name: str) -> None:
        """Raise ConfigError when there is a column of the name already."""
        if name in self.columns:
            raise ConfigError(f"{self.path} has a column {name!r} already", "choose another by --score-column")


def parse(text: str) -> list[Substitution]:
    """Read "A24C", or several joined by ":" (or ","); the protein as it is ("WT", "") gives none.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if text.strip().lower() in _WILD:
        return []
    found = []
    for word in re.split(r"[:,;\s]+", text.strip().removeprefix("p.")):
        match = _ONE.match(word)
        if match is None:
            raise ValueError(f"{word!r} is no substitution such as A24C; insertions and deletions have no score here")
        old, place, new = match.groups()
        found.append(Substitution(old.upper(), int(place) - 1, new.upper()))
    places = [one.place for one in found]
    if len({*places}) < len(places):
        raise ValueError("two substitutions at one position")
    return found


def check(variant: Sequence[Substitution], sequence: str, offset: int = 1) -> str | None:
    """What is wrong with a variant of a protein whose first residue has the number ``offset``, or None."""
    for one in variant:
        place = one.place + 1 - offset
        number = one.place + 1
        if not 0 <= place < len(sequence):
            return f"{one.old}{number}{one.new}: the sequence has residues {offset} to {offset + len(sequence) - 1}"
        if sequence[place] != one.old:
            return f"{one.old}{number}{one.new}: the sequence has {sequence[place]} at {number}"
        if one.new not in LETTERS:
            return f"{one.old}{number}{one.new}: {one.new} is no amino acid"
    return None


def variants(table: Table, sequence: str, *, column: str = "mutant", offset: int = 1) -> list[list[Substitution]]:
    """The variants of a table, each checked against the protein, with places in it from 0.

    Raises:
        DataError: naming the row.
    """
    found = []
    for number, text in enumerate(table.column(column), start=1):
        try:
            variant = parse(text)
            wrong = check(variant, sequence, offset)
        except ValueError as error:
            variant, wrong = [], str(error)
        if wrong:
            raise DataError(
                f"{table.path}: row {number}: {wrong}",
                "check --sequence, and --offset if the numbers do not begin at 1",
            )
        found.append([Substitution(one.old, one.place + 1 - offset, one.new) for one in variant])
    return found


def wild_type(table: Table, *, column: str = "mutant", mutated: str = "mutated_sequence", offset: int = 1) -> str:
    """The protein that a table's variants come from: its first mutated sequence, with the old letters put back.

    Raises:
        DataError: when the table has no such column, the row does not fit, or it is DNA.
    """
    if mutated not in table.columns:
        raise DataError(
            f"{table.path} has no column {mutated!r} to tell the protein from", "give it by --sequence or --fasta"
        )
    try:
        variant = parse(table.column(column)[0])
    except ValueError as error:
        raise DataError(f"{table.path}: row 1: {error}", "give the protein by --sequence or --fasta") from None
    letters = list(table.column(mutated)[0].strip().upper())
    for one in variant:
        place = one.place + 1 - offset
        if not 0 <= place < len(letters) or letters[place] != one.new:
            raise DataError(
                f"{table.path}: row 1: {mutated} does not have {one.new} at {one.place + 1}",
                "give the protein by --sequence or --fasta, and --offset if the numbers do not begin at 1",
            )
        letters[place] = one.old
    refuse_nucleotides(["".join(letters)], f"the column {mutated!r} of {table.path}")
    return "".join(letters)


def protein(sequence: str | None, fasta: Path | None) -> str | None:
    """The protein that was given as letters or as the only record of a file; None when neither was.

    Raises:
        DataError: for a file of several, or DNA.
        ConfigError: when both were given.
    """
    if sequence is not None and fasta is not None:
        raise ConfigError("--sequence and --fasta both give the protein", "leave out one")
    if fasta is None:
        if sequence is None:
            return None
        sequence = sequence.strip().upper().removesuffix("*")
        refuse_nucleotides([sequence], "--sequence")
        return sequence
    records = read_fasta(fasta)
    found = next(records).sequence
    if next(records, None) is not None:
        raise DataError(f"{fasta} holds several proteins", "give a file with the one that the variants are of")
    refuse_nucleotides([found], fasta)
    return found


def score(
    model: ProteinLM,
    sequence: str,
    found: Sequence[Sequence[Substitution]],
    *,
    method: Method = "masked-marginals",
    max_tokens: int = 16384,
    progress: Callable[[int], Any] = lambda positions: None,
    on_halved: Callable[[int], Any] = lambda tokens: None,
) -> np.ndarray:
    """Sum over a variant's substitutions of log p(new) - log p(old) at their places (Meier et al. 2021, ESM-1v).

    As in their program and ProteinGym's, each position is masked by itself in the protein as it is, also for variants
    of several substitutions. Nothing is cut into windows.

    Returns:
        (variants,) float64; 0 for the protein itself; higher is better.
    """
    places = sorted({one.place for variant in found for one in variant})
    table = log_probabilities(
        model, sequence, places, method=method, max_tokens=max_tokens, progress=progress, on_halved=on_halved
    )
    row = {place: i for i, place in enumerate(places)}
    ids = {letter: model.alphabet.to_id(letter) for letter in LETTERS}
    logs = table.double().numpy()
    return np.array(
        [sum(logs[row[o.place], ids[o.new]] - logs[row[o.place], ids[o.old]] for o in variant) for variant in found],
        dtype=np.float64,
    )


def spearman(table: Table, target: str, scores: np.ndarray) -> float | None:
    """Spearman's rho of the scores with a column, over its rows that hold numbers; None where there are not three."""
    if target not in table.columns:
        return None
    measured = np.array([_number(cell) for cell in table.column(target)])
    there = np.isfinite(measured)
    if there.sum() < 3 or len({*measured[there].tolist()}) == 1 or len({*scores[there].tolist()}) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(measured[there], scores[there]).statistic)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def saturation(
    model: ProteinLM,
    sequence: str,
    *,
    method: Method = "masked-marginals",
    max_tokens: int = 16384,
    progress: Callable[[int], Any] = lambda positions: None,
    on_halved: Callable[[int], Any] = lambda tokens: None,
) -> Tensor:
    """Scores of all single substitutions.

    Returns:
        (20, L) float32, rows as :data:`AMINO_ACIDS`; 0 where the letter is the protein's own.
    """
    table = log_probabilities(
        model, sequence, method=method, max_tokens=max_tokens, progress=progress, on_halved=on_halved
    )
    own = model.alphabet.encode([sequence], cls=False, eos=False).values
    letters = torch.tensor([model.alphabet.to_id(letter) for letter in AMINO_ACIDS])
    return (table[:, letters] - table.gather(1, own[:, None])).T.contiguous()


def saturation_csv(scores: np.ndarray, sequence: str, offset: int = 1) -> str:
    """The scores (20, L) of all single substitutions as CSV: mutant, score."""
    lines = ["mutant,score"]
    for place, old in enumerate(sequence):
        lines += [
            f"{old}{place + offset}{new},{scores[row, place]:.6f}" for row, new in enumerate(AMINO_ACIDS) if new != old
        ]
    return "\n".join(lines) + "\n"
