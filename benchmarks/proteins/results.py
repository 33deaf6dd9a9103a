"""The page of results and the shipped weights, from what the runs on a GPU gave back.

    python benchmarks/proteins/results.py page --from OUT [OUT ...] [--baselines rows.json ...] [--search tune.json ...]
                                               [--embed embed.txt ...] [--speed speed.json ... --speed-device GPU ...]
    python benchmarks/proteins/results.py ship --from OUT [--baselines rows.json ...]

OUT has tune.json, final.json, rows.json and lc-plm-8m.tar; of several, each of other sizes, the first has the search
of its size, and ``--search`` takes others.
``page`` writes every row and draws the speeds: means over seeds, beside them random weights and features that need no
model, which may be of earlier tables (``--baselines``). ``notes.md`` beside this file is written by hand: what the
tables say stands before them, how they were made beside the commands. ``ship`` puts the weights with a card where
``seqgraph embed lc-plm-8m`` finds them, if their validation loss is lower than that of the weights which are there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.proteins.comparison import NAMES, by_task, downstream, in_brief, loss_of, pretraining, sizes_of
from benchmarks.proteins.downstream_speed import crossing_point
from benchmarks.proteins.downstream_speed import table_of as speed_table
from benchmarks.proteins.pretrain_gpu import best_of

REPOSITORY = Path(__file__).parents[2]
NOTES = Path(__file__).parent / "notes.md"
WEIGHTS = REPOSITORY / "plugins" / "seqgraph_lc_plm" / "weights"
RAN = "## How it was run"
PICTURE = "proteins-speed.svg"
LINES = {"lc-plm": "C2-", "esm2 sdpa": "C1--", "esm2 fair-esm": "C0--"}
SHIPPED = "lc-plm-8m"
INTRODUCTION = """\
Two protein language models with as many parameters as each other, both trained here from new weights: LC-PLM, a
bidirectional Mamba, and ESM-2, a transformer (fair-esm's class; attention by torch's fused kernels, the same function).
Nothing here is about the released weights of either. The same for both: the proteins (Swiss-Prot 2014_01, one of each
of {proteins} of its 126,357 training clusters, drawn by a fixed seed and cut to 1,022 residues), the task (of 15 % of
the residues to guess 80 % are masked, 10 % exchanged; in tests all are masked), the batches, AdamW, warm-up, cosine,
clipping, bf16, and how the learning rate was found. Nothing is chosen on test data: weights are by the validation
split, penalties of probes by validation rows or leave-one-out.
"""


def page(options: argparse.Namespace) -> str:
    """The whole page."""
    tunes = [_json(file) for file in (options.source[0] / "tune.json", *options.search)]
    finals, measured = ([_json(one / name) for one in options.source] for name in ("final.json", "rows.json"))
    rows = merged([said["rows"] for said in [*measured, *map(_json, options.baselines)]])
    said = INTRODUCTION.format(proteins=proteins_of(finals))
    lines = ["# Proteins: LC-PLM beside ESM-2", "", *textwrap.wrap(said, 120), "", *in_brief(finals, rows), ""]
    said, _, ran = NOTES.read_text().partition(RAN) if NOTES.is_file() else ("", "", "")
    lines += [said.strip(), ""]
    lines += pretraining(tunes, finals) + [""] + downstream(rows)
    if options.speed:
        lines += ["", "## Speed and memory", "", SPEEDS, "", f"![Tokens a second against length]({PICTURE})"]
    for told, device in zip(options.speed, options.speed_device, strict=True):
        lines += ["", f"{device}:", "", speed_table(_json(told))]
    if options.embed:
        lines += ["", "## `seqgraph embed`, 753M"]
    for told in options.embed:
        lines += ["", "```", told.read_text().partition("\n## ")[0].strip(), "```"]
    lines += ["", RAN, "", ran.strip(), "", "```", "python benchmarks/proteins/pretrain_gpu.py pack "
              "--data swissprot2014/swissprot_2014_01.tsv.xz --out proteins.tsv.xz"]  # fmt: skip
    lines += [command_of(one) for one in (*tunes, *finals)]
    lines.append("python benchmarks/proteins/downstream.py pack --data /path/to/protein --out TASKS")
    lines += [*map(command_of, [*measured, *map(_json, options.baselines)]), *options.also]
    return "\n".join([*lines, "```"]) + "\n"


def merged(several: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of several tables; of a model and kind, and of the features that need no model, those of the first that
    has them."""
    first: dict[tuple[str, str], int] = {}
    found = []
    for number, rows in enumerate(several):
        for r in rows:
            if first.setdefault((r["model"], r["kind"]), number) == number:
                found.append(r)
    return found


def proteins_of(finals: list[dict[str, Any]]) -> str:
    """How many proteins the models were trained on, by size where that differs."""
    many = {
        size.upper(): r["proteins"] for final in finals for r in final["results"] for size in sizes_of([r["preset"]])
    }
    if len(set(many.values())) == 1:
        return f"{next(iter(many.values())):,}"
    return " and ".join(f"{proteins:,} (at {size})" for size, proteins in many.items())


def command_of(said: dict[str, Any]) -> str:
    """The command of a stage, without the folders of the machine that it ran on."""
    words: list[str] = said["command"]
    named = {"--work": "WORK", "--final": "WORK/final", "--out": "OUT"}
    for i, word in enumerate(words[:-1]):
        if word in named:
            words = [*words[: i + 1], named[word], *words[i + 2 :]]
        elif word == "--data":
            words = [*words[: i + 1], Path(words[i + 1]).name.replace("protein-tasks", "TASKS"), *words[i + 2 :]]
    return f"python {shlex.join(words)}"


def draw(speeds: list[list[dict[str, Any]]], devices: list[str], path: Path) -> None:
    """Tokens a second against length, a row each measurement; dotted where LC-PLM overtakes ESM-2 with fused attention.

    Args:
        speeds: what downstream_speed.py wrote, one size each.
        devices: what each was measured on; up to the first comma stands in the title.
        path: of the SVG.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "proteins", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(len(speeds), 2, figsize=(10, 4 * len(speeds)), layout="constrained", squeeze=False)
    for axes, speed, device in zip(grid, speeds, devices, strict=True):
        for axis, way in zip(axes, ("forward", "training"), strict=True):
            found: dict[str, dict[int, float]] = {}
            for r in speed:
                if r["way"] == way and "failed" not in r:
                    found.setdefault(r["model"], {})[r["length"]] = r["tokens_per_second"]
            for model, style in LINES.items():
                if line := found.get(model):
                    axis.plot(list(line), list(line.values()), style, marker="o", ms=3, label=model)
            point = crossing_point(found.get("lc-plm", {}), found.get("esm2 sdpa", {}))
            said = "ESM-2 ahead up to the longest" if point is None else f"LC-PLM ahead from {point:,.0f} on"
            if point is not None and point > min(found["lc-plm"]):
                axis.axvline(point, color="grey", ls=":")
            elif point is not None:
                said = "LC-PLM ahead at every length"
            axis.set(xscale="log", yscale="log", ylim=(3e4, 4e6))
            axis.set(xlabel="tokens of a protein", ylabel="tokens a second")
            axis.set_xticks(lengths := sorted({r["length"] for r in speed}), [f"{n:,}" for n in lengths], fontsize=7)
            axis.minorticks_off()
            axis.set_title(f"{speed[0]['size'].upper()}, {way}, {device.partition(',')[0]}\n{said}", fontsize=9)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


SPEEDS = """\
bf16, random weights and letters, proteins of one length in batches of 32,768 tokens (one protein where it is longer);
median of 4 steps (2 or 3 of the slowest) after two warm-ups. "esm2 sdpa" is fair-esm's class with torch's fused
attention, "esm2 fair-esm" the class as it is."""
CARD = """# lc-plm-8m

LC-PLM (bidirectional Mamba masked language model; Wang et al. 2024, arXiv 2411.08909) with {parameters:,} parameters,
our own weights in float16. `seqgraph embed lc-plm-8m proteins.fasta OUT` finds it by this name.

| | |
|---|---|
| data | Swiss-Prot 2014_01 (UniProt Consortium, CC BY 4.0): one of each of {proteins:,} clusters at 50 % identity |
| training | {tokens:,} tokens in {steps:,} steps, learning rate {lr:g}, seed {seed}, bf16, on one {device} |
| command | `{command}` |
| held-out loss | {test:.4f} nats a masked residue (residue frequencies: {unigram}); validation {valid:.4f} |
| by length | {bins} |
| licence | Apache-2.0, that of the repository; the data's CC BY 4.0 asks to name UniProt |

## What it is worth

A small model after a very short training, for demonstrations and tests: not for decisions, and no replacement for the
released ESM-2, which has seen far more. Beside an ESM-2 of the same size and training, random weights and features that
need no model (`benchmarks/results/proteins.md`; over this model and another seed's). The counts follow a rule, whatever
is significant: that page says which of them are results, and which noise.

{worth}
"""


def ship(source: Path, baselines: list[Path], target: Path) -> None:
    """Unpack the weights, if they are better than what is there, and write their card."""
    said, weights = _json(source / "final.json"), source / f"{SHIPPED}.tar"
    r = best_of(said["results"], SHIPPED)
    if r is None or not weights.is_file():
        sys.exit(f"{source} has no training of {SHIPPED} with weights")
    there, new = target / SHIPPED / "metrics.json", r["valid"]["loss"]
    old = _json(there)["valid"]["loss"] if there.is_file() else float("inf")
    if new >= old:
        sys.exit(f"not shipped: validation loss {new:.4f}, of those that are there {old:.4f}")
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(weights) as archive:
        archive.extractall(target, filter="data")
    file = target / SHIPPED / "config.json"
    saved = _json(file)
    saved["run"]["data"]["path"] = Path(saved["run"]["data"]["path"]).name
    file.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n")
    bins = ", ".join(f"{NAMES[name]}: {loss:.3f}" for name in NAMES if (loss := loss_of(r, name)) is not None)
    unigram = f"{r['unigram']:.4f}" if r["unigram"] else "not measured"
    size = SHIPPED.rpartition("-")[2]
    rows = merged([_json(file)["rows"] for file in (source / "rows.json", *baselines)])
    card = CARD.format(**{**r, "unigram": unigram, "bins": bins, "command": command_of(said),
                          "test": r["test"]["loss"], "valid": new,
                          "worth": "\n".join(by_task(rows, size))})  # fmt: skip
    (target / SHIPPED / "MODEL_CARD.md").write_text(card)
    print(f"{target / SHIPPED}: {sum(f.stat().st_size for f in (target / SHIPPED).iterdir()):,} bytes; validation loss "
          f"{new:.4f}, before {old:.4f}")  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["page", "ship"])
    parser.add_argument("--from", dest="source", nargs="+", type=Path, required=True, help="folders of what came back")
    parser.add_argument(
        "--baselines",
        nargs="+",
        type=Path,
        default=[],
        metavar="ROWS",
        help="rows.json of random weights and simple features that were measured before",
    )
    parser.add_argument("--search", nargs="+", type=Path, default=[], help="tune.json of further searches")
    parser.add_argument("--speed", nargs="+", type=Path, default=[], help="speed.json of downstream_speed.py")
    parser.add_argument("--speed-device", nargs="+", default=[], help="what each of them was measured on")
    parser.add_argument("--embed", nargs="+", type=Path, default=[], help="what benchmarks/proteins/embed.py printed")
    parser.add_argument("--also", nargs="+", default=[], help="further commands to list: of speed and embed")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.stage == "ship":
        ship(options.source[0], options.baselines, options.out or WEIGHTS)
    else:
        out = options.out or REPOSITORY / "benchmarks" / "results" / "proteins.md"
        out.write_text(page(options))
        if options.speed:
            draw([_json(told) for told in options.speed], options.speed_device, out.parent / PICTURE)


if __name__ == "__main__":
    main()
