"""What a walk sees in a window behind it: identity and adjacency (CRaWl, arXiv 2102.08786, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from seqgraph.order.graph import Adjacency, pair_keys, simple_edges
from seqgraph.stream import TokenStream
from seqgraph.tokenize.lanes import LANES, equal_bits, put_bits
from seqgraph.tokenize.steps_cpu import GROUP, holds, run_groups

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_24, _40, _63, _ONE = np.uint64(24), np.uint64(40), np.uint64(63), np.uint64(1)
# Bits of a signature for each neighbour, and the words it may have at most.
_BITS, _WORDS = 16, 16
# Neighbours that are compared one after the other with a whole window; of more, the signature is asked first.
_FEW = 64
# Tokens whose neighbours are fetched together.
_AHEAD = 64
# Tokens times window that are looked up at once on a GPU, about 40 bytes each.
_CELLS = 1 << 22


@dataclass(frozen=True)
class WindowTable:
    """The simple graph for looking up pairs of nodes on the CPU.

    Attributes:
        rowptr: (V + 1,), int32 where it fits; so is ``col``.
        col: (N,).
        signature: a Bloom filter of the neighbours of each node (Bloom, 1970), two bits each, (V, W) uint64: a look
            at two of its bits settles nearly every pair that is not joined. (0, 1) where no node has many neighbours.
    """

    rowptr: np.ndarray
    col: np.ndarray
    signature: np.ndarray

    @staticmethod
    def of(graph: Adjacency) -> WindowTable:
        """The table of a simple undirected graph."""
        edges, size = len(graph.col), max(graph.num_nodes, 1)
        kind = np.int32 if max(size, edges) < 2**31 else np.int64
        rowptr, col = (t.numpy().astype(kind) for t in (graph.rowptr, graph.col))
        signature = np.zeros((0, 1), np.uint64)
        if np.diff(rowptr).max(initial=0) > _FEW:
            words = 1
            while 64 * words < _BITS * edges / size and words < _WORDS:
                words *= 2
            signature = np.zeros((graph.num_nodes, words), np.uint64)
            _sign(rowptr, col, signature)
        return WindowTable(rowptr, col, signature)


def window_features(edge_index: Tensor, num_nodes: int, stream: TokenStream, window: int) -> Tensor:
    """Identity and adjacency within a window behind each token; see :class:`seqgraph.tokenize.walk.Walks`.

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        stream: walks, with ``source`` the node.
        window: w.

    Returns:
        (T, 2 w - 1) float32; (T, 0) for w = 0.
    """
    if stream.device.type == "cpu":
        return window_on_cpu(WindowTable.of(simple_edges(edge_index, num_nodes)), stream, window)
    return window_in_torch(pair_keys(edge_index, num_nodes), num_nodes, stream, window)


def window_on_cpu(table: WindowTable, stream: TokenStream, window: int) -> Tensor:
    """As :func:`window_features`, on the CPU's threads."""
    features = np.empty((stream.num_tokens, max(2 * window - 1, 0)), np.float32)
    longest = int(stream.lengths.max()) if stream.num_segments else 0
    room = longest + window + LANES
    arrays = stream.source.numpy(), stream.cu_seqlens.numpy(), features.reshape(-1)

    def work(begin: int, stop: int) -> None:
        _window(table.rowptr, table.col, table.signature, *arrays, window, room, begin, stop)

    run_groups(work, -(-stream.num_segments // GROUP), features.size)
    return torch.from_numpy(features)


def window_in_torch(pairs: Tensor, num_nodes: int, stream: TokenStream, window: int) -> Tensor:
    """As :func:`window_features`, on any device, without reading from it.

    Args:
        pairs: :func:`seqgraph.order.graph.pair_keys` of the graph.
        num_nodes: V.
        stream: see there.
        window: see there.
    """
    features = torch.zeros(stream.num_tokens, max(2 * window - 1, 0), device=stream.device)
    if not window or not stream.num_tokens:
        return features
    node, position = stream.source[:, None], stream.position[:, None]
    number = torch.arange(stream.num_tokens, device=stream.device)[:, None]
    back = torch.arange(1, window + 1, device=stream.device)
    rows = max(_CELLS // window, 1)
    for at in range(0, stream.num_tokens, rows):
        here, inside = node[at : at + rows], position[at : at + rows] >= back
        past = stream.source[(number[at : at + rows] - back).clamp_min(0)]  # (rows, w)
        same = past == here
        features[at : at + rows, :window] = inside & same
        if window > 1 and len(pairs):
            wanted = here * num_nodes + past[:, 1:]
            found = pairs[torch.searchsorted(pairs, wanted).clamp_max(len(pairs) - 1)] == wanted
            features[at : at + rows, window:] = found & inside[:, 1:] & ~same[:, 1:]
    return features


@numba.njit(cache=True, nogil=True, inline="always")
def _bits(node, mask):
    """The two bits of a node in a signature."""
    scrambled = np.uint64(node) * _MULTIPLIER
    return np.int64(scrambled >> _40) & mask, np.int64(scrambled >> _24) & mask


@numba.njit(cache=True, nogil=True)
def _sign(rowptr, col, signature):
    mask = 64 * signature.shape[1] - 1
    for v in range(len(rowptr) - 1):
        for at in range(rowptr[v], rowptr[v + 1]):
            first, second = _bits(col[at], mask)
            signature[v, first >> 6] |= _ONE << (np.uint64(first) & _63)
            signature[v, second >> 6] |= _ONE << (np.uint64(second) & _63)


@numba.njit(cache=True, nogil=True, inline="always")
def _put(features, at, bits, count, limit):
    """Write ``count`` bits, and what is behind them as far as it will be written again."""
    if at + LANES <= limit:
        put_bits(features, at, bits)
        return
    for j in range(min(count, LANES)):
        features[at + j] = np.float32((bits >> np.uint64(j)) & _ONE)


@numba.njit(cache=True, nogil=True)
def _look_up(col, low, high, signature, past, first, count):
    """Which of the nodes past[first], past[first + 1], .. are among the many columns from low to high, as bits."""
    mask = 64 * len(signature) - 1
    bits = np.uint64(0)
    for j in range(min(count, LANES)):
        node = past[first + j]
        a, b = _bits(node, mask)
        seen = signature[a >> 6] >> (np.uint64(a) & _63)
        seen &= signature[b >> 6] >> (np.uint64(b) & _63)
        if node >= 0 and seen & _ONE and holds(col, low, high, node):
            bits |= _ONE << np.uint64(j)
    return bits


@numba.njit(cache=True, nogil=True)
def _window(rowptr, col, signature, node, borders, features, window, room, begin, stop):
    width, last = 2 * window - 1, min(stop * GROUP, len(borders) - 1)
    ready, tokens = np.int64(borders[begin * GROUP]), np.int64(borders[last])
    touched = 0
    # The walk backwards, so that the window of a token is what comes behind it; no node at all at the end.
    past = np.empty(room, col.dtype)
    for s in range(begin * GROUP, last):
        low, high = np.int64(borders[s]), np.int64(borders[s + 1])
        for t in range(low, high):
            past[high - 1 - t] = node[t]
        past[high - low : high - low + window + LANES] = -1
        for t in range(low, high):
            if t == ready:
                # Rows are asked for many at a time, both their ends: one by one, each would wait for its own.
                ready = min(t + _AHEAD, tokens)
                for u in range(t, ready):
                    start, end = rowptr[node[u]], rowptr[node[u] + 1]
                    if start < end:
                        touched += col[start] + col[end - 1]
            behind, at = high - t, t * width
            for k in range(0, window, LANES):
                bits = equal_bits(past, behind + k, col.dtype.type(node[t]))
                _put(features, at + k, bits, window - k, tokens * width)
            start, end = np.int64(rowptr[node[t]]), np.int64(rowptr[node[t] + 1])
            for k in range(0, window - 1, LANES):
                bits = np.uint64(0)
                if end - start <= _FEW:
                    for e in range(start, end):
                        bits |= equal_bits(past, behind + 1 + k, col[e])
                else:
                    bits = _look_up(col, start, end, signature[node[t]], past, behind + 1 + k, window - 1 - k)
                _put(features, at + window + k, bits, window - 1 - k, tokens * width)
    return touched
