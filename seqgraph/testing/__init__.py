"""For plugin authors: the conformance suite and pytest fixtures.

``check_model("my-model")`` runs every check on a registered model; ``CHECKS`` has them by name, to parametrise over.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqgraph.testing.conformance import CHECKS, check_model
    from seqgraph.testing.example import ModelExample

__all__ = ["CHECKS", "ModelExample", "check_model"]

_HOMES = {"CHECKS": "conformance", "check_model": "conformance", "ModelExample": "example"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
