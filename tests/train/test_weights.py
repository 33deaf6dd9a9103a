"""``train.weights``: a training that starts from weights that are there already."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from seqgraph.errors import CheckpointError, ConfigError
from seqgraph.train.checkpoint import read_tensors
from seqgraph.train.run import train
from seqgraph.train.state import Interrupted


def weights_of(run):
    return read_tensors(run / "model.safetensors")


def test_a_run_starts_from_another_ones_best_weights(toy, toy_config, tmp_path):
    train(toy_config(), output=tmp_path / "first", quiet=True)
    first = weights_of(tmp_path / "first" / "best")
    # A learning rate of nearly nothing leaves the weights where they began.
    still = {"train__epochs": 1, "train__lr": 1e-12, "train__weight_decay": 0.0, "seed": [5]}
    train(toy_config(**still, train__weights=str(tmp_path / "first")), output=tmp_path / "second", quiet=True)
    train(toy_config(**still), output=tmp_path / "anew", quiet=True)
    second, anew = weights_of(tmp_path / "second" / "best"), weights_of(tmp_path / "anew" / "best")
    for name, value in first.items():
        assert torch.allclose(second[name], value, atol=1e-6), name
    assert not torch.allclose(anew["inner.weight"], first["inner.weight"], atol=1e-2)
    saved = json.loads((tmp_path / "second" / "config.json").read_text())
    assert saved["run"]["train"]["weights"] == str(tmp_path / "first")


def test_resuming_reads_the_runs_own_weights_and_needs_the_first_ones_no_more(toy, toy_config, tmp_path):
    train(toy_config(), output=tmp_path / "first", quiet=True)
    config = toy_config(train__weights=str(tmp_path / "first"), seed=[3])
    train(config, output=tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted):
        train(config, output=tmp_path / "cut", quiet=True, stop_after=3)
    shutil.rmtree(tmp_path / "first")
    train(config, output=tmp_path / "cut", quiet=True, resume=True)
    whole, cut = weights_of(tmp_path / "whole" / "last"), weights_of(tmp_path / "cut" / "last")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_weights_that_do_not_fit_are_refused_by_name_and_leave_no_run(toy, toy_config, tmp_path):
    train(toy_config(), output=tmp_path / "first", quiet=True)
    wide = toy_config(model__d_model=16, train__weights=str(tmp_path / "first"))
    with pytest.raises(CheckpointError, match=r"inner.weight \(8, 4\) for \(16, 4\)") as caught:
        train(wide, output=tmp_path / "second", quiet=True)
    assert "model.d_model=8" in caught.value.hint
    assert not (tmp_path / "second").exists()
    with pytest.raises(ConfigError, match=r"train\.weights=.*no such folder"):
        train(toy_config(train__weights=str(tmp_path / "none")), output=tmp_path / "second", quiet=True)
    file = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="layout that no plugin knows"):
        train(toy_config(train__weights=str(file)), output=tmp_path / "second", quiet=True)


def test_a_task_may_adapt_weights(toy, toy_config, tmp_path, monkeypatch):
    train(toy_config(), output=tmp_path / "first", quiet=True)

    def widened(self, state):
        return {name: torch.cat([v, v]) if v.shape[:1] == (8,) else torch.cat([v, v], 1) if v.shape == (1, 8) else v
                for name, v in state.items()}  # fmt: skip

    monkeypatch.setattr("seqgraph.train.task.Task.adapt_weights", widened)
    train(toy_config(model__d_model=16, train__weights=str(tmp_path / "first")), output=tmp_path / "wide", quiet=True)
    assert weights_of(tmp_path / "wide" / "last")["inner.weight"].shape == (16, 4)
