"""docs/pre-train-on-your-proteins.md is run."""

from __future__ import annotations

import re

import pytest

_NUMBER = re.compile(r"-?\d[\d,.]*(e[-+]\d+)?")


def _shape(lines):
    """Without numbers, stars of the best epochs, and the widths of columns that hang on them."""
    masked = [_NUMBER.sub("#", re.sub(r"fingerprint \w+|\*$", "", line.rstrip())) for line in lines]
    return [" ".join(line.split()) for line in masked if line.strip()]


@pytest.mark.slow
def test_the_page_prints_what_it_says(run_page):
    run_page("pre-train-on-your-proteins.md", "proteins.fasta", _shape)


def test_the_page_names_what_exists(repo_root):
    from seqgraph_lc_plm.config import InteractionsConfig
    from seqgraph_lc_plm.probes.command import TASKS

    page = (repo_root / "docs" / "pre-train-on-your-proteins.md").read_text(encoding="utf-8")
    fields = InteractionsConfig.model_fields
    rows = dict(re.findall(r"^\| `data\.(\w+)`[^|]*\| ([^ |]+) \|", page, re.MULTILINE))
    for name in ("proteins", "walks", "min_score"):
        assert float(rows[name]) == fields[name].default
    assert (fields["p"].default, fields["q"].default) == (4, 1)
    assert all(re.search(rf"^\| `{task}` \|", page, re.MULTILINE) for task in TASKS)
