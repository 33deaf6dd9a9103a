"""The short convolution on a GPU: memory and launches around the kernels of ``triton_kernels``."""

from __future__ import annotations

import torch
from torch import Tensor

from seqgraph_kernels.causal_conv1d import triton_kernels
from seqgraph_kernels.causal_conv1d.arguments import ConvArguments
from seqgraph_kernels.dispatch import interpreting
from seqgraph_kernels.packing import check_borders, unit_rows

_BT, _BD = 64, 64


def forward(args: ConvArguments) -> Tensor:
    """Output in the dtype of x, (directions, T, E)."""
    (T, E), x = args.x.shape, unit_rows(args.x)
    passes = args.passes()
    out = x.new_empty(len(passes), T, E)
    if not out.numel():
        return out
    segment = _segments(args)
    with torch.cuda.device_of(x):
        for i, one in enumerate(passes):
            weight, bias = _parameters(one)
            triton_kernels.outputs[_grid(T, E)](
                x, weight, bias, segment, out[i], x.stride(0), T, E, **_options(args, one.reverse, bias)
            )
    return out


def backward(args: ConvArguments, grad_out: Tensor) -> dict[str, Tensor]:
    """Gradients by argument name. Every argument of ``args`` that is present gets one."""
    (T, E), x, W = args.x.shape, unit_rows(args.x), args.weight.shape[1]
    passes = args.passes()
    grad_out = grad_out.contiguous()
    grid = _grid(T, E)
    gx = x.new_empty((T, E), dtype=torch.float32 if len(passes) == 2 else x.dtype)
    inner = x.new_empty((T, E), dtype=torch.float32)
    segment = _segments(args)
    grads: dict[str, Tensor] = {"x": gx}
    for i, one in enumerate(passes):
        weight, bias = _parameters(one)
        # Partial sums of each program, added in a fixed order.
        gweight = inner.new_zeros(grid[0], W, E)
        gbias = inner.new_zeros(grid[0], E)
        if gx.numel():
            options = _options(args, one.reverse, bias)
            with torch.cuda.device_of(x):
                triton_kernels.weight_gradients[grid](
                    x, weight, bias, segment, grad_out[i], inner, gweight, gbias, x.stride(0), T, E, **options
                )
                triton_kernels.input_gradients[grid](
                    weight, segment, inner, gx, T, E, W=W, BT=_BT, BD=_BD, REVERSE=one.reverse, ADD=i > 0
                )
        for name, value in (("weight", gweight.sum(0).T), ("bias", gbias.sum(0))):
            owner = f"{name}_rev" if i == 1 and getattr(args, f"{name}_rev") is not None else name
            grads[owner] = grads[owner] + value if owner in grads else value.contiguous()
    return grads


def _segments(args: ConvArguments) -> Tensor:
    """Segment of each token, (T,) int32, made on the device."""
    if interpreting():
        check_borders(args.cu_seqlens, args.x.shape[0])
    tokens = torch.arange(args.x.shape[0], device=args.x.device, dtype=torch.int32)
    return torch.searchsorted(args.cu_seqlens, tokens, right=True, out_int32=True)


def _grid(T: int, E: int) -> tuple[int, int]:
    return -(-T // _BT), -(-E // _BD)


def _parameters(one) -> tuple[Tensor, Tensor | None]:
    """Weights as (W, E) and bias, fp32."""
    return one.weight.float().T.contiguous(), None if one.bias is None else one.bias.float().contiguous()


def _options(args: ConvArguments, reverse: bool, bias: Tensor | None) -> dict:
    return {
        "W": args.weight.shape[1],
        "BT": _BT,
        "BD": _BD,
        "REVERSE": reverse,
        "HAS_BIAS": bias is not None,
        "SILU": args.activation == "silu",
    }
