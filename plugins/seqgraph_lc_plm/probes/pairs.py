"""Interactions and function: which proteins act on which and how, and what a protein does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from seqgraph.errors import DataError
from seqgraph_lc_plm.graph import InteractionGraph, read_sequences
from seqgraph_lc_plm.graph_embed import embed_in_graph
from seqgraph_lc_plm.graph_task import LINKED
from seqgraph_lc_plm.probes import sets
from seqgraph_lc_plm.probes.features import Embeddings, KMers, Source
from seqgraph_lc_plm.probes.linear import Kind, Linear, fit, fit_best
from seqgraph_lc_plm.probes.measures import Row, f_max

KINDS = ("reaction", "binding", "ptmod", "activation", "inhibition", "catalysis", "expression")
SHS27K = ("ppi_shs27k/protein.actions.SHS27k.STRING.txt.gz", "ppi_shs27k/protein.SHS27k.sequences.dictionary.tsv.gz")
YEAST = ("ppi_yeast_pipr/protein.actions.tsv.gz", "ppi_yeast_pipr/protein.dictionary.tsv.gz")
SPLITS = ("random", "bfs", "dfs")
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # stronger than for single proteins: pairs have three times the columns


def shs27k(root: Path) -> tuple[InteractionGraph, np.ndarray]:
    """The graph of SHS27k and the kinds of each of its edges, (M, 7) bool."""
    known = dict(read_sequences(root / SHS27K[1]))
    index = {name: number for number, name in enumerate(known)}
    kinds: dict[tuple[int, int], set[str]] = {}
    with sets.opened(root / SHS27K[0]) as lines:
        next(lines)
        for line in lines:
            a, b, mode, *_ = line.split("\t")
            low, high = sorted((index[a], index[b]))
            kinds.setdefault((low, high), set()).add(mode)
    edges = sorted(kinds)
    labels = np.array([[kind in kinds[edge] for kind in KINDS] for edge in edges])
    graph = InteractionGraph(list(known), list(known.values()), torch.tensor(edges, dtype=torch.int64).T.contiguous())
    return graph, labels


def edge_split(edge_index: np.ndarray, num_nodes: int, how: str, seed: int, share: float = 0.2) -> np.ndarray:
    """Which edges are tested on, (M,) bool, as in Lv et al. (IJCAI 2021): 20 % at random, or those that touch the
    proteins that a search from a protein of few neighbours visits first, broad ("bfs") or deep ("dfs").

    Args:
        edge_index: (2, M).
        num_nodes: V.
        how: "random", "bfs" or "dfs".
        seed: of the draws, of the first protein and of the order of neighbours.
        share: of the edges.
    """
    draw = np.random.default_rng(seed)
    count, wanted = edge_index.shape[1], round(share * edge_index.shape[1])
    test = np.zeros(count, bool)
    if how == "random":
        test[draw.permutation(count)[:wanted]] = True
        return test
    beside: list[list[tuple[int, int]]] = [[] for _ in range(num_nodes)]
    for edge, (a, b) in enumerate(edge_index.T.tolist()):
        beside[a].append((edge, b))
        beside[b].append((edge, a))
    for each in beside:
        draw.shuffle(each)
    roots = [node for node in draw.permutation(num_nodes).tolist() if 0 < len(beside[node]) < 5]
    seen: set[int] = set()
    for root in roots:  # a component may be smaller than the share
        waiting = [root]
        while waiting and test.sum() < wanted:
            node = waiting.pop(0 if how == "bfs" else -1)
            if node in seen:
                continue
            seen.add(node)
            for edge, other in beside[node]:
                test[edge] = True
                if other not in seen:
                    waiting.append(other)
        if test.sum() >= wanted:
            break
    return test


def training_edges(root: Path, how: str, seed: int) -> str:
    """The interactions of SHS27k that a split trains on, as a table of two names: what a second stage may see that is
    to be probed on this split."""
    graph, _ = shs27k(root)
    edges = graph.edge_index.numpy()
    kept = edges[:, ~edge_split(edges, len(graph.names), how, seed)]
    return "".join(f"{graph.names[a]}\t{graph.names[b]}\n" for a, b in kept.T.tolist())


def pair_features(values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """What a probe sees of two proteins, whichever comes first: sum, product and distance of the standardised columns,
    (P, 3 D) float32."""
    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)
    a, b = values[pairs[0]], values[pairs[1]]
    return np.concatenate([a + b, a * b, np.abs(a - b)], 1).astype(np.float32)


def interactions(
    root: Path,
    sources: Sequence[Embeddings],
    *,
    splits: Sequence[str] = SPLITS,
    seeds: Sequence[int] = (0, 1, 2),
    limit: int | None = None,
    device: str = "cpu",
    simple: bool = True,
) -> list[Row]:
    """Micro-F1 of the kinds of interaction in SHS27k by a linear probe on pairs, averaged over splits of some seeds.

    A model with rows for links is also read beside neighbours, over the training interactions alone.

    Args:
        root: folder of the data.
        sources: embeddings to compare.
        splits: "random", "bfs", "dfs".
        seeds: of the splits.
        limit: of edges.
        device: of the probes.
        simple: whether the trivial answer and features that need no model stand beside them.
    """
    from sklearn.metrics import f1_score

    graph, labels = shs27k(root)
    edges = graph.edge_index.numpy()
    if limit is not None:
        kept = sets.few(range(edges.shape[1]), limit, [f"{a} {b}" for a, b in edges.T.tolist()])
        edges, labels = edges[:, kept], labels[kept]
        graph = InteractionGraph(graph.names, graph.sequences, torch.from_numpy(edges.copy()))
    used = np.unique(edges)
    place = np.full(len(graph.names), -1)
    place[used] = np.arange(len(used))
    texts = [graph.sequences[i] for i in used]
    features: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = []
    without: list[Source] = [KMers(1), KMers(2)] if simple else []
    for source in [*without, *sources]:
        features.append((source.name, partial(_same, np.asarray(source.means(texts)))))
    for embedded in sources:
        if getattr(embedded.model, "vocab_size", 0) >= LINKED:
            features.append((f"{embedded.name}, beside neighbours", _beside(embedded, graph, used)))
    rows = []
    strength: dict[tuple[str, str], float] = {}
    for how in splits:
        scores: dict[tuple[str, str], list[float]] = {}
        for seed in seeds:
            test = edge_split(edges, len(graph.names), how, seed)
            rest = np.flatnonzero(~test)
            valid = rest[np.random.default_rng(seed).permutation(len(rest))[: len(rest) // 10]]
            train = np.setdiff1d(rest, valid)
            common = np.broadcast_to(labels[train].mean(0) > 0.5, labels[test].shape)
            found = {("none", "commonest kinds"): common} if simple else {}
            for name, make in features:
                values = make(test)
                x = {k: pair_features(values, place[edges[:, part]]) for k, part in
                     (("train", train), ("valid", valid), ("test", np.flatnonzero(test)))}  # fmt: skip
                probe = fit_pairs(strength, (how, name), x["train"], labels[train], x["valid"], labels[valid], device)
                found[name, "linear"] = probe.predict(x["test"])
            for key, said in found.items():
                value = float(f1_score(labels[test], said, average="micro", zero_division=0))
                scores.setdefault(key, []).append(value)
        size = int(test.sum())
        rows += [
            Row(
                "interactions",
                f"SHS27k {how}, seed {','.join(map(str, seeds))}",
                name,
                head,
                "micro-F1",
                float(np.mean(v)),
                size,
            )
            for (name, head), v in scores.items()
        ]
    return rows


def fit_pairs(
    strength: dict[tuple[str, str], float],
    key: tuple[str, str],
    rows: np.ndarray,
    targets: np.ndarray,
    held: np.ndarray,
    wanted: np.ndarray,
    device: str,
) -> Linear:
    """A probe whose penalty the first of several splits has chosen by its validation rows."""
    kind: Kind = "labels" if targets.ndim == 2 else "classes"
    count = targets.shape[1] if targets.ndim == 2 else 2
    if key not in strength:
        best = fit_best((rows, targets), (held, wanted), kind=kind, count=count, penalties=_PENALTIES, device=device)
        strength[key] = best.penalty
        return best
    return fit(rows, targets, kind=kind, count=count, penalty=strength[key], device=device)


def _same(values: np.ndarray, test: np.ndarray) -> np.ndarray:
    return values


def _beside(source: Embeddings, graph: InteractionGraph, used: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    names = [graph.names[i] for i in used]

    def make(test: np.ndarray) -> np.ndarray:
        train = graph.edge_index[:, torch.from_numpy(~test)]
        return embed_in_graph(
            source.model, graph, names, edge_index=train, layer=source.layer, max_tokens=source.max_tokens
        ).numpy()

    return make


def yeast(
    root: Path,
    sources: Sequence[Embeddings],
    *,
    limit: int | None = None,
    device: str = "cpu",
    folds: int = 5,
    simple: bool = True,
) -> list[Row]:
    """Accuracy of which of Guo's yeast pairs interact: pairs in five folds, as published, and proteins in five folds,
    of which a test pair has both proteins in the held-out one and a training pair none. Arguments as elsewhere."""
    known = dict(read_sequences(root / YEAST[1]))
    index = {name: number for number, name in enumerate(known)}
    with sets.opened(root / YEAST[0]) as lines:
        cells = [line.split() for line in lines]
    pairs = np.array([(index[a], index[b]) for a, b, _ in cells]).T
    labels = np.array([int(label) for _, _, label in cells])
    if limit is not None:
        kept = sets.few(range(len(labels)), limit, [f"{a} {b}" for a, b, _ in cells])
        pairs, labels = pairs[:, kept], labels[kept]
    used = np.unique(pairs)
    place = np.full(len(known), -1)
    place[used] = np.arange(len(used))
    texts = [list(known.values())[i] for i in used]
    group = np.array([int(sets.draw(text) * folds) for text in known.values()])
    by_pair = np.random.default_rng(0).permutation(len(labels)) % folds
    a, b = group[pairs[0]], group[pairs[1]]
    plans = {
        "pairs held out": [(by_pair == f, by_pair != f) for f in range(folds)],
        "proteins held out": [((a == f) & (b == f), (a != f) & (b != f)) for f in range(folds)],
    }
    rows = []
    strength: dict[tuple[str, str], float] = {}
    for name, plan in plans.items() if simple else ():
        size = sum(int(test.sum()) for test, _ in plan)
        right = sum(int((labels[test] == (labels[train].mean() > 0.5)).sum()) for test, train in plan)
        rows.append(Row("yeast pairs", name, "none", "commonest", "accuracy", right / size, size))
    without: list[Source] = [KMers(1), KMers(2)] if simple else []
    for source in [*without, *sources]:
        x = pair_features(np.asarray(source.means(texts)), place[pairs])
        for name, plan in plans.items():
            right = 0
            for test, train in plan:
                rest = np.flatnonzero(train)
                cut = len(rest) // 10
                order = np.random.default_rng(1).permutation(rest)
                valid, fitted = order[:cut], order[cut:]
                probe = fit_pairs(
                    strength, (name, source.name), x[fitted], labels[fitted], x[valid], labels[valid], device
                )
                right += int((probe.predict(x[test]) == labels[test]).sum())
            size = sum(int(test.sum()) for test, _ in plan)
            rows.append(Row("yeast pairs", name, source.name, "linear", "accuracy", right / size, size))
    return rows


def function(
    root: Path,
    sources: Sequence[Embeddings],
    *,
    limit: int | None = None,
    device: str = "cpu",
    least: int = 50,
    longest: int = 2000,
    simple: bool = True,
) -> list[Row]:
    """F-max of GO's molecular functions: one protein of each training cluster of Swiss-Prot, and its test proteins.

    Args:
        root: folder of the data.
        sources: embeddings to compare.
        limit: of training proteins, and of validation and test proteins.
        device: of the probes.
        least: terms of fewer training proteins are left out.
        longest: longer training proteins are left out.
        simple: whether the trivial answer and features that need no model stand beside them.
    """
    first: set[str] = set()
    found: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    direct = sets.direct_functions(root)
    for accession, cluster, split, sequence in sets.swissprot(root):
        if accession in direct and (split != "train" or (cluster not in first and len(sequence) <= longest)):
            first.add(cluster)
            found[split].append((accession, sequence))
    for split, rows_ in found.items():
        kept = sets.few(range(len(rows_)), limit, [accession for accession, _ in rows_])
        found[split] = [rows_[i] for i in kept]
    chosen = [accession for rows_ in found.values() for accession, _ in rows_]
    annotated = sets.molecular_functions(root, {accession: direct[accession] for accession in chosen})
    counts: dict[str, int] = {}
    for accession, _ in found["train"]:
        for term in annotated[accession]:
            counts[term] = counts.get(term, 0) + 1
    terms = sorted(term for term, many in counts.items() if many >= least)
    if not terms:
        raise DataError(f"no term has {least} of the {len(found['train']):,} training proteins", "a larger --limit")
    column = {term: i for i, term in enumerate(terms)}
    truth = {}
    for split, rows_ in found.items():
        truth[split] = np.zeros((len(rows_), len(terms)), bool)
        for i, (accession, _) in enumerate(rows_):
            truth[split][i, [column[t] for t in annotated[accession] if t in column]] = True
        kept = np.flatnonzero(truth[split].any(1))
        truth[split] = truth[split][kept]
        found[split] = [rows_[i] for i in kept]
    said = f"Swiss-Prot, {len(terms):,} terms"
    size = len(truth["test"])
    share = np.broadcast_to(truth["train"].mean(0), truth["test"].shape)
    rows = []
    if simple:
        rows.append(Row("function", said, "none", "frequencies", "F-max", f_max(share, truth["test"]), size))
    without: list[Source] = [KMers(1), KMers(2)] if simple else []
    for source in [*without, *sources]:
        seen = {split: np.asarray(source.means([text for _, text in rows_])) for split, rows_ in found.items()}
        probe = fit_best((seen["train"], truth["train"]), (seen["valid"], truth["valid"]), kind="labels",
                         penalties=(1e-3, 1e-2, 1e-1), device=device, steps=100)  # fmt: skip
        scores = probe.logits(seen["test"]).sigmoid().numpy()
        rows.append(Row("function", said, source.name, "linear", "F-max", f_max(scores, truth["test"]), size))
    return rows
