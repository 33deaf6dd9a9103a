"""Small calls at the first one of a kind, so that no later one waits for a compiler."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from seqgraph_kernels.dispatch import interpreting

Arguments = TypeVar("Arguments", bound=Any)
_seen: set[tuple] = set()


def is_first(args: Any, wide: Collection[str], *kind: object) -> bool:
    """Whether no call like this one was asked about before; always False in Triton's interpreter.

    Calls are alike if their ``kind`` is the same and their tensors differ in numbers of tokens and segments only: rows
    of the arguments named in ``wide`` (and of their ``_rev``) are tokens. ``max_seqlen`` does not count.
    """
    given = {f.name: getattr(args, f.name) for f in fields(args) if f.name != "max_seqlen"}
    alike = tuple(
        (name, v.dtype, _shape(name, v, wide, 1, 1), _strides(v) if _is_wide(name, wide) else 0)
        if isinstance(v, Tensor)
        else (name, v)
        for name, v in given.items()
    )
    key = (type(args), *kind, args.x.device, alike)
    if interpreting() or key in _seen:
        return False
    _seen.add(key)
    return True


def small(args: Arguments, wide: Collection[str], tokens: int, segments: int) -> Arguments:
    """A call of the same kind with so many zeros in equal segments, of lengths that nobody tells."""
    made: dict[str, Any] = {}
    for f in fields(args):
        like = getattr(args, f.name)
        if f.name == "max_seqlen":
            made[f.name] = None
        elif f.name == "cu_seqlens":
            made[f.name] = torch.arange(0, tokens + 1, tokens // segments, dtype=like.dtype, device=like.device)
        elif isinstance(like, Tensor):
            shape = _shape(f.name, like, wide, tokens, segments)
            # Distances between rows decide which instructions load them.
            strides = _strides(like if _is_wide(f.name, wide) else torch.empty(shape, device="meta"))
            made[f.name] = torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device).zero_()
    return replace(args, **made)


def _strides(like: Tensor) -> tuple[int, ...]:
    """Those of its rows; what does not lie in rows is copied before a kernel reads it."""
    return like.stride() if like.stride(-1) == 1 else torch.empty(1, *like.shape[1:], device="meta").stride()


def _is_wide(name: str, wide: Collection[str]) -> bool:
    return name.removesuffix("_rev") in wide


def _shape(name: str, like: Tensor, wide: Collection[str], tokens: int, segments: int) -> tuple[int, ...]:
    if _is_wide(name, wide):
        return (tokens, *like.shape[1:])
    if name == "initial_state":
        return (like.shape[0], segments, *like.shape[2:])
    return (segments + 1,) if name == "cu_seqlens" else tuple(like.shape)
