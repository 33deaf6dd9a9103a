"""Token budgets, buckets, shares and places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import ConfigError, DataError
from seqgraph.train.batching import BatchKey, BatchSource, TokenBatches, token_batches


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=4, max_size=80),
    budget=st.integers(1, 60),
    items=st.none() | st.integers(1, 5),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_example_once_within_the_budget(lengths, budget, items, world, shuffle, epoch):
    seen, counts, broken = [], [], 0
    for rank in range(world):
        sampler = TokenBatches(lengths, budget, max_items=items, shuffle=shuffle, seed=3, rank=rank, world=world)
        sampler.seek(epoch)
        keys = list(sampler)
        counts.append(len(keys))
        assert len(keys) == len(sampler) == sampler.total()
        for place, key in enumerate(keys):
            tokens = sum(max(1, lengths[i]) for i in key.indices)
            broken += (tokens > budget and len(key.indices) > 1) or len(key.indices) > (items or len(lengths))
            assert tokens == sampler.tokens(place)
            assert key.indices
            seen += key.indices
    assert sorted(seen) == list(range(len(lengths)))
    assert len(set(counts)) == 1
    # Single examples that do not divide by the processes are joined, as few as can be.
    assert broken <= world - 1 and (not broken or sum(counts) > len(lengths) - world)


def test_batches_are_full_and_alike_in_length():
    lengths = np.random.default_rng(0).integers(1, 500, 20_000)
    sampler = TokenBatches(lengths, 5_000)
    batches = [lengths[key.indices] for key in sampler]
    fill = np.array([b.sum() for b in batches]) / 5_000
    assert fill.mean() > 0.9
    spread = np.mean([b.max() - b.min() for b in batches])
    assert spread < 50 < np.ptp(lengths)


def test_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 50, 200)

    def order(seed, epoch):
        sampler = TokenBatches(lengths, 100, seed=seed)
        sampler.seek(epoch)
        return [key.indices for key in sampler]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) != order(1, 2)


def test_goes_on_in_mid_epoch():
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    whole = TokenBatches(lengths, 100, seed=1)
    whole.seek(2)
    keys = list(whole)
    whole.advance(3)
    again = TokenBatches(lengths, 100, seed=1)
    again.load_state_dict(whole.state_dict())
    assert list(again) == keys[3:] and len(again) == len(keys) - 3
    again.limit = 5
    assert list(again) == keys[3:5]


@pytest.mark.parametrize("change", [{"seed": 2}, {"world": 2}, {"max_tokens": 99}])
def test_refuses_a_place_in_another_order(change):
    state = TokenBatches([3] * 50, 100, seed=1).state_dict()
    other = {"max_tokens": 100, "seed": 1, **change}
    with pytest.raises(ConfigError, match=next(iter(change))):
        TokenBatches([3] * 50, **other).load_state_dict(state)


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="no examples in the train split"):
        TokenBatches([], 10, name="examples in the train split")
    with pytest.raises(ConfigError, match="2 examples for 3 processes"):
        TokenBatches([1, 1], 10, world=3)


@pytest.mark.timeout(100)  # a loop over pairs would take hours
def test_a_million_examples():
    lengths = np.random.default_rng(0).integers(1, 200, 1_000_000)
    assert len(TokenBatches(lengths, 16_384)) > 6_000


def test_collate_randomness_depends_on_the_batch_alone(toy):
    data = toy.ToyData(n=12, jitter=1.0)
    source = BatchSource(data, "train", seed=5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = source[BatchKey(1, 2, [0, 3])].stream.values
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(source[BatchKey(1, 2, [0, 3])].stream.values, first)
    assert not torch.equal(source[BatchKey(2, 2, [0, 3])].stream.values, first)


def test_workers_prepare_the_same_batches(toy):
    data = toy.ToyData(n=12, jitter=1.0)
    here, there = ([b.stream.values for b in token_batches(data, "train", 20, shuffle=True, workers=n)] for n in (0, 1))
    assert len(here) == len(there) and all(torch.equal(a, b) for a, b in zip(here, there))
