"""Walk steps a second on the CPU: seqgraph's walkers beside the plain torch one.

Run: python benchmarks/tokenize/walks.py [--nodes 20000] [--degree 8] [--length 50] [--rate 4]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from seqgraph.order.graph import stored_edges
from seqgraph.tokenize import node2vec_walks, walks
from seqgraph.tokenize.steps import random_walks


def plain_torch(rowptr: Tensor, col: Tensor, starts: Tensor, length: int) -> Tensor:
    """What one writes without a walker: gather, floor(rand * degree); needs a neighbour at every node."""
    path = [starts]
    degree = rowptr[1:] - rowptr[:-1]
    for _ in range(length):
        here = path[-1]
        path.append(col[rowptr[here] + (torch.rand(len(here)) * degree[here]).long()])
    return torch.stack(path, 1)


def best_of(function: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest run, after one to compile."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--degree", type=int, default=8, help="mean degree; a ring keeps every degree above 0")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--rate", type=int, default=4, help="walks per node")
    options = parser.parse_args()

    torch.manual_seed(0)
    size, length = options.nodes, options.length
    ring = torch.stack([torch.arange(size), (torch.arange(size) + 1) % size])
    pairs = torch.cat([ring, torch.randint(0, size, (2, size * (options.degree - 2) // 2))], 1)
    edges = torch.cat([pairs, pairs.flip(0)], 1)
    graph = stored_edges(edges, size)
    starts = torch.arange(size).repeat(options.rate)
    steps = torch.full_like(starts, length)
    data = SimpleNamespace(edge_index=edges, num_nodes=size)

    rows = {
        "plain torch gather (base)": lambda: plain_torch(graph.rowptr, graph.col, starts, length),
        "uniform, with edge ids": lambda: random_walks(graph, starts, steps, 0),
        "non-backtracking, with edge ids": lambda: random_walks(graph, starts, steps, 0, backtracking=False),
        "node2vec p=0.5 q=2": lambda: node2vec_walks(edges, size, starts, length + 1, p=0.5, q=2),
        "walks(): checks, stream, window 8": lambda: walks(data, length=length, rate=options.rate, window=8),
    }
    print(f"{size} nodes, {edges.shape[1]} stored edges, {len(starts)} walks of {length} steps; ", end="")
    print(f"torch with {torch.get_num_threads()} threads, seqgraph with 1\n")
    print("| walker | million steps/s | ratio |\n|---|---|---|")
    base = 0.0
    for name, function in rows.items():
        rate = len(starts) * length / best_of(function) / 1e6
        base = base or rate
        print(f"| {name} | {rate:.2f} | {rate / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
