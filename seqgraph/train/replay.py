"""Steps that are recorded once as CUDA graphs and replayed: a GPU need not wait for the host to launch each kernel.

A recorded step holds the sizes of its batch, so that either batches stay together for some epochs (``train.replay``),
or all have the same sizes (``train.level``) and are copied to where the recorded one lay. Nothing is padded, and a
replay computes what the step itself would: dropout and other draws on the GPU are made anew, from where torch's
generator is.
"""

from __future__ import annotations

import contextlib
import gc
import random
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from seqgraph.config import TrainConfig
from seqgraph.errors import ConfigError
from seqgraph.train.batching import BatchKey
from seqgraph.train.static import StaticBatch, signature

Outputs = dict[str, Tensor]

# Steps before the first recording: kernels are compiled and loaded, lazy state is made.
_EAGER = 3
# Recordings that may fail (a kernel that had not been loaded, say) before all steps are eager.
_FAILURES = 3
# Level batches may differ in what a recorded step holds beside their sizes; recordings of such kinds at most.
_KINDS = 4


class Recorder(Protocol):
    """Records the work of a function, which it calls once."""

    def __call__(self, function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        """What the function gave, which a replay fills anew, and the replay."""
        ...


@dataclass
class _Kept:
    """A batch of the current composition.

    Attributes:
        batch: gives it, on its device, where its tensors stay as they are.
        outputs: of the recorded step.
        used: which parameters it has gradients of.
        replay: runs the recorded step; None where there is none.
        fill: puts another batch's tensors in the place of the recorded one's.
    """

    batch: Callable[[], Any]
    outputs: Outputs
    used: tuple[bool, ...] = ()
    replay: Callable[[], None] | None = None
    fill: Callable[[Sequence[Tensor]], None] = lambda tensors: None


class Replays:
    """The steps of batches that stay together for some epochs, up to the gradients.

    Each batch is made once and stays on the device. On a GPU its step is recorded when it is first seen, and replayed
    from then on; elsewhere it is computed each time. A step that cannot be recorded (it waits for the GPU, or draws
    with a generator of the host) is computed, and the reason told.

    Args:
        source: gives the batch of a :class:`BatchKey`.
        step: from a batch to {"loss": scalar with gradient, ...}; all are tensors.
        parameters: whose ``.grad`` is filled.
        recorder: for devices that can record.
        say: tells a person why steps are not recorded.

    Attributes:
        failure: the last failed recording's traceback, for who looks for the reason.
        recorded: how many batches of the current composition have a recorded step.
    """

    def __init__(
        self,
        source: Callable[[BatchKey], Any],
        step: Callable[[Any], Outputs],
        parameters: Sequence[nn.Parameter],
        *,
        recorder: Recorder | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.source, self.forward, self.recorder, self.say = source, step, recorder, say
        self.parameters = [p for p in parameters if p.requires_grad]
        self.failure = ""
        self.recorded = 0
        self._grads: list[Tensor] = []
        self._used: tuple[bool, ...] = ()
        self._turn: int | None = None
        self._kept: dict[Hashable, _Kept] = {}
        self._eager, self._failures = 0, 0

    def step(self, key: BatchKey) -> Outputs:
        """Fill the gradients with those of a batch.

        Returns:
            What the step gave, without gradient.
        """
        if key.epoch != self._turn:
            self.clear()
            self._turn = key.epoch
        kept = self._kept.get(key.number) or self._keep(key)
        if kept.replay is None and self.recorder is not None and self._eager >= _EAGER and not self._record(kept):
            # what a failed recording has left behind: caches that nothing was written to, graphs with another generator
            self.clear()
            kept = self._keep(key)
        return self._computed(kept.batch()) if kept.replay is None else self._replayed(kept)

    def _computed(self, batch: Any) -> Outputs:
        self._eager += 1
        outputs, used = self._compute(batch)
        self._use(used)
        return outputs

    def _replayed(self, kept: _Kept) -> Outputs:
        assert kept.replay is not None
        kept.replay()
        self._use(kept.used)
        # the next replay may overwrite what this one gave
        return {name: value.clone() for name, value in kept.outputs.items()}

    def clear(self) -> None:
        """Forget all batches, and what was recorded."""
        self._kept.clear()
        self.recorded = 0

    def _keep(self, key: BatchKey) -> _Kept:
        batch = self.source(key)
        kept = self._kept[key.number] = _Kept(lambda: batch, {})
        return kept

    def _compute(self, batch: Any) -> tuple[Outputs, tuple[bool, ...]]:
        """Forward and backward; which parameters have gradients, in buffers of their own."""
        if not self._grads:
            self._grads = [torch.zeros_like(p) for p in self.parameters]
        outputs = self.forward(batch)
        loss = outputs["loss"]
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        pairs = [(own, new) for own, new in zip(self._grads, found, strict=True) if new is not None]
        torch._foreach_copy_([own for own, _ in pairs], [new for _, new in pairs])
        return {name: value.detach() for name, value in outputs.items()}, tuple(new is not None for new in found)

    def _use(self, used: tuple[bool, ...]) -> None:
        """Give the parameters their gradients; none to those that the step did not use."""
        first = next((p for p, is_used in zip(self.parameters, used, strict=True) if is_used), None)
        if used == self._used and (first is None or first.grad is not None):
            return
        self._used = used
        for parameter, grad, is_used in zip(self.parameters, self._grads, used, strict=True):
            parameter.grad = grad if is_used else None

    def _record(self, kept: _Kept) -> bool:
        assert self.recorder is not None
        before, found = _host_states(), []

        def function() -> Outputs:
            outputs, used = self._compute(kept.batch())
            found.append(used)
            return outputs

        why = ""
        try:
            with _without_autocast_cache(), _without_collection():
                outputs, replay = self.recorder(function)
        except Exception as error:
            self.failure, self._failures = traceback.format_exc(), self._failures + 1
            why = f"{_where(error)}: {_first_line(error)}"
        if not why and not _equal(before, _host_states()):
            self._failures = _FAILURES
            self.failure = why = "it draws random numbers on the host, which a replay would repeat"
        if why:
            _set_host_states(before)
            if self._failures >= _FAILURES:
                self._give_up(why)
            return False
        kept.outputs, kept.used, kept.replay = outputs, found[0], replay
        self.recorded += 1
        return True

    def _give_up(self, why: str) -> None:
        self.recorder = None
        self.say(f"train.replay: steps are not recorded but computed each time: {why}")


class LevelReplays(Replays):
    """The steps of batches that are drawn anew each epoch; those that are level share one recorded step.

    The first level batch is copied to buffers of its own, in which its step is recorded; each later one of the same
    :func:`seqgraph.train.static.signature` is copied into them, and the step replayed. The signature has the shapes of
    all tensors and the values of all that the host knows of the batch. Bounds such as the longest sequence, by which
    kernels are planned, must therefore be the same for all batches: ``Dataset.leveled`` puts them in. What else a step
    launches hangs on shapes alone, or it would wait for the GPU, which cannot be recorded. Batches that are not level
    are computed.
    """

    _told = False

    def step(self, key: BatchKey) -> Outputs:
        """Fill the gradients with those of a batch; see :meth:`Replays.step`."""
        batch = self.source(key)
        if not key.level or self.recorder is None or self._eager < _EAGER:
            return self._computed(batch)
        try:
            kind, tensors = signature(batch)
        except TypeError as error:
            self._give_up(f"{error}, which cannot be copied into a recorded step")
            return self._computed(batch)
        kept = self._kept.get(kind)
        if kept is not None:
            kept.fill(tensors)
            return self._replayed(kept)
        if len(self._kept) == _KINDS:
            if not self._told:
                self.say(f"train.level: batches of equal sizes differ otherwise; {_KINDS} kinds are recorded, no more")
            self._told = True
            return self._computed(batch)
        static = StaticBatch(batch)
        kept = self._kept[kind] = _Kept(static.fresh, {}, fill=static.fill)
        if not self._record(kept):
            self.clear()
            return self._computed(batch)
        return self._replayed(kept)


class CudaRecorder:
    """Records work on the current stream of a GPU, which must not be the default one; all recordings share memory.

    They may: a recording reads only what lies outside (parameters, its batch), and what it gives is copied before the
    next one is replayed.

    Args:
        device: of the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
        self._pool: Any = None
        self._first: torch.cuda.CUDAGraph | None = None

    def __call__(self, function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        """Record a function.

        Raises:
            Exception: what it or the GPU's driver raises; torch's generator is then as it was.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            # the pool's memory goes with the last recording in it: this one stays
            self._held = torch.zeros(1, device=self.device)
            self._first = self._recorded(self._held.zero_, self._pool)
        found: list[Outputs] = []
        graph = self._recorded(lambda: found.append(function()), self._pool)
        return found[0], graph.replay

    def _recorded(self, function: Callable[[], Any], pool: Any) -> torch.cuda.CUDAGraph:
        graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[self.device.index]
        spare = generator.clone_state()
        try:
            # relaxed: a kernel may be loaded at its first launch; waiting for the GPU is an error all the same
            graph.capture_begin(pool=pool, capture_error_mode="relaxed")
            function()
            graph.capture_end()
        except BaseException:
            with contextlib.suppress(Exception):
                graph.capture_end()
            # what is left of a recording that was broken off: nothing could be drawn, and memory would not come back
            generator.graphsafe_set_state(spare.graphsafe_get_state())
            with contextlib.suppress(Exception):
                torch._C._cuda_endAllocateToPool(self.device.index, pool)
                torch._C._cuda_releasePool(self.device.index, pool)
            self._pool = self._first = None
            raise
        return graph


def check(config: TrainConfig, world: int) -> None:
    """See that ``train.replay`` goes with the rest.

    Raises:
        ConfigError: naming what it does not go with.
    """
    if not config.replay:
        return
    for wrong, what, cure in (
        (world > 1, "several processes", "train each seed in a process of its own"),
        (config.accumulate > 1, "train.accumulate above 1", "raise train.max_tokens instead"),
        (config.workers > 0, "train.workers", "set train.workers=0: each batch is made once and kept"),
    ):
        if wrong:
            raise ConfigError(f"train.replay does not go with {what}", cure)


@contextlib.contextmanager
def own_stream(wanted: bool) -> Iterator[None]:
    """A stream of the GPU beside the default one, which cannot be recorded; everything before and after waits."""
    if not wanted:
        yield
        return
    outer, inner = torch.cuda.current_stream(), torch.cuda.Stream()
    inner.wait_stream(outer)
    try:
        with torch.cuda.stream(inner):
            yield
    finally:
        outer.wait_stream(inner)


@contextlib.contextmanager
def _without_autocast_cache() -> Iterator[None]:
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Garbage that holds graphs or events of a GPU must not be let go while it records."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _host_states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_host_states(states: tuple[Any, Any, Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _equal(one: tuple[Any, Any, Tensor], other: tuple[Any, Any, Tensor]) -> bool:
    numpy_alike = all(np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True))
    return one[0] == other[0] and numpy_alike and torch.equal(one[2], other[2])


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/torch/" not in frame.filename] or list(frames)
    return f"{own[-1].filename.rpartition('/')[2]}:{own[-1].lineno}" if own else "?"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
