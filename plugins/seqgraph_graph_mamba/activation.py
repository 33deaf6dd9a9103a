"""Activations by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["relu", "gelu"]


def make_activation(name: Activation) -> nn.Module:
    """ "relu", or "gelu" (exact)."""
    return nn.GELU() if name == "gelu" else nn.ReLU()
