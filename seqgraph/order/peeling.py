"""Core numbers by peeling all graphs of a batch together."""

from __future__ import annotations

import torch
from torch import Tensor

from seqgraph.order.graph import check_graph, simple_edges


def core_number(
    edge_index: Tensor, num_nodes: int, batch: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """The largest k for which a node belongs to the k-core (Seidman, 1983), on the simple undirected graph.

    All nodes of too low a degree are taken away at once, then those that this uncovers; only their edges are looked
    at, so the work is O(V + M), in as many rounds as the graph has shells within shells.

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        batch: graph of each node, (V,) int64, sorted, or None.
        generator: not used; the scores are deterministic.

    Returns:
        Scores (V,) float64, whole numbers.

    Raises:
        DataError: for a malformed graph.
    """
    edge_index, _ = check_graph(edge_index, num_nodes, batch)
    graph = simple_edges(edge_index, num_nodes)
    degree = graph.degree.clone()
    core = torch.zeros_like(degree)
    alive = torch.ones_like(degree, dtype=torch.bool)
    while bool(alive.any()):
        k = int(degree[alive].min())
        shell = (alive & (degree <= k)).nonzero()[:, 0]
        while len(shell):
            core[shell] = k
            alive[shell] = False
            neighbors = graph.col[graph.expand(shell)[1]]
            neighbors = neighbors[alive[neighbors]]
            degree.index_add_(0, neighbors, torch.full_like(neighbors, -1))
            shell = torch.unique(neighbors)
            shell = shell[degree[shell] <= k]
    return core.double()
