"""Random steps of many walkers: counter-based draws, the same in torch on any device and in numba on the CPU.

A walk has a stream of draws, ``mix64(mix64(seed + key) + number * GOLDEN)`` for the walk of that number among those
of one key, and step t of it draws ``mix64(stream + t * GOLDEN)``: no state, no order of evaluation, so that the walks
do not depend on the device, the number of threads, or on which walks are computed together. Of a draw's bits, the
upper 31 choose among n edges as ``draw * n >> 31``; for the n of any graph the bias is below n / 2^31. The lower 32
decide on a restart. Steps that draw again and again start a stream of their own from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from seqgraph.errors import ConfigError
from seqgraph.order.graph import Adjacency
from seqgraph.order.hashing import GOLDEN, mix64, wrap
from seqgraph.tokenize.steps_cpu import END, GROUP, RESTART, STAY, WalkTable, below, draw_of, find, run_groups
from seqgraph.tokenize.steps_cpu import walk_groups as _walk_groups

__all__ = ["Law", "Sink", "below", "draw_at", "draw_of", "find", "keyed_streams", "random_walks", "walk_streams"]

Sink = Literal["end", "stay", "restart"]
_SINKS = {"end": END, "stay": STAY, "restart": RESTART}
_WIDEST = 1000.0


@dataclass(frozen=True)
class Law:
    """How a walk chooses its next step.

    From v, having come from t, an edge to x has weight 1/p if x is t, 1 if an edge leads from t to x, and 1/q else
    (node2vec: Grover & Leskovec, 2016, eq. 2). Every stored edge counts by itself, repeats and self loops too. The
    first step, and the first after a jump, knows no t and takes every edge alike.

    Attributes:
        backtracking: False for no step straight back unless there is no other edge (p without end).
        p: return parameter: small turns back often.
        q: in-out parameter: small leaves the neighbourhood.
        restart: chance, before each step, to jump back to the walk's first node instead.
        sink: at a node that no edge leaves, "end" ends the walk, "stay" stands still, "restart" jumps to the start.

    Raises:
        ConfigError: for p or q outside [0.001, 1000], or a restart outside [0, 1], or an unknown sink.
    """

    backtracking: bool = True
    p: float = 1.0
    q: float = 1.0
    restart: float = 0.0
    sink: Sink = "end"

    def __post_init__(self) -> None:
        if not (1 / _WIDEST <= self.p <= _WIDEST and 1 / _WIDEST <= self.q <= _WIDEST):
            raise ConfigError(f"p {self.p}, q {self.q}", f"both must lie between {1 / _WIDEST} and {_WIDEST:.0f}")
        if not 0 <= self.restart <= 1:
            raise ConfigError(f"restart {self.restart}", "it is a chance, from 0 to 1")
        if self.sink not in _SINKS:
            raise ConfigError(f"sink {self.sink!r}", f"choose {', '.join(_SINKS)}")

    @property
    def second_order(self) -> bool:
        """Whether a step looks at where the walk came from."""
        return not (self.backtracking and self.p == self.q == 1)

    @property
    def inverse_p(self) -> float:
        """Weight of an edge back."""
        return 1 / self.p if self.backtracking else 0.0

    @property
    def threshold(self) -> int:
        """Draws whose lower half is below this jump back to the start."""
        return math.floor(self.restart * 2**32)


def walk_streams(seed: int, count: int, device: torch.device) -> Tensor:
    """The start of each walk's own sequence of draws, (count,) int64."""
    return mix64(seed + torch.arange(count, device=device))


def keyed_streams(seed: int, keys: Tensor, number: Tensor) -> Tensor:
    """The streams of walks that have keys, int64.

    Args:
        seed: of all draws.
        keys: int64 of any shape: walks of the same key and number draw the same.
        number: int64, broadcast with ``keys``.
    """
    return mix64(mix64(seed + keys) + number * GOLDEN)


def draw_at(streams: Tensor, step: int) -> Tensor:
    """Draws of one step, (W,) int64."""
    return mix64(streams + wrap(step * GOLDEN))


def random_walks(
    graph: Adjacency,
    starts: Tensor,
    lengths: Tensor,
    streams: Tensor,
    law: Law | None = None,
    *,
    longest: int | None = None,
    table: WalkTable | None = None,
) -> tuple[Tensor, Tensor]:
    """Walks over stored edges; numba on the CPU's threads, torch elsewhere, with the same result.

    Args:
        graph: edges as stored.
        starts: first node of each walk, (W,) int64.
        lengths: steps of each walk, (W,) int64.
        streams: of draws, (W,) int64; see :func:`walk_streams` and :func:`keyed_streams`.
        law: how steps are chosen; None for uniform steps that may turn back.
        longest: the largest of the lengths, if it is known: else it is read from the device.
        table: the graph's, if there is one already.

    Returns:
        Nodes visited, (W, L + 1), and the stored edge that led to each, (W, L + 1) with -1 at the start and after a
        jump; both are -1 behind the walk's end.
    """
    law = Law() if law is None else law
    if longest is None:
        longest = int(lengths.max()) if len(lengths) else 0
    if starts.device.type != "cpu":
        return _walk_torch(graph, starts, lengths, streams, law, longest)
    table = WalkTable.of(graph) if table is None else table
    # numpy asks the kernel for large pages, which torch does not: fresh arrays are several times as fast.
    found = np.empty((len(starts), longest + 1), np.int64), np.empty((len(starts), longest + 1), np.int64)
    edge_table = table.rowptr, table.col, table.record
    walks = starts.numpy(), lengths.numpy(), streams.numpy()
    numbers = law.second_order, law.inverse_p, 1 / law.q, law.threshold, _SINKS[law.sink]

    def work(begin: int, stop: int) -> None:
        _walk_groups(edge_table, walks, numbers, found, begin, stop)

    run_groups(work, -(-len(starts) // GROUP), found[0].size)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _walk_torch(
    graph: Adjacency, starts: Tensor, lengths: Tensor, streams: Tensor, law: Law, longest: int
) -> tuple[Tensor, Tensor]:
    """The same on any device. Only p or q other than 1 reads from it: how many walkers still draw."""
    key = graph.key if law.second_order else None
    here, before = starts, torch.full_like(starts, -1)
    nodes, edges = [starts], [before]
    nowhere = torch.full_like(starts, -1)
    for step in range(1, longest + 1):
        draw = draw_at(streams, step)
        at = here.clamp_min(0)
        place = nowhere
        # Where there are no edges at all, `col` has nothing to index.
        if len(graph.col):
            place = (
                _uniform_step(graph, at, draw) if key is None else _second_order_step(graph, key, at, before, draw, law)
            )
        going = (here >= 0) & (lengths >= step)
        jumps = (draw & 0xFFFFFFFF) < law.threshold
        moves = going & ~jumps & (place >= 0)
        instead = {"end": nowhere, "stay": here, "restart": starts}[law.sink]
        following = torch.where(going, torch.where(jumps, starts, instead), nowhere)
        edge = nowhere
        if len(graph.col):
            place = torch.where(moves, place, 0)
            following = torch.where(moves, graph.col[place], following)
            edge = torch.where(moves, graph.edge[place], nowhere)
        before, here = torch.where(moves, here, nowhere), following
        nodes.append(here)
        edges.append(edge)
    return torch.stack(nodes, 1), torch.stack(edges, 1)


def _uniform_step(graph: Adjacency, node: Tensor, draw: Tensor) -> Tensor:
    """Any edge from each node, (W,) int64 places in ``graph.col``; -1 where none leaves."""
    low = graph.rowptr[node]
    count = graph.rowptr[node + 1] - low
    return torch.where(count > 0, low + (_upper(draw) * count >> 31), -1)


def _upper(draw: Tensor) -> Tensor:
    return (draw >> 33) & ((1 << 31) - 1)


def _second_order_step(graph: Adjacency, key: Tensor, node: Tensor, previous: Tensor, draw: Tensor, law: Law) -> Tensor:
    """As ``_uniform_step``, for walkers that know where they came from, (W,) int64, -1 for nowhere.

    The columns rise within a row, so the edges back are a run: they are left out by a jump over it, or drawn as a
    case of their own, and the others are drawn from an upper bound and thinned out.
    """
    low = graph.rowptr[node]
    count = graph.rowptr[node + 1] - low
    back = node * graph.num_nodes + previous.clamp_min(0)
    first = torch.searchsorted(key, back)
    repeats = torch.searchsorted(key, back, right=True) - first
    repeats = torch.where(previous >= 0, repeats, 0)
    if law.inverse_p == 0 and law.q == 1:
        repeats = torch.where(repeats < count, repeats, 0)
        place = low + (_upper(draw) * (count - repeats) >> 31)
        place = place + repeats * (place >= first)
        return torch.where(count > 0, place, -1)
    place = torch.where(count > 0, low + (_upper(draw) * count >> 31), -1)
    drawing = ((previous >= 0) & (repeats < count)).nonzero()[:, 0]
    top = max(1.0, 1 / law.q)
    attempt = 0
    while len(drawing):
        attempt += 1
        unit = ((draw_at(draw[drawing], attempt) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53
        start, many, run = low[drawing], repeats[drawing], first[drawing]
        rest = count[drawing] - many
        mass = many.double() * law.inverse_p
        height = unit * (mass + rest.double() * top)
        goes_back = height < mass
        returning = run + torch.minimum((height / (law.inverse_p or 1.0)).long(), many - 1)
        height = height - mass
        number = torch.minimum((height / top).long(), rest - 1)
        onward = start + number.clamp_min(0)
        onward = onward + many * (onward >= run)
        place[drawing] = torch.where(goes_back, returning, onward)
        wanted = previous[drawing] * graph.num_nodes + graph.col[onward]
        found = key[torch.searchsorted(key, wanted).clamp_max(len(key) - 1)] == wanted
        weight = torch.full_like(height, 1 / law.q).masked_fill(found, 1.0)
        stays = height - number.double() * top < weight
        drawing = drawing[~(goes_back | stays)]
    return place
