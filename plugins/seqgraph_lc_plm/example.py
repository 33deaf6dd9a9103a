"""Tiny inputs of the model, for the conformance suite."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor, nn

from seqgraph.stream import TokenStream
from seqgraph.testing.example import ModelExample
from seqgraph.tokenize.protein import ProteinAlphabet


def _items(seed: int) -> list[str]:
    """Proteins of 1 to 40 residues."""
    draw = random.Random(seed)
    return ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=length)) for length in (7, 1, 40, 3, 21)]


def _collate(examples: list[Any]) -> TokenStream:
    return ProteinAlphabet().encode(examples)


def _outputs(model: nn.Module, batch: TokenStream) -> list[Tensor]:
    """Logits of each protein, (L + 2, vocab_size)."""
    return list(model(batch).split(batch.lengths.tolist()))


EXAMPLE = ModelExample(
    kwargs={"d_model": 16, "n_layers": 2, "d_state": 4, "vocab_size": 33},
    items=_items,
    collate=_collate,
    outputs=_outputs,
)

ESM2 = ModelExample(
    kwargs={"d_model": 16, "n_layers": 2, "heads": 4},
    items=_items,
    collate=_collate,
    outputs=_outputs,
)
