"""``seqgraph embed``: files that ESM scripts read, and nothing half written."""

from __future__ import annotations

import csv
import resource

import numpy as np
import pytest
import torch
from safetensors import safe_open

from seqgraph.cli.main import main
from seqgraph.errors import ConfigError, DataError
from seqgraph.train import checkpoint
from seqgraph_lc_plm.extract import Extraction, file_name


@pytest.fixture
def fasta(tmp_path):
    def write(text, name="in.fasta"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def weights(tiny, tmp_path):
    """The tiny model as a checkpoint folder."""
    fields = {"d_model": 16, "n_layers": 2, "d_state": 4, "vocab_size": 40}
    return checkpoint.save(tmp_path / "weights", tiny, name="lc-plm", fields=fields)


@pytest.fixture
def cli(capsys):
    def run(*argv):
        code = main([str(a) for a in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def _read(path):
    return torch.load(path, weights_only=True)


def test_files_are_those_of_esm_extract(tiny, tmp_path, fasta, proteins):
    """Keys, layers and shapes of fair-esm's scripts/extract.py; the values are those of the model's own embed."""
    sequences = proteins(30, 4, 17)
    path = fasta("".join(f">sp|P{i}|NAME_{i} A protein\n{s}\n" for i, s in enumerate(sequences)))
    job = Extraction(fasta=path, layers=(0, -1), include=("mean", "per_tok", "bos"), max_tokens=40)
    job.run(tiny, tmp_path / "out")
    residues = tiny.embed(sequences, layers=[0, 2], pooling="residue")
    bos = tiny.embed(sequences, layers=[0, 2], pooling="bos")
    for i, sequence in enumerate(sequences):
        label = f"sp|P{i}|NAME_{i} A protein"
        content = _read(tmp_path / "out" / f"{label}.pt")
        assert set(content) == {"label", "representations", "mean_representations", "bos_representations"}
        assert content["label"] == label
        for layer in (0, 2):
            value = content["representations"][layer]
            assert value.shape == (len(sequence), 16) and value.dtype == torch.float32
            torch.testing.assert_close(value, residues[layer][i], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(content["mean_representations"][layer], value.mean(0), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(content["bos_representations"][layer], bos[layer][i], atol=1e-5, rtol=1e-5)


def test_only_what_is_included_is_written_and_no_more_than_it(tiny, tmp_path, fasta, proteins):
    path = fasta("".join(f">p{i}\n{s}\n" for i, s in enumerate(proteins(*[4] * 200))))
    Extraction(fasta=path).run(tiny, tmp_path / "out")
    assert set(_read(tmp_path / "out" / "p3.pt")) == {"label", "mean_representations"}
    # 16 floats; a slice of the batch would take its whole storage along
    assert (tmp_path / "out" / "p3.pt").stat().st_size < 3000


def test_index_keeps_the_order_of_the_input(tiny, tmp_path, fasta, proteins):
    sequences = proteins(9, 50, 3, 20)
    path = fasta("".join(f">dir/{i}\n{s}\n" for i, s in enumerate(sequences)))
    seen = []
    Extraction(fasta=path, max_tokens=30).run(tiny, tmp_path / "out", progress=lambda *done: seen.append(done))
    with (tmp_path / "out" / "index.tsv").open() as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    assert [row["label"] for row in rows] == [f"dir/{i}" for i in range(4)]
    assert [int(row["residues"]) for row in rows] == [9, 50, 3, 20]
    expected = {f"{row['name']}.pt" for row in rows} | {"index.tsv", "manifest.json"}
    assert expected == {p.name for p in (tmp_path / "out").iterdir()}
    assert tuple(map(sum, zip(*seen)))[:2] == (4, 82)


def test_other_formats_hold_the_same_numbers(tiny, tmp_path, fasta):
    path = fasta(">a\nMKTAY\n")
    for kind in ("pt", "safetensors", "npy"):
        job = Extraction(fasta=path, layers=(1, 2), include=("mean", "per_tok"), format=kind)
        job.run(tiny, tmp_path / "out")
    content = _read(tmp_path / "out" / "a.pt")
    with safe_open(tmp_path / "out" / "a.safetensors", "pt") as file:
        assert file.metadata() == {"label": "a"}
        for layer in (1, 2):
            for include, key in (("mean", "mean_representations"), ("per_tok", "representations")):
                assert torch.equal(file.get_tensor(f"{key}.{layer}"), content[key][layer])
                array = np.load(tmp_path / "out" / f"a.{include}.{layer}.npy")
                assert np.array_equal(array, content[key][layer].numpy())


def test_the_same_input_gives_the_same_bytes(tiny, tmp_path, fasta):
    path = fasta(">a\nMKTAY\n>b\nGG\n")
    for folder in ("one", "two"):
        Extraction(fasta=path).run(tiny, tmp_path / folder)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_truncation_and_first_word(tiny, tmp_path, fasta):
    path = fasta(">a long name\nMKTAYWWWW\n")
    job = Extraction(fasta=path, truncate=5, first_word=True, include=("per_tok",))
    assert job.run(tiny, tmp_path / "out").residues == 5
    expected = tiny.embed(["MKTAY"], pooling="residue")[0]
    torch.testing.assert_close(_read(tmp_path / "out" / "a.pt")["representations"][2], expected)


def test_unknown_letters_as_unk(tiny, tmp_path, fasta):
    path = fasta(">a\nMJT\n")
    Extraction(fasta=path, on_invalid="unk", include=("per_tok",)).run(tiny, tmp_path / "out")
    stream = tiny.alphabet.encode(["MJT"], unknown="unk")
    assert stream.values.tolist()[2] == tiny.alphabet.unk_id
    expected = tiny.represent(stream, [-1])[-1].values[1:4]
    torch.testing.assert_close(_read(tmp_path / "out" / "a.pt")["representations"][2], expected)


@pytest.mark.parametrize("label", ["a/b", "../up", "..", ".hidden", "x" * 300, "é" * 150, "tab\there", "back\\slash"])
def test_unsafe_headers_become_safe_and_distinct_names(label):
    name = file_name(label)
    assert "/" not in name and "\\" not in name and not name.startswith(".") and name.isprintable()
    assert len(f"{name}.safetensors".encode()) <= 255
    assert name != label and name != file_name(label + "!") and name == file_name(label)


def test_safe_headers_are_kept_as_esm_extract_keeps_them():
    for label in ("sp|P12345|NAME_HUMAN A protein OS=Homo sapiens", "0|beta-lactamase_P20P|1.581", "x" * 200):
        assert file_name(label) == label


@pytest.mark.parametrize(
    "text, says",
    [
        (">a\nMKT\n>b\nMK*T\n", "record 2"),
        (">a\nMKT\n>a\nMKT\n", "record 2 has the same name"),
        (">a\nMKT\n>b\n", "record 2 (b, line 3): the sequence is empty"),
        ("", "the file is empty"),
    ],
)
def test_a_bad_record_stops_everything_before_anything_is_written(tiny, tmp_path, fasta, text, says):
    with pytest.raises(DataError) as caught:
        Extraction(fasta=fasta(text)).run(tiny, tmp_path / "out")
    assert says in caught.value.message and "in.fasta" in caught.value.message
    assert not (tmp_path / "out").exists()


def test_all_skipped_is_an_error(tiny, tmp_path, fasta):
    with pytest.raises(DataError, match="no record is left"):
        Extraction(fasta=fasta(">a\nMJT\n"), on_invalid="skip").run(tiny, tmp_path / "out")


@pytest.mark.parametrize("kind", ["pt", "safetensors", "npy"])
def test_a_full_disk_is_one_error_and_leaves_no_pieces(tiny, tmp_path, fasta, proteins, kind):
    """A limit on the size of a file stands for the full disk: the long protein's file cannot be written."""
    path = fasta("".join(f">p{i}\n{s}\n" for i, s in enumerate(proteins(4000, 2))))
    job = Extraction(fasta=path, include=("per_tok",), format=kind, max_tokens=100)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
        with pytest.raises(DataError, match=r"cannot write .*p0") as caught:
            job.run(tiny, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "free some space" in caught.value.hint
    assert {p.name for p in (tmp_path / "out").rglob("*")} == {".unfinished", "job.json"}
    job.run(tiny, tmp_path / "out", resume=True)
    assert not (tmp_path / "out" / ".unfinished").exists()
    assert len(list((tmp_path / "out").glob(f"p*.{kind}"))) == 2


def test_impossible_wishes(tiny, tmp_path, fasta):
    path = fasta(">a\nMKT\n")
    with pytest.raises(ConfigError, match=r"cannot include 'attention'"):
        Extraction(fasta=path, include=("attention",))
    with pytest.raises(ConfigError, match="contacts are written one file a protein"):
        Extraction(fasta=path, include=("contacts",), shard_bytes=99)
    with pytest.raises(ConfigError, match="h5 files hold many proteins"):
        Extraction(fasta=path, format="h5")
    with pytest.raises(ConfigError, match="npy files cannot hold bfloat16"):
        Extraction(fasta=path, format="npy", dtype="bfloat16")
    with pytest.raises(ConfigError, match="no dtype"):
        Extraction(fasta=path, dtype="int8")
    with pytest.raises(ConfigError, match="no format"):
        Extraction(fasta=path, format="h6")
    with pytest.raises(ConfigError, match="no layer 3"):
        Extraction(fasta=path, layers=(3,)).run(tiny, tmp_path / "out")
    with pytest.raises(DataError, match=r"in\.fasta"):
        Extraction(fasta=path).run(tiny, path)


# ---------------------------------------------------------------------- the command
def test_command_takes_the_words_of_esm_extract(cli, tiny, weights, tmp_path, fasta):
    path = fasta(">a\nmktay\n>b\nGG*\n")
    words = ("--repr_layers", 0, -2, "--include", "mean", "per_tok", "--toks_per_batch", 99, "--nogpu")
    code, out, _ = cli("embed", weights, path, tmp_path / "out", *words)
    assert code == 0 and "2 proteins, 7 residues" in out
    content = _read(tmp_path / "out" / "a.pt")
    assert set(content) == {"label", "representations", "mean_representations"}
    assert set(content["mean_representations"]) == {0, 1}
    expected = tiny.embed(["MKTAY"], layers=1)[0]
    torch.testing.assert_close(content["mean_representations"][1], expected, atol=1e-6, rtol=1e-5)


def test_command_with_option_o_and_lists(cli, weights, tmp_path, fasta):
    path = fasta(">a b\nMKTAY\n>a b\nGG\n")
    words = ("--repr_layers", "0,-1", "--include", "mean", "bos", "--on-duplicate", "number", "--id", "first-word")
    code, _, _ = cli("embed", weights, path, "-o", tmp_path / "out", *words, "--format", "npy")
    assert code == 0
    names = {f"{name}.{kind}.{layer}.npy" for name in ("a", "a_2") for kind in ("mean", "bos") for layer in (0, 2)}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | {"index.tsv", "manifest.json"}


@pytest.mark.parametrize(
    "words, says",
    [
        ((), "no folder to write into"),
        (("--include", "mean", "per_tok"), "no folder to write into"),
        (("out", "twice"), "'twice'"),
        (("out", "--formt", "npy"), "No such option: --formt"),
        (("out", "-z"), "No such option: -z"),
        (("out", "--repr_layers", "last"), "--repr_layers 'last'"),
        (("out", "--include", "heads"), "cannot include 'heads'"),
        (("out", "--shard-bytes", "much"), "'much' is no size"),
        (("out", "--repr_layers", "7"), "no layer 7"),
    ],
)
def test_command_refuses_in_one_line(cli, weights, tmp_path, fasta, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("embed", weights, fasta(">a\nMKT\n"), *words)
    assert code == 2 and says in err and "Traceback" not in err and "Hint" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("word", ["--nogp", "--nogp=1"])
def test_command_names_a_misspelt_option_wherever_it_stands(cli, place, word):
    words = ["no-run", "none.fasta", "out"]
    code, _, err = cli("embed", *words[:place], word, *words[place:])
    assert code == 2 and "No such option: --nogp\n" in err and "did you mean --nogpu?" in err


def test_command_reads_a_file_that_is_called_like_an_option(cli, weights, tmp_path, fasta, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fasta(">a\nMKT\n", "--a.fasta")
    code, out, _ = cli("embed", weights, "./--a.fasta", "out")
    assert code == 0 and "1 proteins" in out


def test_command_names_file_and_record_before_it_loads_anything(cli, tmp_path, fasta):
    code, _, err = cli("embed", tmp_path / "no-such-run", fasta(">a\nMKT\n>b\nMKJ\n"), tmp_path / "out")
    assert code == 2 and "in.fasta: record 2 (b, line 3): letter 'J' at position 3" in err
    code, _, err = cli("embed", tmp_path / "no-such-run", fasta(">a\nMKT\n"), tmp_path / "out")
    assert code == 2 and "no-such-run" in err
    code, _, err = cli("embed", tmp_path, tmp_path / "none.fasta", tmp_path / "out")
    assert code == 2 and "none.fasta: no such file" in err


def test_command_names_a_truncated_checkpoint(cli, weights, tmp_path, fasta):
    path = weights / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    code, _, err = cli("embed", weights, fasta(">a\nMKT\n"), tmp_path / "out")
    assert code == 2 and "model.safetensors" in err and "damaged" in err and not (tmp_path / "out").exists()


def test_command_refuses_dna_unless_told(cli, weights, tmp_path, fasta):
    path = fasta(">a\n" + "ACGT" * 20 + "\n")
    code, _, err = cli("embed", weights, path, tmp_path / "out")
    assert code == 2 and "in.fasta looks like DNA or RNA" in err and "translate it" in err
    code, _, _ = cli("embed", weights, path, tmp_path / "out", "--nucleotides")
    assert code == 0 and (tmp_path / "out" / "a.pt").is_file()
