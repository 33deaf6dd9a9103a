"""Secondary structure, remote homology and fitness: embeddings beside simple features, as rows of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from seqgraph_lc_plm.base import ProteinLM
from seqgraph_lc_plm.mutate import parse, score
from seqgraph_lc_plm.probes import sets
from seqgraph_lc_plm.probes.features import Embeddings, KMers, OneHotWindow, Source
from seqgraph_lc_plm.probes.linear import fit_best, nearest
from seqgraph_lc_plm.probes.measures import Row

GB1_SPLITS = ("one_vs_rest", "two_vs_rest", "three_vs_rest")
_ALPHAS = np.logspace(-2, 6, 9)


def secondary_structure(
    root: Path, sources: Sequence[Embeddings], *, limit: int | None = None, device: str = "cpu", simple: bool = True
) -> list[Row]:
    """Q3 of a linear probe on each residue: FLIP's training chains; CB513, TS115 and FLIP's test chains.

    Args:
        root: folder of the data.
        sources: embeddings to compare.
        limit: of training chains, and of those of each other set.
        device: of the probes.
        simple: whether the trivial answer and features that need no model stand beside them.
    """
    data = {name: _few_chains(chains, limit) for name, chains in sets.secondary_structure(root).items()}
    tests = [name for name in data if name not in ("train", "valid")]
    counts = np.bincount(data["train"].states[data["train"].states >= 0], minlength=len(sets.STATES))
    rows = []
    for name in tests if simple else ():
        truth = data[name].states[data[name].states >= 0]
        share = float((truth == counts.argmax()).mean())
        rows.append(Row("secondary structure", name, "none", "commonest state", "Q3", share, len(truth)))
    without: list[Source] = [OneHotWindow()] if simple else []
    for source in [*without, *sources]:
        seen = {name: _counted(source.residues(chains.sequences), chains.states) for name, chains in data.items()}
        probe = fit_best(seen["train"], seen["valid"], count=len(sets.STATES), device=device)
        for name in tests:
            values, truth = seen[name]
            share = float((probe.predict(values) == truth).mean())
            rows.append(Row("secondary structure", name, source.name, "linear", "Q3", share, len(truth)))
    return rows


def _counted(values: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = states >= 0
    return np.asarray(values[keep]), states[keep]


def _few_chains(chains: sets.Chains, limit: int | None) -> sets.Chains:
    kept = sets.few(range(len(chains.sequences)), limit, chains.sequences)
    parts = np.split(chains.states, np.cumsum([len(text) for text in chains.sequences])[:-1])
    return sets.Chains([chains.sequences[i] for i in kept], np.concatenate([parts[i] for i in kept]))


def remote_homology(
    root: Path,
    sources: Sequence[Embeddings],
    *,
    limit: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    simple: bool = True,
) -> list[Row]:
    """Top-1 accuracy of the fold of domains whose superfamily is not among the known ones (SCOPe 2.07, 40 %).

    Args:
        root: folder of the data.
        sources: embeddings to compare.
        limit: of domains of each split.
        device: of the probes.
        seed: of the superfamilies that are held out.
        simple: whether the trivial answer and features that need no model stand beside them.
    """
    data = sets.domains(root)
    split = {
        name: sets.few(places, limit, data.sequences) for name, places in sets.superfamily_split(data, seed).items()
    }
    known = data.folds[split["train"]]
    held = {name: places[np.isin(data.folds[places], known)] for name, places in split.items()}  # with a limit, fewer
    numbers = {fold: i for i, fold in enumerate(sorted({*known.tolist()}))}
    folds = {name: np.array([numbers[fold] for fold in data.folds[places]], np.int64) for name, places in held.items()}
    truth = folds["test"]
    said = f"superfamilies, seed {seed}"

    def row(features: str, head: str, found: np.ndarray) -> Row:
        return Row("remote homology", said, features, head, "top-1 fold", float((found == truth).mean()), len(truth))

    rows = [row("none", "commonest fold", np.full(len(truth), np.bincount(folds["train"]).argmax()))] if simple else []
    without: list[Source] = [KMers(1), KMers(2)] if simple else []
    for source in [*without, *sources]:
        seen = {name: source.means([data.sequences[i] for i in places]) for name, places in held.items()}
        found = folds["train"][nearest(seen["test"], seen["train"], device)]
        rows.append(row(source.name, "nearest neighbour", found))
        probe = fit_best(
            (seen["train"], folds["train"]), (seen["valid"], folds["valid"]), count=len(numbers), device=device,
            penalties=(1e-4, 1e-3, 1e-2, 1e-1),
        )  # fmt: skip
        rows.append(row(source.name, "linear", probe.predict(seen["test"])))
    return rows


def zero_shot(
    root: Path,
    models: Sequence[tuple[str, ProteinLM]],
    *,
    limit: int | None = None,
    max_tokens: int = 16384,
    bf16: bool = False,
    simple: bool = True,
) -> list[Row]:
    """Spearman's rho of scores by masked marginals with ProteinGym's assays, beside the letters' own frequencies.

    Args:
        root: folder of the data.
        models: (name, model).
        limit: of variants of an assay; fewer are scored than were measured.
        max_tokens: tokens in one forward pass.
        bf16: compute under bfloat16 autocast.
        simple: whether the letters' frequencies stand beside them.
    """
    rows = []
    for assay in sets.assays(root):
        kept = sets.few(range(len(assay.mutants)), limit, assay.mutants)
        variants = [parse(assay.mutants[i]) for i in kept]
        measured = assay.scores[kept]
        counts = Counter(assay.sequence)
        logs = {letter: np.log((counts[letter] + 1) / (len(assay.sequence) + 20)) for letter in "ACDEFGHIKLMNPQRSTVWY"}
        letters = np.array([sum(logs[one.new] - logs[one.old] for one in variant) for variant in variants])
        found = [("letters of the protein", "log-frequencies", letters)] if simple else []
        for name, model in models:
            device = model.device.type
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                scores = score(model, assay.sequence, variants, max_tokens=max_tokens)
            found.append((name, "masked marginals", scores))
        rows += [
            Row("fitness, zero-shot", assay.name, name, head, "Spearman", _rho(scores, measured), len(measured))
            for name, head, scores in found
        ]
    return rows


def gb1(
    root: Path,
    sources: Sequence[Embeddings],
    *,
    splits: Sequence[str] = GB1_SPLITS,
    limit: int | None = None,
    simple: bool = True,
) -> list[Row]:
    """Spearman's rho of ridge regression on FLIP's GB1, from few to many mutations.

    Embeddings are read in two ways: the mean over the protein, and the residues at the places that vary. The penalty is
    chosen by leave-one-out on the training variants.

    Args:
        root: folder of the data.
        sources: embeddings to compare.
        splits: FLIP's.
        limit: of training and of test variants.
        simple: whether the trivial answer and features that need no model stand beside them.
    """
    from sklearn.linear_model import RidgeCV

    rows = []
    for split in splits:
        data = sets.gb1(root, split)
        train = sets.few(np.flatnonzero(~data.test), limit, data.sequences)
        test = sets.few(np.flatnonzero(data.test), limit, data.sequences)
        texts = [[data.sequences[i] for i in part] for part in (train, test)]
        letters = np.array([list(text) for text in data.sequences])
        places = np.flatnonzero((letters != letters[0]).any(0)).tolist()
        wild = _wild(data)
        mutations = np.array([sum(a != b for a, b in zip(text, wild, strict=True)) for text in texts[1]])
        seen: list[tuple[str, str, list[np.ndarray] | None]] = []
        if simple:
            seen.append(("none", "fewer mutations", None))
            seen.append(("one-hot", "ridge", [OneHotWindow().means(part) for part in texts]))
        for source in sources:
            seen.append((source.name, "ridge, mean", [source.means(part) for part in texts]))
            varied = [source.sites(part, places) for part in texts]
            seen.append((source.name, "ridge, varied sites", varied))
        for name, head, values in seen:
            if values is None:
                if len({*mutations.tolist()}) == 1:  # nothing to rank by
                    continue
                found = -mutations.astype(float)
            else:
                found = _ridge(RidgeCV(_ALPHAS), values, data.targets[train])
            rho = _rho(found, data.targets[test])
            rows.append(Row("fitness, supervised", f"GB1 {split}", name, head, "Spearman", rho, len(test)))
    return rows


def _wild(data: sets.Variants) -> str:
    """The protein itself: at each place the letter of the training variants' majority, which have few mutations."""
    letters = np.array([list(text) for text, test in zip(data.sequences, data.test, strict=True) if not test])
    return "".join(Counter(column.tolist()).most_common(1)[0][0] for column in letters.T)


def _ridge(model: object, values: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    train, test = (np.asarray(part, np.float64) for part in values)
    mean, scale = train.mean(0), train.std(0)
    scale[scale < 1e-9] = 1
    model.fit((train - mean) / scale, targets)  # type: ignore[attr-defined]
    return model.predict((test - mean) / scale)  # type: ignore[attr-defined]


def _rho(scores: np.ndarray, measured: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if len({*scores.tolist()}) < 2:
        return float("nan")
    return float(spearmanr(scores, measured).statistic)
