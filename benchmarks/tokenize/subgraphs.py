"""Induced subgraphs a second on the CPU: seqgraph's neighbourhood tokens beside a loop over PyG's k_hop_subgraph.

Both make one induced subgraph for each node and each distance 1..m. seqgraph's are unions of M random walks, PyG's
are whole balls (its RootedRWSubgraph, which would be the same thing, needs pyg-lib, which is not on PyPI).

Run: python benchmarks/tokenize/subgraphs.py [--nodes 5000] [--degree 4] [--hops 2] [--walks 8]
"""

from __future__ import annotations

import argparse
import time
from types import SimpleNamespace

import torch
from torch_geometric.utils import k_hop_subgraph

from seqgraph.tokenize import neighborhoods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--degree", type=int, default=4)
    parser.add_argument("--hops", type=int, default=2)
    parser.add_argument("--walks", type=int, default=8)
    parser.add_argument("--sample", type=int, default=300, help="nodes that the loop is timed on")
    options = parser.parse_args()

    torch.manual_seed(0)
    size = options.nodes
    pairs = torch.randint(0, size, (2, size * options.degree // 2))
    edges = torch.cat([pairs, pairs.flip(0)], 1)
    data = SimpleNamespace(edge_index=edges, num_nodes=size)

    settings = {"max_length": options.hops, "walks": options.walks, "repeats": 1}
    neighborhoods(data, **settings)
    start = time.perf_counter()
    tokens = neighborhoods(data, **settings)
    ours = size * options.hops / (time.perf_counter() - start)

    members = 0
    start = time.perf_counter()
    for node in range(options.sample):
        for hops in range(1, options.hops + 1):
            members += len(k_hop_subgraph(node, hops, edges, relabel_nodes=True, num_nodes=size)[0])
    theirs = options.sample * options.hops / (time.perf_counter() - start)

    print(f"{size} nodes, {edges.shape[1]} stored edges, distances 1..{options.hops}, {options.walks} walks; ", end="")
    print(f"torch with {torch.get_num_threads()} threads\n")
    print("| subgraphs | a second | nodes each | ratio |\n|---|---|---|---|")
    print(f"| k_hop_subgraph loop (base) | {theirs:,.0f} | {members / options.sample / options.hops:.1f} | 1.0 |")
    far = tokens.walk_length[tokens.stream.values.argsort()][tokens.token] > 0
    print(f"| neighborhoods() | {ours:,.0f} | {int(far.sum()) / size / options.hops:.1f} | {ours / theirs:.1f} |")


if __name__ == "__main__":
    main()
