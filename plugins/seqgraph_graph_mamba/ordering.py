"""Node prioritization: which node comes when, with ties broken by seeded noise.

Graph-Mamba sorts nodes by degree, important nodes last, and permutes those of equal degree at random: one draw a
layer while training, the mean of several draws at inference. Noise at inference is a hash, not a generator, so that
a graph gets the same draws alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seqgraph.order import ORDERS, get_order, louvain
from seqgraph.order.hashing import mix64
from seqgraph_graph_mamba.gather import rank_within
from seqgraph_graph_mamba.graph import GraphBatch

Ties = Literal["canonical", "index"]
OrderFunction = Callable[..., Tensor]

# Rounds of colour refinement: nodes that look alike this many edges deep count as the same.
REFINEMENT_ROUNDS = 16
NOISE_BITS = 31
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


def resolve_order(order: str | OrderFunction) -> OrderFunction:
    """The function of a registered order, or the callable itself.

    "none" (nodes as they come), "random" (every node ties with every other) and "cluster" (Louvain's communities, for
    which the scores are labels) are ours; other names are those of ``seqgraph orders``.

    Raises:
        PluginError: for an unknown name, with the nearest ones.
    """
    if callable(order):
        return order
    return _OURS[order] if order in _OURS else get_order(order)


def _as_they_come(edge_index: Tensor, num_nodes: int, batch: Tensor, *, generator: object = None) -> Tensor:
    return torch.arange(num_nodes, device=batch.device)


def _all_equal(edge_index: Tensor, num_nodes: int, batch: Tensor, *, generator: object = None) -> Tensor:
    return torch.zeros(num_nodes, device=batch.device)


def _labels(edge_index: Tensor, num_nodes: int, batch: Tensor, *, generator: object = None) -> Tensor:
    return louvain(edge_index, num_nodes, batch)


_OURS: dict[str, OrderFunction] = {"none": _as_they_come, "random": _all_equal, "cluster": _labels}


# ---------------------------------------------------------------------- names
def hash_rows(features: Tensor) -> Tensor:
    """(R, F) -> (R,) int64; floating features by their bits in fp32."""
    if features.is_floating_point():
        # adding zero turns -0.0, which equals 0.0, into its bits
        features = (features.float() + 0.0).view(torch.int32)
    state = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    for column in features.long().unbind(1):
        state = mix64(state * 31 + column + 1)
    return state


def hash_edges(batch: GraphBatch) -> Tensor:
    """Hashes of the edges' features, (M,) int64; zeros where there are none."""
    if batch.edge_attr is not None and batch.num_edges:
        return hash_rows(batch.edge_attr)
    return batch.edge_index.new_zeros(batch.num_edges)


def node_colours(batch: GraphBatch, rounds: int = REFINEMENT_ROUNDS) -> Tensor:
    """Hashes (V,) int64 that depend on a node's surroundings, not on its number (Weisfeiler & Leman, 1968)."""
    source, target = batch.edge_index
    edge = hash_edges(batch)
    colour = hash_rows(batch.x)
    for _ in range(rounds):
        around = torch.zeros_like(colour).index_add(0, target, mix64(colour[source] * 3 + edge))
        colour = mix64(colour * 5 + around)
    return colour


def node_names(batch: GraphBatch, ties: Ties) -> Tensor:
    """What the noise of a node is derived from, (V,) int64.

    "canonical": its colour, so that another numbering of the nodes gives the same draws, except among nodes that
    look alike (they keep their order). "index": its number within its own graph.
    """
    if ties == "canonical":
        return node_colours(batch)
    return torch.arange(batch.num_nodes, device=batch.device) - batch.cu_seqlens[batch.batch].long()


def seeded_noise(names: Tensor, seed: int, layer: int, draws: range, purpose: int = 0) -> Tensor:
    """Noise (P, R) int64 for some draws of one layer, a function of its arguments alone."""
    keys = torch.tensor([[seed, layer, draw, purpose] for draw in draws], dtype=torch.int64, device=names.device)
    return mix64(names[None, :] * 7 + hash_rows(keys if purpose else keys[:, :3])[:, None])


@dataclass(frozen=True)
class Chance:
    """Where one layer's randomness comes from: torch's generator in training, a hash at inference.

    Attributes:
        names: of the nodes, (V,) int64; None draws from the generator.
        seed: of the hash.
        layer: which layer, so that each has draws of its own.
        draws: which draws; in training there is one.
    """

    names: Tensor | None = None
    seed: int = 0
    layer: int = 0
    draws: range = range(1)

    def noise(self, names: Tensor | None, count: int, device: torch.device, purpose: int = 0) -> Tensor:
        """Noise (P, count) int64 below 2^31: a row of fresh numbers, or hashes of ``names`` (count,)."""
        if names is None or self.names is None:
            drawn = torch.rand(len(self.draws), count, device=device)
            return (drawn * 2**NOISE_BITS).long().clamp(max=2**NOISE_BITS - 1)
        return seeded_noise(names, self.seed, self.layer, self.draws, purpose) & (2**NOISE_BITS - 1)


# ---------------------------------------------------------------------- scores
def rank_groups(scores: Tensor, batch: Tensor) -> Tensor:
    """Number the sets of equally important nodes of each graph, rising with graph and score.

    Scores that differ by rounding only (1e-6 of their size) are equal, or the order of symmetric nodes would hang on
    the order in which a sum was taken.

    Args:
        scores: (V,), important nodes high.
        batch: the graph of each node (V,).

    Returns:
        (V,) int64, equal within a set.
    """
    scores = scores.double()
    rank = scores.argsort(stable=True)
    rank = rank[batch[rank].argsort(stable=True)]
    ordered, owner = scores[rank], batch[rank]
    gap = ordered[1:] - ordered[:-1] > _RELATIVE * ordered[1:].abs() + _ABSOLUTE
    starts = torch.zeros(len(rank), dtype=torch.int64, device=scores.device)
    starts[1:] = (gap | (owner[1:] != owner[:-1])).long()
    groups = torch.empty_like(starts)
    groups[rank] = starts.cumsum(0)
    return groups


def permutations(groups: Tensor, noise: Tensor) -> Tensor:
    """Nodes in token order, (P, V): by group, and by noise (P, V) within one; equal noise keeps the nodes' order."""
    key = (groups << NOISE_BITS) | (noise & (2**NOISE_BITS - 1))
    return key.argsort(dim=1, stable=True)


def canonical_order(batch: GraphBatch) -> tuple[Tensor, Tensor]:
    """A numbering of each graph's nodes that hangs on what they are and not on the numbers that they have.

    Returns:
        Nodes sorted by graph and colour, (V,) int64, and a name for each of these (V,) int64: its colour, told apart
        from those of nodes that look alike by a count. Nodes that look alike keep the order they came in.
    """
    colour = node_colours(batch)
    order = colour.argsort(stable=True)
    order = order[batch.batch[order].argsort(stable=True)]
    colour, graph = colour[order], batch.batch[order]
    new = torch.ones_like(colour)
    new[1:] = ((colour[1:] != colour[:-1]) | (graph[1:] != graph[:-1])).long()
    return order, mix64(colour * 11 + rank_within(new.cumsum(0) - 1, len(colour)))


@dataclass(frozen=True)
class Priority:
    """What a batch's order rests on, the same for all layers and draws.

    Attributes:
        groups: sets of equally important nodes, rising with graph and score, (V,) int64; for clusters, the cluster.
        scores: the scores themselves, (V,) float64; kept for jitter only.
        clustered: whether groups are clusters, to be permuted as a whole.
    """

    groups: Tensor
    scores: Tensor | None = None
    clustered: bool = False


class Prioritizer:
    """An order and what breaks its ties.

    Args:
        order: see :func:`resolve_order`.
        ties: see :func:`node_names`.
        seed: of an order that draws, at inference.
        keep_scores: whether the scores are needed beside the groups.
    """

    def __init__(self, order: str | OrderFunction, ties: Ties, seed: int, *, keep_scores: bool = False) -> None:
        self.order, self.ties, self.seed, self.keep_scores = order, ties, seed, keep_scores
        self._score = resolve_order(order)

    @property
    def key(self) -> str | None:
        """What columns hang on beside the graphs; None for an order that is a function of the user's."""
        scores = " scores" if self.keep_scores else ""
        return f"{self.order} {self.ties} {self.seed}{scores}" if isinstance(self.order, str) else None

    def priority(self, batch: GraphBatch, training: bool) -> Priority:
        """The batch's groups: from its columns, or computed; an order that draws does so anew while training."""
        clustered = self.order == "cluster"
        if "priority" in batch.columns:
            groups = batch.cu_seqlens[batch.batch].long() + batch.columns["priority"]
            return Priority(groups, batch.columns.get("score"), clustered)
        generator = None if training else torch.Generator().manual_seed(self.seed)
        scores = self._score(batch.edge_index, batch.num_nodes, batch.batch, generator=generator)
        groups = rank_groups(scores, batch.batch)
        return Priority(groups, scores.double() if self.keep_scores else None, clustered)

    def names(self, batch: GraphBatch) -> Tensor:
        """See :func:`node_names`; from the batch's columns, or computed."""
        return batch.columns["name"] if "name" in batch.columns else node_names(batch, self.ties)

    def columns(self, batch: GraphBatch) -> dict[str, Tensor]:
        """What of this depends on each graph alone, (V,) each: "priority", groups from 0, "name", and "score"."""
        if not isinstance(self.order, str) or self.order not in (*ORDERS, *_OURS):
            return {"name": self.names(batch)}  # a stranger's order may draw anew for each batch
        found = self.priority(batch, training=False)
        first = found.groups.new_full((batch.num_graphs,), batch.num_nodes)
        first = first.scatter_reduce(0, batch.batch, found.groups, "amin")
        columns = {"priority": found.groups - first[batch.batch], "name": self.names(batch)}
        return columns if found.scores is None else {**columns, "score": found.scores}
