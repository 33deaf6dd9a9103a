"""Two directions in one block; what they share and how they merge are values."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from seqgraph.encode.mixer import Mamba, SelectiveSSM
from seqgraph_kernels import causal_conv1d, selective_scan

Direction = Literal["both", "forward", "reverse"]
Share = Literal["none", "projections", "all"]
Merge = Literal["sum", "mean", "concat", "gate"]


class BiMamba(nn.Module):
    """A bidirectional S6 block without flipped copies and without padding.

    Parameters live under ``mamba_fwd`` and ``mamba_rev`` (the names of Caduceus and LC-PLM).

    Args:
        d_model: D, token width.
        direction: "both", or one of "forward" and "reverse" (then there is one Mamba and nothing to share).
        share: what the second direction takes from the first. "none": nothing, two whole blocks (GMN, untied
            Caduceus). "projections": in_proj and out_proj (BiMamba-S of LC-PLM); ``mamba_rev`` then owns only
            its convolution, x_proj, dt_proj, A_log and D. "all": every parameter.
        merge: "sum" or "mean" of the directions, "concat" (both side by side through a linear layer, 2D to D), or
            "gate" (a learnt mixture g * forward + (1 - g) * reverse with g = sigmoid(linear of both)).
        **mamba: the arguments of :class:`Mamba`.

    With shared projections and a sum or mean, one in_proj and one out_proj serve both directions: out_proj is
    linear and the gate is the same, so out_proj(y_f * silu(z)) + out_proj(y_r * silu(z)) is
    out_proj((y_f + y_r) * silu(z)), half the matrix work. A bias of out_proj is thus added once.
    """

    def __init__(
        self,
        d_model: int,
        *,
        direction: Direction = "both",
        share: Share = "projections",
        merge: Merge = "sum",
        **mamba: Any,
    ) -> None:
        super().__init__()
        _check("direction", direction, ("both", "forward", "reverse"))
        _check("share", share, ("none", "projections", "all"))
        _check("merge", merge, ("sum", "mean", "concat", "gate"))
        self.direction, self.share, self.merge = direction, share, merge
        if direction != "reverse":
            self.mamba_fwd = Mamba(d_model, **mamba)
        if direction == "reverse" or (direction == "both" and share == "none"):
            self.mamba_rev: Mamba | SelectiveSSM = Mamba(d_model, **mamba)
        elif direction == "both" and share == "projections":
            own = {k: v for k, v in mamba.items() if k not in ("expand", "dt_rank", "bias")}
            self.mamba_rev = SelectiveSSM(self.mamba_fwd.d_inner, self.mamba_fwd.dt_rank, **own)
        if direction == "both" and merge in ("concat", "gate"):
            self.merge_proj = nn.Linear(2 * d_model, d_model)

    def forward(self, u: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Mix tokens u (T, D) within the segments of cu_seqlens, (S + 1,) int32. Returns (T, D)."""
        if self.direction == "forward":
            return self.mamba_fwd(u, cu_seqlens, "forward")
        if self.direction == "reverse":
            return self.mamba_rev(u, cu_seqlens, "reverse")
        if self.share == "none":
            return self._merge(self.mamba_fwd(u, cu_seqlens, "forward"), self.mamba_rev(u, cu_seqlens, "reverse"))
        summed = self.merge in ("sum", "mean")
        y = self._scan_both(u, cu_seqlens, combine="sum" if summed else "none")
        out = self.mamba_fwd.out_proj(y)
        if self.merge == "sum":
            return out
        return out / 2 if self.merge == "mean" else self._merge(out[0], out[1])

    def _scan_both(self, u: Tensor, cu_seqlens: Tensor, combine: Literal["sum", "none"]) -> Tensor:
        """Both directions from one projection of the tokens, in one convolution and one scan."""
        fwd = self.mamba_fwd
        rev: SelectiveSSM = fwd if self.share == "all" else self.mamba_rev
        x, z = fwd.in_proj(u).chunk(2, dim=-1)
        x_fwd, x_rev = causal_conv1d(
            x,
            fwd.conv1d.weight[:, 0],
            fwd.conv1d.bias,
            cu_seqlens=cu_seqlens,
            direction="both",
            weight_rev=rev.conv1d.weight[:, 0],
            bias_rev=rev.conv1d.bias,
            activation="silu",
        )
        reverse: dict[str, Any] = {f"{name}_rev": value for name, value in rev.select(x_rev).items()}
        y = selective_scan(
            x_fwd,
            z=z,
            dt_softplus=True,
            cu_seqlens=cu_seqlens,
            direction="both",
            x_rev=x_rev,
            combine=combine,
            **fwd.select(x_fwd),
            **reverse,
        )
        return cast(Tensor, y)

    def _merge(self, forward: Tensor, reverse: Tensor) -> Tensor:
        if self.merge == "sum":
            return forward + reverse
        if self.merge == "mean":
            return (forward + reverse) / 2
        mixed = self.merge_proj(torch.cat([forward, reverse], dim=-1))
        if self.merge == "concat":
            return mixed
        gate = torch.sigmoid(mixed)
        return gate * forward + (1 - gate) * reverse


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
