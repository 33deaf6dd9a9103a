"""Variant scores, saturation and pseudo-perplexity: against loops, and every way a table can be wrong."""

from __future__ import annotations

import csv
import gzip
import io
import math

import numpy as np
import pytest
import torch

from seqgraph.cli.main import main
from seqgraph.errors import ConfigError, DataError
from seqgraph.train import checkpoint
from seqgraph_lc_plm import mutate
from seqgraph_lc_plm.mutate import AMINO_ACIDS, Substitution, Table, parse
from seqgraph_lc_plm.scoring import log_probabilities, pseudo_perplexity

WILD = "MKTAYIAKQR"


@pytest.fixture
def table(tmp_path):
    def write(text, name="variants.csv"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


@pytest.fixture
def weights(tiny, tmp_path):
    fields = {"d_model": 16, "n_layers": 2, "d_state": 4, "vocab_size": 40}
    return checkpoint.save(tmp_path / "weights", tiny, name="lc-plm", fields=fields)


def _masked(model, sequence, place):
    """log p of the 33 tokens at one masked position, from the model's own logits."""
    text = sequence[:place] + "<mask>" + sequence[place + 1 :]
    return model.logits([text])[0][place].double().log_softmax(-1)


def _id(model, letter):
    return model.alphabet.to_id(letter)


def test_masked_marginals_mask_one_position_at_a_time(tiny):
    variants = [parse("K2R"), parse("A4C:Q9E"), [], parse("M1X")]
    found = mutate.score(tiny, WILD, variants, max_tokens=25)
    expected = []
    for variant in variants:
        total = 0.0
        for one in variant:
            logs = _masked(tiny, WILD, one.place)
            total += float(logs[_id(tiny, one.new)] - logs[_id(tiny, one.old)])
        expected.append(total)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[2] == 0


def test_wt_marginals_read_the_protein_as_it_is(tiny):
    found = mutate.score(tiny, WILD, [parse("K2R")], method="wt-marginals")
    logs = tiny.logits([WILD])[0][1].double().log_softmax(-1)
    assert found[0] == pytest.approx(float(logs[_id(tiny, "R")] - logs[_id(tiny, "K")]), abs=1e-5)
    masked = mutate.score(tiny, WILD, [parse("K2R")])
    assert abs(found[0] - masked[0]) > 1e-4


def test_saturation_is_every_single_score(tiny):
    found = mutate.saturation(tiny, WILD)
    assert found.shape == (20, 10)
    variants = [[Substitution(WILD[j], j, a)] for a in AMINO_ACIDS for j in range(10)]
    expected = mutate.score(tiny, WILD, variants).reshape(20, 10)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    rows = list(csv.DictReader(io.StringIO(mutate.saturation_csv(found.numpy(), WILD, 5))))
    assert len(rows) == 190 and rows[0]["mutant"] == "M5A"
    assert float(rows[0]["score"]) == pytest.approx(expected[0, 0], abs=1e-5)


def test_pseudo_perplexity_is_the_models_own(tiny):
    assert pseudo_perplexity(tiny, WILD, max_tokens=30) == pytest.approx(tiny.pseudo_perplexity(WILD), rel=1e-5)
    logs = tiny.logits([WILD])[0].double().log_softmax(-1)
    own = [float(logs[i, _id(tiny, letter)]) for i, letter in enumerate(WILD)]
    seen = pseudo_perplexity(tiny, WILD, method="wt-marginals")
    assert seen == pytest.approx(math.exp(-sum(own) / len(own)), rel=1e-5)


def test_out_of_memory_while_scoring_halves_the_batch(tiny, small_memory, monkeypatch):
    expected = log_probabilities(tiny, WILD)
    small_memory(tiny, num_segments=2)
    told: list[int] = []
    found = log_probabilities(tiny, WILD, max_tokens=12 * 10, on_halved=told.append)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert told == [12 * 5, 12 * 2]
    monkeypatch.setattr(type(tiny), "forward", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
    for method in ("masked-marginals", "wt-marginals"):
        with pytest.raises(DataError, match="one pass over 10 residues"):
            log_probabilities(tiny, WILD, method=method)


def test_commands_say_that_memory_did_not_suffice(weights, tiny, small_memory, table, tmp_path, capsys):
    small_memory(tiny, num_segments=2)
    fasta = tmp_path / "a.fasta"
    fasta.write_text(f">a\n{WILD}\n")
    for words in (
        ("mutate", weights, table("mutant\nK2R\nA4C\nQ9E\n"), "--fasta", fasta, "-o", tmp_path / "scored.csv"),
        ("perplexity", weights, fasta),
    ):
        assert main([*map(str, words), "--nogpu", "--toks_per_batch", "48"]) == 0
        assert "out of memory: going on with 24 tokens a batch" in capsys.readouterr().err
    fasta.write_text(f">a\n{WILD}\n>b\n{WILD[::-1]}\n")  # the second protein begins with the smaller budget
    assert main(["perplexity", str(weights), str(fasta), "--nogpu", "--toks_per_batch", "120"]) == 0
    err = capsys.readouterr().err
    assert [err.count(f"going on with {tokens} tokens") for tokens in (60, 24)] == [1, 1]


def test_dna_is_no_protein_to_score(weights, table, tmp_path, capsys):
    dna = "ATGGCAAAAGAAGACAATATTGAAATGCAAGGTACC"
    fasta = tmp_path / "dna.fasta"
    fasta.write_text(f">gene\n{dna}\n")
    variants = table("mutant\nA1C\n")
    mutated = table(f"mutant,mutated_sequence\nA1C,C{dna[1:]}\n", "mutated.csv")
    out = tmp_path / "out.csv"
    for words in (
        ("mutate", weights, variants, "--fasta", fasta, "-o", out),
        ("mutate", weights, variants, "--sequence", dna.lower(), "-o", out),
        ("mutate", weights, mutated, "-o", out),
        ("saturation", weights, "--fasta", fasta, "-o", tmp_path / "x.png"),
        ("perplexity", weights, fasta),
    ):
        assert main([*map(str, words)]) == 2
        assert "looks like DNA or RNA" in capsys.readouterr().err
    assert not out.exists()
    assert main(["perplexity", str(weights), str(fasta), "--nucleotides"]) == 0
    for command in ("perplexity", "embed"):
        capsys.readouterr()
        assert main([command, "--help"]) == 0
        help_text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "Read a file that looks like DNA or RNA as proteins" in help_text


# ---------------------------------------------------------------------- tables
def test_variants_as_tables_write_them():
    assert parse("A24C") == [Substitution("A", 23, "C")] and parse("p.a24c") == parse("A24C")
    assert parse("A1C:D3E") == parse("A1C,D3E") == [Substitution("A", 0, "C"), Substitution("D", 2, "E")]
    assert parse("WT") == parse("_wt") == parse("") == []
    for wrong in ("24C", "A24", "A24del", "ins", "A1C:A1D"):
        with pytest.raises(ValueError):
            parse(wrong)


@pytest.mark.parametrize(
    "text, says",
    [
        ("mutant\nK2R\nA2C\n", r"variants\.csv: row 2: A2C: the sequence has K at 2"),
        ("mutant\nR11K\n", r"row 1: R11K: the sequence has residues 1 to 10"),
        ("mutant\nK2J\n", r"row 1: K2J: J is no amino acid"),
        ("mutant\nK2del\n", r"row 1: 'K2del' is no substitution"),
        ("variant\nK2R\n", r"no column 'mutant'.*variant"),
        ("mutant,score\nK2R\n", r"row 1 has 1 cells, the header 2"),
        ("mutant\n", r"no variants in it"),
        ("", r"no variants in it"),
    ],
)
def test_a_wrong_table_is_refused_by_its_row(table, text, says):
    with pytest.raises(DataError, match=says) as caught:
        mutate.variants(Table.read(table(text)), WILD)
    assert caught.value.hint


def test_numbers_that_do_not_begin_at_one(table):
    found = mutate.variants(Table.read(table("mutant\nK25R\n")), WILD, offset=24)
    assert found == [[Substitution("K", 1, "R")]]


def test_the_protein_from_the_mutated_sequence(table):
    text = f"mutant,mutated_sequence\nK2R:Q9E,{'MRTAYIAKER'}\nWT,{WILD}\n"
    assert mutate.wild_type(Table.read(table(text))) == WILD
    with pytest.raises(DataError, match="does not have R at 2"):
        mutate.wild_type(Table.read(table(f"mutant,mutated_sequence\nK2R,{WILD}\n")))
    with pytest.raises(DataError, match=r"no column 'mutated_sequence'"):
        mutate.wild_type(Table.read(table("mutant\nK2R\n")))


# ---------------------------------------------------------------------- the commands
def test_command_writes_the_table_with_one_more_column(tiny, weights, table, tmp_path, capsys):
    rows = [("K2R", 0.5), ("A4C:Q9E", -1.0), ("Y5F", 0.2), ("I6V", "")]
    path = table("mutant,DMS_score,note\n" + "".join(f'{v},{s},"a, b"\n' for v, s in rows), "v.csv.gz")
    out = tmp_path / "new" / "scored.csv"
    assert main(["mutate", str(weights), str(path), "--sequence", WILD.lower(), "-o", str(out), "--nogpu"]) == 0
    with out.open() as lines:
        found = list(csv.DictReader(lines))
    assert [(row["mutant"], row["note"]) for row in found] == [(v, "a, b") for v, _ in rows]
    expected = mutate.score(tiny, WILD, [parse(v) for v, _ in rows])
    np.testing.assert_allclose([float(row["score"]) for row in found], expected, atol=1e-5)
    ranks = [np.argsort(np.argsort(x)) for x in (expected[:3], [0.5, -1.0, 0.2])]
    said = capsys.readouterr().out
    assert "4 variants, 5 positions" in said
    assert f"Spearman's rho with DMS_score: {np.corrcoef(ranks)[0, 1]:.3f}" in said
    again = ["mutate", str(weights), str(out), "--sequence", WILD, "-o", str(out), "--nogpu"]
    assert main(again) == 2 and "has a column 'score' already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        ((), "no column 'mutated_sequence'"),
        (("--sequence", "GG", "--fasta", "x"), "--sequence and --fasta both"),
        (("--fasta", "none.fasta"), "none.fasta: no such file"),
        (("--sequence", "GGGG"), "row 1: K2R: the sequence has G at 2"),
    ],
)
def test_command_refuses_in_one_line(weights, table, tmp_path, capsys, words, says):
    code = main(["mutate", str(weights), str(table("mutant\nK2R\n")), "-o", str(tmp_path / "out.csv"), *words])
    err = capsys.readouterr().err
    assert code == 2 and says in err and "Hint" in err and not (tmp_path / "out.csv").exists()


def test_command_wants_one_protein(weights, table, tmp_path, capsys):
    path = tmp_path / "two.fasta"
    path.write_text(">a\nMK\n>b\nGG\n")
    words = ["mutate", str(weights), str(table("mutant\nK2R\n")), "-o", str(tmp_path / "out.csv")]
    assert main([*words, "--fasta", str(path)]) == 2
    assert "holds several proteins" in capsys.readouterr().err


def test_saturation_command_draws_and_writes(tiny, weights, tmp_path, capsys, proteins):
    pytest.importorskip("matplotlib")
    sequence = proteins(95)[0]
    words = ["saturation", str(weights), "--sequence", sequence, "--offset", "24", "--nogpu"]
    assert main([*words, "-o", str(tmp_path / "map.png"), "--csv", str(tmp_path / "map.csv")]) == 0
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "map.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 19 * 95 and rows[0]["mutant"].startswith(f"{sequence[0]}24")
    assert main([*words, "-o", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "map.png").read_bytes()
    capsys.readouterr()
    assert main([*words, "-o", str(tmp_path / "map.jpeg")]) == 2
    assert ".png, .svg or .pdf" in capsys.readouterr().err
    assert main(["saturation", str(weights), "-o", str(tmp_path / "a.png")]) == 2
    assert "no protein to draw" in capsys.readouterr().err
    assert main(["saturation", str(weights), "-o", str(tmp_path / "a.png"), "--sequence", "M" * 4001]) == 2
    assert "4,001 residues are too many" in capsys.readouterr().err


def test_perplexity_command(tiny, weights, tmp_path, capsys):
    path = tmp_path / "in.fasta"
    path.write_text(f">a b\n{WILD}\n>a b\nGGG\n")
    assert main(["perplexity", str(weights), str(path), "--nogpu"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["label"], row["residues"]) for row in rows] == [("a b", "10"), ("a b_2", "3")]
    assert float(rows[0]["pseudo_perplexity"]) == pytest.approx(tiny.pseudo_perplexity(WILD), rel=1e-3)
    assert main(["perplexity", str(weights), str(path), "-o", str(tmp_path / "p.csv"), "--nogpu"]) == 0
    assert (tmp_path / "p.csv").read_text().count("\n") == 3


def test_no_such_column_name_twice(table):
    with pytest.raises(ConfigError, match="--score-column"):
        Table.read(table("mutant,score\nK2R,1\n")).text("score", [1.0])


def test_on_a_real_assay(tiny, shared_data):
    """IF1 of ProteinGym: its 1,367 variants fit the sequence of the reference file."""
    folder = shared_data / "protein" / "proteingym_partial"
    found = Table.read(folder / "IF1_ECOLI_Kelsic_2016.csv.gz")
    csv.field_size_limit(10**9)
    with gzip.open(folder / "DMS_substitutions.csv.gz", "rt") as lines:
        sequence = next(row["target_seq"] for row in csv.DictReader(lines) if row["DMS_id"] == "IF1_ECOLI_Kelsic_2016")
    variants = mutate.variants(found, sequence)
    assert len(variants) == 1367
    scores = mutate.score(tiny, sequence, variants)
    assert np.isfinite(scores).all() and mutate.spearman(found, "DMS_score", scores) is not None
