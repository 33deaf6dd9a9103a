"""Walks over an interaction graph to learn from: each a context of several proteins (LC-PLM-G, arXiv 2411.08909)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.interaction import join_contexts, negative_walks, node2vec_walks
from seqgraph.tokenize.protein import ProteinAlphabet
from seqgraph.train.task import Dataset, Split
from seqgraph_lc_plm.data import SPLITS, hashed_splits
from seqgraph_lc_plm.fasta import OnInvalid
from seqgraph_lc_plm.graph import OnMissing, read_graph


@dataclass(frozen=True)
class Context:
    """Proteins that are read together.

    Attributes:
        sequences: of the proteins, the first is the one that the context is of.
        negative: whether they are joined by <no_edge>, since no two neighbours interact.
    """

    sequences: tuple[str, ...]
    negative: bool


class Contexts(Sequence[Context]):
    """Walks, written out when they are asked for; long proteins are cut at random each time.

    The place of the cut comes from torch's global generator, which the trainer saves and restores.

    Args:
        sequences: of the graph's proteins, (V,).
        paths: proteins of each walk, (C, n) int64, -1 behind the end.
        negative: which walks join proteins without an interaction, (C,) bool.
        max_length: residues of a protein at most; None for whole proteins.
    """

    def __init__(self, sequences: Sequence[str], paths: Tensor, negative: Tensor, max_length: int | None) -> None:
        self.sequences, self.max_length = sequences, max_length
        self.paths, self.negative = paths.numpy(), negative.numpy()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        path = self.paths[index]
        texts = tuple(self._cut(self.sequences[place]) for place in path[path >= 0].tolist())
        return Context(texts, bool(self.negative[index]))

    def lengths(self) -> np.ndarray:
        """Tokens of each context: residues, <cls> and <eos> of each protein, and a link between two."""
        residues = np.array([len(text) for text in self.sequences])
        if self.max_length is not None:
            residues = np.minimum(residues, self.max_length)
        there = self.paths >= 0
        return np.where(there, residues[self.paths] + 3, 0).sum(1) - 1

    def _cut(self, sequence: str) -> str:
        spare = len(sequence) - self.max_length if self.max_length is not None else 0
        if spare <= 0 or self.max_length is None:
            return sequence
        start = int(torch.randint(spare + 1, ()))
        return sequence[start : start + self.max_length]


class Interactions(Dataset):
    """Contexts of a graph's proteins: node2vec walks, negative ones, and proteins by themselves.

    Proteins, not interactions, are held out: a protein's split is a hash of its sequence. Training walks go over the
    training proteins alone. A held-out protein is read with the neighbours that it has in the whole graph.

    Each training protein begins ``walks`` contexts, drawn once; an epoch has one of each protein's, the next one each
    time. A walk ends where it comes back to a protein that it has seen: a second copy would give away what is masked
    in the first.

    Args:
        path: interactions; see :func:`seqgraph_lc_plm.graph.read_graph`.
        sequences: FASTA file or table of the proteins.
        root: folder that relative paths start from.
        proteins: of a context at most.
        walks: contexts that begin at each training protein.
        p: node2vec's return parameter.
        q: node2vec's in-out parameter.
        negatives: share of the training contexts whose proteins do not interact, joined by <no_edge>.
        singles: share of the training contexts with one protein, so that it can still be read by itself.
        max_length: training proteins are cropped to it, at random and anew each time; None trains on whole ones.
        min_score: see ``read_graph``.
        valid_fraction: share of the proteins held out to choose the best epoch.
        test_fraction: share held out for the last evaluation.
        split_seed: another number gives other splits and walks.
        on_missing: see ``read_graph``.
        on_invalid: likewise.

    Raises:
        DataError: for files that cannot be used, names without a sequence, or a split that came out empty.
        ConfigError: for shares that do not add up.
    """

    def __init__(
        self,
        *,
        path: str,
        sequences: str | None = None,
        root: str | None = None,
        proteins: int = 3,
        walks: int = 16,
        p: float = 4.0,
        q: float = 1.0,
        negatives: float = 0.25,
        singles: float = 0.25,
        max_length: int | None = 1022,
        min_score: float = 0.0,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.05,
        split_seed: int = 0,
        on_missing: OnMissing = "error",
        on_invalid: OnInvalid = "error",
    ) -> None:
        if negatives + singles > 1:
            raise ConfigError(f"negatives {negatives} and singles {singles} are more than all contexts")
        base = Path(root or "")
        graph = read_graph(
            base / path,
            None if sequences is None else base / sequences,
            min_score=min_score,
            on_missing=on_missing,
            on_invalid=on_invalid,
        )
        self.graph, self.walks = graph, walks
        self.alphabet = ProteinAlphabet(links=True)
        self.walking: dict[str, Any] = {"proteins": proteins, "p": p, "q": q}
        places = np.array(hashed_splits(graph.sequences, valid_fraction, test_fraction, split_seed))
        self.members = {name: torch.from_numpy(np.flatnonzero(places == name)) for name in SPLITS}
        fractions = {"train": 1.0, "valid": valid_fraction, "test": test_fraction}
        for name, fraction in fractions.items():
            if fraction and not len(self.members[name]):  # type: ignore[index]
                raise DataError(
                    f"{base / path}: no protein of {len(places)} fell into {name}", "larger fractions, or split_seed"
                )
        generator = torch.Generator().manual_seed(split_seed)
        inner = graph.among(torch.from_numpy(places == "train"))
        starts = self.members["train"].repeat_interleave(walks)
        paths = walk(inner, len(places), starts, generator=generator, **self.walking)
        kind = torch.rand(len(starts), generator=generator, dtype=torch.float64)
        negative, single = kind < negatives, kind >= 1 - singles
        if bool(negative.any()):
            strangers = negative_walks(inner, len(places), starts[negative], proteins, generator=generator)
            paths[negative] = cut_repeats(_only(strangers, torch.from_numpy(places == "train")))
        paths[single, 1:] = -1
        whole: dict[Split, Contexts] = {"train": Contexts(graph.sequences, paths, negative, max_length)}
        for name in SPLITS[1:]:
            held = self.members[name]
            paths = walk(graph.edge_index, len(places), held, generator=generator, **self.walking)
            whole[name] = Contexts(graph.sequences, paths, torch.zeros(len(held), dtype=torch.bool), None)
        self.contexts = whole

    def split(self, name: Split) -> Contexts:
        """Contexts of one split; the proteins of those of "train" are cropped at random."""
        return self.contexts[name]

    def lengths(self, name: Split) -> list[int]:
        """Tokens of each context, after cropping."""
        return self.contexts[name].lengths().tolist()

    def draw(self, name: Split, epoch: int, seed: int) -> np.ndarray | None:
        """One context of each training protein, the next one in each epoch; see :meth:`Dataset.draw`."""
        if name != "train":
            return None
        count = len(self.members["train"])
        first = np.random.default_rng(seed).integers(self.walks, size=count)
        return np.arange(count) * self.walks + (first + epoch) % self.walks

    def collate(self, examples: list[Context]) -> TokenStream:
        """Contexts -> ids (T,) int64 with roles; ``source`` numbers the batch's proteins, each copy by itself."""
        return join(self.alphabet, examples)

    def assets(self) -> dict[str, Any]:
        """The tokens by id, and how the contexts were made."""
        return {"alphabet": list(self.alphabet.tokens), "contexts": self.walking}

    def fingerprint(self) -> str:
        """Hash of the sequences and of every context."""
        digest = hashlib.sha256("\n".join(self.graph.sequences).encode())
        for name in SPLITS:
            part = self.contexts[name]
            digest.update(f"\n{name} {part.max_length}\n".encode())
            digest.update(part.paths.astype("<i8").tobytes() + part.negative.tobytes())
        return digest.hexdigest()[:16]


def join(alphabet: ProteinAlphabet, contexts: Sequence[Context]) -> TokenStream:
    """Contexts as a stream, one segment each; see :func:`seqgraph.tokenize.interaction.join_contexts`."""
    counts = torch.tensor([len(context.sequences) for context in contexts], dtype=torch.int64)
    encoded = alphabet.encode([text for context in contexts for text in context.sequences], unknown="unk")
    column = torch.arange(int(counts.max()) if len(counts) else 1)
    there = column < counts[:, None]
    paths = torch.full(there.shape, -1)
    paths[there] = torch.arange(int(counts.sum()))
    return join_contexts(encoded, paths, torch.tensor([context.negative for context in contexts], dtype=torch.bool))


def walk(
    edge_index: Tensor, num_nodes: int, starts: Tensor, *, proteins: int, p: float, q: float, generator: torch.Generator
) -> Tensor:
    """node2vec walks (W, proteins), each cut where it would meet a protein again; -1 behind the end."""
    return cut_repeats(node2vec_walks(edge_index, num_nodes, starts, proteins, p=p, q=q, generator=generator))


def cut_repeats(paths: Tensor) -> Tensor:
    """Walks (W, n) up to the first node that they have seen before; -1 behind."""
    again = torch.zeros_like(paths, dtype=torch.bool)
    for place in range(1, paths.shape[1]):
        again[:, place] = (paths[:, :place] == paths[:, place : place + 1]).any(1)
    return paths.masked_fill(again.cumsum(1) > 0, -1)


def _only(paths: Tensor, allowed: Tensor) -> Tensor:
    """Walks up to the first node that is not allowed (V,): where no node with an edge is left, any may be drawn."""
    outside = (paths < 0) | ~allowed[paths.clamp_min(0)]
    return paths.masked_fill(outside.cumsum(1) > 0, -1)
