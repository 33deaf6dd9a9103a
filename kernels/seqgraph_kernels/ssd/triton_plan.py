"""What a call of SSD on a GPU needs besides its arguments: sizes, steps, and the states that reach each chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqgraph_kernels.dispatch import interpreting
from seqgraph_kernels.launch import launch
from seqgraph_kernels.packing import check_borders, unit_rows
from seqgraph_kernels.ssd.arguments import Pass, SsdArguments
from seqgraph_kernels.ssd.triton_states import carry, steps, walk

# Programs that keep a large GPU busy.
_ENOUGH = 528
# Tokens that one program walks at least and at most; multiples of every chunk.
SPAN_LEAST, SPAN_MOST = 256, 16384
# Tokens of a chunk of short segments, in which most of a long one would be empty, and their mean length at most.
SHORT, SHORT_MEAN = 32, 40
# Warps, and stages of loads in flight in bf16, of each kernel; the best of those tried on an H100.
LAUNCH = {"walk": (4, 3), "outputs": (4, 2), "tokens": (4, 1), "B": (4, 2), "C": (8, 3)}


@dataclass(frozen=True)
class Walked:
    """States that reach each chunk, (directions, rows, H, P, N), and whether segments start from given ones."""

    states: Tensor
    first: bool

    @property
    def rows(self) -> int:
        return self.states.shape[-4]

    def of(self, index: int, plan: Plan) -> Walked:
        """Those of one direction, or of both where one launch serves them."""
        return self if plan.merged or plan.directions == 1 else Walked(self.states[index], self.first)


def skip_kind(D: Tensor | None, shift: bool) -> int:
    """0 for no skip, 1 for (H,), 2 for (H, P), 3 for (T, H)."""
    return 0 if D is None else 1 if D.dim() == 1 else 3 if shift else 2


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


class Plan:
    """Sizes and tensors that all launches of a call share.

    A chunk is what one product of matrices covers; a span is what one program walks, and longer segments are cut.
    """

    def __init__(self, args: SsdArguments) -> None:
        self.args, self.cu = args, args.cu_seqlens
        self.T, self.H, self.P = args.x.shape
        self.G, self.N = args.B.shape[1:]
        self.S, self.share = args.cu_seqlens.shape[0] - 1, self.H // self.G
        self.empty = 0 in (self.T, self.S, self.H, self.P, self.N)
        if interpreting():
            check_borders(args.cu_seqlens, self.T)
        self.passes = [self._as_read(one) for one in args.passes()]
        self.directions = len(self.passes)
        self.z = None if args.z is None else unit_rows(args.z)
        self.own_x = args.x_rev is not None
        self.own_bc = args.B_rev is not None or args.C_rev is not None
        self.own_steps = any(t is not None for t in (args.dt_rev, args.A_rev, args.dt_bias_rev))
        apart = self.own_x or self.own_bc or self.own_steps or args.shift or args.stacked or args.D_rev is not None
        # Whether one launch of the backward serves both directions.
        self.merged = self.directions == 2 and not apart
        self.rounds = max(self.S - 1, 0).bit_length()
        self._choose_sizes(args.x.dtype)
        self.slots = self.T // self.chunk + self.S

    def _as_read(self, one: Pass) -> Pass:
        """Rows without gaps, and the other direction's tensors in the dtypes of the first one's."""
        args = self.args
        x, B, C = (unit_rows(t.to(like.dtype)) for t, like in ((one.x, args.x), (one.B, args.B), (one.C, args.C)))
        D, bias = (None if t is None else t.contiguous() for t in (one.D, one.dt_bias))
        A = one.A.to(args.A.dtype).contiguous()
        return one._replace(x=x, dt=unit_rows(one.dt), A=A, B=B, C=C, D=D, dt_bias=bias)

    def _choose_sizes(self, dtype: torch.dtype) -> None:
        """bf16 goes to the tensor cores as it is, fp16 as tf32 (a state may leave its range), fp32 in three parts."""
        half = dtype == torch.bfloat16
        dot, precision = (tl.bfloat16, "ieee") if half else (tl.float32, "tf32" if dtype == torch.float16 else "tf32x3")
        self.state_dtype = torch.bfloat16 if half else torch.float32
        if interpreting():
            # Its bf16 products are wrong.
            dot, precision, self.state_dtype = tl.float32, "ieee", torch.float32
        self.BP, BN = max(16, _power(self.P)), max(16, _power(self.N))
        # Products of 64 rows take their operands from shared memory from Hopper on, and from registers before: there
        # (and in smaller chunks) those in three parts leave room for 16 rows only.
        arch = 90 if interpreting() else triton.runtime.driver.active.get_current_target().arch
        wide = max(self.BP, BN)
        long = 64 if arch // 10 in (9, 10) and wide <= 128 else 32
        # Both are compiled at the first call, see ``ready``.
        self.chunk = min(long, SHORT if self.T <= SHORT_MEAN * self.S else 64)
        if precision == "tf32x3" and self.chunk < 64:
            self.chunk = 16
        most = 1 if not half else 2 if self.BP * BN > 8192 else 3
        self.launch = {
            name: {"num_warps": w, "num_stages": min(n, most), "enable_fp_fusion": True}
            for name, (w, n) in LAUNCH.items()
        }
        if wide <= 64:
            self.launch["C"]["num_warps"] = 4
        self.BH = 16
        self.walk_tile = min(64, self.BP)
        work = max(1, self.T * self.H * self.directions * -(-self.P // self.walk_tile) // _ENOUGH)
        self.span = min(max(1 << round(math.log2(work)), SPAN_LEAST), SPAN_MOST)
        self.tile = {"P": self.P, "N": self.N, "BN": BN, "CHUNK": self.chunk, "DOT": dot, "PRECISION": precision}
        # Others have fewer digits than a difference of sums can lose.
        self.exact = dtype == torch.float32

    def heads_per_program(self, most: int) -> int:
        """Heads that share C B^T in one program: many, but programs enough."""
        heads = min(most, self.share)
        while heads > 1 and self.slots * self.H // heads < 2 * _ENOUGH:
            heads //= 2
        return heads

    def make_steps(self) -> None:
        """Steps and their sums in each chunk, (3 or 4, sets, H, T), and the segment of each slot."""
        sets = 2 if self.own_steps else 1
        shape = (4 if self.exact else 3, sets, self.H, self.T)
        self.steps = torch.empty(shape, dtype=torch.float32, device=self.cu.device)
        self.size = sets * self.H * self.T
        self.slot = torch.empty(self.slots, dtype=torch.int32, device=self.cu.device)
        for i, one in enumerate(self.passes[:sets]):
            launch(
                steps, (self.slots * -(-self.H // self.BH), 1, 1),
                [one.dt, one.dt_bias, self.cu, self.steps[0, i], self.slot],
                [self.size, one.dt.stride(0), self.T, self.H, self.S, self.rounds],
                {
                    "CHUNK": self.chunk, "BH": self.BH, "HAS_BIAS": one.dt_bias is not None,
                    "SOFTPLUS": self.args.dt_softplus, "EXACT": self.exact,
                },
            )  # fmt: skip

    def walk_states(self, last: Tensor | None) -> Walked:
        """States that reach each chunk; ``last``, (directions, S, H, P, N), gets the final ones."""
        first = self.args.initial_state
        first = None if first is None else first.float().contiguous()
        values, keys = [one.x for one in self.passes], [one.B for one in self.passes]
        return self._walk(values, keys, self.own_x or self.own_bc, False, first, last)

    def walk_adjoint(self, dy: Tensor, first: Tensor | None, last: Tensor | None) -> Walked:
        """Gradients of the states behind each chunk (in its direction); ``last`` gets those of the initial states."""
        values = [dy[0], dy[1]] if self.args.stacked else [dy, dy]
        keys = [one.C for one in self.passes]
        return self._walk(values, keys, self.args.stacked or self.own_bc, True, first, last)

    def _walk(
        self, values: list[Tensor], keys: list[Tensor], own: bool, adjoint: bool, first: Tensor | None,
        last: Tensor | None,
    ) -> Walked:  # fmt: skip
        H, PN, device = self.H, self.P * self.N, self.cu.device
        # See place_chunk: the first chunk of a segment needs no row where it starts from zero.
        rows = self.slots if first is not None else self.T // self.chunk
        states = torch.empty((self.directions, rows, H, self.P, self.N), dtype=self.state_dtype, device=device)
        # Segments longer than a span are walked twice: what a span gives must have passed all spans before it.
        span_rows = self.T // self.span
        span = torch.empty((self.directions, span_rows, H, PN), dtype=torch.float32, device=device)
        whole = torch.empty((self.directions, span_rows, H), dtype=torch.float32, device=device)
        programs = (span_rows + self.S) * self.directions * -(-self.P // self.walk_tile)
        # Most programs of a batch of short segments have nothing to do.
        heads = H if programs * H > 1 << 16 else 1
        common = {"DIRS": self.directions, "REVERSE": self.passes[0].reverse, "ADJOINT": adjoint}
        common["HAS_FIRST"] = first is not None
        strides = [n for t in (values[0], values[-1], keys[0], keys[-1]) for n in t.stride()[:2]]

        def launch_walk(totals: bool) -> None:
            launch(
                walk, (programs * -(-H // heads), 1, 1),
                [
                    values[0], values[-1], keys[0], keys[-1], self.passes[0].A, self.passes[-1].A, self.steps, self.cu,
                    states, span, whole, first, last,
                ],
                [
                    *strides, self.size, self.T, H, self.S, self.rounds, rows, span_rows, self.span, heads, self.share,
                ],
                {
                    "BP": self.walk_tile, "OWN": own, "OWN_STEPS": self.own_steps,
                    "SHIFT": adjoint and self.args.shift, "HAS_LAST": last is not None and not totals,
                    "TOTALS": totals, **self.launch["walk"], **common, **self.tile,
                },
            )  # fmt: skip

        if span_rows:
            launch_walk(True)
            block = min(1024, triton.next_power_of_2(PN))
            programs_carry = -(-self.T // self.span) * self.directions * H * -(-PN // block)
            launch(
                carry, (programs_carry, 1, 1), [self.cu, span, whole, first],
                [H, self.S, self.rounds, span_rows, self.span], {"PN": PN, "BLOCK": block, **common},
            )  # fmt: skip
        launch_walk(False)
        return Walked(states, first is not None)
