"""Running the program in this process, and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from seqgraph.cli.main import main


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``cli("models", "--json")`` in this process."""

    def run(*argv: str) -> Result:
        code = main(list(argv))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Result]:
    """``program("models", NO_COLOR="1")`` in a process of its own, started in an empty folder."""

    def run(*argv: str, python: str | None = None, **environ: str) -> Result:
        command = [sys.executable, *(["-c", python] if python else ["-m", "seqgraph", *argv])]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, **environ}
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
