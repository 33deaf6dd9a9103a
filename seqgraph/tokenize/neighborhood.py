"""Neighbourhood tokens of Graph Mamba Networks (arXiv 2402.08678, Algorithm 1, lines 1 to 8)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import ConfigError
from seqgraph.order.graph import Adjacency
from seqgraph.order.hashing import draw_seed
from seqgraph.stream import TokenStream
from seqgraph.tokenize.graph import node_keys, read_graphs
from seqgraph.tokenize.neighborhood_cpu import sample_subgraphs, shuffle_blocks
from seqgraph.tokenize.steps import keyed_streams, random_walks


@dataclass(frozen=True)
class NeighborhoodTokens:
    """A sequence of subgraphs for each node, and all subgraphs as one big disjoint graph.

    A local encoder runs over ``node``, ``edge_index`` and ``edge`` as over any batch of graphs with ``token`` as its
    ``batch``; pooled by ``token`` to (T, D), its output indexed by ``stream.values`` gives the sequences.

    Attributes:
        stream: one segment a node, far tokens first and the node itself last; ``values`` token ids, (T,) int64, and
            ``source`` the node that the segment belongs to, (T,) int64.
        walk_length: steps of the walks behind each token of the stream, (T,) int64: m, ..., 1, 0.
        node: the members of the subgraphs, (K,) int64 node indices, rising within a token.
        token: the token that each member belongs to, (K,) int64, rising.
        edge_index: edges between members of one token, (2, E) int64 places in ``node``.
        edge: which stored edge each of them is, (E,) int64 places in the graph's own ``edge_index``.
    """

    stream: TokenStream
    walk_length: Tensor
    node: Tensor
    token: Tensor
    edge_index: Tensor
    edge: Tensor

    @property
    def num_tokens(self) -> int:
        """T, which is also the number of subgraphs."""
        return self.stream.num_tokens

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NeighborhoodTokens:
        """Move every field to a device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return NeighborhoodTokens(**moved)

    def shuffled(self, generator: torch.Generator | None = None, *, keys: Tensor | None = None) -> NeighborhoodTokens:
        """The same subgraphs, those of one node and one walk length in a new random order.

        Args:
            generator: a CPU generator; None takes torch's global one.
            keys: what the draws of each segment come from, (V,) int64; None takes its index.
        """
        seed, stream = draw_seed(generator), self.stream
        if keys is None:
            keys = torch.arange(stream.num_segments, device=stream.device)
        if stream.device.type == "cpu":
            segments = self.walk_length.numpy(), stream.cu_seqlens.numpy(), keys.numpy()
            values = torch.from_numpy(shuffle_blocks(stream.values.numpy(), segments, np.uint64(seed)))
            return replace(self, stream=stream.with_values(values))
        return replace(self, stream=stream.with_values(self._shuffle_torch(seed, keys)))

    def _shuffle_torch(self, seed: int, keys: Tensor) -> Tensor:
        stream, length = self.stream, self.walk_length
        position = stream.position
        noise = (keyed_streams(seed, keys[stream.segment], position) >> 33) & ((1 << 31) - 1)
        new = position == 0
        new[1:] |= length[1:] != length[:-1]
        return stream.values[torch.argsort(new.cumsum(0) << 31 | noise, stable=True)]


def neighborhoods(
    data: Any,
    *,
    max_length: int = 2,
    walks: int = 4,
    repeats: int = 2,
    keys: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> NeighborhoodTokens:
    """Subgraphs that random walks uncover around each node: the tokenizer "neighborhoods".

    For each node, each length 1..m and each of s repeats, a token is the union of the nodes that M uniform walks of
    that length visit, as the subgraph they induce. With the node itself (length 0) that makes m * s + 1 tokens,
    ordered far to near, the repeats of one length shuffled. Walks follow the stored edges, may turn back, and end
    where no edge leaves. Stored repeats and self loops stay in the subgraphs. Graphs on a GPU are tokenized there,
    with the same result.

    Args:
        data: a graph or a batch of them; see :func:`seqgraph.tokenize.graph.read_graphs`.
        max_length: m; 0 gives the nodes alone.
        walks: M, walks of one token.
        repeats: s, tokens of one length; 0 gives the nodes alone.
        keys: of the nodes, (V,) int64: what a node's tokens draw is a function of the seed and of its key. None takes
            the index of the node.
        generator: a CPU generator; None takes torch's global one.

    Returns:
        V (m s + 1) tokens. Token v (m s + 1) + i is the i-th of node v, before the shuffling.

    Raises:
        DataError: for a malformed graph or NaN features.
        ConfigError: for negative sizes, or no walks.
    """
    if max_length < 0 or repeats < 0 or walks < 1:
        raise ConfigError(
            f"max_length {max_length}, walks {walks}, repeats {repeats}",
            "give lengths and repeats from 0, walks from 1",
        )
    graphs = read_graphs(data)
    keys = node_keys(keys, graphs)
    size, device = graphs.num_nodes, graphs.batch.device
    lengths = torch.arange(max_length, 0, -1, device=device).repeat_interleave(repeats)  # (m s,)
    lengths = torch.cat([lengths, lengths.new_zeros(1)])  # (L,)
    seed = draw_seed(generator)
    if device.type == "cpu":
        found = sample_subgraphs(graphs.walk_table, keys, lengths, walks, seed)
        node, token, edge_index, edge = map(torch.from_numpy, found)
    else:
        node, token, edge_index, edge = _subgraphs_torch(graphs.stored, keys, lengths, walks, seed, max_length)
    tokens = NeighborhoodTokens(
        stream=TokenStream.from_lengths(
            torch.arange(size * len(lengths), device=device),
            torch.full((size,), len(lengths), device=device),
            source=torch.arange(size, device=device).repeat_interleave(len(lengths)),
        ),
        walk_length=lengths.repeat(size),
        node=node,
        token=token,
        edge_index=edge_index,
        edge=edge,
    )
    return tokens.shuffled(generator, keys=keys) if repeats > 1 else tokens


def _subgraphs_torch(
    graph: Adjacency, keys: Tensor, lengths: Tensor, walks: int, seed: int, longest: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``neighborhood_cpu.sample_subgraphs``, on any device; it reads back three numbers, how much it found."""
    nodes, tokens = len(keys), len(lengths)
    number = torch.arange(tokens * walks, device=keys.device)
    streams = keyed_streams(seed, keys[:, None], number).flatten()  # (V L M,)
    starts = torch.arange(nodes, device=keys.device).repeat_interleave(tokens * walks)
    steps = lengths.repeat_interleave(walks).repeat(nodes)
    visited, _ = random_walks(graph, starts, steps, streams, longest=longest)
    owner = torch.arange(nodes * tokens, device=keys.device).repeat_interleave(walks)[:, None].expand_as(visited)
    # Behind its end a walk counts as standing at its start, which is a member anyway.
    members = torch.unique(owner * max(nodes, 1) + torch.where(visited >= 0, visited, starts[:, None]))
    edge_index, edge = _induced(graph, members)
    return members % max(nodes, 1), members // max(nodes, 1), edge_index, edge


def _induced(graph: Adjacency, members: Tensor) -> tuple[Tensor, Tensor]:
    """Edges among members of one token: the out-edges of every member whose other end is a member as well.

    Args:
        graph: edges as stored.
        members: token * V + node, (K,) int64, rising.

    Returns:
        (2, E) int64 places in ``members``, and the stored edge of each, (E,) int64.
    """
    size = max(graph.num_nodes, 1)
    owner, place = graph.expand(members % size)
    wanted = members[owner] // size * size + graph.col[place]
    target = torch.searchsorted(members, wanted)
    # Beyond the last member lies nothing; without members there is nothing to look up either.
    inside = target < len(members)
    inside = inside & (members[target.clamp_max(len(members) - 1)] == wanted) if len(members) else inside
    kept = inside.nonzero()[:, 0]
    return torch.stack([owner[kept], target[kept]]), graph.edge[place[kept]]
