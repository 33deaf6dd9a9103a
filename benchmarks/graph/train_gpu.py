"""Many trainings at once on one GPU, in pieces: each a process of ``seqgraph train``, stopped and packed in time.

    python benchmarks/graph/train_gpu.py --list peptides nodes --data DATA --out OUT --limit 480 [--jobs 12] [--mps]
    python benchmarks/graph/train_gpu.py --list peptides nodes --data DATA --from OUT --out OUT2     # goes on
    python benchmarks/graph/train_gpu.py --run "name=peptides-func seed=3 train.epochs=50" --data DATA --out OUT

A run is stopped as Ctrl-C does it: it ends its step and saves its state. ``--from`` takes up every packed run that is
not finished, with its own configuration. What is packed: of finished runs the best weights, of others also what is
needed to go on; every log; in archives of at most 15 MiB. Unfinished runs are tested at their best epoch so far.

One thread a process: many processes share the cores. tf32 is on. With ``--mps`` the processes' kernels run side by
side through NVIDIA's multi-process service, if it starts; without, they take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).parents[2]
ROOTS = {
    "peptides": "peptides-func",
    "zinc": "zinc12k",
    "minesweeper": "heterophilous",
    "tolokers": "heterophilous",
    "ogbg": "ogbg-small",
}
TEST_SECONDS, STOP_SECONDS, PART = 25, 15, 15 << 20

# NAME=PRESET KEY=VALUE ..., in the order in which they begin. Epochs are fewer than in the presets where those do not
# fit into ten minutes; the schedule ends with them.
_GCN = "peptides-func-gcn train.max_tokens=4832 train.eval_tokens=38656 train.epochs=260"
_BOTH = "peptides-func-gmn-nodes model.mpnn=gcn model.d_model=104 model.n_layers=3 model.dropout=0.1 model.pe_size=32"
_WALK = "peptides-func-walk model.length=49 model.rate=0.2 model.n_layers=4 model.d_model=64 model.window=8"
_ORDERS = ("random", "degree", "rwse", "personalized-pagerank", "bfs")
LISTS: dict[str, list[str]] = {
    "peptides": [
        *(f"gcn-{seed}={_GCN} seed={seed}" for seed in (0, 1)),
        *(f"plus-{seed}=peptides-func-plus train.epochs=120 seed={seed}" for seed in (0, 1)),
        "published-0=peptides-func train.epochs=200 train.eval_tokens=38656 seed=0",
    ],
    # asks for message passing "gcn" in GMN
    "mixed": [
        f"mixed-{seed}={_BOTH} model.pe_width=28 model.pe_norm=true model.head_layers=3 train.max_tokens=9664"
        f" train.eval_tokens=38656 train.weight_decay=0.01 train.epochs=150 seed={seed}"
        for seed in (0, 1)
    ],
    "walk": [f"walk-0={_WALK} train.max_tokens=9664 train.eval_tokens=19328 train.epochs=80 seed=0"],
    "nodes": [
        *(f"minesweeper-{seed}=minesweeper seed={seed}" for seed in range(4)),
        *(f"tolokers-{seed}=tolokers seed={seed}" for seed in range(2)),
    ],
    "zinc": [f"zinc-{seed}=zinc-12k train.max_tokens=1482 train.epochs=120 seed={seed}" for seed in (0, 1)],
    "molecules": [
        f"{which}-{seed}=ogbg-mol{which} seed={seed}"
        for which in ("bace", "bbbp", "esol", "freesolv")
        for seed in (0, 1)
    ],
    "orders": [
        f"{order}-{way}=peptides-func model.order={order} model.direction={way} train.epochs=100 train.eval_every=2"
        " train.eval_tokens=38656 seed=0"
        for way in ("forward", "both")
        for order in _ORDERS
    ],
}


@dataclass
class Run:
    """One training.

    Attributes:
        name: also of its folder.
        preset: what is trained.
        overrides: of its configuration.
        folder: of the run.
        process: while it is running.
        test: what an unfinished run's best weights give.
    """

    name: str
    preset: str
    overrides: list[str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    test: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").is_file()

    def command(self, data: Path) -> list[str]:
        base = [sys.executable, "-m", "seqgraph", "train"]
        if (self.folder / "last").is_dir():
            return [*base, str(self.folder), f"data.root={self.root(data)}", "-o", str(self.folder), "--resume"]
        shutil.rmtree(self.folder, ignore_errors=True)  # stopped before its first checkpoint
        return [*base, self.preset, *self.overrides, f"data.root={self.root(data)}", "-o", str(self.folder)]

    def root(self, data: Path) -> Path:
        """Where its data are."""
        return data / next(place for key, place in ROOTS.items() if self.preset.startswith(key))

    def row(self) -> list[str]:
        """Name, epochs, best epoch, its metrics, seconds an epoch, state."""
        rows = [json.loads(line) for line in _lines(self.folder / "log.jsonl")]
        config = _json(self.folder / "config.json").get("run", {})
        best, done = _json(self.folder / "best" / "metrics.json"), _json(self.folder / "metrics.json")
        monitor = _monitor(config.get("task", {}), best.get("valid", {}))
        test = done.get("test", self.test)
        seconds = median(row["seconds"] for row in rows[-10:]) if rows else float("nan")
        parameters = _json(self.folder / "config.json").get("facts", {}).get("parameters", 0)
        return [
            self.name,
            f"{parameters:,}",
            f"{len(rows)}/{config.get('train', {}).get('epochs', '?')}",
            str(best.get("best_epoch", "")),
            monitor,
            _shown(best.get("valid", {}).get(monitor)),
            _shown(test.get(monitor)),
            f"{seconds:.2f}",
            "done" if done else "to go on" if (self.folder / "last").is_dir() else "failed",
        ]


COLUMNS = ["run", "parameters", "epochs", "best", "metric", "valid", "test", "s/epoch", "state"]


def _monitor(task: dict[str, Any], valid: dict[str, float]) -> str:
    return task.get("monitor") or next(iter(valid), "")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


# ---------------------------------------------------------------------- the machine
def environment(threads: int = 1) -> dict[str, str]:
    """Of the processes: where the packages are, one thread each, tf32, memory that follows ragged batches."""
    paths = [str(REPOSITORY / part) for part in ("", "kernels", "plugins")] + [os.environ.get("PYTHONPATH", "")]
    fixed = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **fixed, **dict.fromkeys(names, str(threads)), "OPENBLAS_NUM_THREADS": "1"}


@contextlib.contextmanager
def sharing(wanted: bool, folder: Path) -> Iterator[dict[str, str]]:
    """Variables for processes that share the GPU through the multi-process service, if it is wanted and works."""
    binary = shutil.which("nvidia-cuda-mps-control", path=f"{os.environ.get('PATH', '')}:/usr/local/nvidia/bin")
    if not wanted or binary is None:
        if wanted:
            print("mps: nvidia-cuda-mps-control is not there; the processes take turns")
        yield {}
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    given = {**os.environ, **own}
    control = subprocess.Popen([binary, "-f"], env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        probe = [sys.executable, "-c", "import torch; torch.zeros(1).cuda().sum().item()"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            if subprocess.run(probe, env={**environment(), **own}, timeout=40, capture_output=True).returncode == 0:
                print("mps: on")
                yield own
                return
        print("mps: does not work here; the processes take turns")
        yield {}
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([binary], input=b"quit\n", env=given, timeout=10, capture_output=True)
        control.terminate()


def warm(runs: list[Run], data: Path) -> None:
    """Put positional encodings and orders on disk with all cores, once for all runs that read them."""
    code = (
        "import sys; from seqgraph.config import load_config; from seqgraph.train.run import build_data, build_task\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        config = load_config(line.split()[0], line.split()[1:]); build_task(config, build_data(config))\n"
        "    except Exception as error:\n"
        "        print(line.split()[0], error)\n"
    )
    wanted: dict[tuple[str, ...], str] = {}
    for run in runs:
        encoding = tuple(o for o in run.overrides if o.startswith(("model.pe", "model.order", "data.")))
        wanted[(run.preset, *encoding)] = " ".join([run.preset, *run.overrides, f"data.root={run.root(data)}"])
    start = time.monotonic()
    lines = "\n".join(wanted.values()).encode()
    subprocess.run([sys.executable, "-c", code], input=lines, env=environment(os.cpu_count() or 1), check=False)
    print(f"encodings and orders: {time.monotonic() - start:.0f} s", flush=True)


# ---------------------------------------------------------------------- running
def train_all(runs: list[Run], data: Path, jobs: int, until: float, env: dict[str, str]) -> None:
    """Run them, so many at a time, in their order; stop what is running when the time has come, or at a signal."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: asked.append(n))
    waiting, running = [run for run in runs if not run.finished], []
    while (waiting or running) and time.monotonic() < until and not asked:
        while waiting and len(running) < jobs:
            run = waiting.pop(0)
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            with (run.folder.parent / f"{run.name}.txt").open("ab") as out:
                # a session of its own: Ctrl-C in a terminal reaches this process alone, which hands it on once
                run.process = subprocess.Popen(
                    run.command(data), env=env, stdout=out, stderr=out, cwd=REPOSITORY, start_new_session=True
                )
            running.append(run)
        time.sleep(0.2)
        running = [run for run in running if run.process is not None and run.process.poll() is None]
    for run in running:
        assert run.process is not None
        run.process.send_signal(signal.SIGINT)
    end = time.monotonic() + STOP_SECONDS
    for run in running:
        assert run.process is not None
        try:
            run.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            run.process.kill()  # the state of its last whole epoch is there


def test_all(runs: list[Run], until: float, env: dict[str, str]) -> None:
    """Test the best weights of unfinished runs."""
    started = {}
    for run in runs:
        if not run.finished and (run.folder / "best").is_dir():
            command = [sys.executable, "-m", "seqgraph", "evaluate", str(run.folder), "--json"]
            started[run.name] = (
                run,
                subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPOSITORY),
            )
    for run, process in started.values():
        try:
            out, _ = process.communicate(timeout=max(0.1, until - time.monotonic()))
            run.test = json.loads(out)["metrics"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            process.kill()


# ---------------------------------------------------------------------- packing
def pack(runs: list[Run], out: Path, budget: int) -> list[str]:
    """Archives in ``out``: every log, then the checkpoints of each run, as far as the budget goes.

    Returns:
        Names of the runs whose checkpoints found no room.
    """
    for old in out.glob("*.tar.gz"):
        old.unlink()
    with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
        for run in runs:
            for path in [run.folder.parent / f"{run.name}.txt", *run.folder.glob("*.*")]:
                if path.is_file():
                    archive.add(path, path.relative_to(run.folder.parent))
    spent, left_out, number = (out / "logs.tar.gz").stat().st_size, [], 0
    for run in sorted(runs, key=lambda run: run.finished):  # what has to go on comes first
        parts = [run.folder / name for name in (("best",) if run.finished else ("last", "best"))]
        one = out / f"{run.name}.part"
        with tarfile.open(one, "w:gz", compresslevel=1) as archive:
            for part in filter(Path.is_dir, parts):
                archive.add(part, part.relative_to(run.folder.parent))
        size = one.stat().st_size
        if spent + size > budget or size > PART:
            left_out.append(run.name)
            one.unlink()
            continue
        spent += size
        whole = out / f"runs-{number}.tar"
        if whole.is_file() and whole.stat().st_size + size + 1024 > PART:
            number += 1
            whole = out / f"runs-{number}.tar"
        with tarfile.open(whole, "a" if whole.is_file() else "w") as archive:
            archive.add(one, f"{run.name}.tar.gz")
        one.unlink()
    return left_out


def unpack(source: Path, work: Path) -> None:
    """The runs of :func:`pack`, in ``work``."""
    with tarfile.open(source / "logs.tar.gz") as archive:
        archive.extractall(work, filter="data")
    for part in sorted(source.glob("runs-*.tar")):
        with tarfile.open(part) as archive:
            for member in archive.getmembers():
                with tarfile.open(fileobj=archive.extractfile(member)) as inner:
                    inner.extractall(work, filter="data")


# ---------------------------------------------------------------------- what it prints
def report(runs: list[Run], out: Path, left_out: list[str]) -> None:
    """The table, on the screen and as ``table.md``, and everything as ``results.json``."""
    rows = [run.row() for run in runs]
    text = "\n".join("| " + " | ".join(row) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows))
    (out / "table.md").write_text(text + "\n")
    held = [dict(zip(COLUMNS, row), command=" ".join([run.preset, *run.overrides])) for run, row in zip(runs, rows)]
    (out / "results.json").write_text(json.dumps(held, indent=1) + "\n")
    for run, row in zip(runs, rows):
        if row[-1] == "failed":
            print(f"--- {run.name}", *_lines(run.folder.parent / f"{run.name}.txt")[-5:], sep="\n")
    if left_out:
        print(f"no room for the checkpoints of {', '.join(left_out)}")
    print(text)


def main() -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", nargs="*", default=(), choices=sorted(LISTS), help="of the lists above")
    parser.add_argument("--run", action="append", default=[], metavar="'NAME=PRESET KEY=VALUE ...'")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for every run that begins here"
    )
    parser.add_argument("--only", nargs="*", help="runs of the lists whose names begin so")
    parser.add_argument("--data", type=Path, required=True, help="folder with peptides-func/, zinc12k/, heterophilous/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="source", type=Path, help="--out of an earlier call, to go on from")
    parser.add_argument("--work", type=Path, default=Path("/tmp/runs"))
    parser.add_argument("--limit", type=float, default=480, help="seconds of the whole call, packing included")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--scale", type=float, default=1.0, help="times the epochs of every run that begins here")
    parser.add_argument("--pack", type=float, default=44, help="MiB of checkpoints that are packed")
    parser.add_argument("--mps", action="store_true")
    arguments = parser.parse_args()
    runs = []
    for line in [line for name in arguments.list for line in LISTS[name]] + arguments.run:
        name, _, rest = line.partition("=")
        preset, *overrides = rest.split()
        overrides = [_scaled(o, arguments.scale) for o in (*overrides, *arguments.set)]
        runs.append(Run(name, preset, overrides, arguments.work.resolve() / name))
    if arguments.only:
        runs = [run for run in runs if run.name.startswith(tuple(arguments.only))]
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.source:
        unpack(arguments.source, arguments.work)
    data = arguments.data.resolve()
    warm([run for run in runs if not run.finished], data)
    end = start + arguments.limit
    with sharing(arguments.mps, arguments.work / ".mps") as shared:
        env = {**environment(), **shared}
        train_all(runs, data, arguments.jobs, end - TEST_SECONDS - STOP_SECONDS - 5, env)
        test_all(runs, end - 5, env)
    report(runs, arguments.out, pack(runs, arguments.out, int(arguments.pack * 2**20)))


def _scaled(override: str, scale: float) -> str:
    key, _, value = override.partition("=")
    return f"{key}={max(1, round(int(value) * scale))}" if key == "train.epochs" else override


if __name__ == "__main__":
    main()
