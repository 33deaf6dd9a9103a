"""Read-out heads."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with an activation and dropout between them, and dropout in front if asked for.

    Args:
        d_in: input width.
        d_out: output width.
        n_layers: number of linear layers; 1 is a plain projection.
        d_hidden: width in between, ``d_in`` by default.
        dropout: probability, after each activation.
        input_dropout: probability, on the input; with the same ``dropout`` it stands before every linear layer.
        activation: "gelu" (exact), "relu" or "silu".
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        n_layers: int = 2,
        d_hidden: int | None = None,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
    ) -> None:
        super().__init__()
        if n_layers < 1:
            raise ValueError("n_layers must be at least 1")
        act = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}[activation]
        widths = [d_in, *[d_hidden or d_in] * (n_layers - 1), d_out]
        self.input_dropout = nn.Dropout(input_dropout)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(a, b))
            if i < n_layers - 1:
                layers += [act(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        return self.layers(self.input_dropout(x))
