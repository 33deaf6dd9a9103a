"""The README is the manual: its Python blocks run as they stand, and its names exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", TEXT, re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_prints_what_it_says(number, tmp_path):
    """Line by line; numbers that come out of training may differ, and so may the films below them."""
    code, expected = EXAMPLES[number]
    if "ml-100k" in code:
        pytest.importorskip("recbole", reason="ml-100k is read from RecBole")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"GOMP_SPINCOUNT": "1000"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    for printed, told in zip(lines, expected.splitlines(), strict=True):
        if "recommend" in code and told.startswith(" "):
            assert re.fullmatch(r" *-?\d+\.\d\d  \S.*", printed)
            continue
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", told)
        for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(told), strict=True):
            assert abs(float(ours) - float(theirs)) < 0.15 * abs(float(theirs)) + 0.6


def test_every_example_was_found():
    assert len(EXAMPLES) == 4 == TEXT.count("```python")


def test_relative_links_lead_somewhere():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_that_the_readme_names_exist():
    from seqgraph.plugin import manager

    known = {entry.descriptor.name for entry in manager.entries("commands")}
    named = set(re.findall(r"^seqgraph ([a-z][a-z-]+)", TEXT, re.MULTILINE))
    named |= set(re.findall(r"(?<= )seqgraph ([a-z][a-z-]+) (?=runs)", TEXT))
    assert named and named <= known
