"""Link prediction: pairs of strangers, and a graph whose edges a feature tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seqgraph.errors import DataError
from seqgraph_lc_plm.graph import InteractionGraph
from seqgraph_lc_plm.probes import links

pytest.importorskip("sklearn")


def test_strangers_do_not_interact_and_have_as_many_edges():
    draw = np.random.default_rng(0)
    edges = np.unique(np.sort(draw.integers(0, 60, (2, 500)) ** 2 // 60, axis=0), axis=1)
    edges = edges[:, edges[0] != edges[1]]
    joined = set(map(tuple, edges.T.tolist()))
    some = edges[:, draw.permutation(edges.shape[1])[:80]]
    found = links.strangers(some, joined, draw)
    pairs = list(map(tuple, found.T.tolist()))
    assert found.shape == (2, 80) and len({*pairs}) == 80 and not joined & {*pairs}
    assert (found[0] < found[1]).all() and {*found.reshape(-1).tolist()} <= {*some.reshape(-1).tolist()}
    degree = np.bincount(some.reshape(-1), minlength=60)
    flat = np.unique(some)
    assert degree[found].mean() > degree[flat].mean() * 1.1  # by degree, not evenly
    triangle = np.array([[0, 0, 1], [1, 2, 2]])
    assert links.strangers(triangle, {(0, 1), (0, 2), (1, 2)}, draw).shape == (2, 0)


@pytest.fixture
def letters(monkeypatch):
    """60 proteins of one letter each, in place of SHS27k: those of the same letter interact, others do not."""
    draw = np.random.default_rng(0)
    letter = np.arange(60) % 4
    ends = draw.integers(0, 60, (2, 900))
    edges = np.unique(np.sort(ends[:, (letter[ends[0]] == letter[ends[1]]) & (ends[0] != ends[1])], axis=0), axis=1)
    graph = InteractionGraph([f"p{i}" for i in range(60)], ["ACDE"[i] * 30 for i in letter], torch.from_numpy(edges))
    monkeypatch.setattr(links, "shs27k", lambda root: (graph, None))


def test_links_that_a_feature_tells_are_found(tmp_path, letters):
    """Words of letters see it, degrees do not."""
    found = {row.features: row.value for row in links.links(tmp_path, [], splits=("random",), seeds=(0,))}
    assert found["1-mers"] > 0.9
    assert found["none"] < 0.8


def test_no_pair_of_strangers_is_in_two_parts_of_a_split(tmp_path, letters, monkeypatch):
    parts: list[set[tuple[int, int]]] = []

    def kept(*arguments):
        found = strangers(*arguments)
        parts.append(set(map(tuple, found.T.tolist())))
        return found

    strangers = links.strangers
    monkeypatch.setattr(links, "strangers", kept)
    links.links(tmp_path, [], splits=("random",), seeds=(0, 1))
    assert len(parts) == 6
    for split in (parts[:3], parts[3:]):
        assert all(split) and len(set.union(*split)) == sum(map(len, split))
    assert parts[0] & (parts[3] | parts[5])  # the next seed draws among all of them again


@pytest.mark.parametrize("how", ["random", "bfs", "dfs"])
@pytest.mark.parametrize("limit", [1, 2, 8, 20])
def test_a_limit_that_leaves_a_part_empty_is_refused(tmp_path, letters, how, limit):
    with pytest.raises(DataError, match=f"{how}, seed 0: of {limit} edges . are for .* both are needed") as error:
        links.links(tmp_path, [], splits=(how,), seeds=(0,), limit=limit)
    assert "--limit" in str(error.value.hint)
