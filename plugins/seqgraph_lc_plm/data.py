"""Proteins to learn from: the shipped Swiss-Prot sample, any FASTA file, or a table with splits and clusters."""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqgraph.errors import ConfigError, DataError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import ProteinAlphabet
from seqgraph.train.task import Dataset, Split
from seqgraph_lc_plm.fasta import LETTERS, OnDuplicate, OnInvalid, read_fasta, refuse_nucleotides
from seqgraph_lc_plm.table import read_columns

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
SPECIAL_TOKENS = 2  # <cls> and <eos>
_GONE = str.maketrans("", "", LETTERS)


class Crops(Sequence[str]):
    """Sequences, of which the longer ones are cut at random to a length each time they are asked for.

    The place of the cut comes from torch's global generator, which the trainer saves and restores.
    """

    def __init__(self, sequences: Sequence[str], max_length: int) -> None:
        self.sequences, self.max_length = sequences, max_length

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: Any) -> Any:
        sequence = self.sequences[index]
        spare = len(sequence) - self.max_length
        if spare <= 0:
            return sequence
        start = int(torch.randint(spare + 1, ()))
        return sequence[start : start + self.max_length]


class Proteins(Dataset):
    """Amino-acid sequences in three splits: what the data sets have in common.

    Args:
        sequences: split -> sequences.
        max_length: training sequences are cropped to it, at random and anew each time; None trains on whole proteins.
            Validation and test always see whole proteins.
        families: the cluster of each training sequence; then an epoch has one sequence of each cluster, drawn anew.
    """

    def __init__(
        self, sequences: dict[Split, list[str]], max_length: int | None, families: Sequence[str] | None = None
    ) -> None:
        self.sequences = sequences
        self.max_length = max_length
        self.families = None if families is None else np.unique(np.array(families), return_inverse=True)[1]
        self.alphabet = ProteinAlphabet()

    def split(self, name: Split) -> Sequence[str]:
        """Sequences of one split; those of "train" are cropped at random."""
        if name == "train" and self.max_length is not None:
            return Crops(self.sequences[name], self.max_length)
        return self.sequences[name]

    def lengths(self, name: Split) -> list[int]:
        """Tokens of each sequence, with <cls> and <eos>, after cropping."""
        lengths = [len(sequence) for sequence in self.sequences[name]]
        if name == "train" and self.max_length is not None:
            lengths = [min(length, self.max_length) for length in lengths]
        return [length + SPECIAL_TOKENS for length in lengths]

    def draw(self, name: Split, epoch: int, seed: int) -> np.ndarray | None:
        """One training sequence of each cluster, in an epoch of its own; see :meth:`Dataset.draw`."""
        if name != "train" or self.families is None:
            return None
        lots = np.random.default_rng([seed, epoch]).random(len(self.families))
        order = np.lexsort((lots, self.families))
        families = self.families[order]
        return np.sort(order[np.append(True, families[1:] != families[:-1])])

    def collate(self, examples: list[str]) -> TokenStream:
        """Sequences -> ids (T,) int64 with roles."""
        return self.alphabet.encode(examples, unknown="unk")

    def assets(self) -> dict[str, Any]:
        """The tokens by id: what the saved numbers mean to a reader without this package."""
        return {"alphabet": list(self.alphabet.tokens)}

    def fingerprint(self) -> str:
        """Hash of every sequence, its split and its cluster, and of the crop length."""
        digest = hashlib.sha256(str(self.max_length).encode())
        for name in SPLITS:
            digest.update(f"\n{name}\n".encode())
            digest.update("\n".join(self.sequences[name]).encode())
        if self.families is not None:
            digest.update(self.families.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


class SwissProtSample(Proteins):
    """5,500 proteins of Swiss-Prot (2014_01), one a cluster of 50 % identity, families kept apart.

    No valid or test protein has a train neighbour of 50 % identity over 80 % of it. Train (5,000) and valid (200)
    have 40 to 300 residues; test has 250 of those and 50 of 301 to 2,000. ``sample/SOURCE.txt`` has the licence.

    Args:
        root: None: the sample ships with the package, and there is no other copy of it.
        max_length: see :class:`Proteins`.
    """

    def __init__(self, *, root: str | None = None, max_length: int | None = 1024) -> None:
        if root is not None:
            raise ConfigError(
                f"swissprot-sample ships with the package; it does not read {root}",
                "leave out --data-root; for proteins of your own: data.name=fasta data.path=FILE",
            )
        packed = resources.files("seqgraph_lc_plm").joinpath("sample/swissprot_sample.tsv.xz").read_bytes()
        sequences: dict[Split, list[str]] = {name: [] for name in SPLITS}
        self.accessions: dict[Split, list[str]] = {name: [] for name in SPLITS}
        for line in lzma.decompress(packed).decode("ascii").splitlines():
            accession, split, sequence = line.split("\t")
            sequences[split].append(sequence)  # type: ignore[index]
            self.accessions[split].append(accession)  # type: ignore[index]
        super().__init__(sequences, max_length)


class Fasta(Proteins):
    """The proteins of a FASTA file, split by a hash of the sequence: equal sequences always fall together.

    Similar ones do so with ``clusters``, where a whole cluster falls into one split and an epoch has one sequence of
    each. ``seqgraph cluster-proteins`` makes such a file, and so does MMseqs2.

    Args:
        path: FASTA file, plain or compressed.
        root: folder that a relative path starts from, that of the clusters too.
        clusters: table without header of cluster, tab, name of a member (the first word of its header); names that
            the FASTA file has not are left out.
        max_length: see :class:`Proteins`.
        valid_fraction: share of the sequences, or clusters, held out to choose the best epoch.
        test_fraction: share held out for the last evaluation.
        split_seed: another number gives another split.
        on_invalid: see :func:`seqgraph_lc_plm.fasta.read_fasta`.
        on_duplicate: likewise.

    Raises:
        DataError: for a file or record that cannot be used, DNA, a record in no cluster, or an empty split.
    """

    def __init__(
        self,
        *,
        path: str,
        root: str | None = None,
        clusters: str | None = None,
        max_length: int | None = 1024,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.05,
        split_seed: int = 0,
        on_invalid: OnInvalid = "error",
        on_duplicate: OnDuplicate = "number",
    ) -> None:
        file = Path(root, path) if root else Path(path)
        records = list(read_fasta(file, on_invalid=on_invalid, on_duplicate=on_duplicate))
        refuse_nucleotides((record.sequence for record in records), file)
        families: list[str] | None = None
        if clusters is not None:
            table = Path(root, clusters) if root else Path(clusters)
            families = _families(table, file, [record.label.split(maxsplit=1)[0] for record in records])
        keys = families or [record.sequence for record in records]
        splits = hashed_splits(keys, valid_fraction, test_fraction, split_seed)
        sequences, kept = divide([record.sequence for record in records], splits, families)
        _refuse_empty(file, sequences, {"train": 1.0, "valid": valid_fraction, "test": test_fraction})
        super().__init__(sequences, max_length, kept)


class ProteinTable(Proteins):
    """The proteins of a table: a column of sequences, and columns of splits and of clusters if there are any.

    Args:
        path: tab separated, or comma separated (.csv), plain or compressed.
        root: folder that a relative path starts from.
        columns: names of the columns, for a table without a header.
        sequence: name of the column of sequences.
        cluster: name of the column of clusters; then an epoch has one training sequence of each.
        split: name of the column that says train, valid or test; without it as in :class:`Fasta`.
        max_length: see :class:`Proteins`.
        valid_fraction: where there is no column of splits.
        test_fraction: likewise.
        split_seed: likewise.
        on_invalid: letters that are no amino acids: "error", "unk" (read as <unk>) or "skip" the row.

    Raises:
        ConfigError: for a column that is not there.
        DataError: for a row that cannot be used, naming its line, DNA, or a split that came out empty.
    """

    def __init__(
        self,
        *,
        path: str,
        root: str | None = None,
        columns: Sequence[str] | None = None,
        sequence: str = "sequence",
        cluster: str | None = None,
        split: str | None = None,
        max_length: int | None = 1024,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.05,
        split_seed: int = 0,
        on_invalid: OnInvalid = "error",
    ) -> None:
        file = Path(root, path) if root else Path(path)
        wanted = [name for name in (sequence, split, cluster) if name is not None]
        found: list[str] = []
        splits: list[str] = []
        families: list[str] = []
        for line, (letters, *rest) in read_columns(file, wanted, columns):
            letters = letters.upper().removesuffix("*")
            if wrong := letters.translate(_GONE) or (not letters and "nothing"):
                if on_invalid == "skip":
                    continue
                if on_invalid == "error" or not letters:
                    raise DataError(
                        f"{file}: line {line}: {wrong[:1]!r} is no amino acid"
                        if letters
                        else f"{file}: line {line}: the sequence is empty",
                        "mend the row, or data.on_invalid=skip (leave it out) or unk (read <unk>)",
                    )
            if split is not None:
                if rest[0] not in SPLITS:
                    raise DataError(f"{file}: line {line}: the split is {rest[0]!r}", "train, valid or test")
                splits.append(rest[0])
            if cluster is not None:
                families.append(rest[-1])
            found.append(letters)
        refuse_nucleotides(found, file)
        places = splits or hashed_splits(families or found, valid_fraction, test_fraction, split_seed)
        sequences, kept = divide(found, places, families or None)
        fractions = {"train": 1.0, "valid": valid_fraction, "test": test_fraction}
        _refuse_empty(file, sequences, {"train": 1.0} if split is not None else fractions)
        super().__init__(sequences, max_length, kept)


def divide(
    sequences: Sequence[str], splits: Sequence[str], families: Sequence[str] | None
) -> tuple[dict[Split, list[str]], list[str] | None]:
    """Sequences by split, and the clusters of those of "train"."""
    by_split: dict[Split, list[str]] = {name: [] for name in SPLITS}
    for text, place in zip(sequences, splits, strict=True):
        by_split[place].append(text)  # type: ignore[index]
    if families is None:
        return by_split, None
    return by_split, [family for family, place in zip(families, splits, strict=True) if place == "train"]


def hashed_splits(keys: Sequence[str], valid: float, test: float, seed: int) -> list[Split]:
    """The split of each key, by the key and the seed alone."""
    places: dict[str, Split] = {}
    for key in keys:
        if key not in places:
            place = _uniform(f"{seed}:{key}")
            places[key] = "test" if place < test else "valid" if place < test + valid else "train"
    return [places[key] for key in keys]


def _families(table: Path, fasta: Path, names: list[str]) -> list[str]:
    """The cluster of each name."""
    found: dict[str, str] = {}
    for line, (cluster, member) in read_columns(table, ["cluster", "member"], ["cluster", "member"]):
        if found.setdefault(member, cluster) != cluster:
            raise DataError(f"{table}: line {line}: {member} is in two clusters, {found[member]} and {cluster}")
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{table} has no cluster for {len(missing)} of the {len(names)} records of {fasta}: "
            f"{', '.join(missing[:10])}",
            f"make it from the same file: seqgraph cluster-proteins {fasta} -o {table}",
        )
    return [found[name] for name in names]


def _refuse_empty(file: Path, sequences: dict[Split, list[str]], fractions: dict[Any, float]) -> None:
    empty = [name for name, fraction in fractions.items() if not sequences[name] and fraction]
    if empty:
        counts = ", ".join(f"{name} {len(sequences[name])}" for name in SPLITS)
        raise DataError(
            f"{file}: no sequence fell into {empty[0]} ({counts})",
            "give more sequences, larger fractions or another split_seed",
        )


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
