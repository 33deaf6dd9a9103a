"""Interaction graphs of proteins: from STRING's files, any list of edges with sequences, or networkx."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError, PluginError
from seqgraph_lc_plm.fasta import LETTERS, Nucleotides, OnInvalid, read_fasta
from seqgraph_lc_plm.table import read_columns

OnMissing = Literal["error", "skip"]
NETWORKX = (".graphml", ".gml", ".gexf")

# first cells of the headers of STRING's actions and links, and of lists as they are often written
_HEADERS = {("item_id_a", "item_id_b"), ("protein1", "protein2"), ("source", "target"), ("node1", "node2"),
            ("from", "to"), ("a", "b")}  # fmt: skip
_SCORES = ("combined_score", "score", "weight")
_SHOWN = 10
_GONE = str.maketrans("", "", LETTERS)


@dataclass(frozen=True)
class InteractionGraph:
    """Proteins and which of them interact.

    What :func:`seqgraph.tokenize.interaction.interaction_contexts` takes as data.

    Attributes:
        names: of the proteins, V texts, unique.
        sequences: of the proteins, V texts.
        edge_index: (2, M) int64, each interaction once, the smaller index first; no loops.
    """

    names: list[str]
    sequences: list[str]
    edge_index: Tensor

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each protein by its name."""
        return {name: number for number, name in enumerate(self.names)}

    def among(self, keep: Tensor) -> Tensor:
        """The interactions (2, M') between proteins that are kept, a mask (V,)."""
        return self.edge_index[:, keep[self.edge_index].all(0)]

    @classmethod
    def from_networkx(cls, graph: Any, sequences: Mapping[str, str] | None = None) -> InteractionGraph:
        """The graph of networkx: nodes by their names, their sequences, and edges in whatever direction.

        Args:
            graph: nodes are proteins; parallel edges count once, loops not at all.
            sequences: name -> sequence; None reads the attribute "sequence" of each node.

        Raises:
            DataError: naming the first ten proteins without a sequence.
        """
        if sequences is None:
            found = {str(node): str(data["sequence"]) for node, data in graph.nodes(data=True) if data.get("sequence")}
        else:
            found = {str(name): text for name, text in sequences.items()}
        nodes = [str(node) for node in graph.nodes]
        _refuse_missing("the graph", [node for node in nodes if node not in found], len(nodes))
        kept = {node: _tidy(found[node], f"node {node!r}", "error") for node in nodes}
        return _build(kept, ((str(a), str(b)) for a, b, *_ in graph.edges))


def read_graph(
    path: str | Path,
    sequences: str | Path | None = None,
    *,
    min_score: float = 0.0,
    on_missing: OnMissing = "error",
    on_invalid: OnInvalid = "error",
) -> InteractionGraph:
    """Read an interaction graph.

    Args:
        path: interactions: STRING's links or actions, or any table whose first two columns name two proteins, separated
            by tabs, commas or blanks, with or without a header, plain or gzip; or a graph that networkx wrote
            (.graphml, .gml, .gexf).
        sequences: FASTA file (a name is the first word of its header), or a table of name, tab, sequence without a
            header; for networkx's files it may be None: then the nodes have an attribute "sequence".
        min_score: leave out interactions whose score is below it (STRING: 0 to 1000).
        on_missing: names without a sequence: "error", or "skip" such interactions.
        on_invalid: letters that are no amino acids: "error", "unk" (read as <unk>) or "skip" the protein.

    Returns:
        Every protein that has a sequence, with or without an interaction, in the order of the sequences.

    Raises:
        DataError: for a file that cannot be read, naming the line; for names without a sequence, the first ten.
        ConfigError: for a threshold where there are no scores, or no sequences.
    """
    path = Path(path)
    if NETWORKX[0] in path.suffixes or path.suffix in NETWORKX:
        graph = _networkx(path)
        found = None if sequences is None else dict(read_sequences(Path(sequences), on_invalid=on_invalid))
        return InteractionGraph.from_networkx(graph, found)
    if sequences is None:
        raise ConfigError(f"{path} names proteins; their sequences are needed too", "data.sequences=proteins.fasta")
    known = dict(read_sequences(Path(sequences), on_invalid=on_invalid))
    pairs = list(_pairs(path, min_score))
    if on_missing == "error":
        named = dict.fromkeys(itertools.chain.from_iterable(pairs))
        _refuse_missing(f"{path}", [name for name in named if name not in known], len(named), Path(sequences))
    graph_ = _build(known, (pair for pair in pairs if pair[0] in known and pair[1] in known))
    if not graph_.edge_index.shape[1]:
        raise DataError(f"{path}: no interaction of two proteins of {sequences} is left", "check names and min_score")
    return graph_


def read_sequences(path: Path, *, on_invalid: OnInvalid = "error") -> Iterator[tuple[str, str]]:
    """Yield (name, sequence) of a FASTA file, or of a table of name, tab, sequence; plain or compressed.

    Raises:
        DataError: naming the record or line that cannot be used, or a name that comes twice; for DNA.
    """
    seen: set[str] = set()
    nucleotides = Nucleotides()
    records: Iterable[tuple[str, str, str]]
    if _is_fasta(path):
        records = (
            (record.label, record.sequence, f"record {record.number}")
            for record in read_fasta(path, on_invalid=on_invalid, on_duplicate="error", first_word=True)
        )
    else:
        rows = read_columns(path, ["name", "sequence"], ["name", "sequence"])
        records = ((name, text, f"line {line}") for line, (name, text) in rows)
    for name, text, where in records:
        sequence = _tidy(text, f"{path}: {where} ({name})", on_invalid)
        if not sequence:
            continue
        if name in seen:
            raise DataError(f"{path}: {where}: the name {name} is there already", "names must be unique")
        seen.add(name)
        nucleotides.add(sequence)
        yield name, sequence
    nucleotides.refuse(path)


def _tidy(text: str, where: str, on_invalid: OnInvalid) -> str:
    """Upper case without a final stop; "" for what is to be left out."""
    sequence = text.strip().upper().removesuffix("*")
    wrong = sequence.translate(_GONE)
    if (wrong and on_invalid == "error") or (not sequence and on_invalid != "skip"):
        said = f"{wrong[0]!r} is no amino acid" if sequence else "the sequence is empty"
        raise DataError(f"{where}: {said}", "mend it, or on_invalid=skip (leave it out) or unk (read <unk>)")
    return "" if wrong and on_invalid == "skip" else sequence


def _is_fasta(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(2)
        if head == b"\x1f\x8b":
            with gzip.open(path) as packed:
                head = packed.read(1)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}", "check the path, or give its folder by --data-root"
        ) from None
    return head.startswith(b">") or path.suffix in (".fasta", ".fa", ".faa")


def _pairs(path: Path, min_score: float) -> Iterator[tuple[str, str]]:
    """The two names of every line with a score that suffices."""
    score: int | None = None
    found = 0
    for number, line in enumerate(_lines(path), start=1):
        cells = [cell.strip() for cell in (line.split("\t") if "\t" in line else line.replace(",", " ").split())]
        if not any(cells):
            continue
        if len(cells) < 2:
            raise DataError(f"{path}: line {number} has one cell: {line.strip()[:40]!r}", "two proteins a line")
        if number == 1 and (line.startswith("#") or tuple(cell.lower() for cell in cells[:2]) in _HEADERS):
            names = [cell.lower().lstrip("#") for cell in cells]
            score = next((names.index(name) for name in _SCORES if name in names), None)
            continue
        if score is None and min_score > 0:
            raise ConfigError(
                f"{path} has no column of scores to compare min_score={min_score:g} with",
                f"its first line must name one {' or '.join(_SCORES)}",
            )
        if score is not None and min_score > 0 and _number(path, number, cells, score) < min_score:
            continue
        found += 1
        yield cells[0], cells[1]
    if not found:
        raise DataError(f"{path}: no interactions in it", "two proteins a line; is min_score too high?")


def _number(path: Path, line: int, cells: list[str], place: int) -> float:
    try:
        return float(cells[place])
    except (ValueError, IndexError):
        raise DataError(f"{path}: line {line} has no number in column {place + 1}", "mend the line") from None


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig") as lines:
            yield from lines
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "check the path, or give its folder by --data-root") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "give text, plain or gzip") from None


def _networkx(path: Path) -> Any:
    try:
        import networkx
    except ImportError:
        raise PluginError(f"{path.name} is read by networkx", 'pip install "seqgraph[graph]"') from None
    kind = next(suffix for suffix in NETWORKX if suffix in path.suffixes)
    try:
        return getattr(networkx, f"read_{kind[1:]}")(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "check the path") from None
    except Exception as error:  # the readers raise what their parsers do
        raise DataError(f"{path} cannot be read as {kind[1:]}: {error}", "write it by networkx once more") from None


def _refuse_missing(where: str, missing: list[str], named: int, sequences: Path | None = None) -> None:
    if not missing:
        return
    more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
    of = f" in {sequences}" if sequences else ""
    raise DataError(
        f"{where}: {len(missing):,} of {named:,} proteins have no sequence{of}: {', '.join(missing[:_SHOWN])}{more}",
        "are the names written alike in both files? on_missing=skip (--skip-missing) leaves their interactions out",
    )


def _build(sequences: Mapping[str, str], pairs: Iterable[tuple[str, str]]) -> InteractionGraph:
    index = {name: number for number, name in enumerate(sequences)}
    ends = np.array([(index[a], index[b]) for a, b in pairs], np.int64).reshape(-1, 2)
    ends = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], axis=1), axis=0)
    return InteractionGraph(list(sequences), list(sequences.values()), torch.from_numpy(ends.T.copy()))
