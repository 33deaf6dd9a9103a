"""The norm of a sum on a GPU: memory and launches around the kernels of ``triton_kernels``."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from seqgraph_kernels.add_norm import triton_kernels
from seqgraph_kernels.add_norm.arguments import NormArguments
from seqgraph_kernels.launch import launch, multiprocessors
from seqgraph_kernels.packing import unit_rows

# fp32 values of a row that one thread holds at most, forward and backward (which holds five such rows).
HELD, HELD_BACKWARD = 48, 24
# Programs of the backward on each multiprocessor: each leaves one sum a channel.
RESIDENT = 16


def forward(args: NormArguments) -> tuple[Tensor, Tensor]:
    """Normed output, and the new stream in fp32 (empty where it is x itself)."""
    (T, D), x = args.x.shape, unit_rows(args.x)
    residual = None if args.residual is None else unit_rows(args.residual)
    weight, bias = args.weight.contiguous(), None if args.bias is None else args.bias.contiguous()
    out = x.new_empty((T, D), dtype=args.out_dtype)
    total = x.new_empty((T, D) if args.sums else 0, dtype=torch.float32)
    if out.numel():
        with torch.cuda.device_of(x):
            launch(
                triton_kernels.outputs, (T, 1, 1), [x, residual, weight, bias, out, total],
                [x.stride(0), 0 if residual is None else residual.stride(0), args.eps],
                {
                    "CENTRE": args.kind == "layer", "HAS_RESIDUAL": residual is not None, "HAS_BIAS": bias is not None,
                    "SUMS": args.sums, **tiles(D, HELD),
                },
            )  # fmt: skip
    return out, total


def backward(
    grad_out: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    has_bias: bool,
    eps: float,
    kind: str,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Gradients of x, of residual where ``residual_dtype`` is given, of weight and, if any, of bias (fp32)."""
    T, D = total.shape
    total = unit_rows(total)
    programs = programs_for(T, total.device)
    gx = total.new_empty((T, D), dtype=x_dtype)
    gresidual = None if residual_dtype is None else total.new_empty((T, D), dtype=residual_dtype)
    partial = total.new_empty((programs, 1 + has_bias, D), dtype=torch.float32)
    if gx.numel():
        with torch.cuda.device_of(total):
            launch(
                triton_kernels.gradients, (programs, 1, 1),
                [
                    grad_out.contiguous(), None if grad_total is None else grad_total.contiguous(), total,
                    weight.contiguous(), gx, gresidual, partial,
                ],
                [total.stride(0), eps, T, programs],
                {
                    "CENTRE": kind == "layer", "HAS_BIAS": has_bias, "HAS_GRAD_TOTAL": grad_total is not None,
                    "APART": gresidual is not None, **tiles(D, HELD_BACKWARD),
                },
            )  # fmt: skip
    # Partial sums are added in their order: the same input gives the same bits.
    return gx, gresidual, partial[:, 0].sum(0), partial[:, 1].sum(0) if has_bias else None


@cache
def tiles(D: int, held: int) -> dict[str, int | bool]:
    """Warps for a row, and its cut into tiles of four channels a thread."""
    warps = 1
    while warps < 16 and 32 * held * warps < D:
        warps *= 2
    chunk = min(128 * warps, 1 << max(D - 1, 0).bit_length())
    return {
        "D": D, "TILES": -(-D // chunk), "CHUNK": chunk, "num_warps": warps, "num_stages": 1, "enable_fp_fusion": True,
    }  # fmt: skip


def programs_for(rows: int, device: torch.device) -> int:
    """Programs that share the rows of a backward: enough to fill the device, few enough to add up what they leave."""
    full = RESIDENT * multiprocessors(device) if device.type == "cuda" else 4
    return min(rows, full)
