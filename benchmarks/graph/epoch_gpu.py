"""Seconds of one epoch of a preset on a GPU, nodes a second, and where a step's time goes.

    python benchmarks/graph/epoch_gpu.py [KEY=VALUE ...] --data-root PEPTIDES [--preset peptides-func]
    (with the repository, kernels/ and plugins/ on PYTHONPATH, or installed)

Four measurements, each in fp32, in tf32 and in bf16 (autocast):

- *trainer*: what ``seqgraph train`` takes, read from its own log; training and evaluation (all draws of orders) apart;
- *loop*: the same steps without Lightning, log and checks: loader, forward, backward, clipping, AdamW; with the part
  of it that the host needs to launch everything, and the part of that in the loader;
- *replayed*, both: with ``train.replay`` (``--replay``), the epoch that records, a later one, and their mean over the
  epochs for which batches stay together;
- *kernels*: the sum of all kernels of a step, and of those of the loader, of message passing and of the scan, each run
  by itself on the inputs that it has in a step, forwards and backwards.

``--copies 8`` measures the loop alone, in so many processes at once (``--mps``: through the multi-process service):
what is left of the GPU for each of many trainings, as ``train_gpu.py`` runs them. ``--output`` takes everything as
JSON, for ``collect.py``.

The trainer's epoch should be near the larger of the host's time and the kernels' time. On a CPU everything runs too
(``--epochs 1 --steps 2`` with a small preset), with operators in the place of kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from processes import environment, sharing
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import seqgraph.encode.mixer as mixers
from seqgraph.config import RunConfig, load_config
from seqgraph.train.batching import token_batches
from seqgraph.train.optimize import parameter_groups, undecayed
from seqgraph.train.replay import CudaRecorder, Replays, own_stream
from seqgraph.train.run import build_data, build_task, train

PRECISIONS = ("fp32", "tf32", "bf16")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def kernel_ms(call: Callable[[], Any]) -> float:
    """Milliseconds that all kernels of a call take together; on a CPU, its operators."""
    call()
    synchronize()
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        call()
        synchronize()
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    return sum(getattr(event, field) for event in found.key_averages()) / 1e3


class Steps:
    """A task on a data set, stepped as the trainer does it.

    Args:
        data: the data set.
        config: the run.
        precision: one of PRECISIONS.
    """

    def __init__(self, data: Any, config: RunConfig, precision: str) -> None:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        self.data, self.config, self.bf16 = data, config, precision == "bf16"
        self.task, _ = build_task(config, data)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.task.to(self.device).train()
        groups = parameter_groups(self.task, config.train.weight_decay, undecayed(self.task))
        self.optimizer = torch.optim.AdamW(groups, lr=config.train.lr, fused=True)
        self.loading = 0.0

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext()

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.task.parameters(), self.config.train.clip or 1.0)
        self.optimizer.step()

    def batches(self, epoch: int) -> Iterator[Any]:
        """The training batches of an epoch; their time on the host is added up."""
        loader = token_batches(self.data, "train", self.config.train.max_tokens, shuffle=True, seed=0)
        loader.sampler.seek(epoch)  # type: ignore[attr-defined]
        source = iter(loader)
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            self.loading += time.perf_counter() - start
            if batch is None:
                return
            yield batch.to(self.device)

    def step(self, batch: Any) -> None:
        with self.autocast():
            loss = self.task.training_step(batch)["loss"]
        loss.backward()
        self.update()
        self.optimizer.zero_grad()

    def replayed(self, epochs: int, limit: int | None) -> dict[str, Any]:
        """Steps that are recorded in one epoch and replayed in the others: seconds of both, and their mean."""
        loader = token_batches(self.data, "train", self.config.train.max_tokens, shuffle=True, seed=0, keep=epochs)
        cuda = self.device == "cuda"
        with own_stream(cuda):
            recorder = CudaRecorder(torch.device("cuda")) if cuda else None
            replays = Replays(
                lambda key: loader.dataset[key].to(self.device),
                self.task.training_step,
                list(self.task.parameters()),
                recorder=recorder,
            )
            found = []
            for epoch in range(3):
                loader.sampler.seek(epoch)  # type: ignore[attr-defined]
                synchronize()
                start, steps = time.perf_counter(), 0
                for key in loader.sampler:  # type: ignore[attr-defined]
                    with self.autocast():
                        replays.step(key)
                    self.update()
                    steps += 1
                    if steps == limit:
                        break
                host = time.perf_counter() - start
                synchronize()
                found.append((time.perf_counter() - start, host))
        first, (last, host) = found[0][0], min(found[1:])
        if replays.failure:
            print(replays.failure)
        return {
            "epochs": epochs,
            "recorded": replays.recorded,
            "record": round(first, 3),
            "seconds": round(last, 3),
            "mean": round((first + (epochs - 1) * last) / epochs, 3),
            "step_ms": round(1e3 * last / steps, 2),
            "host_ms": round(1e3 * host / steps, 2),
        }

    def epoch(self, epoch: int, limit: int | None) -> dict[str, float]:
        """One epoch, or its first steps: seconds in all, of the host, and of the host in the loader; steps, nodes."""
        synchronize()
        self.loading, nodes, steps = 0.0, 0, 0
        start = time.perf_counter()
        for batch in self.batches(epoch):
            self.step(batch)
            nodes, steps = nodes + batch.num_nodes, steps + 1
            if steps == limit:
                break
        host = time.perf_counter() - start
        synchronize()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "host": host, "loader": self.loading, "steps": steps, "nodes": nodes}

    def waits(self) -> list[str]:
        """Where the host waits for the GPU in three steps, by torch's own reckoning."""
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                self.epoch(2, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        said = [f"{Path(w.filename).name}:{w.lineno}" for w in found if "synchroniz" in str(w.message)]
        return sorted(set(said))

    def kernels(self) -> dict[str, float]:
        """Milliseconds of kernels a step, and of its parts."""
        batch = next(self.batches(0))
        rows = self.data.splits["train"][: batch.num_graphs]
        passing: list[tuple[nn.Module, tuple[Any, ...]]] = []
        scans: list[dict[str, Any]] = []
        handles = [
            module.local.register_forward_hook(lambda m, inputs, output: passing.append((m, inputs)))
            for module in self.task.modules()
            if isinstance(getattr(module, "local", None), nn.Module)
        ]
        scan = mixers.selective_scan

        def remember(**arguments: Any) -> Any:
            scans.append(arguments)
            return scan(**arguments)

        mixers.selective_scan = remember  # type: ignore[assignment]
        try:
            with self.autocast():
                self.task.training_step(batch)
        finally:
            mixers.selective_scan = scan
            for handle in handles:
                handle.remove()

        def again(function: Callable[..., Any], inputs: dict[Any, Any]) -> Callable[[], None]:
            given = {k: _leaf(v) for k, v in inputs.items()}

            def call() -> None:
                with self.autocast():
                    named = {k: v for k, v in given.items() if isinstance(k, str)}
                    found = function(*[v for k, v in given.items() if not isinstance(k, str)], **named)
                outputs = [f for f in (found if isinstance(found, tuple) else (found,)) if f.requires_grad]
                torch.autograd.backward(outputs, [torch.ones_like(f) for f in outputs])

            return call

        return {
            "step": kernel_ms(lambda: self.step(batch)),
            "loader": kernel_ms(lambda: self.data.placed().batch(rows)),
            "message passing": sum(kernel_ms(again(m, dict(enumerate(inputs)))) for m, inputs in passing),
            "scan": sum(kernel_ms(again(scan, arguments)) for arguments in scans),
        }


def _leaf(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_(value.requires_grad) if floating else value


def through_trainer(data: Any, precision: str, arguments: argparse.Namespace, replay: int = 0) -> dict[str, float]:
    """Seconds of training and of evaluation in the last epoch, as the run's own log has them; nodes a second.

    With ``replay`` also of the epoch that records, and the mean over so many epochs.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    own = [f"train.epochs={arguments.epochs}", f"train.precision={'bf16' if precision == 'bf16' else '32'}", "seed=0"]
    config = load_config(
        arguments.preset,
        [*arguments.overrides, *own, "train.eval_every=1", f"train.replay={replay}"],
        data_root=arguments.data_root,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(config, output=Path(folder) / "run", quiet=not replay)
        rows = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
        facts = json.loads((Path(folder) / "run" / "config.json").read_text())["facts"]
    nodes, row = sum(data.lengths("train")), rows[-1]
    first, training = (nodes / one["tokens_per_second"] for one in (rows[0], row))
    mean = (first + (replay - 1) * training) / replay if replay else training
    held = {
        "epoch": round(mean, 3),
        "evaluation": round(row["seconds"] - training, 3),
        "nodes_per_second": round(nodes / mean, 1),
        "parameters": facts["parameters"],
    }
    return held | ({"epochs": replay, "record": round(first, 3), "seconds": round(training, 3)} if replay else {})


def in_copies(copies: int, mps: bool) -> None:
    """Run this program's loop in so many processes, which begin to count together, and add their nodes a second up."""
    own = [a for a in sys.argv[1:] if a not in ("--copies", str(copies), "--mps")]
    with tempfile.TemporaryDirectory() as folder, sharing(mps) as shared:
        meeting = Path(folder) / "meeting"
        meeting.mkdir()
        command = [
            sys.executable,
            __file__,
            *own,
            "--skip",
            "trainer",
            "kernels",
            "replay",
            "--meet",
            str(meeting),
            str(copies),
        ]
        started = [
            subprocess.Popen(
                command,
                env=environment(TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1", **shared),
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(copies)
        ]
        said = [process.communicate()[0] for process in started]
    found = [m.group(1) for out in said for m in re.finditer(r"nodes per second ([\d,]+)", out)]
    rates = [float(rate.replace(",", "")) for rate in found]
    print(f"{len(rates)} of {copies} processes{' with mps' if shared else ''}: {sum(rates):,.0f} nodes/s together")
    print(*(line for line in said[0].splitlines() if "loop" in line))


def meet(folder: Path, copies: int) -> None:
    """Wait until all copies are here."""
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < copies and time.monotonic() < end:
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of the run's configuration")
    parser.add_argument("--preset", default="peptides-func")
    parser.add_argument("--data-root")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--epochs", type=int, default=3, help="of the trainer")
    parser.add_argument("--steps", type=int, help="of the loop, instead of a whole epoch")
    parser.add_argument("--trainer", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="precisions for it")
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--skip", nargs="*", default=(), choices=("trainer", "loop", "kernels", "replay"))
    parser.add_argument("--replay", type=int, default=20, help="epochs for which batches stay together")
    parser.add_argument("--copies", type=int)
    parser.add_argument("--mps", action="store_true")
    parser.add_argument("--meet", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.copies:
        in_copies(arguments.copies, arguments.mps)
        return
    config = load_config(arguments.preset, arguments.overrides, data_root=arguments.data_root)
    torch.manual_seed(0)
    data = build_data(config)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{arguments.preset} {' '.join(arguments.overrides)} on {name}, torch {torch.__version__}")
    held = {"machine": name, "torch": torch.__version__, "preset": arguments.preset, "overrides": arguments.overrides}
    found = {precision: measured(data, config, precision, arguments) for precision in arguments.precisions}
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({**held, "precisions": found}, indent=1) + "\n")


def measured(data: Any, config: RunConfig, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What one precision takes, printed as it becomes known."""
    print(f"\n{precision}", flush=True)
    held: dict[str, Any] = {}
    if "loop" not in arguments.skip or "kernels" not in arguments.skip:
        steps = Steps(data, config, precision)
        steps.epoch(0, min(arguments.steps or 12, 12))  # kernels are compiled, memory is taken
        if arguments.meet:
            meet(Path(arguments.meet[0]), int(arguments.meet[1]))
        found = steps.epoch(1, arguments.steps)
        each, seconds = 1e3 / found["steps"], found["seconds"]
        held["loop"] = {
            "seconds": round(seconds, 3),
            "steps": found["steps"],
            "nodes_per_second": round(found["nodes"] / seconds),
            "step_ms": round(seconds * each, 2),
            "host_ms": round(found["host"] * each, 2),
            "loader_ms": round(found["loader"] * each, 2),
        }
        print("  loop    ", _said(held["loop"]), flush=True)
        if "kernels" not in arguments.skip:
            held["kernels"] = {name: round(ms, 3) for name, ms in steps.kernels().items()}
            whole = held["kernels"]["step"]
            print("  kernels ", ", ".join(f"{k} {v:.2f} ms ({v / whole:.0%})" for k, v in held["kernels"].items()))
        if torch.cuda.is_available():
            held["waits"], held["memory"] = steps.waits(), torch.cuda.max_memory_allocated()
            print(f"  waits    {', '.join(held['waits']) or 'none'}")
            print(f"  memory   {held['memory'] / 2**30:.2f} GiB at most", flush=True)
    if "replay" not in arguments.skip:
        held["replayed"] = Steps(data, config, precision).replayed(arguments.replay, arguments.steps)
        print("  replayed", _said(held["replayed"]), flush=True)
    for name, replay in (("trainer", 0), ("trainer_replayed", arguments.replay)):
        if "trainer" in arguments.skip or precision not in arguments.trainer or (replay and "replay" in arguments.skip):
            continue
        held[name] = timed = through_trainer(data, precision, arguments, replay)
        verdict = "met" if timed["epoch"] <= 2 and timed["evaluation"] <= 1 else "missed"
        said = _said(timed).replace("epochs", "replay")
        print(f"  {name.replace('_', ', ')}", said, f"(asked: epoch 2 s, evaluation 1 s: {verdict})", flush=True)
    return held


def _said(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in numbers.items())


if __name__ == "__main__":
    main()
