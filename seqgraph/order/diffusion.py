"""PageRank, plain and personalised, of every graph of a batch at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph.order.graph import Adjacency, check_graph, count_graphs, simple_edges, snap

_TOLERANCE = 1e-13


def pagerank(
    edge_index: Tensor,
    num_nodes: int,
    batch: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    damping: float = 0.85,
) -> Tensor:
    """PageRank (Brin & Page, 1998) within each graph; the most visited nodes last.

    Follows the stored direction of the edges, self loops included, repeats merged. A node without out-edges hands its
    mass to all nodes of its graph. Scores sum to 1 in each graph, up to ``snap`` (ties are exact).

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        batch: graph of each node, (V,) int64, sorted, or None.
        generator: not used; the scores are deterministic.
        damping: chance to follow an edge, from 0 up to but not including 1.

    Returns:
        Scores (V,) float64.

    Raises:
        DataError: for a malformed graph.
        ConfigError: for a damping outside [0, 1).
    """
    edge_index, batch = check_graph(edge_index, num_nodes, batch)
    restart = torch.ones(num_nodes, dtype=torch.float64, device=edge_index.device)
    return _power(simple_edges(edge_index, num_nodes, undirected=False, loops=True), batch, restart, damping)


def personalized_pagerank(
    edge_index: Tensor,
    num_nodes: int,
    batch: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    damping: float = 0.85,
    seeds: Tensor | None = None,
) -> Tensor:
    """PageRank that restarts at seed nodes: far from the seeds first, the seeds' neighbourhood last.

    Edges are read as in :func:`pagerank`; a node without out-edges hands its mass to the seeds.

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        batch: graph of each node, (V,) int64, sorted, or None.
        generator: not used; the scores are deterministic.
        damping: chance to follow an edge, from 0 up to but not including 1.
        seeds: node indices, (K,) int64, with equal shares within their graph. A graph without one, and every graph
            when None, restarts at its nodes of highest degree (all that tie).

    Returns:
        Scores (V,) float64.

    Raises:
        DataError: for a malformed graph or a seed that is no node.
        ConfigError: for a damping outside [0, 1).
    """
    edge_index, batch = check_graph(edge_index, num_nodes, batch)
    graph = simple_edges(edge_index, num_nodes, undirected=False, loops=True)
    restart = torch.zeros(num_nodes, dtype=torch.float64, device=edge_index.device)
    if seeds is not None:
        seeds = torch.as_tensor(seeds, device=edge_index.device).long().flatten()
        outside = (seeds < 0) | (seeds >= num_nodes)
        if bool(outside.any()):
            raise DataError(f"seed {int(seeds[outside][0])} is no node: there are {num_nodes} (from 0)")
        restart[seeds] = 1
    graphs = count_graphs(batch)
    seeded = torch.zeros(graphs, dtype=torch.float64, device=batch.device).index_add(0, batch, restart) > 0
    degree = graph.degree + torch.bincount(graph.col, minlength=num_nodes)
    most = degree.new_zeros(graphs).scatter_reduce(0, batch, degree, "amax")
    restart = torch.where(~seeded[batch] & (degree == most[batch]), 1.0, restart)
    return _power(graph, batch, restart, damping)


def _power(graph: Adjacency, batch: Tensor, restart: Tensor, damping: float) -> Tensor:
    """Iterate p <- damping * (P^T p + dangling mass * r) + (1 - damping) * r in all graphs at once."""
    if not 0 <= damping < 1:
        raise ConfigError(f"damping is {damping}", "it must lie in [0, 1)")
    graphs = count_graphs(batch)

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(graphs).index_add(0, batch, x)[batch]  # (V,)

    restart = restart / total(restart)
    share = 1.0 / graph.degree.clamp_min(1).double()
    dangling = graph.degree == 0
    p = restart
    # The error shrinks by `damping` in each round, so the number of rounds is known beforehand.
    rounds = 1 if damping == 0 else math.ceil(math.log(_TOLERANCE) / math.log(damping))
    for _ in range(rounds):
        flow = torch.zeros_like(p).index_add(0, graph.col, (p * share)[graph.row])
        new = damping * (flow + total(p * dangling) * restart) + (1 - damping) * restart
        change = (new - p).abs()
        p = new / total(new)
        if bool((change <= _TOLERANCE * p).all()):
            break
    return snap(p, batch)
