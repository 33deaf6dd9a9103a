"""The Triton backend of ssd on a CUDA device. Needs pytest, torch and triton, no more.

python -m pytest -c /dev/null --rootdir . -n 12 tests/kernels/test_ssd_gpu.py    (with kernels/ on PYTHONPATH)
"""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

RAGGED = [0, 1, 2, 63, 64, 65, 300, 0, 33]
WAYS = [
    ("forward", "sum", False), ("reverse", "sum", False), ("both", "sum", False), ("both", "none", False),
    ("both", "sum", True), ("both", "none", True),
]  # fmt: skip
PRECISIONS = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
WIDE = ("x", "dt", "z", "B", "C", "x_rev", "dt_rev", "B_rev", "C_rev")


def error(check, case, dtype=torch.float32):
    return check.against_reference(check.ssd, case, backend="triton", dtype=dtype, device="cuda", wide=WIDE)


@pytest.mark.parametrize(("direction", "combine", "own"), WAYS)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("options", [False, True])
def test_ways(check, direction, combine, own, shift, options):
    case = check.ssd_case(
        RAGGED, 4, 32, 2, 64, direction=direction, combine=combine, own=own, shift=shift, options=options,
        skip=2 if own else 1,
    )  # fmt: skip
    assert error(check, case) < (1e-5, "")


@pytest.mark.parametrize(
    ("H", "P", "G", "N"),
    [(1, 1, 1, 1), (3, 5, 1, 7), (8, 64, 1, 128), (6, 48, 2, 100), (2, 128, 2, 64), (2, 80, 1, 256), (40, 16, 1, 16)],
)
@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_widths(check, H, P, G, N, dtype, bound):
    assert error(check, check.ssd_case([40, 0, 130], H, P, G, N, direction="both"), dtype) < (bound, "")


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
@pytest.mark.parametrize("options", [False, True])
def test_long_segments_among_short_ones(check, dtype, bound, options):
    case = check.ssd_case([5000, 0, 1, 1000, 2, 700, 256, 257], 4, 32, 2, 64, direction="both", options=options)
    assert error(check, case, dtype) < (bound, "")


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [1]])
def test_almost_nothing(check, lengths):
    assert error(check, check.ssd_case(lengths, 2, 16, 1, 16, direction="both")) < (1e-5, "")


@pytest.mark.parametrize("seed", range(12))
def test_random_batches(check, seed):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 200, (12,), generator=g).tolist() + [0, 1, 64, 640]
    way = WAYS[seed % len(WAYS)]
    case = check.ssd_case(
        lengths, 4, 32, 2, 64, direction=way[0], combine=way[1], own=way[2], shift=seed % 3 == 0, seed=seed
    )
    dtype, bound = PRECISIONS[1 + seed % 2]
    # Sums over all tokens cancel: with exact products, rounding to fp16 is already 1.9e-3 of dt_bias's (seed 9).
    assert error(check, case, dtype) < (2 * bound, "")


def test_same_bits_twice(check):
    case = check.ssd_case([700, 3, 900], 8, 64, 1, 128, direction="both")
    for dtype, _bound in PRECISIONS:
        first, second = (check.run(check.ssd, *case, device="cuda", dtype=dtype, wide=WIDE) for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


def test_nothing_is_left_unwritten(check):
    torch.use_deterministic_algorithms(True)
    try:
        for own in (False, True):
            case = check.ssd_case(RAGGED, 4, 32, 2, 64, direction="both", own=own)
            assert error(check, case) < (1e-5, "")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "dt", "B", "z"])
def test_what_is_not_finite_stays_in_its_segment(check, name, bad):
    leaves, keywords = moved(check, check.ssd_case([3, 40, 0, 5, 70, 1], 4, 32, 2, 64, direction="both"))
    with torch.no_grad():
        leaves[name][43:48] = bad
    others = torch.ones(119, dtype=torch.bool, device="cuda")
    others[43:48] = False
    out, _ = check.ssd(**leaves, **keywords)
    assert torch.isfinite(out[others]).all() and not torch.isfinite(out[~others]).all()
    out[others].sum().backward()
    assert torch.isfinite(leaves["x"].grad[others]).all()


@pytest.mark.parametrize("scale", [1e3, 1e8])
def test_huge_steps_forget_and_do_not_overflow(check, scale):
    tensors, keywords = check.ssd_case([80, 1], 4, 32, 2, 64, direction="both")
    tensors["dt"] *= scale
    assert error(check, (tensors, keywords))[0] < 1e-5


def moved(check, case, dtype=torch.bfloat16):
    tensors, keywords = case
    leaves = {k: v.to(dtype if k in WIDE else torch.float32).cuda().requires_grad_() for k, v in tensors.items()}
    return leaves, keywords | {"cu_seqlens": keywords["cu_seqlens"].cuda()}


def test_slices_of_a_projection_are_read_in_place(check):
    leaves, keywords = moved(check, check.ssd_case([40, 3, 200], 4, 16, 1, 16, direction="both"))
    x, B = leaves["x"].flatten(1), leaves["B"].flatten(1)
    row = torch.cat([x, B], 1)
    sliced = leaves | {"x": row[:, : x.shape[1]].view(-1, 4, 16), "B": row[:, x.shape[1] :].view(-1, 1, 16)}
    for got, expected in zip(check.ssd(**sliced, **keywords), check.ssd(**leaves, **keywords)):
        assert torch.equal(got, expected)


def test_no_wait_for_the_device(check):
    leaves, keywords = moved(check, check.ssd_case([40, 3, 400], 4, 16, 1, 16, direction="both"))
    check.ssd(**leaves, **keywords)[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        check.ssd(**leaves, **keywords)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_without_a_graph_break(check):
    leaves, keywords = moved(check, check.ssd_case([40, 3], 4, 16, 1, 16, direction="both"))
    compiled = torch.compile(lambda t: check.ssd(**t, **keywords)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(leaves), check.ssd(**leaves, **keywords)[0])


def test_in_a_cuda_graph(check):
    leaves, keywords = moved(check, check.ssd_case([40, 3, 400], 4, 16, 1, 16, direction="both"))
    inputs = {k: v.detach() for k, v in leaves.items()}
    expected = check.ssd(**inputs, **keywords)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = check.ssd(**inputs, **keywords)[0]
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, expected)
