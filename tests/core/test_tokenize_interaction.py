"""Interaction contexts: the law of the walks, and how they are written out."""

from __future__ import annotations

import gzip
import re
from itertools import pairwise
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch

from seqgraph.errors import ConfigError, DataError
from seqgraph.tokenize import (
    EDGE,
    RESIDUE,
    SPECIAL,
    ProteinAlphabet,
    interaction_contexts,
    negative_walks,
    node2vec_walks,
)

stats = pytest.importorskip("scipy.stats")
KARATE = nx.convert_node_labels_to_integers(nx.karate_club_graph())


def edges_of(graph: nx.Graph) -> torch.Tensor:
    return torch.tensor([(a, b) for a, b in graph.edges()], dtype=torch.int64).reshape(-1, 2).T


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def node2vec_law(graph: nx.Graph, before: int, here: int, p: float, q: float) -> dict[int, float]:
    """Probabilities of the next node (Grover & Leskovec, 2016, eq. 2)."""
    weights = {x: 1 / p if x == before else 1.0 if graph.has_edge(x, before) else 1 / q for x in graph.neighbors(here)}
    total = sum(weights.values())
    return {x: w / total for x, w in weights.items()}


@pytest.mark.parametrize(("p", "q"), [(1, 1), (0.25, 4), (4, 0.25), (0.01, 1), (2, 3)])
def test_walks_follow_node2vecs_law(p, q):
    """Chi-square of the third node for each of the first two; fixed seed, so this passes or fails for good."""
    graph = nx.Graph([(0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (3, 4), (3, 5), (4, 0), (5, 0)])
    starts = torch.arange(6).repeat_interleave(8000)
    paths = node2vec_walks(edges_of(graph), 6, starts, 3, p=p, q=q, generator=seeded(3)).numpy()
    assert (paths >= 0).all()
    pvalues = []
    for a in graph:
        first = np.bincount(paths[paths[:, 0] == a, 1], minlength=6)
        assert {int(b) for b in first.nonzero()[0]} == set(graph[a])
        pvalues.append(stats.chisquare(first[list(graph[a])]).pvalue)
        for b in graph[a]:
            law = node2vec_law(graph, a, b, p, q)
            third = np.bincount(paths[(paths[:, 0] == a) & (paths[:, 1] == b), 2], minlength=6)
            assert third.sum() == third[list(law)].sum()
            if len(law) > 1:
                expected = np.array(list(law.values())) * third.sum()
                pvalues.append(stats.chisquare(third[list(law)], expected).pvalue)
    # About 24 tests: Bonferroni at 0.01, and the p values as a whole are not too small.
    assert min(pvalues) > 0.01 / len(pvalues)
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3


def test_walks_use_edges_and_negatives_avoid_them():
    edges, starts = edges_of(KARATE), torch.arange(34).repeat(20)
    walks = node2vec_walks(edges, 34, starts, 6, p=0.5, q=2, generator=seeded())
    assert all(KARATE.has_edge(a, b) for path in walks.tolist() for a, b in pairwise(path))
    negatives = negative_walks(edges, 34, starts, 6, generator=seeded())
    assert torch.equal(negatives[:, 0], starts)
    pairs = [(a, b) for path in negatives.tolist() for a, b in pairwise(path)]
    assert all(a != b and not KARATE.has_edge(a, b) for a, b in pairs)
    assert torch.equal(negatives, negative_walks(edges, 34, starts, 6, generator=seeded()))
    assert not torch.equal(negatives, negative_walks(edges, 34, starts, 6, generator=seeded(1)))


def test_negatives_are_met_as_often_as_their_degree_says():
    # Node 0 of two stars is not joined with nodes 5..9: the second hub has as many edges as its leaves together.
    graph = nx.disjoint_union(nx.star_graph(4), nx.star_graph(4))
    paths = negative_walks(edges_of(graph), 10, torch.zeros(8000, dtype=torch.int64), 2, generator=seeded())
    counts = np.bincount(paths[:, 1].numpy(), minlength=10)
    assert counts[:5].sum() == 0
    assert stats.chisquare(counts[5:], 8000 * np.array([0.5] + [0.125] * 4)).pvalue > 1e-3


def test_walks_end_where_they_must():
    none = torch.empty(2, 0, dtype=torch.int64)
    assert node2vec_walks(none, 2, torch.arange(2), 3).tolist() == [[0, -1, -1], [1, -1, -1]]
    assert negative_walks(none, 2, torch.arange(2), 3).tolist() == [[0, 1, 0], [1, 0, 1]]
    complete = edges_of(nx.complete_graph(3))
    assert negative_walks(complete, 3, torch.arange(3), 2).tolist() == [[0, -1], [1, -1], [2, -1]]
    pair = torch.tensor([[0], [1]])
    assert node2vec_walks(pair, 2, torch.tensor([0]), 4, p=100).tolist() == [[0, 1, 0, 1]]
    # Only node 2 is free, and nothing leads to it by chance.
    lonely = edges_of(nx.complete_graph(2))
    assert negative_walks(lonely, 3, torch.tensor([0]), 2).tolist() == [[0, 2]]
    # Loops and repeats are no interactions.
    messy = torch.tensor([[0, 0, 0], [0, 1, 1]])
    assert node2vec_walks(messy, 2, torch.tensor([0]), 3).tolist() == [[0, 1, 0]]


SEQUENCES = ["".join(np.random.default_rng(i).choice(list("ACDEFGHIKLMNPQRSTVWY"), 3 + i % 7)) for i in range(34)]


@pytest.mark.parametrize("negatives", [0.0, 0.4, 1.0])
def test_contexts_spell_out_the_walks(negatives):
    data = SimpleNamespace(sequences=SEQUENCES, edge_index=edges_of(KARATE))
    stream = interaction_contexts(data, proteins=4, walks=3, negatives=negatives, p=0.5, generator=seeded()).validate()
    alphabet = ProteinAlphabet(links=True)
    assert stream.num_segments == 3 * 34
    kinds = []
    for number, (text, context) in enumerate(zip(alphabet.decode(stream, special=True), stream.unbind(), strict=True)):
        links = set(re.findall("<edge>|<no_edge>", text))
        assert len(links) == 1
        kinds.append(links == {"<no_edge>"})
        spelled = re.split("<edge>|<no_edge>", text)
        path = context.source[context.values == alphabet.cls_id].tolist()
        assert path[0] == number // 3
        assert spelled == [f"<cls>{SEQUENCES[v]}<eos>" for v in path]
        for a, b in pairwise(path):
            assert KARATE.has_edge(a, b) != kinds[-1]
        expected = []
        for v in path:
            expected += [(v, SPECIAL), *[(v, RESIDUE)] * len(SEQUENCES[v]), (v, SPECIAL), (v, EDGE)]
        assert list(zip(context.source.tolist(), context.role.tolist(), strict=True)) == expected[:-1]
    share = sum(kinds) / len(kinds)
    assert share == negatives if negatives in (0, 1) else 0.25 < share < 0.55
    again = interaction_contexts(data, proteins=4, walks=3, negatives=negatives, p=0.5, generator=seeded())
    assert stream.equal(again)


def test_edge_ids_are_33_and_34():
    data = SimpleNamespace(sequences=["M", "K", "W"], edge_index=torch.tensor([[0], [1]]))
    stream = interaction_contexts(data, proteins=2)
    assert stream.values.tolist() == [0, 20, 2, 33, 0, 15, 2, 0, 15, 2, 33, 0, 20, 2, 0, 22, 2]
    assert stream.lengths.tolist() == [7, 7, 3]
    negative = interaction_contexts(data, proteins=2, negatives=1.0)
    assert (negative.values == 34).sum() == 3


def test_what_is_wrong_is_named():
    edges = torch.tensor([[0], [1]])
    with pytest.raises(DataError, match="has no sequences"):
        interaction_contexts(SimpleNamespace(edge_index=edges))
    with pytest.raises(DataError, match="edge 0 joins nodes 0 and 1, but there are 1"):
        interaction_contexts(SimpleNamespace(sequences=["M"], edge_index=edges))
    with pytest.raises(DataError, match="sequence 'P2' has 'J' at position 2"):
        interaction_contexts(SimpleNamespace(sequences=["M", "MJ"], names=["P1", "P2"], edge_index=edges))
    good = SimpleNamespace(sequences=["M", "K"], edge_index=edges)
    for options in ({"p": 0}, {"q": -1}, {"proteins": 0}, {"negatives": 1.5}, {"walks": -1}):
        with pytest.raises(ConfigError):
            interaction_contexts(good, **options)
    nobody = SimpleNamespace(sequences=[], edge_index=torch.empty(2, 0, dtype=torch.int64))
    assert interaction_contexts(nobody).validate().num_segments == 0
    assert interaction_contexts(good, walks=0).validate().num_segments == 0


def test_contexts_of_a_real_network(shared_data):
    """SHS27k (GNN-PPI): 1,690 human proteins, 7,624 interactions; positive contexts join what interacts."""
    folder = shared_data / "protein" / "ppi_shs27k"
    with gzip.open(folder / "protein.SHS27k.sequences.dictionary.tsv.gz", "rt") as file:
        names, sequences = zip(*(line.split() for line in file), strict=True)
    number = {name: i for i, name in enumerate(names)}
    with gzip.open(folder / "protein.actions.SHS27k.STRING.txt.gz", "rt") as file:
        next(file)
        pairs = {tuple(sorted((number[a], number[b]))) for a, b, *_ in (line.split("\t") for line in file)}
    assert (len(names), len(pairs)) == (1690, 7624)
    data = SimpleNamespace(sequences=sequences, names=names, edge_index=torch.tensor(sorted(pairs)).T)
    stream = interaction_contexts(data, proteins=3, p=0.5, q=2, negatives=0.5, generator=seeded()).validate()
    assert stream.num_segments == 1690
    alphabet = ProteinAlphabet(links=True)
    joined = 0
    for context in stream.unbind():
        path = context.source[context.values == alphabet.cls_id].tolist()
        links = context.values[context.role == EDGE].tolist()
        for a, b, link in zip(path, path[1:], links, strict=False):
            assert ((min(a, b), max(a, b)) in pairs) == (link == alphabet.edge_id)
            joined += link == alphabet.edge_id
    # The field notes' median of a context of three is 1,398 tokens for uniform walks.
    assert 1000 < stream.lengths.double().median() < 1800
    assert 1400 < joined < 2000
