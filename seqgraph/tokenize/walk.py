"""Random walks of fixed length, with what they saw in a window behind them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numba
import torch
from torch import Tensor

from seqgraph.errors import ConfigError
from seqgraph.order.graph import Adjacency, simple_edges, stored_edges
from seqgraph.order.hashing import check_generator, draw_seed
from seqgraph.stream import TokenStream
from seqgraph.tokenize.graph import Graphs, read_graphs
from seqgraph.tokenize.steps import find, random_walks


@dataclass(frozen=True)
class Walks:
    """Walks as a stream, and the features of CRaWl (arXiv 2102.08786) and NeuralWalker (2406.03386).

    Attributes:
        stream: one segment a walk; ``values`` and ``source`` are the node indices, (T,) int64.
        edge: index in ``edge_index`` of the edge that led to each token, (T,) int64; -1 at a walk's start.
        features: (T, 2 w - 1) float32 of 0 and 1. Columns 0 .. w - 1, identity: is this the node of k steps ago,
            k = 1 .. w. Columns w .. 2 w - 2, adjacency: does an edge join it with the node of k steps ago, in either
            direction, k = 2 .. w. Steps before the start count as no.
    """

    stream: TokenStream
    edge: Tensor
    features: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Walks:
        """Move every field to a device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return Walks(**moved)


def walks(
    data: Any,
    *,
    length: int = 50,
    rate: float = 1.0,
    window: int = 8,
    backtracking: bool = False,
    generator: torch.Generator | None = None,
) -> Walks:
    """Uniform random walks over the stored edges: the tokenizer "walks".

    Args:
        data: a graph or a batch of them; see :func:`seqgraph.tokenize.graph.read_graphs`.
        length: steps of each walk, so length + 1 tokens; a walk ends early only where no edge leaves.
        rate: walks per node on average: each node starts floor(rate) of them, and one more with the probability that
            is left. A graph with nodes has at least one walk.
        window: w, how many steps the features look back; 0 for no features.
        backtracking: whether a walk may step straight back; if not, it does so at dead ends only.
        generator: a CPU generator; None takes torch's global one.

    Returns:
        Walks sorted by their first node.

    Raises:
        DataError: for a malformed graph or NaN features.
        ConfigError: for a negative length, rate or window.
    """
    if length < 0 or rate < 0 or window < 0:
        raise ConfigError(f"length {length}, rate {rate}, window {window}", "none of them can be negative")
    graphs = read_graphs(data)
    graph = stored_edges(graphs.edge_index, graphs.num_nodes)
    starts = _starts(graphs, rate, generator)
    steps = torch.full_like(starts, length)
    nodes, taken = random_walks(graph, starts, steps, draw_seed(generator), backtracking=backtracking)
    seen = nodes >= 0
    node, taken = nodes[seen], taken[seen]
    edge = torch.full_like(node, -1)
    edge[taken >= 0] = graph.edge[taken[taken >= 0]]
    stream = TokenStream.from_lengths(node, seen.sum(1), source=node)
    return Walks(stream, edge, window_features(graphs.edge_index, graphs.num_nodes, stream, window))


def _starts(graphs: Graphs, rate: float, generator: torch.Generator | None) -> Tensor:
    """First nodes of the walks, (W,) int64."""
    check_generator(generator)
    chance = torch.rand(graphs.num_nodes, generator=generator, dtype=torch.float64).to(graphs.batch.device)
    count = int(rate) + (chance < rate % 1).long()
    if rate < 1 and graphs.num_nodes:
        # A graph where nobody starts gets the node with the smallest draw.
        started = count.new_zeros(graphs.num_graphs).index_add(0, graphs.batch, count)
        least = chance.new_ones(graphs.num_graphs).scatter_reduce(0, graphs.batch, chance, "amin")
        count = torch.where((started == 0)[graphs.batch] & (chance == least[graphs.batch]), 1, count)
    return torch.repeat_interleave(torch.arange(graphs.num_nodes, device=count.device), count)


def window_features(edge_index: Tensor, num_nodes: int, stream: TokenStream, window: int) -> Tensor:
    """Identity and adjacency within a window behind each token; see :class:`Walks`.

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        stream: walks, with ``source`` the node.
        window: w.

    Returns:
        (T, 2 w - 1) float32; (T, 0) for w = 0.
    """
    graph = simple_edges(edge_index, num_nodes)
    features = torch.zeros(stream.num_tokens, max(2 * window - 1, 0), device=stream.device)
    if stream.device.type == "cpu":
        edges = graph.rowptr.numpy(), graph.col.numpy()
        _window(edges, stream.source.numpy(), stream.cu_seqlens.numpy(), features.numpy(), window)
        return features
    return _window_torch(graph, stream, features, window)


def _window_torch(graph: Adjacency, stream: TokenStream, features: Tensor, window: int) -> Tensor:
    node, position, key = stream.source, stream.position, graph.key
    for k in range(1, min(window, stream.num_tokens - 1) + 1):
        inside = position[k:] >= k
        features[k:, k - 1] = (inside & (node[k:] == node[:-k])).to(features.dtype)
        if k > 1 and len(key):
            wanted = node[k:] * graph.num_nodes + node[:-k]
            found = key[torch.searchsorted(key, wanted).clamp_max(len(key) - 1)] == wanted
            features[k:, window + k - 2] = (inside & found).to(features.dtype)
    return features


@numba.njit(cache=True, nogil=True)
def _window(edges, node, borders, features, window):
    rowptr, col = edges
    for s in range(len(borders) - 1):
        for t in range(borders[s], borders[s + 1]):
            low, high = rowptr[node[t]], rowptr[node[t] + 1]
            for k in range(1, min(window, t - borders[s]) + 1):
                past = node[t - k]
                if past == node[t]:
                    features[t, k - 1] = 1
                elif k > 1:
                    place = find(col, low, high, past)
                    if place < high and col[place] == past:
                        features[t, window + k - 2] = 1
