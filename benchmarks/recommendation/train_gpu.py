"""Many recommenders on one GPU, several processes at a time, in pieces: stopped in time, taken up again, judged.

    python train_gpu.py --list faithful tune --data DATA --work WORK --out OUT --limit 520 --mps
    python train_gpu.py --list faithful finals --data DATA --work WORK --out OUT2 --limit 520 --mps --jobs 4
    python train_gpu.py --run "set/model/name/0=ml-1m seed=3 model.dropout=0.2" --data DATA --out OUT
    python train_gpu.py --show OUT/runs.json

WORK keeps the runs. What is finished there is not done again; what was cut, or killed, goes on from its last state; a
configuration ``@GROUP`` is picked among all that WORK holds (see train_lists.py). A run still going when the time is
up is stopped as Ctrl-C does it and tested at its best epoch so far (marked with * until it has gone on to its end). A
run with ``train.seconds`` that cannot have them any more is not begun.

OUT gets runs.json (of every run in WORK: configuration, metrics, seconds, memory), ranks.npz (each test user's rank, by
run, among all items and among unseen ones) and logs.tar.gz. Each process has one thread and takes run after run. Matrix
products are in TF32, but for presets with "faithful" in their names; tests are in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from processes import environment, sharing, start
from train_lists import LISTS as EARLIER
from train_lists_fifth import FIFTH
from train_runs import best_of, finished, merged, pack, results, show

LISTS = {**EARLIER, **FIFTH}

STOP_SECONDS, KILL_SECONDS, PACK_SECONDS = 22, 6, 90
"""Kept back at the end: for saving and judging what is stopped; for packing. Between two packings on the way."""

SPARE_SECONDS = 12
"""What a run takes beside its ``train.seconds``: reading, starting, the test."""


@dataclass
class Job:
    """A line of a list; ``share`` and ``after`` are no settings of the run."""

    name: str
    words: list[str]
    share: str | None = None
    after: str | None = None

    @classmethod
    def parse(cls, text: str) -> Job:
        name, _, rest = text.partition("=")
        own = {"share": None, "after": None} | dict(
            w.split("=") for w in rest.split() if w.startswith(("share=", "after="))
        )
        return cls(name, [w for w in rest.split() if w.partition("=")[0] not in own], **own)

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
    options = parser.parse_args()
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
        with sharing(options.mps) as shared:
            Keeper(jobs, work, options, shared, begun + options.limit).keep()
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
        shared: variables of the processes.
        end: when everything is over, by the monotonic clock.
    """

    def __init__(
        self, jobs: list[Job], work: Path, options: argparse.Namespace, shared: dict[str, str], end: float
    ) -> None:
        self.waiting = [job for job in jobs if not finished(work / f"{job.name}.json")]
        self.work, self.options, self.shared = work, options, shared
        self.stop_at, self.kill_at = end - STOP_SECONDS - KILL_SECONDS, end - KILL_SECONDS
        self.workers: list[Worker] = []

    def keep(self) -> None:
        """Run until everything is done or the time is up."""
        told, packed = False, time.monotonic()
        while self.waiting or any(worker.job for worker in self.workers):
            self._collect()
            if time.monotonic() < self.stop_at:
                while self._begin_one():
                    pass
                if not any(worker.job for worker in self.workers):
                    break  # what waits is too long, or waits for what is not in this list
            elif not told:
                told = True
                for worker in self.workers:
                    if worker.job:
                        worker.process.send_signal(signal.SIGINT)
            if told and not any(worker.job for worker in self.workers):
                break
            if not told and time.monotonic() - packed > PACK_SECONDS:  # whoever kills this program finds what is done
                pack(self.work, self.options.out)
                packed = time.monotonic()
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
        busy = sum(worker.job is not None and not worker.own for worker in self.workers)
        for job in list(self.waiting):
            own = job.share is not None
            if not own and busy >= self.options.jobs:
                continue
            words = self._words(job)
            if words is None:
                continue
            resolved = Job(job.name, words, job.share)
            if self._too_late(resolved) or (job.after and not finished(self.work / f"{job.after}.json")):
                continue
            self.waiting.remove(job)
            self._hand(resolved, own)
            return True
        return False

    def _too_late(self, job: Job) -> bool:
        asked = job.seconds()
        return asked > 0 and asked + SPARE_SECONDS > self.stop_at - time.monotonic()

    def _words(self, job: Job) -> list[str] | None:
        """The job's words with its group's best configuration; None while that is not known."""
        if not job.words[0].startswith("@"):
            return job.words
        pattern = job.words[0].removeprefix("@")
        open_ = [
            *(j for j in self.waiting if not self._too_late(j)),
            *(worker.job for worker in self.workers if worker.job),
        ]
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
        more = {} if share is None else {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": share}
        given = environment(1, GOMP_SPINCOUNT="1000", **self.shared, **more)
        for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):  # graphs keep memory of their own
            given.pop(name)
        process = start([sys.executable, str(Path(__file__).resolve().with_name("train_worker.py"))], given,
            at_death=signal.SIGKILL, cwd=None, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)  # fmt: skip
        self.workers.append(Worker(process))
        return self.workers[-1]


if __name__ == "__main__":
    main()
