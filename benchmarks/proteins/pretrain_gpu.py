"""LC-PLM beside ESM-2 of the same size: the same proteins, task, tokens and optimiser; learning rates by search.

    python benchmarks/proteins/pretrain_gpu.py pack  --data swissprot_2014_01.tsv.xz --out proteins.tsv.xz
    python benchmarks/proteins/pretrain_gpu.py tune  --data proteins.tsv.xz --work WORK --out OUT --limit 130 --mps
    python benchmarks/proteins/pretrain_gpu.py final --data proteins.tsv.xz --work WORK --out OUT --limit 600 --mps \\
        --trainings 8m=0,1 35m=0

``pack`` keeps every held-out protein and one of each of so many training clusters, drawn by a fixed seed. ``tune``
trains each model of the smallest size at each rate without the test proteins, with as many steps of warm-up as
``final``; chosen is the rate with the lowest validation loss. ``final`` takes it for every seed, and at another size
times the square root of the ratio of widths; it may be started while ``tune`` runs, and waits for it (``--wait``). The
rule is one for both models, and test proteins have no part in it.

All trainings of a stage run at once, a process each. They first measure their speed, all together and then the slower
model of each size; from that follows one number of steps for each size, so that all end within ``--limit`` seconds,
cosine and test included; ``--steps`` is the most of a size. At some shares of these steps (``--settle``) the finals
wait for one another, and the number is counted again from how long the last ones took: others may have come to the GPU
or gone. So all models of a size always have the same number of steps and one schedule, to its end. What the limit stops
all the same is stopped as by Ctrl-C, evaluated where it stands and marked. ``--resume`` goes on with what is in WORK,
with the same plans.

OUT gets tune.json or final.json, and of ``final`` the weights with the lowest validation loss of each model in fp16,
PRESET.tar, where they have at most 16 MiB. ESM-2 is fair-esm's class: proteins of a batch sorted by length and padded,
its attention computed by torch's fused kernels, which is the same function.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.processes import end, environment, say, sharing, start, tail
from benchmarks.proteins.planning import FAMILIES, calibrate, replan
from benchmarks.proteins.tables import pack, prepare
from benchmarks.proteins.training import one

BINS = ("loss_to_256", "loss_to_512", "loss_to_1024", "loss_to_2048", "loss_to_4096", "loss_over_4096")
WIDTHS = {"lc-plm-8m": 224, "lc-plm-35m": 448, "esm2-8m": 320, "esm2-35m": 480}
SEARCHED = "8m"  # the size of which rates are searched
WARMUP = 64
"""Steps, of a search as of a final: within a share of a short search's steps rates fail that a final can bear."""
LARGEST = 16 << 20  # bytes of weights that come back
TOLD = ("steps", "tokens", "complete", "seconds", "tokens_per_second", "peak_gib")


# ---------------------------------------------------------------------- all of them
def jobs_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Each training by name: its preset, size, rate (null where the search says it), seed and overrides."""
    wanted: list[tuple[str, str, float | None, int]] = []
    for text in options.trainings:
        size, _, seeds = text.partition("=")
        for seed in map(int, seeds.split(",")):
            for rate in options.rates if options.stage == "tune" else [None]:
                wanted += [(f"{family}-{size}", size, rate, seed) for family in FAMILIES]
    table = options.work.resolve() / f"{options.stage}.tsv"
    every = 1000 if options.stage == "tune" else 1
    fixed = [f"data.path={table}", "data.columns=null", f"train.max_tokens={options.tokens}", "train.epochs=1000",
             f"train.eval_every={every}", f"train.warmup={WARMUP}", "train.checkpoint_every=500", "train.workers=1",
             *options.set]  # fmt: skip
    return {
        preset + (f"-lr{rate:g}" if rate is not None else "") + f"-seed{seed}": {
            "stage": options.stage, "preset": preset, "size": size, "lr": rate, "seed": seed,
            "overrides": [f"seed={seed}", *fixed], "settle": options.settle if options.stage == "final" else [],
        }
        for preset, size, rate, seed in wanted
    }  # fmt: skip


def rates_of(options: argparse.Namespace, presets: list[str], until: float) -> dict[str, float]:
    """The rate of each preset: given, searched, or scaled from the searched size; waits for a search until then."""
    given = {preset: float(rate) for preset, _, rate in (text.partition("=") for text in options.lr)}
    note = options.work / "tuned.json"
    asked = {preset for preset in presets if preset not in given}
    while asked and not note.is_file() and time.monotonic() < until:
        time.sleep(0.1)
    tuned = {**(json.loads(note.read_text()) if note.is_file() else {}), **given}
    found = {}
    for preset in presets:
        base = f"{preset.rpartition('-')[0]}-{SEARCHED}"
        if preset not in tuned and base not in tuned:  # no reason to lose the call
            tuned[base] = sorted(options.rates)[len(options.rates) // 2]
            print(f"{note} has no rate of {base}: untuned, {tuned[base]:g}", flush=True)
        scale = math.sqrt(WIDTHS[base] / WIDTHS[preset])
        found[preset] = tuned[preset] if preset in tuned else float(f"{tuned[base] * scale:.3g}")
    return found


def run_all(options: argparse.Namespace, began: float) -> None:
    """Train everything at once; OUT has the results of what ended, all along."""
    deadline, folder = began + options.limit, options.work.resolve() / options.stage
    if not options.resume:
        shutil.rmtree(folder, ignore_errors=True)
    if options.stage == "tune":
        (options.work / "tuned.json").unlink(missing_ok=True)
    jobs = jobs_of(options)
    for name, job in jobs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        say(folder / name / "job.json", job)
    waiting = [name for name in jobs if not _done(folder / name / "result.json")]
    most = {size: int(steps) for size, _, steps in (text.partition("=") for text in options.steps)}
    with sharing(options.mps) as shared:
        env = {**environment(), **shared}
        commands = {n: [sys.executable, __file__, "one", "--work", str(folder / n)] for n in waiting}
        processes = {n: start(command, env, folder / n / "log.txt") for n, command in commands.items()}
        try:
            prepare(options.data, options.work)  # while they import
            if options.stage == "final" and not (folder / "rates.json").is_file():
                rates = rates_of(options, list(dict.fromkeys(j["preset"] for j in jobs.values())), began + options.wait)
                say(folder / "rates.json", rates)
                print(f"rates {rates}, {time.monotonic() - began:.0f} s in", flush=True)
            until, sizes = deadline - options.reserve, {name: jobs[name]["size"] for name in waiting}
            if waiting and not (folder / "plan.json").is_file():
                now = time.monotonic()
                ready, windows = now + 0.45 * (deadline - now), tuple(options.windows)
                steps = calibrate(folder, sizes, processes, windows, ready, until, options.margin, most)
                print(f"steps of {options.tokens:,} tokens: {steps}, {time.monotonic() - began:.0f} s in", flush=True)
            for number in range(len(options.settle)) if waiting and options.stage == "final" else ():
                if not (folder / f"replan-{number}.json").is_file():
                    steps = replan(folder, number, sizes, processes, until, options.margin, most)
                    print(f"planned again: {steps}, {time.monotonic() - began:.0f} s in", flush=True)
            ended = -1
            while time.monotonic() < deadline - options.stop:
                live = sum(process.poll() is None for process in processes.values())
                if ended != len(processes) - live:
                    ended = len(processes) - live
                    report(options, jobs, began)
                if not live:
                    break
                time.sleep(0.1)
        except TimeoutError as error:
            print(error)
        finally:
            end(processes.values(), max(1.0, deadline - 3 - time.monotonic()))
            said = report(options, jobs, began)
            if options.stage == "tune":
                say(options.work / "tuned.json", said["chosen"])
    for name in jobs:
        if not (folder / name / "result.json").is_file():
            print(f"--- {name} has no result:\n{tail(folder / name / 'log.txt')}", flush=True)
    print(f"ended {time.monotonic() - began:.0f} s in", flush=True)


def report(options: argparse.Namespace, jobs: dict[str, Any], began: float) -> dict[str, Any]:
    """Write STAGE.json of what has results, for ``tune`` also the rates that are chosen so far."""
    folder = options.work.resolve() / options.stage
    files = [file for name in jobs if (file := folder / name / "result.json").is_file()]
    results = [json.loads(file.read_text()) for file in files]
    plan, later = folder / "plan.json", sorted(folder.glob("replan-*.json"))
    said: dict[str, Any] = {
        "command": sys.argv, "results": results, "wall": round(time.monotonic() - began, 1),
        "plan": json.loads(plan.read_text()) if plan.is_file() else {},
        "replans": [json.loads(file.read_text()) for file in later],
    }  # fmt: skip
    presets = dict.fromkeys(r["preset"] for r in results)
    said["best"] = {p: r for p in presets if (r := best_of(results, p))}
    if options.stage == "tune":
        said["chosen"] = {p: chosen(results, p) for p in said["best"]}
    say(options.out / f"{options.stage}.json", said)
    return said


def _done(result: Path) -> bool:
    found = json.loads(result.read_text()) if result.is_file() else {}
    return bool(found.get("complete") or found.get("failed"))


def best_of(results: list[dict[str, Any]], preset: str) -> dict[str, Any] | None:
    """The result with the lowest validation loss; whole trainings before those that were stopped."""
    mine = [r for r in results if r["preset"] == preset and r["valid"].get("loss") is not None]
    return min(mine, key=lambda r: (not r["complete"], r["valid"]["loss"]), default=None)


def chosen(results: list[dict[str, Any]], preset: str) -> float:
    """The rate with the lowest validation loss, of whole trainings where there are any."""
    best = best_of(results, preset)
    assert best is not None
    return best["lr"]


def table_of(results: list[dict[str, Any]]) -> str:
    """A row for each training: losses of held-out proteins and by length, and speed."""
    head = ["model", "lr", "seed", "valid", "test", "≤256", "512", "1k", "2k", "4k", "long", *TOLD]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in results:
        bins = [r["test"].get(name) for name in BINS[:-1]]
        shown = [r["valid"].get("loss"), r["test"].get("loss"), *bins, r["long"].get("loss")]
        cells = [r["preset"], f"{r['lr']:g}", r["seed"], *("" if v is None else f"{v:.4f}" for v in shown)]
        lines.append("| " + " | ".join(map(str, [*cells, *(r[key] for key in TOLD)])) + " |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["pack", "tune", "final", "one"])
    parser.add_argument("--data", type=Path, help="the packed table; for pack: swissprot_2014_01.tsv.xz")
    parser.add_argument("--out", type=Path, help="folder of the results; for pack: the table to write")
    parser.add_argument("--work", type=Path, default=Path("runs/proteins"), help="folder of tables and runs")
    parser.add_argument("--clusters", type=int, default=60_000, help="pack: of the 126,357 training clusters")
    parser.add_argument("--longest", type=int, default=1022, help="pack: training proteins are cut to it")
    parser.add_argument("--trainings", nargs="+", metavar="SIZE=SEED,...", help="of both models; 8m=0 to tune, 8m=0,1")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3], help="tune: rates"
    )
    parser.add_argument("--lr", nargs="+", default=[], metavar="PRESET=LR", help="final: instead of the tuned rates")
    parser.add_argument("--wait", type=float, default=0, help="final: seconds to wait for a search in WORK")
    parser.add_argument("--tokens", type=int, default=16384, help="of a step")
    parser.add_argument("--limit", type=float, default=520, help="seconds for everything")
    parser.add_argument("--reserve", type=float, default=32, help="of them for tests and what is written")
    parser.add_argument("--stop", type=float, default=24, help="seconds before the limit when trainings are stopped")
    parser.add_argument("--margin", type=float, default=0.1, help="share of the time that the plan leaves unused")
    parser.add_argument("--windows", nargs=2, type=float, default=[8, 5], help="seconds of measuring: all, the slower")
    parser.add_argument(
        "--settle",
        nargs="*",
        type=float,
        default=[0.1, 0.5, 0.8, 0.95],
        metavar="SHARE",
        help="final: shares of the steps at which the models wait for one another and a new plan",
    )
    parser.add_argument("--steps", nargs="+", default=[], metavar="SIZE=N", help="at most so many of a size")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more overrides, for both models")
    parser.add_argument("--mps", action="store_true", help="the processes' kernels run side by side")
    parser.add_argument("--resume", action="store_true", help="go on with the trainings in WORK")
    options = parser.parse_args()
    options.trainings = options.trainings or [f"{SEARCHED}=0" if options.stage == "tune" else f"{SEARCHED}=0,1"]
    if options.stage == "one":
        one(options.work)
        return
    if options.stage == "pack":
        pack(options.data, options.out, options.clusters, options.longest)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    run_all(options, began)
    said = json.loads((options.out / f"{options.stage}.json").read_text())
    best = said["best"]
    for preset, r in best.items() if options.stage == "final" else ():
        half = options.work / "final" / r["name"] / "half"
        weights = half / "model.safetensors"
        if weights.is_file() and weights.stat().st_size <= LARGEST:
            with tarfile.open(options.out / f"{preset}.tar", "w") as archive:
                archive.add(half, preset)
    print(table_of(said["results"]) + "".join(f"\n{p}: lr {r['lr']:g}, seed {r['seed']}" for p, r in best.items()))


if __name__ == "__main__":
    main()
