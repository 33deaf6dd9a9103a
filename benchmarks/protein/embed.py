"""Residues a second of ``seqgraph embed`` beside the bare encoder, and beside one protein at a time or padded batches.

    python benchmarks/protein/embed.py                                       # a small model on the CPU
    python benchmarks/protein/embed.py --device cuda --size 753M --precision bf16
    (with the repository, kernels/ and plugins/ on PYTHONPATH, or seqgraph installed)

Random weights and proteins; lengths as in Swiss-Prot, more or less (log-normal, median 300, up to 8,192). Four ways:

bare     the encoder alone on batches that are packed and on the device already: no reading, no pooling, no files
embed    ``Extraction.run``: FASTA in, one .pt file a protein out (mean of the last layer), the survey not counted
shards   the same into safetensors shards
naive    what scripts do: one protein at a time, padded to a multiple of 64, mean over the residues, ``torch.save``
padded   batches of 16 in the order of the file, padded to the longest, the reverse scan through the padding

The naive ways run the encoder without the fusion of the directions' projections: two in_proj and two out_proj, the
second on flipped copies, as the released code does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

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
    out.mkdir()
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


def seconds(call: Callable[[], object], context: AbstractContextManager) -> float:
    began = time.perf_counter()
    with torch.no_grad(), context:
        call()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="1M")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--residues", type=int, help="in the file; by default 60,000 on a CPU, 4,000,000 on a GPU")
    parser.add_argument("--naive-residues", type=int, help="of the file for the naive ways; by default a tenth")
    parser.add_argument("--tokens", type=int, default=16384, help="a batch")
    arguments = parser.parse_args()
    on_gpu = arguments.device != "cpu"
    residues = arguments.residues or (4_000_000 if on_gpu else 60_000)
    few = arguments.naive_residues or residues // (10 if on_gpu else 4)
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = LcPlm(size=arguments.size).eval()
    twin = released(model)
    sequence = "".join(np.random.default_rng(1).choice(LETTERS, 62))
    with torch.no_grad():
        states = naive_states(model, twin, model.alphabet.encode([sequence]).values[None])
    torch.testing.assert_close(states[0, 1:-1].mean(0).cpu(), model.embed([sequence])[0].cpu(), atol=1e-3, rtol=1e-3)
    parameters = sum(p.numel() for p in model.parameters())
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"lc-plm {arguments.size} ({parameters:,} parameters), {arguments.precision}, {name}, torch {torch.__version__}"
    )

    def context() -> AbstractContextManager:
        bf16 = arguments.precision == "bf16"
        return torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext()

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for path, count in (("warm", arguments.tokens), ("few", few), ("all", residues)):
            write_proteins(work / f"{path}.fasta", count)
        options = {"max_tokens": arguments.tokens, "precision": arguments.precision}
        shards = {"format": "safetensors", "shard_bytes": 2**29}

        def extraction(file: str, **more: object) -> Callable[[], object]:
            job = Extraction(fasta=work / f"{file}.fasta", **options, **more)  # type: ignore[arg-type]
            surveyed = job.survey
            return lambda: job.run(model, work / f"{file}-{len(more)}", surveyed=surveyed)

        ways: list[tuple[str, str, Callable[[str], Callable[[], object]]]] = [
            ("bare", "all", lambda f: partial(bare, model, list(packed(model, work / f"{f}.fasta", arguments.tokens)))),
            ("embed", "all", lambda f: extraction(f)),
            ("shards", "all", lambda f: extraction(f, **shards)),
            ("naive", "few", lambda f: partial(naive, model, twin, work / f"{f}.fasta", work / f"{f}-naive", 1, 64)),
            ("padded", "few", lambda f: partial(naive, model, twin, work / f"{f}.fasta", work / f"{f}-padded", 16, 1)),
        ]
        speeds: dict[str, float] = {}
        for way, file, make in ways:
            seconds(make("warm"), nullcontext() if way in ("embed", "shards") else context())
            call = make(file)
            took = seconds(call, nullcontext() if way in ("embed", "shards") else context())
            lengths = [len(r.sequence) for r in read_fasta(work / f"{file}.fasta")]
            speeds[way] = sum(lengths) / took
            peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if on_gpu else ""
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            print(
                f"{way:7} {speeds[way]:>12,.0f} residues/s  ({len(lengths)} proteins, {took:.1f} s{peak})", flush=True
            )
    print(
        f"embed is {speeds['embed'] / speeds['bare']:.0%} of bare, shards {speeds['shards'] / speeds['bare']:.0%}; "
        f"embed is {speeds['embed'] / speeds['naive']:.1f} x naive, {speeds['embed'] / speeds['padded']:.1f} x padded"
    )


if __name__ == "__main__":
    main()
