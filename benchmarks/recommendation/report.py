"""benchmarks/results/recommendation.md from what train_gpu.py brought back.

    python benchmarks/recommendation/report.py OUT [OUT2 ...] --notes benchmarks/recommendation/notes.md
        --epochs rec-epoch.json [...] --serving serving.txt -o benchmarks/results/recommendation.md

Each OUT holds runs.json and ranks.npz; of a run that several have, the last counts; --drop leaves out the runs whose
names a pattern matches in all but the last. The page's fixed words are here;
what was learnt from the numbers is written by a person in NOTES and put in front of the tables. EPOCHS is what
epoch_gpu.py wrote, SERVING what serving.py printed. Every run's words and figures come beside
the page, as NAME-runs.json.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqgraph_mamba4rec.bootstrap import paired_bootstrap
from seqgraph_mamba4rec.ranking import KINDS, Kind, gain

SETS = {
    "ml-1m": "MovieLens-1M (6,040 users, 3,416 films)",
    "beauty": "Amazon Beauty (22,363 users, 12,101 items)",
    "sports": "Amazon Sports and Outdoors (35,598 users, 18,357 items)",
    "toys": "Amazon Toys and Games (19,412 users, 11,924 items)",
    "video-games": "Amazon Video Games (24,303 users, 10,672 items)",
}
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
    ("mamba4rec", "seen", "Mamba4Rec, with a learned seen term"),
    ("sasrec", "seen", "SASRec, with a learned seen term"),
    ("mamba4rec", "own", "Mamba4Rec, drawn negatives"),
    ("sasrec", "own", "SASRec, drawn negatives"),
    ("mamba4rec", "all", "Mamba4Rec, chosen unmasked, best of three trials"),
    ("sasrec", "all", "SASRec, chosen unmasked, best of two trials"),
    ("mamba4rec", "ssd", "Mamba4Rec, SSD mixer, best of two trials"),
    ("gru4rec", "tune", "GRU4Rec, best of two trials"),
    ("lrurec", "tune", "LRURec, best of two trials"),
    ("bimamba4rec", "tune", "Bidirectional Mamba, cloze, best of two trials"),
    ("mamba4rec", "faithful", "Mamba4Rec, as released"),
    ("mamba4rec", "faithful-bf16", "Mamba4Rec, as released, bf16, to its patience"),
    ("mamba4rec", "faithful-2", "Mamba4Rec, as released, two layers"),
    ("sasrec", "faithful", "SASRec, as in RecBole"),
)
TRIED = ("tune*", "all", "ssd")
"""Groups of trials: one seed each, of which the best on validation is shown."""
CALLED = {
    "all": "chosen unmasked",
    "best": "each one's best on validation, no seen term",
    "seen": "with a learned seen term",
    "own": "drawn negatives",
}

Rows = list[dict[str, Any]]


def read(folders: list[Path], drop: str = "") -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Runs by name, and ranks by run and protocol; without those that ``drop`` matches, but for the last folder's."""
    runs: dict[str, dict[str, Any]] = {}
    ranks: dict[str, np.ndarray] = {}
    for folder in folders:
        rows = json.loads((folder / "runs.json").read_text())
        old = {row["name"] for row in rows if drop and folder != folders[-1] and re.search(drop, row["name"])}
        runs |= {row["name"]: row for row in rows if row["name"] not in old}
        with np.load(folder / "ranks.npz") as found:
            ranks |= {name: found[name] for name in found if name.rpartition("/")[0] not in old}
    return runs, ranks


def of(runs: dict[str, dict[str, Any]], data: str, model: str, kind: str) -> Rows:
    """The runs of one row: a seed each, or the best trial; of the strong setting the trials while nothing is final."""
    found = [row for name, row in sorted(runs.items()) if name.startswith(f"{data}/{model}/")]
    if kind == "best":  # of what had several candidates, by the mean of their validation figures
        several = [rows for one in ("deep", "strong", "own") if (rows := of(runs, data, model, one))]
        return max(several, key=lambda rows: statistics.mean(map(picked, rows))) if len(several) > 1 else []
    group = [row for row in found if _group(row) == ("final" if kind == "strong" else kind)]
    if (kind == "strong" and not group) or kind in TRIED or kind == "tune":
        group = [row for row in found if fnmatch(_group(row), "tune*" if kind in ("strong", "tune") else kind)]
        return [max(group, key=picked)] if group else []
    return group


def _group(row: dict[str, Any]) -> str:
    return str(row["name"].split("/")[2])


def picked(row: dict[str, Any]) -> float:
    """The validation figure that picked the run's epoch."""
    task = row["config"]["task"]
    k = task["k"] if isinstance(task["k"], int) else task["k"][0]
    return float(row["valid"][f"{task['select_metric']}@{k}" + ("-unseen" if task["select_by"] == "unseen" else "")])


def figure(values: list[float]) -> str:
    """Mean ± standard deviation (n - 1)."""
    mean = short(statistics.mean(values))
    return mean + (f" ± {statistics.stdev(values):.4f}".replace("± 0", "± ") if len(values) > 1 else "")


def short(value: float) -> str:
    """Four digits."""
    return f"{value:.4f}".removeprefix("0")


def worth(rows: Rows, ranks: dict[str, np.ndarray], which: str, kind: Kind) -> np.ndarray:
    """Each user's share in a metric at 10, mean over the runs, (n,)."""
    return np.mean(
        [gain(torch.from_numpy(ranks[f"{r['name']}/{which}"].astype(np.int64)), kind, 10) for r in rows], axis=0
    )


def tables(runs: dict[str, dict[str, Any]]) -> Iterator[str]:
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


def targets(runs: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What was asked for, and what came of it in every setting that both models had: a table a protocol."""
    for suffix, protocol in PROTOCOLS.items():
        yield f"\n{protocol.capitalize()}:\n"
        yield "| data | setting | asked: HR@10, NDCG@10 | Mamba4Rec | | SASRec | | seeds |"
        yield "|---|---|---|---|---|---|---|---|"
        for data, kind in product(SETS, ("strong", "deep", "seen", "own") + (() if suffix else ("all",))):
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


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """A run in a line: what it was told, how long it had, what came out."""
    facts = ("name", "words", "data", "parameters", "cut", "epochs", "best_epoch", "steps", "seconds", "wall", "device")
    figures = {which: {k: round(v, 5) for k, v in row[which].items() if "@10" in k} for which in ("valid", "test")}
    return {name: row[name] for name in facts} | figures


def comparisons(runs: dict[str, dict[str, Any]], ranks: dict[str, np.ndarray]) -> Iterator[str]:
    """Mamba4Rec less SASRec, with intervals: a table a protocol."""
    for which, protocol in zip(("all", "unseen"), PROTOCOLS.values(), strict=True):
        yield f"\n{protocol.capitalize()}:\n"
        shown: list[list[Rows]] = []
        yield "| data | setting | metric | Mamba4Rec | SASRec | difference | 95 % interval | p | seeds |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for data, setting in product(SETS, ("strong", "deep", "seen", "own", "best", "all", "faithful")):
            sides = [of(runs, data, model, setting) for model in ("mamba4rec", "sasrec")]
            if not all(sides) or sides in shown:  # the best of both may be a setting that both have
                continue
            shown.append(sides)
            for kind in KINDS:
                a, b = (worth(rows, ranks, which, kind) for rows in sides)
                i = paired_bootstrap(a, b)
                seeds = " and ".join(str(len(rows)) for rows in sides)
                yield (
                    f"| {data} | {CALLED.get(setting, setting)} | {kind}@10 | {i.a:.4f} | {i.b:.4f} "
                    f"| {i.difference:+.4f} | {i.low:+.4f} to {i.high:+.4f} "
                    f"| {'< .001' if i.p < 0.001 else f'{i.p:.3f}'} | {seeds} |"
                )


def trials(runs: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Every trial by its validation figure, with what it does not share with all others."""
    for data, model, pattern in product(SETS, NAMES, TRIED):
        rows = [row for row in runs.values() if row["name"].startswith(f"{data}/{model}/")]
        rows = [row for row in rows if fnmatch(_group(row), pattern)]
        if not rows:
            continue
        own = [[w for w in row["words"] if not w.startswith("seed=")] for row in rows]
        shared = [w for w in own[0] if all(w in words for words in own)]
        name = NAMES[model] + (", SSD mixer" if pattern == "ssd" else "")
        name += ", chosen unmasked" if all(row["config"]["task"]["select_by"] == "all" for row in rows) else ""
        yield f"\n**{data}, {name}**, {len(rows)} trials of `{' '.join(shared)}`\n"
        yield "| trial | validation | epochs (best) | settings |\n|---|---|---|---|"
        for row, words in sorted(zip(rows, own, strict=True), key=lambda pair: -picked(pair[0])):
            epochs = f"{row['epochs']}{'*' * row['cut']} ({row['best_epoch']})"
            said = " ".join(w for w in words if w not in shared)
            yield f"| {row['name'].rpartition('/')[2]} | {picked(row):.4f} | {epochs} | `{said}` |"


_RULES = """## How

Leave one out, every item ranked, ties against the model; the epoch is chosen on the validation events. *Masked* leaves
out what the user has seen; its figures and the unmasked ones answer different questions and share no table. *Strong*:
every position of packed histories, softmax, bf16, cosine schedule; epoch and trial chosen by NDCG@10 masked on
validation, and both protocols' figures from those weights. *As released*: every prefix an example, last position, the
release's initialisation, fp32, Adam at 1e-3, patience of 10 epochs on NDCG@10 unmasked. Both models had the same number
of trials, one seed each, and the same seconds a trial (MovieLens-1M 115, Beauty 50); what won was trained anew with
every seed (215, 75, and 60 on the other sets). Sports, Toys and Video Games were trained with what won on Beauty.
*Second session*: 31 trainings on one H200 which they shared with three trainings on graphs and, for about 400 of 513 s,
with GPU tests that took slices of its time; steps replayed as CUDA graphs (`task.capture`) but for GRU4Rec (fp32), the
cloze model and those as released. *Deep*: three layers with norms behind and dropout .3 for both models, one seed,
150 s. *Chosen unmasked*: epoch and trial by NDCG@10 with every film ranked, 230 s (the released layers at every
position 200); Mamba4Rec had three such trials, SASRec two. Sports: two trials of each, 60 s. GRU4Rec, LRURec, the cloze
model and the SSD mixer: two trials each (MovieLens-1M 95 s, Beauty 45), the better one on validation is shown; the
cloze model's epoch and trial are chosen unmasked. `--list second` is longer: what there was no time for was cut or left
out. *Third session*: 12 trainings in 302 s, eight at a time on one H200 beside two trainings on proteins. *With a
learned seen term* (`model.seen=bias`): one weight on the scores of what the user has had, learnt with all else;
MovieLens-1M 235 s, steps replayed, Mamba4Rec as deep, SASRec with two layers, norms behind and dropout .2; Sports 82 s,
what won on Beauty. *Drawn negatives*: sampled softmax, 256 a prediction, dropout .3, 110 s. Toys' seed 2: 55 s, steps
replayed. *Fourth session*: seed 2 of Video Games, both models at once in 79 s on an H200, and beside them MovieLens-1M
as released in bf16, seed 0, alone on that GPU after its first 100 s, until its patience ended it. Mean ± standard
deviation (n - 1) over as many seeds as the table says; a star marks a training that the time limit cut.
*s a training*: on the clock, beside the other trainings. Published rows: as printed by their authors, from other
harnesses.

```
python benchmarks/recommendation/train_gpu.py --list faithful tune --data DATA --out TUNING --limit 368 --jobs 10 --mps
python benchmarks/recommendation/train_gpu.py --list chosen --data DATA --out FINALS --limit 366 --jobs 11 --mps
python benchmarks/recommendation/train_gpu.py --run "NAME=WORDS" ... --data DATA --out SECOND --limit 540 --jobs 7 --mps
python benchmarks/recommendation/train_gpu.py --run "NAME=WORDS" ... --data DATA --out THIRD --limit 330 --mps
python benchmarks/recommendation/train_gpu.py --run "NAME=WORDS" ... --data DATA --out VIDEO --limit 130 --jobs 2 --mps
seqgraph train ml-1m-faithful --data-root DATA data.file=ml-1m.txt.gz train.precision=bf16 seed=0 -o RELEASED
python benchmarks/recommendation/epoch_gpu.py --data DATA --seconds 16 --steps 6 --epochs 6 --out rec-epoch.json
python benchmarks/recommendation/serving.py --part step topk memory --device cuda --seconds 0.15
python benchmarks/recommendation/report.py TUNING FINALS THIRD VIDEO RELEASED SECOND --drop /faithful/ ...
```
DATA holds ml-1m.txt.gz and the Amazon files of S3-Rec, gzipped. `--list finals` picks the winners from the folder of
the trials by itself; `chosen` spells them out. Every run's name, words and figures: [as JSON](RUNS); the exact NAME
and WORDS of SECOND's, THIRD's and VIDEO's runs are there. RELEASED was judged afterwards, in fp32 as all others are.
`--drop` leaves out three earlier runs as released, stopped after 5 epochs; it spares the last folder, so SECOND stands
there. THIRD had the words of `third(330)` in `train_lists.py` (`--list third` gives more seconds), as many as began.
The presets `ml-1m`, `ml-1m-sasrec`, `beauty`, `beauty-sasrec`, `sports`, `toys` and `video-games` have these settings,
with about the epochs that were done in place of the clock: `seqgraph train ml-1m --data-root DATA seed=0,1,2`.
"""


def page(
    runs: dict[str, dict[str, Any]],
    ranks: dict[str, np.ndarray],
    notes: str,
    name: str,
    epochs: list[str],
    serving: str,
) -> Iterator[str]:
    """The whole page."""
    rows = list(runs.values())
    devices = ", ".join(sorted({row["device"] for row in rows}))
    versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
    hours = sum(row["wall"] for row in rows) / 3600
    yield f"# Recommendation\n\n{devices}; {versions}. {len(rows)} trainings, {hours:.1f} hours of processes in all,"
    yield "most of them eight to twenty at a time on one GPU through NVIDIA's multi-process service.\n"
    yield notes.strip() + "\n" if notes else ""
    yield "## What was asked for"
    yield "\n".join(targets(runs)) + "\n"
    yield _RULES.replace("RUNS", f"{name}-runs.json")
    yield "\n".join(tables(runs))
    yield "\n## Mamba4Rec less SASRec, same users\n"
    compared = list(comparisons(runs, ranks))
    yield "Paired bootstrap over users, 10,000 draws, of each user's mean over seeds: the intervals hold the luck of"
    count = sum("@10" in line for line in compared)
    yield f"drawing users, not that of training, and are not corrected for there being {count} of them."
    yield "\n".join(compared)
    yield "\n## Trials\n\nNDCG@10 on the validation events, masked but where it says otherwise, one seed each."
    yield "\n".join(trials(runs))
    yield "\n## Time in the runs\n\n| data | model | setting | s an epoch | s a training | peak, MiB |"
    yield "|---|---|---|---|---|---|"
    for data in SETS:
        for model, kind, label in ROWS:
            if chosen := of(runs, data, model, kind):
                mean = {k: statistics.mean(r[k] for r in chosen) for k in ("epoch_seconds", "seconds", "peak_mib")}
                peak = f"{mean['peak_mib']:,.0f}" if mean["peak_mib"] else "not kept"
                yield (
                    f"| {data} | {NAMES[model]} | {label.partition(', ')[2] or kind} | {mean['epoch_seconds']:.2f} "
                    f"| {mean['seconds']:.0f} | {peak} |"
                )
    yield "\nBeside other processes on the same GPU, evaluations in the peak: not how fast a model is."
    if epochs:
        yield "\n## An epoch of MovieLens-1M, alone on a GPU\n"
        yield "\n\n".join("\n".join(speeds(json.loads(one))) for one in epochs)
    if serving:  # the command's own lines: its machine first, then tables
        first, *lines = [line for line in serving[serving.rindex("torch 2") :].splitlines() if not line.startswith("#")]
        yield f"\n## The next event of a user, on a GPU\n\n{first.partition(', load')[0]}.\n"
        top = next((i for i, line in enumerate(lines) if line.startswith("| items")), len(lines))
        yield "\n".join(lines[:top]).strip() + "\n\nThe best ten of all items:\n"
        yield "\n".join(lines[top:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--drop", default="", metavar="REGEX", help="names of runs not to take from older folders")
    parser.add_argument("--epochs", nargs="*", type=Path, default=[], help="one of each machine")
    parser.add_argument("--serving", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    runs, ranks = read(options.folders, options.drop)
    notes, serving = (path.read_text() if path else "" for path in (options.notes, options.serving))
    stem = options.output.stem if options.output else "recommendation"
    epochs = [path.read_text() for path in options.epochs]
    text = "\n".join(page(runs, ranks, notes, stem, epochs, serving)) + "\n"
    if options.output:
        lines = ",\n".join(json.dumps(kept(row)) for row in runs.values())
        options.output.with_name(f"{stem}-runs.json").write_text(f"[\n{lines}\n]\n")
        options.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
