"""The short convolution as operators of torch: ``torch.ops.seqgraph.causal_conv1d`` and its backward."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from seqgraph_kernels.causal_conv1d.arguments import ConvArguments

TENSORS = ("x", "weight", "bias", "weight_rev", "bias_rev")


@torch.library.custom_op("seqgraph::causal_conv1d", mutates_args=())
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_rev: Tensor | None,
    bias_rev: Tensor | None,
    cu_seqlens: Tensor,
    direction: str,
    activation: str,
    backend: str,
) -> Tensor:
    """Output, (directions, T, E)."""
    args = ConvArguments(x, weight, bias, weight_rev, bias_rev, cu_seqlens, direction, activation)
    return import_module(f"seqgraph_kernels.causal_conv1d.{backend}").forward(args)


@conv.register_fake
def _(x, weight, bias, weight_rev, bias_rev, cu_seqlens, direction, activation, backend):
    return x.new_empty((2 if direction == "both" else 1, *x.shape))


@torch.library.custom_op("seqgraph::causal_conv1d_backward", mutates_args=())
def conv_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_rev: Tensor | None,
    bias_rev: Tensor | None,
    cu_seqlens: Tensor,
    direction: str,
    activation: str,
    backend: str,
) -> list[Tensor]:
    """One gradient per tensor argument, in its dtype; empty where the argument is absent."""
    args = ConvArguments(x, weight, bias, weight_rev, bias_rev, cu_seqlens, direction, activation)
    grads = import_module(f"seqgraph_kernels.causal_conv1d.{backend}").backward(args, grad_out)
    given = {name: getattr(args, name) for name in TENSORS}
    return [x.new_empty(0) if given[n] is None else grads[n].to(given[n].dtype) for n in TENSORS]


@conv_backward.register_fake
def _(grad_out, *inputs):
    given = inputs[:5]
    return [
        inputs[0].new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in given
    ]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[5], *inputs[:5])
    ctx.options = inputs[6:]


def _backward(ctx, grad_out):
    cu_seqlens, *tensors = ctx.saved_tensors
    grads = conv_backward(grad_out, *tensors, cu_seqlens, *ctx.options)
    return *(None if t is None else g for t, g in zip(tensors, grads)), None, None, None, None


conv.register_autograd(_backward, setup_context=_setup_context)
