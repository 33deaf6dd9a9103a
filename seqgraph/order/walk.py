"""Random-walk probabilities as scores."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seqgraph.errors import ConfigError
from seqgraph.order.graph import Adjacency, check_graph, count_graphs, simple_edges, snap
from seqgraph.order.returns import followed_returns, pruned_returns

_CELLS = 1 << 23  # float64 cells of the dense block that is held at once
_EXACT, _PRUNE = 4096, 1e-3


def rwse(
    edge_index: Tensor,
    num_nodes: int,
    batch: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    steps: int = 16,
    kind: Literal["return", "landing"] = "return",
    prune: float | None = None,
) -> Tensor:
    """Score nodes by where random walks of 1..k steps are found, on the simple undirected graph.

    "return": minus the sum of the probabilities to be back after 1..k steps, i.e. minus the sum of the RWSE vector
    (Dwivedi et al., arXiv 2110.07875; Graph-Mamba orders so): nodes that a walk leaves for good come last. Exact, it
    costs O(k M V) over a graph, so large graphs follow a walk only while it has not spread too thin: see ``prune``.
    "landing": the sum of the probabilities to stand on the node after 1..k steps from a uniformly drawn node of its
    graph; the most visited come last. Costs O(k M).
    A walk on a node without neighbours stays there.

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        batch: graph of each node, (V,) int64, sorted, or None.
        generator: not used; the scores are deterministic.
        steps: k, at least 1.
        kind: see above.
        prune: for "return": a walk goes on from a node only while each of its edges gets at least this probability, at
            a cost of k / (2 prune) edges a node; 0 is exact. None is 0 for graphs of up to 4,096 nodes, and for others
            0.001, which holds all returns within four steps where degrees are up to 30, and longer ones where they
            are smaller. With pruning the computation runs on the CPU.

    Returns:
        Scores (V,) float64, float noise between ties removed.

    Raises:
        DataError: for a malformed graph.
        ConfigError: for steps below 1, another kind, or a prune outside [0, 1].
    """
    edge_index, batch = check_graph(edge_index, num_nodes, batch)
    if steps < 1:
        raise ConfigError(f"rwse needs at least one step, not {steps}")
    if kind not in ("return", "landing"):
        raise ConfigError(f"rwse kind {kind!r}", "choose return or landing")
    if prune is not None and not 0 <= prune <= 1:
        raise ConfigError(f"rwse prune {prune}", "it is a probability: 0 for none")
    graph = simple_edges(edge_index, num_nodes)
    if kind == "landing":
        return snap(_landing(graph, batch, steps), batch)
    nodes = torch.bincount(batch, minlength=count_graphs(batch))[batch]
    large = nodes > _EXACT if prune is None else torch.full_like(nodes, prune > 0, dtype=torch.bool)
    if not bool(large.any()):
        # On a CPU a dense block costs all that it could hold, 80 times as much for molecules.
        on_cpu = batch.device.type == "cpu" and prune is None
        found = followed_returns(graph, steps) if on_cpu else return_probabilities(graph, batch, steps)
        return snap(-found.sum(1), batch)
    scores = torch.zeros(num_nodes, dtype=torch.float64, device=batch.device)
    small = (~large).nonzero()[:, 0]
    if len(small):
        # No edge joins two graphs, so the small ones are a batch by themselves.
        number = (~large).cumsum(0) - 1
        inside = ~large[edge_index[0]]
        scores[small] = rwse(number[edge_index[:, inside]], len(small), _renumber(batch[small]), steps=steps)
    copy = Adjacency(*(t.cpu() for t in (graph.rowptr, graph.row, graph.col, graph.edge)))
    chosen = large.nonzero()[:, 0]
    pruned = pruned_returns(copy, chosen.cpu(), steps, _PRUNE if prune is None else prune)
    scores[chosen] = -pruned.sum(1).to(scores.device)
    return scores


def _renumber(batch: Tensor) -> Tensor:
    """Graphs from 0 on, without gaps."""
    return torch.unique_consecutive(batch, return_inverse=True)[1]


def _landing(graph: Adjacency, batch: Tensor, steps: int) -> Tensor:
    nodes = torch.bincount(batch, minlength=count_graphs(batch))
    p = 1.0 / nodes[batch].double()
    share = 1.0 / graph.degree.clamp_min(1).double()
    stays = (graph.degree == 0).double()
    total = torch.zeros_like(p)
    for _ in range(steps):
        p = (p * stays).index_add(0, graph.col, (p * share)[graph.row])
        total = total + p
    return total


def return_probabilities(graph: Adjacency, batch: Tensor, steps: int) -> Tensor:
    """Probability to be back where the walk began, after 1..k steps.

    With S = D^-1/2 A D^-1/2, diag(P^t) = diag(S^t), and as S is symmetric diag(S^(a+b)) is the row sum of the product
    S^a * S^b taken cell by cell: half of the powers are enough. Every graph's block of S^a is held in the same
    columns, (V, nodes of the largest graph), a few columns at a time.

    Args:
        graph: simple and undirected.
        batch: graph of each node, (V,) int64, sorted.
        steps: k.

    Returns:
        (V, k) float64.
    """
    size = graph.num_nodes
    result = torch.zeros(size, steps, dtype=torch.float64, device=batch.device)
    if not size:
        return result
    nodes = torch.bincount(batch)
    local = torch.arange(size, device=batch.device) - (nodes.cumsum(0) - nodes)[batch]
    lonely = (graph.degree == 0).nonzero()[:, 0]
    root = graph.degree.clamp_min(1).double().rsqrt()
    index = torch.stack([torch.cat([graph.row, lonely]), torch.cat([graph.col, lonely])])
    weight = torch.cat([root[graph.row] * root[graph.col], root.new_ones(len(lonely))])
    walk = torch.sparse_coo_tensor(index, weight, (size, size), check_invariants=False).coalesce()
    longest, width = int(nodes.max()), max(1, _CELLS // size)
    for start in range(0, longest, width):
        inside = ((local >= start) & (local < start + width)).nonzero()[:, 0]
        power = root.new_zeros(size, min(width, longest - start))  # S^a
        power[inside, local[inside] - start] = 1
        for a in range((steps + 1) // 2):
            following = torch.sparse.mm(walk, power)
            result[:, 2 * a] += (power * following).sum(1)
            if 2 * a + 1 < steps:
                result[:, 2 * a + 1] += following.square().sum(1)
            power = following
    return result
