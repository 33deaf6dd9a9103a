"""A tiny Mamba4Rec and tiny histories for the conformance suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqgraph.stream import TokenStream
from seqgraph.testing.example import ModelExample
from seqgraph_mamba4rec.model import Mamba4Rec

_ITEMS = 23


def _items(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(_ITEMS, (length,), generator=generator) for length in (1, 7, 2, 12)]


def _outputs(model: Any, stream: TokenStream) -> list[Tensor]:
    assert isinstance(model, Mamba4Rec)
    return list(model.scores(model.encode_users(stream)))


EXAMPLE = ModelExample(
    kwargs={"num_items": _ITEMS, "d_model": 16, "n_layers": 2, "d_state": 4, "dropout": 0.1},
    items=_items,
    collate=TokenStream.from_ragged,
    outputs=_outputs,
)
