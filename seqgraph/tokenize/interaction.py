"""Interaction graphs as token streams: walks over proteins, written out as their sequences (LC-PLM-G)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import ConfigError, DataError
from seqgraph.order.graph import check_graph, simple_edges
from seqgraph.order.hashing import check_generator, draw_seed
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import EDGE, RESIDUE, ProteinAlphabet, Unknown
from seqgraph.tokenize.steps import below, draw_of, find, walk_streams

_TRIES = 64


def interaction_contexts(
    data: Any,
    *,
    proteins: int = 3,
    walks: int = 1,
    p: float = 1.0,
    q: float = 1.0,
    negatives: float = 0.0,
    unknown: Unknown = "error",
    generator: torch.Generator | None = None,
) -> TokenStream:
    """Walks over an interaction graph, each as one segment: the tokenizer "interaction-contexts".

    A context reads ``<cls> seq_1 <eos> <edge> <cls> seq_2 <eos> <edge> ...``: every protein as it would stand alone,
    and a link between two. Positive contexts are node2vec walks. Negative contexts join proteins without an
    interaction by ``<no_edge>``, drawn in proportion to their degree, as a walk would meet them. LC-PLM-G (arXiv
    2411.08909) says that walks, EDGE and NO_EDGE are used; lengths and shares are our choice.

    Args:
        data: an object with ``sequences``, V texts, and ``edge_index``, (2, M) interactions, read as undirected;
            optionally ``names``, V texts for error messages.
        proteins: proteins of one context; a protein without interactions makes a context by itself.
        walks: contexts that start at each protein.
        p: node2vec's return parameter: small turns back often.
        q: node2vec's in-out parameter: small leaves the neighbourhood.
        negatives: share of the contexts that are negative, each drawn by itself.
        unknown: see :meth:`seqgraph.tokenize.protein.ProteinAlphabet.encode`.
        generator: a CPU generator; None takes torch's global one.

    Returns:
        V * walks segments, sorted by their first protein. ``values`` ids of ``ProteinAlphabet(links=True)``;
        ``source`` the protein of each token (a link has that before it); ``role`` RESIDUE, SPECIAL or EDGE.

    Raises:
        DataError: for a malformed graph or sequence, naming it.
        ConfigError: for options out of range.
    """
    sequences, edge_index = getattr(data, "sequences", None), getattr(data, "edge_index", None)
    if sequences is None or edge_index is None:
        missing = "sequences" if sequences is None else "edge_index"
        raise DataError(
            f"{type(data).__name__} has no {missing}", "an interaction graph needs sequences and edge_index"
        )
    if not 0 <= negatives <= 1 or walks < 0:
        raise ConfigError(f"negatives {negatives}, walks {walks}", "negatives is a share from 0 to 1, walks 0 or more")
    check_generator(generator)
    edge_index = edge_index.cpu()
    encoded = ProteinAlphabet(links=True).encode(sequences, names=getattr(data, "names", None), unknown=unknown)
    starts = torch.arange(len(sequences)).repeat_interleave(walks)
    negative = torch.rand(len(starts), generator=generator) < negatives
    paths = node2vec_walks(edge_index, len(sequences), starts, proteins, p=p, q=q, generator=generator)
    if bool(negative.any()):
        paths[negative] = negative_walks(edge_index, len(sequences), starts[negative], proteins, generator=generator)
    return join_contexts(encoded, paths, negative)


def node2vec_walks(
    edge_index: Tensor,
    num_nodes: int,
    starts: Tensor,
    count: int,
    *,
    p: float = 1.0,
    q: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Second-order walks (Grover & Leskovec, 2016, eq. 2) on the simple undirected graph, exactly, on the CPU.

    From the edge (t, v), the next node x has weight 1/p if it is t, 1 if it is joined with t, 1/q otherwise. Candidates
    are drawn from an upper bound and thinned out; going back is a case of its own, so that a small p costs nothing.

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        starts: (W,) int64.
        count: nodes of each walk, n, at least 1.
        p: return parameter, above 0.
        q: in-out parameter, above 0.
        generator: a CPU generator; None takes torch's global one.

    Returns:
        (W, n) int64, -1 behind the end of a walk that met no neighbour.

    Raises:
        DataError: for a malformed graph.
        ConfigError: for options out of range.
    """
    if not (p > 0 and q > 0):
        raise ConfigError(f"p {p}, q {q}", "both must be above 0")
    rowptr, col, streams, paths = _prepare(edge_index, num_nodes, starts, count, generator)
    _node2vec(rowptr.numpy(), col.numpy(), streams.numpy(), paths.numpy(), float(p), float(q))
    return paths


def negative_walks(
    edge_index: Tensor, num_nodes: int, starts: Tensor, count: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Sequences of nodes in which no two neighbours are the same or share an edge.

    The next node is drawn in proportion to its degree, among those allowed: else a model could tell negatives from
    walks by how well connected the nodes are. Where no node with an edge is found, any other is taken.

    Args:
        edge_index: (2, M) int64.
        num_nodes: V.
        starts: (W,) int64.
        count: nodes of each sequence, n, at least 1.
        generator: a CPU generator; None takes torch's global one.

    Returns:
        (W, n) int64, -1 behind a node that is joined with every other.

    Raises:
        DataError: for a malformed graph.
        ConfigError: for a count below 1.
    """
    rowptr, col, streams, paths = _prepare(edge_index, num_nodes, starts, count, generator)
    _negative(rowptr.numpy(), col.numpy(), streams.numpy(), paths.numpy())
    return paths


def _prepare(
    edge_index: Tensor, num_nodes: int, starts: Tensor, count: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rowptr, col, the draws of each walk, and the walks with their starts."""
    if count < 1:
        raise ConfigError(f"a context of {count} proteins", "it needs at least one")
    edge_index, _ = check_graph(edge_index.cpu(), num_nodes)
    graph = simple_edges(edge_index, num_nodes)
    paths = torch.full((len(starts), count), -1, dtype=torch.int64)
    paths[:, 0] = starts
    return graph.rowptr, graph.col, walk_streams(draw_seed(generator), len(starts), paths.device), paths


def join_contexts(proteins: TokenStream, paths: Tensor, negative: Tensor) -> TokenStream:
    """Write walks out as token sequences.

    Args:
        proteins: one segment a protein; without roles, every token counts as RESIDUE.
        paths: protein indices, (C, n) int64, -1 behind the end.
        negative: which walks are linked by ``<no_edge>`` rather than ``<edge>``, (C,) bool.

    Returns:
        C segments; see :func:`interaction_contexts`.
    """
    seen = paths >= 0
    pieces = proteins[paths[seen]]
    linked = seen.clone()
    linked[:, :-1] &= seen[:, 1:]
    linked[:, -1:] = False
    context = seen.nonzero()[:, 0]
    linked = linked[seen].long()  # (pieces,): does a link follow?
    before = linked.cumsum(0) - linked
    place = torch.arange(pieces.num_tokens) + before[pieces.segment]
    links = (pieces.cu_seqlens[1:].long() + before)[linked > 0]
    total = pieces.num_tokens + len(links)
    values, source = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    role = torch.full((total,), EDGE, dtype=torch.int8)
    owner = paths[seen]
    values[place], source[place] = pieces.values, owner[pieces.segment]
    role[place] = torch.full_like(role[place], RESIDUE) if pieces.role is None else pieces.role
    kind = torch.where(negative, ProteinAlphabet.no_edge_id, ProteinAlphabet.edge_id)
    values[links], source[links] = kind[context[linked > 0]], owner[linked > 0]
    lengths = torch.zeros(len(paths), dtype=torch.int64).index_add(0, context, pieces.lengths + linked)
    return TokenStream.from_lengths(values, lengths, source=source, role=role)


@numba.njit(cache=True, nogil=True)
def _joined(rowptr, col, a, b):
    place = find(col, rowptr[a], rowptr[a + 1], b)
    return place < rowptr[a + 1] and col[place] == b


@numba.njit(cache=True, nogil=True)
def _node2vec(rowptr, col, streams, paths, p, q):
    top = max(1.0, 1.0 / q)
    for w in range(len(paths)):
        stream, counter = np.uint64(streams[w]), 0
        node, previous = paths[w, 0], -1
        for i in range(1, paths.shape[1]):
            low, count = rowptr[node], rowptr[node + 1] - rowptr[node]
            if count == 0:
                break
            following = previous
            if previous < 0:
                counter += 1
                following = col[low + below(draw_of(stream, counter), count)]
            elif count > 1:
                back = find(col, low, low + count, previous)
                while True:
                    counter += 1
                    unit = np.float64(draw_of(stream, counter) >> np.uint64(11)) * 2.0**-53
                    height = unit * (1.0 / p + (count - 1) * top) - 1.0 / p
                    if height < 0:
                        break
                    # The whole part picks a candidate, the fraction decides whether it stays.
                    number = min(np.int64(height / top), count - 2)
                    place = low + number
                    if place >= back:
                        place += 1
                    weight = 1.0 if _joined(rowptr, col, previous, col[place]) else 1.0 / q
                    if height - number * top < weight:
                        following = col[place]
                        break
            previous, node = node, following
            paths[w, i] = node


@numba.njit(cache=True, nogil=True)
def _negative(rowptr, col, streams, paths):
    size = len(rowptr) - 1
    for w in range(len(paths)):
        stream, counter = np.uint64(streams[w]), 0
        node = paths[w, 0]
        for i in range(1, paths.shape[1]):
            following = -1
            for _ in range(_TRIES if len(col) > 0 else 0):
                counter += 1
                candidate = col[below(draw_of(stream, counter), len(col))]
                if candidate != node and not _joined(rowptr, col, node, candidate):
                    following = candidate
                    break
            if following < 0:
                counter += 1
                offset = below(draw_of(stream, counter), size)
                for j in range(size):
                    candidate = (offset + j) % size
                    if candidate != node and not _joined(rowptr, col, node, candidate):
                        following = candidate
                        break
            if following < 0:
                break
            node = following
            paths[w, i] = node
