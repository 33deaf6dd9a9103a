"""A kernel for ``test_launch.py``; Triton reads a kernel's source from a file that it imports."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["plain"])
def add_number(out_ptr, other_ptr, n, plain, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = at * 0.5 + n + plain
    if other_ptr is not None:
        value += tl.load(other_ptr + at)
    tl.store(out_ptr + at * n, value)
