"""The tables of results are made of the runs beside them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_graphs_page_is_what_its_runs_make(tmp_path):
    for name in ("graphs.md", "graphs-runs.json"):
        shutil.copy(RESULTS / name, tmp_path)
    command = [sys.executable, str(ROOT / "benchmarks" / "graph" / "collect.py"), "--results", str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)
    for name in ("graphs.md", "graphs-runs.json"):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text(), f"run {command[1]} on {name}"


def test_a_run_has_no_paths_of_a_machine():
    for run in json.loads((RESULTS / "graphs-runs.json").read_text()):
        for word in f"{run['command']} {run['call']}".split():
            assert not word.startswith(("/", ".")), (run["run"], word)


@pytest.mark.parametrize("name", ["proteins", "recommendation"])
def test_a_page_has_the_notes_that_it_is_made_with(name):
    """What is written into the page alone is lost when it is made anew."""
    page = set((RESULTS / f"{name}.md").read_text().splitlines())
    notes = (ROOT / "benchmarks" / name / "notes.md").read_text().splitlines()
    assert len(notes) > 50 and [line for line in notes if line not in page] == []
