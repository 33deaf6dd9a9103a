"""Small calls at the first one of a kind, so that no later one waits for a compiler."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from seqgraph_kernels.dispatch import interpreting
from seqgraph_kernels.ssd.arguments import SsdArguments
from seqgraph_kernels.ssd.triton_plan import SHORT, SPAN_LEAST

# Enough tokens for a span, and segments for either of the two chunk lengths that ``triton_plan`` chooses from.
TOKENS, SEGMENTS = SPAN_LEAST, (1, SPAN_LEAST // SHORT)
_seen: set[tuple] = set()


def unseen(args: SsdArguments, *kind: object) -> list[SsdArguments]:
    """Calls with a few zeros that compile whatever calls like ``args`` need, or [] after the first of them.

    Calls are alike if their ``kind`` is the same and their tensors differ in numbers of tokens and segments only.
    """
    given = {f.name: getattr(args, f.name) for f in fields(args)}
    tensors = {name: t for name, t in given.items() if isinstance(t, Tensor)}
    alike = tuple((n, t.dtype, _shape(args, n, 1), t.stride() if _is_wide(args, n) else 0) for n, t in tensors.items())
    key = (*kind, args.x.device, alike, *(v for n, v in given.items() if n not in tensors))
    if key in _seen or interpreting():
        return []
    # Before they are made: these calls must not ask for more.
    _seen.add(key)
    calls: list[dict[str, Any]] = [{name: _zeros(args, name, n) for name in tensors} for n in SEGMENTS]
    return [replace(args, **call) for call in calls]


def _is_wide(args: SsdArguments, name: str) -> bool:
    """Whether an argument has a row for each token."""
    name = name.removesuffix("_rev")
    return name in ("x", "dt", "B", "C", "z") or (name == "D" and args.shift and getattr(args, name).dim() == 2)


def _shape(args: SsdArguments, name: str, segments: int) -> tuple[int, ...]:
    shape = getattr(args, name).shape
    if _is_wide(args, name):
        return (TOKENS, *shape[1:])
    if name == "initial_state":
        return (shape[0], segments, *shape[2:])
    return (segments + 1,) if name == "cu_seqlens" else tuple(shape)


def _zeros(args: SsdArguments, name: str, segments: int) -> Tensor:
    like, shape = getattr(args, name), _shape(args, name, segments)
    if name == "cu_seqlens":
        return torch.arange(0, TOKENS + 1, TOKENS // segments, dtype=like.dtype, device=like.device)
    # Distances between rows decide which instructions load them.
    strides = like.stride() if _is_wide(args, name) else torch.empty(shape, device="meta").stride()
    return torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device).zero_()
