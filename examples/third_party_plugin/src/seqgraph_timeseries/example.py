"""Tiny inputs for the conformance suite."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqgraph.stream import TokenStream
from seqgraph.testing import ModelExample


def _items(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(variates, 12, generator=generator).cumsum(1) for variates in (3, 1, 7)]


def _outputs(model: nn.Module, batch: TokenStream) -> list[Tensor]:
    return list(model(batch).split(batch.lengths.tolist()))


EXAMPLE = ModelExample(
    kwargs={"lookback": 12, "horizon": 4, "d_model": 8, "n_layers": 2, "d_state": 4},
    items=_items,
    collate=TokenStream.from_ragged,
    outputs=_outputs,
)
