"""GPU kernels of the selective scan's backward pass. See README.md for the derivation and the plan.

A program owns one span and ``LANES`` channels at a time, one to a lane. Per direction it visits the span's chunks
against the direction of the scan. In a chunk it first walks with the scan, from the chunk's saved state, and keeps one
state per ``G`` tokens in scratch memory; then it goes back group by group, a group's states and decays in registers.
The direction is an ordinary number, so that both run the same instructions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqgraph_kernels.selective_scan.triton_common import (
    LN2,
    find_span,
    load_decay,
    load_states,
    make_step,
    row_of_states,
    sigmoid,
    store_states,
)
from seqgraph_kernels.selective_scan.triton_groups import keep, load_earlier, load_rows, load_tokens, put, recall


@triton.jit
def side_by_side(h, J: tl.constexpr, LANES: tl.constexpr):
    """A tuple of J tiles (LANES, 4) as one tile (LANES, 16); ``state_of_column`` says which state a column is."""
    none = tl.zeros([LANES, 4], tl.float32)
    h1 = h[1] if J > 1 else none
    h2 = h[2] if J > 2 else none
    h3 = h[3] if J > 3 else none
    return tl.reshape(tl.join(tl.join(h[0], h1), tl.join(h2, h3)), [LANES, 16])


@triton.jit
def state_of_column(column):
    return column // 4 + 4 * (column // 2 % 2 + 2 * (column % 2))


@triton.jit
def over_channels(g, h, weights, J: tl.constexpr, LANES: tl.constexpr, PRECISION: tl.constexpr):
    """sum over channels of g[d, n] weights[d, c] and of h[d, n] weights[d, c], (32, 8), the two in turn, on the tensor
    cores: lanes would shuffle for longer."""
    both = tl.reshape(tl.join(side_by_side(g, J, LANES), side_by_side(h, J, LANES)), [LANES, 32, 1])
    # A sum of one: Triton takes what was joined for narrower than it is, and would choose a layout for the product that
    # costs as many moves as a token's decays.
    return tl.dot(tl.trans(tl.sum(both, axis=2)), weights, input_precision=PRECISION)


@triton.jit
def with_scan(
    x_ptr, dt_ptr, B_ptr, scratch, h, A, bias, first, by, n, groups, d, E, n0,
    NB: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, G: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Keep the state before each group of a chunk but the last; return the one before that."""
    J: tl.constexpr = NB // 4
    x = load_tokens(x_ptr, E, first, by, 0, n, d, E, G, True)
    dt = load_tokens(dt_ptr, E, first, by, 0, n, d, E, G, True)
    x_soon = load_tokens(x_ptr, E, first, by, G, n, d, E, G, True)
    dt_soon = load_tokens(dt_ptr, E, first, by, G, n, d, E, G, True)
    b = load_rows(B_ptr, first, by, 0, n, n0, NB, N, G)
    for i in range(groups - 1):
        x_later = load_tokens(x_ptr, E, first, by, (i + 2) * G, n, d, E, G, True)
        dt_later = load_tokens(dt_ptr, E, first, by, (i + 2) * G, n, d, E, G, True)
        keep(scratch, i, h, J, LANES)
        for g in tl.static_range(G):
            step = make_step(dt[g].to(tl.float32), bias, SOFTPLUS)
            u = step * x[g].to(tl.float32)
            after = ()
            for j in tl.static_range(J):
                after = after + (tl.exp2(step * A[j]) * h[j] + u * b[g * J + j],)
            h = after
        # Not earlier: these would have to be moved when the last ones' registers are free.
        b = load_rows(B_ptr, first, by, (i + 1) * G, n, n0, NB, N, G)
        x = x_soon
        dt = dt_soon
        x_soon = x_later
        dt_soon = dt_later
    return h


@triton.jit
def gradient_walk(
    x_ptr, dt_ptr, z_ptr, z_stride, grad_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, check_ptr, scratch,
    gx_ptr, gdt_ptr, gz_ptr, gB_ptr, gC_ptr, gA_ptr, gD_ptr, gbias_ptr, carry,
    s, bos, start, stop, reverse, limit_x, limit_dt, limit_z, d, E, n0,
    NB: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, G: tl.constexpr, CHUNK: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr,
    PRECISION: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One direction over one span, with states ``n0`` to ``n0 + NB``. ``carry`` is the gradient that reaches the span's
    last state from behind; returns the one that leaves its first state. ``limit_*`` is E where something is there to
    be added to, else 0.

    Memory operations stay in program order, and even what the first cache holds comes back behind what it does not: all
    loads stand as early as registers allow.
    """
    J: tl.constexpr = NB // 4
    live = d < E
    A = load_decay(A_ptr, d, live, n0, NB, N)
    skip = tl.zeros([LANES, 1], tl.float32)
    bias = tl.zeros([LANES, 1], tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=live, other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=live, other=0.0)
    base = start.to(tl.int64)
    x_ptr += base * E
    dt_ptr += base * E
    grad_ptr += base * E
    gx_ptr += base * E
    gdt_ptr += base * E
    B_ptr += base * N
    C_ptr += base * N
    gB_ptr += base * N
    gC_ptr += base * N
    if HAS_Z:
        z_ptr += base * z_stride
        gz_ptr += base * E
    sum_A = ()
    for _j in tl.static_range(J):
        sum_A = sum_A + (tl.zeros([LANES, 4], tl.float32),)
    sum_D = tl.zeros([LANES, 1], tl.float32)
    sum_bias = tl.zeros([LANES, 1], tl.float32)
    # Of the tensor cores' sums: rows are states, of B's gradient and of C's in turn, columns tokens for B, then for C.
    row = tl.arange(0, 32)[:, None]
    state = state_of_column(row // 2)
    column = tl.arange(0, 8)[None, :]
    first_chunk = (start - bos) // CHUNK
    chunks = (stop - start + CHUNK - 1) // CHUNK
    by = 1 - 2 * reverse
    for k in range(chunks):
        index = tl.where(reverse > 0, k, chunks - 1 - k)
        low = index * CHUNK
        n = tl.minimum(low + CHUNK, stop - start) - low
        first = tl.where(reverse > 0, low + n - 1, low)
        groups = (n + G - 1) // G
        h = load_states(check_ptr, row_of_states(bos // CHUNK + s + first_chunk + index, d, E, N), live, n0, NB, N)
        h = with_scan(
            x_ptr, dt_ptr, B_ptr, scratch, h, A, bias, first, by, n, groups, d, E, n0, NB, N, LANES, G, SOFTPLUS
        )  # fmt: skip
        at = (groups - 1) * G
        x = load_tokens(x_ptr, E, first, by, at, n, d, E, G, True)
        dt = load_tokens(dt_ptr, E, first, by, at, n, d, E, G, True)
        grad = load_tokens(grad_ptr, E, first, by, at, n, d, E, G, True)
        z = load_tokens(z_ptr, z_stride, first, by, at, n, d, E, G, HAS_Z)
        earlier_x = load_earlier(gx_ptr, first, by, at, n, d, limit_x, E, G, ADD)
        earlier_dt = load_earlier(gdt_ptr, first, by, at, n, d, limit_dt, E, G, ADD)
        earlier_z = load_earlier(gz_ptr, first, by, at, n, d, limit_z, E, G, ADD and HAS_Z)
        b = load_rows(B_ptr, first, by, at, n, n0, NB, N, G)
        tl.debug_barrier()
        for i in range(groups):
            group = groups - 1 - i
            at = group * G
            c = load_rows(C_ptr, first, by, at + G - 1, n, n0, NB, N, 1)
            x_next = load_tokens(x_ptr, E, first, by, at - G, n, d, E, G, True)
            dt_next = load_tokens(dt_ptr, E, first, by, at - G, n, d, E, G, True)
            grad_next = load_tokens(grad_ptr, E, first, by, at - G, n, d, E, G, True)
            z_next = load_tokens(z_ptr, z_stride, first, by, at - G, n, d, E, G, HAS_Z)
            earlier_x_next = load_earlier(gx_ptr, first, by, at - G, n, d, limit_x, E, G, ADD)
            earlier_dt_next = load_earlier(gdt_ptr, first, by, at - G, n, d, limit_dt, E, G, ADD)
            earlier_z_next = load_earlier(gz_ptr, first, by, at - G, n, d, limit_z, E, G, ADD and HAS_Z)
            # With the scan: states before each token, and decays.
            states = ()
            decays = ()
            steps = ()
            weights = tl.zeros([LANES, 8], tl.float32)
            for g in tl.static_range(G):
                step = make_step(dt[g].to(tl.float32), bias, SOFTPLUS)
                # Tokens and channels beyond the last do nothing.
                mask = d < tl.where(n > at + g, E, 0)
                step = tl.where(mask, step, 0.0)
                u = step * x[g].to(tl.float32)
                steps = steps + (step,)
                weights += tl.where(column == g, u, 0.0)
                after = ()
                for j in tl.static_range(J):
                    a = tl.exp2(step * A[j])
                    states = states + (h[j],)
                    decays = decays + (a,)
                    after = after + (a * h[j] + u * b[g * J + j],)
                h = after
            dys = ()
            gates = ()
            for g in tl.static_range(G):
                dy = tl.where(d < tl.where(n > at + g, E, 0), grad[g].to(tl.float32), 0.0)
                if HAS_Z:
                    zg = z[g].to(tl.float32)
                    gate = sigmoid(zg)
                    gates = gates + (dy * gate * (1.0 + zg * (1.0 - gate)),)
                    dy *= zg * gate
                dys = dys + (dy,)
                weights += tl.where(column == G + g, dy, 0.0)
            # Against the scan.
            sums_BC = tl.zeros([32, 8], tl.float32)
            b_here = b[(G - 1) * J : G * J]
            for g in tl.static_range(G - 1, -1, -1):
                mask = d < tl.where(n > at + g, E, 0)
                xg = x[g].to(tl.float32)
                along_b = tl.zeros([LANES, 4], tl.float32)
                along_a = tl.zeros([LANES, 4], tl.float32)
                along_c = tl.zeros([LANES, 4], tl.float32)
                reach = ()
                sums = ()
                before = ()
                for j in tl.static_range(J):
                    a = decays[g * J + j]
                    adjoint = carry[j] + dys[g] * c[j]
                    through = adjoint * (a * states[g * J + j])
                    along_b += adjoint * b_here[j]
                    along_a += through * A[j]
                    along_c += h[j] * c[j]
                    sums = sums + (sum_A[j] + through * steps[g],)
                    before = before + (a * adjoint,)
                    reach = reach + (adjoint,)
                sum_A = sums
                carry = before
                # Their registers are free now; the tensor cores' work hides the way.
                if g > 0:
                    c = load_rows(C_ptr, first, by, at + g - 1, n, n0, NB, N, 1)
                    b_here = load_rows(B_ptr, first, by, at + g - 1, n, n0, NB, N, 1)
                else:
                    b = load_rows(B_ptr, first, by, at - G, n, n0, NB, N, G)
                    recalled = recall(scratch, tl.maximum(group - 1, 0), J, LANES)
                sums_BC = tl.where(column % G == g, over_channels(reach, h, weights, J, LANES, PRECISION), sums_BC)
                to_b = tl.sum(along_b, axis=1, keep_dims=True)
                dstep = xg * to_b + tl.sum(along_a, axis=1, keep_dims=True) * LN2
                if SOFTPLUS:
                    dstep *= sigmoid(dt[g].to(tl.float32) + bias)
                dstep = tl.where(mask, dstep, 0.0)
                sum_bias += dstep
                sum_D += dys[g] * xg
                here = (first + by * tl.minimum(at + g, n - 1)) * E + d
                put(gx_ptr, here, steps[g] * to_b + skip * dys[g], earlier_x[g], mask, ADD)
                put(gdt_ptr, here, dstep, earlier_dt[g], mask, ADD)
                if HAS_Z:
                    y = tl.sum(along_c, axis=1, keep_dims=True) + skip * xg
                    put(gz_ptr, here, gates[g] * y, earlier_z[g], mask, ADD)
                h = states[g * J : g * J + J]
            there = (column // G == row % 2) & (column % G < n - at) & (state < NB) & (n0 + state < N)
            token = (first + by * (at + column % G)) * N + n0 + state
            tl.store(tl.where(row % 2 == 0, gB_ptr, gC_ptr) + token, sums_BC.to(gB_ptr.dtype.element_ty), mask=there)
            x = x_next
            dt = dt_next
            grad = grad_next
            z = z_next
            earlier_x = earlier_x_next
            earlier_dt = earlier_dt_next
            earlier_z = earlier_z_next
            h = ()
            for j in tl.static_range(J):
                h = h + (recalled[j].to(tl.float32),)
        tl.debug_barrier()
    store_states(gA_ptr, d * N, sum_A, live, n0, NB, N)
    if HAS_D:
        tl.store(gD_ptr + d, sum_D, mask=live)
    if n0 > 0:
        sum_bias += tl.load(gbias_ptr + d, mask=live, other=0.0)
    tl.store(gbias_ptr + d, sum_bias, mask=live)
    return carry


@triton.jit
def gradients_of_way(
    x_ptr, dt_ptr, z_ptr, z_stride, grad_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, check_ptr, scratch,
    carry_ptr, end_ptr, start_ptr, gx_ptr, gdt_ptr, gz_ptr, gB_ptr, gC_ptr, gA_ptr, gD_ptr, gbias_ptr,
    slot, s, bos, eos, start, stop, reverse, cut, limit_x, limit_dt, limit_z, d, E, n0,
    NB: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, G: tl.constexpr, CHUNK: tl.constexpr,
    HAS_END: tl.constexpr, HAS_START: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One direction over one span, from the gradient that reaches it to the one that leaves it."""
    # The walk begins at a segment's first token in its own direction, and ends at its last.
    begins = tl.where(reverse > 0, (stop == eos).to(tl.int32), (start == bos).to(tl.int32))
    ends = tl.where(reverse > 0, (start == bos).to(tl.int32), (stop == eos).to(tl.int32))
    origin = row_of_states(s, d, E, N)
    # Nothing reaches a segment's last span from another, which is every span where no segment is cut.
    carry = load_states(carry_ptr, row_of_states(slot, d, E, N), d < E * (1 - ends) * cut, n0, NB, N)
    if HAS_END:
        final = load_states(end_ptr, origin, d < E * ends, n0, NB, N)
        both = ()
        for j in tl.static_range(NB // 4):
            both = both + (carry[j] + final[j],)
        carry = both
    row = slot.to(tl.int64) * E
    carry = gradient_walk(
        x_ptr, dt_ptr, z_ptr, z_stride, grad_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, check_ptr, scratch,
        gx_ptr, gdt_ptr, gz_ptr, gB_ptr, gC_ptr, gA_ptr + row * N, gD_ptr + row, gbias_ptr + row, carry, s, bos, start,
        stop, reverse, limit_x, limit_dt, limit_z, d, E, n0, NB, N, LANES, G, CHUNK, HAS_BIAS, HAS_D,
        HAS_Z, SOFTPLUS, PRECISION, ADD,
    )  # fmt: skip
    if HAS_START:
        if begins > 0:
            store_states(start_ptr, origin, carry, d < E, n0, NB, N)


@triton.jit(
    do_not_specialize=[
        "T", "S", "rounds", "span", "blocks", "slots", "checks", "items", "passes", "turned", "cut", "share_x",
        "share_dt",
    ]
)  # fmt: skip
def gradients(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, grad_ptr, gx_ptr, gdt_ptr,
    x2_ptr, dt2_ptr, A2_ptr, B2_ptr, C2_ptr, D2_ptr, bias2_ptr, grad2_ptr, gx2_ptr, gdt2_ptr,
    gB_ptr, gC_ptr, check_ptr, carry_ptr, end_ptr, start_ptr, gA_ptr, gD_ptr, gbias_ptr, z_ptr, gz_ptr, cu_ptr,
    scratch_ptr, ticket_ptr, z_stride, T, E, S, rounds, span, slots, checks, blocks, items, passes, turned, cut,
    share_x, share_dt, n0,
    NB: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, G: tl.constexpr, CHUNK: tl.constexpr,
    HAS_END: tl.constexpr, HAS_START: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """All gradients. Programs stay and draw one item after the other, a span and a block of channels, to share little
    scratch memory; a counter hands items out, since slots that no span uses cost nothing.

    ``gB``, ``gC`` are (passes, blocks, T, N) and ``gA``, ``gD``, ``gbias`` are (passes, slots, ...): added up
    afterwards, in an order that does not change. ``share_*``: the second direction adds to what the first
    left. ``turned``: the first one is the reverse. ADD: somebody adds. States ``n0`` to ``n0 + NB`` only.
    """
    lane = tl.arange(0, LANES)[:, None]
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (CHUNK // G * LANES * NB)
    # Launches after the first add to what those before left.
    again = (n0 > 0).to(tl.int32)
    item = tl.atomic_add(ticket_ptr, 1)
    while item < items:
        slot = item // blocks
        block = item % blocks
        s, bos, eos, start, stop = find_span(cu_ptr, slot, S, rounds, span)
        d = block * LANES + lane
        if start <= stop:
            for way in range(passes):
                x, dt, A, B, C, D = x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr
                bias, grad, gx, gdt = bias_ptr, grad_ptr, gx_ptr, gdt_ptr
                if way > 0:
                    x, dt, A, B, C = x2_ptr, dt2_ptr, A2_ptr, B2_ptr, C2_ptr
                    grad, gx, gdt = grad2_ptr, gx2_ptr, gdt2_ptr
                    if HAS_D:
                        D = D2_ptr
                    if HAS_BIAS:
                        bias = bias2_ptr
                spans = (way * slots).to(tl.int64) * E
                segments = (way * S).to(tl.int64) * E * N
                rows = (way * blocks + block).to(tl.int64) * T * N
                tl.debug_barrier()
                gradients_of_way(
                    x, dt, z_ptr, z_stride, grad, A, B, C, D, bias,
                    check_ptr + (way * checks).to(tl.int64) * E * N, scratch,
                    carry_ptr + spans * N, end_ptr + segments if HAS_END else end_ptr,
                    start_ptr + segments if HAS_START else start_ptr, gx, gdt, gz_ptr, gB_ptr + rows, gC_ptr + rows,
                    gA_ptr + spans * N, gD_ptr + spans, gbias_ptr + spans, slot, s, bos, eos, start, stop,
                    tl.maximum(way, turned), cut, E * tl.maximum(way * share_x, again),
                    E * tl.maximum(way * share_dt, again), E * tl.maximum(way, again), d, E, n0, NB, N, LANES, G, CHUNK,
                    HAS_END, HAS_START, HAS_BIAS, HAS_D, HAS_Z, SOFTPLUS, PRECISION, ADD,
                )  # fmt: skip
        else:
            # Added up like the others, and nobody cleared it.
            for way in range(passes):
                row = (way * slots + slot).to(tl.int64) * E
                none = ()
                for _j in tl.static_range(NB // 4):
                    none = none + (tl.zeros([LANES, 4], tl.float32),)
                store_states(gA_ptr + row * N, d * N, none, d < E, n0, NB, N)
                zero = tl.zeros([LANES, 1], tl.float32)
                if HAS_D:
                    tl.store(gD_ptr + row + d, zero, mask=d < E)
                tl.store(gbias_ptr + row + d, zero, mask=d < E)
        item = tl.atomic_add(ticket_ptr, 1)
