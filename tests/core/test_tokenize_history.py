"""User histories and the leave-one-out cut against plain loops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import ConfigError, DataError
from seqgraph.tokenize import histories, keep_last, leave_one_out

events = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 4)), max_size=40)


def columns(rows):
    user, item, time = zip(*rows, strict=True) if rows else ((), (), ())
    return {"user": list(user), "item": list(item), "time": [float(t) for t in time]}


def by_loop(rows, users):
    """Events of each user, sorted by time; Python's sort keeps the file's order among equals."""
    order = [[(r, i) for r, (u, i, _) in enumerate(rows) if u == user] for user in range(users)]
    return [sorted(found, key=lambda pair: rows[pair[0]][2]) for found in order]


@settings(max_examples=60, deadline=None)
@given(rows=events, limit=st.integers(1, 5) | st.none())
def test_histories_against_a_loop(rows, limit):
    stream = histories(columns(rows), num_users=7, max_history=limit).validate()
    for segment, expected in zip(stream.unbind(), by_loop(rows, 7), strict=True):
        expected = expected[-limit:] if limit else expected
        assert segment.values.tolist() == [item for _, item in expected]
        assert segment.source.tolist() == [row for row, _ in expected]


@settings(max_examples=60, deadline=None)
@given(rows=events, limit=st.integers(1, 3) | st.none())
def test_leave_one_out_against_a_loop(rows, limit):
    cut = leave_one_out(histories(columns(rows), num_users=6), max_history=limit)
    train, valid, test = [], {}, {}
    for user, found in enumerate(by_loop(rows, 6)):
        items = [item for _, item in found]
        if len(items) > 1:
            test[user] = (items[:-1], items[-1])
        if len(items) > 2:
            valid[user] = (items[:-2], items[-2])
        train.append(items[:-2] if len(items) > 2 else items[:1])
    assert [s.values.tolist() for s in cut.train.unbind()] == train
    for found, expected in ((cut.valid, valid), (cut.test, test)):
        assert found.user.tolist() == list(expected)
        assert found.target.tolist() == [target for _, target in expected.values()]
        prefixes = [prefix[-limit:] if limit else prefix for prefix, _ in expected.values()]
        assert [s.values.tolist() for s in found.prefix.unbind()] == prefixes


def test_ties_keep_the_order_of_the_file():
    stream = histories({"user": [1, 0, 1, 1, 0], "item": [10, 11, 12, 13, 14], "time": [5, 2, 5, 1, 2]})
    assert [s.values.tolist() for s in stream.unbind()] == [[11, 14], [13, 10, 12]]
    untimed = histories(SimpleNamespace(user=torch.tensor([1, 0, 1]), item=torch.tensor([3, 4, 5])))
    assert [s.values.tolist() for s in untimed.unbind()] == [[4], [3, 5]]


def test_large_timestamps_are_not_rounded():
    time = torch.tensor([2**53 + 1, 2**53], dtype=torch.int64)
    assert histories({"user": [0, 0], "item": [1, 2], "time": time}).values.tolist() == [2, 1]


def test_a_data_frame_with_a_shuffled_index():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"user": [0, 0, 1], "item": [5, 6, 7], "time": [2, 1, 0]}, index=[2, 0, 1])
    assert histories(frame).values.tolist() == [6, 5, 7]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"item": [1]}, "no column 'user'"),
        ({"user": [0], "item": [1, 2]}, "differ in length: user 1, item 2, time absent"),
        ({"user": [0, -1], "item": [1, 2]}, "user -1 in row 1"),
        ({"user": [0, 1], "item": [1.5, 2]}, "column 'item' holds torch.float32"),
        ({"user": [0, 1], "item": [1, 2], "time": [0.0, float("nan")]}, "row 1 is NaN"),
        ({"user": ["a"], "item": [1]}, "column 'user' cannot be read"),
    ],
)
def test_a_bad_event_is_named(data, message):
    with pytest.raises(DataError, match=message):
        histories(data)


def test_limits():
    with pytest.raises(DataError, match="user 3 in row 1"):
        histories({"user": [0, 3], "item": [1, 1]}, num_users=3)
    with pytest.raises(ConfigError, match="last 0"):
        keep_last(histories({"user": [0], "item": [1]}), 0)
    assert histories({"user": [], "item": []}).validate().num_segments == 0
