"""Histories from files: order, split, windows, filters, and what is refused."""

from __future__ import annotations

import gzip
import importlib.util
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import DataError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.history import leave_one_out
from seqgraph_mamba4rec.config import (
    EventTableConfig,
    MovieLens100KConfig,
    MovieLensConfig,
    RecBoleInterConfig,
    SequencesConfig,
)
from seqgraph_mamba4rec.data import EventTable, HistoryDataset, MovieLens, MovieLens100K, RecBoleInter, Sequences
from seqgraph_mamba4rec.reading import read_requests

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def inter(tmp_path, rows, header=HEADER):
    return write(tmp_path / "x.inter", header + "".join("\t".join(map(str, row)) + "\n" for row in rows))


def histories(data: HistoryDataset) -> dict[str, list[str]]:
    """Raw ids by user, in the order the data set settled on."""
    names = np.array(data.item_ids)[data.items]
    return {u: names[a:b].tolist() for u, a, b in zip(data.user_ids, data.borders, data.borders[1:])}


def histories_of(data: HistoryDataset) -> TokenStream:
    return TokenStream.from_lengths(torch.from_numpy(data.items), np.diff(data.borders))


def text(tmp_path, rows: dict[str, list[str]]):
    return write(tmp_path / "s.txt", "".join(f"{u} {' '.join(items)}\n" for u, items in rows.items()))


# ---------------------------------------------------------------------------------------------- order and split
def test_events_are_sorted_by_time_and_ties_keep_the_order_of_the_file(tmp_path):
    rows = [("u", "c", 5, 30), ("v", "a", 5, 1), ("u", "a", 5, 10), ("u", "b", 5, 10), ("u", "d", 5, 10)]
    rows += [("v", "d", 5, 1), ("v", "b", 5, 0.5)]
    data = RecBoleInter(inter(tmp_path, rows))
    assert histories(data) == {"u": ["a", "b", "d", "c"], "v": ["b", "a", "d"]}
    assert data.item_ids == ["c", "a", "b", "d"]  # by first appearance in the file, as RecBole numbers them
    assert histories(RecBoleInter(inter(tmp_path, rows), order="file"))["u"] == ["c", "a", "b", "d"]


def test_leave_one_out(tmp_path):
    data = Sequences(text(tmp_path, {"u": list("abcde"), "short": list("ab"), "one": ["c"]}), max_history=2)
    name = data.item_ids
    test, valid = data.split("test"), data.split("valid")
    assert len(test) == 2 and len(valid) == 1  # of two events only the last is held out, of one none
    assert [name[i] for i in test[1].history] == ["a"] and [name[i] for i in test[1].target] == ["b"]
    assert [name[i] for i in test[0].history] == ["c", "d"] and [name[i] for i in test[0].target] == ["e"]
    assert [name[i] for i in test[0].seen] == list("abcd")  # all of it, beyond max_history too
    assert [name[i] for i in valid[0].history] == ["b", "c"] and [name[i] for i in valid[0].target] == ["d"]
    pairs = [(name[i], name[t]) for e in data.split("train") for i, t in zip(e.history, e.target)]
    assert sorted(pairs) == [("a", "b"), ("b", "c")]
    assert data.train_counts().tolist() == [2, 1, 2, 0, 0]  # a, b, c of u; a of short; c of one
    cut = leave_one_out(histories_of(data), max_history=2)
    for mine, core in ((test, cut.test), (valid, cut.valid)):
        batch = data.collate(mine[:])
        assert torch.equal(batch.target, core.target)
        assert torch.equal(batch.stream.values, core.prefix.values)
        assert torch.equal(batch.stream.cu_seqlens, core.prefix.cu_seqlens)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    max_history=st.one_of(st.none(), st.integers(1, 7)),
    examples=st.sampled_from(["histories", "prefixes"]),
)
@settings(max_examples=40, deadline=None)
def test_every_training_event_is_predicted_once_from_what_came_before_it(
    lengths, max_history, examples, tmp_path_factory
):
    lengths = [*lengths, 3]
    # Items numbered in order, so that a history must be a run of consecutive numbers.
    starts = np.cumsum([0, *lengths])
    rows = {str(u): [str(i) for i in range(a, b)] for u, (a, b) in enumerate(pairwise(starts))}
    path = text(tmp_path_factory.mktemp("x"), rows)
    data = Sequences(path, max_history=max_history, examples=examples)
    train = data.split("train")
    predicted = [t for e in train for t in e.target.tolist()]
    wanted = [i for a, b in pairwise(starts) for i in range(a + 1, b - (b - a > 1) - (b - a > 2))]
    assert sorted(predicted) == wanted
    for e, length in zip(train, data.lengths("train"), strict=True):
        assert 1 <= len(e) == length <= (max_history or 12)
        run = [*e.history.tolist(), e.target[-1]]
        assert run == list(range(run[0], run[0] + len(run)))
        assert len(e.target) == (len(e) if examples == "histories" else 1)
        user = np.searchsorted(starts, run[-1], side="right")
        assert run[0] >= starts[user - 1]
        if examples == "prefixes":  # the whole prefix, as long as it may be
            assert len(e) == min(run[-1] - starts[user - 1], max_history or 12)


def test_a_batch_says_which_token_predicts_what(tmp_path):
    rows = {"u": list("abcdefg"), "v": list("hijk")}
    for examples, count in (("histories", 5), ("prefixes", 5)):
        data = Sequences(text(tmp_path, rows), max_history=3, examples=examples)
        train = data.split("train")
        batch = data.collate(train[:])
        batch.stream.validate()
        assert batch.stream.num_tokens == sum(data.lengths("train")) and len(batch.at) == count
        # Items are numbered along each history here, so the next item is the number plus one.
        assert torch.equal(batch.stream.values[batch.at] + 1, batch.target)
        assert torch.equal(batch.stream.source, batch.stream.values)
    batch = data.collate(data.split("test")[:])
    assert batch.at.tolist() == (batch.stream.cu_seqlens[1:] - 1).tolist()
    assert batch.seen.validate().lengths.tolist() == [6, 3]
    assert batch.to("cpu").seen.equal(batch.seen)


def test_k_core_repeats_until_nothing_is_rare(tmp_path):
    # x goes (one event), then u3 has two events left and goes, then y is rare and goes too.
    rows = {"u1": list("abcd"), "u2": list("abcd"), "u3": ["a", "y", "x"], "u4": ["a", "b", "c", "y"]}
    data = Sequences(text(tmp_path, rows), k_core=3)
    kept = histories(data)
    assert kept == {"u1": ["a", "b", "c"], "u2": ["a", "b", "c"], "u4": ["a", "b", "c"]}
    with pytest.raises(DataError, match="nothing is left of the 9-core"):
        Sequences(text(tmp_path, rows), k_core=9)


@pytest.mark.parametrize(("policy", "left"), [("keep", "abacba"), ("first", "abc"), ("last", "cba")])
def test_duplicates(tmp_path, policy, left):
    data = Sequences(text(tmp_path, {"u": list("abacba"), "v": list("abc")}), duplicates=policy)
    assert "".join(histories(data)["u"]) == left


def test_duplicates_by_time_not_by_line(tmp_path):
    rows = [("u", "a", 1, 9), ("u", "b", 1, 2), ("u", "a", 1, 1), ("u", "c", 1, 3), ("u", "d", 1, 4)]
    first = histories(RecBoleInter(inter(tmp_path, rows), duplicates="first"))
    last = histories(RecBoleInter(inter(tmp_path, rows), duplicates="last"))
    assert first == {"u": list("abcd")} and last == {"u": list("bcda")}
    with pytest.raises(DataError, match=r"x\.inter: user 'u' meets item 'a' more than once \(1 such"):
        RecBoleInter(inter(tmp_path, rows), duplicates="error")
    RecBoleInter(inter(tmp_path, rows[1:]), duplicates="error")


def test_fingerprint_knows_the_order_and_the_settings(tmp_path):
    rows = {"u": list("abcde"), "v": list("edcba")}
    path = text(tmp_path, rows)
    one = Sequences(path).fingerprint()
    assert one == Sequences(path).fingerprint() and len(one) == 16
    others = {Sequences(path, max_history=3).fingerprint(), Sequences(path, examples="prefixes").fingerprint()}
    rows["u"] = list("abced")
    others.add(Sequences(text(tmp_path, rows)).fingerprint())
    assert len(others | {one}) == 4


def test_layouts_and_gzip(tmp_path):
    pairs = write(tmp_path / "p.txt", "u a\nv x\nu b\nu c\nv y\n")
    data = Sequences(pairs, layout="pairs")
    assert histories(data) == {"u": ["a", "b", "c"], "v": ["x", "y"]}
    packed = tmp_path / "p.txt.gz"
    packed.write_bytes(gzip.compress(b"u a\nv x\nu b\nu c\nv y\n"))
    assert histories(Sequences(str(packed), layout="pairs")) == histories(data)


# ---------------------------------------------------------------------------------------------- real data
def test_ml_100k(shared_data):
    data = MovieLens100K(str(shared_data / "recommendation" / "ml-100k_recbole"))
    assert (data.num_users, data.num_items, len(data.items)) == (943, 1682, 100_000)
    assert sum(data.lengths("train")) == 97_171  # targets of one epoch
    assert sum(map(len, (data.split("valid"), data.split("test")))) == 2 * 943
    assets = data.assets()
    assert assets["titles"]["1"] == "Toy Story" and len(assets["item_ids"]) == 1682
    if importlib.util.find_spec("recbole"):
        assert MovieLens100K().fingerprint() == data.fingerprint()  # the installed copy is the same


@pytest.mark.parametrize(
    ("file", "layout", "size"),
    [
        ("s3rec_amazon/Beauty.txt.gz", "histories", (22_363, 12_101, 198_502)),
        ("sasrec_games_beauty/SASRec_Video.txt.gz", "pairs", (31_013, 23_715, 287_107)),
    ],
)
def test_published_files_have_their_published_sizes(shared_data, file, layout, size):
    data = Sequences(str(shared_data / "recommendation" / file), layout=layout)
    assert (data.num_users, data.num_items, len(data.items)) == size


# ---------------------------------------------------------------------------------------------- bad input
GOOD = [("u", i, 1, t) for t, i in enumerate("abc")]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("user_id:token\titem_id:token\n", [("u", "a")], r"x\.inter: no column timestamp:float.*data\.order=file"),
        ("user_id\titem_id\ttimestamp\n", [], r"x\.inter, line 1: not a RecBole header"),
        ("u:token\titem_id:token\ttimestamp:float\n", [], r"x\.inter, line 1: no column 'user_id'"),
        (HEADER, [], r"x\.inter: a header and no events"),
        (HEADER, [*GOOD, ("u", "d", 1, "yesterday")], r"x\.inter, line 5: timestamp 'yesterday' is not a number"),
        (HEADER, [("u", "d", 1, "nan")], r"x\.inter, line 2: timestamp 'nan'"),
        (HEADER, [*GOOD, ("u", "d")], r"x\.inter, line 5: 2 fields where the header has 4"),
        (HEADER, [("u", "", 1, 1)], r"x\.inter, line 2: empty item_id"),
        (HEADER, GOOD[:2], r"x\.inter: no user has three events"),
    ],
)
def test_bad_inter(tmp_path, header, rows, message):
    with pytest.raises(DataError, match=message):
        RecBoleInter(inter(tmp_path, rows, header))


def test_no_timestamp_is_fine_when_the_user_says_so(tmp_path):
    rows = [("u", i) for i in "cab"]
    path = inter(tmp_path, rows, "user_id:token\titem_id:token\n")
    assert histories(RecBoleInter(path, order="file")) == {"u": list("cab")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"\n  \n", "the file is empty"),
        (b"u a b\nu c\n", r"line 2: user 'u' was on line 1 already.*layout=pairs"),
        (b"u a b\nv\n", r"line 2: user 'v' has no item"),
        (b"u a b\nv \xff\n", "not UTF-8"),
    ],
)
def test_bad_text(tmp_path, content, message):
    path = tmp_path / "s.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"s\.txt.*{message}"):
        Sequences(str(path))


@pytest.mark.parametrize(
    ("rows", "options", "message", "cure"),
    [
        ("u a b\nv c\n", {}, "no user has three events", "give longer histories"),
        ("u a b\nv a b\n", {"k_core": 2}, "no user has three events", "lower data.k_core"),
        ("u a\nv a\n", {"split": "users"}, "no user has two events", "give longer histories"),
        ("u a b\nv a b\n", {"split": "users"}, "nothing falls into the valid split", "raise data.valid_share"),
    ],
)
def test_histories_too_short_to_hold_anything_out(tmp_path, rows, options, message, cure):
    with pytest.raises(DataError, match=rf"s\.txt: {message}") as caught:
        Sequences(write(tmp_path / "s.txt", rows), **options)
    assert caught.value.hint == cure


def test_bad_gzip_pairs_folders_and_missing_roots(tmp_path):
    (tmp_path / "s.txt.gz").write_bytes(gzip.compress(b"".join(b"u%d a b c\n" % i for i in range(5000)))[:-20])
    with pytest.raises(DataError, match="damaged gzip"):
        Sequences(str(tmp_path / "s.txt.gz"))
    with pytest.raises(DataError, match=r"line 1: 4 fields .*layout=histories"):
        Sequences(write(tmp_path / "p.txt", "u a b c\n"), layout="pairs")
    with pytest.raises(DataError, match="is a folder"):
        Sequences(str(tmp_path))
    with pytest.raises(DataError, match=r"no \.inter file"):
        RecBoleInter(str(tmp_path))
    with pytest.raises(DataError, match="--data-root"):
        RecBoleInter()
    with pytest.raises(DataError, match="--data-root"):
        Sequences()
    for name in ("a", "b"):
        write(tmp_path / f"{name}.inter", HEADER)
    with pytest.raises(DataError, match=r"more than one .inter file \(a\.inter, b\.inter\)"):
        RecBoleInter(str(tmp_path))


def test_ml_100k_without_recbole_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"data\.root") as caught:
        MovieLens100K()
    assert "RecBole" in caught.value.message and caught.value.hint


def test_titles(tmp_path):
    rows = [("u", i, 1, t) for t, i in enumerate("abc")]
    write(tmp_path / "x.item", "item_id:token\tname:token_seq\na\tAlpha\nz\tZeta\n")
    data = RecBoleInter(inter(tmp_path, rows), title_field="name")
    assert data.assets()["titles"] == {"a": "Alpha"}
    with pytest.raises(DataError, match=r"x\.item, line 1: no column 'nom'"):
        RecBoleInter(inter(tmp_path, rows), title_field="nom")


def test_requests(tmp_path):
    path = tmp_path / "u.csv"
    write(path, "timestamp,user,item\n3,u,c\n1,u,a\n\n1,u,b\n9,v,x\n")
    assert read_requests(path) == {"u": [("a", 3), ("b", 5), ("c", 2)], "v": [("x", 6)]}
    write(path, "user,item\nu,c\nu,a\n")
    assert read_requests(path) == {"u": [("c", 2), ("a", 3)]}
    for content, message in [
        ("user,film\nu,a\n", "no column 'item'"),
        ("user,item\n", "no events"),
        ("user,item\nu,a\n\nu\n", r"line 4: 1 fields"),
        ("user,item\nu,\n", "line 2: empty item"),
        ("user,item,timestamp\nu,a,soon\n", "line 2: timestamp 'soon'"),
    ]:
        write(path, content)
        with pytest.raises(DataError, match=rf"u\.csv.*{message}"):
            read_requests(path)


@pytest.mark.parametrize(
    ("dataset", "config"),
    [
        (MovieLens100K, MovieLens100KConfig),
        (MovieLens, MovieLensConfig),
        (RecBoleInter, RecBoleInterConfig),
        (EventTable, EventTableConfig),
        (Sequences, SequencesConfig),
    ],
)
def test_config_fields_are_the_constructors_keywords(dataset, config, tmp_path):
    import inspect

    own = {p.name: p.default for p in inspect.signature(dataset).parameters.values() if p.kind != p.VAR_KEYWORD}
    base = inspect.signature(HistoryDataset).parameters
    own |= {n: p.default for n, p in base.items() if n not in ("events", "titles", "retime")}
    fields = {name: field.default for name, field in config.model_fields.items()}
    assert own == fields
