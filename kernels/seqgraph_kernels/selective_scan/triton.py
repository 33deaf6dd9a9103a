"""The selective scan on a GPU: memory and launches around the kernels of ``triton_forward`` and ``triton_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqgraph_kernels.dispatch import interpreting
from seqgraph_kernels.packing import check_borders, unit_rows
from seqgraph_kernels.ready import is_first, small
from seqgraph_kernels.selective_scan import triton_backward, triton_forward, triton_states
from seqgraph_kernels.selective_scan.arguments import Pass, ScanArguments
from seqgraph_kernels.selective_scan.plan import CHUNK, TWO_CHANNELS, Plan, Sizes, backward_plan, forward_plan

# Arguments with a row for each token.
WIDE = ("x", "dt", "B", "C", "z")
# States that one walk holds; more are walked in several turns.
STATES = 32
# The backward's: it holds more of each state, those of this many tokens at once.
STATES_BACKWARD = 16
# Tokens that are worked on together.
GROUP = 2
# The backward's channels, one to a lane, and its programs: enough to fill a multiprocessor, few enough to keep scratch
# small.
LANES = 32
RESIDENT = 8
# Most warps of a program that walks forward, and registers of its threads: with more, fewer than three fit a scheduler.
WARPS, REGISTERS = 4, 168


def checkpoint_shape(args: ScanArguments) -> tuple[int, int, int, int]:
    """Shape of the saved states, (directions, slots, E, N).

    Chunk ``j`` of segment ``s`` has slot ``cu_seqlens[s] // CHUNK + s + j``: no two share one, and the number of slots
    follows from T and S alone, so that a GPU need not tell its host the lengths.
    """
    slots = args.x.shape[0] // CHUNK + args.cu_seqlens.shape[0] - 1
    return len(args.passes()), slots, *args.A.shape


def forward(args: ScanArguments, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final states and, where ``save`` says so, the states that each chunk of tokens starts from."""
    if is_first(args, WIDE, "forward", save):
        for halves in (1, 2) if args.A.shape[1] <= TWO_CHANNELS else (1,):
            _Call(small(args, WIDE, 2 * CHUNK, 1), adjoint=False, plan=Plan(CHUNK, halves)).forward(save)
    return _Call(args, adjoint=False).forward(save)


def backward(args: ScanArguments, grad_out: Tensor, grad_end: Tensor | None, checkpoints: Tensor) -> dict[str, Tensor]:
    """Gradients by argument name. Every argument of ``args`` that is present gets one."""
    if is_first(args, WIDE, "backward", grad_end is None):
        one = small(args, WIDE, 2 * CHUNK, 1)
        grads = one.x.new_zeros((2, *one.x.shape) if args.stacked else one.x.shape)
        saved = one.x.new_zeros(checkpoint_shape(one), dtype=torch.float32)
        last = None if grad_end is None else saved.new_zeros(len(args.passes()), 1, *args.A.shape)
        _Call(one, adjoint=True, plan=Plan(CHUNK, 2)).backward(grads, last, saved)
    return _Call(args, adjoint=True).backward(grad_out.contiguous(), grad_end, checkpoints)


class _Call:
    """The tensors of a call as the kernels want them, and the sizes that all of its kernels share."""

    def __init__(self, args: ScanArguments, *, adjoint: bool, plan: Plan | None = None) -> None:
        self.args, self.adjoint = args, adjoint
        (self.T, self.E), self.N = args.x.shape, args.A.shape[1]
        self.S, self.cu = args.cu_seqlens.shape[0] - 1, args.cu_seqlens
        if interpreting():
            check_borders(args.cu_seqlens, self.T)
        self.ways = [_Way(one) for one in args.passes()]
        self.z = None if args.z is None else unit_rows(args.z)
        self.z_stride = 0 if self.z is None else self.z.stride(0)
        self.start = None if args.initial_state is None else args.initial_state.float().contiguous()
        self.rounds = max(self.S - 1, 0).bit_length()
        # Two channels to a lane, where they can be loaded as one.
        loaded = [t for w in self.ways for t in (w.x, w.dt)] + ([] if self.z is None else [self.z])
        even = self.z_stride % 2 == 0 and all(t.data_ptr() % (2 * t.element_size()) == 0 for t in loaded)
        even = even and self.E % 64 == 0
        # Without a longest length from the caller, a segment may be as long as the batch.
        longest = self.T if args.max_seqlen is None else args.max_seqlen
        self.paired, processors = self._is_paired(), _processors(args.x.device)
        sizes = Sizes(self.T, self.S, self.E, self.N, longest, len(self.ways), self.paired, even, processors)
        if plan is None:
            plan = backward_plan(sizes) if adjoint else forward_plan(sizes)
        self.span, self.halves = plan.span, plan.halves if even else 1
        self.cut = longest > self.span
        self.warps = _warps(self.E, self.halves)
        self.blocks = -(-self.E // (32 * self.warps * self.halves))
        self.sink = self.empty(4 * max(64, self.N))
        self.slots = self.T // self.span + self.S
        one = self.ways[0].one
        self.shape: dict[str, Any] = {
            "LANES": 32 * self.warps, "NB": min(STATES, -(-self.N // 4) * 4), "N": self.N, "M": self.halves, "G": GROUP,
            "EVEN": self.E % (32 * self.halves) == 0, "HAS_BIAS": one.dt_bias is not None,
            "SOFTPLUS": args.dt_softplus, "WAYS": args.direction, "num_warps": self.warps, "enable_fp_fusion": True,
        }  # fmt: skip

    def _is_paired(self) -> bool:
        """Whether one walk gives both directions' local states: they share all that it reads."""
        names = ("dt", "A", "dt_bias", "C") if self.adjoint else ("dt", "A", "dt_bias", "x", "B")
        shared = len(self.ways) == 2 and all(self.args.owner(name, 1) == name for name in names)
        return shared and not (self.adjoint and self.args.stacked)

    def empty(self, *shape: int) -> Tensor:
        """fp32 on the device of the inputs."""
        return self.args.x.new_empty(shape, dtype=torch.float32)

    def pairs(self, *values: Any) -> list[Any]:
        """Arguments for both directions: first those of the first, then those of the last."""
        return [v[0] for v in values] + [v[-1] for v in values]

    def forward(self, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        args, T, E, N, S = self.args, self.T, self.E, self.N, self.S
        passes = len(self.ways)
        # Two walks share an output in its own precision; more of them, over parts of many states, need fp32.
        dtype = torch.float32 if N > STATES else args.x.dtype
        out = args.x.new_empty((2, T, E) if args.stacked else (T, E), dtype=dtype)
        end = self.empty(passes, S, E, N)
        chunks = self.empty(*checkpoint_shape(args)) if save else None
        if S and E:
            with torch.cuda.device_of(args.x):
                carry = self.carry([w.x for w in self.ways], [w.B for w in self.ways], self.start)
                outs = [out[0], out[1]] if args.stacked else [out, out]
                ways = self.ways
                for n0 in range(0, N, self.shape["NB"]):
                    last = n0 + self.shape["NB"] >= N
                    triton_forward.outputs[(self.slots * self.blocks,)](
                        *self.pairs(
                            [w.x for w in ways], [w.dt for w in ways], [w.A for w in ways], [w.B for w in ways],
                            [w.C for w in ways], [w.D for w in ways], [w.bias for w in ways],
                            _each(self.start, passes), _each(carry, passes, self.sink), _each(chunks, passes),
                            _each(end, passes), outs,
                        ),
                        self.z, self.cu, self.sink, self.z_stride, E, S, self.rounds, self.span,
                        CHUNK if save else self.span, self.blocks, int(self.cut), n0, STACKED=args.stacked,
                        HAS_START=self.start is not None, HAS_D=ways[0].D is not None and not n0,
                        HAS_Z=self.z is not None, SAVE=save, FIRST=not n0, LAST=last, maxnreg=REGISTERS, **self.shape,
                    )  # fmt: skip
        return out.to(args.x.dtype), end, self.empty(0) if chunks is None else chunks

    def carry(self, x: list[Tensor], B: list[Tensor], first: Tensor | None) -> Tensor | None:
        """State, (directions, slots, E, N), that each span starts from, where segments have several spans; in the
        backward the gradient that reaches its end, made from gradients as ``x`` and C as ``B``."""
        if not self.cut:
            return None
        passes, ways = len(self.ways), self.ways
        local = self.empty(passes, self.slots, self.E, self.N)
        steps = self.empty(passes, self.slots, self.E)
        adjoint, paired = self.adjoint, self.paired
        # A pair holds twice the states.
        shape, warps = self.shape, self.warps
        if paired:
            warps = _warps(self.E, 1)
            shape = shape | {"M": 1, "EVEN": self.E % 32 == 0, "LANES": 32 * warps, "num_warps": warps}
        blocks = -(-self.E // (32 * warps * shape["M"]))
        for n0 in range(0, self.N, shape["NB"]):
            triton_states.local_states[(self.slots * blocks, 1 if paired else passes)](
                *self.pairs(
                    x, [w.dt for w in ways], [w.A for w in ways], B, [w.bias for w in ways], _each(local, passes),
                    _each(steps, passes),
                ),
                self.z, self.cu, self.sink, self.z_stride, self.E, self.S, self.rounds, self.span, blocks, n0,
                HAS_Z=adjoint and self.z is not None, ADJOINT=adjoint, PAIRED=paired, **shape,
            )  # fmt: skip
        BN = max(2, 1 << (self.N - 1).bit_length())
        BD = max(1, 256 // BN)
        triton_states.carry_states[(self.S * -(-self.E // BD), passes)](
            *self.pairs([w.A for w in ways], _each(local, passes), _each(steps, passes), _each(first, passes)),
            self.cu, self.E, self.S, self.span, -(-self.E // BD), N=self.N, BN=BN, BD=BD, AHEAD=8,
            HAS_FIRST=first is not None, ADJOINT=adjoint, WAYS=self.args.direction, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
        return local

    def backward(self, grad_out: Tensor, grad_end: Tensor | None, checkpoints: Tensor) -> dict[str, Tensor]:
        args, T, E, N, S, ways = self.args, self.T, self.E, self.N, self.S, self.ways
        passes = len(ways)
        grads = [grad_out[0], grad_out[1]] if args.stacked else [grad_out] * passes
        ends = None if grad_end is None else grad_end.float().contiguous()
        starts = None if self.start is None else torch.zeros_like(self.start)
        # Two walks share a gradient in its own precision; more of them, over parts of many states, need fp32.
        exact = STATES_BACKWARD * (3 - passes) < N
        total: dict[str, Tensor] = {}

        def wide(name: str, like: Tensor) -> Tensor:
            if name not in total:
                total[name] = like.new_empty((T, E), dtype=torch.float32 if exact else like.dtype)
            return total[name]

        def shared(name: str) -> bool:
            return passes == 2 and args.owner(name, 1) == name

        gx = [wide(args.owner("x", i), w.x) for i, w in enumerate(ways)]
        gdt = [wide(args.owner("dt", i), w.dt) for i, w in enumerate(ways)]
        gz = None if self.z is None else wide("z", self.z)
        blocks = -(-E // LANES)
        # Partial sums, added up below in an order that does not change; rounded as the sums themselves will be, but for
        # fp16, whose range is too short.
        gB, gC = (args.x.new_empty(passes, blocks, T, N, dtype=_rounded(t)) for t in (args.B, args.C))
        gA = args.x.new_zeros(passes, self.slots, E, N, dtype=torch.float32)
        gD, gbias = (args.x.new_zeros(passes, self.slots, E, dtype=torch.float32) for _ in "Db")
        if S and E:
            items = self.slots * blocks
            programs = min(items, RESIDENT * _processors(args.x.device))
            NB = min(STATES_BACKWARD, max(4, 1 << (N - 1).bit_length()))
            scratch = args.x.new_empty(programs * (CHUNK // GROUP) * LANES * NB, dtype=_rounded(args.x))
            tickets = torch.zeros(4 * -(-N // NB), dtype=torch.int32, device=args.x.device)
            with torch.cuda.device_of(args.x):
                carry = self.carry(grads, [w.C for w in ways], ends)
                for i, n0 in enumerate(range(0, N, NB)):
                    triton_backward.gradients[(programs,)](
                        *self.pairs(
                            [w.x for w in ways], [w.dt for w in ways], [w.A for w in ways], [w.B for w in ways],
                            [w.C for w in ways], [w.D for w in ways], [w.bias for w in ways], grads, gx, gdt,
                        ),
                        gB, gC, checkpoints, self.sink if carry is None else carry, ends, starts, gA, gD, gbias,
                        self.z, gz, self.cu, scratch, tickets[4 * i :], self.z_stride, T, E, S, self.rounds,
                        self.span, self.slots, checkpoints.shape[1], blocks, items, passes,
                        int(args.direction == "reverse"), int(self.cut), int(shared("x")), int(shared("dt")), n0,
                        NB=NB, N=N, LANES=LANES, G=GROUP, CHUNK=CHUNK, HAS_END=ends is not None,
                        HAS_START=starts is not None, HAS_BIAS=ways[0].bias is not None,
                        HAS_D=ways[0].D is not None and not n0, HAS_Z=gz is not None, SOFTPLUS=args.dt_softplus,
                        PRECISION="tf32x3" if args.x.dtype == torch.float32 else "tf32", ADD=passes == 2 or n0 > 0,
                        num_warps=1, num_stages=1, enable_fp_fusion=True,
                    )  # fmt: skip
        for name, part in (("B", gB), ("C", gC)):
            if shared(name):
                total[name] = part.sum((0, 1), dtype=torch.float32)
            else:
                total |= {args.owner(name, i): part[i].sum(0, dtype=torch.float32) for i in range(passes)}
        for i in range(passes):
            for name, part in (("A", gA[i]), ("D", gD[i]), ("dt_bias", gbias[i])):
                owner = args.owner(name, i)
                total[owner] = total[owner] + part.sum(0) if owner in total else part.sum(0)
        if starts is not None:
            total["initial_state"] = starts
        return total


class _Way:
    """One direction's tensors in the layouts of the kernels."""

    def __init__(self, one: Pass) -> None:
        self.one = one
        self.x, self.dt = one.x.contiguous(), one.dt.contiguous()
        self.A = one.A.float().contiguous()
        # Converted once here and not by every program: 32 conversions a step.
        self.B, self.C = one.B.float().contiguous(), one.C.float().contiguous()
        self.D = None if one.D is None else one.D.float().contiguous()
        self.bias = None if one.dt_bias is None else one.dt_bias.float().contiguous()


def _each(stacked: Tensor | None, directions: int, missing: Tensor | None = None) -> list[Tensor | None]:
    return [missing] * directions if stacked is None else list(stacked.unbind(0))


def _rounded(like: Tensor) -> torch.dtype:
    return torch.bfloat16 if like.dtype == torch.bfloat16 else torch.float32


def _warps(E: int, halves: int) -> int:
    """Warps of a program: neighbours read rows of B and C together, and longer pieces of a token's channels."""
    return next(w for w in (WARPS, 2, 1) if E % (32 * w * halves) == 0 or w == 1)


def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; those of an H100 where there is none, as in tests."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
