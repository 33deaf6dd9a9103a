"""The sum of norms on a GPU: memory and launches around the kernels of ``triton_kernels``."""

from __future__ import annotations

import torch
from torch import Tensor

from seqgraph_kernels.add_norm.triton import programs_for, tiles
from seqgraph_kernels.launch import launch
from seqgraph_kernels.norm_sum import triton_kernels
from seqgraph_kernels.norm_sum.arguments import SumArguments
from seqgraph_kernels.packing import unit_rows

# fp32 values of a row that one thread holds at most, forward and backward.
HELD, HELD_BACKWARD = 24, 24


def forward(args: SumArguments) -> Tensor:
    """(T, E) in the dtype of y."""
    (passes, T, E), y = args.y.shape, unit_rows(args.y)
    z = None if args.z is None else unit_rows(args.z)
    out = y.new_empty(T, E)
    if out.numel():
        with torch.cuda.device_of(y):
            launch(
                triton_kernels.outputs, (T, args.groups, 1), [y, *_weights(args), z, out],
                [y.stride(0), y.stride(1), 0 if z is None else z.stride(0), E, args.eps],
                {"PASSES": passes, "HAS_Z": z is not None, **tiles(E // args.groups, HELD)},
            )  # fmt: skip
    return out


def backward(args: SumArguments, grad_out: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """Gradients of y in its dtype, of each pass's weight in fp32, and of z in its dtype."""
    (passes, T, E), y = args.y.shape, unit_rows(args.y)
    z = None if args.z is None else unit_rows(args.z)
    gy = y.new_empty(y.shape)
    gz = None if z is None else z.new_empty(T, E)
    programs = programs_for(T, y.device)
    partial = y.new_empty((programs, passes, E), dtype=torch.float32)
    if gy.numel():
        with torch.cuda.device_of(y):
            launch(
                triton_kernels.gradients, (programs, args.groups, 1),
                [grad_out.contiguous(), y, *_weights(args), z, gy, gz, partial],
                [y.stride(0), y.stride(1), 0 if z is None else z.stride(0), T * E, E, args.eps, T, programs],
                {"PASSES": passes, "HAS_Z": z is not None, **tiles(E // args.groups, HELD_BACKWARD)},
            )  # fmt: skip
    # Partial sums are added in their order: the same input gives the same bits.
    return gy, [partial[:, i].sum(0) for i in range(passes)], gz


def _weights(args: SumArguments) -> tuple[Tensor, Tensor]:
    first, last = args.weights()[0], args.weights()[-1]
    return first.contiguous(), last.contiguous()
