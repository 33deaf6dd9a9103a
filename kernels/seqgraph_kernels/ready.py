"""Small calls at the first one of a kind, so that no later one waits for a compiler."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, TypeVar, cast

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
    # On the way of every call: what can be known of the class is looked up once.
    key: list[object] = [type(args), kind]
    for name, is_wide in _names(cast(Any, type(args)), frozenset(wide)):
        value = getattr(args, name)
        if not isinstance(value, Tensor):
            key.append(value)
        elif is_wide:
            key += (value.dtype, value.shape[1:], _strides(value))
        elif name == "cu_seqlens":
            key += (value.dtype, value.device)
        else:
            key += (value.dtype, value.shape[2:] if name == "initial_state" else value.shape)
    found = tuple(key)
    if interpreting() or found in _seen:
        return False
    _seen.add(found)
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


@lru_cache
def _names(kind: type, wide: frozenset[str]) -> list[tuple[str, bool]]:
    return [(f.name, _is_wide(f.name, wide)) for f in fields(kind) if f.name != "max_seqlen"]


def _strides(like: Tensor) -> tuple[int, ...]:
    """Those of its rows; what does not lie in rows is copied before a kernel reads it."""
    strides = like.stride()
    return strides if strides[-1] == 1 else torch.empty(1, *like.shape[1:], device="meta").stride()


def _is_wide(name: str, wide: Collection[str]) -> bool:
    return name.removesuffix("_rev") in wide


def _shape(name: str, like: Tensor, wide: Collection[str], tokens: int, segments: int) -> tuple[int, ...]:
    if _is_wide(name, wide):
        return (tokens, *like.shape[1:])
    if name == "initial_state":
        return (like.shape[0], segments, *like.shape[2:])
    return (segments + 1,) if name == "cu_seqlens" else tuple(like.shape)
