"""Files in the layouts of other software, against the formulas, and their refusals."""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

from lc_plm_reference import lc_plm
from mamba_files import DEPTH, D, E, N, V, causal, causal_logits, direction, draw, projections, write_folder

import seqgraph as sg
from seqgraph.cli.main import main
from seqgraph.errors import CheckpointError
from seqgraph.train import checkpoint
from seqgraph_lc_plm.model import LcPlm, MambaLM


def published(prefix="bimamba.backbone.", embedding="embedding.weight"):
    """Tensors as LC-PLM's file has them: the reverse projections are absent."""
    torch.manual_seed(0)
    tensors = {f"{prefix}{embedding}": draw(V, D), f"{prefix}norm_f.weight": draw(D) + 1, "lm_head.weight": draw(V, D)}
    for i in range(DEPTH):
        tensors[f"{prefix}layers.{i}.norm.weight"] = draw(D) + 1
        mixer = f"{prefix}layers.{i}.mixer"
        tensors |= {f"{mixer}.mamba_fwd.{name}": value for name, value in {**projections(), **direction()}.items()}
        tensors |= {f"{mixer}.mamba_rev.{name}": value for name, value in direction().items()}
    return tensors


def aliases(prefix="bimamba.backbone."):
    """The metadata that safetensors' save_model writes for tied modules."""
    names = [f"{prefix}layers.{i}.mixer.mamba_{{}}.{p}.weight" for i in range(DEPTH) for p in ("in_proj", "out_proj")]
    return {"format": "pt", **{name.format("rev"): name.format("fwd") for name in names}}


@pytest.fixture
def folder(tmp_path):
    """Writes a folder of weights."""
    return partial(write_folder, tmp_path / "weights")


def assert_is_the_formulas(model, tensors, prefix="bimamba.backbone.", embedding="embedding.weight", head=None):
    """Logits and every residual stream of some proteins, together, to 1e-5 of the loops in double precision."""
    plain = {name.removeprefix(prefix): value for name, value in tensors.items()}
    plain["embedding.weight"] = plain.pop(embedding)
    plain["lm_head.weight"] = plain["embedding.weight"] if head == "tied" else plain["lm_head.weight"]
    stream = sg.tokenize("residues", ["MKTAYIAKQRQISFVKSHFSRQ", "W", "ACDEFGHIKLMNPQRSTVWYX"])
    with torch.no_grad():
        logits = model(stream).split(stream.lengths.tolist())
    states = model.represent(stream, list(range(DEPTH + 1)))
    for s, ids in enumerate(stream.values.split(stream.lengths.tolist())):
        expected, residuals = lc_plm(plain, ids)
        torch.testing.assert_close(logits[s].double(), expected, atol=1e-5, rtol=1e-5)
        for layer, residual in enumerate(residuals):
            torch.testing.assert_close(states[layer][s].values.double(), residual, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["own", "equal", "left out", "alias"])
@pytest.mark.parametrize("by", ["folder", "file"])
def test_the_published_layout(folder, head, by):
    tensors, metadata = published(), aliases()
    whole = dict(tensors)
    if head == "equal":
        tensors["lm_head.weight"] = whole["lm_head.weight"] = tensors["bimamba.backbone.embedding.weight"].clone()
    elif head != "own":
        del tensors["lm_head.weight"]
        if head == "alias":
            metadata["lm_head.weight"] = "bimamba.backbone.embedding.weight"
    path = folder(tensors, metadata)
    model = sg.load(path if by == "folder" else path / "model.safetensors")
    assert isinstance(model, LcPlm) and not model.training
    tied = head in ("left out", "alias")
    assert_is_the_formulas(model, whole, head="tied" if tied else None)
    assert model.assets["weights"]["head"] == ("tied" if tied else head)
    assert (model.lm_head.weight is model.backbone.embedding.weight) == tied
    assert model.backbone.layers[0].mixer.mamba_fwd.A_log._no_weight_decay
    assert model.embed(["MKTAY"]).shape == (1, D) and sum(p.numel() for p in model.parameters()) > 10_000


def test_without_metadata_and_config_the_reverse_projections_are_still_the_forward_ones(folder):
    tensors = published()
    path = folder(tensors)
    (path / "config.json").unlink()
    assert_is_the_formulas(sg.load(path), tensors)


def test_projections_that_are_repeated_are_shared_and_others_are_not(folder):
    tensors = published()
    own = {
        name.replace("mamba_fwd", "mamba_rev"): value.clone() for name, value in tensors.items() if "_proj.w" in name
    }
    own = {name: value for name, value in own.items() if "in_proj" in name or "out_proj" in name}
    model = sg.load(folder({**tensors, **own}))
    assert_is_the_formulas(model, tensors)
    assert "backbone.layers.0.mixer.mamba_rev.in_proj.weight" not in model.state_dict()
    own["bimamba.backbone.layers.1.mixer.mamba_rev.in_proj.weight"] += draw(2 * E, D)
    model = sg.load(folder({**tensors, **own}))
    assert_is_the_formulas(model, {**tensors, **own})
    assert "backbone.layers.0.mixer.mamba_rev.in_proj.weight" in model.state_dict()


def test_a_pickle_and_several_files(folder):
    tensors = published()
    path = folder(tensors, name="pytorch_model.bin")
    assert_is_the_formulas(sg.load(path), tensors)
    (path / "pytorch_model.bin").unlink()
    parts = {}
    for i, name in enumerate(sorted(tensors)):
        parts.setdefault(f"model-{i % 2}.safetensors", {})[name] = tensors[name]
    for name, part in parts.items():
        save_file(part, path / name)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_is_the_formulas(sg.load(path), tensors)
    (path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors is missing"):
        sg.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_fp32(folder, dtype):
    tensors = {name: value.to(dtype) for name, value in published().items()}
    model = sg.load(folder(tensors, aliases()))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_is_the_formulas(model, {name: value.float() for name, value in tensors.items()})


# ---------------------------------------------------------------------- refusals
def test_names_that_do_not_fit_are_listed(folder):
    tensors = published()
    gone = "bimamba.backbone.layers.1.mixer.mamba_rev.A_log"
    del tensors[gone]
    tensors["bimamba.backbone.layers.0.mlp.fc1.weight"] = draw(3, 3)
    tensors["lm_head.weight"] = draw(V, D + 1)
    with pytest.raises(CheckpointError) as error:
        sg.load(folder(tensors, aliases()))
    assert f"missing: {gone};" in error.value.message
    assert "left over: bimamba.backbone.layers.0.mlp.fc1.weight;" in error.value.message
    assert f"of another shape: lm_head.weight ({V}, {D + 1}) for ({V}, {D})" in error.value.message


def test_every_single_tensor_is_needed(folder):
    tensors = published()
    for name in tensors:
        if name != "lm_head.weight":  # a tied head is left out
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                sg.load(folder({n: t for n, t in tensors.items() if n != name}, aliases()))


def test_another_alphabet_is_refused(folder, tmp_path, capsys):
    tensors = published()
    for name in ("bimamba.backbone.embedding.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:26].clone()
    with pytest.raises(CheckpointError, match="has another alphabet: its embedding has 26 rows"):
        sg.load(folder(tensors, aliases()))
    fields = {"d_model": D, "n_layers": DEPTH, "d_state": N, "vocab_size": V}
    path = checkpoint.save(tmp_path / "own", sg.load(folder(published(), aliases())), name="lc-plm", fields=fields)
    (tmp_path / "a.fasta").write_text(">a\nMKT\n")
    words = ["embed", str(path), str(tmp_path / "a.fasta"), str(tmp_path / "out"), "--nogpu"]
    assert main(words) == 0
    assets = json.loads((path / "assets.json").read_text())
    assets["alphabet"][4:6] = ["A", "L"]
    (path / "assets.json").write_text(json.dumps(assets))
    capsys.readouterr()
    assert main([*words, "--overwrite"]) == 2
    assert "another alphabet: its token 4 is 'A', ESM-2's is 'L'" in capsys.readouterr().err


def test_untied_projections_must_be_there(folder):
    with pytest.raises(CheckpointError, match=r"missing: .*layers\.0\.mixer\.mamba_rev\.in_proj\.weight"):
        sg.load(folder(published(), bidirectional_weight_tie=False))


@pytest.mark.parametrize("wrong", [{"bidirectional_strategy": "ew_multiply"}, {"bidirectional": False}])
def test_what_is_not_computed_is_refused(folder, wrong):
    with pytest.raises(CheckpointError, match=f"{next(iter(wrong))}="):
        sg.load(folder(published(), aliases(), **wrong))


@pytest.mark.parametrize("keep", [3, 50, 4000, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_one_clear_error(folder, keep, name):
    path = folder(published(), name=name)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match=f"{name} is damaged") as error:
        sg.load(path)
    assert error.value.hint and "\n" not in error.value.message


def test_a_pointer_of_git_lfs_is_told(folder):
    path = folder(published())
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:c29b\nsize 3\n")
    with pytest.raises(CheckpointError, match="pointer of Git LFS") as error:
        sg.load(path)
    assert "git lfs pull" in error.value.hint


def test_a_pickle_that_runs_code_is_not_read(folder):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    path = folder(published())
    (path / "model.safetensors").unlink()
    torch.save({"a.weight": Evil()}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        sg.load(path)


def test_an_unknown_layout_names_the_known_ones(folder):
    with pytest.raises(CheckpointError, match=r"2 tensors \(encoder\.a, encoder\.b") as error:
        sg.load(folder({"encoder.a": draw(2), "encoder.b": draw(2)}))
    assert "lc-plm-published" in error.value.hint


def test_a_damaged_config(folder):
    path = folder(published())
    (path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        sg.load(path)


# ---------------------------------------------------------------------- other families
def test_caduceus_ph(folder):
    prefix, embedding = "caduceus.backbone.", "embeddings.word_embeddings.weight"
    tensors = published(prefix, embedding)
    model = sg.load(folder(tensors, aliases(prefix), model_type="caduceus"))
    assert type(model) is MambaLM and model.assets["alphabet"][7:] == list("ACGTN")
    assert_is_the_formulas(model, tensors, prefix, embedding)
    del tensors["lm_head.weight"]
    assert_is_the_formulas(sg.load(folder(tensors, aliases(prefix))), tensors, prefix, embedding, head="tied")
    with pytest.raises(CheckpointError, match="Caduceus-PS"):
        sg.load(folder({**tensors, f"{prefix}embeddings.complement_map": torch.arange(V)}))


@pytest.mark.parametrize("embedding", ["embedding.weight", "embeddings.weight"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_mamba_of_mamba_ssm_and_of_hugging_face(folder, embedding, name):
    tensors = causal(embedding)
    model = sg.load(folder(tensors, name=name, model_type="mamba"))
    ids = torch.randint(V, (17,))
    stream = sg.tokenize("residues", ["M" * 15]).with_values(ids)
    torch.testing.assert_close(model(stream), causal_logits(tensors, embedding, ids), atol=1e-5, rtol=1e-5)
    changed = stream.with_values(torch.cat([ids[:-1], (ids[-1:] + 1) % V]))
    torch.testing.assert_close(model(stream)[:-1], model(changed)[:-1])  # it sees nothing of what comes after


def test_a_tied_head_is_one_tensor(folder):
    tensors = causal()
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
    model = sg.load(folder(tensors, name="pytorch_model.bin", model_type="mamba"))
    assert model.lm_head.weight is model.backbone.embedding.weight and model.assets["weights"]["head"] == "tied"


def test_mamba2(folder):
    from seqgraph.encode import Mamba2

    torch.manual_seed(2)
    tensors = {"backbone.embedding.weight": draw(V, D), "backbone.norm_f.weight": draw(D) + 1}
    blocks = [Mamba2(D, d_state=8, headdim=16, ngroups=2) for _ in range(2)]
    for i, block in enumerate(blocks):
        tensors[f"backbone.layers.{i}.norm.weight"] = draw(D) + 1
        tensors |= {f"backbone.layers.{i}.mixer.{n}": p.detach() for n, p in block.named_parameters()}
    model = sg.load(folder(tensors, model_type="mamba2", ssm_cfg={"layer": "Mamba2", "ngroups": 2}))
    stream = sg.tokenize("residues", ["MKTAYIAKQR"])
    h = tensors["backbone.embedding.weight"][stream.values]
    for i, block in enumerate(blocks):
        u = torch.nn.functional.rms_norm(h, (D,), tensors[f"backbone.layers.{i}.norm.weight"], 1e-5)
        h = h + block(u, stream.cu_seqlens)
    expected = torch.nn.functional.rms_norm(h, (D,), tensors["backbone.norm_f.weight"], 1e-5)
    torch.testing.assert_close(model.backbone(stream).values, expected, atol=1e-5, rtol=1e-5)


def test_what_only_has_mamba_s_names_is_refused(folder):
    with pytest.raises(CheckpointError, match="is a falcon_mamba"):
        sg.load(folder(causal("embeddings.weight"), model_type="falcon_mamba"))


def test_the_layouts_are_listed(capsys):
    assert main(["formats"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("lc-plm-published", "caduceus-ph", "mamba"))


@pytest.mark.slow
def test_the_published_shape_at_its_size(folder, tmp_path):
    """753M: 819 tensors, 3,011,155,968 bytes of data (3 GB on the disk for a moment)."""
    with torch.device("meta"):
        state = LcPlm(size="753M").state_dict()
    empty = {("" if n.startswith("lm_head") else "bimamba.") + n: torch.zeros(t.shape) for n, t in state.items()}
    path = folder(empty)
    assert (path / "model.safetensors").stat().st_size > 3_011_155_968
    model = sg.load(path)
    assert sum(p.numel() for p in model.parameters()) == 752_788_992
    assert not math.isnan(float(model.lm_head.weight.sum()))
    (path / "model.safetensors").unlink()  # pytest would keep it
