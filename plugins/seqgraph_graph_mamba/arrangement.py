"""Token sequences made of nodes: permuted, cut into buckets, with neighbours in front, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seqgraph.order.hashing import mix64
from seqgraph_graph_mamba.gather import rank_within
from seqgraph_graph_mamba.graph import GraphBatch
from seqgraph_graph_mamba.ordering import NOISE_BITS, Chance, Priority, permutations

# What a piece of noise is for: two purposes never share draws.
_NODE, _JITTER, _BUCKET, _CLUSTER, _NEIGHBOR = range(5)


@dataclass(frozen=True)
class Arrangement:
    """Nodes as tokens of sequences, P times over.

    Attributes:
        node: the node of each token, (T,) int64.
        cu_seqlens: borders of the sequences, (P * S * buckets + 1,) int32.
        place: the token that each node is read back from, (P, V) int64.
        longest: no sequence is longer, where the host knows.
    """

    node: Tensor
    cu_seqlens: Tensor
    place: Tensor
    longest: int | None = None


def arrange_layers(
    batch: GraphBatch, priority: Priority, names: Tensor | None, seed: int, layers: int, draws: range, **tokens: Any
) -> list[Arrangement]:
    """What :func:`arrange` gives each layer: in training a draw of its own, all of them made at once.

    Args:
        batch: the graphs.
        priority: their order.
        names: of the nodes (V,) at inference; None in training.
        seed: of the draws at inference.
        layers: how many.
        draws: at inference, of every layer.
        **tokens: jitter, buckets, neighbors, as below.
    """
    if names is not None:
        return [arrange(batch, priority, Chance(names, seed, layer, draws), **tokens) for layer in range(layers)]
    if not layers or not batch.num_graphs:
        return [arrange(batch, priority, Chance(), **tokens)] * layers
    found = arrange(batch, priority, Chance(draws=range(layers)), **tokens)
    length, sequences = len(found.node) // layers, (len(found.cu_seqlens) - 1) // layers
    shift = length * torch.arange(layers, dtype=torch.int32, device=batch.device)[:, None]
    # rows begin at multiples of 16 bytes: kernels are compiled apart for pointers that do not
    borders = found.cu_seqlens.new_empty(layers, -(-(sequences + 1) // 4) * 4)[:, : sequences + 1]
    torch.sub(found.cu_seqlens.unfold(0, sequences + 1, sequences), shift, out=borders)
    place = found.place - shift
    return [
        Arrangement(node, cu_seqlens, own[None], found.longest)
        for node, cu_seqlens, own in zip(found.node.view(layers, -1), borders, place, strict=True)
    ]


def arrange(
    batch: GraphBatch, priority: Priority, chance: Chance, *, jitter: float = 0.0, buckets: int = 1, neighbors: int = 0
) -> Arrangement:
    """Put the nodes of each graph into sequences.

    Args:
        batch: the graphs.
        priority: their order.
        chance: the source of noise.
        jitter: noise on the scores, uniform, this many times their standard deviation within the graph wide.
        buckets: each node goes to one of so many, at random; each bucket is a sequence of its own.
        neighbors: each node is preceded by so many of the nodes that its edges lead to, at most.
    """
    order = _sort_nodes(batch, priority, chance, jitter)  # (P, V)
    longest = None if batch.longest is None else batch.longest * (1 + neighbors)
    draws, nodes = order.shape
    device, graphs = order.device, batch.num_graphs
    if buckets > 1:
        drawn = chance.noise(chance.names, nodes, device, _BUCKET)
        sequence = batch.batch * buckets + (drawn * buckets >> NOISE_BITS)  # (P, V)
        order = order.gather(1, sequence.gather(1, order).argsort(dim=1, stable=True))
    else:
        sequence = batch.batch.expand(draws, -1)
    if neighbors:
        found = _with_neighbors(batch, order, sequence, chance, neighbors, graphs * buckets)
        return replace(found, longest=longest)
    if buckets > 1:
        borders = _borders(sequence, torch.ones_like(sequence), graphs * buckets)
    else:
        shift = nodes * torch.arange(draws, device=device)
        borders = (batch.cu_seqlens[None, :-1] + shift[:, None]).flatten()
        borders = torch.cat([borders, borders.new_full((1,), draws * nodes)]).to(torch.int32)
    place = _inverse(order) + nodes * torch.arange(draws, device=device)[:, None]
    return Arrangement(order.flatten(), borders, place, longest)


def _sort_nodes(batch: GraphBatch, priority: Priority, chance: Chance, jitter: float) -> Tensor:
    """Nodes in order, each graph's together, (P, V)."""
    nodes, device = batch.num_nodes, batch.device
    noise = chance.noise(chance.names, nodes, device)
    if priority.clustered:
        # a cluster is named by its members, whatever their order
        clusters = None
        if chance.names is not None:
            clusters = torch.zeros_like(priority.groups).index_add(0, priority.groups, mix64(chance.names))
        drawn = chance.noise(clusters, nodes, device, _CLUSTER)[:, priority.groups]
        order = permutations(priority.groups, noise)
        by_cluster = permutations(batch.batch, drawn.gather(1, order))
        return order.gather(1, by_cluster)
    if not jitter or priority.scores is None:
        return permutations(priority.groups, noise)
    scores = priority.scores.double()
    mean, spread = _moments(scores, batch)
    drawn = chance.noise(chance.names, nodes, device, _JITTER).double() / 2**NOISE_BITS
    shaken = (scores - mean) + jitter * spread * drawn  # (P, V)
    order = permutations(priority.groups * 0, noise)
    order = order.gather(1, shaken.gather(1, order).argsort(dim=1, stable=True))
    return order.gather(1, batch.batch[order].argsort(dim=1, stable=True))


def _moments(scores: Tensor, batch: GraphBatch) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scores within each node's graph, (V,) both."""
    owner, graphs = batch.batch, batch.num_graphs
    size = scores.new_zeros(graphs).index_add(0, owner, torch.ones_like(scores)).clamp_min(1)
    mean = (scores.new_zeros(graphs).index_add(0, owner, scores) / size)[owner]
    variance = scores.new_zeros(graphs).index_add(0, owner, (scores - mean).square()) / size
    return mean, variance.sqrt()[owner]


def _with_neighbors(
    batch: GraphBatch, order: Tensor, sequence: Tensor, chance: Chance, neighbors: int, sequences: int
) -> Arrangement:
    draws, nodes = order.shape
    source, target = batch.edge_index
    names = None if chance.names is None else mix64(chance.names[source] * 3 + chance.names[target])
    noise = chance.noise(names, batch.num_edges, order.device, _NEIGHBOR)
    edges = permutations(source, noise)  # (P, M): the edges of a node together, shuffled
    rank = rank_within(source.sort().values, nodes)  # (M,), the same in every draw
    degree = torch.zeros_like(batch.batch).index_add(0, source, torch.ones_like(source))
    tokens = degree.clamp_max(neighbors) + 1  # (V,)
    end = torch.empty_like(order).scatter_(1, order, tokens[order].cumsum(1))  # (P, V)
    end = end + (tokens.sum() * torch.arange(draws, device=order.device))[:, None]
    chosen = rank < neighbors
    length = int(tokens.sum()) * draws
    node = torch.empty(length, dtype=torch.int64, device=order.device)
    node[end.flatten() - 1] = torch.arange(nodes, device=order.device).repeat(draws)
    edges = edges[:, chosen]
    # the neighbours of a node end just before it
    at = end.gather(1, source[edges]) - 2 - rank[chosen]
    node[at.flatten()] = target[edges].flatten()
    return Arrangement(node, _borders(sequence, tokens.expand(draws, -1), sequences), end - 1)


def _borders(sequence: Tensor, tokens: Tensor, sequences: int) -> Tensor:
    """Borders of the sequences (P, V) names, when each node stands for some tokens (P, V)."""
    draws = len(sequence)
    shifted = sequence + sequences * torch.arange(draws, device=sequence.device)[:, None]
    lengths = sequence.new_zeros(draws * sequences).index_add(0, shifted.flatten(), tokens.flatten())
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)


def _inverse(order: Tensor) -> Tensor:
    numbers = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, numbers)
