"""Link prediction: which proteins of an interaction graph interact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from seqgraph.errors import DataError
from seqgraph_lc_plm.graph import InteractionGraph
from seqgraph_lc_plm.graph_embed import embed_in_graph
from seqgraph_lc_plm.graph_task import LINKED
from seqgraph_lc_plm.probes import sets
from seqgraph_lc_plm.probes.features import Embeddings, KMers, Source
from seqgraph_lc_plm.probes.measures import Row
from seqgraph_lc_plm.probes.pairs import SPLITS, edge_split, fit_pairs, pair_features, shs27k


def strangers(edges: np.ndarray, joined: set[tuple[int, int]], draw: np.random.Generator) -> np.ndarray:
    """Pairs of the proteins of some edges that do not interact, as often as they have edges: degree alone tells little.

    Args:
        edges: (2, P).
        joined: every edge of the graph, and what else is not to be drawn, the smaller number first.
        draw: where the pairs come from.

    Returns:
        (2, Q), no pair twice, the smaller number first; Q is P, or less where most pairs of these proteins interact.
    """
    ends, count = edges.reshape(-1), edges.shape[1]
    found: dict[tuple[int, int], None] = {}
    for a, b in draw.choice(ends, (20 * count, 2)).tolist():
        pair = (min(a, b), max(a, b))
        if a != b and pair not in joined:
            found[pair] = None
            if len(found) == count:
                break
    return np.array(list(found), np.int64).reshape(-1, 2).T


def links(
    root: Path,
    sources: Sequence[Embeddings],
    *,
    splits: Sequence[str] = SPLITS,
    seeds: Sequence[int] = (0, 1, 2),
    limit: int | None = None,
    device: str = "cpu",
    simple: bool = True,
) -> list[Row]:
    """Area under the ROC curve of SHS27k's test edges against as many pairs of strangers, by a linear probe on pairs.

    Half of a split's training edges are the network that is known, the other half teach the probe, beside strangers of
    their own. A model with rows for links is also read beside neighbours, over the known edges alone: a pair that the
    probe learns from is no more joined there than one that it is asked about.

    Args:
        root: folder of the data.
        sources: embeddings to compare.
        splits: see :func:`edge_split`.
        seeds: of the splits and of the strangers.
        limit: of edges.
        device: of the probes.
        simple: whether the product of the known degrees and features that need no model stand beside them.

    Raises:
        DataError: when the limit leaves training, validation or test without pairs of either kind.
    """
    from sklearn.metrics import roc_auc_score

    graph, _ = shs27k(root)
    whole = graph.edge_index.numpy()
    joined = {(min(a, b), max(a, b)) for a, b in whole.T.tolist()}
    edges = whole
    if limit is not None:
        edges = whole[:, sets.few(range(whole.shape[1]), limit, [f"{a} {b}" for a, b in whole.T.tolist()])]
    used = np.unique(edges)
    place = np.full(len(graph.names), -1)
    place[used] = np.arange(len(used))
    texts, names = [graph.sequences[i] for i in used], [graph.names[i] for i in used]
    without: list[Source] = [KMers(1), KMers(2)] if simple else []
    fixed = {source.name: np.asarray(source.means(texts)) for source in [*without, *sources]}
    walkers = [source for source in sources if getattr(source.model, "vocab_size", 0) >= LINKED]
    rows = []
    strength: dict[tuple[str, str], float] = {}
    for how in splits:
        scores: dict[tuple[str, str], list[float]] = {}
        size = 0
        for seed in seeds:
            draw = np.random.default_rng([seed, 1])
            test = edge_split(edges, len(graph.names), how, seed)
            rest = draw.permutation(np.flatnonzero(~test))
            known = np.ascontiguousarray(edges[:, np.sort(rest[: len(rest) // 2])])
            taught = rest[len(rest) // 2 :]
            cut = len(taught) // 10
            pairs, answers = [], []
            drawn = set(joined)  # no pair is in two parts
            parts = {"training": taught[cut:], "validation": taught[:cut], "test": np.flatnonzero(test)}
            for what, part in parts.items():
                others = strangers(edges[:, part], drawn, draw)
                if not len(part) or not others.shape[1]:
                    raise DataError(
                        f"SHS27k {how}, seed {seed}: of {edges.shape[1]} edges {len(part)} are for {what}, beside "
                        f"{others.shape[1]} pairs that do not interact: both are needed",
                        "a larger --limit, 100 say, or none",
                    )
                drawn |= set(map(tuple, others.T.tolist()))
                pairs.append(np.concatenate([edges[:, part], others], 1))
                answers.append(np.repeat([1, 0], [len(part), others.shape[1]]))
            size = pairs[2].shape[1]
            if simple:
                degree = np.bincount(known.reshape(-1), minlength=len(graph.names))
                value = float(roc_auc_score(answers[2], degree[pairs[2][0]] * degree[pairs[2][1]]))
                scores.setdefault(("none", "product of known degrees"), []).append(value)
            beside = {f"{s.name}, beside neighbours": _beside(s, graph, names, known) for s in walkers}
            for name, seen in {**fixed, **beside}.items():
                x = [pair_features(seen, place[part]) for part in pairs]
                probe = fit_pairs(strength, (how, name), x[0], answers[0], x[1], answers[1], device)
                logits = probe.logits(x[2])
                value = float(roc_auc_score(answers[2], (logits[:, 1] - logits[:, 0]).numpy()))
                scores.setdefault((name, "linear"), []).append(value)
        said = f"SHS27k {how}, seed {','.join(map(str, seeds))}"
        rows += [
            Row("links", said, name, head, "AUROC", float(np.mean(found)), size)
            for (name, head), found in scores.items()
        ]
    return rows


def _beside(source: Embeddings, graph: InteractionGraph, names: Sequence[str], known: np.ndarray) -> np.ndarray:
    return embed_in_graph(
        source.model,
        graph,
        names,
        edge_index=torch.from_numpy(known),
        layer=source.layer,
        max_tokens=source.max_tokens,
    ).numpy()
