"""Hydra's quasiseparable mixer (Hwang et al. 2024, arXiv 2407.09941) on packed streams."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqgraph.encode.ssd import RMSNormGated, check_heads, initial_dt_bias
from seqgraph_kernels import causal_conv1d, ssd


class Hydra(nn.Module):
    """Mamba-2 in both directions at once: own B, C and dt each way, one x, A and gate, and a diagonal of its own.

    ``y_t = forward_{t-1} + reverse_{t+1} + (fc_D(x_t) + D) x_t``, then ``norm(y) silu(z)`` and ``out_proj``. The
    convolution looks (W - 1) / 2 tokens to either side. Parameter names, layouts and initial values are those of the
    release: ``in_proj`` with rows [z; x; B, C forward; B, C reverse; dt forward; dt reverse], ``conv1d``
    (E + 4GN, 1, W) over [x; B, C; B, C], ``dt_bias``, ``A_log`` and ``D`` (H,), ``fc_D`` (H, E), ``norm`` (E,),
    ``out_proj`` (D, E), ``init_states`` (H, P, N).

    Args:
        d_model: D, token width.
        d_state: N, states a channel.
        d_conv: W, odd width of the convolution.
        expand: E = expand * D.
        headdim: P, channels of a head; H = E / P.
        ngroups: G, sets of B and C in each direction.
        dt_min: smallest initial step size.
        dt_max: largest initial step size; heads start log-uniformly in between.
        dt_init_floor: no initial step size is below it.
        learnable_init_states: whether both directions start each segment from a learnt state instead of zeros.
        conv_bias: whether the convolution has a bias.
        bias: whether in_proj and out_proj have one.

    Raises:
        ValueError: when W is even, E is no multiple of P, or H none of G.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        d_conv: int = 7,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        learnable_init_states: bool = False,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if d_conv % 2 == 0:
            raise ValueError(f"a convolution to either side has an odd width, not {d_conv}")
        self.d_model, self.d_inner = d_model, expand * d_model
        self.d_state, self.d_conv, self.headdim, self.ngroups = d_state, d_conv, headdim, ngroups
        self.nheads = check_heads(self.d_inner, headdim, ngroups)
        self.d_mixed = self.d_inner + 4 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + self.d_mixed + 2 * self.nheads, bias=bias)
        # Only its parameters are used: the kernel does not pad.
        self.conv1d = nn.Conv1d(
            self.d_mixed, self.d_mixed, d_conv, groups=self.d_mixed, bias=conv_bias, padding=d_conv // 2
        )
        self.dt_bias = initial_dt_bias(self.nheads, dt_min, dt_max, dt_init_floor)
        self.A_log = nn.Parameter(torch.zeros(self.nheads))
        self.D = nn.Parameter(torch.ones(self.nheads))
        undecayed = [self.dt_bias, self.A_log, self.D]
        self.init_states: nn.Parameter | None = None
        if learnable_init_states:
            self.init_states = nn.Parameter(torch.zeros(self.nheads, headdim, d_state))
            undecayed.append(self.init_states)
        self.fc_D = nn.Linear(self.d_inner, self.nheads, bias=False)
        self.norm = RMSNormGated(self.d_inner, norm_before_gate=True)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        for parameter in undecayed:
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, u: Tensor, cu_seqlens: Tensor, *, max_seqlen: int | None = None) -> Tensor:
        """Mix tokens u (T, D) within the segments of cu_seqlens, (S + 1,) int32. Returns (T, D). ``max_seqlen`` is not
        needed."""
        z, mixed, dt = self.in_proj(u).split([self.d_inner, self.d_mixed, 2 * self.nheads], dim=-1)
        x, *states = self.convolve(mixed, cu_seqlens).split([self.d_inner, *[self.ngroups * self.d_state] * 4], dim=-1)
        B, C, B_rev, C_rev = (s.unflatten(-1, (self.ngroups, self.d_state)) for s in states)
        dt, dt_rev = dt.chunk(2, dim=-1)
        high = torch.promote_types(self.A_log.dtype, torch.float32)
        start = None
        if self.init_states is not None:
            start = self.init_states.to(high).expand(2, len(cu_seqlens) - 1, -1, -1, -1)
        y = ssd(
            x.unflatten(-1, (self.nheads, self.headdim)),
            dt,
            -torch.exp(self.A_log.to(high)),
            B,
            C,
            D=F.linear(x, self.fc_D.weight, self.D),
            dt_bias=self.dt_bias.to(high),
            dt_softplus=True,
            cu_seqlens=cu_seqlens,
            direction="both",
            dt_rev=dt_rev,
            B_rev=B_rev,
            C_rev=C_rev,
            shift=True,
            initial_state=start,
        )
        return self.out_proj(self.norm(cast(Tensor, y).flatten(-2), z))

    def convolve(self, mixed: Tensor, cu_seqlens: Tensor) -> Tensor:
        """SiLU of the convolution to either side of (T, E + 4GN) within each segment."""
        half = self.d_conv // 2
        weight = self.conv1d.weight[:, 0]
        # A causal convolution of the taps up to the token itself, and a reverse one of those after it.
        after = F.pad(weight[:, half + 1 :].flip(1), (0, 1))
        before = weight[:, : half + 1]
        left, right = causal_conv1d(mixed, before, cu_seqlens=cu_seqlens, direction="both", weight_rev=after)
        total = left.to(torch.promote_types(left.dtype, torch.float32)) + right
        if self.conv1d.bias is not None:
            total = total + self.conv1d.bias
        return F.silu(total).to(mixed.dtype)
