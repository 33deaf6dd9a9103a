"""ESM-2 in the commands: files in fair-esm's own layout, against fair-esm's own forward pass."""

from __future__ import annotations

import argparse
import pickle

import numpy as np
import pytest
import torch

from seqgraph.cli.main import main
from seqgraph.errors import CheckpointError, ConfigError, PluginError
from seqgraph_lc_plm import esm2
from seqgraph_lc_plm.contacts import jacobian_contacts
from seqgraph_lc_plm.mutate import parse, score
from seqgraph_lc_plm.reading import read_vectors
from seqgraph_lc_plm.scoring import pseudo_perplexity

esm = pytest.importorskip("esm", reason="fair-esm is not installed")
SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "GG", "MKLVXBUZ", "ACDEFGHIKLMNPQRSTVWY"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = esm.model.esm2.ESM2(num_layers=3, embed_dim=24, attention_heads=4)
    return network.eval()


def content(network, **sizes):
    """What Meta's files hold: names with the encoder's prefixes, sizes in a Namespace, and no contact head."""
    own = {"encoder_layers": 3, "encoder_embed_dim": 24, "encoder_attention_heads": 4, "token_dropout": True}
    state = {
        f"encoder.{'' if name.startswith('lm_head') else 'sentence_encoder.'}{name}": value
        for name, value in network.state_dict().items()
        if not name.startswith("contact_head")
    }
    return {"cfg": {"model": argparse.Namespace(**own | sizes, arch="transformer")}, "model": state}


@pytest.fixture
def file(network, tmp_path):
    path = tmp_path / "esm2_t3_tiny.pt"
    torch.save(content(network), path)
    return path


def reference(network, sequence, layers=(0, 1, 2, 3)):
    """fair-esm's own steps for one sequence: its batch converter and its forward pass."""
    _, _, tokens = network.alphabet.get_batch_converter()([("x", sequence)])
    with torch.no_grad():
        found = network(tokens, repr_layers=list(layers))
    return found["logits"][0, 1:-1], {i: found["representations"][i][0, 1:-1] for i in layers}


def test_fair_esm_itself_cannot_open_it(file):
    """The reason for a loader of our own; should this fail one day, fair-esm or torch has been mended."""
    torch.save({"model": {}}, file.with_name("esm2_t3_tiny-contact-regression.pt"))
    with pytest.raises(pickle.UnpicklingError):
        esm.pretrained.load_model_and_alphabet_local(file)


def test_layers_logits_and_scores_are_fair_esms(network, file):
    model = esm2.load(str(file))
    states = model.embed(SEQUENCES, layers=[0, 1, 2, -1], pooling="residue")
    logits = model.logits(SEQUENCES)
    for i, sequence in enumerate(SEQUENCES):
        expected, layers = reference(network, sequence)
        torch.testing.assert_close(logits[i], expected, atol=1e-5, rtol=1e-5)
        for layer, own in ((0, 0), (1, 1), (2, 2), (-1, 3)):
            torch.testing.assert_close(states[layer][i], layers[own], atol=1e-5, rtol=1e-5)
    masked = reference(network, "M<mask>TAYIAKQR")[0][1].double().log_softmax(-1)
    expected = masked[network.alphabet.get_idx("R")] - masked[network.alphabet.get_idx("K")]
    found = score(model, "MKTAYIAKQR", [parse("K2R")])
    assert found[0] == pytest.approx(float(expected), abs=1e-5)
    assert pseudo_perplexity(model, "MKTAYIAKQR") == pytest.approx(model.pseudo_perplexity("MKTAYIAKQR"), rel=1e-5)
    assert jacobian_contacts(model, model.alphabet.encode(["MKTAY"])).shape == (5, 5)


def test_padding_never_multiplies_the_batch(file, proteins):
    """One long protein among short ones is not padded with them."""
    model = esm2.load(str(file))
    sizes = []
    model.network.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].numel()))
    sequences = proteins(*[5] * 40, 500, seed=1)
    model.embed(sequences)
    assert sum(sizes) <= 2 * sum(len(s) + 2 for s in sequences)


def test_the_command_embeds_with_it(network, file, tmp_path, capsys):
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(SEQUENCES)))
    words = ["--repr_layers", "0", "3", "--include", "mean", "per_tok", "--toks_per_batch", "30", "--nogpu"]
    assert main(["embed", str(file), str(fasta), str(tmp_path / "out"), *words]) == 0
    found = torch.load(tmp_path / "out" / "p0.pt", weights_only=True)
    expected = reference(network, SEQUENCES[0])[1]
    for layer in (0, 3):
        torch.testing.assert_close(found["representations"][layer], expected[layer], atol=1e-5, rtol=1e-5)
    vectors = read_vectors(tmp_path / "out").values
    means = [reference(network, s)[1][3].mean(0).numpy() for s in SEQUENCES]
    np.testing.assert_allclose(vectors, means, atol=1e-5)
    refused = ["embed", str(file), str(fasta), str(tmp_path / "b"), "--layer-semantics", "upstream", "--nogpu"]
    assert main(refused) == 2 and "residual stream" in capsys.readouterr().err


class _Evil:
    def __reduce__(self):
        return (print, ("this must never be run",))


def test_files_that_are_not_opened(network, tmp_path, capsys):
    path = tmp_path / "model.pt"
    with pytest.raises(CheckpointError, match="no such file"):
        esm2.load(str(path))
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.pt is damaged"):
        esm2.load(str(path))
    torch.save(content(network) | {"extra": _Evil()}, path)
    with pytest.raises(CheckpointError, match="more than tensors and sizes") as caught:
        esm2.load(str(path))
    assert "any code" in caught.value.hint and "never be run" not in capsys.readouterr().out
    torch.save(content(network), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"model\.pt is damaged"):
        esm2.load(str(path))
    torch.save(network.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"no ESM-2 of fair-esm's layout"):
        esm2.load(str(path))


def test_tensors_that_do_not_fit_are_named(network, tmp_path):
    path = tmp_path / "model.pt"
    whole = content(network)
    gone = "encoder.sentence_encoder.layers.1.fc1.weight"
    del whole["model"][gone]
    whole["model"]["encoder.sentence_encoder.more"] = torch.zeros(1)
    torch.save(whole, path)
    with pytest.raises(CheckpointError, match=r"3 x 24: layers\.1\.fc1\.weight, more"):
        esm2.load(str(path))
    torch.save(content(network, encoder_embed_dim=48), path)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight"):
        esm2.load(str(path))


def test_names_are_looked_for_in_the_hub_folder(network, file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offline(url, path, progress):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(CheckpointError, match=r"cannot fetch https://.*esm2_t3_tiny\.pt: no route") as caught:
        esm2.load("esm2_t3_tiny")
    assert str(tmp_path / "hub" / "checkpoints" / "esm2_t3_tiny.pt") in caught.value.hint
    file.rename(tmp_path / "hub" / "checkpoints" / "esm2_t3_tiny.pt")
    assert esm2.load("esm2_t3_tiny").n_layers == 3


def test_without_fair_esm(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "esm.model.esm2", None)
    with pytest.raises(PluginError, match="esm"):
        esm2.load(str(file))


def test_layers_that_are_not_there(file):
    with pytest.raises(ConfigError, match="no layer 4"):
        esm2.load(str(file)).embed(["MK"], layers=4)
