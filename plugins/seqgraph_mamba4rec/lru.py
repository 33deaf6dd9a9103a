"""LRURec (Yue et al. 2024, arXiv 2310.02367): linear recurrent units (Orvieto et al. 2023) over histories, packed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from seqgraph_mamba4rec.base import NextItemModel, as_layers
from seqgraph_mamba4rec.blocks import init_normal


class LinearRecurrentUnit(nn.Module):
    """h[t] = lambda * h[t-1] + gamma * (B x[t]), y[t] = Re(C h[t]) + D x[t], complex and diagonal.

    lambda = exp(-exp(nu_log) + i exp(theta_log)) lies inside the unit circle, its modulus at first uniform over the
    ring between r_min and r_max; gamma starts at sqrt(1 - |lambda|^2) (Orvieto et al., equations 6 and 7). lambda is
    the same at every step, so sums over 1, 2, 4, ... past tokens double into each other: log2(L) passes, no padding.

    Args:
        d_model: D.
        d_state: complex states.
        r_min: smallest initial modulus.
        r_max: largest initial modulus.
    """

    def __init__(self, d_model: int, d_state: int, r_min: float = 0.8, r_max: float = 0.99) -> None:
        super().__init__()
        squared = torch.rand(d_state) * (r_max**2 - r_min**2) + r_min**2
        self.nu_log = nn.Parameter(torch.log(-0.5 * torch.log(squared)))
        self.theta_log = nn.Parameter(torch.log(torch.rand(d_state).clamp_min(1e-4) * 2 * math.pi))
        self.gamma_log = nn.Parameter(0.5 * torch.log(1 - squared))
        # Real and imaginary parts side by side: complex numbers have no bf16.
        self.in_proj = nn.Linear(d_model, 2 * d_state)
        self.out_proj = nn.Linear(2 * d_state, d_model)
        self.D = nn.Parameter(torch.randn(d_model))
        for parameter in (self.nu_log, self.theta_log, self.gamma_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor, cu_seqlens: Tensor, *, max_seqlen: int | None = None) -> Tensor:
        """(T, D) to (T, D), causal within the segments of cu_seqlens (S + 1,), however long."""
        real, imaginary = self.in_proj(x).float().chunk(2, -1)
        log_step = torch.complex(-self.nu_log.exp().float(), self.theta_log.exp().float())
        h = recur(torch.complex(real, imaginary) * self.gamma_log.exp(), log_step, cu_seqlens, max_seqlen)
        return self.out_proj(torch.cat([h.real, -h.imag], -1).to(x.dtype)) + self.D * x


def recur(x: Tensor, log_step: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
    """h[t] = exp(log_step) * h[t-1] + x[t] within each segment.

    Args:
        x: (T, N) complex.
        log_step: (N,) complex.
        cu_seqlens: segment borders, (S + 1,).
        max_seqlen: no segment is longer than this, where the host knows it.

    Returns:
        (T, N) complex.
    """
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
    starts = torch.repeat_interleave(cu_seqlens[:-1].long(), lengths, output_size=len(x))
    position = torch.arange(len(x), device=x.device) - starts
    longest = max_seqlen if max_seqlen is not None else int(lengths.max()) if len(lengths) else 0
    reach = 1
    while reach < longest:  # h holds the sum over the last ``reach`` tokens
        past = torch.cat([torch.zeros_like(x[:reach]), x[:-reach]])
        inside = (position >= reach)[:, None]
        x = x + torch.where(inside, past * torch.exp(log_step * reach), torch.zeros((), dtype=x.dtype, device=x.device))
        reach *= 2
    return x


class LRURec(NextItemModel):
    """Item embedding, linear recurrent units with feed-forward parts, and a tied softmax.

    Args:
        num_items: V.
        d_model: D, width.
        n_layers: blocks.
        d_state: complex states of a block; 2 D by default, as published.
        d_ffn: inner width of the feed-forward part; 4 D by default.
        dropout: on the embedding, the unit's output and twice in the feed-forward part.
    """

    def __init__(
        self,
        num_items: int,
        d_model: int = 64,
        n_layers: int = 2,
        d_state: int | None = None,
        d_ffn: int | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(num_items, d_model, dropout)
        mixers = [LinearRecurrentUnit(d_model, d_state or 2 * d_model) for _ in range(n_layers)]
        self.layers = as_layers(mixers, d_model, d_ffn, dropout)
        init_normal(self, std=0.02)
