"""What a model hands to the conformance suite: small arguments and small inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ModelExample:
    """Tiny inputs of one model, made by the plugin that owns it.

    Attributes:
        kwargs: constructor arguments of a model of some thousand parameters, deterministic in ``eval()``.
        items: seed -> ragged examples, the smallest that is allowed among them.
        collate: examples -> one batch.
        outputs: (model, batch) -> one floating tensor an example: what batching must not change.
        relabel: (example, generator) -> (the same example with its nodes renumbered, a function that brings the
            output of the renumbered one back to the old numbers); None where there are no labels to change.
        tolerance: largest absolute difference that is still the same.
    """

    kwargs: dict[str, Any]
    items: Callable[[int], list[Any]]
    collate: Callable[[list[Any]], Any]
    outputs: Callable[[nn.Module, Any], list[Tensor]]
    relabel: Callable[[Any, Any], tuple[Any, Callable[[Tensor], Tensor]]] | None = None
    tolerance: float = 1e-5
