"""The scan as operators of torch: ``torch.ops.seqgraph.selective_scan`` and its backward.

An operator that torch knows is one node of a compiled graph, runs under autocast and activation checkpointing as any
other, and has a shape without being run.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from seqgraph_kernels.library import operator
from seqgraph_kernels.selective_scan.arguments import ScanArguments

TENSORS = tuple(f.name for f in fields(ScanArguments))[:16]


@cache
def _module(backend: str) -> ModuleType:
    return import_module(f"seqgraph_kernels.selective_scan.{backend}")


@operator("seqgraph::selective_scan")
def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    x_rev: Tensor | None,
    dt_rev: Tensor | None,
    A_rev: Tensor | None,
    B_rev: Tensor | None,
    C_rev: Tensor | None,
    D_rev: Tensor | None,
    dt_bias_rev: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor,
    dt_softplus: bool,
    direction: str,
    combine: str,
    max_seqlen: int | None,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final states (directions, S, E, N) and, if ``save``, the states that the backward starts from."""
    args = ScanArguments(
        x, dt, A, B, C, D, z, dt_bias, x_rev, dt_rev, A_rev, B_rev, C_rev, D_rev, dt_bias_rev,
        initial_state, cu_seqlens, dt_softplus, direction, combine, max_seqlen,
    )  # fmt: skip
    return _module(backend).forward(args, save)


@scan.register_fake
def _(*inputs):
    args, save = ScanArguments(*inputs[:21]), inputs[22]
    (T, E), S, N = args.x.shape, args.cu_seqlens.shape[0] - 1, args.A.shape[1]
    out = args.x.new_empty((2, T, E) if args.stacked else (T, E))
    final = args.x.new_empty((2 if args.direction == "both" else 1, S, E, N), dtype=torch.float32)
    shape = _module(inputs[21]).checkpoint_shape(args) if save else (0,)
    return out, final, args.x.new_empty(shape, dtype=torch.float32)


def _gradients(grad_out: Tensor, grad_state: Tensor | None, checkpoints: Tensor, *inputs: Any) -> list[Tensor | None]:
    """One gradient per tensor argument of the scan, in its dtype."""
    args, module = ScanArguments(*inputs[:-1]), _module(inputs[-1])
    if checkpoints.numel() == 0:
        checkpoints = module.forward(args, True)[2]
    grads = module.backward(args, grad_out, grad_state, checkpoints)
    given = [(grads.get(name), t) for name, t in zip(TENSORS, inputs)]
    # Most are in their dtype already, and torch takes as long to see that as for a launch.
    return [None if t is None else g if g.dtype == t.dtype else g.to(t.dtype) for g, t in given]  # type: ignore


@operator("seqgraph::selective_scan_backward", direct=_gradients)
def scan_backward(
    grad_out: Tensor,
    grad_state: Tensor | None,
    checkpoints: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    x_rev: Tensor | None,
    dt_rev: Tensor | None,
    A_rev: Tensor | None,
    B_rev: Tensor | None,
    C_rev: Tensor | None,
    D_rev: Tensor | None,
    dt_bias_rev: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor,
    dt_softplus: bool,
    direction: str,
    combine: str,
    max_seqlen: int | None,
    backend: str,
) -> list[Tensor]:
    """One gradient per tensor argument of the scan, in its dtype; empty where the argument is absent."""
    grads = _gradients(
        grad_out, grad_state, checkpoints, x, dt, A, B, C, D, z, dt_bias, x_rev, dt_rev, A_rev, B_rev, C_rev, D_rev,
        dt_bias_rev, initial_state, cu_seqlens, dt_softplus, direction, combine, max_seqlen, backend,
    )  # fmt: skip
    return [x.new_empty(0) if g is None else g for g in grads]


@scan_backward.register_fake
def _(grad_out, grad_state, checkpoints, *inputs):
    return [
        inputs[0].new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in inputs[:16]
    ]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[2], inputs[16], *inputs[:16])
    ctx.options = inputs[17:22]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, grad_state, _):
    checkpoints, cu_seqlens, *tensors = ctx.saved_tensors
    if grad_out is None:
        shape = (2, *tensors[0].shape) if ctx.options[1:3] == ("both", "none") else tensors[0].shape
        grad_out = tensors[0].new_zeros(shape)
    grads = scan_backward(grad_out, grad_state, checkpoints, *tensors, cu_seqlens, *ctx.options)
    given = [None if t is None else g for t, g in zip(tensors, grads)]
    return *given, None, None, None, None, None, None, None


scan.register_autograd(_backward, setup_context=_setup_context)
