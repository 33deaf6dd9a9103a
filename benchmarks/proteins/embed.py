"""Residues a second of ``seqgraph embed`` beside the bare encoder, and beside one protein at a time or padded batches.

    python benchmarks/proteins/embed.py                                       # a small model on the CPU
    python benchmarks/proteins/embed.py --device cuda --size 753M --precision bf16
    (with the repository, kernels/ and plugins/ on PYTHONPATH, or seqgraph installed)

Random weights and proteins; lengths as in Swiss-Prot, more or less (log-normal, median 300, up to 8,192). The ways:

bare     the encoder alone on batches that are packed and on the device already: no reading, no pooling, no files
embed    ``Extraction.run``: FASTA in, one .pt file a protein out (mean of the last layer), the survey not counted
shards   the same into safetensors shards
naive    what scripts do: one protein at a time, padded to a multiple of 64, mean over the residues, ``torch.save``
padded   batches of 16 in the order of the file, padded to the longest, the reverse scan through the padding

The naive ways run the encoder without the fusion of the directions' projections: two in_proj and two out_proj, the
second on flipped copies, as the released code does.

With ``--limit`` a way gets so many proteins as its warm-up says fit into its share of what is left, and what has no
time says so. Every result is printed, and written to ``--out``, as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqgraph.encode import Encoder
from seqgraph.stream import TokenStream
from seqgraph_lc_plm.base import ProteinLM, cut_batches
from seqgraph_lc_plm.extract import Extraction
from seqgraph_lc_plm.fasta import read_fasta
from seqgraph_lc_plm.model import LcPlm

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
WAYS = ("bare", "embed", "naive", "shards", "padded")


class OutOfTime(Exception):
    """The limit; no OSError, which would be taken for a failure to write."""


def write_proteins(path: Path, residues: int) -> None:
    """A FASTA file of about so many residues."""
    draw = np.random.default_rng(0)
    left, number = residues, 0
    with path.open("w") as lines:
        while left > 0:
            length = int(np.clip(draw.lognormal(5.7, 0.8), 20, 8192))
            lines.write(f">p{number}\n{''.join(draw.choice(LETTERS, length))}\n")
            left, number = left - length, number + 1


def released(model: ProteinLM) -> Encoder:
    """The model's blocks as the released code has them: two whole Mambas, which share the parameters of projections."""
    config = {"share": "none", "norm": "rms"}
    with torch.device("meta"):
        twin = Encoder(model.d_model, model.n_layers, **config)  # type: ignore[arg-type]
    names = {name: value for name, value in model.backbone.state_dict().items() if not name.startswith("embedding")}
    left = twin.load_state_dict(names, strict=False, assign=True)
    assert not left.unexpected_keys and all(".mamba_rev." in name for name in left.missing_keys)
    for layer in twin.layers:
        for part in ("in_proj", "out_proj"):
            setattr(layer.mixer.mamba_rev, part, getattr(layer.mixer.mamba_fwd, part))
    return twin.eval()


def naive_states(model: ProteinLM, twin: Encoder, dense: Tensor) -> Tensor:
    """Ids (B, L), padded -> (B, L, D): each direction a whole Mamba, the reverse one on flipped copies."""
    stream = TokenStream.from_lengths(dense.flatten(), [dense.shape[1]] * len(dense)).to(model.device)
    branch, residual, cu = model.backbone.embedding(stream.values), None, stream.cu_seqlens

    def flip(values: Tensor) -> Tensor:
        return values.view(*dense.shape, -1).flip(1).flatten(0, 1)

    for layer in twin.layers:
        normed, residual = layer._join(branch, residual)
        both = layer.mixer
        branch = both.mamba_fwd(normed, cu, "forward") + flip(both.mamba_rev(flip(normed), cu, "forward"))
    return twin._finish(branch, residual).view(*dense.shape, -1)


def naive(model: ProteinLM, twin: Encoder, fasta: Path, out: Path, size: int, multiple: int) -> None:
    """Batches of ``size`` in the order of the file, padded to a multiple, one file each."""
    out.mkdir(exist_ok=True)
    records = list(read_fasta(fasta))
    for start in range(0, len(records), size):
        some = records[start : start + size]
        stream = model.alphabet.encode([r.sequence for r in some])
        dense, lengths = stream.to_dense(fill=model.alphabet.pad_id)
        more = -dense.shape[1] % multiple
        dense = torch.nn.functional.pad(dense, (0, more), value=model.alphabet.pad_id)
        states = naive_states(model, twin, dense.to(model.device)).float().cpu()
        for record, state, length in zip(some, states, lengths.tolist(), strict=True):
            mean = {"label": record.label, "mean_representations": {model.n_layers: state[1 : length - 1].mean(0)}}
            torch.save(mean, out / f"{record.label}.pt")


def bare(model: ProteinLM, batches: list[TokenStream]) -> None:
    """The encoder alone."""
    for batch in batches:
        model.backbone(batch)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def packed(model: ProteinLM, fasta: Path, max_tokens: int) -> Iterator[TokenStream]:
    """The file's proteins in batches on the device."""
    sequences = [record.sequence for record in read_fasta(fasta)]
    stream = model.alphabet.encode(sequences)
    for chosen in cut_batches(stream.lengths.tolist(), max_tokens):
        yield stream[chosen].to(model.device)


def difference(model: ProteinLM, twin: Encoder, context: AbstractContextManager) -> float:
    """How far the naive embedding of a protein is from the model's, as a share of its length."""
    sequence = "".join(np.random.default_rng(1).choice(LETTERS, 62))
    with torch.no_grad(), context:
        states = naive_states(model, twin, model.alphabet.encode([sequence]).values[None])
        theirs, ours = states[0, 1:-1].float().mean(0).cpu(), model.embed([sequence])[0].cpu()
    found = ((theirs - ours).norm() / ours.norm()).item()
    if not found < 0.1:
        raise AssertionError(f"the naive way computes something else: {found:.3g}")
    return found


def seconds(call: Callable[[], object], context: AbstractContextManager) -> float:
    began = time.perf_counter()
    with torch.no_grad(), context:
        call()
    return time.perf_counter() - began


class Ways:
    """The ways on files in a folder, each measured within its share of the time.

    Args:
        model: in evaluation mode on its device.
        work: folder of the files.
        options: the command line.
    """

    def __init__(self, model: ProteinLM, work: Path, options: argparse.Namespace) -> None:
        self.model, self.work, self.options = model, work, options
        self.twin: Encoder | None = None

    def context(self) -> AbstractContextManager:
        bf16 = self.options.precision == "bf16"
        return torch.autocast(self.model.device.type, torch.bfloat16) if bf16 else nullcontext()

    def seconds(self, way: str, file: str) -> float:
        """What a way takes for a file; reading is counted where the way reads."""
        fasta, out, tokens = self.work / f"{file}.fasta", self.work / f"{file}-{way}", self.options.tokens
        if way == "bare":
            batches = list(packed(self.model, fasta, tokens))
            return seconds(partial(bare, self.model, batches), self.context())
        if way in ("naive", "padded"):
            assert self.twin is not None
            size, multiple = (1, 64) if way == "naive" else (16, 1)
            return seconds(partial(naive, self.model, self.twin, fasta, out, size, multiple), self.context())
        shards: dict[str, Any] = {"format": "safetensors", "shard_bytes": 2**29} if way == "shards" else {}
        job = Extraction(fasta=fasta, max_tokens=tokens, precision=self.options.precision, **shards)
        surveyed = job.survey
        return seconds(lambda: job.run(self.model, out, surveyed=surveyed, overwrite=True), nullcontext())

    def measure(self, way: str, residues: int, share: float) -> dict[str, Any]:
        """Warm up, then as many proteins as the warm-up says fit into ``share`` seconds, at most ``residues``."""
        began = time.perf_counter()
        found: dict[str, Any] = {"way": way}
        if way in ("naive", "padded") and self.twin is None:
            self.twin = released(self.model)
            found["difference"] = difference(self.model, self.twin, self.context())
        # On a GPU several batches: each new shape has its own first time.
        batches = 0.125 if way == "naive" else 4 if self.model.device.type == "cuda" else 1
        warm = min(residues, int(self.options.tokens * batches))
        write_proteins(self.work / "warm.fasta", warm)
        self.seconds(way, "warm")
        rate = warm / self.seconds(way, "warm")
        left = max(share - (time.perf_counter() - began), 0.2 * share)
        write_proteins(self.work / "all.fasta", max(1, min(residues, int(rate * left))))
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        warmed = time.perf_counter()
        took = self.seconds(way, "all")
        lengths = [len(record.sequence) for record in read_fasta(self.work / "all.fasta")]
        found |= {"residues_per_second": sum(lengths) / took, "proteins": len(lengths), "residues": sum(lengths)}
        found |= {"seconds": took, "warm_up": warmed - began}
        if self.model.device.type == "cuda":
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return found


def main() -> None:
    # The imports above count too: nearly all of what the process has computed until here.
    began = time.monotonic() - time.process_time()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="1M")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--residues", type=int, help="at most; by default 60,000 on a CPU, 4,000,000 on a GPU")
    parser.add_argument("--naive-residues", type=int, help="at most, for the naive ways; by default a tenth")
    parser.add_argument("--tokens", type=int, default=16384, help="a batch")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--limit", type=float, default=600, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    residues = options.residues or (4_000_000 if on_gpu else 60_000)
    few = options.naive_residues or residues // (10 if on_gpu else 4)
    deadline = began + options.limit

    def stop(*_: object) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - time.monotonic()))
    results: list[dict[str, Any]] = []
    try:
        torch.manual_seed(0)
        with torch.device(options.device):
            model = LcPlm(size=options.size).eval()
        parameters = sum(p.numel() for p in model.parameters())
        name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
        about = {"size": options.size, "parameters": parameters, "precision": options.precision, "device": name}
        print(f"lc-plm {options.size} ({parameters:,} parameters), {options.precision}, {name}, torch "
              f"{torch.__version__}; built {time.monotonic() - began:.1f} s in", flush=True)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            ways = Ways(model, Path(folder), options)
            for i, way in enumerate(options.ways):
                share = (deadline - time.monotonic() - 1) / (len(options.ways) - i)
                found = ways.measure(way, few if way in ("naive", "padded") else residues, share)
                results.append(found)
                if options.out:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    options.out.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
                print(line(found) + f", {time.monotonic() - began:.1f} s in", flush=True)
    except OutOfTime:
        print(f"no time for {', '.join(options.ways[len(results) :])}", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    speeds = {found["way"]: found["residues_per_second"] for found in results}
    if "embed" in speeds:
        for way in (way for way in speeds if way != "embed"):
            print(f"embed is {speeds['embed'] / speeds[way]:.3g} x {way}")


def line(found: dict[str, Any]) -> str:
    """A result in words."""
    more = f", peak {found['peak_gib']:.1f} GiB" if "peak_gib" in found else ""
    more += f", differs by {found['difference']:.1e}" if "difference" in found else ""
    return (
        f"{found['way']:7} {found['residues_per_second']:>12,.0f} residues/s  ({found['proteins']} proteins, "
        f"{found['seconds']:.1f} s{more}); warm-up {found['warm_up']:.1f} s"
    )


if __name__ == "__main__":
    main()
