"""The compiled CPU backend against the fp64 reference, and the identities that hold for any ragged batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

RAGGED = [0, 3, 0, 1, 70, 33, 64, 2, 0]
WAYS = [
    ("forward", "sum", False), ("reverse", "sum", False), ("both", "sum", False), ("both", "none", False),
    ("both", "sum", True), ("both", "none", True),
]  # fmt: skip


@pytest.mark.parametrize(("direction", "combine", "own"), WAYS)
@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize(("E", "N"), [(5, 3), (70, 16), (16, 1)])
def test_scan(check, direction, combine, own, options, E, N):
    case = check.scan_case(RAGGED, E, N, direction=direction, combine=combine, own=own, options=options)
    assert check.against_reference(check.scan, case, backend="cpu") < (3e-6, "")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_in_half_precision(check, dtype):
    case = check.scan_case([40, 0, 5], 20, 8, direction="both")
    assert check.against_reference(check.scan, case, backend="cpu", dtype=dtype) < (1e-2, "")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "dt", "B", "z"])
def test_what_is_not_finite_stays_in_its_segment(check, name, bad):
    lengths = [3, 40, 0, 5, 70, 1]
    tensors, keywords = check.scan_case(lengths, 40, 8, direction="both")
    leaves = {key: value.float() for key, value in tensors.items()}
    leaves[name][43:48] = bad
    leaves = {key: value.requires_grad_() for key, value in leaves.items()}
    others = torch.ones(sum(lengths), dtype=torch.bool)
    others[43:48] = False
    out, _ = check.scan(**leaves, **keywords, backend="cpu")
    assert torch.isfinite(out[others]).all() and not torch.isfinite(out[~others]).all()
    out[others].sum().backward()
    assert torch.isfinite(leaves["x"].grad[others]).all()


@pytest.mark.parametrize("scale", [1e3, 1e8])
def test_huge_steps_forget_and_do_not_overflow(check, scale):
    tensors, keywords = check.scan_case([40, 1], 20, 8, direction="both")
    tensors["dt"] *= scale
    assert check.against_reference(check.scan, (tensors, keywords), backend="cpu")[0] < 1e-5


def test_no_state_of_every_token_is_kept(check):
    """What the backward pass finds beside the inputs is far smaller than (T, E, N)."""
    tensors, keywords = check.scan_case([600, 424], 64, 16, direction="forward")
    leaves = {name: value.float().requires_grad_() for name, value in tensors.items()}
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        check.scan(**leaves, **keywords, backend="cpu")
    for value in leaves.values():
        kept.pop(value.data_ptr(), None)
    assert 0 < sum(kept.values()) < 1024 * 64 * 16 / 8


def test_scan_of_one_long_segment(check):
    case = check.scan_case([3000], 40, 4, direction="both", own=True)
    assert check.against_reference(check.scan, case, backend="cpu") < (3e-6, "")


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=8),
    E=st.integers(1, 35),
    N=st.integers(1, 9),
    way=st.sampled_from(WAYS),
    seed=st.integers(0, 1000),
)
def test_scan_of_any_ragged_batch(check, lengths, E, N, way, seed):
    direction, combine, own = way
    case = check.scan_case(lengths, E, N, direction=direction, combine=combine, own=own, seed=seed)
    error, name = check.against_reference(check.scan, case, backend="cpu")
    # A gradient of one number may be a sum that cancels: then nobody has more digits in fp32.
    bound = 1e-5 if error < 1e-5 else 3 * check.against_reference(check.scan, case, backend="reference")[0]
    assert error < bound, name


@pytest.mark.parametrize(
    ("direction", "own"), [("forward", False), ("reverse", False), ("both", False), ("both", True)]
)
@pytest.mark.parametrize("W", [1, 4, 7])
def test_convolution(check, direction, own, W):
    for activation, bias in (("silu", True), (None, False)):
        case = check.conv_case(RAGGED, 37, W, direction=direction, own=own, activation=activation, bias=bias)
        assert check.against_reference(check.conv, case, backend="cpu") < (2e-6, "")


def pieces(values, lengths):
    return dict(enumerate(values.split(lengths)))


def test_packed_is_one_by_one(check):
    lengths = [4, 0, 50, 1]
    tensors, keywords = check.scan_case(lengths, 9, 4, direction="both")
    tensors = {k: v.float() for k, v in tensors.items()}
    out, state = check.scan(**tensors, **keywords)
    for s, piece in pieces(out, lengths).items():
        own = {k: v.split(lengths)[s] if k in ("x", "dt", "B", "C", "z") else v for k, v in tensors.items()}
        own["initial_state"] = tensors["initial_state"][:, s : s + 1]
        alone, alone_state = check.scan(**own, **keywords | {"cu_seqlens": None})
        torch.testing.assert_close(piece, alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state[:, s : s + 1], alone_state, rtol=1e-5, atol=1e-6)


def flipped(values, lengths):
    return torch.cat([p.flip(0) for p in values.split(lengths)])


def test_reverse_is_flip_forward_flip(check):
    lengths = [4, 0, 50, 1]
    tensors, keywords = check.scan_case(lengths, 9, 4, direction="reverse")
    tensors = {k: v.float() for k, v in tensors.items()}
    out, state = check.scan(**tensors, **keywords)
    turned = {k: flipped(v, lengths) if k in ("x", "dt", "B", "C", "z") else v for k, v in tensors.items()}
    expected, expected_state = check.scan(**turned, **keywords | {"direction": "forward"})
    torch.testing.assert_close(out, flipped(expected, lengths), rtol=0, atol=0)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0)


def test_both_is_forward_plus_reverse(check):
    tensors, keywords = check.scan_case([4, 0, 50, 1], 9, 4, direction="both")
    del tensors["initial_state"]
    tensors = {k: v.float() for k, v in tensors.items()}
    both, _ = check.scan(**tensors, **keywords)
    apart, _ = check.scan(**tensors, **keywords | {"combine": "none"})
    for i, direction in enumerate(("forward", "reverse")):
        single, _ = check.scan(**tensors, **keywords | {"direction": direction})
        torch.testing.assert_close(apart[i], single, rtol=0, atol=0)
    torch.testing.assert_close(both, apart.sum(0), rtol=1e-5, atol=1e-6)


def test_segments_in_another_order(check):
    lengths = [4, 0, 50, 1]
    turn = [2, 0, 3, 1]
    tensors, keywords = check.scan_case(lengths, 9, 4, direction="both")
    tensors = {k: v.float() for k, v in tensors.items()}
    out, state = check.scan(**tensors, **keywords)

    def moved(values):
        return torch.cat([values.split(lengths)[i] for i in turn])

    again = {k: moved(v) if k in ("x", "dt", "B", "C", "z") else v for k, v in tensors.items()}
    again["initial_state"] = tensors["initial_state"][:, turn]
    got, got_state = check.scan(**again, **keywords | {"cu_seqlens": check.borders([lengths[i] for i in turn])})
    torch.testing.assert_close(got, moved(out), rtol=0, atol=0)
    torch.testing.assert_close(got_state, state[:, turn], rtol=0, atol=0)


def test_a_step_of_zero_changes_nothing(check):
    tensors, keywords = check.scan_case([9], 5, 3, options=False)
    tensors = {k: v.float() for k, v in tensors.items()}
    tensors["dt"][4] = 0.0
    _, state = check.scan(**tensors, **keywords)
    without = {k: torch.cat([v[:4], v[5:]]) if k != "A" else v for k, v in tensors.items()}
    _, expected = check.scan(**without, **keywords | {"cu_seqlens": None})
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_same_bits_twice_and_with_any_number_of_threads(check):
    case = check.scan_case([700, 3, 900], 70, 8, direction="both")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            results.append(check.run(check.scan, *case))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@pytest.fixture
def poisoned():
    """torch.empty gives NaN, so that what a kernel fails to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def test_nothing_is_left_unwritten(check, poisoned):
    case = check.scan_case(RAGGED, 21, 4, direction="both", own=True)
    assert check.against_reference(check.scan, case, backend="cpu") < (3e-6, "")
    case = check.conv_case(RAGGED, 21, 4, direction="both")
    assert check.against_reference(check.conv, case, backend="cpu") < (3e-6, "")


def test_nan_stays_in_its_segment_and_is_not_hidden(check):
    tensors, keywords = check.scan_case([5, 5], 3, 2, options=False)
    tensors = {k: v.float() for k, v in tensors.items()}
    clean, _ = check.scan(**tensors, **keywords)
    for name in ("x", "dt", "B"):
        spoilt = tensors | {name: tensors[name].clone()}
        spoilt[name][2, 0] = float("nan")
        out, state = check.scan(**spoilt, **keywords)
        assert out[2:5, 0].isnan().all() and torch.equal(out[5:], clean[5:]) and torch.equal(out[:2], clean[:2])
        assert state[0, 0].isnan().any() and not state[1].isnan().any()
    tensors["A"][1, 1] = float("nan")
    assert check.scan(**tensors, **keywords)[0][:, 1].isnan().all()


def test_slices_of_a_projection_need_no_copy(check):
    tensors, keywords = check.scan_case([30, 2], 12, 4)
    tensors = {k: v.float() for k, v in tensors.items()}
    expected, _ = check.scan(**tensors, **keywords)
    x, z = torch.cat([tensors["x"], tensors["z"]], dim=1).chunk(2, dim=1)
    B, C = torch.cat([tensors["B"], tensors["C"]], dim=1).split(4, dim=1)
    dt = tensors["dt"].T.contiguous().T
    got, _ = check.scan(**tensors | {"x": x, "z": z, "B": B, "C": C, "dt": dt}, **keywords)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_borders_that_do_not_fit_are_refused(check):
    tensors, keywords = check.scan_case([4, 3], 2, 2)
    for wrong in ([0, 4], [0, 9, 7], [1, 7], [0, 5, 4, 7]):
        for backend in ("cpu", "reference"):
            call = keywords | {"cu_seqlens": torch.tensor(wrong), "backend": backend}
            own = {k: v.float() for k, v in tensors.items() if k != "initial_state"}
            with pytest.raises(ValueError, match="rise from 0"):
                check.scan(**own, **call)
