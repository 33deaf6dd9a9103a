"""The arguments of a short convolution as the backends see them: checked, and resolved per direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from seqgraph_kernels.packing import directions_of


class Pass(NamedTuple):
    """What one direction reads besides x. ``reverse`` says whether its past is what comes later."""

    weight: Tensor
    bias: Tensor | None
    reverse: bool


@dataclass(frozen=True)
class ConvArguments:
    """Tensors of :func:`seqgraph_kernels.causal_conv1d`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    weight_rev: Tensor | None
    bias_rev: Tensor | None
    cu_seqlens: Tensor
    direction: str
    activation: str

    def passes(self) -> list[Pass]:
        """One entry per direction, the second with its own tensors where it has any."""
        tensors = [
            (self.weight, self.bias),
            (
                self.weight if self.weight_rev is None else self.weight_rev,
                self.bias if self.bias_rev is None else self.bias_rev,
            ),
        ]
        return [Pass(*tensors[i], reverse) for i, reverse in enumerate(directions_of(self.direction))]
