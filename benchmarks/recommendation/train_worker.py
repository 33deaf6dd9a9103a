"""A process of train_gpu.py: jobs from the standard input, one after another, each trained, judged and written down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from train_runs import picked

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


if __name__ == "__main__":
    serve()
