"""Mamba's block where only some tokens are asked for: the gate and the last projection are theirs alone."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from seqgraph.encode import Mamba
from seqgraph_kernels import selective_scan


def read_mixer(mixer: nn.Module, u: Tensor, cu_seqlens: Tensor, at: Tensor, max_seqlen: int | None) -> Tensor:
    """``mixer(u, cu_seqlens)[at]``, (P, D), of tokens u (T, D); at (P,) int64 names each token once at most.

    The scan needs every token, what follows it only those. With prefixes of a hundred tokens, read at their last, this
    leaves out half of the first projection and all of the last.
    """
    # A replaced layer wants to be called.
    if type(mixer) is not Mamba or any(type(layer) is not nn.Linear for layer in (mixer.in_proj, mixer.out_proj)):
        out: Tensor = mixer(u, cu_seqlens, max_seqlen=max_seqlen)
        return out.index_select(0, at)
    inner, bias = mixer.d_inner, mixer.in_proj.bias
    x = F.linear(u, mixer.in_proj.weight[:inner], None if bias is None else bias[:inner])
    x = mixer.convolve(x, cu_seqlens, "forward")
    y = cast(
        Tensor, selective_scan(dt_softplus=True, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, **mixer.select(x))
    ).index_select(0, at)
    z = F.linear(u.index_select(0, at), mixer.in_proj.weight[inner:], None if bias is None else bias[inner:])
    return mixer.out_proj(y * F.silu(z))
