"""GPU kernels of the selective scan's forward pass. See README.md for the plan.

A program owns one span (so many tokens of one segment) and ``32 M`` channels, ``M`` to a lane, and walks the span once
per direction, one after the other, with all states in registers. Longer segments are cut into spans: ``local_states``
and ``carry_states`` then say which state each span starts from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqgraph_kernels.selective_scan.triton_common import (
    among,
    channel,
    find_span,
    load_channels,
    load_decay,
    load_row,
    load_states,
    make_step,
    row_of_states,
    sigmoid,
    store_channels,
    store_states,
    touch,
)


@triton.jit
def load_group(
    x_ptr, dt_ptr, z_ptr, z_stride, out_ptr, first, by, i, n, d, E, M: tl.constexpr, G: tl.constexpr,
    EVEN: tl.constexpr, HAS_Z: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """x, dt, z and what an earlier walk left in ``out``, of tokens i to i + G of a walk; the last for those beyond."""
    group = ()
    for g in tl.static_range(G):
        t = first + by * tl.minimum(i + g, n - 1)
        here = t * E + d
        group = group + (load_channels(x_ptr, here, d, E, M, EVEN), load_channels(dt_ptr, here, d, E, M, EVEN))
        if HAS_Z:
            group = group + (load_channels(z_ptr, t * z_stride + d, d, E, M, EVEN),)
        else:
            group = group + (0,)
        if ADD:
            group = group + (load_channels(out_ptr, here, d, E, M, EVEN),)
        else:
            group = group + (0,)
    return group


@triton.jit
def walk(
    x_ptr, dt_ptr, z_ptr, z_stride, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, check_ptr, out_ptr, sink_ptr, h,
    s, bos, start, stop, chunk, d, E, n0,
    NB: tl.constexpr, N: tl.constexpr, M: tl.constexpr, G: tl.constexpr,
    EVEN: tl.constexpr, REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr, SAVE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One direction over one span, with states ``n0`` to ``n0 + NB``; returns the states after it.

    Tokens come in groups of ``G``. While one group is worked on, the next two's x, dt and z are on their way, and the
    rows of B and C of the second into the first cache. A token's output is stored after the next one's loads: Triton
    keeps loads and stores in order, and a store waits for its value. ADD adds to what ``out`` holds, HAS_Z gates; SAVE
    keeps the state that each chunk starts from.
    """
    J: tl.constexpr = (NB + 3) // 4
    A = ()
    skip = ()
    bias = ()
    for m in tl.static_range(M):
        live = d + m < E
        A = A + load_decay(A_ptr, d + m, live, n0, NB, N)
        if HAS_D:
            skip = skip + (tl.load(D_ptr + d + m, mask=live, other=0.0),)
        if HAS_BIAS:
            bias = bias + (tl.load(bias_ptr + d + m, mask=live, other=0.0),)
        else:
            bias = bias + (0.0,)
    # Offsets from the span's first token fit in 32 bits; the pointers themselves do not.
    base = start.to(tl.int64)
    x_ptr += base * E
    dt_ptr += base * E
    out_ptr += base * E
    B_ptr += base * N
    C_ptr += base * N
    if HAS_Z:
        z_ptr += base * z_stride
    seen = tl.zeros([1, triton.next_power_of_2(G * N)], tl.float32)
    first_chunk = (start - bos) // chunk
    chunks = (stop - start + chunk - 1) // chunk
    for k in range(chunks):
        if REVERSE:
            index = chunks - 1 - k
        else:
            index = k
        low = index * chunk
        n = tl.minimum(low + chunk, stop - start) - low
        if SAVE:
            row = bos // chunk + s + first_chunk + index
            for m in tl.static_range(M):
                at = row_of_states(row, d + m, E, N)
                store_states(check_ptr, at, h[m * J : m * J + J], d + m < E, n0, NB, N)
        if REVERSE:
            first = low + n - 1
            by = -1
        else:
            first = low
            by = 1
        group = load_group(x_ptr, dt_ptr, z_ptr, z_stride, out_ptr, first, by, 0, n, d, E, M, G, EVEN, HAS_Z, ADD)
        group_next = load_group(x_ptr, dt_ptr, z_ptr, z_stride, out_ptr, first, by, G, n, d, E, M, G, EVEN, HAS_Z, ADD)
        touched_b = touch(B_ptr, first, by, G, n, N, G)
        touched_c = touch(C_ptr, first, by, G, n, N, G)
        y = ()
        for _m in tl.static_range(M):
            y = y + (tl.zeros([d.shape[0], 1], tl.float32),)
        for i in range(0, n, G):
            group_later = load_group(
                x_ptr, dt_ptr, z_ptr, z_stride, out_ptr, first, by, i + 2 * G, n, d, E, M, G, EVEN, HAS_Z, ADD
            )  # fmt: skip
            seen = tl.maximum(seen, tl.maximum(touched_b, touched_c))
            touched_b = touch(B_ptr, first, by, i + 2 * G, n, N, G)
            touched_c = touch(C_ptr, first, by, i + 2 * G, n, N, G)
            for g in tl.static_range(G):
                here = (first + by * tl.minimum(i + g, n - 1)) * N
                b = load_row(B_ptr, here, n0, NB, N)
                c = load_row(C_ptr, here, n0, NB, N)
                before = i + g - 1
                mask = among(d, E, (n > before) & (before + n * 0 >= 0))
                store_channels(out_ptr, (first + by * before) * E + d, y, mask, M)
                after = ()
                y = ()
                for m in tl.static_range(M):
                    x = channel(group[4 * g], m, x_ptr.dtype.element_ty, M)
                    step = make_step(channel(group[4 * g + 1], m, dt_ptr.dtype.element_ty, M), bias[m], SOFTPLUS)
                    # A step of zero leaves the state alone.
                    step = tl.where(n > i + g, step, 0.0)
                    u = step * x
                    four = tl.zeros([d.shape[0], 4], tl.float32)
                    for j in tl.static_range(J):
                        state = tl.exp2(step * A[m * J + j]) * h[m * J + j] + u * b[j]
                        four += state * c[j]
                        after = after + (state,)
                    total = tl.sum(four, axis=1, keep_dims=True)
                    if HAS_D:
                        total += skip[m] * x
                    if ADD:
                        total += channel(group[4 * g + 3], m, out_ptr.dtype.element_ty, M)
                    if HAS_Z:
                        z = channel(group[4 * g + 2], m, z_ptr.dtype.element_ty, M)
                        total *= z * sigmoid(z)
                    y = y + (total,)
                h = after
            group = group_next
            group_next = group_later
        # What the last group's last token left, if there was one.
        mask = among(d, E, (n > 0) & (n % G == 0))
        store_channels(out_ptr, (first + by * (n - 1)) * E + d, y, mask, M)
    # Nobody reads it; it keeps the early reads alive.
    tl.store(sink_ptr + tl.arange(0, triton.next_power_of_2(G * N))[None, :], seen)
    return h


@triton.jit
def one_way(
    x_ptr, dt_ptr, z_ptr, z_stride, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, start_ptr, carry_ptr, check_ptr, end_ptr,
    out_ptr, sink_ptr, slot, s, bos, eos, start, stop, chunk, cut, d, E, n0,
    NB: tl.constexpr, N: tl.constexpr, M: tl.constexpr, G: tl.constexpr, EVEN: tl.constexpr, REVERSE: tl.constexpr,
    HAS_START: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    SOFTPLUS: tl.constexpr, SAVE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """One direction over one span; FIRST and LAST of the walks that share ``out``."""
    J: tl.constexpr = (NB + 3) // 4
    if REVERSE:
        begins = stop == eos
        ends = start == bos
    else:
        begins = start == bos
        ends = stop == eos
    h = ()
    for m in tl.static_range(M):
        origin = row_of_states(s, d + m, E, N)
        carried = row_of_states(slot, d + m, E, N)
        # A segment's first span starts from the segment's own state: every span, where no segment is cut.
        later = load_states(carry_ptr, carried, among(d + m, E, (begins == 0) & (cut > 0)), n0, NB, N)
        if HAS_START:
            first = load_states(start_ptr, origin, among(d + m, E, begins), n0, NB, N)
            for j in tl.static_range(J):
                h = h + (first[j] + later[j],)
        else:
            h = h + later
    h = walk(
        x_ptr, dt_ptr, z_ptr, z_stride, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, check_ptr, out_ptr, sink_ptr, h, s,
        bos, start, stop, chunk, d, E, n0, NB, N, M, G, EVEN, REVERSE, HAS_BIAS, HAS_D,
        HAS_Z and LAST, SOFTPLUS, SAVE, not FIRST,
    )  # fmt: skip
    if SAVE:
        # A slot that no chunk uses is an output too, and must not differ from run to run.
        spare = bos // chunk + s + (eos - bos + chunk - 1) // chunk
        if (stop == eos) & (spare <= eos // chunk + s):
            for m in tl.static_range(M):
                none = ()
                for _j in tl.static_range(J):
                    none = none + (tl.zeros([d.shape[0], 4], tl.float32),)
                store_states(check_ptr, row_of_states(spare, d + m, E, N), none, d + m < E, n0, NB, N)
    if ends:
        for m in tl.static_range(M):
            store_states(end_ptr, row_of_states(s, d + m, E, N), h[m * J : m * J + J], d + m < E, n0, NB, N)


@triton.jit(do_not_specialize=["S", "rounds", "span", "chunk", "blocks", "cut"])
def outputs(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, start_ptr, carry_ptr, check_ptr, end_ptr, out_ptr,
    x2_ptr, dt2_ptr, A2_ptr, B2_ptr, C2_ptr, D2_ptr, bias2_ptr, start2_ptr, carry2_ptr, check2_ptr, end2_ptr, out2_ptr,
    z_ptr, cu_ptr, sink_ptr, z_stride, E, S, rounds, span, chunk, blocks, cut, n0,
    LANES: tl.constexpr, NB: tl.constexpr, N: tl.constexpr, M: tl.constexpr, G: tl.constexpr, EVEN: tl.constexpr,
    WAYS: tl.constexpr, STACKED: tl.constexpr, HAS_START: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, SAVE: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Walk each span from the state it starts from, in the directions WAYS ("forward", "reverse", "both").

    For "both" the second walk adds to what the first one left in ``out`` and gates the sum, unless they are STACKED.
    States ``n0`` to ``n0 + NB`` only; FIRST and LAST of the launches that share the states.
    """
    slot = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * (LANES * M) + M * tl.arange(0, LANES)[:, None]
    s, bos, eos, start, stop = find_span(cu_ptr, slot, S, rounds, span)
    if start <= stop:
        if WAYS != "reverse":
            one_way(
                x_ptr, dt_ptr, z_ptr, z_stride, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, start_ptr, carry_ptr, check_ptr,
                end_ptr, out_ptr, sink_ptr, slot, s, bos, eos, start, stop, chunk, cut, d, E, n0, NB, N, M, G, EVEN,
                False, HAS_START, HAS_BIAS, HAS_D, HAS_Z, SOFTPLUS, SAVE, FIRST, LAST and (STACKED or WAYS != "both"),
            )  # fmt: skip
        if WAYS == "both":
            tl.debug_barrier()
        if WAYS != "forward":
            one_way(
                x2_ptr, dt2_ptr, z_ptr, z_stride, A2_ptr, B2_ptr, C2_ptr, D2_ptr, bias2_ptr, start2_ptr, carry2_ptr,
                check2_ptr, end2_ptr, out2_ptr, sink_ptr, slot, s, bos, eos, start, stop, chunk, cut, d, E, n0, NB, N,
                M, G, EVEN, True, HAS_START, HAS_BIAS, HAS_D, HAS_Z, SOFTPLUS, SAVE,
                FIRST and (STACKED or WAYS != "both"), LAST,
            )  # fmt: skip
