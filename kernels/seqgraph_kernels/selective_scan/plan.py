"""How a scan is cut for a GPU, from sizes alone: a GPU need not tell its host the lengths."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

# Tokens between two saved states; the backward recomputes what lies between them. Spans are multiples of it.
CHUNK = 64
# Most states of channels that a forward walk may take two of to a lane.
TWO_CHANNELS = 16
# Most tokens of a span: the model below was fitted up to it.
LONGEST = 8192


class Sizes(NamedTuple):
    """What a plan follows from.

    tokens, segments, channels, states: T, S, E, N. longest: most tokens in a segment, T if nobody knows. passes:
    directions. paired: whether both directions' states come from one walk. even: whether two neighbouring channels can
    be loaded as one. processors: multiprocessors of the GPU.
    """

    tokens: int
    segments: int
    channels: int
    states: int
    longest: int
    passes: int
    paired: bool
    even: bool
    processors: int


class Plan(NamedTuple):
    """span: tokens of a span. halves: channels to a lane of a program that walks forward."""

    span: int
    halves: int


class Walk(NamedTuple):
    """What a warp's step over a token takes: how many warps a multiprocessor holds (by their registers), a scheduler's
    cycles where it has enough of them, and how long one step lasts at least."""

    held: int
    cycles: float
    least: float


# Measured on an H100 with 16 states (benchmarks/kernels/LOG.md); by channels to a lane.
OUTPUTS = {1: Walk(20, 235, 570), 2: Walk(12, 378, 1230)}
LOCAL = {1: Walk(16, 180, 890), 2: Walk(16, 310, 1350)}
PAIRED = Walk(16, 223, 900)
GRADIENTS = Walk(8, 1450, 2600)
# The short recurrence over spans: a launch, and bytes a cycle.
CARRY, MOVED = 12_000, 3_400


def _cycles(walk: Walk, warps: float, tokens: float, processors: int) -> float:
    """Cycles until each of so many warps has walked so many tokens."""
    each = warps / processors
    rounds, rest = divmod(each, walk.held)

    def step(held: float) -> float:
        return (held > 0) * max(walk.least, walk.cycles * held / 4)

    # In truth between all rounds one after the other and a last one that fills the others' gaps.
    in_turn = rounds * step(walk.held) + step(rest)
    return tokens * (in_turn + max(step(min(each, walk.held)), walk.cycles * each / 4)) / 2


def _cost(sizes: Sizes, span: int, halves: int, walk: Walk, channels: int) -> float:
    """Cycles for a walk by warps of so many channels over spans of this length, and for the states they start from."""
    segments, mean = max(sizes.segments, 1), sizes.tokens / max(sizes.segments, 1)
    whole = sizes.longest <= span
    # Lengths are not known, only their mean: about half of a last span is empty.
    used = segments * (1.0 if whole else max(1.0, mean / span + 0.5 * (sizes.longest > mean)))
    tokens: float = min(span, sizes.tokens)
    if whole:
        # Where all warps run at once, the longest segment's is the last.
        at_once = used * math.ceil(sizes.channels / channels) <= walk.held * sizes.processors
        tokens = sizes.longest if at_once else (mean + sizes.longest) / 2
    time = sizes.passes * _cycles(walk, used * math.ceil(sizes.channels / channels), tokens, sizes.processors)
    if whole:
        return time
    inner = max(used - segments, 0.1 * used)
    # Written, read and written as states to start from, and read.
    time += CARRY + 16 * sizes.passes * used * sizes.channels * sizes.states / MOVED
    if sizes.paired:
        return time + _cycles(PAIRED, inner * math.ceil(sizes.channels / 32), span, sizes.processors)
    warps = inner * math.ceil(sizes.channels / (32 * halves)) * sizes.passes
    return time + _cycles(LOCAL[halves], warps, span, sizes.processors)


def _spans(sizes: Sizes) -> list[int]:
    longest = -(-max(sizes.longest, 1) // CHUNK) * CHUNK
    spans = {64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, longest}
    return sorted(s for s in spans if s <= min(longest, LONGEST))


@lru_cache(4096)
def forward_plan(sizes: Sizes) -> Plan:
    """The cut, and the channels to a lane, that should take least time forward."""
    both = (2, 1) if sizes.even and sizes.states <= TWO_CHANNELS else (1,)
    return min(
        (Plan(span, halves) for halves in both for span in _spans(sizes)),
        key=lambda plan: _cost(sizes, plan.span, plan.halves, OUTPUTS[plan.halves], 32 * plan.halves),
    )


@lru_cache(4096)
def backward_plan(sizes: Sizes) -> Plan:
    """The cut that should take least time backward."""
    halves = 2 if sizes.even else 1
    return min(
        (Plan(span, halves) for span in _spans(sizes)),
        key=lambda plan: _cost(sizes, plan.span, halves, GRADIENTS, 32),
    )
