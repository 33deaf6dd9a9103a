"""Node prioritization: which node comes when, with ties broken by seeded noise.

Graph-Mamba sorts nodes by degree, important nodes last, and permutes those of equal degree at random: one draw a
layer while training, the mean of several draws at inference. Noise at inference is a hash, not a generator, so that
a graph gets the same draws alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from seqgraph.order import get_order
from seqgraph.order.hashing import mix64
from seqgraph_graph_mamba.graph import GraphBatch

Ties = Literal["canonical", "index"]
OrderFunction = Callable[..., Tensor]

# Rounds of colour refinement: nodes that look alike this many edges deep count as the same.
REFINEMENT_ROUNDS = 16
_NOISE_BITS = 31
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


def resolve_order(order: str | OrderFunction) -> OrderFunction:
    """The function of a registered order, or the callable itself.

    "none" (nodes as they come) and "random" (every node ties with every other) are ours; other names are those of
    ``seqgraph orders``.

    Raises:
        PluginError: for an unknown name, with the nearest ones.
    """
    if callable(order):
        return order
    if order == "none":
        return _as_they_come
    if order == "random":
        return _all_equal
    return get_order(order)


def _as_they_come(edge_index: Tensor, num_nodes: int, batch: Tensor, *, generator: object = None) -> Tensor:
    return torch.arange(num_nodes, device=batch.device)


def _all_equal(edge_index: Tensor, num_nodes: int, batch: Tensor, *, generator: object = None) -> Tensor:
    return torch.zeros(num_nodes, device=batch.device)


def _hash_rows(features: Tensor) -> Tensor:
    """(R, F) -> (R,) int64; floating features by their bits in fp32."""
    if features.is_floating_point():
        # adding zero turns -0.0, which equals 0.0, into its bits
        features = (features.float() + 0.0).view(torch.int32)
    state = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    for column in features.long().unbind(1):
        state = mix64(state * 31 + column + 1)
    return state


def node_colours(batch: GraphBatch, rounds: int = REFINEMENT_ROUNDS) -> Tensor:
    """Hashes (V,) int64 that depend on a node's surroundings, not on its number (Weisfeiler & Leman, 1968)."""
    source, target = batch.edge_index
    edge = source.new_zeros(batch.num_edges)
    if batch.edge_attr is not None and batch.num_edges:
        edge = _hash_rows(batch.edge_attr)
    colour = _hash_rows(batch.x)
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


def seeded_noise(names: Tensor, seed: int, layer: int, draws: range) -> Tensor:
    """Noise (P, V) int64 for some draws of one layer, a function of its arguments alone."""
    keys = torch.tensor([[seed, layer, draw] for draw in draws], dtype=torch.int64, device=names.device)
    return mix64(names[None, :] * 7 + _hash_rows(keys)[:, None])


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
    if noise.is_floating_point():
        noise = (noise * 2**_NOISE_BITS).long().clamp(max=2**_NOISE_BITS - 1)
    key = (groups[None, :] << _NOISE_BITS) | (noise & (2**_NOISE_BITS - 1))
    return key.argsort(dim=1, stable=True)
