"""docs/embed-a-proteome.md is run: its ``console`` and ``python`` blocks in order, in one folder."""

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
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@pytest.fixture
def folder(tmp_path, repo_root):
    """What the page's first block makes, with the preset's shape and untrained weights."""
    torch.manual_seed(0)
    fields = {"d_model": 64, "n_layers": 2, "d_state": 8, "vocab_size": 33}
    checkpoint.save(tmp_path / "runs" / "lc-plm", LcPlm(**fields), name="lc-plm", fields=fields)
    shutil.copy(repo_root / "examples" / "demo" / "families.fasta", tmp_path)
    return tmp_path


def _run(command, folder):
    """What it prints, on both streams, stderr first as on a page; ``seqgraph`` is this interpreter's."""
    if isinstance(command, str):
        command = ["bash", "-c", re.sub(r"^seqgraph\b", f"{sys.executable} -m seqgraph", command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr[-3000:]
    return (done.stderr + done.stdout).splitlines()


def _shape(lines):
    """Without the numbers that depend on weights and machine."""
    return [_NUMBER.sub("#", line).strip() for line in lines if line.strip()]


@pytest.mark.slow
def test_the_page_prints_what_it_says(folder, repo_root):
    pytest.importorskip("matplotlib")
    blocks = _BLOCK.findall((repo_root / "docs" / "embed-a-proteome.md").read_text(encoding="utf-8"))
    assert sum(kind == "console" for kind, _ in blocks) >= 7
    for kind, text in blocks:
        if kind == "python":
            assert _run([sys.executable, "-c", text], folder) == []
            continue
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, *told = part.splitlines()
            assert _shape(_run(command, folder)) == _shape(told), command
    for picture in ("families.png", "if1.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
