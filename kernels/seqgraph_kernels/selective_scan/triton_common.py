"""What the GPU kernels of the selective scan share: where a program works, and the scalar functions of a step.

All kernels hold the states of a channel in one thread: a tile is (BD, 4), a channel per row and four states in it, and
``N`` states are a tuple of such tiles. Triton then loads four states of B and C at once, sums over states without
shuffles, and writes states as 16-byte vectors.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def log1p_ratio(u):
    """log(1 + u) / u for u in [0, 1], to 4e-7: a minimax polynomial, since Triton's log takes three times as long."""
    p = 0.04408951848745346 - 0.008539172820746899 * u
    p = -0.10768157243728638 + p * u
    p = 0.17745234072208405 + p * u
    p = -0.24495461583137512 + p * u
    p = 0.33275479078292847 + p * u
    p = -0.4999740421772003 + p * u
    return 0.9999998211860657 + p * u


@triton.jit
def softplus(v):
    u = tl.exp2(tl.minimum(v, -v) * LOG2E)
    return tl.maximum(v, 0.0) + u * log1p_ratio(u)


@triton.jit
def sigmoid(v):
    # 1 / w as a square costs one instruction beside the special function; a division costs four.
    r = tl.rsqrt(1.0 + tl.exp2(-v * LOG2E))
    return r * r


@triton.jit
def find_segment(cu_ptr, slot, S, rounds, SPAN):
    """Segment of a slot; span ``j`` of segment ``s`` has slot ``cu[s] // SPAN + s + j``."""
    low = slot * 0
    high = low + S - 1
    for _ in range(rounds):
        middle = (low + high + 1) // 2
        below = tl.load(cu_ptr + middle) // SPAN + middle <= slot
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle - 1)
    return low


@triton.jit
def find_span(cu_ptr, slot, S, rounds, SPAN):
    """Segment of a slot, its borders, and the tokens of the span, start and stop; start > stop if it is not in use."""
    s = find_segment(cu_ptr, slot, S, rounds, SPAN)
    bos = tl.load(cu_ptr + s)
    eos = tl.load(cu_ptr + s + 1)
    start = bos + (slot - bos // SPAN - s) * SPAN
    stop = tl.minimum(start + SPAN, eos)
    unused = (start == stop) & (bos < eos)
    return s, bos, eos, start, tl.where(unused, start - 1, stop)


@triton.jit
def among(d, E, inside):
    """Mask of the channels ``d`` of a token that is there if ``inside``."""
    # Not `(d < E) & inside`: Triton's interpreter makes integers of a scalar and a tile of booleans.
    return d < tl.where(inside, E, 0)


@triton.jit
def touch(ptr, first, by, i, n, N: tl.constexpr, G: tl.constexpr):
    """Read the rows of tokens i to i + G of a walk once, over all lanes, so that they are in the first cache later.

    Rows of B and C are the same for all lanes, and a program's only. Returns (1, P2) to be handed to ``sink``.
    """
    low = first + tl.minimum(by * tl.minimum(i, n - 1), by * tl.minimum(i + G - 1, n - 1))
    high = first + tl.maximum(by * tl.minimum(i, n - 1), by * tl.minimum(i + G - 1, n - 1))
    at = tl.arange(0, triton.next_power_of_2(G * N))[None, :]
    return tl.load(ptr + low * N + at, mask=at < (high + 1 - low) * N, other=0.0)


@triton.jit
def load_channels(ptr, offset, d, E, M: tl.constexpr, EVEN: tl.constexpr):
    """``M`` neighbouring channels per lane, (LANES, 1), 0 beyond E; two as one integer, in one load and one register.

    EVEN: there are none beyond E.
    """
    if M == 1:
        if EVEN:
            return tl.load(ptr + offset, eviction_policy="evict_first")
        else:
            return tl.load(ptr + offset, mask=d < E, other=0.0, eviction_policy="evict_first")
    else:
        wide: tl.constexpr = tl.int32 if ptr.dtype.element_ty.primitive_bitwidth == 16 else tl.int64
        at = (ptr + offset).to(tl.pointer_type(wide), bitcast=True)
        return tl.load(at, eviction_policy="evict_first")


@triton.jit
def channel(packed, m: tl.constexpr, dtype: tl.constexpr, M: tl.constexpr):
    """One channel of what ``load_channels`` gave, fp32."""
    if M == 1:
        return packed.to(tl.float32)
    elif dtype.primitive_bitwidth == 16:
        return (packed >> (16 * m)).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    else:
        return (packed >> (32 * m)).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def store_channels(ptr, offset, values, mask, M: tl.constexpr):
    """The reverse of ``load_channels``; ``values`` is a tuple of M tiles."""
    dtype: tl.constexpr = ptr.dtype.element_ty
    if M == 1:
        tl.store(ptr + offset, values[0].to(dtype), mask=mask)
    elif dtype.primitive_bitwidth == 16:
        low = values[0].to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32)
        high = values[1].to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32)
        at = (ptr + offset).to(tl.pointer_type(tl.uint32), bitcast=True)
        tl.store(at, low | (high << 16), mask=mask)
    else:
        low = values[0].to(tl.uint32, bitcast=True).to(tl.uint64)
        high = values[1].to(tl.uint32, bitcast=True).to(tl.uint64)
        at = (ptr + offset).to(tl.pointer_type(tl.uint64), bitcast=True)
        tl.store(at, low | (high << 32), mask=mask)


@triton.jit
def row_of_states(row, d, E, N: tl.constexpr):
    """Offsets, (BD, 1) int64, of the first state of each channel in a tensor (rows, E, N)."""
    return (row.to(tl.int64) * E + d) * N


@triton.jit
def load_states(ptr, offset, mask, n0, NB: tl.constexpr, N: tl.constexpr):
    """States ``n0`` to ``n0 + NB``, a tuple of (BD, 4) tiles, 0 where masked."""
    q = tl.arange(0, 4)[None, :]
    h = ()
    for j in tl.static_range((NB + 3) // 4):
        if N % NB == 0:
            h = h + (tl.load(ptr + offset + (n0 + 4 * j + q), mask=mask, other=0.0),)
        else:
            h = h + (tl.load(ptr + offset + (n0 + 4 * j + q), mask=mask & (n0 + 4 * j + q < N), other=0.0),)
    return h


@triton.jit
def load_decay(A_ptr, d, live, n0, NB: tl.constexpr, N: tl.constexpr):
    """A / ln 2 as a tuple of (BD, 4) tiles: decays are powers of two."""
    loaded = load_states(A_ptr, d * N, live, n0, NB, N)
    A = ()
    for j in tl.static_range((NB + 3) // 4):
        A = A + (loaded[j] * LOG2E,)
    return A


@triton.jit
def store_states(ptr, offset, h, mask, n0, NB: tl.constexpr, N: tl.constexpr):
    """The reverse of ``load_states``."""
    q = tl.arange(0, 4)[None, :]
    for j in tl.static_range((NB + 3) // 4):
        if N % NB == 0:
            tl.store(ptr + offset + (n0 + 4 * j + q), h[j], mask=mask)
        else:
            tl.store(ptr + offset + (n0 + 4 * j + q), h[j], mask=mask & (n0 + 4 * j + q < N))


@triton.jit
def load_row(ptr, offset, n0, NB: tl.constexpr, N: tl.constexpr):
    """A token's B or C, a tuple of (1, 4) tiles."""
    q = tl.arange(0, 4)[None, :]
    # One address for all tiles: what is left is constant, and part of the load.
    ptr += offset + n0
    b = ()
    for j in tl.static_range((NB + 3) // 4):
        if N % NB == 0:
            b = b + (tl.load(ptr + (4 * j + q), eviction_policy="evict_last"),)
        else:
            b = b + (tl.load(ptr + (4 * j + q), mask=n0 + 4 * j + q < N, other=0.0),)
    return b


@triton.jit
def make_step(raw, bias, SOFTPLUS: tl.constexpr):
    """The step after bias and softplus."""
    if SOFTPLUS:
        return softplus(raw.to(tl.float32) + bias)
    else:
        return raw.to(tl.float32) + bias


@triton.jit
def load_gated(grad_ptr, offset, z_ptr, z_offset, mask, HAS_Z: tl.constexpr):
    """The gradient of the ungated output, 0 where masked."""
    dy = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if HAS_Z:
        z = tl.load(z_ptr + z_offset, mask=mask, other=0.0).to(tl.float32)
        dy *= z * sigmoid(z)
    return dy
