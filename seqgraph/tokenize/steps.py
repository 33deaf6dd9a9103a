"""One random step for many walkers: counter-based draws, the same in torch on any device and in numba on the CPU.

The draw of step t of walk w is ``mix64(mix64(seed + w) + t * GOLDEN)``: no state, no order of evaluation, so that the
walks do not depend on the device, the number of threads, or on which walks are computed together. Of its bits, the
upper 31 choose among n edges as ``draw * n >> 31``; for the n of any graph the bias is below n / 2^31.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from seqgraph.order.graph import Adjacency
from seqgraph.order.hashing import FIRST, GOLDEN, SECOND, mix64, wrap

_FIRST, _SECOND, _GOLDEN = np.uint64(FIRST % 2**64), np.uint64(SECOND % 2**64), np.uint64(GOLDEN % 2**64)
_30, _27, _31, _33 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(33)


def uniform_step(graph: Adjacency, node: Tensor, draw: Tensor, previous: Tensor | None = None) -> Tensor:
    """Choose an out-edge for each walker.

    Args:
        graph: edges with repeats, as stored.
        node: where the walkers stand, (W,) int64.
        draw: scrambled integers, (W,) int64.
        previous: where they came from, (W,) int64, -1 for nowhere: edges back there are taken only if there are no
            others. None allows every edge.

    Returns:
        Place of the edge in ``graph.col``, (W,) int64; -1 where no edge leaves.
    """
    low = graph.rowptr[node]
    count = graph.rowptr[node + 1] - low
    number = (draw >> 33) & ((1 << 31) - 1)
    if previous is None:
        return torch.where(count > 0, low + (number * count >> 31), -1)
    # The columns rise within a row, so the edges back are a run that the draw jumps over.
    back = node * graph.num_nodes + previous.clamp_min(0)
    first = torch.searchsorted(graph.key, back)
    repeats = torch.searchsorted(graph.key, back, right=True) - first
    repeats = torch.where((previous >= 0) & (repeats < count), repeats, 0)
    place = low + (number * (count - repeats) >> 31)
    place = torch.where((repeats > 0) & (place >= first), place + repeats, place)
    return torch.where(count > 0, place, -1)


def walk_streams(seed: int, count: int, device: torch.device) -> Tensor:
    """The start of each walk's own sequence of draws, (count,) int64."""
    return mix64(seed + torch.arange(count, device=device))


def draw_at(streams: Tensor, step: int) -> Tensor:
    """Draws of one step, (W,) int64."""
    return mix64(streams + wrap(step * GOLDEN))


def random_walks(
    graph: Adjacency, starts: Tensor, lengths: Tensor, seed: int, *, backtracking: bool = True
) -> tuple[Tensor, Tensor]:
    """Uniform walks over stored edges; numba on the CPU, torch elsewhere, with the same result.

    Args:
        graph: edges as stored.
        starts: first node of each walk, (W,) int64.
        lengths: steps of each walk, (W,) int64.
        seed: of all draws.
        backtracking: whether a walk may step back to where it just came from; if not, it does so at dead ends only.

    Returns:
        Nodes visited, (W, L + 1), and the place in ``graph.col`` of the edges taken there, (W, L + 1) with -1 at the
        start; both are -1 behind the walk's end. A walk ends early where no edge leaves.
    """
    longest = int(lengths.max()) if len(lengths) else 0
    nodes = torch.full((len(starts), longest + 1), -1, dtype=torch.int64, device=starts.device)
    taken = torch.full_like(nodes, -1)
    streams = walk_streams(seed, len(starts), starts.device)
    if starts.device.type == "cpu":
        edges, walks = (graph.rowptr.numpy(), graph.col.numpy()), (starts.numpy(), lengths.numpy(), streams.numpy())
        _walk(edges, walks, nodes.numpy(), taken.numpy(), backtracking)
        return nodes, taken
    nodes[:, 0] = starts
    for step in range(1, longest + 1):
        moving = ((lengths >= step) & (nodes[:, step - 1] >= 0)).nonzero()[:, 0]
        here = nodes[moving, step - 1]
        before = nodes[moving, step - 2] if step > 1 else torch.full_like(here, -1)
        place = uniform_step(graph, here, draw_at(streams[moving], step), None if backtracking else before)
        taken[moving, step] = place
        # Where there are no edges at all, `col` has nothing to index.
        if len(graph.col):
            nodes[moving, step] = torch.where(place >= 0, graph.col[place.clamp_min(0)], -1)
    return nodes, taken


@numba.njit(cache=True, nogil=True, inline="always")
def scramble(x):
    """``mix64`` of one uint64."""
    x = (x ^ (x >> _30)) * _FIRST
    x = (x ^ (x >> _27)) * _SECOND
    return x ^ (x >> _31)


@numba.njit(cache=True, nogil=True, inline="always")
def draw_of(stream, step):
    """``draw_at`` of one walk, uint64."""
    return scramble(stream + np.uint64(step) * _GOLDEN)


@numba.njit(cache=True, nogil=True, inline="always")
def below(draw, count):
    """A number from 0 to count - 1 out of a draw."""
    return (np.int64(draw >> _33) * count) >> 31


@numba.njit(cache=True, nogil=True)
def find(col, low, high, target):
    """First place from low to high whose column is not below the target; columns rise."""
    while low < high:
        middle = (low + high) >> 1
        if col[middle] < target:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True, nogil=True)
def _walk(edges, walks, nodes, taken, backtracking):
    (rowptr, col), (starts, lengths, streams) = edges, walks
    for w in range(len(starts)):
        stream = np.uint64(streams[w])
        node, previous = starts[w], -1
        nodes[w, 0] = node
        for step in range(1, lengths[w] + 1):
            low, high = rowptr[node], rowptr[node + 1]
            count = high - low
            if count == 0:
                break
            first = repeats = 0
            if not backtracking and previous >= 0:
                first = find(col, low, high, previous)
                while first + repeats < high and col[first + repeats] == previous:
                    repeats += 1
                if repeats == count:
                    repeats = 0
            place = low + below(draw_of(stream, step), count - repeats)
            if repeats > 0 and place >= first:
                place += repeats
            previous, node = node, col[place]
            nodes[w, step], taken[w, step] = node, place
