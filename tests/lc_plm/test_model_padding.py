"""No company, no order and no length changes what a protein's embedding is; what a layer's number means."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from lc_plm_reference import lc_plm

import seqgraph as sg
from seqgraph.errors import ConfigError
from seqgraph_lc_plm.model import LcPlm

LENGTHS = (1, 8000, 2, 3, 17, 63, 64, 65, 127, 511, 512, 1023, 1024, 1025, 1, 2500, 4096)


def trained(**more):
    """Weights far enough from their start that every part matters."""
    torch.manual_seed(0)
    model = LcPlm(d_model=32, n_layers=3, vocab_size=33, **more).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("A_log", "dt_bias", "dt_proj.bias")):
                parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("mixer", [{"d_state": 8}, {"mixer": "ssd", "d_state": 16, "headdim": 16}], ids=["s6", "ssd"])
def test_a_batch_of_1_to_8000_residues_is_one_by_one(proteins, mixer):
    model, sequences = trained(**mixer), proteins(*LENGTHS)
    layers = [0, 1, 2, -1]
    together = model.embed(sequences, layers=layers, pooling="residue", max_tokens=1 << 20)
    turned = model.embed(sequences[::-1], layers=-1, pooling="residue", max_tokens=3000)
    for i, sequence in enumerate(sequences):
        alone = model.embed([sequence], layers=layers, pooling="residue")
        for layer in layers:
            torch.testing.assert_close(together[layer][i], alone[layer][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(turned[-1 - i], alone[-1][0], atol=1e-5, rtol=1e-5)


def test_logits_and_losses_too(proteins):
    from seqgraph_lc_plm.task import MaskedLM

    model, sequences = trained(), proteins(1, 700, 30, 2048)
    together = model.logits(sequences)
    for i, sequence in enumerate(sequences):
        torch.testing.assert_close(together[i], model.logits([sequence])[0], atol=1e-5, rtol=1e-5)
    task = MaskedLM(model)
    batch = model.alphabet.encode(sequences)
    with torch.no_grad():
        parts = [task.evaluation_step(batch[i : i + 1]) for i in range(4)]
        whole = task.evaluation_step(batch)
    total = sum(float(p["loss"]) * int(p["size"]) for p in parts if p)
    assert float(whole["loss"]) == pytest.approx(total / int(whole["size"]), abs=1e-5)


def test_a_neighbour_full_of_infinities_is_not_seen(proteins):
    """Poison: what comes before and after in the packed stream cannot reach a protein."""
    model, sequences = trained(), proteins(50, 40, 60)
    clean = model.embed(sequences, pooling="residue")
    with torch.no_grad():
        model.backbone.embedding.weight[model.alphabet.to_id("X")] = float("nan")
    poisoned = model.embed(["X" * 50, sequences[1], "X" * 60], pooling="residue")
    torch.testing.assert_close(poisoned[1], clean[1])
    assert poisoned[0].isnan().all() and poisoned[2].isnan().all()


def test_layers_are_the_residual_stream_or_what_each_block_adds(proteins):
    model, [sequence] = trained(), proteins(25)
    stream = model.alphabet.encode([sequence])
    weights = {name.removeprefix("backbone."): value for name, value in model.state_dict().items()}
    _, states = lc_plm(weights, stream.values)
    residual = model.represent(stream, [0, 1, 2, 3])
    upstream = model.represent(stream, [0, 1, 2, 3, -2, -1], semantics="upstream")
    for i in range(4):
        torch.testing.assert_close(residual[i].values.double(), states[i], atol=1e-5, rtol=1e-5)
    for i in (1, 2):  # the released code's hidden state i: the branch of block i
        torch.testing.assert_close(upstream[i].values.double(), states[i] - states[i - 1], atol=1e-5, rtol=1e-5)
    for i in (0, 3):
        assert torch.equal(upstream[i].values, residual[i].values)
    assert torch.equal(upstream[-1].values, upstream[3].values) and torch.equal(upstream[-2].values, upstream[2].values)
    embedded = model.embed([sequence], layers=1, semantics="upstream", pooling="residue")[0]
    torch.testing.assert_close(embedded, upstream[1].values[1:-1])
    with pytest.raises(ConfigError, match="no semantics 'released'"):
        model.represent(stream, [1], semantics="released")


def test_two_whole_blocks_and_a_tied_head():
    torch.manual_seed(0)
    shared, whole = LcPlm(d_model=16, n_layers=2), LcPlm(d_model=16, n_layers=2, share="none")
    assert sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in shared.parameters()) == 2 * 3 * 32 * 16
    tied = sg.create_model("lc-plm", d_model=16, n_layers=2, tie_head=True)
    assert tied.lm_head.weight is tied.backbone.embedding.weight
    assert tied.embed(["MKT"]).shape == whole.embed(["MKT"]).shape == (1, 16)
    with torch.device("meta"):
        meta = sg.create_model("lc-plm", size="1.3B", mixer="ssd", d_state=64)
    assert all(p.is_meta for p in meta.parameters())
