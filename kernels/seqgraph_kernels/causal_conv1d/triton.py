"""The short convolution on a GPU: memory and launches around the kernels of ``triton_kernels``."""

from __future__ import annotations

import torch
from torch import Tensor

from seqgraph_kernels.causal_conv1d import triton_kernels
from seqgraph_kernels.causal_conv1d.arguments import ConvArguments
from seqgraph_kernels.dispatch import interpreting
from seqgraph_kernels.launch import launch
from seqgraph_kernels.packing import check_borders, unit_rows

# Tokens that one program walks at most, forward and backward. A span reads W - 1 rows twice on either side, and the
# backward leaves W + 1 fp32 rows a span and direction: longer is less of both, shorter is more programs.
SPAN, SPAN_BACKWARD = 128, 256
# Channels of a program at most: four a thread, and two in the backward, which holds more of each in registers.
WIDEST, WIDEST_BACKWARD = 128, 64
# Programs below which a span is halved: a GPU holds one to three thousand of them at a time.
ENOUGH = 4096
HIGH = 32768


def forward(args: ConvArguments) -> list[Tensor]:
    """Output in the dtype of x, (T, E) per direction."""
    x = unit_rows(args.x)
    outs = [x.new_empty(x.shape) for _ in args.passes()]
    if x.numel():
        plan = _Launch(args, x, SPAN, WIDEST)
        with torch.cuda.device_of(x):
            launch(
                triton_kernels.outputs, plan.grid, [x, *plan.parameters, args.cu_seqlens, outs[0], outs[-1]],
                plan.sizes, plan.options,
            )  # fmt: skip
    return outs


def backward(args: ConvArguments, grads_out: list[Tensor]) -> dict[str, Tensor]:
    """Gradients by argument name, in its dtype. Every argument of ``args`` that is present gets one."""
    x, (E, W) = unit_rows(args.x), args.weight.shape
    grads_out = [grad.contiguous() for grad in grads_out]
    passes = len(grads_out)
    grads = {"x": x.new_empty(x.shape)}
    for name in ("weight", "bias", "weight_rev", "bias_rev"):
        if (like := getattr(args, name)) is not None:
            grads[name] = like.new_empty(like.shape)
    if not x.numel():
        return {name: value.zero_() for name, value in grads.items()}
    plan = _Launch(args, x, SPAN_BACKWARD, WIDEST_BACKWARD)
    spans = plan.spans
    partial = x.new_empty((plan.grid[1] * plan.grid[2], passes, W + 1, E), dtype=torch.float32)
    with torch.cuda.device_of(x):
        launch(
            triton_kernels.gradients, plan.grid,
            [x, *plan.parameters, args.cu_seqlens, grads_out[0], grads_out[-1], grads["x"], partial],
            plan.sizes, plan.options,
        )  # fmt: skip
        names = ("weight", "bias", "weight_rev", "bias_rev")
        launch(
            triton_kernels.add_up, (-(-E // 32), W + 1, 1), [partial, *(grads.get(name) for name in names)], [E, spans],
            {
                "W": W, "PASSES": passes, "OWN_WEIGHT": "weight_rev" in grads, "HAS_BIAS": "bias" in grads,
                "OWN_BIAS": "bias_rev" in grads, "BS": 32, "BD": 32, "num_warps": 1,
            },
        )  # fmt: skip
    return grads


class _Launch:
    """What both kernels are launched with: grid, parameters of each direction, sizes and constants."""

    def __init__(self, args: ConvArguments, x: Tensor, span: int, widest: int) -> None:
        (T, E), passes = x.shape, args.passes()
        if interpreting():
            check_borders(args.cu_seqlens, T)
        BD = widest if E > 256 else 64 if E > 32 else 32
        blocks = -(-E // BD)
        while span > 16 and blocks * -(-T // span) < ENOUGH:
            span //= 2
        self.spans = -(-T // span)
        # A grid is less than 65,536 high and deep; spans beyond the last are empty.
        self.grid = (blocks, min(self.spans, HIGH), -(-self.spans // HIGH))
        self.parameters: list[Tensor | None] = []
        # One direction alone fills both places; its kernel reads one of them.
        for one in (passes[0], passes[-1]):
            self.parameters += [one.weight.contiguous(), None if one.bias is None else one.bias.contiguous()]
        S = args.cu_seqlens.shape[0] - 1
        self.sizes = (x.stride(0), T, E, S, max(S - 1, 0).bit_length())
        self.options = {
            "W": args.weight.shape[1], "SPAN": span, "BD": BD, "UNROLL": 4,
            "FORWARD": args.direction != "reverse", "REVERSE": args.direction != "forward",
            "HAS_BIAS": passes[0].bias is not None, "HAS_BIAS_REV": passes[-1].bias is not None,
            "SILU": args.activation == "silu", "num_warps": 1, "num_stages": 1, "enable_fp_fusion": True,
        }  # fmt: skip
