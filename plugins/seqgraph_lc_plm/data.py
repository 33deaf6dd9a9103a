"""Proteins to learn from: the shipped Swiss-Prot sample, or any FASTA file."""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from seqgraph.errors import ConfigError, DataError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import ProteinAlphabet
from seqgraph.train.task import Dataset, Split
from seqgraph_lc_plm.fasta import OnDuplicate, OnInvalid, read_fasta

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
SPECIAL_TOKENS = 2  # <cls> and <eos>


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
    """Amino-acid sequences in three splits: what both data sets have in common.

    Args:
        sequences: split -> sequences.
        max_length: training sequences are cropped to it; validation and test see whole proteins.
    """

    def __init__(self, sequences: dict[Split, list[str]], max_length: int) -> None:
        self.sequences = sequences
        self.max_length = max_length
        self.alphabet = ProteinAlphabet()

    def split(self, name: Split) -> Sequence[str]:
        """Sequences of one split; those of "train" are cropped at random."""
        return Crops(self.sequences[name], self.max_length) if name == "train" else self.sequences[name]

    def lengths(self, name: Split) -> list[int]:
        """Tokens of each sequence, with <cls> and <eos>, after cropping."""
        longest = self.max_length if name == "train" else max(map(len, self.sequences[name]), default=0)
        return [min(len(s), longest) + SPECIAL_TOKENS for s in self.sequences[name]]

    def collate(self, examples: list[str]) -> TokenStream:
        """Sequences -> ids (T,) int64 with roles."""
        return self.alphabet.encode(examples)

    def assets(self) -> dict[str, Any]:
        """The tokens by id: what the saved numbers mean to a reader without this package."""
        return {"alphabet": list(self.alphabet.tokens)}

    def fingerprint(self) -> str:
        """Hash of every sequence and its split, and of the crop length."""
        digest = hashlib.sha256(str(self.max_length).encode())
        for name in SPLITS:
            digest.update(f"\n{name}\n".encode())
            digest.update("\n".join(self.sequences[name]).encode())
        return digest.hexdigest()[:16]


class SwissProtSample(Proteins):
    """5,500 proteins of Swiss-Prot (2014_01), one a cluster of 50 % identity, families kept apart.

    No valid or test protein has a train neighbour of 50 % identity over 80 % of it. Train (5,000) and valid (200)
    have 40 to 300 residues; test has 250 of those and 50 of 301 to 2,000. ``sample/SOURCE.txt`` has the licence.

    Args:
        root: None: the sample ships with the package, and there is no other copy of it.
        max_length: see :class:`Proteins`.
    """

    def __init__(self, *, root: str | None = None, max_length: int = 1024) -> None:
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

    Similar ones do not: for a test that means something, cluster the file first and keep one of each cluster.

    Args:
        path: FASTA file, plain or compressed.
        root: folder that a relative path starts from.
        max_length: see :class:`Proteins`.
        valid_fraction: share of the sequences held out to choose the best epoch.
        test_fraction: share held out for the last evaluation.
        split_seed: another number gives another split.
        on_invalid: see :func:`seqgraph_lc_plm.fasta.read_fasta`.
        on_duplicate: likewise.

    Raises:
        DataError: for a file or record that cannot be used, or a split that came out empty.
    """

    def __init__(
        self,
        *,
        path: str,
        root: str | None = None,
        max_length: int = 1024,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.05,
        split_seed: int = 0,
        on_invalid: OnInvalid = "error",
        on_duplicate: OnDuplicate = "number",
    ) -> None:
        file = Path(root, path) if root else Path(path)
        sequences: dict[Split, list[str]] = {name: [] for name in SPLITS}
        for record in read_fasta(file, on_invalid=on_invalid, on_duplicate=on_duplicate):
            place = _uniform(f"{split_seed}:{record.sequence}")
            if place < test_fraction:
                sequences["test"].append(record.sequence)
            elif place < test_fraction + valid_fraction:
                sequences["valid"].append(record.sequence)
            else:
                sequences["train"].append(record.sequence)
        fractions = {"train": 1.0, "valid": valid_fraction, "test": test_fraction}
        empty = [name for name in SPLITS if not sequences[name] and fractions[name]]
        if empty:
            counts = ", ".join(f"{name} {len(sequences[name])}" for name in SPLITS)
            raise DataError(
                f"{file}: no sequence fell into {empty[0]} ({counts})",
                "give more sequences, larger fractions or another split_seed",
            )
        super().__init__(sequences, max_length)


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
