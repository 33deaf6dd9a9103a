"""The page of results and the shipped weights, from what the runs on a GPU gave back.

    python benchmarks/proteins/results.py page --tune tune.json --final final.json --rows rows.json \\
        [--speed speed.json] [--embed embed.txt] [--note "..."] --out benchmarks/results/proteins.md
    python benchmarks/proteins/results.py ship --final final.json --rows rows.json --weights lc-plm-8m.tar

``page`` writes every row: means over seeds, beside them random weights and features that need no model. ``ship`` puts
the weights with a card where ``seqgraph embed lc-plm-8m`` finds them.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tarfile
from pathlib import Path
from statistics import mean
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.proteins.downstream import SIMPLE, probe_of
from benchmarks.proteins.downstream_speed import table_of as speed_table
from benchmarks.proteins.pretrain_gpu import BINS, best_of

REPOSITORY = Path(__file__).parents[2]
WEIGHTS = REPOSITORY / "plugins" / "seqgraph_lc_plm" / "weights"
OURS, THEIRS = "lc-plm", "esm2"
AIM = 0.07  # what the paper claims: better by so much, on at least four tasks
NAMES = dict(zip(BINS, ("≤ 256", "≤ 512", "≤ 1k", "≤ 2k", "≤ 4k", "> 4k"), strict=True))


INTRODUCTION = """\
Made by `benchmarks/proteins/results.py`. The same proteins for both (Swiss-Prot 2014_01: one of each of 48,000 of its
126,357 training clusters, drawn by a fixed seed, cut to 1,022 residues), task (15 %, 80-10-10; evaluation masks all),
batches, number of tokens, AdamW, cosine and clipping; bf16. ESM-2 is fair-esm's class with new weights: proteins of a
batch sorted by length and padded, attention by torch's fused kernels, the same function. Weights are chosen on the
validation split, penalties of probes on validation rows or by leave-one-out, nothing of either model on test data.
""".splitlines()
HELD_OUT = (
    "Held-out proteins (none has a training neighbour of 50 % identity over 80 % of its length), nats a masked "
    "residue, means over seeds (largest distance from the mean):"
)
SEEDS = (
    "Means over the models' seeds (largest distance from the mean) and, for interactions, over three splits each; "
    "random weights are one draw. simple: the best on the line, by its test value, of what is there: one-hot codes (of "
    "a window for structure), words of one or two letters, letter frequencies. n: residues, pairs, variants, domains "
    "or proteins of the test set."
)
SOURCES = (
    "Data: FLIP's training chains (CB513, TS115 and its own NEW364 are the tests) and its GB1 splits; SCOPe 2.07 at "
    "40 %, whole superfamilies held out; three assays of ProteinGym; STRING's SHS27k; PIPR's yeast pairs; molecular "
    "functions of Swiss-Prot with at least 50 training proteins, at most 24,000 training proteins in all."
)


def family(model: str) -> str:
    return OURS if model.startswith(OURS) else THEIRS


# ---------------------------------------------------------------------- pre-training
def pretraining(tune: dict[str, Any], final: dict[str, Any]) -> list[str]:
    """What was trained and how, the losses by length, and the search."""
    results = final["results"]
    device, wall = results[0]["device"], final["wall"]
    head = "| model | parameters | learning rate | seeds | steps | tokens | tokens/s * | GiB |"
    lines = ["## Pre-training", "", head, "|---" * 8 + "|"]
    for preset in dict.fromkeys(r["preset"] for r in results):
        mine = [r for r in results if r["preset"] == preset]
        cells = [preset, f"{mine[0]['parameters']:,}", f"{mine[0]['lr']:g}", ", ".join(str(r["seed"]) for r in mine),
                 _span([r["steps"] for r in mine]), _span([r["tokens"] for r in mine]),
                 f"{mean(r['tokens_per_second'] or 0 for r in mine):,.0f}",
                 "" if mine[0]["peak_gib"] is None else f"{max(r['peak_gib'] for r in mine):.1f}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    cut = [f"{r['preset']} seed {r['seed']} ({r['steps']:,} of {r['planned']:,} steps)" for r in results
           if not r["complete"]]  # fmt: skip
    lines += [
        "",
        f"All {len(results)} at once on one {device}, {wall:.0f} s in all. * of each while they share the GPU.",
    ]
    if cut:
        lines.append(f"Stopped before the end of its schedule: {', '.join(cut)}.")
    lines += ["", HELD_OUT, "", "| model | validation | test | " + " | ".join(NAMES.values()) + " |"]
    lines.append("|---" * (len(NAMES) + 3) + "|")
    for preset in dict.fromkeys(r["preset"] for r in results):
        mine = [r for r in results if r["preset"] == preset]
        kinds = [("valid", "loss"), ("test", "loss"), *(("test", name) for name in BINS)]
        lines.append("| " + " | ".join([preset, *(_mean([r[k].get(n) for r in mine]) for k, n in kinds)]) + " |")
    unigram = next((r["unigram"] for r in results if r["unigram"]), None)
    if unigram:
        lines.append(f"| residue frequencies | | {unigram:.4f} |" + " |" * len(NAMES))
    wins = [name for name in ("loss", *BINS) if (m := _means(results, name)) and m[OURS] < m[THEIRS]]
    told = ", ".join("all" if name == "loss" else NAMES[name] for name in wins) or "none"
    lines += ["", f"Lower for LC-PLM: {told}."]
    if not any(BINS[-1] in r["test"] for r in results):
        lines += ["", "The test split has no protein of more than 4,096 residues."]
    lines += ["", "Search (lowest in bold), validation loss at the end of the same number of steps "
              f"({_span([r['steps'] for r in tune['results']])}) by learning rate:", ""]  # fmt: skip
    rates = sorted({r["lr"] for r in tune["results"]})
    lines += ["| model | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for preset in dict.fromkeys(r["preset"] for r in tune["results"]):
        found = {r["lr"]: r for r in tune["results"] if r["preset"] == preset}
        cells = []
        for rate in rates:
            r = found.get(rate, {"valid": {}, "complete": True, "lr": None})
            loss = r["valid"].get("loss")
            text = "" if loss is None else f"{loss:.4f}" + ("" if r["complete"] else f" (stopped at {r['steps']})")
            cells.append(f"**{text}**" if rate == tune["chosen"].get(preset) else text)
        lines.append("| " + " | ".join([preset, *cells]) + " |")
    return lines


def _means(results: list[dict[str, Any]], name: str) -> dict[str, float]:
    """The mean test loss of both models, where both have one."""
    values = {f: [r["test"][name] for r in results if family(r["preset"]) == f and name in r["test"]]
              for f in (OURS, THEIRS)}  # fmt: skip
    return {f: mean(v) for f, v in values.items()} if all(values.values()) else {}


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _mean(values: list[float | None]) -> str:
    found = [v for v in values if v is not None]
    if not found:
        return ""
    middle = mean(found)
    return f"{middle:.4f}" + (f" ({max(abs(v - middle) for v in found):.4f})" if len(found) > 1 else "")


# ---------------------------------------------------------------------- downstream
def without_seed(data: str) -> str:
    """SHS27k's splits of several seeds are one line."""
    return re.sub(r", seed [\d,]+$", "", data)


def compared(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """By task, data, probe and measure: the values of each kind a model seed, simple and trivial ones, sizes."""
    plain = [r for r in rows if r["kind"] != "stage two"]
    keys = dict.fromkeys((r["task"], without_seed(r["data"]), probe_of(r), r["measure"]) for r in plain
                         if r["kind"] != SIMPLE)  # fmt: skip
    found = {}
    for key in keys:
        mine = [r for r in plain if (r["task"], without_seed(r["data"])) == key[:2]]
        found[key] = {
            **{(f, kind): _values(mine, f, kind, key[2]) for f in (OURS, THEIRS) for kind in ("trained", "random")},
            SIMPLE: _best_simple([r for r in mine if r["features"] != "none"]),
            "trivial": _best_simple([r for r in mine if r["features"] == "none"]),
            "sizes": [r["size"] for r in mine],
        }
    return found


def _best_simple(rows: list[dict[str, Any]]) -> list[float]:
    """The best mean of those that need no model, in a list; or nothing."""
    values: dict[str, list[float]] = {}
    for r in rows:
        if r["kind"] == SIMPLE:
            values.setdefault(r["features"] + r["head"], []).append(r["value"])
    return [max(mean(v) for v in values.values())] if values else []


def downstream(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each task, data and probe; the means over each task's."""
    head = ["task", "data", "probe", "measure", "lc-plm", "esm2", "difference", "lc-plm, random", "esm2, random",
            "simple", "trivial", "n"]  # fmt: skip
    lines = ["## Downstream", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for key, found in compared(rows).items():
        ours, theirs = found[OURS, "trained"], found[THEIRS, "trained"]
        gain = f"{mean(ours) / mean(theirs) - 1:+.1%}" if ours and theirs and mean(theirs) > 0 else ""
        others = [found[OURS, "random"], found[THEIRS, "random"], found[SIMPLE], found["trivial"]]
        cells = [*key, _mean_of(ours), _mean_of(theirs), gain, *map(_mean_of, others), _span(found["sizes"])]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", SEEDS, "", SOURCES, "", *by_task(rows), *second_stage(rows)]


def by_task(rows: list[dict[str, Any]]) -> list[str]:
    """The means over each task's lines, and what they come to."""
    kinds: list[Any] = [(OURS, "trained"), (THEIRS, "trained"), (OURS, "random"), (THEIRS, "random"), SIMPLE]
    told: dict[str, list[list[float]]] = {}
    for key, found in compared(rows).items():
        if all(found[kind] for kind in kinds):
            told.setdefault(key[0], []).append([mean(found[kind]) for kind in kinds])
    means = {task: [mean(column) for column in zip(*values, strict=True)] for task, values in told.items()}
    gains = {task: m[0] / m[1] - 1 for task, m in means.items() if m[1] > 0}
    lines = ["Means over a task's lines:", "", "| task | lines | lc-plm | esm2 | difference | lc-plm, random | "
             "esm2, random | simple |", "|---" * 8 + "|"]  # fmt: skip
    for task, m in means.items():
        gain = f"{gains[task]:+.1%}" if task in gains else ""
        values = [f"{value:.3f}" for value in m]
        lines.append("| " + " | ".join([task, str(len(told[task])), *values[:2], gain, *values[2:]]) + " |")

    def named(tasks: list[str]) -> str:
        return f"{len(tasks)} ({'; '.join(tasks)})" if tasks else "none"

    counted = {task: gain for task, gain in gains.items() if task != "yeast pairs"}
    better = named([task for task, gain in counted.items() if gain >= AIM])
    worse = named([task for task, gain in counted.items() if gain <= -AIM])
    above = [named([task for task, m in means.items() if m[0] > max(m[i] for i in which)])
             for which in ((2,), (4,), (2, 3, 4))]  # fmt: skip
    return [
        *lines,
        "",
        f"Against ESM-2, of {len(counted)} tasks (yeast pairs are not among the claim's): at least {AIM:.0%} better on "
        f"{better}, at least {AIM:.0%} worse on {worse}. Aim: 4.",
        "",
        f"Of all {len(means)} tasks LC-PLM is above its own random weights on {above[0]}, above features that need no "
        f"model on {above[1]}, and above all of these and ESM-2's random weights on {above[2]}.",
    ]


def _values(rows: list[dict[str, Any]], of: str, kind: str, probe: str) -> list[float]:
    """One value a model seed: the mean over the splits' seeds."""
    by_seed: dict[Any, list[float]] = {}
    for r in rows:
        if r["kind"] == kind and family(r["model"]) == of and probe_of(r) == probe:
            by_seed.setdefault(r["seed"], []).append(r["value"])
    return [mean(values) for values in by_seed.values()]


def _mean_of(values: list[float]) -> str:
    if not values:
        return ""
    far = max(abs(v - mean(values)) for v in values)
    return f"{mean(values):.3f}" + (f" ({far:.3f})" if len(values) > 1 else "")


def second_stage(rows: list[dict[str, Any]]) -> list[str]:
    """Interactions with and without the second stage, on the splits whose training part it learnt from."""
    after = [r for r in rows if r["kind"] == "stage two"]
    if not after:
        return []
    lines = ["", "Second stage (`lc-plm-g-8m`) on the training interactions of the same split, micro-F1:", ""]
    lines += ["| data | first stage | second stage, alone | second stage, beside neighbours |", "|---|---|---|---|"]
    for data in dict.fromkeys(r["data"] for r in after):
        seed = next(r["seed"] for r in after if r["data"] == data)
        before = [r["value"] for r in rows if r["data"] == data and r["kind"] == "trained"
                  and family(r["model"]) == OURS and r["seed"] == seed]  # fmt: skip
        cells = [_mean_of(before)]
        for beside in (False, True):
            cells.append(_mean_of([r["value"] for r in after if r["data"] == data
                                   and r["features"].endswith("beside neighbours") == beside]))  # fmt: skip
        lines.append("| " + " | ".join([data, *cells]) + " |")
    return lines


# ---------------------------------------------------------------------- the page and the weights
def page(options: argparse.Namespace) -> str:
    """The whole page."""
    tune, final, rows = (json.loads(path.read_text()) for path in (options.tune, options.final, options.rows))
    lines = ["# Proteins: LC-PLM beside ESM-2", "", *INTRODUCTION, ""]
    if options.note:
        lines += [options.note, ""]
    lines += pretraining(tune, final) + [""] + downstream(rows["rows"])
    if options.speed:
        lines += [
            "",
            "## Speed and memory",
            "",
            options.speed_device,
            "",
            speed_table(json.loads(options.speed.read_text())),
        ]
    if options.embed:
        lines += ["", "## `seqgraph embed`, 753M", "", "```", options.embed.read_text().strip(), "```"]
    lines += ["", "## Commands", "", "```", "python benchmarks/proteins/pretrain_gpu.py pack "
              "--data swissprot2014/swissprot_2014_01.tsv.xz --out proteins.tsv.xz"]  # fmt: skip
    lines += [f"python {shlex.join(one['command'])}" for one in (tune, final)]
    lines.append("python benchmarks/proteins/downstream.py pack --data /path/to/protein --out .carry/protein-tasks")
    lines += [f"python {shlex.join(rows['command'])}", *options.also]
    return "\n".join([*lines, "```"]) + "\n"


CARD = """# lc-plm-8m

LC-PLM (bidirectional Mamba masked language model; Wang et al. 2024, arXiv 2411.08909) with {parameters:,} parameters,
our own weights in float16. `seqgraph embed lc-plm-8m proteins.fasta OUT` finds it by this name.

| | |
|---|---|
| data | Swiss-Prot 2014_01 (UniProt Consortium, CC BY 4.0): one protein of each of 48,000 clusters at 50 % identity |
| training | {tokens:,} tokens in {steps:,} steps, learning rate {lr:g}, seed {seed}, bf16, on one {device} |
| command | `python {command}` |
| held-out loss | {test:.4f} nats a masked residue (residue frequencies: {unigram}); validation {valid:.4f} |
| by length | {bins} |
| licence | Apache-2.0, that of the repository; the data's CC BY 4.0 asks to name UniProt |

## What it is worth

A small model after a very short training, for demonstrations and tests: not for decisions, and no replacement for the
released ESM-2, which has seen far more. Beside an ESM-2 of the same size and training, random weights and features that
need no model (`benchmarks/results/proteins.md`; over this model and another seed's):

{worth}
"""


def ship(final: Path, rows: Path, weights: Path, target: Path) -> None:
    """Unpack the weights, and write their card."""
    said = json.loads(final.read_text())
    preset = weights.stem
    r = best_of(said["results"], preset)
    if r is None:
        sys.exit(f"{final} has no training of {preset}")
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(weights) as archive:
        archive.extractall(target, filter="data")
    bins = ", ".join(f"{NAMES[name]}: {r['test'][name]:.3f}" for name in BINS if name in r["test"])
    unigram = f"{r['unigram']:.4f}" if r["unigram"] else "not measured"
    card = CARD.format(**{**r, "unigram": unigram, "bins": bins, "command": shlex.join(said["command"]),
                          "test": r["test"]["loss"], "valid": r["valid"]["loss"],
                          "worth": "\n".join(by_task(json.loads(rows.read_text())["rows"]))})  # fmt: skip
    (target / preset / "MODEL_CARD.md").write_text(card)
    print(f"{target / preset}: {sum(f.stat().st_size for f in (target / preset).iterdir()):,} bytes")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["page", "ship"])
    parser.add_argument("--tune", type=Path)
    parser.add_argument("--final", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--speed", type=Path, help="speed.json of downstream_speed.py")
    parser.add_argument("--speed-device", default="NVIDIA H100 80GB HBM3, bf16.", help="said above the speeds")
    parser.add_argument("--embed", type=Path, help="what benchmarks/proteins/embed.py printed")
    parser.add_argument("--note", default="", help="a sentence for the top of the page")
    parser.add_argument("--also", nargs="+", default=[], help="further commands to list: of speed and embed")
    parser.add_argument("--weights", type=Path, help="PRESET.tar of pretrain_gpu.py final")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.stage == "ship":
        ship(options.final, options.rows, options.weights, options.out or WEIGHTS)
    else:
        (options.out or REPOSITORY / "benchmarks" / "results" / "proteins.md").write_text(page(options))


if __name__ == "__main__":
    main()
