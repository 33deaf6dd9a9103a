"""LC-PLM read off the formulas: loops over positions, flips whole sequences, gates and projects each direction."""

from __future__ import annotations

import torch
from torch import Tensor


def _rms_norm(r: Tensor, weight: Tensor) -> Tensor:
    return r / torch.sqrt((r * r).mean(-1, keepdim=True) + 1e-5) * weight


def _direction(p: dict[str, Tensor], name: str, x: Tensor, z: Tensor, w_out: Tensor) -> Tensor:
    """One direction on its own order of positions: x, z (L, E) -> (L, D)."""
    weight, bias = p[f"{name}.conv1d.weight"], p[f"{name}.conv1d.bias"]
    length, width = len(x), weight.shape[-1]
    convolved = torch.zeros_like(x)
    for t in range(length):
        convolved[t] = bias
        for k in range(width):
            s = t - (width - 1) + k
            if s >= 0:
                convolved[t] = convolved[t] + weight[:, 0, k] * x[s]
    x = convolved * torch.sigmoid(convolved)
    n = p[f"{name}.A_log"].shape[1]
    mixed = x @ p[f"{name}.x_proj.weight"].T
    rank = mixed.shape[1] - 2 * n
    B, C = mixed[:, rank : rank + n], mixed[:, rank + n :]
    delta = torch.log1p(torch.exp(mixed[:, :rank] @ p[f"{name}.dt_proj.weight"].T + p[f"{name}.dt_proj.bias"]))
    A = -torch.exp(p[f"{name}.A_log"])
    state = torch.zeros_like(A)
    rows = []
    for t in range(length):
        state = torch.exp(delta[t][:, None] * A) * state + (delta[t] * x[t])[:, None] * B[t][None, :]
        rows.append((state * C[t][None, :]).sum(1) + p[f"{name}.D"] * x[t])
    y = torch.stack(rows)
    return (y * z * torch.sigmoid(z)) @ w_out.T


def lc_plm(weights: dict[str, Tensor], ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One sequence of token ids (L,) through weights by the published names without prefixes.

    Returns:
        logits (L, V), and the residual stream [embedding, after block 1, ..., output of the final norm], each (L, D).
    """
    weights = {name: value.double() for name, value in weights.items()}
    residual = weights["embedding.weight"][ids]
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    states = [residual]
    for i in range(depth):
        mixer = f"layers.{i}.mixer."
        p = {name.removeprefix(mixer): value for name, value in weights.items() if name.startswith(mixer)}
        u = _rms_norm(residual, weights[f"layers.{i}.norm.weight"])
        own = "mamba_rev" if "mamba_rev.in_proj.weight" in p else "mamba_fwd"
        x, z = (u @ p["mamba_fwd.in_proj.weight"].T).chunk(2, dim=-1)
        forward = _direction(p, "mamba_fwd", x, z, p["mamba_fwd.out_proj.weight"])
        x, z = (u.flip(0) @ p[f"{own}.in_proj.weight"].T).chunk(2, dim=-1)
        backward = _direction(p, "mamba_rev", x, z, p[f"{own}.out_proj.weight"]).flip(0)
        residual = residual + forward + backward
        states.append(residual)
    states[-1] = _rms_norm(residual, weights["norm_f.weight"])
    return states[-1] @ weights["lm_head.weight"].T, states
