"""Checkpoint folders: round trip, refusals, and that nothing is ever half written."""

from __future__ import annotations

import errno
import json
import os
import warnings

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from seqgraph.errors import CheckpointError, ConfigError, PluginError
from seqgraph.plugin import manager
from seqgraph.train import checkpoint
from seqgraph.train.checkpoint import CheckpointWarning
from seqgraph.train.tree import pack_tree, unpack_tree


@pytest.fixture
def model(toy):
    torch.manual_seed(0)
    model = toy.ToyModel(4)
    model.assets = {"words": ["é", "b"], "mean": 0.1}
    return model


@pytest.fixture
def folder(model, tmp_path):
    return checkpoint.save(tmp_path / "run" / "best", model, name="toy-model", fields={"d_in": 4}, metrics={"a": 1})


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_round_trip(model, folder):
    for path in (folder, folder.parent):
        loaded = checkpoint.load(path)
        assert not loaded.training and loaded.assets == model.assets
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == {"name": "toy-model", "d_in": 4}
    assert config["plugin"]["name"] == "toy_plugin" and config["versions"]["torch"] == torch.__version__
    assert names(folder) == ["MODEL_CARD.md", "assets.json", "config.json", "metrics.json", "model.safetensors"]
    assert names(folder.parent) == ["best"]


def test_tree_round_trip():
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.randn(2, 3)}, 1: {}},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.99), "none": None, "on": True}],
        "empty": torch.zeros(0, dtype=torch.int64),
        "inf": float("inf"),
        "__kind__": "not a mark",
    }
    packed, tensors = pack_tree(tree)
    back = unpack_tree(json.loads(json.dumps(packed)), tensors)
    assert back["groups"] == tree["groups"] and back["inf"] == float("inf") and back["__kind__"] == "not a mark"
    assert list(back["state"]) == [0, 1] and torch.equal(back["state"][0]["m"], tree["state"][0]["m"])
    assert back["empty"].dtype == torch.int64
    with pytest.raises(CheckpointError, match="/a/0 holds a set"):
        pack_tree({"a": [{1}]})


def test_shared_and_strided_tensors(tmp_path):
    first = nn.Linear(3, 3)
    state = {"b": first.weight, "a": first.weight, "t": first.weight.T, "row": first.weight[1]}
    checkpoint.write_tensors(tmp_path / "x.safetensors", state)
    back = checkpoint.read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(back[name], value) for name, value in state.items())
    assert (tmp_path / "x.safetensors").stat().st_size < 600


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "assets.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "garbage"])
def test_damaged_files_are_named(folder, file, harm):
    path = folder / file
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"\xff\xfe garbage" * 9)
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        checkpoint.load(folder)


def test_tensors_must_fit(model, folder):
    state = model.state_dict()
    del state["head.bias"]
    state["more"] = torch.zeros(1)
    state["scale"] = torch.zeros(5)
    checkpoint.write_tensors(folder / "model.safetensors", state)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(folder)
    assert "missing: head.bias" in error.value.message
    assert "left over: more" in error.value.message
    assert "scale (5,) for (8,)" in error.value.message


def test_not_a_checkpoint(tmp_path, folder):
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "many" / "seed-0").mkdir(parents=True)
    (tmp_path / "many" / "seed-1").mkdir()
    with pytest.raises(CheckpointError, match="seed-0, seed-1"):
        checkpoint.load(tmp_path / "many")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(folder, device):
    with pytest.raises(ConfigError, match=f"the device '{device}' cannot be used: .*"):
        checkpoint.load(folder, device=device)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_plugins_of_another_version_or_missing(folder):
    change_config(folder, plugin={"name": "toy_plugin", "distribution": "toys", "version": "9.1"})
    with pytest.warns(CheckpointWarning, match="toys 9.1"):
        checkpoint.load(folder)
    manager.current().unregister("toy_plugin")
    with pytest.raises(PluginError, match="toy-model") as error:
        checkpoint.load(folder)
    assert error.value.hint == "pip install toys"


def test_later_formats_are_refused(folder):
    change_config(folder, format=99)
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(folder)


def full_file_system(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_safetensors(*args, **kwargs):
    # Its words on a real full disk.
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "where, raises",
    [("save_file", full_safetensors), ("write_json", full_file_system), ("_sync", full_file_system)],
)
def test_a_full_disk_changes_nothing(model, folder, monkeypatch, where, raises):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with torch.no_grad():
        model.scale += 1
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, where, raises)
        with pytest.raises(CheckpointError, match="disk is full"):
            checkpoint.save(folder, model, name="toy-model", fields={"d_in": 4}, trainer={"x": torch.zeros(1)})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert names(folder.parent) == ["best"]
    checkpoint.save(folder, model, name="toy-model", fields={"d_in": 4})
    assert torch.equal(checkpoint.load(folder).scale, model.scale)


def test_the_second_rename_may_fail_or_never_come(model, folder, monkeypatch):
    before = checkpoint.load(folder).scale.clone()
    rename, calls = type(folder).rename, []

    def second_fails(self, target):
        calls.append(target)
        if len(calls) == 2:
            full_file_system()
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "rename", second_fails)
        with pytest.raises(CheckpointError, match="disk is full"):
            checkpoint.save(folder, model, name="toy-model", fields={"d_in": 4})
    assert len(calls) == 3 and names(folder.parent) == ["best"]
    # A power cut between the two renames leaves the old one under its second name.
    folder.rename(folder.with_name(".best.old"))
    assert torch.equal(checkpoint.load(folder).scale, before)
    assert names(folder.parent) == ["best"]


def test_replacing_a_text_file_is_all_or_nothing(tmp_path, monkeypatch):
    file = tmp_path / "log.csv"
    checkpoint.write_file(file, "old")
    monkeypatch.setattr(checkpoint, "_sync", full_file_system)
    with pytest.raises(CheckpointError, match="disk is full"):
        checkpoint.write_file(file, "new")
    assert file.read_text() == "old" and names(tmp_path) == ["log.csv"]


def test_loading_reads_no_pickle(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.load(folder)
    assert not [p for p in folder.rglob("*") if p.suffix in (".pt", ".pkl", ".ckpt", ".bin")]


def test_weights_can_be_read_by_those_who_can_read_the_rest(folder):
    modes = {file.name: file.stat().st_mode for file in folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
