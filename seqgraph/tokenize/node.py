"""One token a node."""

from __future__ import annotations

from typing import Any

import torch

from seqgraph.order import node_order
from seqgraph.order.ranking import OrderFunction, Tie
from seqgraph.stream import TokenStream
from seqgraph.tokenize.graph import read_graphs


def nodes(
    data: Any,
    *,
    order: str | OrderFunction = "degree",
    tie: Tie = "random",
    generator: torch.Generator | None = None,
    **options: Any,
) -> TokenStream:
    """Nodes in the order of a score, one segment a graph: the tokenizer "nodes" (Graph-Mamba, GMN with m = 0).

    Args:
        data: a graph or a batch of them; see :func:`seqgraph.tokenize.graph.read_graphs`.
        order: a name or a function; see :func:`seqgraph.order.node_order`.
        tie: how equal scores are ordered: "random", "canonical" or "index".
        generator: a CPU generator; None takes torch's global one.
        **options: for the order, such as ``steps`` of "rwse".

    Returns:
        ``values`` the features ``data.x`` (V, ...) or else the node indices (V,) int64; ``source`` the node index.

    Raises:
        DataError: for a malformed graph or NaN features.
    """
    graphs = read_graphs(data)
    perm = node_order(order, graphs.edge_index, graphs.num_nodes, graphs.batch, generator=generator, tie=tie, **options)
    lengths = torch.bincount(graphs.batch, minlength=graphs.num_graphs)
    return TokenStream.from_lengths(perm if graphs.x is None else graphs.x[perm], lengths, source=perm)
