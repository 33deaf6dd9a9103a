"""GPU kernel of SSD that makes a chunk's output from its tokens and the states that reach it. README.md has the plan.

A program has one chunk and some heads of one group, and makes C B^T for all of them. The backward runs the kernel
again, to make the output that the gate needs its gradient from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqgraph_kernels.ssd.triton_common import (
    load_rows,
    load_state,
    load_steps,
    multiply,
    pair_decays,
    place_chunk,
    sigmoid,
    state_tile,
    store_rows,
)


@triton.jit
def load_projections(
    b_ptr, c_ptr, b_stride, b_group, c_stride, c_group, group, start, bos, eos, t, live, ahead,
    CHUNK: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """C of the tokens that are read at, (CHUNK, BN), and its products with every B, (CHUNK, CHUNK)."""
    b = load_rows(b_ptr + group * b_group, start, b_stride, live, 0, CHUNK, N, BN)
    here = live & (t + ahead >= bos) & (t + ahead < eos)
    c = load_rows(c_ptr + group * c_group, start + ahead, c_stride, here, 0, CHUNK, N, BN).to(DOT)
    return c, multiply(c, tl.trans(b), DOT, PRECISION)


@triton.jit
def load_skip(D_ptr, h, H, t, live, P: tl.constexpr, BP: tl.constexpr, SKIP: tl.constexpr):
    """The skip as it multiplies (CHUNK, BP): SKIP 1 has (H,), 2 (H, P), 3 (T, H)."""
    if SKIP == 1:
        return tl.load(D_ptr + h).to(tl.float32)
    elif SKIP == 2:
        p = tl.arange(0, BP)
        return tl.load(D_ptr + h * P + p, mask=p < P, other=0.0).to(tl.float32)[None, :]
    else:
        return tl.load(D_ptr + t.to(tl.int64) * H + h, mask=live, other=0.0).to(tl.float32)[:, None]


@triton.jit
def finish(
    y, z_ptr, grad_ptr, out_ptr, gdy_ptr, z_stride, z_head, place, start, live, h, H, dz,
    P: tl.constexpr, BP: tl.constexpr, CHUNK: tl.constexpr, HAS_Z: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """Gate and store the output; with GRAD, store the gradient of y and add z's to ``dz``."""
    if HAS_Z:
        z = load_rows(z_ptr + h * z_head, start, z_stride, live, 0, CHUNK, P, BP)
        gate = sigmoid(z)
        if GRAD:
            grad = load_rows(grad_ptr + place, start, H * P, live, 0, CHUNK, P, BP)
            store_rows(gdy_ptr + place, start, H * P, live, 0, grad * z * gate, CHUNK, P, BP)
            dz += grad * y * gate * (1.0 + z * (1.0 - gate))
        else:
            y *= z * gate
    if not GRAD:
        store_rows(out_ptr + place, start, H * P, live, 0, y, CHUNK, P, BP)
    return dz


@triton.jit(do_not_specialize=["size", "T", "rows", "heads", "head_blocks"])
def outputs(
    x_ptr, x_rev_ptr, b_ptr, b_rev_ptr, c_ptr, c_rev_ptr, D_ptr, D_rev_ptr, z_ptr, A_ptr, A_rev_ptr, step_ptr,
    cu_ptr, slot_ptr, state_ptr, grad_ptr, out_ptr, gz_ptr, gdy_ptr,
    x_stride, x_head, x_rev_stride, x_rev_head, b_stride, b_group, b_rev_stride, b_rev_group,
    c_stride, c_group, c_rev_stride, c_rev_group, z_stride, z_head,
    size, T, H, rows, heads, head_blocks, share,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr,
    FORWARD: tl.constexpr, REVERSE: tl.constexpr, OWN_X: tl.constexpr, OWN_BC: tl.constexpr, OWN_STEPS: tl.constexpr,
    SHIFT: tl.constexpr, SKIP: tl.constexpr, SKIP_REV: tl.constexpr, SKIPS: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_FIRST: tl.constexpr, GRAD: tl.constexpr, ADD_Z: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Output, (T, H, P), of one direction or of both together; with GRAD, the gradients of y and of z instead.

    ADD_Z: z's is added to what is there. OWN_*: the other direction has its own; SKIP: 0 for none, else see
    ``load_skip``; SKIPS: how often the first skip counts, 2 where the other direction has the same.
    """
    # Both triangles come from one set of matrices.
    MERGED: tl.constexpr = FORWARD and REVERSE and not (OWN_BC or OWN_STEPS or OWN_X or SHIFT)
    AHEAD: tl.constexpr = 1 if SHIFT else 0
    block = tl.program_id(0) % head_blocks
    slot = tl.program_id(0) // head_blocks
    s = tl.load(slot_ptr + slot)
    bos = tl.load(cu_ptr + s)
    eos = tl.load(cu_ptr + s + 1)
    start = bos + (slot - bos // CHUNK - s) * CHUNK
    if start < eos:
        blocks_per_group = (share + heads - 1) // heads
        group = block // blocks_per_group
        first_head = group * share + (block % blocks_per_group) * heads
        last_head = tl.minimum(first_head + heads, (group + 1) * share)
        t = start + tl.arange(0, CHUNK)
        live = t < eos
        offsets, exists = state_tile(0, P, N, BP, BN)
        if FORWARD:
            c, products = load_projections(
                b_ptr, c_ptr, b_stride, b_group, c_stride, c_group, group, start, bos, eos, t, live, -AHEAD,
                CHUNK, N, BN, DOT, PRECISION,
            )  # fmt: skip
            place = place_chunk(s, start, bos, eos, 0, rows, H, CHUNK, False, HAS_FIRST)
        if REVERSE:
            place_rev = place_chunk(s, start, bos, eos, 1 if FORWARD else 0, rows, H, CHUNK, True, HAS_FIRST)
        if REVERSE and (OWN_BC or SHIFT or not FORWARD):
            c_rev, products_rev = load_projections(
                b_rev_ptr, c_rev_ptr, b_rev_stride, b_rev_group, c_rev_stride, c_rev_group, group, start, bos, eos, t,
                live, AHEAD, CHUNK, N, BN, DOT, PRECISION,
            )  # fmt: skip
        elif REVERSE:
            c_rev, products_rev = c, products
        for h in range(first_head, last_head):
            x = load_rows(x_ptr + h * x_head, start, x_stride, live, 0, CHUNK, P, BP)
            y = tl.zeros([CHUNK, BP], tl.float32)
            dz = tl.zeros([CHUNK, BP], tl.float32)
            if FORWARD:
                step, before, upto, _behind, A, before_low, upto_low = load_steps(
                    step_ptr, A_ptr, tl.cast(h, tl.int64), h, T, size, start, t, live, EXACT
                )
                decay = pair_decays(before, upto, A, before_low, upto_low, CHUNK, True, MERGED, SHIFT, EXACT)
                state = load_state(state_ptr, place, h, offsets, exists, P * N)
                reading = tl.exp2((before if SHIFT else upto) * A)
                y = multiply(c, tl.trans(state), DOT, PRECISION) * reading[:, None]
                y += multiply(products * decay, x * step[:, None], DOT, PRECISION)
                if SKIP != 0:
                    y += x * load_skip(D_ptr, h, H, t, live, P, BP, SKIP) * SKIPS
            if REVERSE:
                step_row = tl.cast(h, tl.int64) + (H if OWN_STEPS else 0)
                step, before, upto, behind, A, before_low, upto_low = load_steps(
                    step_ptr, A_rev_ptr, step_row, h, T, size, start, t, live, EXACT
                )
                state = load_state(state_ptr, place_rev, h, offsets, exists, P * N)
                reading = tl.exp2((behind if SHIFT else behind + step) * A)
                y += multiply(c_rev, tl.trans(state), DOT, PRECISION) * reading[:, None]
                if not MERGED:
                    if OWN_X:
                        x = load_rows(x_rev_ptr + h * x_rev_head, start, x_rev_stride, live, 0, CHUNK, P, BP)
                    decay = pair_decays(before, upto, A, before_low, upto_low, CHUNK, False, True, SHIFT, EXACT)
                    y += multiply(products_rev * decay * step[None, :], x, DOT, PRECISION)
                if SKIP_REV != 0:
                    y += x * load_skip(D_rev_ptr, h, H, t, live, P, BP, SKIP_REV)
            dz = finish(
                y, z_ptr, grad_ptr, out_ptr, gdy_ptr, z_stride, z_head, h * P, start, live, h, H, dz, P, BP, CHUNK,
                HAS_Z, GRAD,
            )  # fmt: skip
            if GRAD:
                if ADD_Z:
                    dz += load_rows(gz_ptr + h * P, start, H * P, live, 0, CHUNK, P, BP)
                store_rows(gz_ptr + h * P, start, H * P, live, 0, dz, CHUNK, P, BP)
