"""docs/pre-train-on-your-proteins.md is run: its ``console`` and ``python`` blocks in order, in one folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from seqgraph.train import checkpoint
from seqgraph_lc_plm.model import LcPlm

_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"-?\d[\d,.]*(e[-+]\d+)?")


@pytest.fixture
def folder(tmp_path, repo_root):
    """What the page's first block makes, with the preset's shape and untrained weights."""
    torch.manual_seed(0)
    fields = {"d_model": 64, "n_layers": 2, "d_state": 8, "vocab_size": 33}
    checkpoint.save(tmp_path / "runs" / "lc-plm", LcPlm(**fields), name="lc-plm", fields=fields)
    shutil.copy(repo_root / "examples" / "demo" / "families.fasta", tmp_path / "proteins.fasta")
    return tmp_path


def _run(command, folder):
    """What it prints, on both streams, stderr first; ``seqgraph`` is this interpreter's."""
    if isinstance(command, str):
        command = ["bash", "-c", re.sub(r"^seqgraph\b", f"{sys.executable} -m seqgraph", command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr[-3000:]
    return (done.stderr + done.stdout).splitlines()


def _shape(lines):
    """Without numbers, stars of the best epochs, and the widths of columns that hang on them."""
    masked = [_NUMBER.sub("#", re.sub(r"fingerprint \w+|\*$", "", line.rstrip())) for line in lines]
    return [" ".join(line.split()) for line in masked if line.strip()]


@pytest.mark.slow
def test_the_page_prints_what_it_says(folder, repo_root):
    page = (repo_root / "docs" / "pre-train-on-your-proteins.md").read_text(encoding="utf-8")
    blocks = _BLOCK.findall(page)
    assert sum(kind == "console" for kind, _ in blocks) >= 7
    for kind, text in blocks:
        if kind == "python":
            assert _run([sys.executable, "-c", text], folder) == []
            continue
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, *told = part.splitlines()
            assert _shape(_run(command, folder)) == _shape(told), command


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
