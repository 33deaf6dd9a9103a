"""The selective scan on a GPU: memory and launches around the kernels of ``triton_forward`` and ``triton_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqgraph_kernels.dispatch import interpreting
from seqgraph_kernels.launch import Pointer
from seqgraph_kernels.packing import check_borders, unit_rows
from seqgraph_kernels.ready import small
from seqgraph_kernels.selective_scan import triton_around, triton_backward, triton_forward, triton_states
from seqgraph_kernels.selective_scan.arguments import ScanArguments
from seqgraph_kernels.selective_scan.plan import CHUNK, TWO_CHANNELS, Plan, Sizes, backward_plan, forward_plan
from seqgraph_kernels.selective_scan.triton_kind import Kind, is_copied, kind_of

# Arguments with a row for each token.
WIDE = ("x", "dt", "B", "C", "z")
# States that one walk holds; more are walked in several turns.
STATES = 32
# The backward's: it holds more of each state, those of this many tokens at once.
STATES_BACKWARD = 16
# Tokens that are worked on together.
GROUP = 2
# The backward's channels, one to a lane, and its warps: enough to fill a multiprocessor, few enough to keep scratch
# small.
LANES = 32
RESIDENT = 8
# Most warps of a program that walks forward, and registers of its threads: with more, fewer than three fit a scheduler.
WARPS, REGISTERS = 4, 168
# Tiles in which partial sums are read: many rows of few columns, and few of many.
TILES = {"TALL": 256, "NARROW": 32, "LOW": 4, "WIDE": 1024}

Pair = tuple[Pointer, Pointer]


def checkpoint_shape(args: ScanArguments) -> tuple[int, int, int, int]:
    """Shape of the saved states, (directions, slots, E, N).

    Chunk ``j`` of segment ``s`` has slot ``cu_seqlens[s] // CHUNK + s + j``: no two share one, and the number of slots
    follows from T and S alone, so that a GPU need not tell its host the lengths.
    """
    slots = args.x.shape[0] // CHUNK + args.cu_seqlens.shape[0] - 1
    return 2 if args.direction == "both" else 1, slots, *args.A.shape


def forward(args: ScanArguments, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final states and, where ``save`` says so, the states that each chunk of tokens starts from."""
    kind = kind_of(args)
    if _is_first(kind, "forward", save):
        for halves in (1, 2) if kind.N <= TWO_CHANNELS else (1,):
            _Call(kind, small(args, WIDE, 2 * CHUNK, 1), adjoint=False, plan=Plan(CHUNK, halves)).forward(save)
    return _Call(kind, args, adjoint=False).forward(save)


def backward(args: ScanArguments, grad_out: Tensor, grad_end: Tensor | None, checkpoints: Tensor) -> dict[str, Tensor]:
    """Gradients by argument name. Every argument of ``args`` that is present gets one."""
    kind = kind_of(args)
    if grad_out.dtype != args.x.dtype or not grad_out.is_contiguous():
        grad_out = grad_out.to(args.x.dtype).contiguous()
    if _is_first(kind, "backward", grad_end is None):
        one = small(args, WIDE, 2 * CHUNK, 1)
        grads = one.x.new_zeros((2, *one.x.shape) if args.stacked else one.x.shape)
        saved = one.x.new_zeros(checkpoint_shape(one), dtype=torch.float32)
        last = None if grad_end is None else saved.new_zeros(kind.passes, 1, *args.A.shape)
        _Call(kind, one, adjoint=True, plan=Plan(CHUNK, 2)).backward(grads, last, saved)
    return _Call(kind, args, adjoint=True).backward(grad_out, grad_end, checkpoints)


def _is_first(kind: Kind, *what: object) -> bool:
    """Whether nobody asked before; never in Triton's interpreter, which compiles nothing."""
    if what in kind.seen or interpreting():
        return False
    kind.seen.add(what)
    return True


class _Call:
    """The tensors of a call as the kernels want them, and the sizes that all of its kernels share.

    A pair is an argument of both directions, twice the same where they share it or there is only one.
    """

    def __init__(self, kind: Kind, args: ScanArguments, *, adjoint: bool, plan: Plan | None = None) -> None:
        self.kind, self.args, self.adjoint = kind, args, adjoint
        self.T, self.E, self.N = args.x.shape[0], kind.E, kind.N
        self.S, self.cu = args.cu_seqlens.shape[0] - 1, args.cu_seqlens
        if interpreting():
            check_borders(args.cu_seqlens, self.T)
        x, dt = args.x.contiguous(), args.dt.contiguous()
        self.x = x, x if args.x_rev is None else args.x_rev.contiguous()
        self.dt = dt, dt if args.dt_rev is None else args.dt_rev.contiguous()
        self.A = _full(args.A, args.A_rev)
        self.D = _full(args.D, args.D_rev)
        self.bias = _full(args.dt_bias, args.dt_bias_rev)
        z = self.z = None if args.z is None else unit_rows(args.z)
        self.z_stride = 0 if z is None else z.stride(0)
        self.start = None if args.initial_state is None else _plain(args.initial_state)
        self.rounds = max(self.S - 1, 0).bit_length()
        # Two channels to a lane, where they can be loaded as one.
        even = kind.even and self.z_stride % 2 == 0
        even = even and all(t is None or t.data_ptr() % (2 * t.element_size()) == 0 for t in (*self.x, *self.dt, z))
        # Without a longest length from the caller, a segment may be as long as the batch.
        longest = self.T if args.max_seqlen is None else args.max_seqlen
        if plan is None:
            sizes = Sizes(
                self.T, self.S, self.E, self.N, longest, kind.passes, kind.paired[adjoint], even, kind.processors
            )
            plan = backward_plan(sizes) if adjoint else forward_plan(sizes)
        self.span, self.halves = plan.span, plan.halves if even else 1
        self.cut = longest > self.span
        self.warps = _warps(self.E, self.halves)
        self.slots = self.T // self.span + self.S

    def empty(self, *shape: int) -> Tensor:
        """fp32 on the device of the inputs."""
        return self.args.x.new_empty(shape, dtype=torch.float32)

    def each(self, stacked: Tensor | None) -> Pair:
        """The entries of a tensor with one for each direction."""
        return (None, None) if stacked is None else ((stacked, 0), (stacked, self.kind.passes - 1))

    def pairs(self, *values: Pair) -> list[Pointer]:
        """Arguments for both directions: first those of the first, then those of the last."""
        return [v[0] for v in values] + [v[1] for v in values]

    def rows(self, tickets: Tensor | None = None) -> tuple[Pair, Pair]:
        """B and C in fp32, made once and not by every program, for 32 conversions a step; and counters set to zero."""
        args, T, N = self.args, self.T, self.N
        given = args.B, args.C, args.B_rev, args.C_rev
        copied = [is_copied(t) for t in given]
        found: list[Pointer] = list(given)
        if any(copied):
            source = [unit_rows(t) if t is not None and c else None for t, c in zip(given, copied)]
            made = self.empty(sum(copied), T, N)
            order = iter(range(4))
            found = [(made, next(order)) if c else t for t, c in zip(given, copied)]
            counters = 0 if tickets is None else tickets.numel()
            launch = self.kind.launcher(triton_around.prepare, self.of_rows, counters)
            block = launch.constants["ROWS"]
            launch(
                (max(1, -(-T // block)), 4 if any(copied[2:]) else 2, 1),
                [*source, *(f if c else None for f, c in zip(found, copied)), tickets],
                [T, counters, *(0 if t is None else t.stride(0) for t in source)],
            )
        elif tickets is not None:
            tickets.zero_()
        B, C, B_rev, C_rev = found
        return (B, B if B_rev is None else B_rev), (C, C if C_rev is None else C_rev)

    # ------------------------------------------------- constants of kernels, by what differs between calls of a kind
    def of_walk(self, halves: int, warps: int) -> dict[str, Any]:
        args, N = self.args, self.N
        return {
            "LANES": 32 * warps, "NB": min(STATES, -(-N // 4) * 4), "N": N, "M": halves, "G": GROUP,
            "EVEN": self.E % (32 * halves) == 0, "HAS_BIAS": self.bias[0] is not None,
            "SOFTPLUS": args.dt_softplus, "WAYS": args.direction, "num_warps": warps, "enable_fp_fusion": True,
        }  # fmt: skip

    def of_outputs(self, halves: int, save: bool, first: bool, last: bool) -> dict[str, Any]:
        return self.of_walk(halves, _warps(self.E, halves)) | {
            "STACKED": self.kind.stacked, "HAS_START": self.start is not None, "HAS_Z": self.z is not None,
            "HAS_D": self.D[0] is not None and first, "SAVE": save, "FIRST": first, "LAST": last, "maxnreg": REGISTERS,
        }  # fmt: skip

    def of_states(self, halves: int, warps: int, adjoint: bool) -> dict[str, Any]:
        return self.of_walk(halves, warps) | {
            "HAS_Z": adjoint and self.z is not None, "ADJOINT": adjoint, "PAIRED": self.kind.paired[adjoint],
        }  # fmt: skip

    def of_carry(self, adjoint: bool, has_first: bool) -> dict[str, Any]:
        BN = max(2, _power(self.N))
        return {
            "N": self.N, "BN": BN, "BD": max(1, 256 // BN), "AHEAD": 8, "HAS_FIRST": has_first, "ADJOINT": adjoint,
            "WAYS": self.args.direction, "num_warps": 1, "enable_fp_fusion": True,
        }  # fmt: skip

    def of_rows(self, counters: int) -> dict[str, Any]:
        return {"N": self.N, "ROWS": max(1, 4096 // _power(self.N)), "TICKETS": _power(max(1, counters))}

    def of_gradients(self, NB: int, has_end: bool, first: bool) -> dict[str, Any]:
        args = self.args
        return {
            "NB": NB, "N": self.N, "LANES": LANES, "G": GROUP, "CHUNK": CHUNK, "HAS_END": has_end,
            "HAS_START": self.start is not None, "HAS_BIAS": self.bias[0] is not None,
            "HAS_D": self.D[0] is not None and first, "HAS_Z": self.z is not None, "SOFTPLUS": args.dt_softplus,
            "PRECISION": "tf32x3" if args.x.dtype == torch.float32 else "tf32",
            "ADD": self.kind.passes == 2 or not first, "num_warps": LANES // 32, "num_stages": 1,
            "enable_fp_fusion": True,
        }  # fmt: skip

    def forward(self, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        args, kind, T, E, N, S = self.args, self.kind, self.T, self.E, self.N, self.S
        # Two walks share an output in its own precision; more of them, over parts of many states, need fp32.
        dtype = torch.float32 if N > STATES else args.x.dtype
        out = args.x.new_empty((2, T, E) if kind.stacked else (T, E), dtype=dtype)
        end = self.empty(kind.passes, S, E, N)
        chunks = self.empty(*checkpoint_shape(args)) if save else None
        if S and E:
            with torch.cuda.device_of(args.x):
                B, C = self.rows()
                carry = self.carry(self.x, B, self.start)
                outs: Pair = self.each(out) if kind.stacked else (out, out)
                NB = min(STATES, -(-N // 4) * 4)
                blocks = -(-E // (32 * self.warps * self.halves))
                for n0 in range(0, N, NB):
                    launch = kind.launcher(
                        triton_forward.outputs, self.of_outputs, self.halves, save, n0 == 0, n0 + NB >= N
                    )
                    launch(
                        (self.slots * blocks, 1, 1),
                        [
                            *self.pairs(
                                self.x, self.dt, self.A, B, C, self.D, self.bias, self.each(self.start),
                                carry or (kind.sink, kind.sink), self.each(chunks), self.each(end), outs,
                            ),
                            self.z, self.cu, kind.sink,
                        ],
                        [
                            self.z_stride, E, S, self.rounds, self.span, CHUNK if save else self.span, blocks,
                            int(self.cut), n0,
                        ],
                    )  # fmt: skip
        out = out if out.dtype == args.x.dtype else out.to(args.x.dtype)
        return out, end, self.empty(0) if chunks is None else chunks

    def carry(self, x: Pair, B: Pair, first: Tensor | None) -> Pair | None:
        """State, (directions, slots, E, N), that each span starts from, where segments have several spans; in the
        backward the gradient that reaches its end, made from gradients as ``x`` and C as ``B``."""
        if not self.cut:
            return None
        kind, E, N = self.kind, self.E, self.N
        passes, adjoint, paired = kind.passes, self.adjoint, kind.paired[self.adjoint]
        each, steps = self.slots * E, _aligned(passes * self.slots * E * N)
        memory = self.empty(steps + passes * _aligned(each))
        # A pair holds twice the states.
        halves, warps = (1, _warps(E, 1)) if paired else (self.halves, self.warps)
        NB = min(STATES, -(-N // 4) * 4)
        blocks = -(-E // (32 * warps * halves))
        locals_: Pair = (memory, 0), (memory, (passes - 1) * each * N)
        sums: Pair = (memory, steps), (memory, steps + (passes - 1) * _aligned(each))
        launch = kind.launcher(triton_states.local_states, self.of_states, halves, warps, adjoint)
        for n0 in range(0, N, NB):
            launch(
                (self.slots * blocks, 1 if paired else passes, 1),
                [*self.pairs(x, self.dt, self.A, B, self.bias, locals_, sums), self.z, self.cu, kind.sink],
                [self.z_stride, E, self.S, self.rounds, self.span, blocks, n0],
            )
        launch = kind.launcher(triton_states.carry_states, self.of_carry, adjoint, first is not None)
        BD = launch.constants["BD"]
        launch(
            (self.S * -(-E // BD), passes, 1),
            [*self.pairs(self.A, locals_, sums, self.each(first)), self.cu],
            [E, self.S, self.span, -(-E // BD)],
        )
        return locals_

    def backward(self, grad_out: Tensor, grad_end: Tensor | None, checkpoints: Tensor) -> dict[str, Tensor]:
        args, kind, T, E, N, S = self.args, self.kind, self.T, self.E, self.N, self.S
        passes, own = kind.passes, kind.own
        grads: Pair = self.each(grad_out) if kind.stacked else (grad_out, grad_out)
        ends = None if grad_end is None else _plain(grad_end)
        # Two walks share a gradient in its own precision; more of them, over parts of many states, need fp32.
        exact = STATES_BACKWARD * (3 - passes) < N
        total: dict[str, Tensor] = {}

        def made(name: str, rounded: bool = True) -> tuple[Tensor | None, Tensor | None]:
            """Memory for the gradients of an argument and, if it has one, of the second direction's own."""
            for key in (name, f"{name}_rev") if name in own else (name,):
                like = getattr(args, key)
                if like is not None:
                    total[key] = like.new_empty(like.shape, dtype=like.dtype if rounded else torch.float32)
            return total.get(name), total.get(f"{name}_rev")

        gx, gdt = made("x", not exact), made("dt", not exact)
        gz = made("z", not exact)[0]
        if self.start is not None:
            total["initial_state"] = torch.empty_like(self.start)
        added = [made(name) for name in ("A", "D", "dt_bias", "B", "C")]
        if not (S and E):
            return {name: gradient.zero_() for name, gradient in total.items()}
        blocks = -(-E // LANES)
        items = self.slots * blocks
        programs = min(items, RESIDENT * kind.processors * 32 // LANES)
        NB = min(STATES_BACKWARD, max(4, _power(N)))
        # Partial sums, added up below in an order that does not change; rounded as the sums themselves will be, but for
        # fp16, whose range is too short, and where B and C differ.
        rounded = _rounded(args.B) if args.B.dtype == args.C.dtype else torch.float32
        gB, gC = (args.x.new_empty((passes, blocks, T, N), dtype=rounded) for _ in "BC")
        rows, states = _aligned(passes * self.slots * E), _aligned(passes * self.slots * E * N)
        memory = self.empty(states + 2 * rows)
        parts: list[Pointer] = [(memory, 0), (memory, states), (memory, states + rows)]
        scratch = args.x.new_empty((programs * (CHUNK // GROUP) * LANES * NB,), dtype=_rounded(args.x))
        # Each in 16 bytes of its own.
        tickets = args.x.new_empty((-(-N // NB), 4), dtype=torch.int32)
        with torch.cuda.device_of(args.x):
            B, C = self.rows(tickets)
            carry = self.carry(grads, C, ends)
            for i, n0 in enumerate(range(0, N, NB)):
                launch = kind.launcher(triton_backward.gradients, self.of_gradients, NB, ends is not None, n0 == 0)
                launch(
                    (programs, 1, 1),
                    [
                        *self.pairs(
                            self.x, self.dt, self.A, B, C, self.D, self.bias, grads, _twice(gx), _twice(gdt)
                        ),
                        gB, gC, checkpoints, kind.sink if carry is None else carry[0], ends, total.get("initial_state"),
                        *parts, self.z, gz, self.cu, scratch, (tickets, i),
                    ],
                    [
                        self.z_stride, T, E, S, self.rounds, self.span, self.slots, checkpoints.shape[1], blocks, items,
                        passes, int(args.direction == "reverse"), int(self.cut), int(passes == 2 and "x" not in own),
                        int(passes == 2 and "dt" not in own), n0,
                    ],
                )  # fmt: skip
            launch = kind.launcher(triton_around.sums, lambda: {"N": N, **TILES, "num_warps": 8})
            columns = max(-(-E * N // TILES["NARROW"]), -(-T * N // TILES["WIDE"]))
            launch(
                (columns, 5, passes),
                [*parts, gB, gC, *(one for one, _ in added), *(other for _, other in added)],
                [T, E, self.slots, blocks, passes],
            )
        return total


def _full(first: Tensor | None, second: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """A pair of small arguments in fp32; zeros stand for the first where only the second is there."""
    if first is None and second is not None:
        first = torch.zeros_like(second)
    one = None if first is None else _plain(first)
    return one, one if second is None else _plain(second)


def _plain(t: Tensor) -> Tensor:
    """fp32, neighbours touching."""
    return t if t.dtype == torch.float32 and t.is_contiguous() else t.float().contiguous()


def _twice(pair: tuple[Tensor | None, Tensor | None]) -> Pair:
    return pair[0], pair[0] if pair[1] is None else pair[1]


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


def _aligned(n: int) -> int:
    """So many fp32 numbers or up to three more: what follows them in memory starts at 16 bytes, as Triton prefers."""
    return -(-n // 4) * 4


def _rounded(like: Tensor) -> torch.dtype:
    return torch.bfloat16 if like.dtype == torch.bfloat16 else torch.float32


def _warps(E: int, halves: int) -> int:
    """Warps of a program: neighbours read rows of B and C together, and longer pieces of a token's channels."""
    return next(w for w in (WARPS, 2, 1) if E % (32 * w * halves) == 0 or w == 1)
