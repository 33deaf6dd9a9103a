"""A tie-break that belongs to the graph and not to its labels."""

from __future__ import annotations

import torch
from torch import Tensor

from seqgraph.order.graph import check_graph, count_graphs, lexsort, simple_edges
from seqgraph.order.hashing import GOLDEN, mix64


def canonical_key(edge_index: Tensor, num_nodes: int, batch: Tensor | None = None, *, rounds: int = 256) -> Tensor:
    """Stable colours of the Weisfeiler-Leman refinement (1-WL), on the simple undirected graph.

    Starts from the degrees and hashes each node's colour with the multiset of its neighbours' until no graph's number
    of colours grows. All in wrapping integers, so the colours are the same on every machine, and for a graph alone
    or in a batch; relabelling the nodes permutes them. Nodes that an automorphism maps onto each other share a colour,
    and so do a few that 1-WL cannot tell apart (all nodes of a regular graph, for one).

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        batch: graph of each node, (V,) int64, sorted, or None.
        rounds: stop refining after so many, which only a graph as long as a chain needs: a round sees one hop farther.

    Returns:
        Colours (V,) int64; their order means nothing but is always the same.

    Raises:
        DataError: for a malformed graph.
    """
    edge_index, batch = check_graph(edge_index, num_nodes, batch)
    graph = simple_edges(edge_index, num_nodes)
    colour = mix64(graph.degree + 1)
    classes = _count_classes(colour, batch)
    growing = torch.ones_like(classes, dtype=torch.bool)
    for _ in range(rounds):
        around = torch.zeros_like(colour).index_add(0, graph.row, mix64(colour[graph.col]))
        refined = mix64(colour * GOLDEN + around)
        refined_classes = _count_classes(refined, batch)
        growing &= refined_classes > classes
        if not bool(growing.any()):
            break
        # A graph that is done keeps its colours, else they would depend on the others in the batch.
        colour = torch.where(growing[batch], refined, colour)
        classes = refined_classes
    return colour


def _count_classes(colour: Tensor, batch: Tensor) -> Tensor:
    order = lexsort([colour, batch])
    colour, graph = colour[order], batch[order]
    new = torch.ones_like(colour)
    new[1:] = (colour[1:] != colour[:-1]) | (graph[1:] != graph[:-1])
    return new.new_zeros(count_graphs(batch)).index_add(0, graph, new)
