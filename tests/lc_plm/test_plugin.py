"""What the plugin offers, through the doors a user takes."""

from __future__ import annotations

import json

import pytest
import torch

import seqgraph as sg
from seqgraph.cli.main import main
from seqgraph.errors import ConfigError
from seqgraph.plugin import manager
from seqgraph_lc_plm.config import FastaConfig, LcPlmConfig, MaskedLMConfig, SwissProtSampleConfig
from seqgraph_lc_plm.data import Fasta, SwissProtSample
from seqgraph_lc_plm.model import LcPlm
from seqgraph_lc_plm.task import MaskedLM


def test_create_model_by_size_also_without_memory():
    with torch.device("meta"):
        model = sg.create_model("lc-plm", size="753M")
    assert sum(p.numel() for p in model.parameters()) == 752_788_992
    assert all(p.is_meta for p in model.parameters())
    with pytest.raises(ConfigError, match="size"):
        sg.create_model("lc-plm", size="9M")
    with pytest.raises(ConfigError, match="d_modle"):
        sg.create_model("lc-plm", d_modle=3)


@pytest.mark.parametrize(
    "config, target",
    [(LcPlmConfig, LcPlm), (SwissProtSampleConfig, SwissProtSample), (FastaConfig, Fasta), (MaskedLMConfig, MaskedLM)],
)
def test_configurations_are_the_constructors_keywords(config, target):
    import inspect

    keywords = {n: p for n, p in inspect.signature(target.__init__).parameters.items() if n not in ("self", "model")}
    assert set(config.model_fields) == set(keywords)
    for name, field in config.model_fields.items():
        if not field.is_required():
            assert keywords[name].default == field.default, name


def test_a_run_on_a_fasta_file_from_the_command_line(tmp_path, proteins, capsys):
    """Preset, overrides, training, checkpoint, load, embed; a second run of the same seed gives the same weights."""
    fasta = tmp_path / "mine.fasta"
    fasta.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(proteins(*[30] * 150))))
    words = ["data.name=fasta", f"data.path={fasta}", "data.max_length=20", "model.d_model=16", "model.n_layers=1"]
    for name in ("one", "two"):
        run = tmp_path / name
        assert main(["train", "lc-plm-sample", *words, "train.epochs=1", "-o", str(run)]) == 0
    results = json.loads((run / "metrics.json").read_text())
    for split in ("valid", "test", "baseline"):
        assert set(results[split]) == {"loss", "perplexity", "accuracy"}
    model = sg.load(tmp_path / "one")
    assert isinstance(model, LcPlm) and not model.training
    assert model.assets["alphabet"][4:8] == ["L", "A", "G", "V"] and len(model.assets["alphabet"]) == 33
    assert torch.equal(model.embed(["MKTAY"]), sg.load(tmp_path / "two").embed(["MKTAY"]))
    assert main(["embed", str(run), str(fasta), str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.pt"))) == 150


def test_the_preset_is_valid_and_is_the_small_model():
    path = manager.resolve(manager.get("presets", "lc-plm-sample"))
    import yaml

    content = yaml.safe_load(path.read_text())
    fields = dict(content["model"])
    assert fields.pop("name") == "lc-plm"
    assert sum(p.numel() for p in sg.create_model("lc-plm", **fields).parameters()) == 73_536
