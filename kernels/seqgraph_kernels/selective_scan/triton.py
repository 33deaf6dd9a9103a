"""The selective scan on a GPU: memory and launches around the kernels of ``triton_kernels``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seqgraph_kernels.dispatch import interpreting
from seqgraph_kernels.packing import check_borders, unit_rows
from seqgraph_kernels.selective_scan import triton_kernels
from seqgraph_kernels.selective_scan.arguments import CHUNK, Pass, ScanArguments, checkpoint_shape

# Tokens that one program walks; a multiple of CHUNK. Longer segments are cut, and their states passed on.
SPAN = 256


def forward(args: ScanArguments, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final states and, where ``save`` says so, the states that each chunk of tokens starts from."""
    (T, E), x = args.x.shape, args.x
    launches = [_Launch(args, i) for i in range(len(args.passes()))]
    first = launches[0]
    summed = len(launches) == 2 and not args.stacked
    out = x.new_empty((2, T, E) if args.stacked else (T, E))
    # The first direction waits for the second one in fp32, so that their sum is rounded once.
    partial = x.new_empty((T, E) if summed else (0,), dtype=torch.float32)
    end = first.states.new_empty(len(launches), *first.states.shape[1:])
    # Slots that no chunk uses are an output too, and must not differ from run to run.
    checkpoints = torch.zeros(checkpoint_shape(args) if save else 0, device=x.device)
    for i, launch in enumerate(launches):
        waits = summed and i == 0
        launch.forward(
            partial if waits else (out[i] if args.stacked else out),
            partial if summed and i == 1 else None,
            end[i],
            checkpoints[i] if save else None,
            gate=not waits,
        )
    return out, end[..., :E].transpose(2, 3).contiguous(), checkpoints


def backward(args: ScanArguments, grad_out: Tensor, grad_end: Tensor | None, checkpoints: Tensor) -> dict[str, Tensor]:
    """Gradients by argument name. Every argument of ``args`` that is present gets one."""
    (T, E), x = args.x.shape, args.x
    passes = len(args.passes())
    grad_out = grad_out.contiguous()
    total: dict[str, Tensor] = {}
    starts: list[Tensor] = []
    for i in range(passes):
        launch = _Launch(args, i)
        ends = None if grad_end is None else _pad(grad_end[i].float().transpose(1, 2), launch.padded)
        wide = {}
        for name in ("x", "dt", "z"):
            owner = name if name == "z" else args.owner(name, i)
            add = owner in total
            if not add:
                like = getattr(args, owner)
                # Where two directions add up, they do so in fp32.
                exact = like is None or (passes == 2 and getattr(args, f"{name}_rev", None) is None)
                shape = (0,) if like is None else (T, E)
                total[owner] = x.new_empty(shape, dtype=torch.float32 if exact else like.dtype)
            wide[name] = (total[owner], add)
        parts, start = launch.backward(grad_out[i] if args.stacked else grad_out, ends, checkpoints[i], wide)
        for name, part in parts.items():
            owner = args.owner(name, i)
            total[owner] = total[owner] + part if owner in total else part
        starts += [] if start is None else [start]
    if starts:
        total["initial_state"] = torch.stack(starts)[..., :E].transpose(2, 3).contiguous()
    return total


def _pad(values: Tensor, width: int) -> Tensor:
    return F.pad(values, (0, width - values.shape[-1])).contiguous()


class _Launch:
    """One direction: its tensors as the kernels want them, and the sizes that all of its kernels share."""

    def __init__(self, args: ScanArguments, index: int) -> None:
        one: Pass = args.passes()[index]
        (self.T, self.E), self.N = args.x.shape, args.A.shape[1]
        self.S, self.cu = args.cu_seqlens.shape[0] - 1, args.cu_seqlens
        self.slots = self.T // SPAN + self.S
        self.padded = checkpoint_shape(args)[3]
        if interpreting():
            check_borders(args.cu_seqlens, self.T)
        self.x, self.dt = unit_rows(one.x), unit_rows(one.dt)
        self.z = None if args.z is None else unit_rows(args.z)
        self.A = (one.A.float() * math.log2(math.e)).contiguous()
        # Converted once here and not by every program: 32 conversions a step.
        self.B, self.C = one.B.float().contiguous(), one.C.float().contiguous()
        self.D = None if one.D is None else one.D.float().contiguous()
        self.bias = None if one.dt_bias is None else one.dt_bias.float().contiguous()
        self.reverse, self.soft = one.reverse, args.dt_softplus
        self.start = None
        if args.initial_state is not None:
            self.start = _pad(args.initial_state[index].float().transpose(1, 2), self.padded)
        BN = max(2, 1 << (self.N - 1).bit_length())
        BD = max(16, min(1024 // BN, 1 << (self.E - 1).bit_length())) if self.E else 16
        self.blocks = -(-self.E // BD)
        warps = max(1, BD * BN // 1024)
        self.tile = {"N": self.N, "BN": BN, "BD": BD, "SPAN": SPAN, "num_warps": warps, "enable_fp_fusion": True}
        self.rounds = max(self.S - 1, 0).bit_length()
        # A stand-in with this shape carries dtype and device for states.
        self.states = torch.empty(0, self.S, self.N, self.padded, device=args.x.device)

    def _carry(self, adjoint: bool, grad_out: Tensor | None, gated: bool, first: Tensor | None, last: Tensor | None):
        """State, (slots, N, padded), that each span starts from (or, adjoint, the gradient that reaches it)."""
        carry = self.states.new_empty(self.slots, self.N, self.padded)
        steps = self.states.new_empty(self.slots, self.padded)
        backwards = self.reverse != adjoint
        if self.T > SPAN:
            triton_kernels.local_states[(self.slots, self.blocks)](
                self.x, self.dt, self.A, self.B, self.C, self.bias, grad_out, self.z, self.cu, carry, steps,
                self.x.stride(0), self.dt.stride(0), 0 if self.z is None else self.z.stride(0), self.E, self.padded,
                self.S, self.rounds, REVERSE=self.reverse, HAS_BIAS=self.bias is not None,
                HAS_Z=self.z is not None and gated, SOFTPLUS=self.soft, ADJOINT=adjoint, **self.tile,
            )  # fmt: skip
        triton_kernels.carry_states[(self.S, self.blocks)](
            self.A, self.cu, carry, steps, first, last, self.E, self.padded, self.S, BACKWARDS=backwards,
            HAS_FIRST=first is not None, HAS_LAST=last is not None, **self.tile,
        )  # fmt: skip
        return carry

    def forward(self, out: Tensor, partial: Tensor | None, end: Tensor, checkpoints: Tensor | None, gate: bool) -> None:
        """Fill ``out`` (T, E), ``end`` (S, N, padded) and ``checkpoints``."""
        if not self.S or not self.E:
            return
        with torch.cuda.device_of(self.x):
            carry = self._carry(False, None, False, self.start, end)
            triton_kernels.outputs[(self.slots, self.blocks)](
                self.x, self.dt, self.A, self.B, self.C, self.D, self.bias, self.z, self.cu, carry, checkpoints, end,
                partial, out, self.x.stride(0), self.dt.stride(0), 0 if self.z is None else self.z.stride(0), self.E,
                self.padded, self.S, self.rounds, CHUNK=CHUNK, REVERSE=self.reverse, HAS_BIAS=self.bias is not None,
                HAS_D=self.D is not None, HAS_Z=self.z is not None and gate, SOFTPLUS=self.soft,
                SAVE=checkpoints is not None, ADD=partial is not None, **self.tile,
            )  # fmt: skip

    def backward(
        self, grad_out: Tensor, ends: Tensor | None, checkpoints: Tensor, wide: dict[str, tuple[Tensor, bool]]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Fill the gradients of x, dt and z in ``wide``; return those of the parameters and of the start."""
        new = self.states.new_zeros
        gB, gC = (new(self.blocks, self.T, self.N) for _ in "BC")
        gA = new(self.slots, self.N, self.padded)
        gD, gbias = (new(self.slots, self.padded) for _ in "Db")
        gstart = None if self.start is None else torch.empty_like(self.start)
        if self.S and self.E:
            items = self.slots * self.blocks
            programs = min(items, _resident(self.x.device))
            scratch = self.states.new_empty(programs * CHUNK * self.tile["BD"] * self.tile["BN"])
            (gx, add_x), (gdt, add_dt), (gz, add_z) = (wide[name] for name in ("x", "dt", "z"))
            with torch.cuda.device_of(self.x):
                carry = self._carry(True, grad_out, True, ends, gstart)
                triton_kernels.gradients[(programs,)](
                    self.x, self.dt, self.A, self.B, self.C, self.D, self.bias, self.z, grad_out, self.cu, checkpoints,
                    carry, scratch, gx, gdt, gz, gB, gC, gA, gD, gbias, gstart, self.x.stride(0), self.dt.stride(0),
                    0 if self.z is None else self.z.stride(0), self.T, self.E, self.padded, self.S, self.rounds, items,
                    CHUNK=CHUNK, REVERSE=self.reverse, HAS_BIAS=self.bias is not None, HAS_D=self.D is not None,
                    HAS_Z=self.z is not None, SOFTPLUS=self.soft, HAS_START=gstart is not None, ADD_X=add_x,
                    ADD_DT=add_dt, ADD_Z=add_z, **self.tile,
                )  # fmt: skip
        parts = {"B": gB.sum(0), "C": gC.sum(0), "A": gA.sum(0)[:, : self.E].T.contiguous()}
        return parts | {"D": gD.sum(0)[: self.E], "dt_bias": gbias.sum(0)[: self.E]}, gstart


def _resident(device: torch.device) -> int:
    """Programs of the backward that are alive at once: enough to fill the device, few enough to keep scratch small."""
    return 8 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
