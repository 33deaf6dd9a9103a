"""Interaction graphs: reading them, the contexts of the second stage, its loss, and embedding beside neighbours."""

from __future__ import annotations

import gzip
import itertools
import json

import networkx
import numpy as np
import pytest
import torch

import seqgraph as sg
from seqgraph.cli.main import main
from seqgraph.errors import CheckpointError, ConfigError, DataError
from seqgraph.tokenize.protein import EDGE, RESIDUE, ProteinAlphabet
from seqgraph.train.batching import token_batches
from seqgraph.train.checkpoint import read_tensors
from seqgraph.train.run import train
from seqgraph.train.state import Interrupted
from seqgraph_lc_plm.config import InteractionLMConfig, InteractionsConfig
from seqgraph_lc_plm.graph import InteractionGraph, read_graph
from seqgraph_lc_plm.graph_data import Context, Contexts, Interactions, cut_repeats, join
from seqgraph_lc_plm.graph_embed import embed_in_graph
from seqgraph_lc_plm.graph_task import InteractionLM, first_proteins
from seqgraph_lc_plm.model import LcPlm
from seqgraph_lc_plm.reading import read_vectors
from seqgraph_lc_plm.task import MaskedLM

HELD = {"valid_fraction": 0.15, "test_fraction": 0.15}


@pytest.fixture
def files(tmp_path, proteins):
    """60 proteins in pairs of relatives that interact, in a ring of pairs; FASTA and a table of edges."""
    draw = np.random.default_rng(0)
    texts = []
    for text in proteins(*range(30, 60)):
        twin = "".join(draw.choice(list("ACDEFGHIKLMNPQRSTVWY")) if draw.random() < 0.1 else x for x in text)
        texts += [text, twin]
    fasta = tmp_path / "proteins.fasta"
    fasta.write_text("".join(f">p{i} protein {i}\n{text}\n" for i, text in enumerate(texts)))
    pairs = [(2 * i, 2 * i + 1) for i in range(30)] + [(2 * i + 1, (2 * i + 2) % 60) for i in range(30)]
    edges = tmp_path / "edges.tsv"
    edges.write_text("protein1\tprotein2\tcombined_score\n" + "".join(f"p{a}\tp{b}\t{900 - a}\n" for a, b in pairs))
    return edges, fasta, texts, pairs


def edges_of(graph):
    return {(graph.names[a], graph.names[b]) for a, b in graph.edge_index.T.tolist()}


# ---------------------------------------------------------------------- reading
def test_the_same_graph_from_every_kind_of_file(files, tmp_path):
    edges, fasta, texts, pairs = files
    want = {(f"p{min(a, b)}", f"p{max(a, b)}") for a, b in pairs}
    graph = read_graph(edges, fasta)
    assert edges_of(graph) == want and graph.sequences == texts
    assert graph.edge_index.shape == (2, 60) and bool((graph.edge_index[0] < graph.edge_index[1]).all())
    plain = "".join(f"p{b} p{a}\np{a} p{b}\n" for a, b in pairs) + "p3 p3\n"  # twice, turned round, and a loop
    table = tmp_path / "names.tsv"
    table.write_text("".join(f"p{i}\t{text}\n" for i, text in enumerate(texts)))
    (tmp_path / "links.txt").write_text(plain)
    (tmp_path / "links.csv.gz").write_bytes(gzip.compress(plain.replace(" ", ",").encode()))
    actions = "item_id_a\titem_id_b\tmode\taction\tis_directional\ta_is_acting\tscore\n"
    actions += "".join(f"p{a}\tp{b}\tbinding\t\tt\tt\t{900 - a}\n" * 2 for a, b in pairs)
    (tmp_path / "actions.txt").write_text(actions)
    for name in ("links.txt", "links.csv.gz", "actions.txt"):
        again = read_graph(tmp_path / name, table)
        assert edges_of(again) == want and again.names == graph.names, name
    net = networkx.Graph([(f"p{a}", f"p{b}") for a, b in pairs])
    for i, text in enumerate(texts):
        net.add_node(f"p{i}", sequence=text)
    networkx.write_graphml(net, tmp_path / "net.graphml")
    key = lambda graph: {frozenset(pair) for pair in edges_of(graph)}  # noqa: E731
    assert key(read_graph(tmp_path / "net.graphml")) == key(graph) == key(InteractionGraph.from_networkx(net))
    few = read_graph(edges, fasta, min_score=880)
    assert edges_of(few) == {pair for pair in want if 900 - int(pair[0][1:]) >= 880} - {("p0", "p59")}


def test_what_cannot_be_read_is_named(files, tmp_path):
    edges, fasta, _texts, _ = files
    more = tmp_path / "more.tsv"
    more.write_text(edges.read_text() + "".join(f"p0\tx{i}\t900\n" for i in range(13)))
    with pytest.raises(DataError, match=r"13 of 73 proteins have no sequence in .*: x0, x1, .*, x9 and 3 more"):
        read_graph(more, fasta)
    assert edges_of(read_graph(more, fasta, on_missing="skip")) == edges_of(read_graph(edges, fasta))
    net = networkx.Graph([("a", "b")])
    with pytest.raises(DataError, match="2 of 2 proteins have no sequence: a, b"):
        InteractionGraph.from_networkx(net)
    wrong = tmp_path / "wrong.tsv"
    for text, said in [
        ("p0\n", "line 1 has one cell"),
        ("", "no interactions"),
        ("protein1\tprotein2\tscore\np0\tp1\tx\n", "line 2 has no number in column 3"),
    ]:
        wrong.write_text(text)
        with pytest.raises(DataError, match=said):
            read_graph(wrong, fasta, min_score=1)
    wrong.write_text("p0\tp1\n")
    with pytest.raises(ConfigError, match="no column of scores"):
        read_graph(wrong, fasta, min_score=1)
    with pytest.raises(ConfigError, match="sequences are needed"):
        read_graph(wrong)
    with pytest.raises(DataError, match="no such file"):
        read_graph(tmp_path / "none", fasta)
    dna = tmp_path / "dna.fasta"
    dna.write_text(">p0\n" + "ACGT" * 20 + "\n>p1\n" + "TTGA" * 20 + "\n")
    with pytest.raises(DataError, match="looks like DNA"):
        read_graph(wrong, dna)
    dna.write_text(">p0\nMKT1\n>p1\nMK\n")
    with pytest.raises(DataError, match="'1' at position 4"):
        read_graph(wrong, dna)


# ---------------------------------------------------------------------- contexts
def test_configurations_are_the_constructors_keywords():
    import inspect

    for config, target in ((InteractionsConfig, Interactions), (InteractionLMConfig, InteractionLM)):
        keywords = {
            n: p for n, p in inspect.signature(target.__init__).parameters.items() if n not in ("self", "model")
        }
        assert set(config.model_fields) == set(keywords)
        for name, field in config.model_fields.items():
            if not field.is_required():
                assert keywords[name].default == field.default, name


def test_contexts_hold_neighbours_strangers_or_one(files):
    edges, fasta, _texts, pairs = files
    data = Interactions(path=str(edges), sequences=str(fasta), walks=8, proteins=4, max_length=40, **HELD)
    joined = {frozenset(pair) for pair in pairs}
    trained = set(data.members["train"].tolist())
    assert len(trained) > 30 and sum(len(part) for part in data.members.values()) == 60
    part = data.contexts["train"]
    kinds = {"negative": 0, "walk": 0, "single": 0}
    for path, negative in zip(part.paths.tolist(), part.negative.tolist(), strict=True):
        path = [place for place in path if place >= 0]
        assert len(set(path)) == len(path) and set(path) <= trained  # held-out proteins are never seen
        for a, b in itertools.pairwise(path):
            assert (frozenset((a, b)) in joined) is not negative
        kinds["single" if len(path) == 1 else "negative" if negative else "walk"] += 1
    assert min(kinds.values()) > 0.15 * len(part) and part.negative.mean() == pytest.approx(0.25, abs=0.07)
    # lengths are exact, an epoch has one context of each protein, and the walks of a protein take turns
    examples = [part[i] for i in range(len(part))]
    assert data.lengths("train") == data.collate(examples).lengths.tolist()
    assert all(len(text) <= 40 for example in examples for text in example.sequences)
    drawn = [data.draw("train", epoch, 3) for epoch in range(8)]
    assert all((d // 8 == np.arange(len(trained))).all() for d in drawn)
    assert (np.sort(np.concatenate(drawn)) == np.arange(8 * len(trained))).all()
    assert data.draw("valid", 0, 0) is None
    for name in ("valid", "test"):
        held = data.contexts[name]
        assert held.paths[:, 0].tolist() == data.members[name].tolist() and held.max_length is None
        assert not held.negative.any()
    same = Interactions(path=str(edges), sequences=str(fasta), walks=8, proteins=4, max_length=40, **HELD)
    assert same.fingerprint() == data.fingerprint()
    other = Interactions(path=str(edges), sequences=str(fasta), walks=8, proteins=4, split_seed=1, **HELD)
    assert other.fingerprint() != data.fingerprint()


def test_a_context_reads_as_its_proteins_joined_by_links():
    alphabet = ProteinAlphabet(links=True)
    stream = join(alphabet, [Context(("MK", "AC", "W"), False), Context(("Y",), False), Context(("MK", "W"), True)])
    read = alphabet.decode(stream, special=True)
    assert read[0] == "<cls>MK<eos><edge><cls>AC<eos><edge><cls>W<eos>"
    assert read[1:] == ["<cls>Y<eos>", "<cls>MK<eos><no_edge><cls>W<eos>"]
    assert (stream.values[stream.role == EDGE] == torch.tensor([33, 33, 34])).all()
    alone = first_proteins(stream)
    assert alone.equal(ProteinAlphabet().encode(["MK", "Y", "MK"]).__class__.from_lengths(
        alone.values, [4, 3, 4], source=alone.source, role=alone.role))  # fmt: skip
    assert alphabet.decode(alone) == ["MK", "Y", "MK"]
    paths = torch.tensor([[0, 1, 0, 2], [3, -1, -1, -1], [1, 2, 3, 1], [1, 2, 3, 4]])
    assert cut_repeats(paths).tolist() == [[0, 1, -1, -1], [3, -1, -1, -1], [1, 2, 3, -1], [1, 2, 3, 4]]


# ---------------------------------------------------------------------- the task
def test_evaluation_masks_the_first_protein_alike_with_and_without_context(files):
    edges, fasta, _, _ = files
    data = Interactions(path=str(edges), sequences=str(fasta), **HELD)
    task = InteractionLM(LcPlm(d_model=16, n_layers=1, d_state=4, vocab_size=35)).eval()
    batch = data.collate([data.split("valid")[i] for i in range(len(data.split("valid")))])
    where, inputs = task.evaluation_mask(batch)
    alone = first_proteins(batch)
    plain, _ = MaskedLM.evaluation_mask(task, alone)
    first = torch.cat([torch.arange(n) + s for s, n in zip(batch.cu_seqlens.tolist(), alone.lengths.tolist())])
    assert torch.equal(where.nonzero()[:, 0], first[plain]) and 0 < int(where.sum()) < len(first)
    assert torch.equal(inputs.values != batch.values, where)
    where, _ = task.training_mask(batch)
    assert bool((batch.role[where] == RESIDUE).all()) and int(where.sum()) > int(plain.sum())
    task.evaluation_step(batch)
    found = {name: float(metric.compute()) for name, metric in task.metrics().items()}
    # the model by itself, on one protein after another
    losses = []
    for i in range(alone.num_segments):
        one = alone[i]
        mask, inputs = MaskedLM.evaluation_mask(task, one)
        if int(mask.sum()):
            losses.append(
                torch.nn.functional.cross_entropy(task.model(inputs, mask), one.values[mask], reduction="none")
            )
    assert found["loss_alone"] == pytest.approx(float(torch.cat(losses).detach().mean()), abs=1e-5)
    assert found["loss"] != found["loss_alone"] and set(task.baseline(data)) == set(found)
    with pytest.raises(ConfigError, match="33 tokens"):
        InteractionLM(LcPlm(d_model=16, n_layers=1, vocab_size=33)).setup(data)


def config_of(files, **more):
    edges, fasta, _, _ = files
    return {
        "model": {"name": "lc-plm", "d_model": 32, "n_layers": 1, "d_state": 4, "vocab_size": 40},
        "data": {"name": "interactions", "path": str(edges), "sequences": str(fasta), "proteins": 3, **HELD},
        "task": {"name": "interaction-lm"},
        "train": {"epochs": 30, "max_tokens": 1024, "lr": 1e-2, "schedule": "constant", "patience": None, **more},
        "seed": [0],
    }


def test_the_loss_falls_on_a_small_graph(files, tmp_path):
    result = train(config_of(files), output=tmp_path / "run", quiet=True)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["train_loss"] < log[0]["train_loss"] - 0.1
    assert set(result.metrics[0]) == {"loss", "perplexity", "accuracy", "loss_alone"} == set(result.baseline)


def test_resume_is_exact(files, tmp_path):
    config = config_of(files, epochs=3)
    train(config, output=tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted):
        train(config, output=tmp_path / "cut", quiet=True, stop_after=4)
    train(config, output=tmp_path / "cut", quiet=True, resume=True)
    whole, cut = (read_tensors(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_second_stage_starts_from_the_first_ones_weights(files, tmp_path):
    first = config_of(files, epochs=1)
    fasta = {"name": "fasta", "path": str(files[1]), "valid_fraction": 0.1, "test_fraction": 0.1}
    first |= {
        "data": fasta,
        "task": {"name": "masked-lm"},
        "model": first["model"] | {"vocab_size": 33, "tie_head": True},
    }
    train(first, output=tmp_path / "one", quiet=True)
    old = read_tensors(tmp_path / "one" / "best" / "model.safetensors")["backbone.embedding.weight"]
    second = config_of(files, epochs=1, lr=1e-12, weights=str(tmp_path / "one"))
    with pytest.raises(ConfigError, match="33 tokens") as caught:
        train(second | {"model": first["model"]}, output=tmp_path / "two", quiet=True)
    assert "vocab_size" in caught.value.hint
    second["model"]["tie_head"] = True
    train(second, output=tmp_path / "two", quiet=True)
    new = read_tensors(tmp_path / "two" / "best" / "model.safetensors")
    assert torch.allclose(new["backbone.embedding.weight"][:33], old, atol=1e-5)
    assert torch.allclose(new["lm_head.weight"][33:], old[2].expand(7, -1), atol=1e-5)
    wide = config_of(files, epochs=1, weights=str(tmp_path / "one"))
    wide["model"] |= {"d_model": 48, "tie_head": True}
    with pytest.raises(CheckpointError, match=r"backbone.layers.0.mixer.mamba_fwd.D \(64,\) for \(96,\)") as caught:
        train(wide, output=tmp_path / "three", quiet=True)
    assert caught.value.hint.endswith("settings of the weights: model.d_model=32")  # the tokens were seen to


# ---------------------------------------------------------------------- embedding
@pytest.fixture
def linked():
    torch.manual_seed(0)
    model = LcPlm(d_model=16, n_layers=2, d_state=4, vocab_size=35)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def test_embedding_beside_neighbours_is_the_mean_over_walks_of_the_own_residues(files, linked):
    graph = read_graph(files[0], files[1])
    alone = embed_in_graph(linked, graph, proteins=1)
    assert torch.allclose(alone, linked.embed(graph.sequences), atol=1e-5)
    # p7's neighbours are p6 and p8: contexts of two are one of these
    found = embed_in_graph(linked, graph, ["p7"], proteins=2, walks=1, seed=1)
    alphabet = ProteinAlphabet(links=True)
    pairs = []
    for other in ("p6", "p8"):
        texts = (graph.sequences[7], graph.sequences[graph.index[other]])
        stream = join(alphabet, [Context(texts, False)])
        pairs.append(linked.represent(stream, [-1])[-1].values[1 : 1 + len(texts[0])].mean(0))
    assert min(float((found[0] - pair).abs().max()) for pair in pairs) < 1e-5
    assert float((found[0] - alone[7]).abs().max()) > 1e-3
    many = embed_in_graph(linked, graph, ["p7"], proteins=2, walks=64, seed=1)[0]
    weights = torch.linalg.lstsq(torch.stack(pairs).T, many[:, None]).solution[:, 0]
    assert torch.allclose(weights[0] * pairs[0] + weights[1] * pairs[1], many, atol=1e-4)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-3) and float(weights.min()) > 0.3
    # the token budget changes nothing; without interactions a protein is alone
    small = embed_in_graph(linked, graph, proteins=3, max_tokens=64)
    assert torch.allclose(small, embed_in_graph(linked, graph, proteins=3), atol=1e-5)
    none = torch.empty(2, 0, dtype=torch.int64)
    assert torch.allclose(embed_in_graph(linked, graph, ["p7"], edge_index=none)[0], alone[7], atol=1e-5)
    with pytest.raises(DataError, match="the graph has no x"):
        embed_in_graph(linked, graph, ["x"])
    with pytest.raises(ConfigError, match="no rows for <edge>"):
        embed_in_graph(LcPlm(d_model=16, n_layers=1, vocab_size=33), graph)


def test_embedding_beside_neighbours_short_of_memory(files, linked, monkeypatch):
    graph = read_graph(files[0], files[1])
    expected = embed_in_graph(linked, graph)
    longest = max(map(len, graph.sequences)) * 3 + 8  # tokens of a context
    whole = type(linked).represent

    def represent(self, stream, *arguments, **options):
        if stream.num_tokens > longest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, stream, *arguments, **options)

    monkeypatch.setattr(type(linked), "represent", represent)
    told: list[int] = []
    found = embed_in_graph(linked, graph, on_halved=told.append, max_tokens=4096)
    assert len(told) > 1 and told[0] <= 2048 and told[-1] <= longest
    assert all(after <= before // 2 for before, after in itertools.pairwise(told))
    assert torch.allclose(found, expected, atol=1e-5)
    monkeypatch.setattr(type(linked), "represent", lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(DataError, match=r"memory on cpu does not suffice for p\d+ and its neighbours, \d+ tokens"):
        embed_in_graph(linked, graph)


def test_embed_network_from_the_command_line(files, linked, tmp_path, capsys):
    from seqgraph.train import checkpoint

    fields = {"d_model": 16, "n_layers": 2, "d_state": 4, "vocab_size": 35}
    checkpoint.save(tmp_path / "model", linked, name="lc-plm", fields=fields)
    words = [str(tmp_path / "model"), str(files[0]), "--sequences", str(files[1]), "--nogpu"]
    assert main(["embed-network", *words, "-o", str(tmp_path / "beside")]) == 0
    assert "60 proteins beside neighbours over 60 interactions" in capsys.readouterr().out
    assert main(["embed-network", *words, "-o", str(tmp_path / "alone"), "--proteins", "1", "--layer", "1"]) == 0
    beside, alone = read_vectors(tmp_path / "beside"), read_vectors(tmp_path / "alone")
    graph = read_graph(files[0], files[1])
    assert beside.labels == alone.labels == graph.names and (beside.layer, alone.layer) == (2, 1)
    assert np.allclose(beside.values, embed_in_graph(linked, graph).numpy(), atol=1e-6)
    assert np.allclose(alone.values, linked.embed(graph.sequences, layers=1).numpy(), atol=1e-5)


def test_shs27k(repo_root, shs27k):
    graph = read_graph(*shs27k)
    assert (len(graph.names), graph.edge_index.shape[1]) == (1690, 7624)
    data = Interactions(path=str(shs27k[0]), sequences=str(shs27k[1]), walks=2)
    for batch in token_batches(data, "train", 8192, shuffle=True):
        assert batch.num_tokens <= 8192 or batch.num_segments == 1
        break
    assert isinstance(data.contexts["train"], Contexts)


def test_presets_are_valid():
    from seqgraph.config import load_config

    for name in ("lc-plm-g-8m", "lc-plm-g-sample"):
        config = load_config(name, ["train.weights=runs/lc-plm"])
        assert config.train.weights == "runs/lc-plm"
        model = sg.create_model("lc-plm", **config.model.fields)
        assert model.vocab_size == 128
