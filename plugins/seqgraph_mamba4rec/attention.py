"""Attention on packed histories: each token sees its own segment, up to itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seqgraph.stream import TokenStream


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, max_length: int, dropout: float = 0.0
) -> Tensor:
    """Causal softmax attention within each segment, scaled by 1 / sqrt(P).

    On a GPU in bf16 or fp16 and without dropout FlashAttention's kernel for ragged batches, which pads nothing and
    waits for nothing (torch 2.10 or later). Otherwise torch's attention on a right-padded copy, where the causal
    mask alone keeps what is real from what is not.

    Args:
        query: (T, H, P).
        key: (T, H, P).
        value: (T, H, P).
        cu_seqlens: segment borders, (S + 1,) int32.
        max_length: no segment is longer.
        dropout: probability on the attention weights.

    Returns:
        (T, H, P).
    """
    flash = _ragged_flash()
    half = query.dtype in (torch.bfloat16, torch.float16)
    if flash is not None and query.is_cuda and half and not dropout and len(query):
        attended: Tensor = flash(query, key, value, cu_seqlens, max_length)
        return attended
    return padded_attention(query, key, value, cu_seqlens, max_length=max_length, dropout=dropout)


def padded_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, max_length: int, dropout: float = 0.0
) -> Tensor:
    """The same on a right-padded copy (S, max_length, 3, H, P)."""
    whole = torch.stack([query, key, value], 1)
    if not len(whole):
        return query
    source = torch.arange(len(whole), device=whole.device)
    stream = TokenStream(whole, cu_seqlens, source)
    segment, position = stream.segment, stream.position
    dense = whole.new_zeros(stream.num_segments, max_length, *whole.shape[1:])
    dense = dense.index_put((segment, position), whole)
    q, k, v = dense.permute(2, 0, 3, 1, 4)  # each (S, H, L, P)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    return out.transpose(1, 2)[segment, position]


def _ragged_flash() -> Callable[..., Any] | None:
    """torch's varlen attention, causal, whichever way this version spells that; None where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    causal: dict[str, Any] = {"is_causal": True}
    if "window_size" in inspect.signature(varlen_attn).parameters:
        causal = {"window_size": (-1, 0)}

    def attend(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int) -> Any:
        return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, longest, longest, **causal)

    return attend
