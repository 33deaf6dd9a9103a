"""Where a GPU's memory does not suffice."""

from __future__ import annotations

import pytest
import torch

from seqgraph.config import TrainConfig
from seqgraph.errors import UserError
from seqgraph.train.memory import no_memory
from seqgraph.train.run import train
from seqgraph.train.state import Progress


def test_want_of_memory_names_what_needs_less(toy, toy_config, tmp_path, monkeypatch):
    step, seen = toy.ToyTask.training_step, []

    def full_at_the_tenth_step(task, batch):
        seen.append(batch)
        if len(seen) == 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")
        return step(task, batch)

    monkeypatch.setattr(toy.ToyTask, "training_step", full_at_the_tenth_step)
    config = toy_config(train__max_tokens=64, train__eval_tokens=100)
    with pytest.raises(UserError, match=r"out of memory in epoch \d, after step 9, .* 64 tokens: .* GiB \(") as error:
        train(config, output=tmp_path / "run", quiet=True)
    assert "train.max_tokens=32 train.accumulate=2" in error.value.hint and "eval_tokens=50" in error.value.hint


class Data:
    """Lengths, and what else decides a batch's shapes, if it says so."""

    def __init__(self, lengths, sizes=None) -> None:
        self.of, self.more = lengths, sizes

    def lengths(self, name):
        return self.of

    def sizes(self, name):
        return self.more


@pytest.mark.parametrize(
    ("settings", "data", "named", "not_named"),
    [
        ({}, Data([5, 9]), ["train.max_tokens=32 train.accumulate=2"], ["smaller model", "level", "replay"]),
        ({"accumulate": 3}, Data([5]), ["train.accumulate=6"], []),
        ({"replay": 5}, Data([5], sizes=[[1]]), ["train.max_tokens=32,", "train.level=true"], ["accumulate"]),
        ({"replay": 5}, Data([5]), ["train.replay=0"], ["level", "accumulate"]),
        ({}, Data([7, 40]), ["smaller model, as one example alone has 40", "train.max_tokens=32"], []),
        ({}, Data([900]), ["one example alone has 900 tokens"], ["max_tokens", "accumulate"]),
    ],
)
def test_cures_are_those_that_change_something(settings, data, named, not_named):
    config = TrainConfig(max_tokens=64, **settings)
    message, hint = no_memory(config, data, Progress(), "CUDA out of memory. Tried to allocate 1 GiB. GPU 0 has")
    assert message.endswith("Tried to allocate 1 GiB") and str(max(64, *data.of)) in message
    assert all(text in hint for text in named), hint
    assert not any(text in hint for text in not_named), hint
