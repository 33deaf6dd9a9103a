"""GPU kernels of the short convolution: a program owns ``BT`` tokens and ``BD`` channels of one direction."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def convolve(x_ptr, w_ptr, bias_ptr, seg_ptr, x_stride, T, E, t, d, here, inside, live, W, REVERSE, HAS_BIAS):
    """The convolution before its activation, (BT, BD) fp32; ``here`` is the segment of each token."""
    y = tl.zeros([t.shape[0], d.shape[1]], tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + d, mask=live, other=0.0)
    for back in tl.static_range(W):
        source = t + back if REVERSE else t - back
        same = inside & (source >= 0) & (source < T)
        same = same & (tl.load(seg_ptr + source, mask=same, other=-1) == here)
        x = tl.load(x_ptr + source * x_stride + d, mask=same & live, other=0.0).to(tl.float32)
        y += x * tl.load(w_ptr + (W - 1 - back) * E + d, mask=live, other=0.0)
    return y


@triton.jit(do_not_specialize=["T"])
def outputs(
    x_ptr, w_ptr, bias_ptr, seg_ptr, out_ptr, x_stride, T, E,
    W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT))[:, None]
    d = (tl.program_id(1) * BD + tl.arange(0, BD))[None, :]
    inside, live = t < T, d < E
    here = tl.load(seg_ptr + t, mask=inside, other=-2)
    y = convolve(x_ptr, w_ptr, bias_ptr, seg_ptr, x_stride, T, E, t, d, here, inside, live, W, REVERSE, HAS_BIAS)
    if SILU:
        y = y / (1.0 + tl.exp2(-y * LOG2E))
    tl.store(out_ptr + t * E + d, y.to(out_ptr.dtype.element_ty), mask=inside & live)


@triton.jit(do_not_specialize=["T"])
def weight_gradients(
    x_ptr, w_ptr, bias_ptr, seg_ptr, grad_ptr, inner_ptr, gw_ptr, gbias_ptr, x_stride, T, E,
    W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """``inner``: the gradient before the activation, (T, E) fp32; ``gw``, ``gbias``: a partial sum per program."""
    block = tl.program_id(0).to(tl.int64)
    t = (block * BT + tl.arange(0, BT))[:, None]
    d = (tl.program_id(1) * BD + tl.arange(0, BD))[None, :]
    inside, live = t < T, d < E
    here = tl.load(seg_ptr + t, mask=inside, other=-2)
    dy = tl.load(grad_ptr + t * E + d, mask=inside & live, other=0.0).to(tl.float32)
    if SILU:
        y = convolve(x_ptr, w_ptr, bias_ptr, seg_ptr, x_stride, T, E, t, d, here, inside, live, W, REVERSE, HAS_BIAS)
        gate = 1.0 / (1.0 + tl.exp2(-y * LOG2E))
        dy *= gate * (1.0 + y * (1.0 - gate))
    tl.store(inner_ptr + t * E + d, dy, mask=inside & live)
    tl.store(gbias_ptr + block * E + d, tl.sum(dy, axis=0, keep_dims=True), mask=live)
    for back in tl.static_range(W):
        source = t + back if REVERSE else t - back
        same = inside & (source >= 0) & (source < T)
        same = same & (tl.load(seg_ptr + source, mask=same, other=-1) == here)
        x = tl.load(x_ptr + source * x_stride + d, mask=same & live, other=0.0).to(tl.float32)
        total = tl.sum(x * dy, axis=0, keep_dims=True)
        tl.store(gw_ptr + (block * W + W - 1 - back) * E + d, total, mask=live)


@triton.jit(do_not_specialize=["T"])
def input_gradients(
    w_ptr, seg_ptr, inner_ptr, gx_ptr, T, E,
    W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Every token gathers what it gave to others; ADD adds to what the other direction left."""
    t = (tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT))[:, None]
    d = (tl.program_id(1) * BD + tl.arange(0, BD))[None, :]
    inside, live = t < T, d < E
    here = tl.load(seg_ptr + t, mask=inside, other=-2)
    dx = tl.zeros([BT, BD], tl.float32)
    for back in tl.static_range(W):
        target = t - back if REVERSE else t + back
        same = inside & (target >= 0) & (target < T)
        same = same & (tl.load(seg_ptr + target, mask=same, other=-1) == here)
        dy = tl.load(inner_ptr + target * E + d, mask=same & live, other=0.0)
        dx += dy * tl.load(w_ptr + (W - 1 - back) * E + d, mask=live, other=0.0)
    if ADD:
        dx += tl.load(gx_ptr + t * E + d, mask=inside & live, other=0.0).to(tl.float32)
    tl.store(gx_ptr + t * E + d, dx.to(gx_ptr.dtype.element_ty), mask=inside & live)
