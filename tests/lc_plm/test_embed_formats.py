"""The files of ``seqgraph embed``: shards, dtypes, logits and contacts, and reading them back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from seqgraph.errors import ConfigError, DataError
from seqgraph_lc_plm.commands import parse_size
from seqgraph_lc_plm.contacts import jacobian_contacts
from seqgraph_lc_plm.extract import Extraction
from seqgraph_lc_plm.reading import read_vectors


@pytest.fixture
def sequences(proteins):
    return proteins(30, 4, 17, 60, 9)


@pytest.fixture
def fasta(tmp_path, sequences):
    path = tmp_path / "in.fasta"
    path.write_text("".join(f">p/{i} of five\n{s}\n" for i, s in enumerate(sequences)))
    return path


def _shard(path, kind, key):
    """One tensor of a shard, whatever the format."""
    if kind == "pt":
        content = torch.load(path, weights_only=True)
        for word in key.split("."):
            content = content[int(word) if word.isdigit() else word]
        return content
    if kind == "safetensors":
        with safe_open(path, "pt") as file:
            return file.get_tensor(key)
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        return torch.from_numpy(file[key.replace(".", "/")][:])


@pytest.mark.parametrize("kind", ["pt", "safetensors", "h5"])
def test_shards_hold_proteins_in_the_order_of_the_input(tiny, tmp_path, fasta, sequences, kind):
    """A part is closed by the protein that reaches the size: here after 3, 1 and 1 proteins."""
    if kind == "h5":
        pytest.importorskip("h5py")
    expected = tiny.embed(sequences, pooling="residue")
    per_record, per_residue = 16 * 4, (16 + 33) * 4
    job = Extraction(
        fasta=fasta,
        include=("mean", "per_tok", "logits"),
        format=kind,
        shard_bytes=3 * per_record + 51 * per_residue,
        max_tokens=40,
    )
    job.run(tiny, tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").glob("part-*"))
    assert names == [f"part-{i:06d}.{kind}" for i in range(3)]
    logits = tiny.logits(sequences)
    for part, members in enumerate(([0, 1, 2], [3], [4])):
        path = tmp_path / "out" / names[part]
        rows = _shard(path, kind, "representations.2")
        torch.testing.assert_close(rows, torch.cat([expected[i] for i in members]), atol=1e-5, rtol=1e-5)
        means = torch.stack([expected[i].mean(0) for i in members])
        torch.testing.assert_close(_shard(path, kind, "mean_representations.2"), means, atol=1e-5, rtol=1e-5)
        found = _shard(path, kind, "logits")
        torch.testing.assert_close(found, torch.cat([logits[i] for i in members]), atol=1e-5, rtol=1e-5)
        lengths = [len(sequences[i]) for i in members]
        assert _shard(path, kind, "cu_seqlens").tolist() == [0, *np.cumsum(lengths).tolist()]
    index = (tmp_path / "out" / "index.tsv").read_text().splitlines()
    assert index[0].split("\t") == ["name", "residues", "label", "row"]
    assert index[5].split("\t") == ["part-000002", "9", "p/4 of five", "0"]


def test_labels_are_in_the_shards(tiny, tmp_path, fasta):
    Extraction(fasta=fasta, format="safetensors", shard_bytes=10**6).run(tiny, tmp_path / "out")
    with safe_open(tmp_path / "out" / "part-000000.safetensors", "pt") as file:
        assert json.loads(file.metadata()["labels"]) == [f"p/{i} of five" for i in range(5)]
        assert list(file.keys()) == ["mean_representations.2"]  # nothing to be offset


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"format": "safetensors", "dtype": "bfloat16"},
        {"format": "npy", "dtype": "float16"},
        {"format": "npy", "shard_bytes": 130},
        {"format": "pt", "shard_bytes": 130},
        {"format": "safetensors", "shard_bytes": 10**6, "dtype": "float16"},
        {"format": "h5", "shard_bytes": 130},
    ],
)
def test_vectors_come_back_from_every_format(tiny, tmp_path, fasta, sequences, options):
    if options.get("format") == "h5":
        pytest.importorskip("h5py")
    Extraction(fasta=fasta, layers=(0, 2), include=("mean", "bos"), **options).run(tiny, tmp_path / "out")
    tolerance = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}[options.get("dtype", "float32")]
    for kind in ("mean", "bos"):
        found = read_vectors(tmp_path / "out", kind=kind)
        assert found.labels == [f"p/{i} of five" for i in range(5)] and found.layer == 2
        expected = tiny.embed(sequences, pooling=kind).numpy()
        np.testing.assert_allclose(found.values, expected, atol=tolerance, rtol=tolerance)
    assert read_vectors(tmp_path / "out", layer=0).layer == 0
    with pytest.raises(ConfigError, match=r"no layer 1.*0, 2"):
        read_vectors(tmp_path / "out", layer=1)
    with pytest.raises(ConfigError, match="not one vector"):
        read_vectors(tmp_path / "out", kind="per_tok")


def test_vectors_of_esm_extract_itself(tmp_path):
    """Its folder has no index: one dictionary a file."""
    for name in ("b", "a"):
        torch.save({"label": name, "mean_representations": {6: torch.ones(3)}}, tmp_path / f"{name}.pt")
    found = read_vectors(tmp_path)
    assert found.labels == ["a", "b"] and found.values.shape == (2, 3) and found.layer == 6
    with pytest.raises(ConfigError, match=r"a\.pt has no bos"):
        read_vectors(tmp_path, kind="bos")
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"a\.pt cannot be read"):
        read_vectors(tmp_path)


def test_reading_refuses_what_is_not_there(tiny, tmp_path, fasta):
    with pytest.raises(DataError, match="no such folder"):
        read_vectors(tmp_path / "none")
    with pytest.raises(DataError, match="holds no embeddings"):
        read_vectors(tmp_path)
    Extraction(fasta=fasta, include=("per_tok",), format="safetensors").run(tiny, tmp_path / "out")
    with pytest.raises(ConfigError, match="has no mean"):
        read_vectors(tmp_path / "out")
    Extraction(fasta=fasta, format="safetensors").run(tiny, tmp_path / "out")
    victim = next((tmp_path / "out").glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"\.safetensors cannot be read"):
        read_vectors(tmp_path / "out")


def test_logits_and_contacts_in_a_file(tiny, tmp_path, fasta, sequences):
    Extraction(fasta=fasta, include=("logits", "contacts"), max_tokens=100).run(tiny, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("p_1*.pt")
    content = torch.load(path, weights_only=True)
    assert set(content) == {"label", "logits", "contacts"}
    torch.testing.assert_close(content["logits"], tiny.logits([sequences[1]])[0], atol=1e-5, rtol=1e-5)
    expected = jacobian_contacts(tiny, tiny.alphabet.encode([sequences[1]]))
    torch.testing.assert_close(content["contacts"], expected, atol=1e-5, rtol=1e-4)


def test_contacts_of_a_long_protein_are_refused_before_anything_is_done(tiny, tmp_path, fasta):
    job = Extraction(fasta=fasta, include=("contacts",), contacts_max=40)
    with pytest.raises(DataError, match=r"record 4 \(p/3 of five\) has 60 residues; contacts are for at most 40"):
        job.run(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_by_the_released_codes_meaning(tiny, tmp_path, fasta, sequences):
    Extraction(fasta=fasta, layers=(1,), semantics="upstream").run(tiny, tmp_path / "out")
    expected = tiny.embed(sequences, layers=1, semantics="upstream").numpy()
    np.testing.assert_allclose(read_vectors(tmp_path / "out").values, expected, atol=1e-5)


def test_sizes_as_text():
    assert parse_size("1000") == 1000 and parse_size("2K") == 2048 and parse_size("1.5 mb") == 3 * 2**19
    assert parse_size("2GiB") == 2**31
    with pytest.raises(ConfigError, match="no size"):
        parse_size("2 X")
