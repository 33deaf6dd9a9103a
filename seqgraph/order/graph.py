"""What the orders and the tokenizers share: checks, compressed adjacency, components, ties."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqgraph.errors import DataError
from seqgraph.order.compressed import merge_edges, smallest_in_component, sort_edges


def check_graph(edge_index: Tensor, num_nodes: int, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Check a batch of graphs before anything is computed on it.

    Args:
        edge_index: stored edges, (2, M) integers; may be empty.
        num_nodes: V, 0 or more.
        batch: graph of each node, (V,) integers in rising order, or None for one graph. Graphs may be empty.

    Returns:
        ``edge_index`` as (2, M) int64 and ``batch`` as (V,) int64.

    Raises:
        DataError: naming the edge or the node that is wrong.
    """
    if num_nodes < 0:
        raise DataError(f"num_nodes is {num_nodes}", "it must be 0 or more")
    if not isinstance(edge_index, Tensor) or edge_index.ndim != 2 or edge_index.shape[0] != 2:
        shape = tuple(edge_index.shape) if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise DataError(f"edge_index is {shape}, not (2, M)", "give one row of sources and one of targets")
    if edge_index.numel() and (edge_index.is_floating_point() or edge_index.dtype == torch.bool):
        raise DataError(f"edge_index holds {edge_index.dtype}", "give int64 node indices")
    edge_index = edge_index.long()
    if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= num_nodes):
        at = int(((edge_index < 0) | (edge_index >= num_nodes)).any(0).nonzero()[0, 0])
        ends = edge_index[:, at].tolist()
        raise DataError(f"edge {at} joins nodes {ends[0]} and {ends[1]}, but there are {num_nodes} nodes (from 0)")
    if batch is None:
        return edge_index, torch.zeros(num_nodes, dtype=torch.int64, device=edge_index.device)
    if batch.shape != (num_nodes,) or batch.is_floating_point():
        raise DataError(f"batch is {tuple(batch.shape)} {batch.dtype}, not ({num_nodes},) integers")
    batch = batch.long()
    falls = batch[1:] < batch[:-1]
    if bool(falls.any()) or (num_nodes and int(batch[0]) < 0):
        at = int(falls.nonzero()[0, 0]) + 1 if bool(falls.any()) else 0
        raise DataError(
            f"batch is not sorted: node {at} belongs to graph {int(batch[at])}", "sort the nodes by graph, from 0"
        )
    crosses = batch[edge_index[0]] != batch[edge_index[1]]
    if bool(crosses.any()):
        at = int(crosses.nonzero()[0, 0])
        ends = edge_index[:, at].tolist()
        raise DataError(f"edge {at} joins nodes {ends[0]} and {ends[1]} of two different graphs")
    return edge_index, batch


def count_graphs(batch: Tensor) -> int:
    """Graphs up to the last one that has a node."""
    return int(batch[-1]) + 1 if len(batch) else 0


@dataclass(frozen=True)
class Adjacency:
    """Edges in compressed rows, sorted by (row, column).

    Attributes:
        rowptr: where each node's edges start, (V + 1,) int64.
        row: source of each edge, (M,) int64.
        col: target of each edge, (M,) int64, rising within a row.
        edge: place of each edge in the list it was made from, (M,) int64; -1 where edges were merged.
    """

    rowptr: Tensor
    row: Tensor
    col: Tensor
    edge: Tensor

    @property
    def num_nodes(self) -> int:
        """V."""
        return len(self.rowptr) - 1

    @property
    def degree(self) -> Tensor:
        """Edges that leave each node, (V,) int64."""
        return self.rowptr[1:] - self.rowptr[:-1]

    @property
    def key(self) -> Tensor:
        """row * V + col of each edge, (M,) int64, rising: made for ``torch.searchsorted``."""
        return self.row * self.num_nodes + self.col

    def expand(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """All edges that leave the given nodes.

        Args:
            nodes: (K,) int64, repeats allowed.

        Returns:
            For each edge found, the place in ``nodes`` that it leaves from, and its place in ``col``; (F,) int64 both.
        """
        counts = self.rowptr[nodes + 1] - self.rowptr[nodes]
        owner = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), counts)
        shift = self.rowptr[nodes] - (counts.cumsum(0) - counts)
        return owner, torch.arange(len(owner), device=nodes.device) + shift[owner]


def stored_edges(edge_index: Tensor, num_nodes: int) -> Adjacency:
    """The edges as they are stored: directed, with repeats and self loops."""
    if edge_index.device.type == "cpu":
        ends = edge_index.contiguous().numpy()
        return Adjacency(*map(torch.from_numpy, sort_edges(ends[0], ends[1], num_nodes)))
    order = torch.argsort(edge_index[0] * max(num_nodes, 1) + edge_index[1], stable=True)
    return _compress(edge_index[0][order], edge_index[1][order], order, num_nodes)


def simple_edges(edge_index: Tensor, num_nodes: int, *, undirected: bool = True, loops: bool = False) -> Adjacency:
    """The simple graph behind stored edges: repeats merged, and by default undirected without self loops."""
    if edge_index.device.type == "cpu":
        ends = edge_index.contiguous().numpy()
        rowptr, row, col = map(torch.from_numpy, merge_edges(ends[0], ends[1], num_nodes, undirected, loops))
        return Adjacency(rowptr, row, col, torch.full_like(row, -1))
    row, col = edge_index
    if undirected:
        row, col = torch.cat([row, col]), torch.cat([col, row])
    if not loops:
        keep = row != col
        row, col = row[keep], col[keep]
    key = torch.unique(row * max(num_nodes, 1) + col)
    row, col = key // max(num_nodes, 1), key % max(num_nodes, 1)
    return _compress(row, col, torch.full_like(row, -1), num_nodes)


def pair_keys(edge_index: Tensor, num_nodes: int) -> Tensor:
    """a * V + b of every stored edge (a, b) and of its reverse, (2 M,) int64, rising, repeats and self loops included.

    Made for ``torch.searchsorted`` where a simple graph would have to be counted, which waits for a GPU.
    """
    row, col = edge_index
    return torch.cat([row * num_nodes + col, col * num_nodes + row]).sort().values


def _compress(row: Tensor, col: Tensor, edge: Tensor, num_nodes: int) -> Adjacency:
    # The rows rise. To count them with bincount would wait for a GPU.
    rowptr = torch.searchsorted(row, torch.arange(num_nodes + 1, device=row.device))
    return Adjacency(rowptr, row, col, edge)


def components(graph: Adjacency) -> Tensor:
    """The smallest node index of each node's connected component, (V,) int64; the graph must be undirected.

    On a GPU parents are hooked and short-cut for all nodes at once, in about log V rounds (FastSV: Zhang, Azad, Hu,
    2020); on the CPU a search goes through one component after the other.
    """
    if graph.row.device.type == "cpu":
        return torch.from_numpy(smallest_in_component(graph.rowptr.numpy(), graph.col.numpy()))
    return _components_torch(graph)


def _components_torch(graph: Adjacency) -> Tensor:
    parent = torch.arange(graph.num_nodes, device=graph.row.device)
    while True:
        grand = parent[parent]
        new = parent.scatter_reduce(0, parent[graph.row], grand[graph.col], "amin")
        new = new.scatter_reduce(0, graph.row, grand[graph.col], "amin")
        new = torch.minimum(new, grand)
        if torch.equal(new, parent):
            return parent
        parent = new


def lexsort(keys: list[Tensor]) -> Tensor:
    """Indices that sort by the last key, then the one before it, and so on (as ``numpy.lexsort``); stable."""
    order = torch.argsort(keys[0], stable=True)
    for key in keys[1:]:
        order = order[torch.argsort(key[order], stable=True)]
    return order


def dense_rank(keys: list[Tensor], batch: Tensor) -> Tensor:
    """Rank of each node within its graph by the keys, least significant first, (V,) int64; equal keys share one."""
    order = lexsort([*keys, batch])
    if not len(order):
        return order
    new = torch.zeros(len(order), dtype=torch.bool, device=batch.device)
    for key in [*keys, batch]:
        new[1:] |= key[order][1:] != key[order][:-1]
    number = new.long().cumsum(0)
    first = number.new_full((count_graphs(batch),), len(order)).scatter_reduce(0, batch[order], number, "amin")
    return torch.empty_like(order).index_copy(0, order, number - first[batch[order]])


def snap(scores: Tensor, batch: Tensor, rtol: float = 1e-8, atol: float = 0.0) -> Tensor:
    """Make scores of an iterative method equal where they differ by float noise alone.

    Scores of one graph are sorted and cut into groups wherever two neighbours lie further apart than ``rtol`` times
    their own magnitude plus ``atol`` times the graph's largest; a group gets its smallest score. Unlike rounding, this
    has no borders at which two equal nodes can fall on different sides.

    Args:
        scores: (V,) float64.
        batch: graph of each node, (V,) int64, sorted.
        rtol: well above the method's own error; nodes nearer than this count as tied.
        atol: for methods whose error is not relative to each score.

    Returns:
        (V,) float64.
    """
    if not len(scores):
        return scores
    order = lexsort([scores, batch])
    value, graph = scores[order], batch[order]
    size = value.abs()
    scale = size.new_zeros(count_graphs(batch)).scatter_reduce(0, graph, size, "amax")[graph[1:]]
    new = torch.ones(len(value), dtype=torch.bool, device=value.device)
    noise = rtol * torch.maximum(size[1:], size[:-1]) + atol * scale
    new[1:] = (graph[1:] != graph[:-1]) | (value[1:] - value[:-1] > noise)
    group = new.long().cumsum(0) - 1
    return torch.empty_like(scores).index_copy(0, order, value[new][group])
