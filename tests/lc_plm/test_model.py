"""The model against the published sizes and layout, and itself one by one."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import ConfigError, DataError
from seqgraph_lc_plm.config import LcPlmConfig
from seqgraph_lc_plm.model import SIZES, LcPlm, cut_batches


@pytest.mark.parametrize("size, parameters", [("96M", 96_283_392), ("753M", 752_788_992), ("1.3B", 1_330_874_368)])
def test_published_sizes_to_the_digit(size, parameters):
    with torch.device("meta"):
        model = LcPlm(size=size)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("size, millions", [("1M", 1.11), ("8M", 7.79), ("35M", 33.80)])
def test_small_sizes_are_what_they_are_called(size, millions):
    with torch.device("meta"):
        model = LcPlm(size=size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_every_size_is_in_the_configuration():
    assert {LcPlmConfig(size=size).size for size in SIZES} == set(SIZES)


def test_layout_is_the_published_one():
    """819 tensors of the 753M file: the prefix apart, and without the aliases of the reverse projections."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in LcPlm(size="753M").state_dict().items()}
    E, D, N, R = 3072, 1536, 16, 96
    expected = {"backbone.embedding.weight": (128, D), "backbone.norm_f.weight": (D,), "lm_head.weight": (128, D)}
    for i in range(48):
        layer = f"backbone.layers.{i}"
        expected[f"{layer}.norm.weight"] = (D,)
        expected[f"{layer}.mixer.mamba_fwd.in_proj.weight"] = (2 * E, D)
        expected[f"{layer}.mixer.mamba_fwd.out_proj.weight"] = (D, E)
        for direction in ("fwd", "rev"):
            own = f"{layer}.mixer.mamba_{direction}"
            expected |= {
                f"{own}.conv1d.weight": (E, 1, 4),
                f"{own}.conv1d.bias": (E,),
                f"{own}.x_proj.weight": (R + 2 * N, E),
                f"{own}.dt_proj.weight": (E, R),
                f"{own}.dt_proj.bias": (E,),
                f"{own}.A_log": (E, N),
                f"{own}.D": (E,),
            }
    assert shapes == expected and len(shapes) == 819


def test_explicit_beats_size():
    model = LcPlm(size="1M", d_model=24, d_state=3)
    assert (model.d_model, model.n_layers) == (24, 8)
    assert model.state_dict()["backbone.layers.0.mixer.mamba_fwd.A_log"].shape == (48, 3)
    with pytest.raises(ConfigError, match="no size '2B'"):
        LcPlm(size="2B")


def test_head_is_its_own_tensor(tiny):
    assert tiny.lm_head.weight.data_ptr() != tiny.backbone.embedding.weight.data_ptr()


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=7), budget=st.integers(1, 200), seed=st.integers(0, 99)
)
def test_a_batch_gives_what_one_by_one_gives(lengths, budget, seed):
    torch.manual_seed(seed)
    model = LcPlm(d_model=16, n_layers=2, d_state=4)
    letters = torch.randint(20, (sum(lengths),)).split(lengths)
    sequences = ["".join("ACDEFGHIKLMNPQRSTVWY"[i] for i in ids) for ids in letters]
    together = model.embed(sequences, layers=[0, 1, -1], pooling="residue", max_tokens=budget)
    for i, sequence in enumerate(sequences):
        for layer in (0, 1, -1):
            assert together[layer][i].shape == (len(sequence), 16)
            alone = model.embed([sequence], layers=layer, pooling="residue")[0]
            torch.testing.assert_close(together[layer][i], alone, atol=1e-5, rtol=1e-5)


def test_pooling_reads_residues_only(tiny, proteins):
    sequences = proteins(9, 4)
    residues = tiny.embed(sequences, pooling="residue")
    torch.testing.assert_close(tiny.embed(sequences), torch.stack([r.mean(0) for r in residues]))
    torch.testing.assert_close(tiny.embed(sequences, pooling="max"), torch.stack([r.amax(0) for r in residues]))
    first = tiny.represent(tiny.alphabet.encode(sequences), [-1])[-1].pool("first")
    torch.testing.assert_close(tiny.embed(sequences, pooling="bos"), first)
    torch.testing.assert_close(tiny.embed(sequences, layers=2), tiny.embed(sequences, layers=-1))
    assert tiny.embed([]).shape == (0, 16)


def test_both_ends_are_seen(tiny, proteins):
    [sequence] = proteins(30)
    middle = tiny.embed([sequence], pooling="residue")[0][15]
    for changed in ("W" + sequence[1:], sequence[:-1] + "W"):
        assert (tiny.embed([changed], pooling="residue")[0][15] - middle).abs().max() > 1e-7


def test_dropout_is_off_in_use_and_comes_back(proteins):
    model = LcPlm(d_model=16, n_layers=1, dropout=0.5).train()
    torch.testing.assert_close(model.embed(proteins(20)), model.embed(proteins(20)))
    assert model.training and model.backbone.layers[0].dropout.training


def test_lower_case_is_read_as_upper(tiny):
    torch.testing.assert_close(tiny.embed(["mktay"]), tiny.embed(["MKTAY"]))


@pytest.mark.parametrize(
    "wrong, says", [(["MKT", ""], "sequence 2 is empty"), (["MKT", "MJK"], "sequence 2 has 'J' at position 2")]
)
def test_bad_sequences_are_named(tiny, wrong, says):
    with pytest.raises(DataError, match=says):
        tiny.embed(wrong)


def test_unknown_layers_and_poolings(tiny):
    with pytest.raises(ConfigError, match="no layer 3"):
        tiny.embed(["MKT"], layers=3)
    with pytest.raises(ConfigError, match="no layer -4"):
        tiny.embed(["MKT"], layers=[0, -4])
    with pytest.raises(ConfigError, match="no pooling"):
        tiny.embed(["MKT"], pooling="median")


def test_logits_are_of_the_residues(tiny):
    stream = tiny.alphabet.encode(["MKTAY", "GG"])
    expected = tiny(stream)[:, :33]
    torch.testing.assert_close(tiny.logits(["MKTAY", "GG"]), [expected[1:6].detach(), expected[8:10].detach()])


def test_pseudo_perplexity_masks_one_residue_at_a_time(tiny, proteins):
    [sequence] = proteins(12)
    tokens = tiny.alphabet.encode([sequence])
    total = 0.0
    for t in range(12):
        [logits] = tiny.logits([sequence[:t] + "<mask>" + sequence[t + 1 :]])
        total -= float(logits[t].log_softmax(-1)[tokens.values[t + 1]])
    assert tiny.pseudo_perplexity(sequence, max_tokens=50) == pytest.approx(math.exp(total / 12), rel=1e-5)


def test_cut_batches_keeps_every_index_and_the_budget():
    lengths = [5, 100, 7, 7, 3, 60, 1]
    batches = cut_batches(lengths, 64)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= 64 for batch in batches)
    assert cut_batches([], 10) == []


_LONG = """
import resource, sys, torch
from seqgraph_lc_plm.model import LcPlm
model = LcPlm(d_model=32, n_layers=4, d_state=64)
model.embed(["ACDEFGHIKL" * 10])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = model.embed(["ACDEFGHIKL" * 3000], layers=[1, -1], pooling="residue")
assert out[-1][0].shape == (30000, 32) and out[-1][0].isfinite().all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_protein_of_30000_residues_in_bounded_memory():
    """A (T, E, N) tensor alone would take 470 MiB in each direction."""
    done = subprocess.run([sys.executable, "-c", _LONG], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250
