"""docs/embed-a-proteome.md is run."""

from __future__ import annotations

import re

import pytest


def _shape(lines):
    """Without the numbers that depend on weights and machine."""
    return [re.sub(r"-?\d+(\.\d+)?", "#", line).strip() for line in lines if line.strip()]


@pytest.mark.slow
def test_the_page_prints_what_it_says(run_page):
    pytest.importorskip("matplotlib")
    folder = run_page("embed-a-proteome.md", "families.fasta", _shape)
    for picture in ("families.png", "if1.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
