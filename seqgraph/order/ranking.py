"""From scores to an order: names, sorting, ties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph.order.canonical import canonical_key
from seqgraph.order.clusters import cluster
from seqgraph.order.diffusion import pagerank, personalized_pagerank
from seqgraph.order.graph import check_graph, lexsort
from seqgraph.order.hashing import draw_seed, hashed_uniform
from seqgraph.order.peeling import core_number
from seqgraph.order.simple import degree, random
from seqgraph.order.spectral import eigenvector
from seqgraph.order.traversal import bfs, rcm
from seqgraph.order.walk import rwse

Tie = Literal["random", "canonical", "index"]
OrderFunction = Callable[..., Tensor]

ORDERS: dict[str, OrderFunction] = {
    "degree": degree,
    "random": random,
    "pagerank": pagerank,
    "personalized-pagerank": personalized_pagerank,
    "rwse": rwse,
    "bfs": bfs,
    "rcm": rcm,
    "core-number": core_number,
    "eigenvector": eigenvector,
    "cluster": cluster,
}


def rank(
    scores: Tensor,
    batch: Tensor | None = None,
    *,
    tie: Tie = "random",
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """Sort nodes by (graph, score, tie key).

    Ties: "random" shuffles equal scores with noise from a CPU generator (the same order on every device, and a fresh
    one at each call); "canonical" sorts them by ``key`` and then by index; "index" keeps the stored order. With
    ``canonical_key`` as the key, relabelling the nodes permutes the order and nothing else, except among nodes that
    share score and colour: automorphic nodes, and the few that 1-WL cannot tell apart, stay in their stored order.

    Args:
        scores: (V,) floating; larger comes later.
        batch: graph of each node, (V,) int64, sorted, or None for one graph.
        tie: see above.
        generator: a CPU generator for "random"; None takes torch's global one.
        key: (V,) int64, needed for "canonical".

    Returns:
        Node indices in order, (V,) int64, the nodes of each graph together.

    Raises:
        DataError: when a score is NaN, naming the node.
        ConfigError: for an unknown tie, or "canonical" without a key.
    """
    batch = torch.zeros(len(scores), dtype=torch.int64, device=scores.device) if batch is None else batch
    wrong = torch.isnan(scores)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0, 0])
        raise DataError(f"the score of node {at} (graph {int(batch[at])}) is NaN", "check the features it comes from")
    if tie == "random":
        noise = hashed_uniform(draw_seed(generator), torch.arange(len(scores), device=scores.device))
        return lexsort([noise, scores, batch])
    if tie == "index":
        return lexsort([scores, batch])
    if tie != "canonical":
        raise ConfigError(f"tie {tie!r}", "choose random, canonical or index")
    if key is None:
        raise ConfigError("tie 'canonical' needs a key", "give key=canonical_key(edge_index, num_nodes, batch)")
    return lexsort([key, scores, batch])


def node_order(
    order: str | OrderFunction,
    edge_index: Tensor,
    num_nodes: int,
    batch: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    tie: Tie = "random",
    jitter: float = 0.0,
    **options: Any,
) -> Tensor:
    """The nodes of every graph of a batch in token order, important ones last.

    Args:
        order: a name ("degree", "rwse", one that a plugin registered, ...) or a function of the same form.
        edge_index: (2, M) int64.
        num_nodes: V.
        batch: graph of each node, (V,) int64, sorted, or None.
        generator: a CPU generator for the order, its noise and the ties; None takes torch's global one for the latter.
        tie: see :func:`rank`.
        jitter: uniform noise on the scores, this many times their standard deviation within the graph wide
            (Graph-Mamba's noise on eigenvector and RWSE; equal degrees are shuffled by ``tie`` alone).
        **options: for the order, such as ``steps`` of "rwse".

    Returns:
        Node indices, (V,) int64.

    Raises:
        DataError: for a malformed graph, or NaN scores.
        ConfigError: when the function does not return one score a node, or for a negative jitter.
        PluginError: for an unknown name.
    """
    edge_index, batch = check_graph(edge_index, num_nodes, batch)
    score = get_order(order) if isinstance(order, str) else order
    scores = score(edge_index, num_nodes, batch, generator=generator, **options)
    if not isinstance(scores, Tensor) or scores.shape != (num_nodes,):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ConfigError(f"order {order!r} returned {shape}, not one score for each of {num_nodes} nodes")
    if jitter < 0:
        raise ConfigError(f"jitter {jitter}", "it is a width, 0 or more")
    if jitter:
        noise = hashed_uniform(draw_seed(generator), torch.arange(num_nodes, device=scores.device))
        scores = scores + jitter * _spread(scores.double(), batch) * noise
    key = canonical_key(edge_index, num_nodes, batch) if tie == "canonical" else None
    return rank(scores, batch, tie=tie, generator=generator, key=key)


def _spread(scores: Tensor, batch: Tensor) -> Tensor:
    """Standard deviation of the scores of each node's graph, (V,)."""
    count = torch.bincount(batch).clamp_min(1)
    mean = (scores.new_zeros(len(count)).index_add(0, batch, scores) / count)[batch]
    square = scores.new_zeros(len(count)).index_add(0, batch, (scores - mean).square())
    return (square / count).sqrt()[batch]


def get_order(name: str) -> OrderFunction:
    """The order of that name: one of the core's, or one that a plugin registered.

    Raises:
        PluginError: for an unknown name, with near matches.
    """
    if name in ORDERS:
        return ORDERS[name]
    from seqgraph.plugin import manager

    return manager.resolve(manager.get("orders", name))
