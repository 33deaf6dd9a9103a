"""Random walks of fixed length, with what they saw in a window behind them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from seqgraph.errors import ConfigError
from seqgraph.order.hashing import draw_seed, hashed_uniform
from seqgraph.stream import TokenStream
from seqgraph.tokenize.graph import Graphs, node_keys, read_graphs
from seqgraph.tokenize.steps import Law, Sink, keyed_streams, random_walks
from seqgraph.tokenize.steps_cpu import count_tokens, join_walks
from seqgraph.tokenize.window import window_in_torch, window_on_cpu


@dataclass(frozen=True)
class Walks:
    """Walks as a stream, and the features of CRaWl (arXiv 2102.08786) and NeuralWalker (2406.03386).

    Attributes:
        stream: one segment a walk; ``values`` and ``source`` are the node indices, (T,) int64.
        edge: index in ``edge_index`` of the edge that led to each token, (T,) int64; -1 at a walk's start and where
            it jumped or stood still.
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
    p: float = 1.0,
    q: float = 1.0,
    restart: float = 0.0,
    sink: Sink = "end",
    keys: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Walks:
    """Random walks over the stored edges: the tokenizer "walks".

    Graphs on a GPU are walked there, with the same result. With ``sink`` "stay" or "restart" every walk has the same
    length.

    Args:
        data: a graph or a batch of them; see :func:`seqgraph.tokenize.graph.read_graphs`.
        length: steps of each walk, so length + 1 tokens; with sink "end" a walk is shorter where no edge leaves.
        rate: walks per node on average: each node starts floor(rate) of them, and one more with the probability that
            is left. A graph with nodes has at least one walk.
        window: w, how many steps the features look back; 0 for no features.
        backtracking: whether a walk may step straight back; if not, it does so at dead ends only.
        p: node2vec's return parameter, for walks that may step back; see :class:`seqgraph.tokenize.steps.Law`.
        q: node2vec's in-out parameter.
        restart: chance of a jump to the walk's first node before each step.
        sink: what a walk does where no edge leaves: "end", "stay" or "restart".
        keys: of the nodes, (V,) int64: what a walk draws is a function of the seed, the key of its first node, and
            its number among that node's walks. None takes the index of the node.
        generator: a CPU generator; None takes torch's global one.

    Returns:
        Walks sorted by their first node.

    Raises:
        DataError: for a malformed graph or NaN features.
        ConfigError: for a negative length, rate or window, or another option out of range.
    """
    if length < 0 or rate < 0 or window < 0:
        raise ConfigError(f"length {length}, rate {rate}, window {window}", "none of them can be negative")
    law = Law(backtracking=backtracking, p=p, q=q, restart=restart, sink=sink)
    graphs = read_graphs(data)
    keys = node_keys(keys, graphs)
    starts, number = _starts(graphs, rate, keys, generator)
    streams = keyed_streams(draw_seed(generator), keys[starts], number)
    on_cpu = starts.device.type == "cpu"
    table = graphs.walk_table if on_cpu else None
    steps = torch.full_like(starts, length)
    visited, edge = random_walks(graphs.stored, starts, steps, streams, law, longest=length, table=table)
    if sink == "end":
        node, edge, lengths = _cut(visited, edge)
    else:
        node, edge, lengths = visited.flatten(), edge.flatten(), torch.full_like(starts, length + 1)
    stream = TokenStream.from_lengths(node, lengths, source=node)
    if not window:
        features = torch.zeros(stream.num_tokens, 0, device=stream.device)
    elif on_cpu:
        features = window_on_cpu(graphs.window_table, stream, window)
    else:
        features = window_in_torch(graphs.pairs, graphs.num_nodes, stream, window)
    return Walks(stream, edge, features)


def _cut(visited: Tensor, edge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and edges up to each walk's end, (T,), and how many there are, (W,)."""
    if visited.device.type != "cpu":
        seen = visited >= 0
        kept = seen.flatten().nonzero()[:, 0]
        return visited.flatten()[kept], edge.flatten()[kept], seen.sum(1)
    lengths = torch.from_numpy(count_tokens(visited.numpy()))
    if int(lengths.sum()) == visited.numel():
        return visited.flatten(), edge.flatten(), lengths
    node, edge = join_walks(visited, edge, lengths)
    return node, edge, lengths


def _starts(graphs: Graphs, rate: float, keys: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """First nodes of the walks, and the number of each among the walks of its node, (W,) int64 both."""
    whole = torch.arange(graphs.num_nodes, device=keys.device)
    if rate == int(rate) >= 1:
        walks_each = int(rate)
        return whole.repeat_interleave(walks_each), torch.arange(walks_each, device=keys.device).repeat(len(whole))
    chance = hashed_uniform(draw_seed(generator), keys)
    count = int(rate) + (chance < rate % 1).long()
    if rate < 1 and graphs.num_nodes:
        # A graph where nobody starts gets the node with the smallest draw.
        started = count.new_zeros(graphs.num_graphs).index_add(0, graphs.batch, count)
        least = chance.new_ones(graphs.num_graphs).scatter_reduce(0, graphs.batch, chance, "amin")
        count = torch.where((started == 0)[graphs.batch] & (chance == least[graphs.batch]), 1, count)
    starts = torch.repeat_interleave(whole, count)
    return starts, torch.arange(len(starts), device=keys.device) - (count.cumsum(0) - count)[starts]
