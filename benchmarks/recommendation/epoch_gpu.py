"""An epoch of MovieLens-1M: every position of packed histories, or every padded prefix; and other steps' cost.

    python benchmarks/recommendation/epoch_gpu.py --data DATA [--seconds 45] [--device cuda] [--out FILE]
    python benchmarks/recommendation/epoch_gpu.py --data DATA --only "Mamba4Rec strong, packed" --profile 3

*Packed* is the strong setting, through our loader, a whole epoch; *replayed* with ``task.capture``. *Prefixes* is the
same model as RecBole would feed it: every prefix of at most 200 events a row of its own, 2,048 rows a batch, each
padded on the right to 200, and the last real position read (RecBole 1.2.1's augmentation; 196 million tokens an
epoch), drawn at random as its loader does. Of prefixes and of large batches some are timed, which have been trained on
once before, and scaled to the epoch. Our kernels run both: mamba_ssm's own calls are slower. Every position is
computed, as there, and the loader's own time left out of padded *prefixes*, not of *packed*. *Trainer* is the median
epoch of ``seqgraph train``, from its log. ``--profile`` prints what the GPU did in so many steps of each case instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqgraph.config import TrainConfig, build_part, load_config
from seqgraph.stream import TokenStream
from seqgraph.train.batching import token_batches
from seqgraph.train.optimize import parameter_groups, undecayed
from seqgraph.train.run import build_data, build_task, train
from seqgraph.train.store import read_log
from seqgraph_mamba4rec.histories import HistoryBatch, HistoryDataset
from seqgraph_mamba4rec.loss import softmax_loss

ROWS, LENGTH = 2048, 200
_LOCAL = "data.file=ml-1m.txt.gz"
# What the presets had when the published table was measured: two layers, norms in front, smaller batches.
_ML = (_LOCAL, "model.n_layers=2", "train.max_tokens=12800")
_ATTENTION = (*_ML, "model.norm=pre")
_SHOP = ("data.file=Beauty.txt.gz", "train.max_tokens=2048")
_LARGE = "train.max_tokens=51200"
_REPLAYED = "task.capture=true"
CASES: dict[str, tuple[str, ...]] = {
    "Mamba4Rec strong, packed, replayed": ("ml-1m", *_ML, _REPLAYED),
    "Mamba4Rec strong, padded prefixes": ("ml-1m", *_ML, "padded"),
    "Mamba4Rec strong, packed": ("ml-1m", *_ML),
    "SASRec strong, packed, FlashAttention, replayed": ("ml-1m-sasrec", *_ATTENTION, _REPLAYED),
    "SASRec strong, packed, FlashAttention": ("ml-1m-sasrec", *_ATTENTION),
    "SASRec strong, padded prefixes, FlashAttention": ("ml-1m-sasrec", *_ATTENTION, "padded"),
    "Mamba4Rec strong, packed, batches of 51,200 tokens": ("ml-1m", *_ML, _LARGE),
    "SASRec strong, packed, batches of 51,200 tokens": ("ml-1m-sasrec", *_ATTENTION, _LARGE),
    "Mamba4Rec, Beauty, packed, replayed": ("beauty", *_SHOP, _REPLAYED),
    "Mamba4Rec, Beauty, packed": ("beauty", *_SHOP),
    "SASRec, Beauty, packed": ("beauty-sasrec", *_SHOP, "model.norm=pre"),
    "Mamba4Rec as released, packed prefixes": ("ml-1m-faithful", _LOCAL, "fp32"),
    "Mamba4Rec as released, two layers": ("ml-1m-faithful", _LOCAL, "fp32", "model.n_layers=2"),
    "Mamba4Rec as released, padded prefixes": ("ml-1m-faithful", _LOCAL, "fp32", "padded"),
}


def padded(data: HistoryDataset, seed: int) -> Iterator[HistoryBatch]:
    """Batches of prefixes as rows of 200; what stands behind a prefix is item 0."""
    examples, rng = data.split("train"), np.random.default_rng(seed)
    while True:
        index = rng.integers(len(examples), size=ROWS)
        batch: HistoryBatch = examples.pack(index)  # type: ignore[attr-defined]
        lengths = batch.stream.lengths
        rows = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
        rows[batch.stream.segment, batch.stream.position] = batch.stream.values
        at = torch.arange(ROWS) * LENGTH + lengths - 1
        stream = TokenStream.from_lengths(rows.flatten(), [LENGTH] * ROWS, source=rows.flatten())
        yield HistoryBatch(stream, at, batch.target)


class Case:
    """A model, its data and one step of its training.

    Args:
        words: preset, overrides, and "padded" or "fp32".
        data_root: where the files are.
        device: "cuda" or "cpu".
        known: data sets that have been read, by their settings; takes this one's.
    """

    def __init__(self, words: tuple[str, ...], data_root: str, device: str, known: dict[str, Any]) -> None:
        self.padded, half = "padded" in words, "fp32" not in words
        torch.manual_seed(0)
        overrides = [w for w in words[1:] if w not in ("padded", "fp32")]
        overrides += ["data.examples=prefixes"] if self.padded else []
        config = load_config(words[0], overrides, data_root=data_root)
        self.settings: TrainConfig = config.train
        key = json.dumps(build_part(config, "data").model_dump(mode="json"), sort_keys=True)
        if key not in known:
            known[key] = build_data(config)
        self.data = known[key]
        task, _ = build_task(config, self.data)
        self.task, self.device, self.half = task.to(device).train(), device, half
        torch.set_float32_matmul_precision("high" if half else "highest")
        groups = parameter_groups(self.task, self.settings.weight_decay, undecayed(self.task))
        self.optimizer = torch.optim.AdamW(groups, lr=self.settings.lr, fused=device == "cuda")

    def batches(self) -> Any:
        """Those of an epoch; of padded prefixes, without end."""
        if self.padded:
            assert isinstance(self.data, HistoryDataset)
            return padded(self.data, 0)
        most = self.settings.max_items
        return token_batches(self.data, "train", self.settings.max_tokens, max_items=most, shuffle=True)

    def step(self, batch: HistoryBatch) -> Tensor:
        """Forward, backward, AdamW."""
        if self.device == "cuda" and not batch.at.is_cuda:  # as the trainer does it
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            if self.padded:
                hidden = self.task.model(batch.stream).values[batch.at]
                loss = softmax_loss(hidden, self.task.model.tied_vectors(), batch.target)  # type: ignore
            else:
                loss = self.task.training_step(batch)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def measure(case: Case, steps: int, wait: Callable[[], None]) -> dict[str, float]:
    """Seconds of an epoch, ms of a step, and the peak of memory: the same batches twice, the second time timed.

    So what is compiled or recorded for a batch's shape is there when it is timed. Scaled to the epoch by the number of
    batches, which hold nearly the same number of tokens; the making of the epoch's batches is timed by itself.
    """
    made = [batch.to(case.device) for batch in islice(case.batches(), 3)] if case.padded else []
    begun = time.perf_counter()
    loader = None if case.padded else case.batches()
    total = loader.sampler.total() if loader is not None else -(-len(case.data.split("train")) // ROWS)
    planned = time.perf_counter() - begun if loader is not None else 0.0
    steps = min(steps, total)

    def ready() -> Iterator[HistoryBatch]:  # of padded prefixes the loader's work is not counted
        return islice(cycle(made) if loader is None else loader, steps)

    for batch in ready():
        case.step(batch)
    wait()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun, tokens = time.perf_counter(), 0
    for batch in ready():
        case.step(batch)
        tokens += batch.stream.num_tokens
    wait()
    each = (time.perf_counter() - begun) / steps
    peak = torch.cuda.max_memory_allocated() / 2**20 if case.device == "cuda" else 0.0
    return {
        "epoch_s": planned + each * total, "step_ms": 1e3 * each, "steps": steps, "of": total,
        "tokens_a_step": tokens / steps, "peak_mib": peak,
    }  # fmt: skip


def profile(case: Case, steps: int, lines: int = 26) -> None:
    """Print what the GPU did in a step, by its kernels."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorder

    batches = list(islice(case.batches(), steps))
    for batch in batches:
        case.step(batch)
    torch.cuda.synchronize()
    with recorder(activities=[ProfilerActivity.CUDA]) as found:
        begun = time.perf_counter()
        for batch in batches:
            case.step(batch)
        torch.cuda.synchronize()
        took = time.perf_counter() - begun
    spent: dict[str, list[float]] = {}
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent.setdefault(event.name, []).append(event.device_time)
    total, launches = sum(map(sum, spent.values())), sum(map(len, spent.values()))
    print(
        f"  {took / steps * 1e3:.2f} ms a step, {total / steps / 1e3:.2f} of the GPU, {launches / steps:.0f} launches"
    )
    for name, times in sorted(spent.items(), key=lambda one: -sum(one[1]))[:lines]:
        print(f"  {sum(times) / steps / 1e3:8.3f} ms {len(times) / steps:5.1f} x {name[:90]}")


def trainer(data_root: str, epochs: int) -> float:
    """Median seconds of an epoch of the first case's training."""
    overrides = [*_ML, _REPLAYED, "train.precision=bf16", f"train.epochs={epochs}", f"train.eval_every={epochs}"]
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(load_config("ml-1m", overrides, data_root=data_root), output=run, quiet=True)
        return statistics.median(row["seconds"] for row in read_log(run)[1:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=45.0, help="after which no case is begun")
    parser.add_argument("--steps", type=int, default=8, help="of prefixes, and of large batches; done twice")
    parser.add_argument("--profile", type=int, default=0, metavar="STEPS")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the cases' names")
    parser.add_argument("--epochs", type=int, default=0, help="of the trainer")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    cases = {name: words for name, words in CASES.items() if any(part in name for part in options.only)}
    end, found = time.monotonic() + options.seconds, {}
    print("| case | epoch, s | steps timed | tokens a step | step, ms | peak, MiB | s in all |")
    print("|---|---|---|---|---|---|---|", flush=True)
    known: dict[str, Any] = {}
    for name, words in cases.items():
        if time.monotonic() > end:
            print(f"no time for {name}")
            continue
        ready = time.monotonic()
        case = Case(words, options.data, options.device, known)
        if options.profile:
            print(name, flush=True)
            profile(case, options.profile)
            continue
        whole = case.settings.max_tokens < 50_000 and not case.padded
        row = measure(case, 1 << 30 if whole else options.steps, wait)
        row["whole_s"] = time.monotonic() - ready
        del case
        found[name] = {key: round(value, 3) for key, value in row.items()}
        print(
            f"| {name} | {row['epoch_s']:.2f} | {row['steps']} of {row['of']} | {row['tokens_a_step']:,.0f} "
            f"| {row['step_ms']:.2f} | {row['peak_mib']:,.0f} | {row['whole_s']:.1f} |",
            flush=True,
        )
        if options.out:  # at once: whoever has little time may be cut off
            device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
            what = {"device": device, "torch": torch.__version__, "cases": found}
            options.out.write_text(json.dumps(what, indent=1))
    theirs = "Mamba4Rec strong, padded prefixes"
    for ours in ("Mamba4Rec strong, packed", "Mamba4Rec strong, packed, replayed"):
        if ours in found and theirs in found:
            ratio = found[theirs]["epoch_s"] / found[ours]["epoch_s"]
            print(f"\nan epoch of padded prefixes takes {ratio:.0f} times as long as {ours}")
    if options.epochs:
        print(f"\ntrainer: {trainer(options.data, options.epochs):.2f} s an epoch", flush=True)


if __name__ == "__main__":
    main()
