"""Several recommenders trained at once on one GPU, each a process, stopped and judged in time.

    python benchmarks/recommendation/train_gpu.py --list smoke --data .carry/rec/data --out OUT --limit 300
    python benchmarks/recommendation/train_gpu.py --list ml-1m amazon --data DATA --out OUT --limit 540 --jobs 8
    python benchmarks/recommendation/train_gpu.py --run "name=ml-1m seed=3 model.dropout=0.2" --data DATA --out OUT
    python benchmarks/recommendation/train_gpu.py --show OUT/results.json [OUT2/results.json ...]

A run still going when the time is up is stopped as Ctrl-C does it and tested at its best epoch so far (marked with *).
OUT gets results.json (every run's configuration, metrics, seconds, memory) and runs.tar.gz (log, configuration and each
user's rank of each run), from which ``seqgraph rec compare`` gives intervals once unpacked. --weights packs those too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
STOP_SECONDS = 40
"""Kept back at the end for saving and judging what is stopped."""

_OTHERS = {
    "gru4rec": "model.name=gru4rec model.d_model={d} model.d_hidden=256 model.dropout={p}",
    "lrurec": "model.name=lrurec model.d_model={d} model.n_layers=2 model.dropout={p}",
}
_SETS = {"beauty": "Beauty", "sports": "Sports_and_Outdoors", "toys": "Toys_and_Games", "video-games": "Video_Games"}


def _tuned(name: str, preset: str, **values: list[Any]) -> list[str]:
    """One run for each value, everything else as in the preset."""
    return [
        f"{name}-{key.rpartition('__')[2]}-{value}={preset} {key.replace('__', '.')}={value} seed=0"
        for key, many in values.items()
        for value in many
    ]


LISTS: dict[str, list[str]] = {
    "smoke": [
        *(
            f"smoke-{p}={p} train.max_steps=30 train.warmup=0"
            for p in ("ml-1m", "ml-1m-sasrec", "ml-1m-faithful", "toys")
        ),
        "smoke-sasrec-bf16=ml-1m-sasrec train.precision=bf16 train.max_steps=30 train.warmup=0",
        "smoke-mamba-bf16=ml-1m train.precision=bf16 train.max_steps=30 train.warmup=0",
        "smoke-ssd=ml-1m model.mixer=ssd train.max_steps=30 train.warmup=0",
        "smoke-cloze=bimamba4rec data.file=ml-1m.txt.gz data.max_history=200 train.max_steps=30 train.warmup=0",
        *(f"smoke-{n}=ml-1m {o.format(d=64, p=0.2)} train.max_steps=30 train.warmup=0" for n, o in _OTHERS.items()),
    ],
    "ml-1m": [f"{p}-{s}={p} seed={s}" for s in SEEDS for p in ("ml-1m", "ml-1m-sasrec")],
    "faithful": [
        *(f"ml-1m-faithful-{s}=ml-1m-faithful seed={s}" for s in SEEDS),
        *(f"beauty-faithful-{s}=mamba4rec-faithful data.file=Beauty.txt.gz seed={s}" for s in SEEDS),
        "ml-1m-faithful-two-layers=ml-1m-faithful model.n_layers=2 seed=0",
    ],
    "amazon": [
        f"{short}{suffix}-{s}={preset} data.file={file}.txt.gz seed={s}"
        for s in SEEDS
        for short, file in _SETS.items()
        for suffix, preset in (("", "beauty"), ("-sasrec", "beauty-sasrec"))
    ],
    "others": [
        *(f"ml-1m-{n}-{s}=ml-1m {o.format(d=128, p=0.3)} seed={s}" for s in SEEDS for n, o in _OTHERS.items()),
        *(f"beauty-{n}-{s}=beauty {o.format(d=64, p=0.5)} seed={s}" for s in SEEDS for n, o in _OTHERS.items()),
        "ml-1m-cloze-0=bimamba4rec data.file=ml-1m.txt.gz data.max_history=200 model.d_model=128 seed=0",
        "beauty-cloze-0=bimamba4rec data.file=Beauty.txt.gz model.dropout=0.5 seed=0",
    ],
    "tune-ml-1m": [
        *_tuned(
            "m",
            "ml-1m",
            model__dropout=[0.2, 0.4],
            model__n_layers=[1, 3],
            model__d_model=[64, 256],
            model__norm=["pre"],
            model__mixer=["ssd"],
            data__max_history=[100, 400],
            train__lr=["1e-3", "4e-3"],
            train__weight_decay=[0.1],
        ),
        *_tuned("s", "ml-1m-sasrec", model__dropout=[0.2, 0.4], model__norm=["post"], model__n_heads=[1, 4]),
    ],
    "tune-beauty": [
        *_tuned(
            "b",
            "beauty",
            model__dropout=[0.4, 0.6, 0.7],
            model__n_layers=[2],
            model__d_model=[128],
            model__residual=["false"],
            model__norm=["pre"],
            task__loss=["softmax", "gbce"],
            train__lr=["5e-4", "2e-3"],
            train__weight_decay=[0.1],
        ),
        *_tuned("bs", "beauty-sasrec", model__dropout=[0.3, 0.4, 0.6], task__loss=["softmax"], model__norm=["post"]),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", nargs="+", default=[], choices=LISTS)
    parser.add_argument("--run", action="append", default=[], metavar="NAME=PRESET KEY=VALUE ...")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--only", default=".", metavar="REGEX", help="of the runs' names")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    parser.add_argument("--limit", type=float, default=540.0, help="seconds of wall-clock time for everything")
    parser.add_argument("--jobs", type=int, default=6, help="processes at a time")
    parser.add_argument("--mps", action="store_true", help="let the processes' kernels run side by side")
    parser.add_argument("--weights", action="store_true", help="pack the best weights too")
    parser.add_argument("--show", nargs="+", type=Path, metavar="RESULTS")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(**json.loads(options.worker))
        return
    if options.show:
        show([row for path in options.show for row in json.loads(path.read_text())])
        return
    runs = [text for name in options.list for text in LISTS[name]] + options.run
    runs = [text for text in runs if re.search(options.only, text.partition("=")[0])]
    if not runs or options.data is None:
        parser.error("say what to run (--list, --run) and where the data are (--data)")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, side_by_side(options.mps):
        results = train_all(runs, options, Path(folder))
        (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        pack(Path(folder), options.out / "runs.tar.gz", options.weights)
    show(results)


def train_all(runs: list[str], options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Keep ``jobs`` processes going until the time is up; the results in the order of the runs."""
    deadline = time.monotonic() + options.limit - STOP_SECONDS
    waiting, going, files = list(runs), {}, {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
    while waiting or going:
        late = time.monotonic() > deadline
        while waiting and len(going) < options.jobs and not late:
            name, _, rest = waiting.pop(0).partition("=")
            job = {
                "name": name,
                "words": [*rest.split(), *options.set],
                "data": str(options.data),
                "run": str(folder / name),
            }
            log = (folder / f"{name}.log").open("w")
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
            files[name] = Path(job["run"] + ".json")
            going[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if late:
            for process in going.values():
                if not getattr(process, "told", False):
                    process.send_signal(signal.SIGINT)
                    process.told = True  # type: ignore[attr-defined]
            if time.monotonic() > deadline + STOP_SECONDS - 5:
                for process in going.values():
                    process.kill()
            if not going:
                break
        for name in [name for name, process in going.items() if process.poll() is not None]:
            code = going.pop(name).returncode
            if not files[name].is_file():
                tail = (folder / f"{name}.log").read_text().strip().splitlines()[-6:]
                print(f"{name}: no result (exit {code})", *tail, sep="\n    ", flush=True)
        time.sleep(0.2)
    if waiting:
        print("not begun:", ", ".join(text.partition("=")[0] for text in waiting))
    return [json.loads(path.read_text()) for path in files.values() if path.is_file()]


def work(name: str, words: list[str], data: str, run: str) -> None:
    """Train one, judge it on the test events, and write what came of it beside the run's folder."""
    import torch

    from seqgraph.config import load_config
    from seqgraph.train.run import train
    from seqgraph.train.state import Interrupted
    from seqgraph.train.store import read_log
    from seqgraph_mamba4rec.judged import evaluate_users

    preset, *overrides = words
    begun, cut, folder = time.monotonic(), False, Path(run)
    try:
        train(load_config(preset, overrides, data_root=data), output=folder, quiet=True)
    except Interrupted:
        cut = True
    log, config = read_log(folder), json.loads((folder / "config.json").read_text())
    judged, _ = evaluate_users(folder, "test", k=(1, 5, 10, 20))
    best = max(log, key=lambda row: row.get("valid_" + monitor(config), -1.0))
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    result = {
        "name": name,
        "words": words,
        "config": config["run"],
        "data": judged.data,
        "parameters": config["facts"]["parameters"],
        "cut": cut,
        "epochs": len(log),
        "best_epoch": best["epoch"],
        "seconds": round(time.monotonic() - begun, 1),
        "epoch_seconds": round(statistics.median(row["seconds"] for row in log), 2),
        "peak_mib": round(peak),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "valid": {key.removeprefix("valid_"): value for key, value in best.items() if key.startswith("valid_")},
        "test": judged.metrics,
    }
    Path(run + ".json").write_text(json.dumps(result))


def monitor(config: dict[str, Any]) -> str:
    """What picked the best epoch."""
    task = config["run"]["task"]
    k = task["k"] if isinstance(task["k"], int) else task["k"][0]
    return f"NDCG@{k}" + ("-unseen" if task["select_by"] == "unseen" else "")


def pack(folder: Path, archive: Path, weights: bool) -> None:
    """Logs, configurations and ranks; with ``weights`` the best weights."""
    wanted = {"log.csv", "log.jsonl", "config.json", "metrics.json", "ranks-test.json"}
    if weights:
        wanted |= {"model.safetensors", "assets.json"}
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and "last" not in inside.parts and (path.name in wanted or path.suffix == ".log"):
                tar.add(path, inside)


def show(results: list[dict[str, Any]]) -> None:
    """One line a run, then mean and deviation over the seeds."""
    columns = ("HR@10", "NDCG@10", "HR@10-unseen", "NDCG@10-unseen")
    print(f"{'run':28}{'epochs':>9}{'s/ep':>7}{'MiB':>7}" + "".join(f"{c:>15}" for c in ("valid", *columns)))
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault(" ".join(w for w in row["words"] if not w.startswith("seed=")), []).append(row)
        picked = row["valid"].get(monitor({"run": row["config"]}), float("nan"))
        star = "*" if row["cut"] else ""
        epochs = f"{row['best_epoch']}/{row['epochs']}{star}"
        figures = "".join(f"{value:15.4f}" for value in (picked, *(row["test"][c] for c in columns)))
        print(f"{row['name']:28}{epochs:>9}{row['epoch_seconds']:7.2f}{row['peak_mib']:7}{figures}")
    for rows in groups.values():
        if len(rows) > 1:
            name = re.sub(r"-\d+$", "", rows[0]["name"])
            values = [[row["test"][c] for row in rows] for c in columns]
            cells = "".join(f"{statistics.mean(v):8.4f}±{statistics.stdev(v):.4f}" for v in values)
            print(f"{name + f' ({len(rows)} seeds)':66}{cells}")


@contextmanager
def side_by_side(wanted: bool) -> Iterator[None]:
    """NVIDIA's multi-process service for a while, if it is wanted and starts."""
    if not wanted:
        yield
        return
    with tempfile.TemporaryDirectory() as pipes:
        os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": pipes, "CUDA_MPS_LOG_DIRECTORY": pipes}
        try:
            started = subprocess.run(["nvidia-cuda-mps-control", "-d"], timeout=20).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            started = False
        if not started:
            print("no multi-process service: the processes take turns")
            del os.environ["CUDA_MPS_PIPE_DIRECTORY"], os.environ["CUDA_MPS_LOG_DIRECTORY"]
        try:
            yield
        finally:
            if started:
                subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, timeout=20, check=False)


if __name__ == "__main__":
    main()
