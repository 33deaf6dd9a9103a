"""Splits, tie orders, tables and MovieLens' files."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import ConfigError, DataError, PluginError
from seqgraph_mamba4rec.data import EventTable, HistoryDataset, MovieLens, Sequences
from seqgraph_mamba4rec.splits import by_time, by_user, leave_one_out


def histories(data: HistoryDataset) -> dict[str, list[str]]:
    names = np.array(data.item_ids)[data.items]
    return {u: names[a:b].tolist() for u, a, b in zip(data.user_ids, data.borders, data.borders[1:])}


def csv(tmp_path, rows, header="user,item,timestamp", name="e.csv"):
    (tmp_path / name).write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(tmp_path / name)


# ---------------------------------------------------------------------------------------------- splits
events = st.lists(st.lists(st.integers(0, 30), max_size=9).map(sorted), min_size=1, max_size=8)


@given(
    times=events,
    valid=st.floats(0.05, 0.4),
    test=st.floats(0.05, 0.4),
    targets=st.sampled_from(["first", "last", "all"]),
)
@settings(max_examples=60, deadline=None)
def test_a_split_in_time_never_learns_from_what_it_predicts(times, valid, test, targets):
    borders = np.cumsum([0, *map(len, times)])
    flat = np.array([t for row in times for t in row], dtype=float)
    if not len(flat):
        return
    cut = by_time(borders, flat, valid, test, targets)
    trained = np.zeros(len(flat), dtype=bool)
    for a, b in zip(borders[:-1], cut.train_stop):
        assert a <= b
        trained[a:b] = True
    held = np.concatenate([cut.valid, cut.test])
    if trained.any() and len(held):
        assert flat[trained].max() < flat[held].min()
    if len(cut.valid) and len(cut.test):
        assert flat[cut.valid].max() < flat[cut.test].min()
    user = np.searchsorted(borders, held, side="right") - 1
    assert (held > borders[user]).all()  # something stands before each target
    if targets != "all":
        for part in (cut.valid, cut.test):
            of = np.searchsorted(borders, part, side="right") - 1
            assert len(np.unique(of)) == len(of)
    every = by_time(borders, flat, valid, test, "all")
    assert set(cut.test) <= set(every.test) and np.array_equal(cut.train_stop, every.train_stop)
    pick = {"first": min, "last": max}.get(targets)
    if pick:
        of = np.searchsorted(borders, every.test, side="right") - 1
        assert cut.test.tolist() == [pick(every.test[of == u]) for u in np.unique(of)]


def test_a_split_in_time_by_hand(tmp_path):
    rows = [("u", i, t) for t, i in enumerate("abcdef")] + [("v", "x", 2), ("v", "y", 8), ("v", "z", 9), ("w", "q", 9)]
    data = EventTable(csv(tmp_path, rows), split="time", valid_share=0.2, test_share=0.2)
    # Ten events: times 0 1 2 2 3 4 | 5 8 | 9 9.
    name = data.item_ids
    (valid_u, valid_v), (test,) = data.split("valid"), data.split("test")
    assert [name[i] for i in valid_u.history] == list("abcde") and name[valid_u.target[0]] == "f"
    assert [name[i] for i in valid_v.history] == ["x"] and name[valid_v.target[0]] == "y"
    assert [name[i] for i in test.history] == ["x", "y"] and name[test.target[0]] == "z"  # w has nothing before q
    assert [name[i] for i in data.split("train")[0].history] == list("abcd")
    assert data.train_counts()[name.index("y")] == 0  # an item without training, yet it can be asked for
    assert data.train_users().tolist() == [1, 1, 1, 1, 1, 0, 1, 0, 0, 0]
    other = EventTable(csv(tmp_path, rows), split="time", valid_share=0.2, test_share=0.2, targets="all")
    assert data.fingerprint() != other.fingerprint() != EventTable(csv(tmp_path, rows)).fingerprint()
    (tmp_path / "s.txt").write_text("u a b c d\n")
    with pytest.raises(DataError, match=r"no timestamps to split by .*leave-one-out"):
        Sequences(str(tmp_path / "s.txt"), split="time")
    with pytest.raises(ConfigError, match=r"test_share is 1\.1"):
        EventTable(csv(tmp_path, rows), split="time", valid_share=0.6, test_share=0.5)
    with pytest.raises(DataError, match="nothing falls into the valid split"):
        EventTable(csv(tmp_path, rows), split="time", valid_share=0.01, test_share=0.2)


@given(lengths=st.lists(st.integers(0, 6), min_size=12, max_size=40), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_split_by_users_keeps_them_apart(lengths, seed):
    borders = np.cumsum([0, *lengths])
    cut = by_user(borders, 0.2, 0.2, seed)
    owner = [np.searchsorted(borders, part, side="right") - 1 for part in (cut.valid, cut.test)]
    able = sum(n > 1 for n in lengths)
    assert len(owner[0]) == len(owner[1]) == round(able * 0.2) and not set(owner[0]) & set(owner[1])
    held = np.concatenate(owner).astype(int)
    assert (cut.train_stop[held] == borders[held]).all()
    rest = np.setdiff1d(np.arange(len(lengths)), held)
    assert (cut.train_stop[rest] == borders[rest + 1]).all()  # all of their events, the last ones too
    assert all(p == borders[u + 1] - 1 for part, of in zip((cut.valid, cut.test), owner) for p, u in zip(part, of))
    again = by_user(borders, 0.2, 0.2, seed)
    assert np.array_equal(again.test, cut.test)


def test_new_users_are_recommended_to(tmp_path):
    (tmp_path / "s.txt").write_text("".join(f"u{n} a b c d\n" for n in range(20)))
    data = Sequences(str(tmp_path / "s.txt"), split="users")
    assert [len(data.split(s)) for s in ("train", "valid", "test")] == [16, 2, 2]
    assert data.train_counts().tolist() == [16] * 4
    users = {e.user for e in data.split("test")} | {e.user for e in data.split("valid")}
    assert not users & {e.user for e in data.split("train")}
    batch = data.collate(data.split("test")[:])
    assert batch.user.tolist() == [e.user for e in data.split("test")]
    assert data.fingerprint() != Sequences(str(tmp_path / "s.txt"), split="users", split_seed=1).fingerprint()


def test_leave_one_out_of_short_histories():
    cut = leave_one_out(np.array([0, 0, 1, 3, 6]))
    assert cut.train_stop.tolist() == [0, 1, 2, 4] and cut.valid.tolist() == [4] and cut.test.tolist() == [2, 5]


# ---------------------------------------------------------------------------------------------- ties
@pytest.mark.parametrize(("ties", "order"), [("file", "c 10 9 b"), ("reversed", "b 9 10 c"), ("item", "10 9 b c")])
def test_ties_of_text_ids(tmp_path, ties, order):
    rows = [("u", i, 5) for i in ("c", "10", "9", "b")] + [("u", "z", 1)]
    data = EventTable(csv(tmp_path, rows), ties=ties)
    assert histories(data)["u"] == ["z", *order.split()]


def test_ties_of_numbers_are_by_number(tmp_path):
    """As in LRURec's MovieLens-1M, where films of one second are in the order of their ids."""
    rows = [("u", i, 5) for i in ("10", "9", "100")] + [("u", "11", 1)]
    one, other = (EventTable(csv(tmp_path, rows), ties=ties) for ties in ("item", "file"))
    assert histories(one)["u"] == ["11", "9", "10", "100"]
    assert one.fingerprint() != other.fingerprint()


# ---------------------------------------------------------------------------------------------- tables
def test_csv_of_clicks(tmp_path):
    rows = [("ann", '"a, b"', 30), ("bob", "x", 1), ("ann", "c", 10.5), ("ann", "d", "1e1"), ("ann", "e", 99)]
    data = EventTable(csv(tmp_path, rows))
    assert histories(data) == {"ann": ["d", "c", "a, b", "e"], "bob": ["x"]}
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress((tmp_path / "e.csv").read_bytes()))
    assert EventTable(str(tmp_path / "e.csv.gz")).fingerprint() == data.fingerprint()
    by_row = EventTable(csv(tmp_path, rows), order="file")
    assert histories(by_row)["ann"] == ["a, b", "c", "d", "e"]
    tabs = csv(tmp_path, [], "\t".join(["who", "x", "what", "when"]), "e.tsv")
    with open(tabs, "a") as file:
        file.writelines(
            f"u\t-\t{item}\t{day}\n" for item, day in zip("bac", ("2020-01-02", "2020-01-01T23:00", "2021-05-05"))
        )
    fields = {"user_field": "who", "item_field": "what", "time_field": "when"}
    assert histories(EventTable(tabs, **fields))["u"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("user,item", [("u", "a")], r"no column 'timestamp' .*data\.order=file"),
        ("user,film,timestamp", [("u", "a", 1)], "no column 'item' \\(there are user, film, timestamp"),
        ("user,item,timestamp", [("u", "a", 1), ("u", "b")], "line 3: 2 fields where the header has 3"),
        ("user,item,timestamp", [("u", "", 1)], "line 2: empty item"),
        ("user,item,timestamp", [("u", "a", "soon")], "line 2: timestamp 'soon' .*or a date like"),
        ("user,item,timestamp", [("u", "a", "2020-13-01")], "line 2: timestamp '2020-13-01' .*or a date like"),
        ("user,item,timestamp", [], "a header and no events"),
    ],
)
def test_bad_csv(tmp_path, header, rows, message):
    with pytest.raises(DataError, match=rf"e\.csv.*{message}"):
        EventTable(csv(tmp_path, rows, header))


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "e.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"e\.xlsx: neither"):
        EventTable(str(tmp_path / "e.xlsx"))
    with pytest.raises(DataError, match="--data-root"):
        EventTable()


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from datetime import datetime

    from pyarrow import parquet

    path, users = str(tmp_path / "e.parquet"), [7, 7, 7, 8]
    times = [datetime(2020, 1, 2), datetime(2020, 1, 1), datetime(2020, 1, 3), datetime(2020, 1, 1)]
    for column in (times, [2.0, 1.0, 3.0, 1.0], [2, 1, 3, 1]):
        parquet.write_table(pyarrow.table({"user": users, "item": list("abca"), "timestamp": column}), path)
        assert histories(EventTable(path)) == {"7": ["b", "a", "c"], "8": ["a"]}
    assert histories(EventTable(path, order="file"))["7"] == ["a", "b", "c"]
    for table, message in (
        ({"user": users, "item": list("abca")}, r"no column 'timestamp'.*order=file"),
        ({"user": users, "item": ["a", None, "b", "c"], "timestamp": [1, 2, 3, 4]}, "row 1: empty item"),
        ({"user": users, "item": list("abca"), "timestamp": [1.0, 2.0, float("nan"), 4.0]}, "row 2: empty timestamp"),
        ({"user": [], "item": [], "timestamp": []}, "no events"),
    ):
        parquet.write_table(pyarrow.table(table), path)
        with pytest.raises(DataError, match=rf"e\.parquet.*{message}"):
            EventTable(path)
    (tmp_path / "e.parquet").write_text("user,item")
    with pytest.raises(DataError, match="not a Parquet file"):
        EventTable(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(PluginError, match="pip install pyarrow"):
        EventTable(str(tmp_path / "e.parquet"))


# ---------------------------------------------------------------------------------------------- MovieLens
@pytest.mark.parametrize(
    ("name", "line", "titles", "title"),
    [
        ("u.data", "{}\t{}\t{}\t{}", "u.item", "1|Émile (1995)|01-Jan-1995||\n"),
        ("ratings.dat", "{}::{}::{}::{}", "movies.dat", "1::Émile (1995)::Drama\n"),
        ("ratings.csv", "{},{},{},{}", "movies.csv", 'movieId,title,genres\n1,"Émile (1995)",Drama\n'),
    ],
)
def test_movielens_files(tmp_path, name, line, titles, title):
    rows = [(1, 3, 4.0, 30), (1, 1, 1.5, 10), (1, 2, 5.0, 20), (2, 1, 3.0, 5)]
    text = "".join(line.format(*row) + "\n" for row in rows)
    (tmp_path / name).write_text(("userId,movieId,rating,timestamp\n" if name == "ratings.csv" else "") + text)
    (tmp_path / titles).write_text(title, encoding="utf-8" if titles == "movies.csv" else "latin-1")
    data = MovieLens(str(tmp_path))
    assert histories(data) == {"1": ["1", "2", "3"], "2": ["1"]}
    assert data.assets()["titles"] == {"1": "Émile (1995)"}
    assert MovieLens(str(tmp_path / name)).fingerprint() == data.fingerprint()
    with pytest.raises(DataError, match="no user has three"):
        MovieLens(str(tmp_path), min_rating=2)
    (tmp_path / name).write_text(text + "1\n")
    with pytest.raises(DataError, match=rf"{name}, line 5: 1 fields"):
        MovieLens(str(tmp_path))
    with pytest.raises(DataError, match=r"none of ratings\.csv, ratings\.dat, u\.data"):
        MovieLens(str(tmp_path / "nowhere"))
