"""Reads a graph, or a batch of graphs, from any object that looks like PyG's ``Data`` or ``Batch``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from seqgraph.errors import DataError
from seqgraph.order.graph import Adjacency, check_graph, count_graphs, pair_keys, simple_edges, stored_edges
from seqgraph.tokenize.steps_cpu import WalkTable
from seqgraph.tokenize.window import WindowTable


@dataclass(frozen=True)
class Graphs:
    """A checked batch of graphs, and its edges in the forms that tokenizers need, each made when it is first asked for.

    Whoever tokenizes the same graphs every epoch makes this once with :func:`read_graphs`, and hands it to the
    tokenizers as their ``data``.

    Attributes:
        edge_index: (2, M) int64.
        num_nodes: V.
        batch: graph of each node, (V,) int64, sorted.
        num_graphs: S, empty graphs included.
        x: node features or ids, (V, ...), or None.
    """

    edge_index: Tensor
    num_nodes: int
    batch: Tensor
    num_graphs: int
    x: Tensor | None

    @cached_property
    def stored(self) -> Adjacency:
        """The edges as they are stored."""
        return stored_edges(self.edge_index, self.num_nodes)

    @cached_property
    def simple(self) -> Adjacency:
        """The simple undirected graph."""
        return simple_edges(self.edge_index, self.num_nodes)

    @cached_property
    def pairs(self) -> Tensor:
        """Keys of the pairs that an edge joins, in either direction; see :func:`seqgraph.order.graph.pair_keys`."""
        return pair_keys(self.edge_index, self.num_nodes)

    @cached_property
    def walk_table(self) -> WalkTable:
        """``stored`` for walks on the CPU."""
        return WalkTable.of(self.stored)

    @cached_property
    def window_table(self) -> WindowTable:
        """``simple`` for windows on the CPU."""
        return WindowTable.of(self.simple)

    def to(self, device: torch.device | str) -> Graphs:
        """Move to a device; what was derived is made anew there."""
        x = None if self.x is None else self.x.to(device)
        return Graphs(self.edge_index.to(device), self.num_nodes, self.batch.to(device), self.num_graphs, x)


def read_graphs(data: Any) -> Graphs:
    """Take what a tokenizer needs from ``data`` and check it.

    Args:
        data: an object with ``edge_index`` (2, M), ``num_nodes`` or ``x`` (V, ...), and if it is a batch, ``batch``
            (V,) sorted and optionally ``ptr`` (S + 1,), which tells of empty graphs at the end. A ``Graphs`` is
            handed back as it is.

    Raises:
        DataError: naming what is missing or wrong.
    """
    if isinstance(data, Graphs):
        return data
    edge_index = getattr(data, "edge_index", None)
    x = getattr(data, "x", None)
    if edge_index is None:
        raise DataError(
            f"{type(data).__name__} has no edge_index",
            "give PyG's Data (torch_geometric.utils.from_networkx makes one), or any object with edge_index and x or "
            "num_nodes; without edges edge_index is torch.empty(2, 0, dtype=torch.int64)",
        )
    num_nodes = len(x) if x is not None else getattr(data, "num_nodes", None)
    if num_nodes is None:
        raise DataError(f"{type(data).__name__} has neither x nor num_nodes")
    if x is not None and x.is_floating_point():
        wrong = torch.isnan(x).flatten(1).any(1) if x.ndim > 1 else torch.isnan(x)
        if bool(wrong.any()):
            raise DataError(f"the features of node {int(wrong.nonzero()[0, 0])} hold NaN", "fill or drop them first")
    edge_index, batch = check_graph(edge_index, num_nodes, getattr(data, "batch", None))
    ptr = getattr(data, "ptr", None)
    known = 1 if getattr(data, "batch", None) is None else 0
    num_graphs = max(count_graphs(batch), known if ptr is None else len(ptr) - 1)
    return Graphs(edge_index, num_nodes, batch, num_graphs, x)


def node_keys(keys: Tensor | None, graphs: Graphs) -> Tensor:
    """What the draws of each node come from, (V,) int64: the keys given, or the index of the node.

    Raises:
        DataError: for keys of another shape or type.
    """
    if keys is None:
        return torch.arange(graphs.num_nodes, device=graphs.batch.device)
    if keys.shape != (graphs.num_nodes,) or keys.dtype != torch.int64:
        raise DataError(f"keys are {tuple(keys.shape)} {keys.dtype}, not ({graphs.num_nodes},) int64")
    return keys.to(graphs.batch.device)
