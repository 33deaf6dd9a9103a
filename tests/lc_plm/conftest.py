from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seqgraph.train import checkpoint
from seqgraph_lc_plm.model import LcPlm

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
_SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "protein"
PROTEIN_DATA = Path(os.environ.get("SEQGRAPH_PROTEIN_DATA", _SHARED))


@pytest.fixture
def proteins() -> Callable[..., list[str]]:
    """Random proteins of the given lengths."""

    def make(*lengths: int, seed: int = 0) -> list[str]:
        draw = random.Random(seed)
        return ["".join(draw.choices(AMINO_ACIDS, k=length)) for length in lengths]

    return make


@pytest.fixture
def small_memory(monkeypatch) -> Callable[..., None]:
    """Makes passes of a model over more than so many segments or tokens run out of memory."""

    def limit(model: LcPlm, **most: int) -> None:
        whole = type(model).forward

        def forward(self, stream, where=None):
            if any(getattr(stream, name) > value for name, value in most.items()):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(self, stream, where)

        monkeypatch.setattr(type(model), "forward", forward)

    return limit


@pytest.fixture
def tiny() -> LcPlm:
    """Two blocks of width 16, with weights far enough from their start that every part matters."""
    torch.manual_seed(0)
    model = LcPlm(d_model=16, n_layers=2, d_state=4, vocab_size=40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def shs27k() -> tuple[Path, Path]:
    """Actions and sequences of SHS27k, where they are on this machine."""
    folder = PROTEIN_DATA / "ppi_shs27k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: set SEQGRAPH_PROTEIN_DATA")
    names = ("protein.actions.SHS27k.STRING.txt.gz", "protein.SHS27k.sequences.dictionary.tsv.gz")
    return folder / names[0], folder / names[1]


@pytest.fixture
def protein_data() -> Path:
    """The folder of the downstream tasks' data, where it is on this machine."""
    if not PROTEIN_DATA.is_dir():
        pytest.skip(f"{PROTEIN_DATA} is not here: set SEQGRAPH_PROTEIN_DATA")
    return PROTEIN_DATA


_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _printed(command: str | list[str], folder: Path) -> list[str]:
    """Both streams, stderr first as on a page; ``seqgraph`` is this interpreter's."""
    if isinstance(command, str):
        command = ["bash", "-c", re.sub(r"^seqgraph\b", f"{sys.executable} -m seqgraph", command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr[-3000:]
    return (done.stderr + done.stdout).splitlines()


@pytest.fixture
def run_page(tmp_path, repo_root) -> Callable[..., Path]:
    """Run a page's ``console`` and ``python`` blocks in order, in one folder, and compare what they print."""
    torch.manual_seed(0)
    # What a page's first block makes, with the preset's shape and untrained weights.
    fields = {"d_model": 64, "n_layers": 2, "d_state": 8, "vocab_size": 33}
    checkpoint.save(tmp_path / "runs" / "lc-plm", LcPlm(**fields), name="lc-plm", fields=fields)

    def run(page: str, fasta: str, shape: Callable[[list[str]], list[str]]) -> Path:
        shutil.copy(repo_root / "examples" / "demo" / "families.fasta", tmp_path / fasta)
        blocks = _BLOCK.findall((repo_root / "docs" / page).read_text(encoding="utf-8"))
        assert sum(kind == "console" for kind, _ in blocks) >= 7
        for kind, text in blocks:
            if kind == "python":
                assert _printed([sys.executable, "-c", text], tmp_path) == []
                continue
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, *told = part.splitlines()
                assert shape(_printed(command, tmp_path)) == shape(told), command
        return tmp_path

    return run
