"""GPU kernels that give each span of a long segment the state it starts from.

``local_states`` finds what every span adds to a state that was zero before it, ``carry_states`` passes states from span
to span. The backward uses both for the gradients of states, which run against the direction of the scan (ADJOINT).
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqgraph_kernels.selective_scan.triton_common import (
    LOG2E,
    channel,
    find_span,
    load_channels,
    load_decay,
    load_row,
    make_step,
    row_of_states,
    sigmoid,
    store_states,
    touch,
)


@triton.jit
def load_group(
    x_ptr, dt_ptr, z_ptr, z_stride, first, by, i, n, d, E, M: tl.constexpr, G: tl.constexpr, EVEN: tl.constexpr,
    HAS_Z: tl.constexpr,
):  # fmt: skip
    """x, dt and z of tokens i to i + G of a walk; the last one for those beyond."""
    group = ()
    for g in tl.static_range(G):
        t = first + by * tl.minimum(i + g, n - 1)
        here = t * E + d
        group = group + (load_channels(x_ptr, here, d, E, M, EVEN), load_channels(dt_ptr, here, d, E, M, EVEN))
        if HAS_Z:
            group = group + (load_channels(z_ptr, t * z_stride + d, d, E, M, EVEN),)
        else:
            group = group + (0,)
    return group


@triton.jit
def local_walk(
    x_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, z_ptr, z_stride, local_ptr, sum_ptr, other_ptr, other_sum_ptr, sink_ptr,
    slot, start, stop, d, E, n0,
    NB: tl.constexpr, N: tl.constexpr, M: tl.constexpr, G: tl.constexpr, EVEN: tl.constexpr,
    BACKWARDS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr,
    ADJOINT: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """Forward: h = a h + dt x B. ADJOINT: h = a (h + dy C), with the gradient as ``x`` and C as ``B``.

    PAIRED: ``other`` gets the same of the opposite walk, for which the terms of this one are added up, each times the
    product of the decays before it: one exponential serves both.
    """
    J: tl.constexpr = (NB + 3) // 4
    A = ()
    h = ()
    other = ()
    product = ()
    bias = ()
    steps = ()
    for m in tl.static_range(M):
        A = A + load_decay(A_ptr, d + m, d + m < E, n0, NB, N)
        steps = steps + (tl.zeros([d.shape[0], 1], tl.float32),)
        if HAS_BIAS:
            bias = bias + (tl.load(bias_ptr + d + m, mask=d + m < E, other=0.0),)
        else:
            bias = bias + (0.0,)
        for _j in tl.static_range(J):
            h = h + (tl.zeros([d.shape[0], 4], tl.float32),)
            if PAIRED:
                other = other + (tl.zeros([d.shape[0], 4], tl.float32),)
                product = product + (tl.full([d.shape[0], 4], 1.0, tl.float32),)
    base = start.to(tl.int64)
    x_ptr += base * E
    dt_ptr += base * E
    B_ptr += base * N
    if HAS_Z:
        z_ptr += base * z_stride
    n = stop - start
    if BACKWARDS:
        first = n - 1
        by = -1
    else:
        first = n * 0
        by = 1
    group = load_group(x_ptr, dt_ptr, z_ptr, z_stride, first, by, 0, n, d, E, M, G, EVEN, HAS_Z)
    group_next = load_group(x_ptr, dt_ptr, z_ptr, z_stride, first, by, G, n, d, E, M, G, EVEN, HAS_Z)
    touched = touch(B_ptr, first, by, G, n, N, G)
    seen = tl.zeros([1, triton.next_power_of_2(G * N)], tl.float32)
    for i in range(0, n, G):
        group_later = load_group(x_ptr, dt_ptr, z_ptr, z_stride, first, by, i + 2 * G, n, d, E, M, G, EVEN, HAS_Z)
        seen = tl.maximum(seen, touched)
        touched = touch(B_ptr, first, by, i + 2 * G, n, N, G)
        for g in tl.static_range(G):
            b = load_row(B_ptr, (first + by * tl.minimum(i + g, n - 1)) * N, n0, NB, N)
            h_next = ()
            other_next = ()
            product_next = ()
            summed = ()
            for m in tl.static_range(M):
                x = channel(group[3 * g], m, x_ptr.dtype.element_ty, M)
                if HAS_Z:
                    z = channel(group[3 * g + 2], m, z_ptr.dtype.element_ty, M)
                    x *= z * sigmoid(z)
                step = make_step(channel(group[3 * g + 1], m, dt_ptr.dtype.element_ty, M), bias[m], SOFTPLUS)
                # Tokens beyond the span do nothing.
                step = tl.where(n > i + g, step, 0.0)
                summed = summed + (steps[m] + step,)
                u = tl.where(n > i + g, x, 0.0) if ADJOINT else step * x
                for j in tl.static_range(J):
                    a = tl.exp2(step * A[m * J + j])
                    term = u * b[j]
                    if ADJOINT:
                        h_next = h_next + (a * (h[m * J + j] + term),)
                    else:
                        h_next = h_next + (a * h[m * J + j] + term,)
                    if PAIRED:
                        until = product[m * J + j] * a
                        weight = until if ADJOINT else product[m * J + j]
                        other_next = other_next + (other[m * J + j] + weight * term,)
                        product_next = product_next + (until,)
            h = h_next
            other = other_next
            product = product_next
            steps = summed
        group = group_next
        group_next = group_later
    # Nobody reads it; it keeps the early reads alive.
    tl.store(sink_ptr + tl.arange(0, triton.next_power_of_2(G * N))[None, :], seen)
    for m in tl.static_range(M):
        at = row_of_states(slot, d + m, E, N)
        row = slot.to(tl.int64) * E + d + m
        live = d + m < E
        store_states(local_ptr, at, h[m * J : m * J + J], live, n0, NB, N)
        tl.store(sum_ptr + row, steps[m], mask=live)
        if PAIRED:
            store_states(other_ptr, at, other[m * J : m * J + J], live, n0, NB, N)
            tl.store(other_sum_ptr + row, steps[m], mask=live)


@triton.jit(do_not_specialize=["S", "rounds", "span", "blocks"])
def local_states(
    x_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, local_ptr, sum_ptr,
    x2_ptr, dt2_ptr, A2_ptr, B2_ptr, bias2_ptr, local2_ptr, sum2_ptr,
    z_ptr, cu_ptr, sink_ptr, z_stride, E, S, rounds, span, blocks, n0,
    LANES: tl.constexpr, NB: tl.constexpr, N: tl.constexpr, M: tl.constexpr, G: tl.constexpr, EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr, WAYS: tl.constexpr,
    PAIRED: tl.constexpr,
):  # fmt: skip
    """What each span adds to the state behind it (or, ADJOINT, before it) from zero, and its sum of steps.

    Grid (slots * blocks, directions), or (slots * blocks, 1) where PAIRED directions share all inputs. The last span
    that a walk visits has nobody to tell.
    """
    slot = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * (LANES * M) + M * tl.arange(0, LANES)[:, None]
    _s, bos, eos, start, stop = find_span(cu_ptr, slot, S, rounds, span)
    # The direction that goes up the tokens and the one that goes down; adjoint walks go against their direction.
    if PAIRED:
        if ((start > bos) | (stop < eos)) & (start < stop):
            if ADJOINT:
                local_walk(
                    x2_ptr, dt2_ptr, A2_ptr, B2_ptr, bias2_ptr, z_ptr, z_stride, local2_ptr, sum2_ptr, local_ptr,
                    sum_ptr, sink_ptr, slot, start, stop, d, E, n0, NB, N, M, G, EVEN, False, HAS_BIAS, HAS_Z,
                    SOFTPLUS, ADJOINT, PAIRED,
                )  # fmt: skip
            else:
                local_walk(
                    x_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, z_ptr, z_stride, local_ptr, sum_ptr, local2_ptr,
                    sum2_ptr, sink_ptr, slot, start, stop, d, E, n0, NB, N, M, G, EVEN, False, HAS_BIAS, HAS_Z,
                    SOFTPLUS, ADJOINT, PAIRED,
                )  # fmt: skip
    else:
        below = (start > bos) & (start < stop)
        above = (stop < eos) & (start < stop)
        if WAYS != "reverse":
            if (tl.program_id(1) == 0) & (below if ADJOINT else above):
                local_walk(
                    x_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, z_ptr, z_stride, local_ptr, sum_ptr, None, None,
                    sink_ptr, slot, start, stop, d, E, n0, NB, N, M, G, EVEN, ADJOINT, HAS_BIAS, HAS_Z, SOFTPLUS,
                    ADJOINT, PAIRED,
                )  # fmt: skip
        if WAYS != "forward":
            if (tl.program_id(1) == tl.num_programs(1) - 1) & (above if ADJOINT else below):
                local_walk(
                    x2_ptr, dt2_ptr, A2_ptr, B2_ptr, bias2_ptr, z_ptr, z_stride, local2_ptr, sum2_ptr, None, None,
                    sink_ptr, slot, start, stop, d, E, n0, NB, N, M, G, EVEN, not ADJOINT, HAS_BIAS, HAS_Z,
                    SOFTPLUS, ADJOINT, PAIRED,
                )  # fmt: skip


@triton.jit(do_not_specialize=["S", "span", "blocks"])
def carry_states(
    A_ptr, local_ptr, sum_ptr, first_ptr, A2_ptr, local2_ptr, sum2_ptr, first2_ptr,
    cu_ptr, E, S, span, blocks,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, AHEAD: tl.constexpr, HAS_FIRST: tl.constexpr,
    ADJOINT: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """Turn ``local`` into the state that each span starts from, in place. Grid (S * blocks, directions).

    ``first`` is what a segment's walk starts from.
    """
    if WAYS != "reverse":
        if tl.program_id(1) == 0:
            carry_way(
                A_ptr, local_ptr, sum_ptr, first_ptr, cu_ptr, E, S, span, blocks, N, BN, BD, AHEAD,
                HAS_FIRST, ADJOINT,
            )  # fmt: skip
    if WAYS != "forward":
        if tl.program_id(1) == tl.num_programs(1) - 1:
            carry_way(
                A2_ptr, local2_ptr, sum2_ptr, first2_ptr, cu_ptr, E, S, span, blocks, N, BN, BD, AHEAD,
                HAS_FIRST, not ADJOINT,
            )  # fmt: skip


@triton.jit
def carry_way(
    A_ptr, local_ptr, sum_ptr, first_ptr, cu_ptr, E, S, span, blocks,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, AHEAD: tl.constexpr, HAS_FIRST: tl.constexpr,
    BACKWARDS: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0) // blocks
    bos, eos = tl.load(cu_ptr + s), tl.load(cu_ptr + s + 1)
    d = ((tl.program_id(0) % blocks) * BD + tl.arange(0, BD))[:, None]
    n = tl.arange(0, BN)[None, :]
    live = d < E
    real = live & (n < N)
    A = tl.load(A_ptr + d * N + n, mask=real, other=0.0) * LOG2E
    segment = row_of_states(s, d, E, N) + n
    h = tl.zeros([BD, BN], tl.float32)
    if HAS_FIRST:
        h = tl.load(first_ptr + segment, mask=real, other=0.0)
    spans = (eos - bos + span - 1) // span
    base = bos // span + s
    for i in range(0, spans, AHEAD):
        locals_ = ()
        decays = ()
        # The last span of a walk has no local state, and memory there holds anything.
        for g in tl.static_range(AHEAD):
            if BACKWARDS:
                slot = base + spans - 1 - (i + g)
            else:
                slot = base + i + g
            inner = tl.where(spans > i + g + 1, E, 0)
            at = row_of_states(slot, d, E, N) + n
            locals_ = locals_ + (tl.load(local_ptr + at, mask=(d < inner) & (n < N), other=0.0),)
            row = slot.to(tl.int64) * E + d
            decays = decays + (tl.load(sum_ptr + row, mask=d < inner, other=0.0),)
        for g in tl.static_range(AHEAD):
            if BACKWARDS:
                slot = base + spans - 1 - (i + g)
            else:
                slot = base + i + g
            at = row_of_states(slot, d, E, N) + n
            tl.store(local_ptr + at, h, mask=(d < tl.where(spans > i + g, E, 0)) & (n < N))
            h = tl.exp2(decays[g] * A) * h + locals_[g]
