"""Compiled loops of the short convolution: vectors of 16 channels, one token after the other.

Addresses come as integers, see :mod:`seqgraph_kernels.vector`. Work items are as in the selective scan: a group of
neighbouring segments times a few vectors of channels.
"""

from __future__ import annotations

from numba import njit, types

from seqgraph_kernels.vector import (
    LANES,
    add,
    fma,
    load,
    load_first,
    mul,
    peek_int,
    sigmoid,
    splat,
    store,
    store_first,
    sub,
)

INT = types.int64
# E padded width vectors | cu_seqlens groups | silu
SHARED = types.UniTuple(INT, 7)
# x x_stride weight bias | reverse out
FORWARD = types.UniTuple(INT, 6)
# x x_stride weight bias | reverse grad_out | gradients of: x weight bias | x written before
BACKWARD = types.UniTuple(INT, 10)
compiled = njit(nogil=True, error_model="numpy")


@compiled
def window(x, x_stride, weight, bias, padded, width, t, past, direction, channel, lanes):
    """The convolution before its activation, for the token ``t`` with ``past`` tokens before it."""
    y = load(bias, channel) if bias else splat(0.0)
    for back in range(min(width, past + 1)):
        w = load(weight, (width - 1 - back) * padded + channel)
        y = fma(w, load_first(x, (t - direction * back) * x_stride + channel, lanes), y)
    return y


@compiled
def forward_segment(shared, one, bos, eos, channel):
    E, padded, width, _, _, _, silu = shared
    x, x_stride, weight, bias, reverse, out = one
    lanes = E - channel
    direction = -1 if reverse else 1
    first = eos - 1 if reverse else bos
    for past in range(eos - bos):
        t = first + direction * past
        y = window(x, x_stride, weight, bias, padded, width, t, past, direction, channel, lanes)
        if silu:
            y = mul(y, sigmoid(y))
        store_first(out, t * E + channel, y, lanes)


@compiled
def backward_segment(shared, one, bos, eos, group, channel):
    E, padded, width, _, _, _, silu = shared
    x, x_stride, weight, bias, reverse, grad_out, gx, gweight, gbias, shared_x = one
    lanes = E - channel
    direction = -1 if reverse else 1
    first = eos - 1 if reverse else bos
    sum_bias = load(gbias, group * padded + channel)
    for past in range(eos - bos):
        t = first + direction * past
        dy = load_first(grad_out, t * E + channel, lanes)
        if silu:
            y = window(x, x_stride, weight, bias, padded, width, t, past, direction, channel, lanes)
            gate = sigmoid(y)
            dy = mul(dy, mul(gate, fma(y, sub(splat(1.0), gate), splat(1.0))))
        sum_bias = add(sum_bias, dy)
        for back in range(min(width, past + 1)):
            source = t - direction * back
            tap = (width - 1 - back) * padded + channel
            here = (group * width + width - 1 - back) * padded + channel
            xt = load_first(x, source * x_stride + channel, lanes)
            store(gweight, here, fma(dy, xt, load(gweight, here)))
            dx = mul(dy, load(weight, tap))
            # A token's own output is the first to reach it, later ones add.
            if back > 0 or shared_x:
                dx = add(dx, load_first(gx, source * E + channel, lanes))
            store_first(gx, source * E + channel, dx, lanes)
    store(gbias, group * padded + channel, sum_bias)


@njit(types.void(SHARED, FORWARD, FORWARD, INT, INT, INT, INT), cache=True, nogil=True, error_model="numpy")
def forward_items(shared, first, second, passes, scratch, begin, stop):
    """Run the items from ``begin`` to ``stop``; item = group of segments * channel blocks + channel block."""
    _, padded, _, vectors, cu, groups, _ = shared
    blocks = (padded // LANES + vectors - 1) // vectors
    for item in range(begin, stop):
        group, block = item // blocks, item % blocks
        for s in range(peek_int(groups, group), peek_int(groups, group + 1)):
            bos, eos = peek_int(cu, s), peek_int(cu, s + 1)
            for v in range(block * vectors, min((block + 1) * vectors, padded // LANES)):
                forward_segment(shared, first, bos, eos, v * LANES)
                if passes == 2:
                    forward_segment(shared, second, bos, eos, v * LANES)


@njit(types.void(SHARED, BACKWARD, BACKWARD, INT, INT, INT, INT), cache=True, nogil=True, error_model="numpy")
def backward_items(shared, first, second, passes, scratch, begin, stop):
    """Run the items from ``begin`` to ``stop``, as :func:`forward_items` does."""
    _, padded, _, vectors, cu, groups, _ = shared
    blocks = (padded // LANES + vectors - 1) // vectors
    for item in range(begin, stop):
        group, block = item // blocks, item % blocks
        for s in range(peek_int(groups, group), peek_int(groups, group + 1)):
            bos, eos = peek_int(cu, s), peek_int(cu, s + 1)
            for v in range(block * vectors, min((block + 1) * vectors, padded // LANES)):
                backward_segment(shared, first, bos, eos, group, v * LANES)
                if passes == 2:
                    backward_segment(shared, second, bos, eos, group, v * LANES)
