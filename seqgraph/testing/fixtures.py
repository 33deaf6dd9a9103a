"""Pytest fixtures for plugin authors.

Put ``pytest_plugins = ["seqgraph.testing.fixtures"]`` into your ``conftest.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from seqgraph.plugin import manager
from seqgraph.plugin.manager import Manager, Record


@pytest.fixture
def empty_manager() -> Iterator[Manager]:
    """A manager without any plugin, not even the core's, in place of the process's own for one test."""
    mine = Manager(builtin=False, entry_points=())
    old = manager.use(mine)
    yield mine
    manager.use(old)


@pytest.fixture
def plugin_manager() -> Iterator[Manager]:
    """A manager with the core's own plugin only, in place of the process's own for one test."""
    mine = Manager(entry_points=())
    old = manager.use(mine)
    yield mine
    manager.use(old)


@pytest.fixture
def register_plugin() -> Iterator[Callable[..., Record]]:
    """A function like ``seqgraph.register`` whose plugins are gone after the test."""
    mine: list[tuple[Manager, str]] = []

    def register(plugin: Any, name: str | None = None) -> Record:
        target = manager.current()
        record = target.register(plugin, name)
        mine.append((target, record.name))
        return record

    yield register
    for target, name in reversed(mine):
        target.unregister(name)
