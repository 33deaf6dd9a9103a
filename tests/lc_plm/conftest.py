from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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
