"""Many trainings at once on one GPU, in pieces: each a process of ``seqgraph train``, stopped and packed in time.

    python benchmarks/graph/train_gpu.py --list all --data DATA --out OUT --limit 1040 [--jobs 12] [--mps]
    python benchmarks/graph/train_gpu.py --list orders molecules --data DATA --out OUT2 --limit 520   # goes on
    python benchmarks/graph/train_gpu.py --run "name=peptides-func seed=3 train.epochs=50" --data DATA --out OUT

Long runs train by the clock (``train.seconds``), so that their schedules end when the call does; the seconds in the
lists are for calls of 1,040 and follow ``--limit``. Steps are replayed (``train.replay``). A run that has not ended by
then is stopped as Ctrl-C does it: it ends its step and saves its state in ``--work``, where the next call finds it; on
another machine ``--from`` takes up what an earlier call packed (``--pack MIB``): of finished runs the best weights, of
others also what is needed to go on, in archives of at most 15 MiB. Unfinished runs are tested at their best epoch so
far. ``results.json`` is written all along; ``collect.py`` makes the tables of it.

One thread a process: many processes share the cores. tf32 is on. With ``--mps`` the processes' kernels run side by
side through NVIDIA's multi-process service, if it starts; without, they take turns. A service that
``CUDA_MPS_PIPE_DIRECTORY`` names already is used as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from lists import LIMIT, LISTS, ROOTS
from processes import REPOSITORY, end, environment, sharing, start, tail

TEST_SECONDS, STOP_SECONDS, PART = 25, 15, 15 << 20


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
    def log(self) -> Path:
        """What its process says."""
        return self.folder.parent / f"{self.name}.txt"

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
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

    def summary(self) -> dict[str, Any]:
        """Everything that a table of results needs, as JSON has it."""
        rows = [json.loads(line) for line in _lines(self.folder / "log.jsonl")]
        whole = _json(self.folder / "config.json")
        train, best = whole.get("run", {}).get("train", {}), _json(self.folder / "best" / "metrics.json")
        done = _json(self.folder / "metrics.json")
        monitor = _monitor(whole.get("run", {}).get("task", {}), best.get("valid", {}))
        last = (self.folder / "last").is_dir()
        return {
            "run": self.name,
            "command": " ".join(["seqgraph train", self.preset, *self.overrides]),
            "parameters": whole.get("facts", {}).get("parameters", 0),
            "epochs": len(rows),
            "planned": {"seconds": train["seconds"]} if train.get("seconds") else {"epochs": train.get("epochs")},
            "seconds": round(sum(row["seconds"] for row in rows), 1),
            "epoch_seconds": round(median(row["seconds"] for row in rows[-10:]), 3) if rows else None,
            "batch": train.get("max_tokens"),
            "precision": train.get("precision", "32").replace("32", "tf32"),
            "metric": monitor,
            "best_epoch": best.get("best_epoch"),
            "valid": best.get("valid", {}).get(monitor),
            "test": done.get("test", self.test).get(monitor),
            "all_test": done.get("test", self.test),
            "curve": [[row["epoch"], row[f"valid_{monitor}"]] for row in rows if f"valid_{monitor}" in row],
            "state": "done" if done else "to go on" if last else "failed" if self.process else "not begun",
        }

    def row(self) -> list[str]:
        """The summary as a row of the printed table."""
        held = self.summary()
        plan = held["planned"].get("epochs") or f"{held['planned'].get('seconds', 0):.0f} s"
        return [
            self.name,
            f"{held['parameters']:,}",
            f"{held['epochs']}/{plan}",
            str(held["best_epoch"] or ""),
            held["metric"],
            _shown(held["valid"]),
            _shown(held["test"]),
            "" if held["epoch_seconds"] is None else f"{held['epoch_seconds']:.2f}",
            held["state"],
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


# ---------------------------------------------------------------------- the data
_PREPARE = """
import json, sys
from seqgraph.config import load_config
from seqgraph.train.run import build_data, build_task
for source, *overrides in json.loads(sys.argv[1]):
    config = load_config(source, overrides)
    build_task(config, build_data(config))
"""


def prepare(runs: list[Run], data: Path, *, nice: int = 0) -> list[subprocess.Popen[bytes]]:
    """Begin to put positional encodings and orders on disk, once for all runs that read them, with half of the cores.

    A process for each data set does one after the other, as encodings are the same for several orders. Threads that
    wait must sleep: beside other jobs, spinning ones have held this up for ten minutes.
    """
    wanted: dict[Path, dict[tuple[str, ...], list[str]]] = {}
    for run in runs:
        seen = tuple(o for o in run.overrides if o.startswith(("model.pe", "model.order", "data.")))
        # the sets of molecules are too small to be kept
        if not run.preset.startswith("ogbg"):
            what = [run.preset, *run.overrides, f"data.root={run.root(data)}"]
            wanted.setdefault(run.root(data), {}).setdefault((run.preset.partition("-")[0], *seen), what)
    env = environment(max(1, (os.cpu_count() or 1) // (2 * max(1, len(wanted)))), OMP_WAIT_POLICY="passive")
    command = ["nice", "-n", str(nice), sys.executable, "-c", _PREPARE]
    return [
        subprocess.Popen([*command, json.dumps(list(each.values()))], env=env, cwd=REPOSITORY)
        for each in wanted.values()
    ]


def warm(runs: list[Run], data: Path) -> None:
    """:func:`prepare`, and wait for it."""
    begun = time.monotonic()
    failed = sum(process.wait() != 0 for process in prepare(runs, data))
    print(f"encodings and orders: {time.monotonic() - begun:.0f} s, {failed} failed", flush=True)


# ---------------------------------------------------------------------- running
def train_all(runs: list[Run], data: Path, jobs: int, until: float, env: dict[str, str], out: Path) -> None:
    """Run them, so many at a time, in their order; stop what is running when the time has come, or at a signal."""
    shown = time.monotonic()
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: asked.append(n))
    waiting, running = [run for run in runs if not run.finished], []
    while (waiting or running) and time.monotonic() < until and not asked:
        while waiting and len(running) < jobs:
            run = waiting.pop(0)
            run.process = start(run.command(data), env, run.log, at_death=signal.SIGINT)
            running.append(run)
        time.sleep(0.2)
        if time.monotonic() > shown + 30:  # this process may be killed
            shown = time.monotonic()
            write_summary(runs, out)
        running = [run for run in running if run.process is not None and run.process.poll() is None]
    # what does not stop in time has the state of its last whole epoch
    end((run.process for run in running if run.process is not None), STOP_SECONDS)


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
            for path in [run.log, *run.folder.glob("*.*")]:
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
def write_summary(runs: list[Run], out: Path) -> None:
    """``results.json``: each run, and the machine."""
    whole = {"machine": _machine(), "call": " ".join(sys.argv[1:]), "runs": [run.summary() for run in runs]}
    part = out / ".results.part"
    part.write_text(json.dumps(whole) + "\n")
    part.replace(out / "results.json")


@functools.cache
def _machine() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(query, timeout=10, capture_output=True, check=True, text=True).stdout.splitlines()[0]
    return "CPU"


def report(runs: list[Run], out: Path, left_out: list[str], budget: int) -> None:
    """The table, on the screen and as ``table.md``, and all as ``results.json``; says what did not fit the budget."""
    write_summary(runs, out)
    rows = [run.row() for run in runs]
    text = "\n".join("| " + " | ".join(row) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows))
    (out / "table.md").write_text(text + "\n")
    for run, row in zip(runs, rows):
        if row[-1] == "failed":
            print(f"--- {run.name}", tail(run.log), sep="\n")
    if left_out and budget:
        print(f"no room for the checkpoints of {', '.join(left_out)}")
    print(text)


def main() -> None:
    begun = time.monotonic()
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
    parser.add_argument("--work", type=Path, default=Path("runs/graphs"))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of the whole call, packing included")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--scale", type=float, default=1.0, help="times the epochs of every run that begins here")
    parser.add_argument("--ahead", nargs="*", default=(), choices=sorted(LISTS), help="lists to prepare for meanwhile")
    parser.add_argument("--pack", type=float, default=0, help="MiB of checkpoints that are packed")
    parser.add_argument("--mps", action="store_true")
    arguments = parser.parse_args()
    lines = [line for name in arguments.list for line in LISTS[name]] + arguments.run
    runs = [_run(line, arguments) for line in dict.fromkeys(lines)]
    if arguments.only:
        runs = [run for run in runs if run.name.startswith(tuple(arguments.only))]
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.source:
        unpack(arguments.source, arguments.work)
    data = arguments.data.resolve()
    waiting = [run for run in runs if not run.finished]
    warm(waiting[: arguments.jobs], data)
    later = [_run(line, arguments) for name in arguments.ahead for line in LISTS[name]]
    ahead = prepare([*waiting[arguments.jobs :], *later], data, nice=10)
    until = begun + arguments.limit
    with sharing(arguments.mps) as shared:
        env = environment(TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1", **shared)
        train_all(runs, data, arguments.jobs, until - TEST_SECONDS - STOP_SECONDS - 5, env, arguments.out)
        test_all(runs, until - 5, env)
    for process in ahead:
        process.terminate()
    budget = int(arguments.pack * 2**20)
    report(runs, arguments.out, pack(runs, arguments.out, budget), budget)


def _run(line: str, arguments: argparse.Namespace) -> Run:
    name, _, rest = line.partition("=")
    preset, *overrides = rest.split()
    overrides = [_scaled(o, arguments) for o in (*overrides, *arguments.set)]
    return Run(name, preset, overrides, arguments.work.resolve() / name)


def _scaled(override: str, arguments: argparse.Namespace) -> str:
    """Epochs by ``--scale``, seconds by the limit; a run by the clock keeps its bound on the epochs."""
    key, _, value = override.partition("=")
    if key == "train.seconds":
        return f"{key}={float(value) * arguments.limit / LIMIT:g}"
    epochs = key == "train.epochs" and int(value) < 5000
    return f"{key}={max(1, round(int(value) * arguments.scale))}" if epochs else override


if __name__ == "__main__":
    main()
