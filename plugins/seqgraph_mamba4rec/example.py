"""Tiny models and tiny histories for the conformance suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqgraph.stream import TokenStream
from seqgraph.testing.example import ModelExample
from seqgraph_mamba4rec.base import NextItemModel

_ITEMS = 23


def _items(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(_ITEMS, (length,), generator=generator) for length in (1, 7, 2, 12)]


def _outputs(model: Any, stream: TokenStream) -> list[Tensor]:
    assert isinstance(model, NextItemModel)
    return list(model.scores(model.encode_users(stream)))


def _example(**kwargs: Any) -> ModelExample:
    shared = {"num_items": _ITEMS, "d_model": 16, "dropout": 0.1}
    return ModelExample(kwargs=shared | kwargs, items=_items, collate=TokenStream.from_ragged, outputs=_outputs)


EXAMPLE = _example(n_layers=2, d_state=4)
SASREC = _example(n_layers=2, max_length=16)
GRU4REC = _example(d_hidden=24)
LRUREC = _example(d_state=8)
BIMAMBA4REC = _example(d_state=4)
