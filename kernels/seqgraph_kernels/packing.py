"""Checks and small helpers for packed tensors that the operators share."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

DIRECTIONS = ("forward", "reverse", "both")


def directions_of(direction: str) -> tuple[bool, ...]:
    """One entry per pass over the tokens, True where it runs from the end of each segment."""
    return {"forward": (False,), "reverse": (True,), "both": (False, True)}[direction]


def segment_borders(cu_seqlens: Tensor | None, like: Tensor) -> Tensor:
    """Borders as (S + 1,) int32 on the device of ``like``, (T, ...); one segment where none are given.

    Raises:
        ValueError: when they are not a vector of at least one integer.
    """
    if cu_seqlens is None:
        # No copy from the host, which would stall a GPU.
        return torch.arange(2, dtype=torch.int32, device=like.device) * like.shape[0]
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.is_floating_point():
        raise ValueError(f"cu_seqlens must be a vector of integers, (S + 1,), got {tuple(cu_seqlens.shape)}")
    return cu_seqlens.to(device=like.device, dtype=torch.int32).contiguous()


def check_borders(cu_seqlens: Tensor, tokens: int) -> list[int]:
    """The borders as a list, once they are seen to rise from 0 to ``tokens``.

    Raises:
        ValueError: when they do not.
    """
    borders = cu_seqlens.tolist()
    if borders[0] != 0 or borders[-1] != tokens or any(a > b for a, b in pairwise(borders)):
        raise ValueError(f"cu_seqlens must rise from 0 to the number of tokens, {tokens}, got {borders[:8]}...")
    return borders


def expect(name: str, tensor: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ValueError unless an argument is absent or floating, of this shape, on the device of ``like``."""
    if tensor is None:
        return
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, x is on {like.device}")


def float_rows(values: Tensor) -> Tensor:
    """fp32 with neighbouring elements in a row; rows may lie apart, as slices of a projection do."""
    return unit_rows(values.float())


def unit_rows(values: Tensor) -> Tensor:
    """The same tensor, or a copy where neighbouring elements of a row lie apart."""
    return values if values.stride(-1) == 1 or values.shape[-1] <= 1 else values.contiguous()
