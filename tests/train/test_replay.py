"""Batches that stay together, and steps that are recorded once; a stand-in records on the CPU."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seqgraph.errors import ConfigError
from seqgraph.train import checkpoint, fit
from seqgraph.train.batching import BatchKey, TokenBatches
from seqgraph.train.replay import Replays
from seqgraph.train.run import train
from seqgraph.train.state import Interrupted

NOISY = {"model__dropout": 0.2, "model__noise": 0.1, "data__jitter": 0.1}


class StandIn:
    """Records as a GPU does: the function runs once, a replay fills the same tensors with what is new."""

    def __init__(self) -> None:
        self.calls, self.replays = 0, 0

    def __call__(self, function):
        self.calls += 1
        outputs = {name: value.clone() for name, value in function().items()}

        def replay() -> None:
            self.replays += 1
            for name, value in function().items():
                outputs[name].copy_(value)

        return outputs, replay


class Failing(StandIn):
    """Cannot record for so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def __call__(self, function):
        if self.calls < self.times:
            self.calls += 1
            torch.rand(())
            raise RuntimeError("operation not permitted when stream is capturing\nand so on")
        return super().__call__(function)


def epochs_of(sampler: TokenBatches, epochs: int) -> list[list[BatchKey]]:
    found = []
    for epoch in range(epochs):
        sampler.seek(epoch)
        found.append(list(sampler))
        assert [sampler.tokens(i) for i in range(len(found[-1]))] == [
            int(sampler.lengths[key.indices].sum()) for key in found[-1]
        ]
    return found


def test_batches_stay_together_in_an_order_of_their_own():
    lengths = np.random.default_rng(0).integers(1, 50, 300)
    epochs = epochs_of(TokenBatches(lengths, 200, keep=3), 6)
    for keys in epochs:
        assert sorted(i for key in keys for i in key.indices) == list(range(300))
    for turn in (epochs[:3], epochs[3:]):
        held = {key.number: key.indices for key in turn[0]}
        assert all({key.number: key.indices for key in keys} == held for keys in turn)
        assert len({tuple(key.number for key in keys) for keys in turn}) == 3
        assert {key.epoch for keys in turn for key in keys} == {turn[0][0].epoch}
    sets = [{tuple(key.indices) for key in keys} for keys in epochs]
    assert sets[0] == sets[2] and sets[3] == sets[5] and not sets[0] & sets[3]


def test_a_place_in_mid_epoch_is_found_again():
    sampler, again = (TokenBatches(np.arange(1, 60), 64, keep=4, seed=5) for _ in range(2))
    sampler.seek(6)
    whole = list(sampler)
    again.seek(6, 3)
    assert list(again) == whole[3:]


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.seen: list[torch.Tensor] = []

    def step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        layer = self.first if batch.shape[0] % 2 else self.second
        loss = layer(batch).square().mean()
        return {"loss": loss, "sum_loss": torch.stack([loss.detach() * len(batch), torch.tensor(float(len(batch)))])}


def run(recorder, task=None, epochs=8, keep=4):
    """Gradients and outputs of every step, and what was said."""
    task, said, made = task or Task(), [], []
    batches = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 3, 4)]

    def source(key):
        made.append(key)
        return batches[key.number]

    replays = Replays(source, task.step, list(task.parameters()), recorder=recorder, say=said.append)
    grads, outputs = [], []
    for epoch in range(epochs):
        for number in np.random.default_rng(epoch).permutation(len(batches)):
            outputs.append(replays.step(BatchKey(epoch // keep, int(number), [])))
            grads.append([None if p.grad is None else p.grad.clone() for p in task.parameters()])
            with torch.no_grad():
                for parameter in task.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
    return grads, outputs, said, made, replays


def same_runs(one, other) -> bool:
    grads = all(
        (a is None and b is None) or torch.equal(a, b)
        for step, its in zip(one[0], other[0], strict=True)
        for a, b in zip(step, its, strict=True)
    )
    return grads and all(torch.equal(a["sum_loss"], b["sum_loss"]) for a, b in zip(one[1], other[1], strict=True))


def test_a_recorded_step_is_the_step():
    plain, recorder = run(None), StandIn()
    recorded = run(recorder)
    assert same_runs(plain, recorded)
    # three steps before the first recording, of which one comes again in the first four epochs
    assert recorder.calls == 8 and recorder.replays == 32 - 3
    assert len(recorded[3]) == 8, "each batch is made once while it is kept"
    assert any(g is None for step in plain[0] for g in step), "a batch uses some of the parameters"


def test_gradients_come_back_where_somebody_took_them_away():
    task, batch = Task(), torch.ones(2, 3)
    replays = Replays(lambda key: batch, task.step, list(task.parameters()))
    for _ in range(2):  # of the second layer only
        replays.step(BatchKey(0, 0, []))
        assert [p.grad is not None for p in task.parameters()] == [False, False, True, True]
        task.zero_grad(set_to_none=True)


@pytest.mark.parametrize("times", [1, 9])
def test_what_cannot_be_recorded_is_computed(times):
    task, before = Task(), torch.get_rng_state()
    found = run(Failing(times), task)
    assert torch.equal(torch.get_rng_state(), before), "a failed recording leaves the generators as they were"
    assert same_runs(run(None), found)
    assert "operation not permitted" in found[4].failure
    if times == 1:
        assert not found[2] and found[4].recorded == 4
    else:
        assert (
            len(found[2]) == 1 and "not permitted when stream is capturing" in found[2][0] and "\n" not in found[2][0]
        )


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(())])
def test_draws_of_the_host_are_not_recorded(draw):
    class Drawing(Task):
        def step(self, batch):
            draw()
            return super().step(batch)

    found = run(StandIn(), Drawing())
    assert same_runs(run(None), found)
    assert len(found[2]) == 1 and "on the host" in found[2][0] and found[4].recorded == 0


# ---------------------------------------------------------------------- in a training
def weights(folder: Path, which="last"):
    return checkpoint.read_tensors(folder / which / "model.safetensors")


def rows(folder: Path):
    text = (folder / "log.jsonl").read_text()
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in text.splitlines()]


def same_results(one: Path, other: Path) -> bool:
    mine, its = weights(one), weights(other)
    return rows(one) == rows(other) and all(torch.equal(mine[name], its[name]) for name in mine)


def test_training_is_the_same_with_it(toy_config, tmp_path):
    """With all examples in one batch, whose order alone differs, that is."""
    changes = {"train__max_tokens": 10_000, "train__epochs": 6, "train__clip": 0.1, "train__weight_decay": 0.1}
    train(toy_config(**changes), output=tmp_path / "plain", quiet=True)
    train(toy_config(**changes, train__replay=3), output=tmp_path / "kept", quiet=True)
    mine, its = weights(tmp_path / "plain"), weights(tmp_path / "kept")
    assert all(torch.allclose(mine[name], its[name], atol=1e-6) for name in mine)
    for one, other in zip(rows(tmp_path / "plain"), rows(tmp_path / "kept"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_recorded_training_is_the_computed_one(toy_config, tmp_path, monkeypatch):
    config = toy_config(train__replay=4, train__epochs=8, data__jitter=0.1)
    train(config, output=tmp_path / "computed", quiet=True)
    recorder = StandIn()
    plain = fit.Replays
    monkeypatch.setattr(fit, "Replays", lambda *args, **kwargs: plain(*args, **{**kwargs, "recorder": recorder}))
    train(config, output=tmp_path / "recorded", quiet=True)
    assert recorder.replays > 3 * recorder.calls > 0
    assert same_results(tmp_path / "computed", tmp_path / "recorded")


@pytest.mark.parametrize("steps", [7, 12, 30])
def test_an_interrupted_training_goes_on_with_the_same_batches(toy_config, tmp_path, steps):
    config = toy_config(train__replay=3, train__epochs=5, train__max_tokens=24, **NOISY)
    train(config, output=tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted):
        train(config, output=tmp_path / "parts", quiet=True, stop_after=steps)
    train(config, output=tmp_path / "parts", quiet=True, resume=True)
    assert same_results(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("key", "value"), [("accumulate", 2), ("workers", 1)])
def test_what_it_does_not_go_with_is_named(toy_config, tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"train.replay does not go with train.{key}"):
        train(toy_config(**{f"train__{key}": value}, train__replay=2), output=tmp_path / "run", quiet=True)
