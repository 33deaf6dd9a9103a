"""The proteins that models are trained and tested on, packed into one small table, and from there as text."""

from __future__ import annotations

import lzma
import os
import sys
from pathlib import Path
from random import Random

import numpy as np

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
WORD, SHARE, WORDS = 5, 0.03, 5
LONGER, LONGEST, MANY = 4096, 8192, 64
"""Residues that a very long protein has more than and at most; how many are held out (bits of a mask)."""


def pack(source: Path, target: Path, clusters: int, longest: int) -> None:
    """Of swissprot_2014_01.tsv.xz every held-out protein, and the first of each of so many training clusters.

    The test split has no protein of more than 4,096 residues. So some such clusters are taken out of training, as the
    split "long", and with them every training protein that shares 3 % of its words of five letters, and five at
    least, with one of them: unrelated proteins share .2 %, those of 50 % identity 3 % (.5^5) and more.
    """
    held, first = [], {}
    with lzma.open(source, "rt", encoding="ascii") as lines:
        for line in lines:
            _, cluster, split, sequence = line.rstrip("\n").split("\t")
            if split != "train":
                held.append((cluster, split, sequence))
            elif cluster not in first:
                first[cluster] = (cluster, split, sequence)
    whole = list(first.values())
    fit = [row for row in whole if LONGER < len(row[2]) <= LONGEST]
    long = Random(0).sample(fit, min(MANY, len(fit)))
    names = {row[0] for row in long}
    cut = [(cluster, split, text[:longest]) for cluster, split, text in whole if cluster not in names]
    alike = related([row[2] for row in cut], [row[2] for row in long])
    left = [row for row, bad in zip(cut, alike.tolist(), strict=True) if not bad]
    kept = Random(0).sample(left, min(clusters, len(left)))
    held += [(cluster, "long", text) for cluster, _, text in long]
    number: dict[str, int] = {}
    rows = [(str(number.setdefault(cluster, len(number))), split, text) for cluster, split, text in kept + held]
    text = "cluster\tsplit\tsequence\n" + "".join("\t".join(row) + "\n" for row in rows)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "pb": 0}]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lzma.compress(text.encode("ascii"), filters=filters))
    print(f"{len(kept):,} of {len(first):,} training clusters, {sum(len(row[2]) for row in kept):,} residues; "
          f"{len(held) - len(long):,} held-out proteins; taken out of training: {len(long)} of more than {LONGER:,} "
          f"residues and {alike.sum():,} like them; {target.stat().st_size:,} bytes")  # fmt: skip


def related(some: list[str], others: list[str]) -> np.ndarray:
    """Which of the first share words with any of at most 64 others, (N,) bool."""
    masks = np.zeros(len(LETTERS) ** WORD, np.uint64)
    for bit, text in enumerate(others):
        masks[words(text)] |= np.uint64(1 << bit)
    found = np.zeros(len(some), bool)
    for i, text in enumerate(some):
        own = words(text)
        shared = masks[own]
        shared = shared[shared > 0]
        if len(shared) >= max(WORDS, SHARE * len(own)):
            bits = np.unpackbits(shared.view(np.uint8).reshape(len(shared), 8), axis=1)
            found[i] = bits.sum(0).max() >= max(WORDS, SHARE * len(own))
    return found


def words(text: str) -> np.ndarray:
    """The distinct words of a protein by number; those with another letter than the twenty are left out."""
    code = np.full(256, -1)
    code[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS))
    letters = code[np.frombuffer(text.encode(), np.uint8)]
    if len(letters) < WORD:
        return np.empty(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(letters, WORD)
    return np.unique(windows[(windows >= 0).all(1)] @ len(LETTERS) ** np.arange(WORD))


def prepare(source: Path | None, work: Path) -> None:
    """The table as text: tune.tsv without test proteins, final.tsv with them, long.tsv of long ones as the test."""
    parts = {"tune": ("train", "valid"), "final": ("train", "valid", "test"), "long": ("long",)}
    if all((work / f"{name}.tsv").is_file() for name in parts):
        return
    if source is None or not source.is_file():
        sys.exit(f"{work}/final.tsv is not there: give the packed table by --data")
    work.mkdir(parents=True, exist_ok=True)
    text = lzma.decompress(source.read_bytes()).decode("ascii") if source.suffix == ".xz" else source.read_text()
    header, *lines = text.splitlines(keepends=True)
    for name, splits in parts.items():
        rows = [line for line in lines if line.split("\t", 2)[1] in splits]
        if name == "long":
            # A data set needs all three splits; nothing is trained on this one.
            rows = [line.replace("\tlong\t", f"\t{split}\t") for line in rows for split in ("train", "valid", "test")]
        new = work / f"{name}.{os.getpid()}.new"  # a search and a final may be at it at once
        new.write_text("".join([header, *rows]))
        new.replace(work / f"{name}.tsv")
