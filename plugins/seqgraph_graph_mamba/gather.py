"""Sums and means of rows by index, without a word from the GPU to the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``, rows (R, ...) of ``values`` (V, ...).

    Its gradient is added up as :func:`sum_rows` does; that of ``values[index]`` sorts the index on a GPU each time.
    """
    return values.index_select(0, index)


def permute_rows(values: Tensor, there: Tensor, back: Tensor) -> Tensor:
    """``values[there]`` for a permutation ``there`` (V,) whose inverse is ``back``: its gradient is a gather too."""
    return _Permute.apply(values, there, back)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(there, back)
        return values.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        return permute_rows(grad, back, there), None, None


def sum_rows(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Add up the rows of ``values`` (R, ...) that have the same ``index`` (R,): (size, ...), zeros for none.

    Half precision is added up in fp32 and given back as it came.
    """
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return wide.new_zeros(size, *values.shape[1:]).index_add_(0, index, wide).to(values.dtype)


def mean_rows(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The mean of the rows of ``values`` (R, ...) that have the same ``index`` (R,): (size, ...), zeros for none."""
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    total = wide.new_zeros(size, *values.shape[1:]).index_add_(0, index, wide)
    count = wide.new_zeros(size).index_add_(0, index, wide.new_ones(len(index))).clamp_min(1)
    return (total / count.view(-1, *[1] * (values.ndim - 1))).to(values.dtype)


def pool_rows(values: Tensor, index: Tensor, size: int, how: str) -> Tensor:
    """The "mean", "sum" or "max" of rows by index, as above; for "max" a size without rows gives zeros."""
    if how == "max":
        spread = index.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
        zeros = values.new_zeros(size, *values.shape[1:])
        return zeros.scatter_reduce(0, spread, values, "amax", include_self=False)
    return mean_rows(values, index, size) if how == "mean" else sum_rows(values, index, size)


def rank_within(group: Tensor, size: int) -> Tensor:
    """Each row's number among those of its group, in the order of the rows.

    Args:
        group: (R,) int64, rising.
        size: number of groups.

    Returns:
        (R,) int64, from 0.
    """
    count = group.new_zeros(size).index_add_(0, group, torch.ones_like(group))
    return torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[group]
