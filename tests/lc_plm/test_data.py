"""The shipped sample, the FASTA data set, and the masked-LM task on them."""

from __future__ import annotations

import lzma
import math
from collections import Counter
from importlib import resources

import pytest
import torch

from seqgraph.errors import ConfigError, DataError
from seqgraph.tokenize.protein import RESIDUE, SPECIAL
from seqgraph_lc_plm.curate import curate
from seqgraph_lc_plm.data import Fasta, SwissProtSample
from seqgraph_lc_plm.model import LcPlm
from seqgraph_lc_plm.task import MaskedLM


@pytest.fixture(scope="module")
def sample() -> SwissProtSample:
    return SwissProtSample()


# ---------------------------------------------------------------------- the sample
def test_sample_does_not_stand_in_for_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="does not read"):
        SwissProtSample(root=str(tmp_path))


def test_sample_is_what_its_note_says(sample):
    count = {name: len(sample.split(name)) for name in ("train", "valid", "test")}
    residues = {name: sum(map(len, sample.split(name))) for name in count}
    assert count == {"train": 5000, "valid": 200, "test": 300}
    assert residues == {"train": 930_364, "valid": 36_745, "test": 78_733}
    note = resources.files("seqgraph_lc_plm").joinpath("sample/SOURCE.txt").read_text()
    for number in (*count.values(), *residues.values()):
        assert f"{number:,}" in note
    packed = resources.files("seqgraph_lc_plm").joinpath("sample/swissprot_sample.tsv.xz").read_bytes()
    assert len(packed) < 700_000 and "CC BY 4.0" in note


def test_no_sequence_is_in_two_splits_nor_twice(sample):
    every = [s for name in ("train", "valid", "test") for s in sample.split(name)]
    assert len(set(every)) == len(every) == 5500


def _kmers(sequence, k=6):
    return {sequence[i : i + k] for i in range(len(sequence) - k + 1)}


def test_families_are_kept_apart(sample):
    """By a cruder measure than the one that made the split: no held-out protein shares a third of its 6-mers."""
    held_out = [*sample.split("valid"), *sample.split("test")]
    owners: dict[str, list[int]] = {}
    for i, sequence in enumerate(held_out):
        for kmer in _kmers(sequence):
            owners.setdefault(kmer, []).append(i)
    for sequence in sample.split("train"):
        shared = Counter(i for kmer in _kmers(sequence) for i in owners.get(kmer, ()))
        for i, count in shared.items():
            assert count < len(_kmers(held_out[i])) / 3


@pytest.mark.slow
def test_sample_can_be_made_again(shared_data, sample):
    rows = curate(shared_data / "protein" / "swissprot2014" / "swissprot_2014_01.tsv.xz")
    packed = resources.files("seqgraph_lc_plm").joinpath("sample/swissprot_sample.tsv.xz").read_bytes()
    assert lzma.decompress(packed).decode() == "".join("\t".join(row) + "\n" for row in rows)


def test_training_sequences_are_cropped_and_others_are_not():
    data = SwissProtSample(max_length=50)
    torch.manual_seed(0)
    crops = data.split("train")
    assert max(map(len, crops)) == 50 and max(data.lengths("train")) == 52
    whole = data.sequences["train"][0]
    seen = {crops[0] for _ in range(20)}
    assert len(seen) > 5 and all(crop in whole for crop in seen)
    assert {whole.index(crop) for crop in seen} <= set(range(len(whole) - 49))
    assert max(map(len, data.split("test"))) > 1000
    assert data.lengths("test") == [len(s) + 2 for s in data.split("test")]


def test_lengths_are_those_of_the_batch(sample):
    examples = [sample.split("train")[i] for i in range(7)]
    assert sample.collate(examples).lengths.tolist() == list(sample.lengths("train"))[:7]


def test_fingerprint_knows_content_and_settings(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text("".join(f">{i}\n{'MKTAY' * (i + 1)}\n" for i in range(150)))
    assert Fasta(path=str(path)).fingerprint() == Fasta(path="a.fasta", root=str(tmp_path)).fingerprint()
    assert Fasta(path=str(path)).fingerprint() != Fasta(path=str(path), max_length=9).fingerprint()
    assert Fasta(path=str(path)).fingerprint() != Fasta(path=str(path), split_seed=1).fingerprint()


# ---------------------------------------------------------------------- any FASTA
def test_fasta_split_depends_on_the_sequence_alone(tmp_path, proteins):
    sequences = proteins(*range(20, 420))
    path, turned = tmp_path / "a.fasta", tmp_path / "b.fasta"
    path.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(sequences)))
    turned.write_text("".join(f">q{i}\n{s.lower()}*\n" for i, s in enumerate(reversed(sequences + sequences[:9]))))
    one, other = Fasta(path=str(path), test_fraction=0.2), Fasta(path=str(turned), test_fraction=0.2)
    for name in ("train", "valid", "test"):
        assert set(one.split(name)) == set(other.split(name))
    assert 0.12 < len(one.split("test")) / 400 < 0.28
    assert not set(one.split("train")) & set(one.split("test"))
    assert set(one.split("test")) != set(Fasta(path=str(path), test_fraction=0.2, split_seed=1).split("test"))


def test_fasta_refuses_what_cannot_be_split(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(">a\nMKT\n>b\nMKTA\n")
    with pytest.raises(DataError, match=r"a\.fasta: no sequence fell into (train|valid|test) \(train"):
        Fasta(path=str(path))
    assert len(Fasta(path=str(path), valid_fraction=0, test_fraction=0).split("train")) == 2
    path.write_text(">a\nMJT\n")
    with pytest.raises(DataError, match=r"a\.fasta: record 1"):
        Fasta(path=str(path))


# ---------------------------------------------------------------------- the task
class Spy(torch.nn.Module):
    """Keeps what it was given, and answers with fixed logits."""

    def __init__(self, vocab_size: int = 33) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(vocab_size, vocab_size, generator=torch.manual_seed(1)))

    def forward(self, stream, where):
        self.inputs, self.where = stream, where
        return self.weight[stream.values[where]]


def test_masking_is_15_percent_80_10_10_over_residues(sample):
    batch = sample.collate([sample.split("train")[i] for i in range(600)])
    model = Spy()
    MaskedLM(model).training_step(batch)
    where, seen, true = model.where, model.inputs.values, batch.values
    residues = int((batch.role == RESIDUE).sum())
    assert not where[batch.role == SPECIAL].any()
    assert torch.equal(seen[~where], true[~where])
    chosen = int(where.sum())
    assert chosen / residues == pytest.approx(0.15, abs=0.005)
    masked, same = (seen[where] == 32), (seen[where] == true[where])
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.01)
    # a random amino acid is the true one in 1 of 20 draws
    assert float(same.float().mean()) == pytest.approx(0.1 + 0.1 / 20, abs=0.01)
    swapped = seen[where][~masked & ~same]
    assert set(swapped.tolist()) == set(range(4, 24))


def test_training_mask_is_drawn_anew_from_the_global_generator(sample):
    batch = sample.collate([sample.split("train")[i] for i in range(5)])
    model = Spy()
    task, masks = MaskedLM(model), []
    for seed in (0, 0, None):
        if seed is not None:
            torch.manual_seed(seed)
        task.training_step(batch)
        masks.append(model.where)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_evaluation_mask_depends_on_sequence_and_seed_alone(sample):
    sequences = [sample.split("valid")[i] for i in range(8)]
    task = MaskedLM(Spy())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    where, inputs = task.evaluation_mask(sample.collate(sequences))
    assert torch.equal(before, torch.get_rng_state())
    lengths = [len(s) + 2 for s in sequences]
    together = list(zip(where.split(lengths), inputs.values.split(lengths)))
    for i in (5, 0, 7):
        alone_where, alone = task.evaluation_mask(sample.collate([sequences[i]]))
        assert torch.equal(alone_where, together[i][0]) and torch.equal(alone.values, together[i][1])
    other, _ = MaskedLM(Spy(), eval_seed=1).evaluation_mask(sample.collate(sequences))
    assert not torch.equal(other, where)


def test_evaluation_shows_no_letter_that_it_asks_for(sample):
    batch = sample.collate(list(sample.split("valid")))
    where, inputs = MaskedLM(Spy()).evaluation_mask(batch)
    assert (inputs.values[where] == 32).all() and torch.equal(inputs.values[~where], batch.values[~where])
    assert not where[batch.role == SPECIAL].any()
    assert int(where.sum()) / int((batch.role == RESIDUE).sum()) == pytest.approx(0.15, abs=0.005)


def test_metrics_are_the_formulas_over_all_masked_residues(sample):
    model = Spy()
    task = MaskedLM(model)
    losses, right, count = 0.0, 0, 0
    for start, stop in ((0, 3), (3, 4), (4, 11)):
        batch = sample.collate([sample.split("valid")[i] for i in range(start, stop)])
        result = task.evaluation_step(batch)
        logits = model.weight[model.inputs.values[model.where]].detach().double()
        target = batch.values[model.where]
        for row, answer in zip(logits, target.tolist()):
            losses -= float(row[answer] - row.exp().sum().log())
            right += int(row.argmax()) == answer
            count += 1
        assert int(result["size"]) == len(target)
    found = {name: float(metric.compute()) for name, metric in task.metrics().items()}
    assert found["loss"] == pytest.approx(losses / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(losses / count), rel=1e-5)
    assert found["accuracy"] == pytest.approx(right / count, rel=1e-6)


def test_baseline_is_the_unigram_on_the_same_residues(sample):
    task = MaskedLM(Spy())
    found = task.baseline(sample)
    counts = Counter("".join(sample.sequences["train"]))
    total = sum(counts.values())
    nats, hits, size = 0.0, 0, 0
    top = counts.most_common(1)[0][0]
    for sequence in sample.split("test"):
        where, _ = task.evaluation_mask(sample.collate([sequence]))
        for letter, chosen in zip(sequence, where[1:-1].tolist()):
            if chosen:
                nats -= math.log(counts[letter] / total)
                hits += letter == top
                size += 1
    assert found["loss"] == pytest.approx(nats / size, abs=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(nats / size), rel=1e-3) and 17 < found["perplexity"] < 19
    assert found["accuracy"] == pytest.approx(hits / size)


def test_baseline_leaves_the_generator_alone():
    data, before = SwissProtSample(max_length=30), torch.get_rng_state()
    MaskedLM(Spy()).baseline(data)
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_in_which_nothing_is_masked_has_a_finite_loss(sample):
    task = MaskedLM(LcPlm(d_model=8, n_layers=1), mask_fraction=1e-9)
    result = task.training_step(sample.collate(["MKT"]))
    result["loss"].backward()
    assert float(result["loss"].detach()) == 0 and int(result["size"]) == 0
    assert task.evaluation_step(sample.collate(["MKT"])) == {}


def test_the_model_learns_a_repeat(sample):
    """A few steps on sequences with a rule bring the loss far below that of the letters alone."""
    torch.manual_seed(0)
    model = LcPlm(d_model=32, n_layers=2, d_state=4, vocab_size=33)
    task = MaskedLM(model)
    batch = sample.collate(["ACDEFGHIKL"[i:] + "ACDEFGHIKL" * 3 for i in range(8)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        task.training_step(batch)["loss"].backward()
        optimizer.step()
    task.evaluation_step(batch)
    assert float(task.loss.compute()) < 0.7 < math.log(10)
