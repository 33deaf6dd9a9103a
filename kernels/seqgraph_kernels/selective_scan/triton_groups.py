"""Groups of tokens of the selective scan's backward walks: loaded, stored, and their states kept and recalled.

A state is a tuple of tiles, four states in each, and a group a tuple of rows: they grow in loops that Triton unrolls.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqgraph_kernels.selective_scan.triton_common import load_row


@triton.jit
def keep(scratch, i, h, J: tl.constexpr, LANES: tl.constexpr):
    at = tl.arange(0, LANES)[:, None] * 4 + tl.arange(0, 4)[None, :]
    for j in tl.static_range(J):
        tl.store(scratch + (i * J + j) * (4 * LANES) + at, h[j].to(scratch.dtype.element_ty))


@triton.jit
def recall(scratch, i, J: tl.constexpr, LANES: tl.constexpr):
    at = tl.arange(0, LANES)[:, None] * 4 + tl.arange(0, 4)[None, :]
    h = ()
    for j in tl.static_range(J):
        h = h + (tl.load(scratch + (i * J + j) * (4 * LANES) + at),)
    return h


@triton.jit
def load_tokens(ptr, stride, first, by, i, n, d, E, G: tl.constexpr, NEEDED: tl.constexpr):
    """Channels ``d`` of tokens i to i + G of a walk: the last channel and token for those beyond, the first token for
    those before, so that nothing need be masked."""
    group = ()
    for g in tl.static_range(G):
        if NEEDED:
            at = (first + by * tl.maximum(tl.minimum(i + g, n - 1), 0)) * stride + tl.minimum(d, E - 1)
            group = group + (tl.load(ptr + at),)
        else:
            group = group + (0,)
    return group


@triton.jit
def load_earlier(ptr, first, by, i, n, d, limit, E, G: tl.constexpr, NEEDED: tl.constexpr):
    """The same of what an earlier walk left, 0 from ``limit`` on."""
    group = ()
    for g in tl.static_range(G):
        if NEEDED:
            at = (first + by * tl.maximum(tl.minimum(i + g, n - 1), 0)) * E + d
            group = group + (tl.load(ptr + at, mask=d < limit, other=0.0),)
        else:
            group = group + (0,)
    return group


@triton.jit
def load_rows(ptr, first, by, i, n, n0, NB: tl.constexpr, N: tl.constexpr, G: tl.constexpr):
    """B or C of the same tokens, G times as many tiles as ``load_row`` gives."""
    rows = ()
    for g in tl.static_range(G):
        rows = rows + load_row(ptr, (first + by * tl.maximum(tl.minimum(i + g, n - 1), 0)) * N, n0, NB, N)
    return rows


@triton.jit
def put(ptr, offset, value, earlier, mask, ADD: tl.constexpr):
    """Store a gradient, plus the one that an earlier walk left there."""
    if ADD:
        value += earlier.to(tl.float32)
    tl.store(ptr + offset, value.to(ptr.dtype.element_ty), mask=mask)
