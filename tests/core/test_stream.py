"""TokenStream against naive loops over Python lists."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.stream import TokenStream

SOURCES = 6


@st.composite
def ragged(draw, width=None, min_segments=0):
    """Segments of random lengths with their sources and roles; some segments are empty."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=min_segments, max_size=6))
    torch.manual_seed(draw(st.integers(0, 999)))
    shape = () if width is None else (width,)
    values = [torch.randint(0, 50, (n, *shape)) for n in lengths]
    if width is not None:
        values = [v.double() / 7 for v in values]
    source = [torch.randint(0, SOURCES, (n,)) for n in lengths]
    role = [torch.randint(0, 3, (n,), dtype=torch.int8) for n in lengths]
    return values, source, role


def packed(parts) -> TokenStream:
    values, source, role = parts
    return TokenStream.from_ragged(values, source=source, role=role).validate()


both_kinds = ragged() | ragged(width=3)


@settings(max_examples=50, deadline=None)
@given(parts=both_kinds)
def test_from_ragged_and_back(parts):
    values, source, role = parts
    stream = packed(parts)
    assert len(stream) == stream.num_segments == len(values)
    assert stream.lengths.tolist() == [len(v) for v in values]
    assert stream.cu_seqlens.tolist() == [sum(map(len, values[:i])) for i in range(len(values) + 1)]
    assert stream.segment.tolist() == [s for s, v in enumerate(values) for _ in v]
    assert stream.position.tolist() == [t for v in values for t in range(len(v))]
    for part, v, s, r in zip(stream.unbind(), values, source, role, strict=True):
        assert part.num_segments == 1
        assert part.values.tolist() == v.tolist()
        assert part.source.tolist() == s.tolist()
        assert part.role.tolist() == r.tolist()


def test_from_ragged_keeps_the_dtype_of_the_full_ones():
    stream = TokenStream.from_ragged([[], [3, 4], torch.empty(0), [5]]).validate()
    assert stream.values.dtype == torch.int64
    assert stream.values.tolist() == [3, 4, 5]
    assert stream.lengths.tolist() == [0, 2, 0, 1]
    assert stream.source.tolist() == [0, 1, 2]
    wide = TokenStream.from_ragged([torch.empty(0, 4), torch.ones(2, 4)]).validate()
    assert wide.values.shape == (2, 4)
    nothing = TokenStream.from_ragged([]).validate()
    assert (nothing.num_segments, nothing.num_tokens) == (0, 0)
    hollow = TokenStream.from_ragged([torch.empty(0, 4), torch.empty(0, 4)]).validate()
    assert hollow.values.shape == (0, 4)
    assert hollow.num_segments == 2


def test_from_ragged_refuses_other_lengths():
    with pytest.raises(ValueError, match="source"):
        TokenStream.from_ragged([[1, 2]], source=[torch.tensor([0])])
    with pytest.raises(ValueError, match="role"):
        TokenStream.from_ragged([[1, 2]], role=[torch.tensor([0, 1], dtype=torch.int8), torch.tensor([1])])


@settings(max_examples=50, deadline=None)
@given(parts=both_kinds, fill=st.integers(-2, 2))
def test_to_dense_and_back(parts, fill):
    values, _, _ = parts
    stream = packed(parts)
    dense, lengths = stream.to_dense(fill)
    longest = max(map(len, values), default=0)
    assert dense.shape[:2] == (len(values), longest)
    for row, value in zip(dense, values, strict=True):
        assert row[: len(value)].tolist() == value.tolist()
        assert bool((row[len(value) :] == fill).all())
    back = TokenStream.from_dense(dense, lengths).validate()
    assert torch.equal(back.values, stream.values)
    assert torch.equal(back.cu_seqlens, stream.cu_seqlens)
    flat = dense.flatten(0, 1)
    assert torch.equal(flat[back.source], back.values)


def test_from_dense_takes_whole_rows_or_complains():
    dense = torch.arange(6).view(2, 3)
    assert TokenStream.from_dense(dense).lengths.tolist() == [3, 3]
    assert TokenStream.from_dense(dense, [0, 2]).values.tolist() == [3, 4]
    assert TokenStream.from_dense(dense[:0]).validate().num_segments == 0
    for lengths in ([1], [1, 4], [-1, 2]):
        with pytest.raises(ValueError, match="lengths"):
            TokenStream.from_dense(dense, lengths)


@settings(max_examples=50, deadline=None)
@given(parts=both_kinds, data=st.data())
def test_choosing_segments(parts, data):
    stream, count = packed(parts), len(parts[0])
    chosen = data.draw(st.lists(st.integers(-count, count - 1), max_size=5)) if count else []
    expected = [stream[i % count] for i in chosen]
    for index in (chosen, torch.tensor(chosen, dtype=torch.int64)):
        found = stream[index].validate()
        assert [s.values.tolist() for s in found.unbind()] == [s.values.tolist() for s in expected]
        assert found.source.tolist() == [i for s in expected for i in s.source.tolist()]
        assert found.role.tolist() == [i for s in expected for i in s.role.tolist()]
    start, stop, step = (data.draw(st.none() | st.integers(-7, 7)) for _ in range(3))
    if step is None or step > 0:
        found = stream[start:stop:step].validate()
        assert found.equal(stream[list(range(count))[start:stop:step]])
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=torch.bool)
    assert stream[mask].equal(stream[mask.nonzero()[:, 0]])


@settings(max_examples=50, deadline=None)
@given(streams=st.lists(ragged(), min_size=1, max_size=4))
def test_concat(streams):
    packs = [packed(parts) for parts in streams]
    joined = TokenStream.concat(packs).validate()
    flat = [
        torch.cat(field)
        for field in zip(
            *[
                [
                    torch.cat([t[:0], *p]) if p else t[:0]
                    for p, t in zip(parts, (s.values, s.source, s.role), strict=True)
                ]
                for parts, s in zip(streams, packs, strict=True)
            ],
            strict=True,
        )
    ]
    assert torch.equal(joined.values, flat[0])
    assert torch.equal(joined.source, flat[1])
    assert torch.equal(joined.role, flat[2])
    assert joined.lengths.tolist() == [len(v) for parts in streams for v in parts[0]]
    sizes = [SOURCES + i for i in range(len(packs))]
    apart = TokenStream.concat(packs, source_sizes=sizes).validate()
    expected = [i + sum(sizes[:n]) for n, s in enumerate(packs) for i in s.source.tolist()]
    assert apart.source.tolist() == expected


def test_concat_refuses_nothing_and_mixed_roles():
    with pytest.raises(ValueError, match="nothing"):
        TokenStream.concat([])
    plain = TokenStream.from_ragged([[1]])
    with pytest.raises(ValueError, match="roles"):
        TokenStream.concat([plain, TokenStream.from_ragged([[1]], role=[[0]])])
    with pytest.raises(ValueError):
        TokenStream.concat([plain, plain], source_sizes=[1])


@settings(max_examples=50, deadline=None)
@given(parts=both_kinds)
def test_reverse_is_its_own_inverse(parts):
    stream = packed(parts)
    backwards = stream.reverse().validate()
    assert [s.values.tolist() for s in backwards.unbind()] == [v.flip(0).tolist() for v in parts[0]]
    assert [s.source.tolist() for s in backwards.unbind()] == [s.flip(0).tolist() for s in parts[1]]
    assert [s.role.tolist() for s in backwards.unbind()] == [r.flip(0).tolist() for r in parts[2]]
    assert backwards.reverse().equal(stream)


@settings(max_examples=50, deadline=None)
@given(parts=both_kinds, reduce=st.sampled_from(["sum", "mean", "last"]))
def test_scatter_to_source(parts, reduce):
    stream = packed(parts)
    found = stream.scatter_to_source(SOURCES + 1, reduce)
    expected = torch.zeros(SOURCES + 1, *stream.values.shape[1:], dtype=torch.float64)
    for i in range(SOURCES):
        tokens = [v.double() for v, s in zip(stream.values, stream.source.tolist(), strict=True) if s == i]
        if tokens:
            total = torch.stack(tokens).sum(0)
            expected[i] = {"sum": total, "mean": total / len(tokens), "last": tokens[-1]}[reduce]
    assert found.shape == expected.shape
    if reduce != "mean":
        assert found.dtype == stream.values.dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(parts=both_kinds, reduce=st.sampled_from(["sum", "mean", "max", "first", "last"]))
def test_pool(parts, reduce):
    stream = packed(parts)
    found = stream.pool(reduce)
    expected = torch.zeros(len(parts[0]), *stream.values.shape[1:], dtype=torch.float64)
    for i, values in enumerate(parts[0]):
        if len(values):
            v = values.double()
            expected[i] = {"sum": v.sum(0), "mean": v.mean(0), "max": v.amax(0), "first": v[0], "last": v[-1]}[reduce]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_maximum_of_negatives_is_negative():
    stream = TokenStream.from_ragged([torch.tensor([-3.0, -2.0]), torch.empty(0), torch.tensor([-1.0])])
    assert stream.pool("max").tolist() == [-2.0, 0.0, -1.0]


def test_gradients_flow_back_to_the_values():
    values = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)

    def stream(v):
        return TokenStream.from_lengths(v, [2, 0, 3], source=torch.tensor([0, 1, 0, 2, 2]))

    for reduce in ("sum", "mean", "last"):
        assert torch.autograd.gradcheck(lambda v, r=reduce: stream(v).scatter_to_source(4, r), values)
    for reduce in ("sum", "mean", "max", "first", "last"):
        assert torch.autograd.gradcheck(lambda v, r=reduce: stream(v).pool(r), values)
    assert torch.autograd.gradcheck(lambda v: stream(v).reverse().values, values)
    assert torch.autograd.gradcheck(lambda v: stream(v)[[2, 0]].values, values)
    assert torch.autograd.gradcheck(lambda v: stream(v).to_dense()[0], values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_reading_back_keeps_the_dtype(dtype):
    stream = TokenStream.from_lengths(torch.ones(4, 2, dtype=dtype), [1, 3], source=torch.tensor([0, 1, 1, 1]))
    assert stream.scatter_to_source(3, "mean").dtype == dtype
    assert stream.pool("mean").dtype == dtype


@pytest.mark.parametrize("shape", [(), (1,), (8,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_do_not_stop_counting(shape, dtype):
    values = torch.ones(6000, *shape, dtype=dtype)
    stream = TokenStream.from_lengths(values, [6000], source=torch.arange(6000) % 2)
    assert set(stream.pool("mean").flatten().tolist()) == {1.0}
    assert set(stream.scatter_to_source(2, "mean").flatten().tolist()) == {1.0}
    assert torch.equal(stream.pool("sum"), torch.full((1, *shape), 6000, dtype=dtype))


def test_the_mean_of_integers_is_a_float_even_of_none():
    for lengths in ([2, 0], [0]):
        stream = TokenStream.from_lengths(torch.arange(1, 1 + sum(lengths)), lengths)
        assert stream.pool("mean").dtype == torch.float32
        assert stream.scatter_to_source(3, "mean").dtype == torch.float32
    assert TokenStream.from_ragged([[1, 2], []]).pool("mean").tolist() == [1.5, 0.0]


def broken(**changes):
    good = {
        "values": torch.zeros(3),
        "cu_seqlens": torch.tensor([0, 1, 3], dtype=torch.int32),
        "source": torch.zeros(3, dtype=torch.int64),
        "role": torch.zeros(3, dtype=torch.int8),
    }
    return TokenStream(**{**good, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 1, 3])}, "cu_seqlens must be int32"),
        ({"cu_seqlens": torch.tensor([], dtype=torch.int32)}, "cu_seqlens must be int32"),
        ({"cu_seqlens": torch.tensor([[0, 3]], dtype=torch.int32)}, "cu_seqlens must be int32"),
        ({"cu_seqlens": torch.tensor([0, 2], dtype=torch.int32)}, "rise from 0 to 3"),
        ({"cu_seqlens": torch.tensor([1, 3], dtype=torch.int32)}, "rise from 0 to 3"),
        ({"cu_seqlens": torch.tensor([0, 2, 1, 3], dtype=torch.int32)}, "rise from 0 to 3"),
        ({"source": torch.zeros(3, dtype=torch.int32)}, "source must be int64"),
        ({"source": torch.zeros(2, dtype=torch.int64)}, "source must be int64"),
        ({"role": torch.zeros(3, dtype=torch.int64)}, "role must be int8"),
        ({"role": torch.zeros(4, dtype=torch.int8)}, "role must be int8"),
    ],
)
def test_validate_names_the_field(changes, message):
    assert broken().validate().num_segments == 2
    with pytest.raises(ValueError, match=message):
        broken(**changes).validate()


def test_small_promises():
    stream = broken()
    assert stream.with_values(torch.ones(3, 2)).values.shape == (3, 2)
    with pytest.raises(ValueError, match="2 values for 3 tokens"):
        stream.with_values(torch.ones(2))
    with pytest.raises(IndexError):
        stream[2]
    with pytest.raises(ValueError, match="median"):
        stream.pool("median")
    with pytest.raises(ValueError, match="max"):
        stream.scatter_to_source(1, "max")
    assert stream.to("cpu").equal(stream)
    assert not stream.equal(broken(role=None))
    assert not stream.equal(broken(values=torch.zeros(3, dtype=torch.float64)))
    assert not stream.equal(broken(role=torch.ones(3, dtype=torch.int8)))
    assert "2 segments, 3 tokens" in repr(stream)
    borders = stream.cu_seqlens.tolist()
    assert [b - a for a, b in pairwise(borders)] == stream.lengths.tolist()


def test_sequences_of_different_widths_are_named():
    with pytest.raises(ValueError, match="sequence 1 differs in width"):
        TokenStream.from_ragged([torch.zeros(2, 3), torch.zeros(2, 4)])


def test_the_longest_segment_is_known_where_lengths_are():
    stream = TokenStream.from_ragged([torch.zeros(5, 2), torch.zeros(0, 2), torch.zeros(3, 2)])
    assert stream.max_seqlen == 5 == stream.reverse().max_seqlen == stream[0].max_seqlen
    assert TokenStream.concat([stream, TokenStream.from_ragged([torch.zeros(7, 2)])]).max_seqlen == 7
    assert TokenStream(stream.values, stream.cu_seqlens, stream.source).max_seqlen is None
    assert TokenStream.from_ragged([]).max_seqlen == 0


def test_a_longest_segment_that_is_too_short_is_refused():
    stream = TokenStream.from_lengths(torch.zeros(8, 2), [5, 3], max_seqlen=4)
    with pytest.raises(ValueError, match="max_seqlen is 4, and a segment has 5"):
        stream.validate()
