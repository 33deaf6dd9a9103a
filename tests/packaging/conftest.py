"""A built wheel, and distributions that are on the path as an installer would leave them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def put_on_path(tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    """``put_on_path(project)``: an environment in which the project counts as installed, from its sources."""

    def put_on_path(project: Path) -> dict[str, str]:
        table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        site = tmp_path / "site"
        info = site / f"{table['name'].replace('-', '_')}-{table['version']}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {table['name']}\nVersion: {table['version']}\n")
        points = table["entry-points"]["seqgraph.plugins"]
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[seqgraph.plugins]", *lines, ""]))
        path = os.pathsep.join([str(project / "src"), str(site)])
        return {**os.environ, "PYTHONPATH": path, "SEQGRAPH_STRICT_PLUGINS": "1", "OMP_NUM_THREADS": "1"}

    return put_on_path


@pytest.fixture
def run() -> Callable[..., str]:
    """``run(command, cwd=, env=)`` gives what a command that succeeds prints."""

    def run(*command: str | Path, **options) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=500, **options)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def python() -> str:
    """This interpreter."""
    return sys.executable
