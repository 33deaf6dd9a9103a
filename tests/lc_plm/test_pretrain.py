"""Pre-training: families, crops, tables, clusters, ESM-2 beside LC-PLM, resume, sharding, and what is logged."""

from __future__ import annotations

import json
import lzma
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import seqgraph as sg
from seqgraph.cli.main import main
from seqgraph.errors import ConfigError, DataError
from seqgraph.train.batching import token_batches
from seqgraph_lc_plm.cluster import cluster
from seqgraph_lc_plm.config import Esm2Config, ProteinTableConfig
from seqgraph_lc_plm.data import Fasta, ProteinTable, SwissProtSample
from seqgraph_lc_plm.model import LcPlm
from seqgraph_lc_plm.task import LossByLength, MaskedLM

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def mutated(sequence, share, draw):
    return "".join(draw.choice(list(AMINO_ACIDS)) if draw.random() < share else letter for letter in sequence)


@pytest.fixture
def table(tmp_path, proteins):
    """240 proteins of 40 to 99 residues in 60 clusters of 1 to 7; the last 12 clusters are held out."""
    draw = np.random.default_rng(0)
    rows = []
    for f, ancestor in enumerate(proteins(*range(40, 100))):
        split = "test" if f % 10 == 9 else "valid" if f % 10 == 8 else "train"
        rows += [(f"p{f}.{i}", f"f{f}", split, mutated(ancestor, 0.1, draw)) for i in range(1 + f % 7)]
    path = tmp_path / "table.tsv.xz"
    path.write_bytes(lzma.compress("".join("\t".join(row) + "\n" for row in rows).encode()))
    return path, rows


def opened(path, **more):
    return ProteinTable(
        path=str(path), columns=["name", "family", "split", "sequence"], cluster="family", split="split", **more
    )


# ---------------------------------------------------------------------- data
def test_an_epoch_has_one_protein_of_each_family(table):
    path, rows = table
    data = opened(path)
    family_of = {row[3]: row[1] for row in rows}
    families = {row[1] for row in rows if row[2] == "train"}
    seen: dict[str, set[str]] = {}
    for epoch in range(12):
        loader = token_batches(data, "train", 500, shuffle=True, seed=1)
        loader.sampler.seek(epoch)
        drawn = [text for batch in loader for text in data.alphabet.decode(batch)]
        assert Counter(family_of[text] for text in drawn) == Counter(families)
        for text in drawn:
            seen.setdefault(family_of[text], set()).add(text)
    # in twelve epochs nearly every member has had its turn
    assert sum(map(len, seen.values())) > 0.8 * len({row[3] for row in rows if row[2] == "train"})
    assert np.array_equal(data.draw("train", 3, 1), opened(path).draw("train", 3, 1))
    assert not np.array_equal(data.draw("train", 3, 1), data.draw("train", 3, 2))
    assert data.draw("valid", 0, 1) is None and opened(path).sequences == data.sequences


def test_processes_share_the_proteins_of_an_epoch(table):
    data = opened(table[0])
    whole = sorted(data.draw("train", 2, 0).tolist())
    shares = []
    for rank in range(3):
        loader = token_batches(data, "train", 200, shuffle=True, seed=0, rank=rank, world=3)
        loader.sampler.seek(2)
        shares.append([i for key in loader.sampler for i in key.indices])
    assert sorted(i for share in shares for i in share) == whole


def test_budget_holds_with_families_and_crops(table):
    data = opened(table[0], max_length=30)
    loader = token_batches(data, "train", 100, shuffle=True)
    for place, batch in enumerate(loader):
        assert batch.num_tokens == loader.sampler.tokens(place) <= 100 and int(batch.lengths.max()) <= 32


def test_whole_proteins_are_trained_on_without_a_crop_length(table):
    data = opened(table[0], max_length=None)
    assert data.split("train") == data.sequences["train"]
    assert data.lengths("train") == [len(s) + 2 for s in data.sequences["train"]]
    assert opened(table[0]).fingerprint() != data.fingerprint() != opened(table[0], max_length=30).fingerprint()
    whole = SwissProtSample(max_length=None)
    assert max(whole.lengths("train")) == max(map(len, whole.sequences["train"])) + 2


def test_a_table_with_a_header_and_commas_splits_by_cluster(table, tmp_path):
    path = tmp_path / "t.csv"
    rows = [(name, family, sequence) for name, family, _, sequence in table[1]]
    path.write_text("id,Family,aa\n" + "".join(f"{n},{f},{s.lower()}*\n" for n, f, s in rows))
    data = ProteinTable(path=str(path), sequence="aa", cluster="Family", valid_fraction=0.2, test_fraction=0.2)
    family = {sequence: f for _, f, sequence in rows}
    found = {name: {family[s] for s in data.sequences[name]} for name in ("train", "valid", "test")}
    assert all(found.values()) and sum(map(len, found.values())) == len(set.union(*found.values())) == 60
    plain = ProteinTable(path=str(path), sequence="aa")
    assert plain.draw("train", 0, 0) is None and sum(map(len, plain.sequences.values())) == len(rows)


@pytest.mark.parametrize(
    "content, more, says",
    [
        ("sequence\nMKT\nMJT\n", {}, r"line 3: 'J' is no amino acid"),
        ("sequence\n*\n", {}, r"line 2: the sequence is empty"),
        ("seq\nMKT\n", {}, r"no column 'sequence'; there are: seq"),
        ("sequence\n", {}, "no rows"),
        ("", {}, "no column 'sequence'"),
        ("sequence\tsplit\nMKT\ttrain\nMKV\tdev\n", {"split": "split"}, r"line 3: the split is 'dev'"),
        ("sequence\tsplit\nMKT\n", {"split": "split"}, r"line 2 has 1 cells"),
        ("sequence\tsplit\nMKT\ttest\n", {"split": "split"}, r"no sequence fell into train"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, more, says):
    path = tmp_path / "bad.tsv"
    path.write_text(content)
    with pytest.raises((DataError, ConfigError), match=rf"bad\.tsv: .*{says}"):
        ProteinTable(path=str(path), **more)


def test_tables_that_are_broken(tmp_path, table):
    cut = tmp_path / "cut.tsv.xz"
    cut.write_bytes(table[0].read_bytes()[:-40])
    with pytest.raises(DataError, match=r"cut\.tsv\.xz: the compressed file is broken"):
        opened(cut)
    with pytest.raises(DataError, match=r"nowhere: no such file"):
        opened(tmp_path / "nowhere")
    bad = tmp_path / "bad.tsv"
    bad.write_text("sequence\nMKT\nMJT\n*\nMKV\n")
    kept = ProteinTable(path=str(bad), on_invalid="skip", valid_fraction=0, test_fraction=0)
    assert kept.sequences["train"] == ["MKT", "MKV"]
    assert kept.collate(["MJT"]).values.tolist()[2] == kept.alphabet.unk_id


# ---------------------------------------------------------------------- clusters
def test_clusters_are_the_families(proteins):
    draw = np.random.default_rng(1)
    sequences, families = [], []
    for f, ancestor in enumerate(proteins(*[120 + 3 * f for f in range(40)], seed=3)):
        for i in range(1 + f % 4):
            sequences.append(mutated(ancestor, 0.15, draw)[i * 4 :])
            families.append(f)
    found = cluster(sequences)
    assert len({(a, b) for a, b in zip(families, found.tolist())}) == len(set(found.tolist())) == 40
    for s, centre in enumerate(found):
        assert len(sequences[centre]) >= len(sequences[s]) and found[centre] == centre
    assert len(set(cluster(sequences, 1.0).tolist())) > 40
    assert cluster(["MKT", "MKT", "W"]).tolist() == [0, 0, 2] and cluster([]).tolist() == []


def test_dna_is_not_trained_on(tmp_path, capsys):
    genes = ["".join(random.Random(i).choices("ACGT", k=90)) for i in range(60)]
    (tmp_path / "dna.fasta").write_text("".join(f">g{i}\n{gene}\n" for i, gene in enumerate(genes)))
    (tmp_path / "dna.tsv").write_text("\n".join(["sequence", *genes]))
    with pytest.raises(DataError, match=r"dna\.fasta looks like DNA or RNA: all 60 records"):
        Fasta(path="dna.fasta", root=str(tmp_path))
    with pytest.raises(DataError, match=r"dna\.tsv looks like DNA or RNA: all 60 records"):
        ProteinTable(path="dna.tsv", root=str(tmp_path))
    assert main(["cluster-proteins", str(tmp_path / "dna.fasta"), "-o", str(tmp_path / "clusters.tsv")]) == 2
    assert "looks like DNA or RNA" in capsys.readouterr().err and not (tmp_path / "clusters.tsv").exists()


def test_clusters_of_a_fasta_from_the_command_line(tmp_path, table, capsys):
    fasta, out = tmp_path / "a.fasta", tmp_path / "clusters.tsv"
    fasta.write_text("".join(f">{name} of {family}\n{sequence}\n" for name, family, _, sequence in table[1]))
    assert main(["cluster-proteins", str(fasta), "-o", str(out)]) == 0
    assert "proteins in 6" in capsys.readouterr().out
    data = Fasta(path="a.fasta", clusters="clusters.tsv", root=str(tmp_path), valid_fraction=0.2, test_fraction=0.2)
    family = {row[3]: row[1] for row in table[1]}
    found = [{family[s] for s in data.sequences[name]} for name in ("train", "valid", "test")]
    assert all(found) and sum(map(len, found)) == len(set.union(*found))
    assert len(data.draw("train", 0, 0)) < 60 < len(data.sequences["train"])
    out.write_text("".join(out.read_text().splitlines(keepends=True)[5:]))
    with pytest.raises(DataError, match=r"no cluster for 5 of the .* records of .*: p") as error:
        Fasta(path=str(fasta), clusters=str(out))
    assert "seqgraph cluster-proteins" in error.value.hint
    assert main(["cluster-proteins", str(fasta), "-o", str(out), "--identity", "2"]) == 2


# ---------------------------------------------------------------------- the loss by length
def test_the_loss_of_each_bin_is_its_mean(proteins):
    torch.manual_seed(0)
    task = MaskedLM(LcPlm(d_model=16, n_layers=1, d_state=4), length_bins=[10, 50, 400])
    sequences = proteins(5, 10, 11, 50, 51, 200)
    with torch.no_grad():
        task.evaluation_step(task.alphabet.encode(sequences))
        together = task.metrics()["by_length"].compute()
        assert set(together) == {"loss_to_10", "loss_to_50", "loss_to_400"}  # nothing is over 400
        for name, part in (
            ("loss_to_10", sequences[:2]),
            ("loss_to_50", sequences[2:4]),
            ("loss_to_400", sequences[4:]),
        ):
            alone = MaskedLM(task.model)
            alone.evaluation_step(alone.alphabet.encode(part))
            assert float(together[name]) == pytest.approx(float(alone.loss.compute()), rel=1e-5)
    with pytest.raises(ConfigError, match="do not ascend"):
        MaskedLM(task.model, length_bins=[50, 10])
    empty = LossByLength([1])
    empty.update(torch.ones(2), torch.tensor([5, 6]))
    assert list(empty.compute()) == ["loss_over_1"]


# ---------------------------------------------------------------------- ESM-2
esm = pytest.importorskip("esm", reason="fair-esm is not installed")


def test_esm2_by_fused_kernels_is_fair_esm_s(proteins):
    torch.manual_seed(0)
    plain = sg.create_model("esm2", d_model=32, n_layers=3, heads=4, attention="fair-esm").eval()
    fused = sg.create_model("esm2", d_model=32, n_layers=3, heads=4).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    fused.load_state_dict(plain.state_dict())
    stream = MaskedLM(plain).evaluation_mask(MaskedLM(plain).alphabet.encode(proteins(1, 90, 7, 40, 90)))[1]
    torch.testing.assert_close(fused(stream), plain(stream), atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(m(stream).square().mean(), m.network.layers[0].fc1.weight)[0] for m in (plain, fused)]
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)
    dense, lengths = stream.to_dense(fill=1)
    direct = torch.cat([row[:n] for row, n in zip(plain.network(dense)["logits"], lengths)])
    torch.testing.assert_close(fused(stream), direct, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        one, other = (m.network(dense[1:2], return_contacts=True)["contacts"] for m in (plain, fused))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size, parameters", [("8M", 7_512_474), ("35M", 33_501_394)])
def test_the_compared_models_have_the_same_number_of_parameters(size, parameters):
    import yaml

    from seqgraph.plugin import manager

    with torch.device("meta"):
        esm2 = sg.create_model("esm2", size=size)
    assert sum(p.numel() for p in esm2.parameters()) == parameters
    configs = []
    for family in ("lc-plm", "esm2"):
        path = manager.resolve(manager.get("presets", f"{family}-{size.lower()}"))
        configs.append(yaml.safe_load(path.read_text()))
    model = {key: value for key, value in configs[0].pop("model").items() if key != "name"}
    assert configs[1].pop("model") == {"name": "esm2", "size": size}
    assert configs[0] == configs[1]
    with torch.device("meta"):
        ours = sum(p.numel() for p in sg.create_model("lc-plm", **model).parameters())
    assert abs(ours / parameters - 1) < 0.01


def test_esm2_starts_where_it_can_learn(proteins):
    torch.manual_seed(0)
    task = MaskedLM(sg.create_model("esm2", d_model=64, n_layers=2, heads=4))
    loss = task.training_step(task.alphabet.encode(proteins(100, 200)))["loss"]
    assert float(loss) == pytest.approx(math.log(33), abs=0.3)
    with pytest.raises(ConfigError, match="even width"):
        sg.create_model("esm2", d_model=12, heads=4)


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    ids = sg.tokenize("residues", ["MKTAYIAKQR" * 6] * 2)
    esm2 = sg.create_model("esm2", d_model=64, n_layers=2, heads=4, attention="fair-esm")
    with FlopCounterMode(display=False) as counter:
        esm2(ids)
    assert esm2.flops([62, 62]) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    model = LcPlm(d_model=64, n_layers=2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    # torch does not know convolution and scan: 2 W and 6 N a channel and direction
    rest = 124 * 2 * 2 * 128 * (2 * 4 + 6 * 16)
    assert model.flops([62, 62]) == pytest.approx(counter.get_total_flops() + rest, rel=1e-6)
    # the table of field notes: 1.52 GFLOP a token for the published shape
    with torch.device("meta"):
        assert LcPlm(size="753M").flops([1]) / 1e9 == pytest.approx(1.522, abs=1e-3)


@pytest.mark.parametrize("config, target", [(ProteinTableConfig, ProteinTable), (Esm2Config, None)])
def test_configurations_are_the_constructors_keywords(config, target):
    import inspect

    from seqgraph_lc_plm.esm2_training import TrainableEsm2

    keywords = inspect.signature((target or TrainableEsm2).__init__).parameters
    assert set(config.model_fields) == set(keywords) - {"self"}
    for name, field in config.model_fields.items():
        assert field.is_required() or keywords[name].default == field.default


# ---------------------------------------------------------------------- runs
def words(table, *more):
    return [
        "data.name=protein-table", f"data.path={table[0]}", "data.columns=[name,family,split,sequence]",
        "data.cluster=family", "data.split=split", "data.max_length=50", "task.length_bins=[60,80]",
        "train.epochs=3", "train.max_tokens=400", "train.accelerator=cpu", "train.precision=bf16", *more,
    ]  # fmt: skip


LC = ["model.d_model=16", "model.n_layers=2", "model.tie_head=true"]
ESM2 = ["model=esm2", "model.d_model=16", "model.n_layers=2", "model.heads=4"]


def weights(run, which="last"):
    return load_file(run / which / "model.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", [LC, ESM2], ids=["lc-plm", "esm2"])
def test_either_model_trains_on_the_same_table(table, tmp_path, model, capsys):
    assert main(["train", "lc-plm-sample", *words(table, *model), "-o", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"loss", "loss_to_60", "loss_to_80", "loss_over_80"} <= set(results["test"])
    network = sg.load(tmp_path / "run")
    data = opened(table[0], max_length=50)
    lengths = np.array(data.lengths("train"))
    for epoch, row in enumerate(rows):
        drawn = lengths[data.draw("train", epoch, 0)].tolist()
        assert row["tflop"] == pytest.approx(3 * network.flops(drawn, 0.15) / 1e12, rel=1e-3)
        assert row["tokens_per_second"] > 0 and row["tflop_per_second"] > 0
        assert "utilisation" not in row  # of a CPU no peak is known
    assert "TFLOP/s" in capsys.readouterr().out
    assert network.represent(data.collate(["MKTAY"]), [0, 1, -1])[1].values.shape == (7, 16)


def test_a_killed_run_goes_on_exactly(table, tmp_path):
    """kill -9 in mid epoch, then --resume: weights, log and draws are those of the unbroken run."""
    command = [sys.executable, "-m", "seqgraph", "train", "lc-plm-sample", *words(table, *LC, "train.max_tokens=150")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    broken = tmp_path / "broken"
    slow = [*command, "train.checkpoint_every=1", "-o", str(broken)]
    process = subprocess.Popen(slow, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (broken / "log.jsonl").exists():
            time.sleep(0.05)
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "metrics.json").exists()
    subprocess.run([*slow, "--resume"], check=True, env=environment, capture_output=True)
    assert_same(weights(tmp_path / "whole"), weights(broken))
    logs = []
    for run in (tmp_path / "whole", broken):
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        timed = ("seconds", "tokens_per_second", "tflop_per_second")
        logs.append([{key: value for key, value in row.items() if key not in timed} for row in rows])
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_two_processes_shard_the_model(table, tmp_path):
    """FSDP over gloo by the configuration alone, resumed after an epoch: weights and log are those of unbroken DDP."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seqgraph"]
    rest = words(table, *LC, "train.precision=32", "train.max_tokens=200", "train.schedule=constant", "train.warmup=0")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def train(strategy, epochs, *more):
        out = tmp_path / strategy
        command = [*run, "train", "lc-plm-sample", *rest, f"train.strategy={strategy}", f"train.epochs={epochs}"]
        done = subprocess.run([*command, "-o", str(out), *more], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return sg.load(out / "last"), rows

    train("fsdp", 1)
    (plain, log), (sharded, other) = train("ddp", 2), train("fsdp", 2, "--resume")
    assert sharded.lm_head.weight is sharded.backbone.embedding.weight
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(sharded.state_dict()[name], value, atol=1e-4, rtol=1e-3)
    for one, two in zip(log, other, strict=True):
        assert one["tflop"] == two["tflop"] and one["step"] == two["step"]
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-4)
        assert one["valid_loss"] == pytest.approx(two["valid_loss"], rel=1e-4)
