"""A toy domain, in a plugin manager of its own, for the trainer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqgraph.plugin import manager
from seqgraph.plugin.manager import Manager

TOY = Path(__file__).with_name("toy_plugin.py")


@pytest.fixture(autouse=True)
def toy():
    """The only plugin besides the core's; its module."""
    import sys

    mine = Manager(entry_points=())
    mine.load(TOY)
    old = manager.use(mine)
    yield sys.modules["toy_plugin"]
    manager.use(old)


@pytest.fixture
def toy_config():
    """A run configuration of some steps; keywords "section.key" change it."""

    def make(**changes):
        config = {
            "model": {"name": "toy-model"},
            "data": {"name": "toy-data"},
            "task": {"name": "toy-task"},
            "train": {"epochs": 3, "max_tokens": 32, "lr": 1e-2, "patience": None, "accelerator": "cpu"},
            "seed": [0],
        }
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                config[section][name] = value
            else:
                config[section] = value
        return config

    return make
