"""The tables of benchmarks/results/recommendation.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import product
from typing import Any

from report_runs import SETS, SETTINGS, TRIED, Rows, Runs, group_of, of, pairs, picked

from seqgraph_mamba4rec.ranking import KINDS

PROTOCOLS = {"": "every item ranked (unmasked)", "-unseen": "items that the user has seen left out (masked)"}
NAMES = {
    "mamba4rec": "Mamba4Rec",
    "sasrec": "SASRec",
    "gru4rec": "GRU4Rec",
    "lrurec": "LRURec",
    "bimamba4rec": "Bidirectional Mamba, cloze",
}
PUBLISHED: dict[tuple[str, str], list[tuple[str, str, str]]] = {
    ("ml-1m", ""): [
        ("Mamba4Rec, one layer: its paper", ".3121", ".1822"),
        ("Mamba4Rec, two layers: TiM4Rec's authors", ".3253", ""),
    ],
    ("ml-1m", "-unseen"): [
        ("SASRec+ with 3,000 negatives (2309.07602)", ".3159", ".1857"),
        ("HSTU-large: its repository", ".3294", ".1893"),
    ],
    ("beauty", ""): [
        ("Mamba4Rec: reruns by others", ".0715 to .0761", ".0428 to .0452"),
        ("SASRec in RecBole: a rerun by others", ".0848", ".0432"),
    ],
    ("beauty", "-unseen"): [
        ("SASRec+SS: eSASRec's benchmark", ".0921", ".0531"),
        ("eSASRec: the same", ".0928", ".0523"),
    ],
    ("sports", "-unseen"): [
        ("SASRec+SS: eSASRec's benchmark", ".0569", ".0314"),
        ("eSASRec: the same", ".0560", ".0323"),
    ],
    ("toys", "-unseen"): [
        ("SASRec+SS: eSASRec's benchmark", ".0970", ".0580"),
        ("eSASRec: the same", ".0939", ".0538"),
    ],
}
ASKED = {
    ("ml-1m", ""): (0.330, 0.193),
    ("ml-1m", "-unseen"): (0.329, 0.189),
    ("beauty", "-unseen"): (0.0928, 0.0531),
    ("sports", "-unseen"): (0.0569, 0.0323),
    ("toys", "-unseen"): (0.0970, 0.0580),
}
"""Of Mamba4Rec in the strong setting: HR@10 and NDCG@10, as asked for."""

ROWS = (
    ("mamba4rec", "strong", "Mamba4Rec, strong"),
    ("sasrec", "strong", "SASRec, strong"),
    ("mamba4rec", "deep", "Mamba4Rec, deep: three layers, dropout .3"),
    ("sasrec", "deep", "SASRec, deep: three layers, dropout .3"),
    ("mamba4rec", "item-dropout", "Mamba4Rec, wide, dropout on the item table"),
    ("sasrec", "item-dropout", "SASRec, wide, dropout on the item table"),
    ("mamba4rec", "seen", "Mamba4Rec, with a learned seen term"),
    ("sasrec", "seen", "SASRec, with a learned seen term"),
    ("mamba4rec", "own", "Mamba4Rec, drawn negatives"),
    ("sasrec", "own", "SASRec, drawn negatives"),
    ("mamba4rec", "all", "Mamba4Rec, chosen unmasked, best of three trials"),
    ("sasrec", "all", "SASRec, chosen unmasked, best of two trials"),
    ("mamba4rec", "final-ssd", "Mamba4Rec, SSD mixer"),
    ("gru4rec", "strong", "GRU4Rec"),
    ("lrurec", "strong", "LRURec"),
    ("bimamba4rec", "strong", "Bidirectional Mamba, cloze"),
    ("mamba4rec", "faithful", "Mamba4Rec, as released"),
    ("mamba4rec", "faithful-bf16", "Mamba4Rec, as released, bf16"),
    ("mamba4rec", "faithful-2", "Mamba4Rec, as released, two layers, bf16"),
    ("sasrec", "faithful", "SASRec, as in RecBole"),
)
CALLED = {
    "all": "chosen unmasked",
    "best": "each one's best on validation, no seen term",
    "seen": "with a learned seen term",
    "own": "drawn negatives",
    "item-dropout": "wide, dropout on the item table",
}


def figure(values: list[float]) -> str:
    """Mean ± standard deviation (n - 1)."""
    mean = short(statistics.mean(values))
    return mean + (f" ± {statistics.stdev(values):.4f}".replace("± 0", "± ") if len(values) > 1 else "")


def short(value: float) -> str:
    """Four digits."""
    return f"{value:.4f}".removeprefix("0")


def tables(runs: Runs) -> Iterator[str]:
    """A section a data set, a table a protocol."""
    for data, title in SETS.items():
        found = [(label, rows) for model, kind, label in ROWS if (rows := of(runs, data, model, kind))]
        if not found:
            continue
        prints = sorted({row["data"] for _, rows in found for row in rows})
        yield f"\n## {title}\n\nFingerprints of the histories with their settings: {', '.join(prints)}.\n"
        for suffix, protocol in PROTOCOLS.items():
            yield f"\n### {data}: {protocol}\n"
            yield "| | HR@10 | NDCG@10 | MRR@10 | seeds | epochs (best) | s a training | parameters |"
            yield "|---|---|---|---|---|---|---|---|"
            for name, *said in PUBLISHED.get((data, suffix), []):
                yield f"| *{name}* | {' | '.join(f'*{one}*' if one else '' for one in said)} | | | | | |"
            if asked := ASKED.get((data, suffix)):
                yield f"| *asked for* | {' | '.join(f'*{short(one)}*' for one in asked)} | | | | | |"
            for label, rows in found:
                cells = [figure([row["test"][f"{kind}@10{suffix}"] for row in rows]) for kind in ("HR", "NDCG", "MRR")]
                epochs = ", ".join(f"{row['epochs']}{'*' * row['cut']} ({row['best_epoch']})" for row in rows)
                size, took = rows[0]["parameters"], statistics.mean(row["seconds"] for row in rows)
                yield f"| {label} | {' | '.join(cells)} | {len(rows)} | {epochs} | {took:.0f} | {size:,} |"
        yield ""


def targets(runs: Runs) -> Iterator[str]:
    """What was asked for, and what came of it in every setting that both models had: a table a protocol."""
    for suffix, protocol in PROTOCOLS.items():
        yield f"\n{protocol.capitalize()}:\n"
        yield "| data | setting | asked: HR@10, NDCG@10 | Mamba4Rec | | SASRec | | seeds |"
        yield "|---|---|---|---|---|---|---|---|"
        for data, kind in product(
            SETS, ("strong", "deep", "item-dropout", "seen", "own") + (() if suffix else ("all",))
        ):
            sides = [of(runs, data, model, kind) for model in ("mamba4rec", "sasrec")]
            if not all(sides) or (data, suffix) not in ASKED:
                continue
            asked, cells = ASKED[data, suffix], list[str]()
            for rows in sides:
                got = [statistics.mean(row["test"][f"{what}@10{suffix}"] for row in rows) for what in ("HR", "NDCG")]
                over = [round(a, 4) >= b for a, b in zip(got, asked, strict=True)]
                missed = " and ".join(k for k, o in zip(KINDS, over, strict=False) if not o)
                word = "reached" if all(over) else f"{missed} missed" if any(over) else "missed"
                cells += [", ".join(map(short, got)), word]
            said = ", ".join(map(short, asked))
            yield f"| {data} | {CALLED.get(kind, kind)} | {said} | {' | '.join(cells)} | {len(sides[0])} |"


def speeds(found: dict[str, Any]) -> Iterator[str]:
    """What epoch_gpu.py measured."""
    yield f"{found['device']}, torch {found['torch']}.{' ' + found['note'] if 'note' in found else ''}\n"
    yield "| case | an epoch, s | batches timed | tokens a batch | ms a batch | peak, MiB |\n|---|---|---|---|---|---|"
    for name, row in found["cases"].items():
        yield (
            f"| {name} | {row['epoch_s']:.2f} | {row['steps']} of {row['of']} | {row['tokens_a_step']:,.0f} "
            f"| {row['step_ms']:.1f} | {row['peak_mib']:,.0f} |"
        )


def comparisons(runs: Runs, rows: Rows) -> Iterator[str]:
    """Differences with intervals, of Mamba4Rec and SASRec and of others: two tables a protocol; and what has none."""
    for which, protocol in zip(("all", "unseen"), PROTOCOLS.values(), strict=True):
        yield f"\n{protocol.capitalize()}:\n"
        found = [row for row in rows if row["protocol"] == which]
        yield from differences("Mamba4Rec | SASRec", [row for row in found if row["setting"] in SETTINGS])
        yield ""
        yield from differences("first | second", [row for row in found if row["setting"] not in SETTINGS])
    have = [(row["data"], row["setting"]) for row in rows]
    full = len(KINDS) * len(PROTOCOLS)
    if bare := [
        f"{data}, {CALLED.get(kind, kind)}" for data, kind, _ in pairs(runs) if have.count((data, kind)) < full
    ]:
        yield f"\nNot compared, since the users' ranks of some of their runs are gone: {'; '.join(bare)}."


def differences(sides: str, rows: Rows) -> Iterator[str]:
    """A table of them, if there are any."""
    if rows:
        yield f"| data | setting | metric | {sides} | difference | 95 % interval | p | seeds |"
        yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        setting = CALLED.get(row["setting"], row["setting"])
        yield (
            f"| {row['data']} | {setting} | {row['metric']} | {row['a']:.4f} | {row['b']:.4f} "
            f"| {row['difference']:+.4f} | {row['low']:+.4f} to {row['high']:+.4f} "
            f"| {row['p']} | {' and '.join(map(str, row['seeds']))} |"
        )


def trials(runs: Runs) -> Iterator[str]:
    """Every trial by its validation figure, with what it does not share with all others."""
    for data, model, pattern in product(SETS, NAMES, TRIED):
        rows = [row for row in runs.values() if row["name"].startswith(f"{data}/{model}/")]
        rows = [row for row in rows if fnmatch(group_of(row), pattern)]
        if not rows:
            continue
        own = [[w for w in row["words"] if not w.startswith("seed=")] for row in rows]
        shared = [w for w in own[0] if all(w in words for words in own)]
        name = NAMES[model] + (", SSD mixer" if pattern == "ssd" else "")
        name += "" if pattern in ("tune*", "all", "ssd") else f", {pattern.rstrip('*')}"
        name += ", chosen unmasked" if not any(row["picked_by"].endswith("-unseen") for row in rows) else ""
        yield f"\n**{data}, {name}**, {len(rows)} trials of `{' '.join(shared)}`\n"
        yield "| trial | validation | epochs (best) | settings |\n|---|---|---|---|"
        for row, words in sorted(zip(rows, own, strict=True), key=lambda pair: -picked(pair[0])):
            epochs = f"{row['epochs']}{'*' * row['cut']} ({row['best_epoch']})"
            said = " ".join(w for w in words if w not in shared)
            yield f"| {row['name'].rpartition('/')[2]} | {picked(row):.4f} | {epochs} | `{said}` |"
