"""Reads the data of the downstream tasks from the folders in which they are published."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import lzma
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from seqgraph.errors import DataError
from seqgraph_lc_plm.fasta import read_fasta

STATES = "HEC"
FLIP_ZIP = "flip/secondary_structure.splits.zip"
CB513, TS115 = "secondary_structure_tests/CB513.csv.gz", "secondary_structure_tests/TS115.csv.gz"
ASTRAL = "scope_astral40/astral.fa.gz"
GB1 = "flip/gb1.splits.zip"
GYM = "proteingym_partial"
SWISSPROT = "swissprot2014"


@dataclass(frozen=True)
class Chains:
    """Proteins with a state of each residue.

    Attributes:
        sequences: the letters, N texts.
        states: index in ``STATES`` of every residue, one after another, int64; -1 where none counts.
    """

    sequences: list[str]
    states: np.ndarray


@dataclass(frozen=True)
class Domains:
    """SCOPe's domains.

    Attributes:
        sequences: N texts.
        folds: "a.1", N texts.
        superfamilies: "a.1.1", N texts.
    """

    sequences: list[str]
    folds: np.ndarray
    superfamilies: np.ndarray


def opened(path: Path) -> IO[str]:
    """A text file, plain, gzip or xz.

    Raises:
        DataError: when it is not there, saying where it was looked for.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", "give the folder that holds it by --data-root")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")


def zipped(path: Path, member: str) -> Iterator[str]:
    """Lines of a member of a zip file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file", "give the folder that holds it by --data-root")
    with zipfile.ZipFile(path) as archive, archive.open(member) as raw:
        for line in io.TextIOWrapper(raw, encoding="utf-8"):
            yield line.rstrip("\r\n")


# ---------------------------------------------------------------------- secondary structure
def secondary_structure(root: Path) -> dict[str, Chains]:
    """FLIP's train and validation chains (NetSurfP-2.0's), CB513, TS115 and FLIP's own test chains.

    Unresolved residues do not count, nor in CB513 those outside its mask. Chains of the training set whose sequence is
    one of CB513's or TS115's are left out.
    """
    tests = {"CB513": _csv_chains(root / CB513), "TS115": _csv_chains(root / TS115)}
    known = {text for chains in tests.values() for text in chains.sequences}
    texts, labels, masks = (list(_records(root / FLIP_ZIP, f"splits/{name}.fasta"))
                            for name in ("sequences", "sampled", "mask"))  # fmt: skip
    by_name = {header.split()[0]: text for header, text in texts}
    resolved = {header.split()[0]: text for header, text in masks}
    parts: dict[str, tuple[list[str], list[np.ndarray]]] = {name: ([], []) for name in ("train", "valid", "NEW364")}
    for header, states in labels:
        name, *words = header.split()
        said = dict(word.split("=") for word in words)
        text = by_name[name]
        if len(states) != len(text) or len(resolved[name]) != len(text):
            raise DataError(f"{root / FLIP_ZIP}: {name}: sequence, states and mask differ in length")
        part = "NEW364" if said["SET"] == "test" else "valid" if said["VALIDATION"] == "True" else "train"
        if part != "NEW364" and text in known:
            continue
        parts[part][0].append(text)
        parts[part][1].append(_states(states, np.array(list(resolved[name])) == "1"))
    found = {name: Chains(texts, np.concatenate(states)) for name, (texts, states) in parts.items()}
    return found | tests


def _records(path: Path, member: str) -> Iterator[tuple[str, str]]:
    header = ""
    parts: list[str] = []
    for line in zipped(path, member):
        if line.startswith(">"):
            if header:
                yield header, "".join(parts)
            header, parts = line[1:], []
        else:
            parts.append(line.strip())
    if header:
        yield header, "".join(parts)


def _csv_chains(path: Path) -> Chains:
    texts, states = [], []
    with opened(path) as lines:
        for row in csv.DictReader(lines):
            text = row.get("sequence") or row["input"]
            counts = [np.array(row[name].split(), float) == 1 for name in ("disorder", "cb513_mask")]
            texts.append(text)
            states.append(_states(row["dssp3"], counts[0] & counts[1]))
    return Chains(texts, np.concatenate(states))


def _states(text: str, counts: np.ndarray) -> np.ndarray:
    codes = np.array([STATES.index(letter) for letter in text])
    return np.where(counts, codes, -1)


# ---------------------------------------------------------------------- remote homology
def domains(root: Path) -> Domains:
    """ASTRAL's domains of the classes a to g."""
    texts, folds, superfamilies = [], [], []
    for record in read_fasta(root / ASTRAL, on_invalid="unk", on_duplicate="keep"):
        lineage = record.label.split()[1].split(".")
        texts.append(record.sequence)
        folds.append(".".join(lineage[:2]))
        superfamilies.append(".".join(lineage[:3]))
    return Domains(texts, np.array(folds), np.array(superfamilies))


def superfamily_split(data: Domains, seed: int = 0) -> dict[str, np.ndarray]:
    """Indices of train, valid and test: in each fold of two superfamilies and more, one is held out to be tested on,
    in those of three and more another one to choose the penalty by; a hash of the name and the seed says which."""
    inside: dict[str, list[str]] = {}
    for fold, superfamily in sorted(set(zip(data.folds.tolist(), data.superfamilies.tolist(), strict=True))):
        inside.setdefault(fold, []).append(superfamily)
    place: dict[str, str] = {}
    for members in inside.values():
        members.sort(key=lambda name: draw(f"{seed}:{name}"))
        if len(members) > 1:
            place[members[0]] = "test"
        if len(members) > 2:
            place[members[1]] = "valid"
    where = np.array([place.get(name, "train") for name in data.superfamilies.tolist()])
    return {name: np.flatnonzero(where == name) for name in ("train", "valid", "test")}


def draw(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


# ---------------------------------------------------------------------- fitness
@dataclass(frozen=True)
class Assay:
    """A deep mutational scan.

    Attributes:
        name: ProteinGym's.
        sequence: the protein.
        mutants: "A24C", N texts.
        scores: what was measured, (N,).
    """

    name: str
    sequence: str
    mutants: list[str]
    scores: np.ndarray


def assays(root: Path) -> list[Assay]:
    """The assays of ProteinGym that are there."""
    folder = root / GYM
    with opened(folder / "DMS_substitutions.csv.gz") as lines:
        targets = {row["DMS_id"]: row["target_seq"] for row in csv.DictReader(lines)}
    found = []
    for path in sorted(folder.glob("*.csv.gz")):
        name = path.name.removesuffix(".csv.gz")
        if name in targets:
            with opened(path) as lines:
                rows = list(csv.DictReader(lines))
            scores = np.array([float(row["DMS_score"]) for row in rows])
            found.append(Assay(name, targets[name], [row["mutant"] for row in rows], scores))
    return found


@dataclass(frozen=True)
class Variants:
    """Variants of one protein, in one split.

    Attributes:
        sequences: N texts of one length.
        targets: what was measured, (N,).
        test: which are the test set, (N,) bool.
    """

    sequences: list[str]
    targets: np.ndarray
    test: np.ndarray


def gb1(root: Path, split: str) -> Variants:
    """FLIP's GB1, split "one_vs_rest", "two_vs_rest", "three_vs_rest", "low_vs_high" or "sampled"."""
    rows = list(csv.DictReader(zipped(root / GB1, f"splits/{split}.csv")))
    rows = [row for row in rows if row["set"] in ("train", "test")]
    return Variants(
        [row["sequence"] for row in rows],
        np.array([float(row["target"]) for row in rows]),
        np.array([row["set"] == "test" for row in rows]),
    )


# ---------------------------------------------------------------------- function
def swissprot(root: Path) -> Iterator[tuple[str, str, str, str]]:
    """(accession, cluster, split, sequence) of Swiss-Prot."""
    with opened(root / SWISSPROT / "swissprot_2014_01.tsv.xz") as lines:
        for line in lines:
            accession, cluster, split, sequence = line.rstrip("\n").split("\t")
            yield accession, cluster, split, sequence


def direct_functions(root: Path) -> dict[str, str]:
    """Accession -> numbers of GO's molecular functions as annotated, with blanks between; of proteins that have any."""
    with opened(root / SWISSPROT / "go_annotations.tsv.xz") as lines:
        cells = (line.rstrip("\n").split("\t") for line in lines)
        return {accession: terms for accession, terms, *_ in cells if terms.strip(" ") not in ("", _ROOT)}


def molecular_functions(root: Path, annotated: dict[str, str]) -> dict[str, set[str]]:
    """Accession -> molecular functions, with every one that they are a kind or a part of, without the root."""
    parents: dict[str, list[str]] = {}
    with opened(root / SWISSPROT / "go_graph.tsv.xz") as lines:
        for line in lines:
            parent, child, distance, relation = line.split()
            if distance == "1" and relation in ("is_a", "part_of"):
                parents.setdefault(child[3:], []).append(parent[3:])
    above: dict[str, frozenset[str]] = {}

    def ancestors(term: str) -> frozenset[str]:
        if term not in above:
            above[term] = frozenset()  # for a ring, which GO does not have
            above[term] = frozenset({term}).union(*(ancestors(parent) for parent in parents.get(term, ())))
        return above[term]

    functions = {term for term in (*parents, _ROOT) if _ROOT in ancestors(term)} - {_ROOT}
    return {
        accession: set().union(*(ancestors(term) for term in terms.split())) & functions
        for accession, terms in annotated.items()
    }


_ROOT = "0003674"


def few(indices: Sequence[int] | np.ndarray, limit: int | None, keys: Sequence[str]) -> np.ndarray:
    """At most ``limit`` of the indices, chosen by a hash of their keys, in their order."""
    chosen = np.asarray(indices)
    if limit is None or len(chosen) <= limit:
        return chosen
    order = sorted(chosen.tolist(), key=lambda i: draw(keys[i]))
    return np.sort(np.array(order[:limit]))
