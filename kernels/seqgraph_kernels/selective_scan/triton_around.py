"""GPU kernels around the walks of the selective scan: B and C in fp32 before them, partial sums added up after them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(ptr, stride, out_ptr, T, N: tl.constexpr, ROWS: tl.constexpr):
    """Rows of a (T, N) tensor, ``stride`` apart, into one whose rows touch."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    n = tl.arange(0, triton.next_power_of_2(N))[None, :]
    mask = (row < T) & (n < N)
    value = tl.load(ptr + row.to(tl.int64) * stride + n, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row.to(tl.int64) * N + n, value, mask=mask)


@triton.jit(do_not_specialize=["T", "tickets", "B_stride", "C_stride", "B2_stride", "C2_stride"])
def prepare(
    B_ptr, C_ptr, B2_ptr, C2_ptr, B_out, C_out, B2_out, C2_out, ticket_ptr,
    T, tickets, B_stride, C_stride, B2_stride, C2_stride,
    N: tl.constexpr, ROWS: tl.constexpr, TICKETS: tl.constexpr,
):  # fmt: skip
    """fp32 copies of those that are given, and counters of zero. Grid (blocks of ROWS tokens, tensors)."""
    if B_ptr is not None:
        if tl.program_id(1) == 0:
            widen(B_ptr, B_stride, B_out, T, N, ROWS)
    if C_ptr is not None:
        if tl.program_id(1) == 1:
            widen(C_ptr, C_stride, C_out, T, N, ROWS)
    if B2_ptr is not None:
        if tl.program_id(1) == 2:
            widen(B2_ptr, B2_stride, B2_out, T, N, ROWS)
    if C2_ptr is not None:
        if tl.program_id(1) == 3:
            widen(C2_ptr, C2_stride, C2_out, T, N, ROWS)
    if ticket_ptr is not None:
        if tl.program_id(0) + tl.program_id(1) == 0:
            at = tl.arange(0, TICKETS)
            tl.store(ticket_ptr + at, at * 0, mask=at < tickets)


@triton.jit
def add_rows(ptr, first, rows, width, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum of rows ``first`` to ``first + rows`` of a matrix so wide, in an order that its shape decides."""
    base = tl.program_id(0).to(tl.int64) * COLUMNS
    at = base + tl.arange(0, COLUMNS)[None, :]
    if base < width:
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, rows, ROWS):
            row = start + tl.arange(0, ROWS)[:, None]
            mask = (row < rows) & (at < width)
            total += tl.load(ptr + (first + row).to(tl.int64) * width + at, mask=mask, other=0.0).to(tl.float32)
        total = tl.sum(total, axis=0, keep_dims=True)
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=at < width)


@triton.jit
def add_ways(ptr, out_ptr, out2_ptr, rows, passes, width, way, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``ptr`` is (passes, rows, width): each pass into its own sum, or all into one where there is no second."""
    if out2_ptr is not None:
        if way == 1:
            add_rows(ptr, rows, rows, width, out2_ptr, ROWS, COLUMNS)
        rows_here = rows
    else:
        rows_here = rows * passes
    if out_ptr is not None:
        if way == 0:
            add_rows(ptr, 0, rows_here, width, out_ptr, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["T", "E", "slots", "blocks", "passes"])
def sums(
    gA_ptr, gD_ptr, gbias_ptr, gB_ptr, gC_ptr, A_ptr, D_ptr, bias_ptr, B_ptr, C_ptr,
    A2_ptr, D2_ptr, bias2_ptr, B2_ptr, C2_ptr, T, E, slots, blocks, passes,
    N: tl.constexpr, TALL: tl.constexpr, NARROW: tl.constexpr, LOW: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients that are sums over tokens, from (passes, slots, ...), or over channels, from (passes, blocks, T, N).

    Grid (blocks of columns, 5 arguments, directions). Tiles are (TALL, NARROW) where there are many rows and
    (LOW, WIDE) where there are many columns. An argument without a second gradient gets the sum over directions.
    """
    way = tl.program_id(2)
    if tl.program_id(1) == 0:
        add_ways(gA_ptr, A_ptr, A2_ptr, slots, passes, E * N, way, TALL, NARROW)
    if tl.program_id(1) == 1:
        add_ways(gD_ptr, D_ptr, D2_ptr, slots, passes, E, way, TALL, NARROW)
    if tl.program_id(1) == 2:
        add_ways(gbias_ptr, bias_ptr, bias2_ptr, slots, passes, E, way, TALL, NARROW)
    if tl.program_id(1) == 3:
        add_ways(gB_ptr, B_ptr, B2_ptr, blocks, passes, T.to(tl.int64) * N, way, LOW, WIDE)
    if tl.program_id(1) == 4:
        add_ways(gC_ptr, C_ptr, C2_ptr, blocks, passes, T.to(tl.int64) * N, way, LOW, WIDE)
