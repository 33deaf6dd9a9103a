"""The moving average of the weights: its arithmetic on every path of a step, who uses it, and resumption."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from seqgraph.config import load_config
from seqgraph.errors import CheckpointError, ConfigError
from seqgraph.train import callbacks, checkpoint, fit
from seqgraph.train.average import Average
from seqgraph.train.run import evaluate, train
from seqgraph.train.state import Interrupted

TOY = Path(__file__).with_name("toy_plugin.py")
DECAY = 0.5  # reached after eight steps


@pytest.fixture(autouse=True)
def normalised(toy, monkeypatch):
    """The toy model with running statistics and a count in it."""

    class Normalised(toy.ToyModel):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.norm = nn.BatchNorm1d(self.norm.normalized_shape[0])

    plain = toy.ToyModel
    monkeypatch.setattr(toy, "ToyModel", Normalised)
    return plain


@pytest.fixture
def watched(monkeypatch):
    """The task's tensors before the first step and right after each, as the optimiser leaves them."""
    seen, plain = [], fit.Module.configure_optimizers

    def configure(module):
        def look(*args) -> None:
            seen.append({name: value.clone() for name, value in module.task.state_dict().items()})

        look()
        optimizer = plain(module)
        optimizer.register_step_post_hook(look)
        return optimizer

    monkeypatch.setattr(fit.Module, "configure_optimizers", configure)
    return seen


def averages(seen, decay=DECAY):
    """After each step, in float64 by numpy, from the weights alone."""
    seen = [{name: value.numpy() for name, value in state.items()} for state in seen]
    mean = {name: value.astype(np.float64) for name, value in seen[0].items()}
    found = []
    for n, state in enumerate(seen[1:]):
        d = min(decay, (1 + n) / (10 + n))
        for name, value in state.items():
            counts = value.dtype.kind == "i"
            mean[name] = value.astype(np.float64) if counts else mean[name] + (1 - d) * (value - mean[name])
        found.append(dict(mean))
    return found


def tensors(run, which):
    """Of the task, by the names of its state."""
    own = checkpoint.read_tensors(run / which / "model.safetensors")
    return {f"model.{k}": v for k, v in own.items()} | checkpoint.read_tensors(run / which / "task.safetensors")


def kept(run):
    return checkpoint.load_trainer(run / "last")["average"]


def rows(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in lines]


def results(run):
    whole = json.loads((run / "metrics.json").read_text())
    return {key: whole[key] for key in ("best_epoch", "steps", "valid", "test")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def near(found, wanted, bound=1e-6):
    assert found.keys() == wanted.keys()
    return all(np.abs(found[name].numpy() - wanted[name]).max() < bound for name in found)


def recording(monkeypatch):
    """Let a stand-in record steps, as a GPU does; says how often it replayed."""
    replays, plain = [], fit.Replays

    def recorder(function):
        outputs = {name: value.clone() for name, value in function().items()}

        def replay() -> None:
            replays.append(1)
            for name, value in function().items():
                outputs[name].copy_(value)

        return outputs, replay

    monkeypatch.setattr(fit, "Replays", lambda *args, **kwargs: plain(*args, **{**kwargs, "recorder": recorder}))
    return replays


PATHS = {
    "plain": {},
    "accumulate": {"train__accumulate": 2},
    "replay": {"train__replay": 2},
    "recorded": {"train__replay": 2},
}


@pytest.mark.parametrize("path", PATHS)
def test_the_average_is_what_its_formula_says(toy_config, tmp_path, monkeypatch, watched, path):
    replays = recording(monkeypatch) if path == "recorded" else [1]
    run = tmp_path / "run"
    train(toy_config(**PATHS[path], train__ema=DECAY), output=run, quiet=True)
    wanted = averages(watched)
    assert replays and len(wanted) == rows(run)[-1]["step"] > 9
    last, best = rows(run)[-1]["step"], rows(run)[results(run)["best_epoch"] - 1]["step"]
    assert near(kept(run), wanted[last - 1])
    assert near(tensors(run, "best"), wanted[best - 1])
    assert same(tensors(run, "last"), watched[-1])
    assert not near(kept(run), {name: value.numpy() for name, value in watched[-1].items()}, 1e-3)
    assert {str(value.dtype) for value in kept(run).values()} == {"torch.float32", "torch.int64"}


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_it_is_what_is_evaluated_and_tested(toy_config, tmp_path, monkeypatch, watched, precision):
    looked, plain = [], callbacks.evaluate_task

    def looking(task, *args, **kwargs):
        looked.append((len(watched) - 1, {name: value.clone() for name, value in task.state_dict().items()}))
        return plain(task, *args, **kwargs)

    monkeypatch.setattr(callbacks, "evaluate_task", looking)
    run = tmp_path / "run"
    train(toy_config(train__ema=DECAY, train__precision=precision), output=run, quiet=True)
    wanted = averages(watched)
    assert len(looked) == 3 and all(near(state, wanted[steps - 1]) for steps, state in looked)
    assert evaluate(run, "valid")["mse"] == pytest.approx(results(run)["valid"]["mse"], rel=1e-6)
    assert evaluate(run / "last", "valid")["mse"] != pytest.approx(rows(run)[-1]["valid_mse"], rel=1e-4)
    assert evaluate(run)["mse"] == pytest.approx(results(run)["test"]["mse"], rel=1e-6)


def test_training_does_not_notice(toy_config, tmp_path, watched):
    """The weights are those of a training without an average after every step, evaluations between them or not."""
    train(toy_config(model__dropout=0.2), output=tmp_path / "without", quiet=True)
    without = watched[:]
    watched.clear()
    train(toy_config(model__dropout=0.2, train__ema=DECAY), output=tmp_path / "with", quiet=True)
    assert len(watched) == len(without) and all(map(same, watched, without))
    assert same(tensors(tmp_path / "without", "last"), tensors(tmp_path / "with", "last"))
    losses = [[row["train_loss"] for row in rows(tmp_path / run)] for run in ("without", "with")]
    assert losses[0] == losses[1] and rows(tmp_path / "without") != rows(tmp_path / "with")
    assert "average" not in checkpoint.load_trainer(tmp_path / "without" / "last")


def test_without_a_validation_split_the_average_is_the_result(toy_config, tmp_path, watched):
    run = tmp_path / "run"
    train(toy_config(data__n=2, train__ema=DECAY), output=run, quiet=True)
    assert results(run)["valid"] == {} and near(tensors(run, "best"), averages(watched)[-1])
    assert same(tensors(run, "last"), watched[-1]) and not same(tensors(run, "best"), watched[-1])


NOISY = {"model__dropout": 0.2, "model__noise": 0.1, "data__jitter": 0.1, "train__ema": 0.9}


def equal_runs(one, other):
    assert same(kept(one), kept(other)) and results(one) == results(other) and rows(one) == rows(other)
    return all(same(tensors(one, which), tensors(other, which)) for which in ("best", "last"))


def test_recorded_steps_have_the_average_of_computed_ones(toy_config, tmp_path, monkeypatch, toy, normalised):
    # where a GPU records, nothing is computed: the stand-in would move running statistics twice
    monkeypatch.setattr(toy, "ToyModel", normalised)
    config = toy_config(train__replay=4, train__epochs=8, data__jitter=0.1, train__ema=0.9)
    train(config, output=tmp_path / "computed", quiet=True)
    replays = recording(monkeypatch)
    train(config, output=tmp_path / "recorded", quiet=True)
    assert len(replays) > 20 and equal_runs(tmp_path / "computed", tmp_path / "recorded")


@pytest.mark.parametrize("more", [{"train__accumulate": 2}, {"train__replay": 2}], ids=["accumulate", "replay"])
def test_a_resumed_run_is_the_unbroken_run_bit_by_bit(toy_config, tmp_path, more):
    config = toy_config(**NOISY, **more)
    train(config, output=tmp_path / "whole", quiet=True)
    per_epoch = rows(tmp_path / "whole")[0]["step"]
    with pytest.raises(Interrupted):  # in mid epoch
        train(config, output=tmp_path / "parts", quiet=True, stop_after=per_epoch + 2)
    with pytest.raises(Interrupted):  # at an epoch's end
        train(config, output=tmp_path / "parts", quiet=True, resume=True, stop_after=per_epoch - 2)
    assert len(rows(tmp_path / "parts")) == 2
    train(config, output=tmp_path / "parts", quiet=True, resume=True)
    assert equal_runs(tmp_path / "parts", tmp_path / "whole")


def test_an_epoch_cut_by_max_steps_leaves_no_trace(toy_config, tmp_path):
    flat = {**NOISY, "train__schedule": "constant", "train__warmup": 0}
    train(toy_config(**flat), output=tmp_path / "whole", quiet=True)
    train(toy_config(**flat, train__max_steps=9), output=tmp_path / "parts", quiet=True)
    assert same(tensors(tmp_path / "parts", "best"), kept(tmp_path / "parts"))
    train(toy_config(**flat), output=tmp_path / "parts", quiet=True, resume=True)
    assert equal_runs(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_an_evaluation_saves_no_average_as_weights(toy_config, tmp_path, monkeypatch, watched, times):
    """Once: what is saved at the epoch's end are the weights. Twice: nothing more is saved, and they are put back."""
    config, run, tasks, plain = toy_config(**NOISY), tmp_path / "run", [], callbacks.evaluate_task
    train(config, output=tmp_path / "whole", quiet=True)
    watched.clear()

    def interrupted(task, *args, **kwargs):
        tasks.append(task)
        if len(tasks) == 2:
            assert not same(task.state_dict(), watched[-1]), "the average is in the place of the weights"
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return plain(task, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "evaluate_task", interrupted)
        with pytest.raises(Interrupted if times == 1 else KeyboardInterrupt) as stop:
            train(config, output=run, quiet=True)
    assert isinstance(stop.value, Interrupted) == (times == 1)
    assert same(tasks[1].state_dict(), watched[-1])
    epochs = checkpoint.load_trainer(run / "last")["progress"][0]["epoch"]
    assert epochs == (2 if times == 1 else 1)
    assert same(tensors(run, "last"), watched[epochs * (len(watched) - 1) // 2])
    train(config, output=run, quiet=True, resume=True)
    assert equal_runs(run, tmp_path / "whole")


def test_an_error_in_an_evaluation_puts_the_weights_back(toy_config, tmp_path, monkeypatch, watched):
    tasks = []

    def failing(task, *args, **kwargs):
        tasks.append(task)
        raise RuntimeError("no such metric")

    monkeypatch.setattr(callbacks, "evaluate_task", failing)
    with pytest.raises(RuntimeError, match="no such metric"):
        train(toy_config(train__ema=DECAY), output=tmp_path / "run", quiet=True)
    assert same(tasks[0].state_dict(), watched[-1]) and not (tmp_path / "run" / "last").exists()


@pytest.mark.parametrize("value", [1.5, 1, 0, -0.1, "half"])
def test_what_is_no_decay_is_refused(toy_config, value):
    with pytest.raises(ConfigError, match=r"train\.ema: Input should be .*, not "):
        load_config(toy_config(train__ema=value))


def test_it_is_among_the_settings_of_a_run(toy_config, tmp_path):
    run = tmp_path / "run"
    train(toy_config(train__ema=0.9, train__epochs=1), output=run, quiet=True)
    assert checkpoint.read_json(run / "config.json")["run"]["train"]["ema"] == 0.9
    assert load_config(run).train.ema == load_config(run, ["train.epochs=2"]).train.ema == 0.9
    assert load_config(run, ["train.ema=null"]).train.ema is None
    with pytest.raises(ConfigError, match=r"train\.ema \(0\.9, now 0\.5\)"):
        train(toy_config(train__ema=0.5, train__epochs=1), output=run, quiet=True, resume=True)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_average_what_one_does(toy_config, tmp_path, monkeypatch, toy, strategy, join_pairs):
    """And go on exactly where they stopped. The subprocesses' toy has no running statistics."""
    monkeypatch.undo()
    flat = {"train__schedule": "constant", "train__warmup": 0, "train__ema": DECAY, "train__clip": 0.3}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy_config(**flat)))
    two, one = tmp_path / "two", tmp_path / "one"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seqgraph"]
    command += ["-p", str(TOY), "train", str(tmp_path / "toy.yaml"), "-o", str(two), f"train.strategy={strategy}"]
    for more in (["train.epochs=2"], ["--resume"]):
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-3000:]
    join_pairs()
    train(toy_config(**flat), output=one, quiet=True)
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert not near(kept(one), {name: value.numpy() for name, value in tensors(one, "last").items()}, 1e-3)
    for mine, theirs in ((kept(one), kept(two)), *((tensors(one, w), tensors(two, w)) for w in ("best", "last"))):
        assert near(theirs, {name: value.numpy() for name, value in mine.items()}, 1e-5)
    assert results(two)["test"] == pytest.approx(results(one)["test"], rel=1e-4)


class Odd(nn.Module):
    """One tensor under two names, a mask, a buffer that is not saved, one that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("unsaved", torch.ones(2), persistent=False)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def test_other_tensors_than_weights():
    module = Odd()
    average, first = Average(module, 0.999), module.head.weight.detach().clone()
    with torch.no_grad():
        module.head.weight += 1
        module.unsaved += 1
        module.count += 5
    module.replaced = torch.ones(2)
    average.update(0)
    state = average.state()
    assert state.keys() == module.state_dict().keys() and state["head.weight"] is state["embedding.weight"]
    torch.testing.assert_close(state["head.weight"], first + 0.9)
    torch.testing.assert_close(state["replaced"], torch.full((2,), 0.9))
    assert state["count"] == 5 and torch.equal(state["mask"], module.mask)
    addresses = [p.data_ptr() for p in module.parameters()]
    with average.used():
        torch.testing.assert_close(module.embedding.weight.detach(), first + 0.9)
        assert torch.equal(module.unsaved, torch.full((2,), 2.0))
    assert torch.equal(module.head.weight, first + 1) and torch.equal(module.replaced, torch.ones(2))
    assert [p.data_ptr() for p in module.parameters()] == addresses
    with pytest.raises(CheckpointError, match="does not fit the task; tensors: mask"):
        average.load({name: value for name, value in state.items() if name != "mask"})


@pytest.mark.gpu
def test_the_gpu_is_not_waited_for():
    module = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).cuda()
    average, before = Average(module, 0.9), {k: v.clone() for k, v in module.state_dict().items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 1
        average.update(0)
        with average.used():
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name] + 1)
        torch.testing.assert_close(average.state()[name], before[name] + 0.9)


@pytest.mark.gpu
def test_recorded_steps_on_a_gpu_have_the_average_of_computed_ones(toy_config, tmp_path, watched):
    run = tmp_path / "run"
    train(toy_config(train__accelerator="gpu", train__replay=2, train__ema=DECAY), output=run, quiet=True)
    wanted = averages([{name: value.cpu() for name, value in state.items()} for state in watched])
    best = rows(run)[results(run)["best_epoch"] - 1]["step"]
    assert near(kept(run), wanted[-1]) and near(tensors(run, "best"), wanted[best - 1])
    assert all(torch.equal(value, watched[-1][name].cpu()) for name, value in tensors(run, "last").items())
