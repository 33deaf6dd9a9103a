"""The S6 mixer of Mamba-1 (Gu and Dao 2023, arXiv 2312.00752), on packed streams and in either direction."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqgraph_kernels import causal_conv1d, selective_scan

OneDirection = Literal["forward", "reverse"]


class SelectiveSSM(nn.Module):
    """What one direction of an S6 block owns between its projections: convolution, selection, decay and skip.

    Parameter names, layouts and initial values are those of Mamba-1: ``conv1d`` (E, 1, W), ``x_proj``
    (R + 2N, E) with rows [dt; B; C], ``dt_proj`` (E, R), ``A_log`` (E, N), ``D`` (E,).

    Args:
        d_inner: E, channels.
        dt_rank: R, rank of the step size's projection.
        d_state: N, states a channel.
        d_conv: W, width of the causal convolution.
        dt_min: smallest initial step size.
        dt_max: largest initial step size; channels start log-uniformly in between.
        dt_init_floor: no initial step size is below it.
        conv_bias: whether the convolution has a bias.
    """

    def __init__(
        self,
        d_inner: int,
        dt_rank: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.d_inner, self.dt_rank, self.d_state, self.d_conv = d_inner, dt_rank, d_state, d_conv
        # Only its parameters are used: the kernel does not pad.
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, bias=conv_bias, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1, dtype=torch.float32)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self._init_dt(dt_min, dt_max, dt_init_floor)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def _init_dt(self, dt_min: float, dt_max: float, floor: float) -> None:
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(dt_min), math.log(dt_max)
        dt = torch.exp(torch.rand_like(self.dt_proj.bias) * (high - low) + low).clamp(min=floor)
        with torch.no_grad():
            # The inverse of softplus, so that softplus(bias) = dt.
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        # For callers that re-initialise every Linear: this bias carries the time scale.
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    def select(self, x: Tensor) -> dict[str, Any]:
        """The scan's arguments chosen by the convolved tokens x (T, E): dt (T, E), A (E, N), B, C (T, N), D, dt_bias.

        A, D and dt_bias stay in fp32 (or fp64) under autocast and in half-precision models.
        """
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        high = torch.promote_types(self.A_log.dtype, torch.float32)
        return {
            "dt": F.linear(dt, self.dt_proj.weight),
            "A": -torch.exp(self.A_log.to(high)),
            "B": B,
            "C": C,
            "D": self.D.to(high),
            "dt_bias": self.dt_proj.bias.to(high),
        }

    def convolve(self, x: Tensor, cu_seqlens: Tensor, direction: OneDirection) -> Tensor:
        """SiLU of the causal (or anti-causal) convolution of x (T, E) within each segment."""
        weight = self.conv1d.weight[:, 0]
        return causal_conv1d(x, weight, self.conv1d.bias, cu_seqlens=cu_seqlens, direction=direction, activation="silu")

    def scan(self, x: Tensor, z: Tensor | None, cu_seqlens: Tensor, direction: OneDirection) -> Tensor:
        """One direction from projected tokens x to gated output, both (T, E); z (T, E) is the gate's input."""
        x = self.convolve(x, cu_seqlens, direction)
        y = selective_scan(x, z=z, dt_softplus=True, cu_seqlens=cu_seqlens, direction=direction, **self.select(x))
        return cast(Tensor, y)


class Mamba(SelectiveSSM):
    """Mamba-1's block: in_proj, convolution, selective scan, gate, out_proj.

    Loads ``mamba_ssm.Mamba`` weights name by name: in addition to :class:`SelectiveSSM`'s, ``in_proj`` (2E, D)
    with rows [x; z] and ``out_proj`` (D, E).

    Args:
        d_model: D, token width.
        d_state: N, states a channel.
        d_conv: W, width of the causal convolution.
        expand: E = expand * D.
        dt_rank: R, or "auto" for ceil(D / 16).
        dt_min: smallest initial step size.
        dt_max: largest initial step size.
        conv_bias: whether the convolution has a bias.
        bias: whether the two projections have one.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        super().__init__(
            expand * d_model,
            rank,
            d_state=d_state,
            d_conv=d_conv,
            dt_min=dt_min,
            dt_max=dt_max,
            conv_bias=conv_bias,
        )
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def forward(self, u: Tensor, cu_seqlens: Tensor, direction: OneDirection = "forward") -> Tensor:
        """Mix the tokens of each segment.

        Args:
            u: tokens, (T, D).
            cu_seqlens: segment borders, (S + 1,) int32.
            direction: "forward" sees what came before in the segment, "reverse" what comes after.

        Returns:
            (T, D).
        """
        x, z = self.in_proj(u).chunk(2, dim=-1)
        return self.out_proj(self.scan(x, z, cu_seqlens, direction))
