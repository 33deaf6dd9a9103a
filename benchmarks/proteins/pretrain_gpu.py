"""LC-PLM beside ESM-2 of the same size: the same proteins, task, tokens and optimiser; learning rates by search.

    python benchmarks/proteins/pretrain_gpu.py pack  --data swissprot_2014_01.tsv.xz --out proteins.tsv.xz
    python benchmarks/proteins/pretrain_gpu.py tune  --data proteins.tsv.xz --work WORK --out OUT --limit 150 --mps
    python benchmarks/proteins/pretrain_gpu.py final --data proteins.tsv.xz --work WORK --out OUT --limit 520 --mps

``pack`` keeps every held-out protein and one of each of so many training clusters, drawn by a fixed seed. ``tune``
trains each model at each rate without the test proteins and notes the rate with the lowest validation loss in
WORK/tuned.json; ``final`` trains each model with it for every seed and tests it. All trainings run at once, a process
each. They first measure their speed, all together and then the slower model's alone; from that follows one number of
steps for all that ends within ``--limit`` seconds, cosine and test included. What has not ended by then is stopped as
by Ctrl-C, evaluated where it stands and marked. ``--resume`` goes on with what is in WORK, with the same steps.

OUT gets tune.json or final.json, and of ``final`` the weights with the lowest validation loss of each model in fp16,
PRESET.tar, where they have at most 16 MiB. ESM-2 is fair-esm's class: proteins of a batch sorted by length and padded,
its attention computed by torch's fused kernels, which is the same function.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path
from random import Random
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.processes import end, environment, say, sharing, start, tail, wait

BINS = ("loss_to_256", "loss_to_512", "loss_to_1024", "loss_to_2048", "loss_to_4096", "loss_over_4096")
FAMILIES = ("lc-plm", "esm2")
LARGEST = 16 << 20  # bytes of weights that come back
TOLD = ("steps", "tokens", "complete", "seconds", "tokens_per_second", "peak_gib")


# ---------------------------------------------------------------------- data
def pack(source: Path, target: Path, clusters: int, longest: int) -> None:
    """Of swissprot_2014_01.tsv.xz every held-out protein, and the first of each of so many training clusters."""
    held, first = [], {}
    with lzma.open(source, "rt", encoding="ascii") as lines:
        for line in lines:
            _, cluster, split, sequence = line.rstrip("\n").split("\t")
            if split != "train":
                held.append((cluster, split, sequence))
            elif cluster not in first:
                first[cluster] = (cluster, split, sequence[:longest])
    kept = Random(0).sample(list(first.values()), min(clusters, len(first)))
    number: dict[str, int] = {}
    rows = [(str(number.setdefault(cluster, len(number))), split, text) for cluster, split, text in kept + held]
    text = "cluster\tsplit\tsequence\n" + "".join("\t".join(row) + "\n" for row in rows)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "pb": 0}]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lzma.compress(text.encode("ascii"), filters=filters))
    print(f"{len(kept):,} of {len(first):,} training clusters, {sum(len(row[2]) for row in kept):,} residues; "
          f"{len(held):,} held-out proteins; {target.stat().st_size:,} bytes")  # fmt: skip


def prepare(source: Path | None, work: Path) -> None:
    """The table as text, and once more without the test proteins, for the search."""
    whole, searched = work / "final.tsv", work / "tune.tsv"
    if whole.is_file() and searched.is_file():
        return
    if source is None or not source.is_file():
        sys.exit(f"{whole} is not there: give the packed table by --data")
    work.mkdir(parents=True, exist_ok=True)
    text = lzma.decompress(source.read_bytes()).decode("ascii") if source.suffix == ".xz" else source.read_text()
    rows = (line for line in text.splitlines(keepends=True) if line.split("\t")[1] != "test")
    for target, content in ((searched, "".join(rows)), (whole, text)):
        new = target.with_suffix(".new")
        new.write_text(content)
        new.replace(target)


# ---------------------------------------------------------------------- one training
def one(folder: Path) -> None:
    """The training that FOLDER/job.json describes: its speed, the number of steps from the runner, and the result."""
    import torch

    from seqgraph.config import load_config
    from seqgraph.errors import UserError
    from seqgraph.train import run as training
    from seqgraph.train.state import Interrupted

    # The trainer stops at the runner's signal; the tests that follow a training go on to their end.
    signal.signal(signal.SIGINT, lambda *_: None)
    # cuDNN makes a plan for each shape of a batch, and no two batches are alike.
    torch.backends.cuda.enable_cudnn_sdp(False)
    job = json.loads((folder / "job.json").read_text())
    while not (folder.parent.parent / f"{job['stage']}.tsv").is_file():
        time.sleep(0.05)
    # Read once: the training, its tests and the count of tokens would each read the table, seconds at a time.
    data = training.build_data(load_config(job["preset"], job["overrides"]))
    training.build_data = lambda config: data
    if not (folder.parent / "plan.json").is_file():
        measure(load_config(job["preset"], job["overrides"]), folder)
    steps = wait(folder.parent / "plan.json")["steps"]
    config, run = load_config(job["preset"], [*job["overrides"], f"train.max_steps={steps}"]), folder / "run"
    again = (run / "last").is_dir()
    if not again:
        shutil.rmtree(run, ignore_errors=True)
    began, complete, failed = time.monotonic(), True, ""
    try:
        training.train(config, output=run, resume=again, quiet=True)
    except Interrupted:
        complete = False
    except UserError as error:  # a rate too large: the loss is not finite
        complete, failed = False, str(error)
    trained = round(time.monotonic() - began, 1)
    lines = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").is_file() else []
    log = [json.loads(line) for line in lines]
    found: dict[str, Any] = {"valid": {}, "test": {}, "baseline": {}}
    if (run / "metrics.json").is_file():
        found = json.loads((run / "metrics.json").read_text())
    cuda = torch.cuda.is_available()
    reached = json.loads((run / "last" / "metrics.json").read_text()) if (run / "last").is_dir() else {}
    taken = found.get("steps", reached.get("steps", 0))
    tokens = tokens_of(config, taken)

    def tell() -> None:
        say(folder / "result.json", {
            **{key: job[key] for key in ("preset", "lr", "seed")}, "steps": taken,
            "planned": steps, "complete": complete, "failed": failed, "seconds": trained,
            "tokens_per_second": log[-1].get("tokens_per_second") if log else round(tokens / max(trained, 0.1), 1),
            "tflop_per_second": log[-1].get("tflop_per_second") if log else None,
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "parameters": json.loads((run / "config.json").read_text())["facts"]["parameters"],
            "valid": found["valid"], "test": found["test"], "unigram": found["baseline"].get("loss"),
            "curve": [[row["step"], round(row["train_loss"], 4), round(row.get("valid_loss", 0), 4)] for row in log],
            "tokens": tokens,
        })  # fmt: skip

    tell()
    if (run / "last").is_dir() and not failed:
        if not found["valid"]:  # stopped: tested where it stands, and told after each split
            for split in ("valid",) if job["stage"] == "tune" else ("valid", "test"):
                found[split] = training.evaluate(run / "last", split)
                tell()
        if job["stage"] == "final":
            keep(run, folder / "half")


def measure(config: Any, folder: Path) -> None:
    """Take training steps until the runner has a plan, and say how many tokens a second in each of its windows."""
    from itertools import cycle, islice

    import torch

    from seqgraph.train.batching import token_batches
    from seqgraph.train.fit import device_type
    from seqgraph.train.optimize import parameter_groups, undecayed
    from seqgraph.train.run import build_data, build_task

    data = build_data(config)
    device = torch.device(device_type(config.train))
    task = build_task(config, data)[0].to(device).train()
    loader = token_batches(data, "train", config.train.max_tokens, shuffle=True, seed=config.seed[0])
    batches = [batch.to(device) for batch in islice(loader, 8)]
    mean = sum(batch.num_tokens for batch in batches) / len(batches)
    fused = device.type == "cuda" or None
    optimizer = torch.optim.AdamW(parameter_groups(task, 0.01, undecayed(task)), lr=1e-5, fused=fused)
    endless = cycle(batches)

    def step() -> int:
        batch = next(endless)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            loss = task.training_step(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch.num_tokens

    for _ in range(len(batches)):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    say(folder / "warm.json", {"tokens": mean})
    plan, window = folder.parent / "plan.json", 0
    while not plan.is_file():
        asked = folder.parent / f"window-{window}.json"
        if not asked.is_file():
            time.sleep(0.02)
            continue
        told = json.loads(asked.read_text())
        if folder.name in told["who"]:
            began, done = time.monotonic(), 0
            while time.monotonic() < told["until"]:
                done += step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            say(folder / f"rate-{window}.json", {"rate": done / (time.monotonic() - began)})
        window += 1


def tokens_of(config: Any, steps: int) -> int:
    """Tokens in the first so many steps."""
    from seqgraph.train.batching import token_batches
    from seqgraph.train.run import build_data

    data = build_data(config)
    sampler: Any = token_batches(data, "train", config.train.max_tokens, shuffle=True, seed=config.seed[0]).sampler
    total, epoch = 0, 0
    while steps > 0:
        sampler.seek(epoch)
        many = min(steps, sampler.total())
        total += sum(sampler.tokens(i) for i in range(many))
        steps, epoch = steps - many, epoch + 1
    return total


# ---------------------------------------------------------------------- all of them
def jobs_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Each training by name: its preset, rate, seed and overrides."""
    presets = [f"{family}-{options.size}" for family in FAMILIES]
    if options.stage == "tune":
        wanted = [(preset, rate, options.seeds[0]) for rate in options.rates for preset in presets]
    else:
        given = dict(text.split("=") for text in options.lr)
        note = options.work / "tuned.json"
        tuned = json.loads(note.read_text()) if note.is_file() else {}
        for preset in presets:
            if preset not in {**tuned, **given}:  # no reason to lose the call
                tuned[preset] = sorted(options.rates)[len(options.rates) // 2]
                print(f"{note} has no rate of {preset}: untuned, {tuned[preset]:g}", flush=True)
        wanted = [(p, float(given.get(p, tuned.get(p))), seed) for seed in options.seeds for p in presets]
    table = options.work.resolve() / f"{options.stage}.tsv"
    every = 1000 if options.stage == "tune" else 1
    fixed = [f"data.path={table}", "data.columns=null", f"train.max_tokens={options.tokens}", "train.epochs=1000",
             f"train.eval_every={every}", "train.checkpoint_every=500", "train.workers=1", *options.set]  # fmt: skip
    return {
        f"{preset}-lr{rate:g}-seed{seed}": {
            "stage": options.stage, "preset": preset, "lr": rate, "seed": seed,
            "overrides": [f"train.lr={rate}", f"seed={seed}", *fixed],
        }
        for preset, rate, seed in wanted
    }  # fmt: skip


def planned(all_of: dict[str, float], slow_of: dict[str, float], seconds: float, tokens: float) -> int:
    """Steps that all trainings can take in so many seconds.

    Args:
        all_of: tokens a second of each while all run.
        slow_of: of the slower ones, once the faster ones have ended.
        seconds: that there are.
        tokens: of a step.
    """
    slow = min(all_of[name] for name in slow_of)
    fast = min((rate for name, rate in all_of.items() if name not in slow_of), default=float("inf"))
    alone = max(min(slow_of.values()), slow)
    # N tokens: N / fast seconds at the rate ``slow``, and what is left at ``alone``
    return max(20, int(alone * seconds / (1 + (alone - slow) / fast) / tokens))


def calibrate(
    folder: Path, processes: dict[str, Any], windows: tuple[float, float], ready: float, until: float, budget: float
) -> int:
    """The number of steps, once the processes are warm: those that live and are so by the time ``ready``.

    Args:
        folder: of the stage.
        processes: by name.
        windows: seconds of measuring all, and the slower family.
        ready: who is not warm by then is not measured, and starts with the plan.
        until: the time at which waiting for a rate ends.
        budget: the time at which all should have trained.

    Raises:
        TimeoutError: when none is warm.
    """

    def read(file: str, who: list[str], until: float) -> dict[str, dict[str, Any]]:
        missing = list(who)
        while missing and time.monotonic() < until:
            missing = [n for n in missing if not (folder / n / file).is_file() and processes[n].poll() is None]
            time.sleep(0.02)
        return {n: json.loads((folder / n / file).read_text()) for n in who if (folder / n / file).is_file()}

    def rates(number: int, who: list[str], seconds: float) -> dict[str, float]:
        say(folder / f"window-{number}.json", {"who": who, "until": time.monotonic() + seconds})
        return {name: told["rate"] for name, told in read(f"rate-{number}.json", who, until).items()}

    warmed = read("warm.json", list(processes), ready)
    while not warmed and time.monotonic() < until and any(process.poll() is None for process in processes.values()):
        warmed = read("warm.json", list(processes), min(until, time.monotonic() + 1))
    warm, all_of = [told["tokens"] for told in warmed.values()], rates(0, list(warmed), windows[0])
    if late := [name for name in processes if name not in all_of]:
        print(f"not ready in time: {', '.join(late)}\n{tail(folder / late[0] / 'log.txt')}", flush=True)
    if not all_of:
        raise TimeoutError("no training is ready")
    names = list(all_of)
    mean = {f: [r for name, r in all_of.items() if name.startswith(f)] for f in FAMILIES}
    slowest = min((f for f in FAMILIES if mean[f]), key=lambda f: sum(mean[f]) / len(mean[f]))
    slow_of = rates(1, [name for name in names if name.startswith(slowest)], windows[1])
    seconds = budget - time.monotonic()
    steps = planned(all_of, slow_of, seconds, sum(warm) / len(warm))
    say(folder / "plan.json", {"steps": steps, "together": all_of, "slower alone": slow_of, "seconds": seconds})
    return steps


def run_all(options: argparse.Namespace, began: float) -> None:
    """Train everything at once; OUT has the results of what ended, all along."""
    deadline, folder = began + options.limit, options.work.resolve() / options.stage
    if not options.resume:
        shutil.rmtree(folder, ignore_errors=True)
    jobs = jobs_of(options)
    for name, job in jobs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        say(folder / name / "job.json", job)
    waiting = [name for name in jobs if not _done(folder / name / "result.json")]
    with sharing(options.mps) as shared:
        env = {**environment(), **shared}
        commands = {n: [sys.executable, __file__, "one", "--work", str(folder / n)] for n in waiting}
        processes = {n: start(command, env, folder / n / "log.txt") for n, command in commands.items()}
        try:
            prepare(options.data, options.work)  # while they import
            if waiting and not (folder / "plan.json").is_file():
                print(f"{len(processes)} processes started {time.monotonic() - began:.0f} s in", flush=True)
                until = deadline - options.reserve
                ready, now = began + 0.45 * options.limit, time.monotonic()
                budget = until - options.margin * (until - now)
                steps = calibrate(folder, processes, tuple(options.windows), ready, until, budget)
                print(f"{steps} steps of {options.tokens:,} tokens, {time.monotonic() - began:.0f} s in", flush=True)
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
            end(list(processes.values()), max(1.0, deadline - 3 - time.monotonic()))
            report(options, jobs, began)
    for name in jobs:
        if not (folder / name / "result.json").is_file():
            print(f"--- {name} has no result:\n{tail(folder / name / 'log.txt')}", flush=True)
    print(f"ended {time.monotonic() - began:.0f} s in", flush=True)


def report(options: argparse.Namespace, jobs: dict[str, Any], began: float) -> dict[str, Any]:
    """Write STAGE.json of what has results, for ``tune`` also the rates that are best so far."""
    folder = options.work.resolve() / options.stage
    files = [file for name in jobs if (file := folder / name / "result.json").is_file()]
    results, plan = [json.loads(file.read_text()) for file in files], folder / "plan.json"
    said: dict[str, Any] = {
        "command": sys.argv, "results": results, "wall": round(time.monotonic() - began, 1),
        "plan": json.loads(plan.read_text()) if plan.is_file() else {},
    }  # fmt: skip
    said["best"] = {p: r for p in dict.fromkeys(r["preset"] for r in results) if (r := best_of(results, p))}
    if options.stage == "tune":
        said["chosen"] = {preset: r["lr"] for preset, r in said["best"].items()}
        say(options.work / "tuned.json", said["chosen"])
    say(options.out / f"{options.stage}.json", said)
    return said


def _done(result: Path) -> bool:
    found = json.loads(result.read_text()) if result.is_file() else {}
    return bool(found.get("complete") or found.get("failed"))


def best_of(results: list[dict[str, Any]], preset: str) -> dict[str, Any] | None:
    """The result with the lowest validation loss; whole trainings before those that were stopped."""
    mine = [r for r in results if r["preset"] == preset and r["valid"].get("loss") is not None]
    return min(mine, key=lambda r: (not r["complete"], r["valid"]["loss"]), default=None)


def keep(run: Path, target: Path) -> int:
    """The weights in fp16 and what is needed to load them, as a folder; its bytes of tensors."""
    from seqgraph.train.checkpoint import read_tensors, write_tensors

    best = run / "best" if (run / "best").is_dir() else run / "last"
    whole = read_tensors(best / "model.safetensors")
    # A tied head is one tensor, and stays one.
    half = {id(value): value.half() if value.is_floating_point() else value for value in whole.values()}
    target.mkdir(parents=True, exist_ok=True)
    write_tensors(target / "model.safetensors", {name: half[id(value)] for name, value in whole.items()})
    for name in ("config.json", "assets.json", "metrics.json", "MODEL_CARD.md"):
        shutil.copy(best / name, target / name)
    if (run / "metrics.json").is_file():  # with the test
        shutil.copy(run / "metrics.json", target / "metrics.json")
    return sum(value.nbytes for value in half.values())


def table_of(results: list[dict[str, Any]]) -> str:
    """A row for each training: loss of all held-out proteins and by length, and speed."""
    head = ["model", "lr", "seed", "valid", "test", "≤256", "512", "1k", "2k", "4k", ">4k", *TOLD]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in results:
        shown = [r["valid"].get("loss"), r["test"].get("loss"), *(r["test"].get(name) for name in BINS)]
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
    parser.add_argument("--work", type=Path, default=Path("/tmp/work/protein"), help="folder of tables and runs")
    parser.add_argument("--clusters", type=int, default=48_000, help="pack: of the 126,357 training clusters")
    parser.add_argument("--longest", type=int, default=1022, help="pack: training proteins are cut to it")
    parser.add_argument("--size", default="8m", choices=["8m", "35m"])
    parser.add_argument("--rates", nargs="+", type=float, default=[8e-4, 2e-3, 5e-3], help="tune: learning rates")
    parser.add_argument("--lr", nargs="+", default=[], metavar="PRESET=LR", help="final: instead of the tuned rates")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--tokens", type=int, default=32768, help="of a step")
    parser.add_argument("--limit", type=float, default=520, help="seconds for everything")
    parser.add_argument("--reserve", type=float, default=32, help="of them for tests and what is written")
    parser.add_argument("--stop", type=float, default=24, help="seconds before the limit when trainings are stopped")
    parser.add_argument("--margin", type=float, default=0.1, help="share of the time that the plan leaves unused")
    parser.add_argument("--windows", nargs=2, type=float, default=[8, 5], help="seconds of measuring: all, the slower")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more overrides, for both models")
    parser.add_argument("--mps", action="store_true", help="the processes' kernels run side by side")
    parser.add_argument("--resume", action="store_true", help="go on with the trainings in WORK")
    options = parser.parse_args()
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
        half = options.work / "final" / f"{preset}-lr{r['lr']:g}-seed{r['seed']}" / "half"
        weights = half / "model.safetensors"
        if weights.is_file() and weights.stat().st_size <= LARGEST:
            with tarfile.open(options.out / f"{preset}.tar", "w") as archive:
                archive.add(half, preset)
    print(table_of(said["results"]) + "".join(f"\n{p}: lr {r['lr']:g}, seed {r['seed']}" for p, r in best.items()))


if __name__ == "__main__":
    main()
