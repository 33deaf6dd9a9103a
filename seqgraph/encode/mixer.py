"""The S6 mixer of Mamba-1 (Gu and Dao 2023, arXiv 2312.00752), on packed streams and in either direction."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqgraph.encode.projection import split_linear, tap
from seqgraph.encode.state import State, last_inputs
from seqgraph_kernels import causal_conv1d, causal_conv1d_step, selective_scan, selective_scan_step

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
        """The scan's arguments for the convolved tokens x (T, E): x, dt (T, E), A (E, N), B, C (T, N), D, dt_bias.

        A, D and dt_bias stay in fp32 (or fp64) under autocast and in half-precision models.
        """
        x, chosen = tap(self.x_proj, x)
        dt, B, C = chosen.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        high = torch.promote_types(self.A_log.dtype, torch.float32)
        return {
            "x": x,
            "dt": F.linear(dt, self.dt_proj.weight),
            "A": -torch.exp(self.A_log.to(high)),
            "B": B,
            "C": C,
            "D": self.D.to(high),
            "dt_bias": self.dt_proj.bias.to(high),
        }

    def convolve(self, x: Tensor, cu_seqlens: Tensor, direction: OneDirection) -> Tensor:
        """SiLU of the causal (or anti-causal) convolution of x (T, E) within each segment."""
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        y = causal_conv1d(x, weight, bias, cu_seqlens=cu_seqlens, direction=direction, activation="silu")
        return cast(Tensor, y)

    def scan(
        self, x: Tensor, z: Tensor | None, cu_seqlens: Tensor, direction: OneDirection, max_seqlen: int | None = None
    ) -> Tensor:
        """One direction from projected tokens x to gated output, both (T, E); z (T, E) is the gate's input."""
        x = self.convolve(x, cu_seqlens, direction)
        y = selective_scan(
            z=z, dt_softplus=True, cu_seqlens=cu_seqlens, direction=direction, max_seqlen=max_seqlen, **self.select(x)
        )
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

    def forward(
        self, u: Tensor, cu_seqlens: Tensor, direction: OneDirection = "forward", *, max_seqlen: int | None = None
    ) -> Tensor:
        """Mix the tokens of each segment.

        Args:
            u: tokens, (T, D).
            cu_seqlens: segment borders, (S + 1,) int32.
            direction: "forward" sees what came before in the segment, "reverse" what comes after.
            max_seqlen: no segment is longer than this, if the host knows.

        Returns:
            (T, D).
        """
        x, z = split_linear(self.in_proj, u, [self.d_inner, self.d_inner])
        return self.out_proj(self.scan(x, z, cu_seqlens, direction, max_seqlen))

    def scan_both(
        self,
        u: Tensor,
        cu_seqlens: Tensor,
        reverse: SelectiveSSM,
        combine: Literal["sum", "none"],
        *,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Both directions from one projection of the tokens, in one convolution and one scan.

        Args:
            u: tokens, (T, D).
            cu_seqlens: segment borders, (S + 1,) int32.
            reverse: whose parameters the second direction has; may be this block.
            combine: "sum" or "none".
            max_seqlen: no segment is longer than this, if the host knows.

        Returns:
            What ``out_proj`` is to be applied to: (T, E) for "sum", (2, T, E) (forward, reverse) for "none".
        """
        x, z = split_linear(self.in_proj, u, [self.d_inner, self.d_inner])
        x_fwd, x_rev = causal_conv1d(
            x,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            cu_seqlens=cu_seqlens,
            direction="both",
            weight_rev=reverse.conv1d.weight.squeeze(1),
            bias_rev=reverse.conv1d.bias,
            activation="silu",
        )
        own: dict[str, Any] = {f"{name}_rev": value for name, value in reverse.select(x_rev).items()}
        y = selective_scan(
            z=z,
            dt_softplus=True,
            cu_seqlens=cu_seqlens,
            direction="both",
            combine=combine,
            max_seqlen=max_seqlen,
            **self.select(x_fwd),
            **own,
        )
        return cast(Tensor, y)

    # ------------------------------------------------------------------ token by token
    def initial_state(self, batch: int) -> State:
        """The state before the first token, of ``batch`` sequences: zeros, see :meth:`step`."""
        weight = self.in_proj.weight
        high = torch.promote_types(weight.dtype, torch.float32)
        return {
            "conv": weight.new_zeros(batch, self.d_inner, self.d_conv - 1),
            "ssm": weight.new_zeros(batch, self.d_inner, self.d_state, dtype=high),
        }

    def prefill(self, u: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, State]:
        """As :meth:`forward`, with the state after each of the S segments, for :meth:`step`."""
        x, z = split_linear(self.in_proj, u, [self.d_inner, self.d_inner])
        conv = last_inputs(x, cu_seqlens, self.d_conv)
        x = self.convolve(x, cu_seqlens, "forward")
        y, ssm = selective_scan(z=z, dt_softplus=True, cu_seqlens=cu_seqlens, return_final_state=True, **self.select(x))
        return self.out_proj(y), {"conv": conv, "ssm": ssm}

    def step(self, u: Tensor, state: State, *, inplace: bool = False) -> tuple[Tensor, State]:
        """Read the next token of each sequence.

        Args:
            u: tokens, (B, D).
            state: "conv" (B, E, W - 1), the convolution's last inputs, and "ssm" (B, E, N).
            inplace: overwrite the state, without gradients.

        Returns:
            (B, D) and the new state.
        """
        x, z = split_linear(self.in_proj, u, [self.d_inner, self.d_inner])
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        x, conv = causal_conv1d_step(x, weight, bias, state["conv"], activation="silu", inplace=inplace)
        y, ssm = selective_scan_step(state=state["ssm"], z=z, dt_softplus=True, inplace=inplace, **self.select(x))
        return self.out_proj(y), {"conv": conv, "ssm": ssm}
