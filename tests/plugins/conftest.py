"""Fake distributions on disk, as an installer would leave them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

GOOD = """
from seqgraph.plugin import Model, hookimpl

@hookimpl
def seqgraph_models():
    yield Model(name="good", domain="test", summary="Works.", target="json:JSONDecoder", config="json:JSONEncoder")
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder on the import path; modules imported from it are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Callable[..., None]:
    """``install(name, source)``: a distribution "fake-NAME" 1.2 with a module and an entry point "NAME" for it."""

    def install(name: str, source: str, *, metadata: str = "", entry_point: str | None = None) -> None:
        module = f"fake_{name.replace('-', '_')}"
        (site / f"{module}.py").write_text(dedent(source))
        info = site / f"{module}-1.2.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: fake-{name}\nVersion: 1.2\n{dedent(metadata)}"
        (info / "METADATA").write_text(text)
        (info / "entry_points.txt").write_text(f"[seqgraph.plugins]\n{entry_point or name} = {module}\n")

    return install


@pytest.fixture
def good(install: Callable[..., None]) -> None:
    """The distribution "fake-good", whose model "good" must go on working whatever stands beside it."""
    install("good", GOOD)
