"""Neighbour sampling around seed nodes (Hamilton et al., 2017) on the CPU, without a compiled extension.

What a node samples is a function of (seed, node): the same in whatever batch, thread or process it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np

from seqgraph.errors import ConfigError
from seqgraph.order.hashing import GOLDEN, scramble

_EMPTY = -1
_GOLDEN, _33 = np.uint64(GOLDEN % 2**64), np.uint64(33)


@dataclass(frozen=True)
class Sample:
    """The neighbourhoods of some seeds.

    Attributes:
        nodes: nodes in the whole graph, (n,) int64; the seeds come first within their graph.
        edge_index: (2, e) int64, into ``nodes``.
        edges: place of each edge in the whole graph's list, (e,) int64.
        sizes: nodes of each graph of the sample: one graph in all, or one a seed.
        seeds: where each seed is in ``nodes``, (s,) int64.
    """

    nodes: np.ndarray
    edge_index: np.ndarray
    edges: np.ndarray
    sizes: np.ndarray
    seeds: np.ndarray


class NeighborSampler:
    """Samples the edges that lead to some nodes, hop by hop, without replacement.

    Memory is that of the graph's edges sorted by target, and of one sample, whose bound :meth:`bounds` gives.

    Args:
        edge_index: (2, M) integers; messages go from row 0 to row 1.
        num_nodes: V.
        fanouts: edges that a node samples, at most, in each hop from the seeds.
        joint: whether all seeds of a batch share one graph, each node in it once, or each has a graph of its own.

    Raises:
        ConfigError: for a fan-out below 1.
    """

    def __init__(self, edge_index: np.ndarray, num_nodes: int, fanouts: Sequence[int], *, joint: bool = True) -> None:
        if not fanouts or min(fanouts) < 1:
            raise ConfigError(f"the fan-outs are {list(fanouts)}", "give at least one, each at least 1: [15, 10]")
        self.num_nodes, self.joint = num_nodes, joint
        self.fanouts = np.asarray(fanouts, dtype=np.int64)
        source, target = edge_index
        self.edge = np.argsort(target, kind="stable")
        self.source = np.ascontiguousarray(source[self.edge]).astype(np.int64)
        self.rowptr = np.zeros(num_nodes + 1, dtype=np.int64)
        np.cumsum(np.bincount(target, minlength=num_nodes), out=self.rowptr[1:])

    def bounds(self, seeds: np.ndarray) -> np.ndarray:
        """Nodes that each seed's neighbourhood has at most, (s,) int64; exact for one hop."""
        below_first = 1
        for fanout in self.fanouts[:0:-1]:
            below_first = 1 + int(fanout) * below_first
        degree = self.rowptr[seeds + 1] - self.rowptr[seeds]
        return 1 + np.minimum(degree, self.fanouts[0]) * below_first

    def sample(self, seeds: np.ndarray, seed: int) -> Sample:
        """Draw the neighbourhoods of some seeds.

        Args:
            seeds: (s,) int64; a joint sample holds each of them once, however often it is named.
            seed: of the draws.
        """
        seeds = np.asarray(seeds, dtype=np.int64)
        largest = int(self.bounds(seeds).sum())
        if self.joint:
            largest = min(largest, self.num_nodes)
        found = _sample(self.rowptr, self.source, seeds, self.fanouts, np.uint64(seed % 2**64), self.joint, largest)
        nodes, owner, ends, edges, place = found
        ends, edges = ends.T, self.edge[edges]
        if self.joint:
            return Sample(nodes, ends, edges, np.array([len(nodes)]), place)
        order = np.argsort(owner, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return Sample(nodes[order], rank[ends], edges, np.bincount(owner, minlength=len(seeds)), rank[place])


@numba.njit(cache=True, nogil=True)
def _find(table, keys, key):
    """The slot of a key in an open hash table, or the empty one where it belongs."""
    mask = len(table) - 1
    slot = np.int64(scramble(np.uint64(key)) & np.uint64(mask))
    while table[slot] != _EMPTY and keys[table[slot]] != key:
        slot = (slot + 1) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def _sample(rowptr, source, seeds, fanouts, seed, joint, largest):
    size = 16
    while size < 2 * largest:
        size *= 2
    table = np.full(size, _EMPTY, np.int64)
    keys, nodes = np.empty(largest, np.int64), np.empty(largest, np.int64)
    owner = np.empty(largest, np.int64)
    place = np.empty(len(seeds), np.int64)
    graph_nodes = len(rowptr) - 1
    count = 0
    for i in range(len(seeds)):
        graph = 0 if joint else i
        key = graph * graph_nodes + seeds[i]
        slot = _find(table, keys, key)
        if table[slot] == _EMPTY:
            table[slot] = count
            keys[count], nodes[count], owner[count] = key, seeds[i], graph
            count += 1
        place[i] = table[slot]
    ends, edges = np.empty((1024, 2), np.int64), np.empty(1024, np.int64)
    taken, begin = 0, 0
    chosen = np.empty(fanouts.max(), np.int64)
    for hop in range(len(fanouts)):
        stop = count
        for at in range(begin, stop):
            low = rowptr[nodes[at]]
            degree = rowptr[nodes[at] + 1] - low
            fanout = min(fanouts[hop], degree)
            if taken + fanout > len(edges):
                ends = np.concatenate((ends, np.empty((len(edges) + fanout, 2), np.int64)))
                edges = np.concatenate((edges, np.empty(len(edges) + fanout, np.int64)))
            stream = scramble(seed + scramble(np.uint64(nodes[at]) + _GOLDEN))
            for j in range(fanout):
                # Floyd's choice without replacement; all edges, in order, where they are few enough
                pick = j
                if fanout < degree:
                    top = degree - fanout + j
                    draw = scramble(stream + np.uint64(j + 1) * _GOLDEN)
                    pick = (np.int64(draw >> _33) * (top + 1)) >> 31
                    for k in range(j):
                        if chosen[k] == pick:
                            pick = top
                            break
                chosen[j] = pick
                node = source[low + pick]
                key = owner[at] * graph_nodes + node
                slot = _find(table, keys, key)
                if table[slot] == _EMPTY:
                    table[slot] = count
                    keys[count], nodes[count], owner[count] = key, node, owner[at]
                    count += 1
                ends[taken, 0], ends[taken, 1], edges[taken] = table[slot], at, low + pick
                taken += 1
        begin = stop
    return nodes[:count].copy(), owner[:count].copy(), ends[:taken].copy(), edges[:taken].copy(), place
