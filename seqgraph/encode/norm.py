"""Norms that compute in fp32 whatever they are stored in, since the residual stream is fp32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["rms", "layer"]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019).

    Args:
        d_model: D, the size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) of any floating dtype -> (..., D) in the dtype of ``weight``."""
        weight = self.weight.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(x.to(weight.dtype), weight.shape, weight, self.eps).to(self.weight.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba et al. 2016)."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) of any floating dtype -> (..., D) in the dtype of ``weight``."""
        weight = self.weight.to(torch.promote_types(x.dtype, torch.float32))
        bias = self.bias.to(weight.dtype)
        return F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, self.eps).to(self.weight.dtype)


def make_norm(kind: Norm, d_model: int, eps: float) -> RMSNorm | LayerNorm:
    """The norm called "rms" or "layer".

    Raises:
        ValueError: for another name.
    """
    if kind not in ("rms", "layer"):
        raise ValueError(f"norm must be 'rms' or 'layer', not {kind!r}")
    return RMSNorm(d_model, eps) if kind == "rms" else LayerNorm(d_model, eps)
