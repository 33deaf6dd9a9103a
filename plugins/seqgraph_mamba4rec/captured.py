"""A training step's loss and gradients as one replay of a CUDA graph.

A step over some ten thousand tokens is a hundred small launches: the GPU waits for its host. A graph is one launch.
Batches differ in size, so they are filled up: tokens to a multiple of 256, segments to a power of two. What is filled
in makes segments of its own, which no other one sees, and no prediction of it counts. Where some tokens alone predict,
as the last ones of prefixes do, there are as many predictions as in the batch, and tokens to a multiple of 8,192.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seqgraph.errors import ConfigError
from seqgraph.stream import TokenStream

Loss = Callable[[TokenStream, Tensor, Tensor | None, Tensor | None], Tensor]

_TOKENS, _OF_SOME, _LONGEST, _MET, _MOST = 256, 8192, 64, 3, 12
"""Tokens come in multiples of the first; of the second where some of them predict, whose batches are large and vary.
The longest segment counts as the third at least: up to there kernels plan alike. A size is recorded when it is met so
often, and at most so many are."""


class Size(NamedTuple):
    """What a graph is recorded for: tokens, segments, longest segment, the precision of products, and predictions.

    ``some`` is how many tokens predict; None where all do.
    """

    tokens: int
    segments: int
    longest: int
    half: torch.dtype | None
    some: int | None = None


def size_of(stream: TokenStream, at: Tensor | None = None) -> Size | None:
    """The size that a batch is filled up to; None without tokens, or with lengths that the host does not know."""
    if not stream.num_tokens or not stream.max_seqlen:
        return None
    unit = _TOKENS if at is None else _OF_SOME
    tokens = -(-stream.num_tokens // unit) * unit
    more = -(-(tokens - stream.num_tokens) // stream.max_seqlen)
    device = stream.device.type
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    longest = _power(max(_LONGEST, stream.max_seqlen))
    return Size(tokens, _power(stream.num_segments + more), longest, half, None if at is None else len(at))


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


@dataclass
class Filled:
    """A batch in tensors that stay where they are.

    Attributes:
        size: what it holds.
        values: item ids, (T,) int64; those beyond the batch are any items.
        cu_seqlens: segment borders, (S + 1,) int32.
        target: the right item of each prediction, (T,) int64, or (P,).
        count: tokens of the batch itself, () int64.
        steps: 0, 1, …, S, (S + 1,) int32, for the borders behind the batch.
        at: the tokens that predict, (P,) int64; None where all do.
    """

    size: Size
    values: Tensor
    cu_seqlens: Tensor
    target: Tensor
    count: Tensor
    steps: Tensor = field(repr=False)
    at: Tensor | None = None

    @classmethod
    def empty(cls, size: Size, device: torch.device) -> Filled:
        """Room for batches of a size."""
        zeros = partial(torch.zeros, dtype=torch.int64, device=device)
        steps = torch.arange(size.segments + 1, dtype=torch.int32, device=device)
        at = None if size.some is None else zeros(size.some)
        target = zeros(size.tokens if size.some is None else size.some)
        return cls(size, zeros(size.tokens), torch.zeros_like(steps), target, zeros(()), steps, at)

    def fill(self, stream: TokenStream, target: Tensor, at: Tensor | None = None) -> None:
        """Take a batch in, without waiting for the GPU."""
        tokens, segments = stream.num_tokens, stream.num_segments
        self.values[:tokens].copy_(stream.values)
        self.target[: len(target)].copy_(target)
        if self.at is not None and at is not None:
            self.at.copy_(at)
        self.cu_seqlens[: segments + 1].copy_(stream.cu_seqlens)
        # Behind the batch segments no longer than its own, as long as there are tokens; empty ones then.
        rest = self.steps[1 : len(self.steps) - segments]
        torch.clamp(rest * (stream.max_seqlen or 1) + tokens, max=self.size.tokens, out=self.cu_seqlens[segments + 1 :])
        self.count.fill_(tokens)

    def stream(self) -> TokenStream:
        """All of it."""
        return TokenStream(self.values, self.cu_seqlens, self.values, max_seqlen=self.size.longest)


class Captured:
    """Loss and gradients of batches, replayed where their size is a frequent one.

    While a step is recorded no earlier loss may be alive: torch would wait for the stream that it was made on. When a
    recording fails, a warning says why, and all steps are computed from then on.

    Args:
        loss: of a stream (T,), the right items (P,), the tokens that predict (P,) int64 or None for all, and then the
            number of tokens that count, () int64, else None; waits for nothing.
        parameters: what it is differentiated by.

    Raises:
        ConfigError: for parameters that are spread over processes.
    """

    def __init__(self, loss: Loss, parameters: Iterable[nn.Parameter]) -> None:
        self.loss, self.parameters = loss, [p for p in parameters if p.requires_grad]
        if any(hasattr(p, "full_tensor") for p in self.parameters):
            raise ConfigError("task.capture with weights that are spread over processes", "train.strategy=auto")
        self.most = _MOST
        self.met: Counter[Size] = Counter()
        self.graphs: dict[Size, Recorded] = {}
        self.replays = 0

    def __call__(self, stream: TokenStream, target: Tensor, at: Tensor | None = None) -> Tensor | None:
        """The batch's loss, with its gradients behind it; None where its size has not been met often enough."""
        size = size_of(stream, at)
        if size is None:
            return None
        if size not in self.graphs:
            self.met[size] += 1
            if self.met[size] < _MET or len(self.graphs) >= self.most:
                return None
            room = Filled.empty(size, stream.device)
            room.fill(stream, target, at)
            try:
                self.graphs[size] = self._record(room)
            except Exception as error:
                # Earlier graphs share memory and a random generator with the one that broke off.
                self.graphs.clear()
                self.most = 0
                why = next(iter(str(error).splitlines()), type(error).__name__)
                warnings.warn(f"task.capture: steps are not recorded but computed each time: {why}", stacklevel=2)
                return None
        recorded = self.graphs[size]
        recorded.room.fill(stream, target, at)
        return _Replay.apply(self, recorded, *self.parameters)

    def run(self, room: Filled) -> tuple[Tensor, list[Tensor | None]]:
        """Loss and gradients, as a graph records them."""
        half = room.size.half
        # A weight that autocast has kept in bf16 would be in the graph as it is now.
        with torch.autocast(room.values.device.type, half, enabled=half is not None, cache_enabled=False):
            loss = self.loss(room.stream(), room.target, room.at, None if room.at is not None else room.count)
        # Who calls may be in autocast still, which a backward is not meant for.
        with torch.autocast(room.values.device.type, enabled=False):
            return loss.detach(), list(torch.autograd.grad(loss, self.parameters, allow_unused=True))

    def _record(self, room: Filled) -> Recorded:
        # The graphs share their memory: one is read out before the next is replayed.
        pool = next((one.graph.pool() for one in self.graphs.values()), None)
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.random.fork_rng(devices=[room.values.device]):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # kernels are compiled, and libraries started, before anything is recorded
                for _ in range(2):
                    self.run(room)
            torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, pool=pool):
            loss, grads = self.run(room)
        return Recorded(graph, room, loss, grads)


@dataclass
class Recorded:
    """A graph, the batch that it reads, and what it writes, until any graph of its pool is replayed."""

    graph: torch.cuda.CUDAGraph
    room: Filled
    loss: Tensor
    grads: list[Tensor | None]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: Captured, recorded: Recorded, *parameters: Tensor) -> Tensor:
        recorded.graph.replay()
        captured.replays += 1
        ctx.captured, ctx.recorded, ctx.number = captured, recorded, captured.replays
        return recorded.loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        recorded: Recorded = ctx.recorded
        if ctx.captured.replays != ctx.number:
            raise RuntimeError("another batch has been through the model since: go back after each step")
        used = [g for g in recorded.grads if g is not None]
        scaled = iter(torch._foreach_mul(used, grad))
        return None, None, *(None if g is None else next(scaled) for g in recorded.grads)
