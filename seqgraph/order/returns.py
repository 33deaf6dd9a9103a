"""Return probabilities on the CPU: each node's walk is followed, on large graphs as far as it is worth it."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from seqgraph.order.graph import Adjacency
from seqgraph_kernels.threads import run_items

# Mass is counted in units of 2^-30, so that sums are exact whatever their order and products fit into 64 bits.
_BITS = 30
_GROUP = 64


def followed_returns(graph: Adjacency, steps: int) -> Tensor:
    """Probability to be back after 1..k steps, exact up to rounding; on the CPU's threads.

    Costs what the walks can reach in k / 2 steps, where small graphs or long chains have little.

    Args:
        graph: simple and undirected, on the CPU.
        steps: k.

    Returns:
        (V, k) float64.
    """
    result = torch.zeros(graph.num_nodes, steps, dtype=torch.float64)
    rows, found = (graph.rowptr.numpy(), graph.col.numpy()), result.numpy()

    def work(_: int, begin: int, stop: int) -> None:
        _follow_all(rows, begin * _GROUP, found[begin * _GROUP : stop * _GROUP])

    groups = -(-graph.num_nodes // _GROUP)
    if groups:
        run_items(work, np.ones(groups), 0, graph.num_nodes < 1000)
    return result


@numba.njit(cache=True, nogil=True)
def _follow_all(rows, first, found):
    rowptr, col = rows
    size, steps = len(rowptr) - 1, found.shape[1]
    mass, following = np.zeros(size), np.zeros(size)
    here, there = np.empty(size, np.int64), np.empty(size, np.int64)
    for i in range(len(found)):
        start = first + i
        edges = rowptr[start + 1] - rowptr[start]
        if edges == 0:
            found[i] = 1.0
            continue
        here[0], count = start, 1
        mass[start] = 1.0
        for half in range((steps + 1) // 2):
            reached = 0
            for at in range(count):
                node = here[at]
                low, high = rowptr[node], rowptr[node + 1]
                share = mass[node] / (high - low)
                for e in range(low, high):
                    target = col[e]
                    if following[target] == 0.0:
                        there[reached] = target
                        reached += 1
                    following[target] += share
            # P^(a+b)(i, i) is the sum over u of P^a(i, u) P^b(i, u) degree(i) / degree(u).
            odd = even = 0.0
            for at in range(reached):
                node = there[at]
                degree = rowptr[node + 1] - rowptr[node]
                odd += mass[node] * following[node] / degree
                even += following[node] * following[node] / degree
            found[i, 2 * half] = odd * edges
            if 2 * half + 1 < steps:
                found[i, 2 * half + 1] = even * edges
            for at in range(count):
                mass[here[at]] = 0.0
            mass, following = following, mass
            here, there = there, here
            count = reached
        for at in range(count):
            mass[here[at]] = 0.0
    return found


def pruned_returns(graph: Adjacency, nodes: Tensor, steps: int, prune: float) -> Tensor:
    """Probability to be back after 1..k steps, without the walks that have spread too thin; on the CPU's threads.

    A walk that stands on u with probability p goes on only while p / degree(u) is at least ``prune``, so a node costs
    no more than k / (2 prune) edges. What is left out can only make the result smaller. All in integers: it depends on
    no labels, order or threads.

    Args:
        graph: simple and undirected, on the CPU.
        nodes: where walks start, (N,) int64.
        steps: k.
        prune: above 0.

    Returns:
        (N, k) float64.
    """
    result = torch.zeros(len(nodes), steps, dtype=torch.float64)
    rows, starts, found = (graph.rowptr.numpy(), graph.col.numpy()), nodes.numpy(), result.numpy()
    threshold = max(int(prune * 2**_BITS), 1)

    def work(_: int, begin: int, stop: int) -> None:
        _follow(rows, starts[begin * _GROUP : stop * _GROUP], threshold, found[begin * _GROUP : stop * _GROUP])

    groups = -(-len(nodes) // _GROUP)
    if groups:
        run_items(work, np.ones(groups), 0, len(nodes) < 1000)
    return result


@numba.njit(cache=True, nogil=True)
def _follow(rows, starts, threshold, found):
    rowptr, col = rows
    size, steps = len(rowptr) - 1, found.shape[1]
    mass, following = np.zeros(size, np.int64), np.zeros(size, np.int64)
    here, there = np.empty(size, np.int64), np.empty(size, np.int64)
    for i in range(len(starts)):
        start = starts[i]
        edges = rowptr[start + 1] - rowptr[start]
        if edges == 0:
            found[i] = 1.0
            continue
        here[0], count = start, 1
        mass[start] = 1 << _BITS
        for half in range((steps + 1) // 2):
            reached = 0
            for at in range(count):
                node = here[at]
                low, high = rowptr[node], rowptr[node + 1]
                share = mass[node] // (high - low)
                if share < threshold:
                    continue
                for e in range(low, high):
                    target = col[e]
                    if following[target] == 0:
                        there[reached] = target
                        reached += 1
                    following[target] += share
            # P^(a+b)(i, i) is the sum over u of P^a(i, u) P^b(i, u) degree(i) / degree(u).
            odd = even = 0
            for at in range(reached):
                node = there[at]
                degree = rowptr[node + 1] - rowptr[node]
                odd += mass[node] * following[node] // degree
                even += following[node] * following[node] // degree
            found[i, 2 * half] = odd * edges / 2.0 ** (2 * _BITS)
            if 2 * half + 1 < steps:
                found[i, 2 * half + 1] = even * edges / 2.0 ** (2 * _BITS)
            for at in range(count):
                mass[here[at]] = 0
            mass, following = following, mass
            here, there = there, here
            count = reached
        for at in range(count):
            mass[here[at]] = 0
    return found
