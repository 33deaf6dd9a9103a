"""Downstream tasks of trained models in one table, beside simple features and random weights.

    python benchmarks/proteins/downstream.py pack  --data /path/to/protein --out PACKED
    python benchmarks/proteins/downstream.py table --data PACKED --out OUT --final WORK/final --gpus 0 1 --limit 140
    python benchmarks/proteins/downstream.py edges --data PACKED --out OUT [--splits bfs dfs] [--split-seeds 0]

``pack`` copies what the tasks read, and of Swiss-Prot only proteins of the task on function. ``table`` measures every
model on every task, some dozen processes at once, each a model and some tasks: the trained models of ``--final`` (the
folder of ``pretrain_gpu.py final``; the first ``--seeds`` of each), the same presets with random weights, and features
that need no model. ``--untrained PRESET ...`` without ``--final`` measures the latter two alone, before anything is
trained; with it, these too, whatever FINAL holds. ``--kinds`` names those that are measured: random weights and simple
features are the same whatever was trained. Of a training that was stopped the last weights are measured. With
``--stage-two`` the best LC-PLM of ``--size`` also learns from SHS27k's training interactions of a split
(``lc-plm-g-8m``) and is probed on that split, alone and beside neighbours. Every process writes what it has after each
task; what is not ready after ``--limit`` seconds is missing. ``--resume`` leaves out what WORK has. OUT gets rows.json
and table.md.

``edges`` writes OUT/shs27k-SPLIT-SEED.tsv, the training interactions of a split, for a second stage that is probed on
it: one that has walked over all of them has seen the answers.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.processes import end, environment, say, sharing, start, tail
from benchmarks.proteins.training import weights

# What one process does, the longest first
GROUPS = (
    ("secondary-structure",),
    ("function",),
    ("interactions", "yeast"),
    ("zero-shot",),
    ("remote-homology", "gb1"),
)
TASKS = tuple(task for group in GROUPS for task in group)
FOLDERS = ("secondary_structure_tests", "scope_astral40", "proteingym_partial", "ppi_shs27k", "ppi_yeast_pipr")
FLIP = ("secondary_structure.splits.zip", "gb1.splits.zip")
SIMPLE = "simple"
KINDS = ("trained", "random", SIMPLE)


def pack(data: Path, out: Path, proteins: int) -> None:
    """Copy what the tasks read."""
    from seqgraph_lc_plm.probes import sets

    for folder in FOLDERS:
        shutil.copytree(data / folder, out / folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    (out / "ppi_shs27k" / "protein.SHS148k.sequences.dictionary.tsv.gz").unlink(missing_ok=True)
    (out / "flip").mkdir(parents=True, exist_ok=True)
    for name in FLIP:
        shutil.copyfile(data / "flip" / name, out / "flip" / name)
    direct = sets.direct_functions(data)
    train, held, first = [], [], set()
    for row in sets.swissprot(data):
        accession, cluster, split, sequence = row
        if accession not in direct or (split == "train" and (cluster in first or len(sequence) > 2000)):
            continue
        first.add(cluster)
        (train if split == "train" else held).append(row)
    kept = sets.few(range(len(train)), proteins, [row[0] for row in train])
    rows = [train[i] for i in kept] + held
    target = out / sets.SWISSPROT
    target.mkdir(exist_ok=True)
    text = "".join("\t".join(row) + "\n" for row in rows)
    (target / "swissprot_2014_01.tsv.xz").write_bytes(lzma.compress(text.encode()))
    lines = "".join(f"{accession}\t{direct[accession]}\t\t\n" for accession in sorted(row[0] for row in rows))
    (target / "go_annotations.tsv.xz").write_bytes(lzma.compress(lines.encode()))
    shutil.copyfile(data / sets.SWISSPROT / "go_graph.tsv.xz", target / "go_graph.tsv.xz")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.1f} MB; of Swiss-Prot with functions {len(kept):,} of {len(train):,} training proteins "
          f"and {len(held):,} held-out ones")  # fmt: skip


# ---------------------------------------------------------------------- one process
def one(file: Path) -> None:
    """What the description FILE asks for, into FILE's folder: rows of one model, and after each task more."""
    job = json.loads(file.read_text())
    done = json.loads((file.parent / "rows.json").read_text()) if (file.parent / "rows.json").is_file() else {}
    path = second_stage(job, file.parent) if job["kind"] == "stage two" else job["path"]
    for task in job["tasks"]:
        if task not in done:
            began = time.perf_counter()
            rows = rows_of(task, job, path)
            done[task] = {"rows": rows, "seconds": round(time.perf_counter() - began, 1)}
            say(file.parent / "rows.json", done)


def rows_of(task: str, job: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The rows of a task: of a model, of its shape with random weights, or of features that need none."""
    import torch

    from seqgraph_lc_plm.models import open_model
    from seqgraph_lc_plm.probes import pairs
    from seqgraph_lc_plm.probes import tasks as how
    from seqgraph_lc_plm.probes.features import Embeddings

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # cuDNN makes a plan for each shape of a batch, and no two batches are alike.
    torch.backends.cuda.enable_cudnn_sdp(False)
    root, limit, tokens, bf16 = Path(job["data"]), job["examples"], job["tokens"], device == "cuda"
    named = []
    if job["kind"] != SIMPLE:
        network = untrained(job["model"], device) if job["kind"] == "random" else open_model(path, device)
        named = [(job["name"], network)]
    cache = Path(job["cache"])
    sources = [Embeddings(network, name, cache=cache, max_tokens=tokens, bf16=bf16) for name, network in named]
    same: dict[str, Any] = {"limit": limit, "simple": job["kind"] == SIMPLE}
    if task == "secondary-structure":
        rows = how.secondary_structure(root, sources, device=device, **same)
    elif task == "remote-homology":
        rows = how.remote_homology(root, sources, device=device, **same)
    elif task == "zero-shot":
        rows = how.zero_shot(root, named, max_tokens=tokens, bf16=bf16, **same)
    elif task == "gb1":
        rows = how.gb1(root, sources, **same)
    elif task == "interactions":
        rows = [
            row
            for split in job["splits"]
            for seed in job["split_seeds"]
            for row in pairs.interactions(root, sources, splits=[split], seeds=[seed], device=device, **same)
        ]
    elif task == "yeast":
        rows = pairs.yeast(root, sources, device=device, **same)
    else:
        rows = pairs.function(root, sources, device=device, least=job["least"], **same)
    about = {key: job[key] for key in ("model", "kind", "seed")}
    return [{**asdict(row), **about} for row in rows]


def untrained(preset: str, device: str) -> Any:
    """The model of a preset with the weights that training would begin with."""
    import torch

    import seqgraph as sg
    from seqgraph.config import load_config

    config = load_config(preset)
    torch.manual_seed(0)
    return sg.create_model(config.model.name, **config.model.fields).to(device).eval()


def second_stage(job: dict[str, Any], folder: Path) -> str:
    """Train on the interactions of a split's training part, from a model's weights; the run."""
    import seqgraph as sg
    from seqgraph_lc_plm.probes.pairs import training_edges

    run, edges = folder / "run", folder / "edges.tsv"
    if (run / "metrics.json").is_file():
        return str(run)
    shutil.rmtree(run, ignore_errors=True)
    edges.write_text(training_edges(Path(job["data"]), job["splits"][0], job["split_seeds"][0]))
    proteins = Path(job["data"]).resolve() / "ppi_shs27k" / "protein.SHS27k.sequences.dictionary.tsv.gz"
    words = [f"data.path={edges.resolve()}", f"data.sequences={proteins}", f"train.weights={job['path']}", "seed=0"]
    sg.train(f"lc-plm-g-{job['size']}", [*words, *job["set"]], output=run, quiet=True)
    return str(run)


# ---------------------------------------------------------------------- all of them
def models_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is measured: simple features, the trained models, and each preset with random weights."""
    found: dict[str, list[tuple[bool, float, int, str]]] = {preset: [] for preset in options.untrained or ()}
    files = sorted(options.final.glob("*/result.json")) if options.final is not None else []
    for file in files:
        result = json.loads(file.read_text())
        path = weights(file.parent / "run", result["complete"])
        if path.is_dir() and not result["failed"]:
            loss = result["valid"].get("loss", float("inf"))
            one_of = (not result["complete"], loss, result["seed"], str(path.resolve()))
            found.setdefault(result["preset"], []).append(one_of)
        else:
            print(f"{file.parent} has no weights", flush=True)
    if options.final is not None and not any(found.values()):
        print(f"{options.final} holds no trained model: pretrain_gpu.py final makes them", flush=True)
    if not found:
        sys.exit("nothing to measure: give --final FOLDER with trained models, --untrained PRESET, or both")
    models: list[dict[str, Any]] = []
    for preset, runs in found.items():
        runs.sort()
        models += [{"model": preset, "kind": "trained", "seed": r[2], "path": r[3]} for r in runs[: options.seeds]]
    models += [{"model": preset, "kind": "random", "seed": 0, "path": ""} for preset in found]
    models.append({"model": SIMPLE, "kind": SIMPLE, "seed": None, "path": ""})
    return [m for m in models if m["kind"] in options.kinds]


def jobs_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The processes by name, the longest first."""
    models = models_of(options)
    common = {
        "data": str(options.data.resolve()), "tokens": options.tokens, "examples": options.examples,
        "splits": options.splits, "split_seeds": options.split_seeds, "least": options.least, "size": options.size,
        "set": options.set, "cache": str(options.work.resolve() / "cache"),
    }  # fmt: skip
    jobs: dict[str, dict[str, Any]] = {}
    if options.stage_two and "interactions" in options.tasks:
        preset = f"lc-plm-{options.size}"
        first = next((m for m in models if m["model"] == preset and m["kind"] == "trained"), None)
        for split in options.splits if first is not None else ():
            seed = options.split_seeds[0]
            more = {"tasks": ["interactions"], "splits": [split], "split_seeds": [seed], "name": "stage two"}
            jobs[f"stage-two-{split}"] = {**common, **first, **more, "kind": "stage two"}
    for group in GROUPS:
        if tasks := [task for task in group if task in options.tasks]:
            for m in models:
                name = f"{m['model']}-{m['kind']}-{m['seed']}"
                jobs[f"{tasks[0]}-{name}"] = {**common, **m, "tasks": tasks, "name": name}
    return jobs


def run_all(options: argparse.Namespace, began: float, shared: dict[str, str]) -> None:
    """All rows that are there in time; OUT has them all along."""
    folder = options.work.resolve() / "downstream"
    if not options.resume:
        shutil.rmtree(folder, ignore_errors=True)
    jobs = jobs_of(options)
    env, waiting = {**environment(), **shared}, []
    for name, job in jobs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        say(folder / name / "job.json", job)
        have = json.loads((folder / name / "rows.json").read_text()) if (folder / name / "rows.json").is_file() else {}
        if any(task not in have for task in job["tasks"]):
            waiting.append(name)
    running: dict[str, subprocess.Popen[bytes]] = {}
    turn = 0
    # The last seconds are for ending what still runs.
    until, told = began + options.limit - 3, began
    try:
        while (waiting or running) and time.monotonic() < until:
            while waiting and len(running) < options.jobs:
                name = waiting.pop(0)
                gpu = {"CUDA_VISIBLE_DEVICES": options.gpus[turn % len(options.gpus)]} if options.gpus else {}
                turn += 1
                command = [sys.executable, __file__, "one", "--out", str(folder / name / "job.json")]
                running[name] = start(command, {**env, **gpu}, folder / name / "log.txt")
            time.sleep(0.1)
            running = {name: process for name, process in running.items() if process.poll() is None}
            if time.monotonic() > told + 5:
                told = time.monotonic()
                report(options, jobs, began)
    finally:
        end(list(running.values()), 1)
        report(options, jobs, began, last=True)


def report(options: argparse.Namespace, jobs: dict[str, Any], began: float, last: bool = False) -> None:
    """Write rows.json and table.md of what is there; at last say also what is missing."""
    folder, rows, seconds = options.work.resolve() / "downstream", [], {}
    for name, job in jobs.items():
        file = folder / name / "rows.json"
        have = json.loads(file.read_text()) if file.is_file() else {}
        for task, found in have.items():
            rows += found["rows"]
            seconds[f"{name}: {task}"] = found["seconds"]
        if last and (missing := [task for task in job["tasks"] if task not in have]):
            print(f"--- {name} lacks {', '.join(missing)}:\n{tail(folder / name / 'log.txt', 3)}", flush=True)
    wall = round(time.monotonic() - began, 1)
    say(options.out / "rows.json", {"command": sys.argv, "rows": rows, "wall": wall, "seconds": seconds})
    (options.out / "table.md").write_text(pivot(rows) + "\n")
    if last:
        slow = sorted(seconds.items(), key=lambda kv: -kv[1])
        print("seconds: " + "; ".join(f"{k} {v:.0f}" for k, v in slow[:12]))
        print(f"\n{pivot(rows)}\nended {wall:.0f} s in", flush=True)


def pivot(rows: list[dict[str, Any]]) -> str:
    """A line for each task, data and probe: the mean over seeds of each model, the best simple features, random."""
    presets = list(dict.fromkeys(row["model"] for row in rows if row["kind"] == "trained"))
    columns = [*((p, "trained") for p in presets), *((p, "random") for p in presets)]
    columns += [(p, "stage two") for p in presets if any(r["kind"] == "stage two" for r in rows if r["model"] == p)]
    names = [f"{p}{'' if kind == 'trained' else ', ' + kind}" for p, kind in columns]
    head = ["task", "data", "probe", "measure", *names, "simple", "trivial", "n"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    keys = dict.fromkeys((r["task"], r["data"], probe_of(r), r["measure"]) for r in rows if r["kind"] != SIMPLE)
    for key in keys:
        mine = [r for r in rows if (r["task"], r["data"], r["measure"]) == (key[0], key[1], key[3])]
        cells = []
        for column in columns:
            values = [r["value"] for r in mine if (r["model"], r["kind"]) == column and probe_of(r) == key[2]]
            cells.append(f"{mean(values):.3f}" if values else "")
        for trivial in (False, True):
            found = [r["value"] for r in mine if r["kind"] == SIMPLE and (r["features"] == "none") == trivial]
            cells.append(f"{max(found):.3f}" if found else "")
        lines.append("| " + " | ".join([*key, *cells, f"{mine[0]['size']:,}"]) + " |")
    return "\n".join(lines)


def probe_of(row: dict[str, Any]) -> str:
    """The probe, and whether neighbours stand beside."""
    return row["head"] + (", beside neighbours" if row["features"].endswith("beside neighbours") else "")


def main() -> None:
    """See the module."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["pack", "edges", "table", "one"])
    parser.add_argument("--data", type=Path, help="folder of the tasks' data, whole or packed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--proteins", type=int, default=24_000, help="pack: training proteins for the task on function")
    parser.add_argument("--final", type=Path, help="folder of trained models")
    parser.add_argument("--untrained", nargs="+", metavar="PRESET", help="random weights of these and features alone")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="what is measured")
    parser.add_argument("--work", type=Path, default=Path("runs/proteins"), help="folder of rows and embeddings")
    parser.add_argument("--seeds", type=int, default=2, help="trained models of each preset, the best first")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--gpus", nargs="*", default=[], help="numbers of the GPUs, taken in turn")
    parser.add_argument("--mps", action="store_true", help="the processes' kernels run side by side")
    parser.add_argument("--jobs", type=int, default=40, help="processes at once")
    parser.add_argument("--splits", nargs="+", default=["bfs", "dfs"], help="of SHS27k's interactions")
    parser.add_argument("--split-seeds", nargs="+", type=int, default=[0, 1, 2], help="of these splits")
    parser.add_argument("--stage-two", action="store_true", help="LC-PLM-G on the first seed of each split")
    parser.add_argument("--size", default="8m", help="of the second stage")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the second stage")
    parser.add_argument("--examples", type=int, default=None, help="of each set at most, to try it out")
    parser.add_argument("--least", type=int, default=50, help="training proteins of a function that counts")
    parser.add_argument("--tokens", type=int, default=65536, help="in one forward pass")
    parser.add_argument("--limit", type=float, default=140, help="seconds for everything")
    parser.add_argument("--resume", action="store_true", help="leave out what WORK has")
    options = parser.parse_args()
    if options.stage == "one":
        one(options.out)
        return
    if options.stage == "pack":
        pack(options.data, options.out, options.proteins)
        return
    if options.stage == "edges":
        from seqgraph_lc_plm.probes.pairs import training_edges

        options.out.mkdir(parents=True, exist_ok=True)
        for how in options.splits:
            for seed in options.split_seeds:
                (options.out / f"shs27k-{how}-{seed}.tsv").write_text(training_edges(options.data, how, seed))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    with sharing(options.mps) as shared:
        run_all(options, began, shared)


if __name__ == "__main__":
    main()
