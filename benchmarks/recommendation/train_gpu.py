"""Many recommenders on one GPU, several processes at a time, in pieces: stopped in time, taken up again, judged.

    python train_gpu.py --list faithful tune --data DATA --work WORK --out OUT --limit 520 --mps
    python train_gpu.py --list faithful finals --data DATA --work WORK --out OUT2 --limit 520 --mps --jobs 4
    python train_gpu.py --run "set/model/name/0=ml-1m seed=3 model.dropout=0.2" --data DATA --out OUT
    python train_gpu.py --show OUT/runs.json

WORK keeps the runs. What is finished there is not done again; what was cut, or killed, goes on from its last state; a
configuration ``@GROUP`` is picked among all that WORK holds (see lists.py). A run still going when the time is up is
stopped as Ctrl-C does it and tested at its best epoch so far (marked with * until it has gone on to its end). A run
with ``train.seconds`` that cannot have them any more is not begun.

OUT gets runs.json (of every run in WORK: configuration, metrics, seconds, memory), ranks.npz (each test user's rank, by
run, among all items and among unseen ones) and logs.tar.gz. Each process has one thread and takes run after run. Matrix
products are in TF32, but for presets with "faithful" in their names; tests are in fp32.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from lists import LISTS

STOP_SECONDS, KILL_SECONDS = 22, 6
"""Kept back at the end: for saving and judging what is stopped; for packing."""

SPARE_SECONDS = 12
"""What a run takes beside its ``train.seconds``: reading, starting, the test."""


@dataclass
class Job:
    """A line of a list."""

    name: str
    words: list[str]
    share: str | None = None

    @classmethod
    def parse(cls, text: str) -> Job:
        name, _, rest = text.partition("=")
        words = rest.split()
        share = next((w.removeprefix("share=") for w in words if w.startswith("share=")), None)
        return cls(name, [w for w in words if not w.startswith("share=")], share)

    @property
    def group(self) -> str:
        return self.name.rpartition("/")[0]

    def seconds(self) -> float:
        """Training time that it asks for; 0 where it may be cut anywhere."""
        said = [w.partition("=")[2] for w in self.words if w.startswith("train.seconds=")]
        return float(said[-1]) if said and said[-1] != "null" else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", nargs="+", default=[], choices=LISTS)
    parser.add_argument("--run", action="append", default=[], metavar="NAME=PRESET KEY=VALUE ...")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--only", default=".", metavar="REGEX", help="of the runs' names")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="where the runs are kept; OUT/work by default")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    parser.add_argument("--limit", type=float, default=520.0, help="seconds of wall-clock time for everything")
    parser.add_argument("--jobs", type=int, default=9, help="processes at a time, beside those with a share")
    parser.add_argument("--mps", action="store_true", help="let the processes' kernels run side by side")
    parser.add_argument("--show", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve()
        return
    if options.show:
        show([row for path in options.show for row in json.loads(path.read_text())])
        return
    begun = time.monotonic()
    lines = [text for name in options.list for text in LISTS[name]] + options.run
    jobs = [job for job in map(Job.parse, lines) if re.search(options.only, job.name)]
    if not jobs or options.data is None:
        parser.error("say what to run (--list, --run) and where the data are (--data)")
    work = options.work or options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with side_by_side(options.mps) as environment:
            Keeper(jobs, work, options, environment, begun + options.limit).keep()
    finally:
        pack(work, options.out)
    show(json.loads((options.out / "runs.json").read_text()))
    print(f"{time.monotonic() - begun:.0f} s in all")


# ---------------------------------------------------------------------------------------------- processes and jobs
@dataclass
class Worker:
    """A process that takes one job after another."""

    process: subprocess.Popen[str]
    job: Job | None = None
    own: bool = False


class Keeper:
    """Keeps the processes busy until the time is up.

    Args:
        jobs: what to run, in this order.
        work: the folder of runs.
        options: the command line.
        environment: of the processes.
        end: when everything is over, by the monotonic clock.
    """

    def __init__(
        self, jobs: list[Job], work: Path, options: argparse.Namespace, environment: dict[str, str], end: float
    ) -> None:
        self.waiting = [job for job in jobs if not finished(work / f"{job.name}.json")]
        self.work, self.options, self.environment = work, options, environment
        self.stop_at, self.kill_at = end - STOP_SECONDS - KILL_SECONDS, end - KILL_SECONDS
        self.workers: list[Worker] = []

    def keep(self) -> None:
        """Run until everything is done or the time is up."""
        told = False
        while self.waiting or any(worker.job for worker in self.workers):
            self._collect()
            if time.monotonic() < self.stop_at:
                while self._begin_one():
                    pass
            elif not told:
                told = True
                for worker in self.workers:
                    if worker.job:
                        worker.process.send_signal(signal.SIGINT)
            if told and not any(worker.job for worker in self.workers):
                break
            if time.monotonic() > self.kill_at:
                break
            time.sleep(0.1)
        for worker in self.workers:
            worker.process.kill()
        if self.waiting:
            print("not begun:", ", ".join(job.name for job in self.waiting), flush=True)

    def _collect(self) -> None:
        for worker in list(self.workers):
            job, gone = worker.job, worker.process.poll() is not None
            done = self.work / f"{job.name}.done" if job else None
            if job and done and (gone or done.exists()):
                well = done.exists() and done.read_text() == "well"
                done.unlink(missing_ok=True)
                if not well:
                    log = self.work / f"{job.name}.log"  # none of a process that died before it took the job
                    tail = log.read_text().strip().splitlines()[-6:] if log.is_file() else []
                    print(f"{job.name}: failed", *tail, sep="\n    ", flush=True)
                worker.job = None
                if worker.own or not well:  # what failed may have left a GPU's context broken
                    worker.process.kill()
                    gone = True
            if gone:
                self.workers.remove(worker)

    def _begin_one(self) -> bool:
        left = self.stop_at - time.monotonic()
        busy = sum(worker.job is not None and not worker.own for worker in self.workers)
        for job in list(self.waiting):
            own = job.share is not None
            if not own and busy >= self.options.jobs:
                continue
            words = self._words(job)
            if words is None:
                continue
            resolved = Job(job.name, words, job.share)
            if resolved.seconds() and resolved.seconds() + SPARE_SECONDS > left:
                continue
            self.waiting.remove(job)
            self._hand(resolved, own)
            return True
        return False

    def _words(self, job: Job) -> list[str] | None:
        """The job's words with its group's best configuration; None while that is not known."""
        if not job.words[0].startswith("@"):
            return job.words
        pattern = job.words[0].removeprefix("@")
        open_ = [*self.waiting, *(worker.job for worker in self.workers if worker.job)]
        if any(fnmatch(other.group, pattern) for other in open_ if other.name != job.name):
            return None
        best = best_of(results(self.work), pattern)
        if best is None:
            return None
        return merged([*best["words"], *job.words[1:]])

    def _hand(self, job: Job, own: bool) -> None:
        free = [w for w in self.workers if w.job is None and not w.own and w.process.poll() is None]
        worker = self._start(job.share) if own or not free else free[0]
        run = self.work / job.name
        run.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{run}.done").unlink(missing_ok=True)
        order = {"words": merged([*job.words, *self.options.set]), "name": job.name, "data": str(self.options.data)}
        worker.job, worker.own = job, own
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: the next look at the processes says so
            worker.process.stdin.write(json.dumps({**order, "run": str(run)}) + "\n")
            worker.process.stdin.flush()

    def _start(self, share: str | None) -> Worker:
        given = {**self.environment, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
        if share is not None:
            given["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = share
        command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
        process = subprocess.Popen(command, env=given, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            preexec_fn=_end_with_parent)  # fmt: skip
        self.workers.append(Worker(process))
        return self.workers[-1]


def _end_with_parent() -> None:
    """Nobody stays on the GPU when this program is killed: Linux's PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def merged(words: list[str]) -> list[str]:
    """Preset and overrides, of each key the last."""
    last = {word.partition("=")[0]: number for number, word in enumerate(words)}
    return [word for number, word in enumerate(words) if last[word.partition("=")[0]] == number]


def finished(path: Path) -> bool:
    """Whether a run's result is there and not one that was cut."""
    return path.is_file() and not json.loads(path.read_text())["cut"]


def results(work: Path) -> list[dict[str, Any]]:
    """All results in a folder of runs, by name."""
    inner = ("config.json", "metrics.json", "assets.json", "ranks-test.json")
    paths = [p for p in sorted(work.rglob("*.json")) if p.name not in inner and p.with_suffix(".npz").is_file()]
    return [json.loads(path.read_text()) for path in paths]


def best_of(rows: list[dict[str, Any]], pattern: str) -> dict[str, Any] | None:
    """Of the groups that fit a pattern, the run with the best validation figure among those that share a first seed."""
    fit = [row for row in rows if fnmatch(row["name"].rpartition("/")[0], pattern)]
    return max(fit, key=picked, default=None)


def picked(row: dict[str, Any]) -> float:
    """The validation figure that picked a run's epoch."""
    task = row["config"]["task"]
    k = task["k"] if isinstance(task["k"], int) else task["k"][0]
    return float(row["valid"][f"{task['select_metric']}@{k}" + ("-unseen" if task["select_by"] == "unseen" else "")])


# ---------------------------------------------------------------------------------------------- in a process
STOPPED = TRAINS = False


def serve() -> None:
    """Jobs from the standard input, one after another, until one was stopped."""

    def stop(number: int, frame: Any) -> None:
        global STOPPED
        STOPPED = True
        if TRAINS:  # but not with its first step yet, from which on it takes the signal itself
            signal.setitimer(signal.ITIMER_REAL, 0.5)

    signal.signal(signal.SIGINT, stop)
    # A core takes 8 s for the trivial predictor on Beauty and 22 on Sports, after each run; nobody asks for it here.
    from seqgraph_mamba4rec.task import NextItem

    NextItem.baseline = lambda self, data: {}  # type: ignore[method-assign]
    signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT) if TRAINS else None)
    for line in sys.stdin:
        order = json.loads(line)
        run = Path(order["run"])
        with Path(f"{run}.log").open("a") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
            try:
                one(run=run, name=order["name"], words=order["words"], data=order["data"])
                how = "well"
            except BaseException:
                traceback.print_exc()
                how = "failed"
            sys.stdout.flush()
        Path(f"{run}.done").write_text(how)
        if STOPPED:
            break


def one(run: Path, name: str, words: list[str], data: str) -> None:
    """Train one, judge it on the test events, and write what came of it beside the run's folder.

    A training that failed is judged as one that was cut, by its best weights so far, where there are any.
    """
    import torch

    from seqgraph.config import load_config
    from seqgraph.train.run import train
    from seqgraph.train.state import Interrupted

    global STOPPED, TRAINS
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    preset, *overrides = words
    torch.set_float32_matmul_precision("highest" if "faithful" in preset else "high")
    goes_on, begun = (run / "last").is_dir(), time.monotonic()
    if run.exists() and not goes_on:
        shutil.rmtree(run)
    TRAINS = True
    try:
        train(load_config(preset, overrides, data_root=data), output=run, resume=goes_on, quiet=True)
    except Interrupted:
        STOPPED = True
    except Exception:
        if not ((run / "best").is_dir() or (run / "last").is_dir()):
            raise
        traceback.print_exc()
    finally:
        TRAINS = False
    torch.set_float32_matmul_precision("highest")
    judge(run, name, words, time.monotonic() - begun)


def judge(run: Path, name: str, words: list[str], wall: float) -> None:
    """Test a run at its best weights, or its last where no epoch was judged, and write the result beside its folder."""
    import numpy as np
    import torch

    from seqgraph.train import checkpoint
    from seqgraph.train.store import read_log
    from seqgraph_mamba4rec.judged import evaluate_users

    cuda = torch.cuda.is_available()
    log, config = read_log(run), json.loads((run / "config.json").read_text())
    ranks, _ = evaluate_users(run, "test", k=(1, 5, 10, 20), precision="32")
    kept = checkpoint.read_json(checkpoint.find(run) / checkpoint.METRICS)
    times = [r["seconds"] for r in log]
    row = {
        "name": name,
        "words": words,
        "config": config["run"],
        "versions": config["versions"],
        "data": ranks.data,
        "parameters": config["facts"]["parameters"],
        "cut": not (run / "metrics.json").is_file(),
        "epochs": len(log),
        "steps": log[-1]["step"] if log else kept.get("steps", 0),
        "seconds": round(sum(times), 1),
        "wall": round(wall, 1),
        "epoch_seconds": round(statistics.median(times), 3) if times else 0.0,
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else 0,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "test": ranks.metrics,
    }
    judged = [(r["epoch"], {k[6:]: v for k, v in r.items() if k[:6] == "valid_"}) for r in log]
    judged = [(epoch, valid) for epoch, valid in judged if valid]
    if judged:
        best = max(judged, key=lambda one: picked({**row, "valid": one[1]}))
    else:  # stopped before its first evaluation
        best = 0, evaluate_users(run, "valid", k=(1, 5, 10, 20))[0].metrics
    row |= {"best_epoch": best[0], "valid": best[1]}
    columns: dict[str, Any] = {"all": np.array(ranks.rank, np.uint16), "unseen": np.array(ranks.rank_unseen, np.uint16)}
    written = Path(f"{run}.part.npz"), Path(f"{run}.json.part")
    np.savez_compressed(written[0], **columns)
    written[1].write_text(json.dumps(row))
    written[0].rename(f"{run}.npz")
    written[1].rename(f"{run}.json")
    if not row["cut"]:
        shutil.rmtree(run / "last", ignore_errors=True)


# ---------------------------------------------------------------------------------------------- what comes of it
def pack(work: Path, out: Path) -> None:
    """runs.json, ranks.npz and logs.tar.gz from a folder of runs."""
    import numpy as np

    rows: list[dict[str, Any]] = []
    columns: dict[str, Any] = {}
    for row in results(work):
        try:
            with np.load(work / f"{row['name']}.npz") as ranks:
                columns |= {f"{row['name']}/{which}": ranks[which] for which in ranks}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            print(f"{row['name']}: its ranks cannot be read, left out: {error}", flush=True)
            continue
        rows.append(row)
    (out / "runs.json").write_text(json.dumps(rows, indent=0) + "\n")
    np.savez_compressed(out / "ranks.npz", **columns)
    with tarfile.open(out / "logs.tar.gz", "w:gz") as tar:
        for path in sorted(work.rglob("*")):
            inside = path.relative_to(work)
            if path.is_file() and "last" not in inside.parts and (path.name == "log.csv" or path.suffix == ".log"):
                tar.add(path, inside)


def show(rows: list[dict[str, Any]]) -> None:
    """One line a run."""
    columns = ("HR@10", "NDCG@10", "HR@10-unseen", "NDCG@10-unseen")
    print(f"{'run':38}{'epochs':>10}{'s/ep':>7}{'MiB':>7}" + "".join(f"{c:>15}" for c in ("valid", *columns)))
    for row in rows:
        epochs = f"{row['best_epoch']}/{row['epochs']}" + "*" * row["cut"]
        figures = "".join(f"{value:15.4f}" for value in (picked(row), *(row["test"][c] for c in columns)))
        print(f"{row['name']:38}{epochs:>10}{row['epoch_seconds']:7.2f}{row['peak_mib']:7}{figures}")


@contextmanager
def side_by_side(wanted: bool) -> Iterator[dict[str, str]]:
    """The processes' environment, with NVIDIA's multi-process service behind it if it is wanted and starts.

    One that runs already, named by CUDA_MPS_PIPE_DIRECTORY, is used.
    """
    binary, base = shutil.which("nvidia-cuda-mps-control"), dict(os.environ)
    if not wanted or "CUDA_MPS_PIPE_DIRECTORY" in base or binary is None:
        if wanted:
            print("mps:", base.get("CUDA_MPS_PIPE_DIRECTORY", "not installed; the processes take turns"), flush=True)
        yield base
        return
    with tempfile.TemporaryDirectory(prefix="mps") as folder:
        own = base | {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        control = subprocess.Popen([binary, "-f"], env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # The service numbers the GPUs that it may use anew, from 0.
        seen = base.get("CUDA_VISIBLE_DEVICES")
        theirs = own | (
            {} if seen is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(seen.count(",") + 1)))}
        )
        try:
            time.sleep(1)
            probe = [sys.executable, "-c", "import torch; torch.zeros(1).cuda().sum().item()"]
            works = False
            with suppress(subprocess.TimeoutExpired):
                works = subprocess.run(probe, env=theirs, timeout=40, capture_output=True).returncode == 0
            print("mps: on" if works else "mps: does not work here; the processes take turns", flush=True)
            yield theirs if works else base
        finally:
            with suppress(subprocess.TimeoutExpired):
                subprocess.run([binary], input=b"quit\n", env=own, timeout=10, capture_output=True)
            control.terminate()


if __name__ == "__main__":
    main()
