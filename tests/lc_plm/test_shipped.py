"""Trained models that ship with the package, found by name."""

from __future__ import annotations

import pytest
import torch

from seqgraph.cli.main import main
from seqgraph.errors import CheckpointError
from seqgraph.train import checkpoint
from seqgraph_lc_plm import models
from seqgraph_lc_plm.data import SwissProtSample
from seqgraph_lc_plm.model import LcPlm


@pytest.fixture
def packaged(tmp_path, tiny, monkeypatch):
    """The tiny model in float16 as if it shipped as lc-plm-tiny."""
    fields = {"d_model": 16, "n_layers": 2, "d_state": 4, "vocab_size": 40}
    half = {name: value.half() for name, value in tiny.state_dict().items()}
    checkpoint.save(tmp_path / "package" / "weights" / "lc-plm-tiny", half, name="lc-plm", fields=fields, assets={})
    monkeypatch.setattr(models.resources, "files", lambda package: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    return tiny


def test_a_shipped_model_opens_by_name_in_single_precision(packaged):
    found = models.open_model("lc-plm-tiny")
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    ours, theirs = (m.embed(["MKTAYIAKQR", "GSHM"]) for m in (found, packaged))
    assert 0 < (ours - theirs).abs().max() < 2e-2  # float16's grain


def test_a_folder_of_that_name_wins(packaged, tmp_path):
    other = LcPlm(d_model=24, n_layers=1, d_state=4, vocab_size=33)
    fields = {"d_model": 24, "n_layers": 1, "d_state": 4, "vocab_size": 33}
    checkpoint.save(tmp_path / "lc-plm-tiny", other, name="lc-plm", fields=fields)
    assert models.open_model("lc-plm-tiny").d_model == 24


def test_the_commands_take_the_name(packaged, tmp_path):
    (tmp_path / "two.fasta").write_text(">a\nMKTAYIAKQR\n>b\nGSHM\n")
    assert main(["embed", "lc-plm-tiny", "two.fasta", "out", "--include", "mean", "--nogpu"]) == 0
    assert sorted(file.name for file in (tmp_path / "out").glob("*.pt")) == ["a.pt", "b.pt"]
    with pytest.raises(CheckpointError, match="lc-plm-small: no such file or folder, and no model"):
        models.open_model("lc-plm-small")


@pytest.mark.skipif("lc-plm-8m" not in models.shipped(), reason="no trained weights ship here yet")
def test_the_shipped_weights_are_small_and_better_than_frequencies():
    """On proteins of Swiss-Prot's test split, masked one residue in eight."""
    folder = models.shipped()["lc-plm-8m"]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 16 << 20
    assert "CC BY 4.0" in (folder / "MODEL_CARD.md").read_text()
    model = models.open_model("lc-plm-8m")
    texts = [text for text in SwissProtSample().sequences["test"] if len(text) <= 200][:24]
    stream = model.alphabet.encode(texts)
    where = torch.arange(4, stream.num_tokens, 8)
    where = where[stream.values[where] >= 4]
    masked = stream.with_values(stream.values.index_fill(0, where, model.alphabet.mask_id))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(masked, where), stream.values[where])
    assert loss < 2.86  # residue frequencies: 2.90
