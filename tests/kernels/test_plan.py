"""Where the GPU scan cuts segments: from sizes alone, and never where it must not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqgraph_kernels.selective_scan.plan import CHUNK, LONGEST, Sizes, backward_plan, forward_plan

PLANS = [forward_plan, backward_plan]


def sizes(tokens, segments, longest, *, channels=2048, states=16, passes=2, paired=True, even=True):
    return Sizes(tokens, segments, channels, states, longest, passes, paired, even, 132)


@pytest.mark.parametrize("plan", PLANS)
@given(
    segments=st.integers(0, 3000),
    mean=st.integers(0, 5000),
    channels=st.integers(1, 5000),
    states=st.sampled_from([4, 16, 128]),
    spread=st.floats(1, 50),
    even=st.booleans(),
)
def test_any_sizes_have_a_plan(plan, segments, mean, channels, states, spread, even):
    tokens = segments * mean
    longest = min(int(mean * spread), tokens)
    got = plan(sizes(tokens, segments, longest, channels=channels, states=states, even=even))
    assert got.span % CHUNK == 0 and CHUNK <= got.span <= LONGEST
    assert got.halves == 1 or even, "two channels cannot be loaded as one"


@pytest.mark.parametrize("plan", PLANS)
def test_many_segments_of_middling_length_stay_whole(plan):
    assert plan(sizes(65_536, 64, 1024, channels=3072, paired=False)).span == 1024


@pytest.mark.parametrize("plan", PLANS)
def test_a_long_segment_is_cut(plan):
    assert plan(sizes(131_072, 1, 131_072, channels=1536)).span < 131_072


@pytest.mark.parametrize("plan", PLANS)
def test_few_short_segments_are_cut_to_fill_the_gpu(plan):
    assert plan(sizes(30_400, 200, 444, channels=192)).span <= 128


def test_short_spans_are_not_longer_than_the_longest_segment():
    assert forward_plan(sizes(102_400, 2048, 50, channels=128, states=32, passes=1, paired=False)).span == CHUNK
