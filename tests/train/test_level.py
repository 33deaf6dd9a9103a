"""Level batches: the same sizes in every epoch, one recorded step for all of them; a stand-in records on the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import ConfigError
from seqgraph.plugin import manager
from seqgraph.stream import TokenStream
from seqgraph.train import checkpoint, fit, run
from seqgraph.train.batching import BatchKey, TokenBatches
from seqgraph.train.level import Leveler
from seqgraph.train.replay import LevelReplays
from seqgraph.train.run import train
from seqgraph.train.state import Interrupted
from seqgraph.train.static import StaticBatch, signature
from seqgraph_graph_mamba.data import GraphDataset
from seqgraph_graph_mamba.example import random_graph
from seqgraph_graph_mamba.graph import collate

GRAPHS = {
    "model": {
        "name": "plus-mamba",
        "d_model": 8,
        "n_layers": 2,
        "width": 4,
        "pe_size": 4,
        "pe_width": 4,
        "conv": "gin",
    },
    "data": {"name": "ogbg-mol", "which": "esol"},
    "task": {"name": "graph-regression"},
    "train": {"epochs": 4, "max_tokens": 64, "patience": None, "accelerator": "cpu", "level": True, "replay": 1},
    "seed": [0],
}


def molecules(n: int, seed: int = 0) -> np.ndarray:
    """Nodes and edges of things like molecules, (n, 2): an edge has two directions, and some close a ring."""
    generator = np.random.default_rng(seed)
    nodes = generator.integers(4, 30, n)
    return np.column_stack([nodes, 2 * (nodes - 1 + generator.integers(0, 4, n))])


def epoch_of(sampler: TokenBatches, epoch: int) -> list[BatchKey]:
    sampler.seek(epoch)
    return list(sampler)


# ---------------------------------------------------------------------- the partition
def test_batches_of_molecules_have_the_same_sums_in_every_epoch():
    sizes = molecules(3000)
    sampler = TokenBatches(sizes[:, 0], 400, sizes=sizes, seed=1)
    seen, sums = [], set()
    for epoch in range(4):
        keys = epoch_of(sampler, epoch)
        assert sorted(i for key in keys for i in key.indices) == list(range(3000))
        level = [key for key in keys if key.level]
        assert sampler.level() == len(level) >= 0.95 * len(keys)
        sums |= {(len(key.indices), *sizes[key.indices].sum(0)) for key in level}
        assert all(sizes[key.indices, 0].sum() <= 400 for key in keys)
        assert min(len(key.indices) for key in keys) > 5, "no batch of one or two is left over"
        seen.append({frozenset(key.indices) for key in level})
    assert len(sums) == 1
    count, nodes, _ = sums.pop()
    assert 0.85 * 400 < nodes <= 400 and count == pytest.approx(nodes / sizes[:, 0].mean(), rel=0.02)
    assert not set.intersection(*seen) and len(set.union(*seen)) == sum(map(len, seen))


def test_batches_are_random_samples():
    """Who is with whom: two graphs meet as often as in batches at random, and no size is left over more than others."""
    sizes = molecules(300)
    sampler = TokenBatches(sizes[:, 0], 200, sizes=sizes)
    meetings, left = np.zeros((300, 300)), np.zeros(300)
    for epoch in range(200):
        for key in epoch_of(sampler, epoch):
            meetings[np.ix_(key.indices, key.indices)] += 1
            left[key.indices] += not key.level
    pairs = meetings[np.triu_indices(300, 1)]
    assert pairs.var() == pytest.approx(pairs.mean(), rel=0.15), "as counts of independent events"
    order = sizes[:, 0].argsort()
    assert left[order[:100]].mean() == pytest.approx(left[order[200:]].mean(), rel=0.5)


def test_the_order_hangs_on_seed_and_epoch_and_is_found_again_in_mid_epoch():
    sizes = molecules(500)

    def sampler(seed=3):
        return TokenBatches(sizes[:, 0], 150, sizes=sizes, seed=seed)

    assert epoch_of(sampler(), 2) == epoch_of(sampler(), 2) != epoch_of(sampler(seed=4), 2)
    whole, again = sampler(), sampler()
    keys = epoch_of(whole, 5)
    whole.advance(4)
    again.load_state_dict(whole.state_dict())
    assert list(again) == keys[4:]
    with pytest.raises(ConfigError, match="has level"):
        TokenBatches(sizes[:, 0], 150, seed=3).load_state_dict(whole.state_dict())


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), n=st.integers(1, 80), width=st.integers(0, 3), budget=st.integers(1, 90), epoch=st.integers(0, 3)
)
def test_every_example_once_whatever_the_sizes(data, n, width, budget, epoch):
    cells = st.lists(st.integers(0, 12) | st.integers(0, 2**40), min_size=n * width, max_size=n * width)
    sizes = np.array(data.draw(cells), dtype=np.int64).reshape(n, width)
    lengths = data.draw(st.lists(st.integers(0, 20), min_size=n, max_size=n))
    items = data.draw(st.none() | st.integers(1, 9))
    sampler = TokenBatches(lengths, budget, sizes=sizes, max_items=items)
    keys = epoch_of(sampler, epoch)
    assert sorted(i for key in keys for i in key.indices) == list(range(n))
    found = {(len(k.indices), int(sampler.lengths[k.indices].sum()), *sizes[k.indices].sum(0)) for k in keys if k.level}
    assert len(found) <= 1
    for key in keys:
        assert key.indices and (items is None or len(key.indices) <= items)
        assert len(key.indices) == 1 or sampler.lengths[key.indices].sum() <= budget


def test_sums_that_cannot_be_had_leave_the_batches_as_they_are():
    sizes = 2 ** np.arange(40)[:, None]  # no two sets have the same sum
    batches, rest = Leveler(sizes, 5).deal(np.arange(40), np.random.default_rng(0))
    assert len(batches) <= 1 and sorted(np.concatenate([*batches, rest]).tolist()) == list(range(40))


# ---------------------------------------------------------------------- the recorded step
class StandIn:
    """Records as a GPU does: what the function reads stays where it is; recording leaves no trace, a replay does.

    Args:
        state: gives the tensors that a step changes in place, running statistics say.
    """

    def __init__(self, state=list) -> None:
        self.state, self.calls, self.replays = state, 0, 0

    def __call__(self, function):
        self.calls += 1
        generator, held = torch.get_rng_state(), [t.clone() for t in self.state()]
        outputs = {name: value.clone() for name, value in function().items()}
        torch.set_rng_state(generator)
        for tensor, before in zip(self.state(), held, strict=True):
            tensor.copy_(before)

        def replay() -> None:
            self.replays += 1
            for name, value in function().items():
                outputs[name].copy_(value)

        return outputs, replay


def graphs(n: int = 120) -> GraphDataset:
    generator, made = torch.Generator().manual_seed(0), []
    for nodes in np.random.default_rng(0).integers(4, 10, n).tolist():
        graph = random_graph(nodes, nodes // 4, generator)
        made.append(replace(graph, y=(graph.x[:, 0] % 7).float().mean()[None]))
    return GraphDataset.from_list(made, kind="regression", codes="ogb", node_sizes=None, edge_sizes=None)


@pytest.fixture
def graph_plugin(monkeypatch):
    """The real plugins in the place of the toy, and a small data set in the place of a download."""
    from seqgraph.plugin.manager import Manager

    old = manager.use(Manager())
    monkeypatch.setattr(run, "build_data", lambda config: graphs())
    yield
    manager.use(old)


def with_recorder(monkeypatch) -> list[StandIn]:
    made: list[StandIn] = []

    def replays(source, step, parameters, *, recorder, say):
        task = step.__self__.task
        made.append(StandIn(lambda: list(task.buffers())))
        return LevelReplays(source, step, parameters, recorder=made[-1], say=say)

    monkeypatch.setattr(fit, "LevelReplays", replays)
    return made


def losses(folder: Path) -> list[str]:
    timed = ('"seconds"', '"tokens_per_second"')
    rows = (folder / "log.jsonl").read_text().splitlines()
    return [", ".join(part for part in row.strip("{}").split(", ") if not part.startswith(timed)) for row in rows]


def same_results(one: Path, other: Path) -> bool:
    mine, its = (checkpoint.read_tensors(folder / "last" / "model.safetensors") for folder in (one, other))
    return losses(one) == losses(other) and all(torch.equal(mine[name], its[name]) for name in mine)


def test_one_recording_serves_a_training(graph_plugin, tmp_path, monkeypatch):
    """Bit by bit, dropout, the orders of nodes and BatchNorm's statistics included."""
    train(GRAPHS, output=tmp_path / "computed", quiet=True)
    made = with_recorder(monkeypatch)
    train(GRAPHS, output=tmp_path / "recorded", quiet=True)
    assert made[0].calls == 1 and made[0].replays > 30
    assert same_results(tmp_path / "computed", tmp_path / "recorded")


# x, edge_index, cu_seqlens, edge_attr, y, pe, the priorities and the nodes' graphs; names are for inference
@pytest.mark.parametrize("lost", [0, 1, 2, 3, 4, 5, 6, 8])
def test_a_tensor_that_is_not_copied_shows(graph_plugin, tmp_path, monkeypatch, lost):
    """What the tests above rest on: the stand-in reads the recorded buffers, each of which matters."""
    config = copy.deepcopy(GRAPHS)
    config["train"] |= {"epochs": 1}
    train(config, output=tmp_path / "computed", quiet=True)
    with_recorder(monkeypatch)
    fill, filled = StaticBatch.fill, []

    def forgetful(self, tensors):
        filled.append(len(tensors))
        fill(self, [self.tensors[i] if i == lost else new for i, new in enumerate(tensors)])

    monkeypatch.setattr(StaticBatch, "fill", forgetful)
    train(config, output=tmp_path / "recorded", quiet=True)
    assert set(filled) == {9} and not same_results(tmp_path / "computed", tmp_path / "recorded")


@pytest.mark.parametrize("steps", [4, 15])
def test_an_interrupted_training_goes_on(graph_plugin, tmp_path, monkeypatch, steps):
    with_recorder(monkeypatch)
    train(GRAPHS, output=tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted):
        train(GRAPHS, output=tmp_path / "parts", quiet=True, stop_after=steps)
    train(GRAPHS, output=tmp_path / "parts", quiet=True, resume=True)
    assert same_results(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_with_an_average_of_the_weights(graph_plugin, tmp_path, seeds):
    """Recorded or not makes no difference to what is averaged, nor a second seed in the same process."""
    config = copy.deepcopy(GRAPHS) | {"seed": seeds}
    config["train"] |= {"ema": 0.9}
    train(config, output=tmp_path / "replay", quiet=True)
    config["train"] |= {"replay": 0}
    train(config, output=tmp_path / "plain", quiet=True)
    found = sorted((tmp_path / "plain").rglob("best/model.safetensors"))
    assert len(found) == len(seeds)
    for path in found:
        other = tmp_path / "replay" / path.relative_to(tmp_path / "plain")
        mine, its = checkpoint.read_tensors(other), checkpoint.read_tensors(path)
        assert all(torch.allclose(mine[name].float(), its[name].float(), atol=1e-5) for name in mine)


def test_level_without_replay_trains_on_the_same_batches(graph_plugin, tmp_path):
    train(GRAPHS, output=tmp_path / "replay", quiet=True)
    config = copy.deepcopy(GRAPHS)
    config["train"] |= {"replay": 0}
    train(config, output=tmp_path / "plain", quiet=True)
    mine, its = (checkpoint.read_tensors(tmp_path / n / "last" / "model.safetensors") for n in ("replay", "plain"))
    assert all(torch.allclose(mine[name].float(), its[name].float(), atol=1e-5) for name in mine)


def test_data_that_do_not_say_their_sizes_are_refused(toy_config, tmp_path):
    with pytest.raises(ConfigError, match="ToyData does not say"):
        train(toy_config(train__level=True), output=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("sizes", [[[5, 8]], [[5, 8], [9, 20]], [[1, 0]] * 50], ids=len)
def test_fewer_examples_than_a_batch_has_room_for_are_one_level_batch(sizes):
    sizes = np.array(sizes)
    (only,) = epoch_of(TokenBatches(sizes[:, 0], 64, sizes=sizes[:, 1:], seed=1), 3)
    assert only.level and sorted(only.indices) == list(range(len(sizes)))


def test_other_rounding_makes_the_same_batches(monkeypatch):
    """Processors differ in the last bits of what sizes are whitened with; a run may be resumed on another one."""
    sizes = molecules(2000)
    plain = TokenBatches(sizes[:, 0], 400, sizes=sizes[:, 1:], seed=3)
    eigh = np.linalg.eigh

    def other(matrix):
        values, vectors = eigh(matrix)
        return values * (1 + 1e-14), -vectors * (1 - 1e-14)

    monkeypatch.setattr(np.linalg, "eigh", other)
    again = TokenBatches(sizes[:, 0], 400, sizes=sizes[:, 1:], seed=3)
    assert epoch_of(again, 1) == epoch_of(plain, 1) and plain.level() > 50


def test_other_batches_of_the_same_sizes_are_not_resumed(monkeypatch):
    sizes = molecules(500)
    begun = TokenBatches(sizes[:, 0], 150, sizes=sizes[:, 1:], seed=3)
    begun.seek(2, 4)
    state = begun.state_dict()
    monkeypatch.setattr("seqgraph.train.level._PARTS", 4)
    with pytest.raises(ConfigError, match="level_order"):
        TokenBatches(sizes[:, 0], 150, sizes=sizes[:, 1:], seed=3).load_state_dict(state)


# ---------------------------------------------------------------------- what a recorded step holds of a batch
def level_replays(batches, recorder=None, say=None):
    weight = torch.nn.Parameter(torch.ones(2))

    def step(batch):
        stream = batch["stream"]
        return {"loss": (stream.values * weight).sum() * batch.get("scale", 1)}

    said: list[str] = [] if say is None else say
    replays = LevelReplays(lambda key: batches[key.number], step, [weight], recorder=recorder, say=said.append)
    return replays, weight, said


def stream(i: int, longest: int) -> TokenStream:
    generator = torch.Generator().manual_seed(i)
    return TokenStream.from_lengths(torch.randn(6, 2, generator=generator), [i % 3, 6 - i % 3], max_seqlen=longest)


def test_values_of_the_host_belong_to_the_signature_and_kinds_are_few():
    batches = [{"stream": stream(i, 6), "scale": 1 + i % 7} for i in range(40)]
    recorder = StandIn()
    replays, weight, said = level_replays(batches, recorder)
    for i, batch in enumerate(batches):
        replays.step(BatchKey(0, i, [], level=True))
        torch.testing.assert_close(weight.grad, batch["stream"].values.sum(0) * batch["scale"])
    assert recorder.calls == 4 and len(said) == 1 and "4 kinds" in said[0]


def test_batches_that_are_not_level_are_computed():
    batches, recorder = [{"stream": stream(i, 6)} for i in range(20)], StandIn()
    replays, *_ = level_replays(batches, recorder)
    for i in range(20):
        replays.step(BatchKey(0, i, [], level=i % 2 == 0))
    assert (recorder.calls, recorder.replays) == (1, 20 - 3 - 9)


def test_a_recording_that_fails_is_told_and_survived():
    class Failing(StandIn):
        def __call__(self, function):
            raise RuntimeError("operation not permitted when stream is capturing")

    batches = [{"stream": stream(i, 6)} for i in range(9)]
    replays, weight, said = level_replays(batches, Failing())
    for i, batch in enumerate(batches):
        replays.step(BatchKey(0, i, [], level=True))
        torch.testing.assert_close(weight.grad, batch["stream"].values.sum(0))
    assert len(said) == 1 and "not permitted" in said[0] and replays.recorder is None


def test_a_batch_that_cannot_be_copied_is_told():
    batches = [{"stream": stream(i, 6), "more": {1, 2}} for i in range(6)]
    replays, _, said = level_replays(batches, StandIn())
    for i in range(6):
        replays.step(BatchKey(0, i, [], level=True))
    assert len(said) == 1 and "batch.more is a set" in said[0]


def test_buffers_are_the_recorders_own():
    """Neither the data's tensors nor views of one another, and nothing cached in the batch stays."""
    table = torch.arange(12.0)
    batch = {
        "a": table[:6],
        "b": table[3:9],
        "c": [table[:6]],
        "graph": collate([random_graph(4, 1, torch.Generator().manual_seed(0))]),
    }
    again = batch["c"][0] = batch["a"]
    static = StaticBatch(batch)
    fresh = static.fresh()
    assert fresh["a"] is fresh["c"][0] and again is batch["a"]
    assert not {t.untyped_storage().data_ptr() for t in static.tensors} & {table.untyped_storage().data_ptr()}
    _ = fresh["graph"].batch
    assert "batch" in vars(fresh["graph"]) and "batch" not in vars(static.fresh()["graph"])
    other = {**batch, "a": table[6:], "c": [table[6:]]}
    assert signature(other)[0] != signature(batch)[0], "one tensor twice, and two that are alike"
    other["c"] = [other["a"]]
    kind, tensors = signature(other)
    assert kind == signature(batch)[0]
    static.fill(tensors)
    assert torch.equal(static.fresh()["a"], table[6:]) and torch.equal(static.fresh()["b"], table[3:9])
    assert torch.equal(table, torch.arange(12.0))
