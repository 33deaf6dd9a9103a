"""GPU kernels of the selective scan; one launch serves one direction. See README.md for the plan.

A program owns ``SPAN`` tokens of one segment and ``BD`` channels, and walks them one by one with all states in
registers. ``h0`` of every span comes from a pass over the states alone (``local_states``) and a short loop over spans
(``carry_states``). The forward writes one state per ``CHUNK`` tokens, from which the backward starts again.

Forward tensors are kept two-dimensional, (BD, 1) and (1, BN): Triton then gives each thread whole rows of states and
sums over them without shuffles. The backward sums over both axes and is better off with the mixed layout it gets.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
SMALL = tl.constexpr(0.01)


@triton.jit
def softplus(v):
    u = tl.exp2(-tl.abs(v) * LOG2E)
    # log(1 + u) has lost u's digits when u is small, and Mamba's steps start at 1e-3
    series = u * (1.0 - u * (0.5 - u * (0.33333333 - u * 0.25)))
    return tl.maximum(v, 0.0) + tl.where(u < SMALL, series, tl.log(1.0 + u))


@triton.jit
def sigmoid(v):
    return 1.0 / (1.0 + tl.exp2(-v * LOG2E))


@triton.jit
def find_segment(cu_ptr, slot, S, rounds, SPAN: tl.constexpr):
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
def find_span(cu_ptr, slot, S, rounds, SPAN: tl.constexpr):
    """Segment of a slot, its borders, and the tokens of the span, start and stop (empty for a slot not in use)."""
    s = find_segment(cu_ptr, slot, S, rounds, SPAN)
    bos = tl.load(cu_ptr + s)
    eos = tl.load(cu_ptr + s + 1)
    start = bos + (slot - bos // SPAN - s) * SPAN
    return s, bos, eos, start, tl.minimum(start + SPAN, eos)


@triton.jit
def load_step(dt_ptr, dt_stride, bias_ptr, t, d, live, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr):
    """The step after bias and softplus, and its argument."""
    raw = tl.load(dt_ptr + t * dt_stride + d, mask=live, other=0.0).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + d, mask=live, other=0.0)
    step = raw
    if SOFTPLUS:
        step = softplus(raw)
    return step, raw


@triton.jit
def load_gated(grad_ptr, z_ptr, z_stride, t, E, d, live, HAS_Z: tl.constexpr):
    """The gradient of the ungated output."""
    dy = tl.load(grad_ptr + t * E + d, mask=live, other=0.0).to(tl.float32)
    if HAS_Z:
        z = tl.load(z_ptr + t * z_stride + d, mask=live, other=0.0).to(tl.float32)
        dy *= z * sigmoid(z)
    return dy


@triton.jit(do_not_specialize=["S", "rounds"])
def local_states(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, bias_ptr, grad_ptr, z_ptr, cu_ptr, local_ptr, sum_ptr,
    x_stride, dt_stride, z_stride, E, padded, S, rounds,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr, REVERSE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """What each span adds to the state behind it (or, ADJOINT, before it) from zero, and its sum of steps."""
    slot = tl.program_id(0)
    _s, bos, eos, start, stop = find_span(cu_ptr, slot, S, rounds, SPAN)
    # The last span that the walk visits has nobody to tell.
    if REVERSE != ADJOINT:
        needed = (start > bos) & (start < stop)
    else:
        needed = (stop < eos) & (start < stop)
    if needed:
        d = (tl.program_id(1) * BD + tl.arange(0, BD))[:, None]
        n = tl.arange(0, BN)[None, :]
        live, real = d < E, n < N
        A = tl.load(A_ptr + d * N + n, mask=live & real, other=0.0)
        h = tl.zeros([BD, BN], tl.float32)
        steps = tl.zeros([BD, 1], tl.float32)
        for i in range(stop - start):
            if REVERSE != ADJOINT:
                t = (stop - 1 - i).to(tl.int64)
            else:
                t = (start + i).to(tl.int64)
            step, _raw = load_step(dt_ptr, dt_stride, bias_ptr, t, d, live, HAS_BIAS, SOFTPLUS)
            a = tl.exp2(step * A)
            if ADJOINT:
                dy = load_gated(grad_ptr, z_ptr, z_stride, t, E, d, live, HAS_Z)
                h = a * (h + dy * tl.load(C_ptr + t * N + n, mask=real, other=0.0))
            else:
                x = tl.load(x_ptr + t * x_stride + d, mask=live, other=0.0).to(tl.float32)
                h = a * h + (step * x) * tl.load(B_ptr + t * N + n, mask=real, other=0.0)
            steps += step
        row = slot.to(tl.int64)
        tl.store(local_ptr + (row * N + n) * padded + d, h, mask=live & real)
        tl.store(sum_ptr + row * padded + d, steps, mask=live)


@triton.jit(do_not_specialize=["S"])
def carry_states(
    A_ptr, cu_ptr, local_ptr, sum_ptr, first_ptr, last_ptr, E, padded, S,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr, BACKWARDS: tl.constexpr,
    HAS_FIRST: tl.constexpr, HAS_LAST: tl.constexpr,
):  # fmt: skip
    """Turn ``local`` into the state that each span starts from, in place.

    ``first`` is where the walk over a segment starts, ``last`` gets it where a segment is empty.
    """
    s = tl.program_id(0)
    bos, eos = tl.load(cu_ptr + s), tl.load(cu_ptr + s + 1)
    d = (tl.program_id(1) * BD + tl.arange(0, BD))[:, None]
    n = tl.arange(0, BN)[None, :]
    live, real = d < E, n < N
    A = tl.load(A_ptr + d * N + n, mask=live & real, other=0.0)
    segment = (s.to(tl.int64) * N + n) * padded + d
    h = tl.zeros([BD, BN], tl.float32)
    if HAS_FIRST:
        h = tl.load(first_ptr + segment, mask=live & real, other=0.0)
    spans = (eos - bos + SPAN - 1) // SPAN
    for i in range(spans):
        if BACKWARDS:
            j = spans - 1 - i
        else:
            j = i
        row = (bos // SPAN + s + j).to(tl.int64)
        here = local_ptr + (row * N + n) * padded + d
        # The last span in the walk has no local state, and memory there holds anything.
        inner = i + 1 < spans
        local = tl.where(inner, tl.load(here, mask=live & real, other=0.0), 0.0)
        steps = tl.where(inner, tl.load(sum_ptr + row * padded + d, mask=live, other=0.0), 0.0)
        tl.store(here, h, mask=live & real)
        h = tl.exp2(steps * A) * h + local
    if HAS_LAST:  # noqa: SIM102 (settled at compile time)
        if bos == eos:
            tl.store(last_ptr + segment, h, mask=live & real)


@triton.jit(do_not_specialize=["S", "rounds"])
def outputs(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, z_ptr, cu_ptr, carry_ptr, check_ptr, end_ptr, partial_ptr,
    out_ptr, x_stride, dt_stride, z_stride, E, padded, S, rounds,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr,
    REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr,
    SAVE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Walk each span from its carried state; ADD adds the other direction's output, HAS_Z gates."""
    slot = tl.program_id(0)
    s, bos, eos, start, stop = find_span(cu_ptr, slot, S, rounds, SPAN)
    if start < stop:
        d = (tl.program_id(1) * BD + tl.arange(0, BD))[:, None]
        n = tl.arange(0, BN)[None, :]
        live, real = d < E, n < N
        A = tl.load(A_ptr + d * N + n, mask=live & real, other=0.0)
        skip = tl.zeros([BD, 1], tl.float32)
        if HAS_D:
            skip = tl.load(D_ptr + d, mask=live, other=0.0)
        h = tl.load(carry_ptr + (slot.to(tl.int64) * N + n) * padded + d, mask=live & real, other=0.0)
        for i in range(stop - start):
            if REVERSE:
                t = (stop - 1 - i).to(tl.int64)
                opens = (i == 0) | ((t + 1 - bos) % CHUNK == 0)
            else:
                t = (start + i).to(tl.int64)
                opens = (t - bos) % CHUNK == 0
            if SAVE:  # noqa: SIM102 (settled at compile time)
                if opens:
                    row = bos // CHUNK + s + (t - bos) // CHUNK
                    tl.store(check_ptr + (row * N + n) * padded + d, h, mask=live & real)
            step, _raw = load_step(dt_ptr, dt_stride, bias_ptr, t, d, live, HAS_BIAS, SOFTPLUS)
            x = tl.load(x_ptr + t * x_stride + d, mask=live, other=0.0).to(tl.float32)
            b = tl.load(B_ptr + t * N + n, mask=real, other=0.0)
            c = tl.load(C_ptr + t * N + n, mask=real, other=0.0)
            h = tl.exp2(step * A) * h + (step * x) * b
            y = tl.sum(h * c, axis=1, keep_dims=True) + skip * x
            if ADD:
                y += tl.load(partial_ptr + t * E + d, mask=live, other=0.0)
            if HAS_Z:
                z = tl.load(z_ptr + t * z_stride + d, mask=live, other=0.0).to(tl.float32)
                y *= z * sigmoid(z)
            tl.store(out_ptr + t * E + d, y.to(out_ptr.dtype.element_ty), mask=live)
        if REVERSE:
            ends = start == bos
        else:
            ends = stop == eos
        if ends:
            tl.store(end_ptr + (s.to(tl.int64) * N + n) * padded + d, h, mask=live & real)


@triton.jit
def put(ptr, value, live, ADD: tl.constexpr):
    """Store a gradient, or add it to the one that the other direction left there."""
    if ADD:
        value += tl.load(ptr, mask=live, other=0.0).to(tl.float32)
    tl.store(ptr, value.to(ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["S", "rounds", "items", "T"])
def gradients(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, z_ptr, grad_ptr, cu_ptr, check_ptr, carry_ptr, scratch_ptr,
    gx_ptr, gdt_ptr, gz_ptr, gB_ptr, gC_ptr, gA_ptr, gD_ptr, gbias_ptr, gstart_ptr,
    x_stride, dt_stride, z_stride, T, E, padded, S, rounds, items,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr,
    REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_START: tl.constexpr, ADD_X: tl.constexpr, ADD_DT: tl.constexpr, ADD_Z: tl.constexpr,
):  # fmt: skip
    """All gradients of one direction. Programs stay and take every so-manieth item, to share little scratch memory.

    ``gB``, ``gC`` are (channel blocks, T, N) and ``gA``, ``gD``, ``gbias`` are (slots, ...): added up afterwards, in
    an order that does not change.
    """
    d = tl.arange(0, BD)
    n = tl.arange(0, BN)
    real = n < N
    blocks = (E + BD - 1) // BD
    tile = d[:, None] * BN + n[None, :]
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (CHUNK * BD * BN)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        slot = item // blocks
        block = item % blocks
        s, bos, eos, start, stop = find_span(cu_ptr, slot, S, rounds, SPAN)
        if start < stop:
            dd = block * BD + d
            live = dd < E
            both = live[:, None] & real[None, :]
            row = slot.to(tl.int64)
            state = n[None, :] * padded + dd[:, None]
            A = tl.load(A_ptr + dd[:, None] * N + n[None, :], mask=both, other=0.0)
            skip = tl.zeros([BD], tl.float32)
            if HAS_D:
                skip = tl.load(D_ptr + dd, mask=live, other=0.0)
            carry = tl.load(carry_ptr + row * N * padded + state, mask=both, other=0.0)
            sum_A = tl.zeros([BD, BN], tl.float32)
            sum_D = tl.zeros([BD], tl.float32)
            sum_bias = tl.zeros([BD], tl.float32)
            chunks = (stop - start + CHUNK - 1) // CHUNK
            for q in range(chunks):
                if REVERSE:
                    low = start + q * CHUNK
                else:
                    low = start + (chunks - 1 - q) * CHUNK
                high = tl.minimum(low + CHUNK, stop)
                saved = (bos // CHUNK + s + (low - bos) // CHUNK).to(tl.int64)
                h = tl.load(check_ptr + saved * N * padded + state, mask=both, other=0.0)
                for i in range(high - low):
                    if REVERSE:
                        t = (high - 1 - i).to(tl.int64)
                    else:
                        t = (low + i).to(tl.int64)
                    tl.store(scratch + i * (BD * BN) + tile, h)
                    step, _raw = load_step(dt_ptr, dt_stride, bias_ptr, t, dd, live, HAS_BIAS, SOFTPLUS)
                    x = tl.load(x_ptr + t * x_stride + dd, mask=live, other=0.0).to(tl.float32)
                    b = tl.load(B_ptr + t * N + n, mask=real, other=0.0)
                    h = tl.exp2(step[:, None] * A) * h + (step * x)[:, None] * b[None, :]
                tl.debug_barrier()
                for i in range(high - low):
                    if REVERSE:
                        t = (low + i).to(tl.int64)
                    else:
                        t = (high - 1 - i).to(tl.int64)
                    step, raw = load_step(dt_ptr, dt_stride, bias_ptr, t, dd, live, HAS_BIAS, SOFTPLUS)
                    x = tl.load(x_ptr + t * x_stride + dd, mask=live, other=0.0).to(tl.float32)
                    dy = load_gated(grad_ptr, z_ptr, z_stride, t, E, dd, live, HAS_Z)
                    b = tl.load(B_ptr + t * N + n, mask=real, other=0.0)
                    c = tl.load(C_ptr + t * N + n, mask=real, other=0.0)
                    a = tl.exp2(step[:, None] * A)
                    ah = a * tl.load(scratch + (high - low - 1 - i) * (BD * BN) + tile)
                    h = ah + (step * x)[:, None] * b[None, :]
                    g = carry + dy[:, None] * c[None, :]
                    carry = a * g
                    gate_free = g * ah
                    along_b = tl.sum(g * b[None, :], axis=1)
                    sum_A += gate_free * step[:, None]
                    sum_D += dy * x
                    dstep = x * along_b + tl.sum(gate_free * A, axis=1) * LN2
                    if SOFTPLUS:
                        dstep *= sigmoid(raw)
                    sum_bias += dstep
                    here = t * E + dd
                    put(gx_ptr + here, step * along_b + skip * dy, live, ADD_X)
                    put(gdt_ptr + here, dstep, live, ADD_DT)
                    if HAS_Z:
                        z = tl.load(z_ptr + t * z_stride + dd, mask=live, other=0.0).to(tl.float32)
                        grad = tl.load(grad_ptr + here, mask=live, other=0.0).to(tl.float32)
                        gate = sigmoid(z)
                        y = tl.sum(h * c[None, :], axis=1) + skip * x
                        put(gz_ptr + here, grad * y * gate * (1.0 + z * (1.0 - gate)), live, ADD_Z)
                    token = (block.to(tl.int64) * T + t) * N + n
                    tl.store(gB_ptr + token, tl.sum(g * (step * x)[:, None], axis=0), mask=real)
                    tl.store(gC_ptr + token, tl.sum(dy[:, None] * h, axis=0), mask=real)
                tl.debug_barrier()
            tl.store(gA_ptr + row * N * padded + state, sum_A, mask=both)
            tl.store(gD_ptr + row * padded + dd, sum_D, mask=live)
            tl.store(gbias_ptr + row * padded + dd, sum_bias, mask=live)
            if HAS_START:
                if REVERSE:
                    begins = stop == eos
                else:
                    begins = start == bos
                if begins:
                    tl.store(gstart_ptr + s.to(tl.int64) * N * padded + state, carry, mask=both)
