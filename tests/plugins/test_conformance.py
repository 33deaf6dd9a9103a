"""The conformance suite on every registered model: a new plugin is tested without writing a test."""

from __future__ import annotations

import pytest

from seqgraph.plugin import manager
from seqgraph.testing import CHECKS, check_model

MODELS = [entry for entry in manager.entries("models") if entry.descriptor.example]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.descriptor.name)
def test_model(entry: manager.Entry, check: str) -> None:
    if entry.status == "needs extra":
        pytest.skip(f"{entry.reason}; {entry.cure}")
    check_model(entry.descriptor.name, [check])


def test_every_model_has_an_example() -> None:
    assert [e.descriptor.name for e in manager.entries("models") if not e.descriptor.example] == []
    assert {e.record.name for e in MODELS} >= {"graph-mamba", "lc-plm", "mamba4rec"}
