"""LC-PLM beside ESM-2 of the same size: the same proteins, task, token budget and optimiser; learning rates by search.

    python benchmarks/proteins/pretrain_gpu.py tune  --data swissprot.tsv.xz --out OUT --steps 600 --lrs 1e-3 2e-3 4e-3
    python benchmarks/proteins/pretrain_gpu.py final --data swissprot.tsv.xz --out OUT --steps 4000 --seeds 0 1 \
        --lr lc-plm-8m=4e-3 esm2-8m=2e-3

The table holds cluster, split and sequence under these names (``pack`` makes it from swissprot2014). Trainings come one
after another; each begins only if it should end within ``--limit`` seconds, by the time of those before. A line is
printed and written to OUT/results.jsonl after each, with the loss by length of the held-out proteins; the best weights
of ``final`` are kept in fp16 where they have at most 16 MiB. ``--resume`` leaves out the trainings that OUT names.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import sys
import time
from pathlib import Path
from typing import Any

BINS = ("loss_to_256", "loss_to_512", "loss_to_1024", "loss_to_2048", "loss_to_4096", "loss_over_4096")
LARGEST = 16 << 20  # bytes of the weights that are kept


def pack(source: Path, target: Path, members: int) -> None:
    """Of swissprot_2014_01.tsv.xz every held-out protein, and so many distinct members of each training cluster."""
    rows, taken, seen, numbers = [], {}, set(), {}
    with lzma.open(source, "rt", encoding="ascii") as lines:
        for line in lines:
            _, cluster, split, sequence = line.rstrip("\n").split("\t")
            if split == "train":
                if taken.get(cluster, 0) >= members or (cluster, sequence) in seen:
                    continue
                taken[cluster] = taken.get(cluster, 0) + 1
                seen.add((cluster, sequence))
            rows.append((split, numbers.setdefault(cluster, len(numbers)), sequence))
    rows.sort(key=lambda row: row[:2])
    text = "cluster\tsplit\tsequence\n" + "".join(f"{c}\t{split}\t{sequence}\n" for split, c, sequence in rows)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lzma.compress(text.encode("ascii"), preset=6))
    print(f"{len(rows)} proteins, {sum(len(row[2]) for row in rows)} residues, {target.stat().st_size} bytes")


def jobs(options: argparse.Namespace) -> list[tuple[str, float, int]]:
    """(preset, learning rate, seed) of each training, both models in turn."""
    presets = [f"{family}-{size}" for size in options.sizes for family in ("lc-plm", "esm2")]
    if options.stage == "tune":
        return [(preset, rate, options.seeds[0]) for rate in options.lrs for preset in presets]
    chosen = dict(text.split("=") for text in options.lr)
    if missing := [preset for preset in presets if preset not in chosen]:
        sys.exit(f"--lr lacks {', '.join(missing)}: write --lr {missing[0]}=2e-3")
    return [(preset, float(chosen[preset]), seed) for seed in options.seeds for preset in presets]


def train(preset: str, rate: float, seed: int, table: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One training, and what is to be said of it."""
    import torch

    import seqgraph as sg

    name = f"{preset}-lr{rate:g}-seed{seed}"
    run = options.work / name
    if run.exists():
        shutil.rmtree(run)
    words = [
        f"data.path={table}", "data.columns=null", f"train.lr={rate}", f"train.max_steps={options.steps}",
        f"train.eval_every={options.eval_every}", f"seed={seed}", *options.set,
    ]  # fmt: skip
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    result = sg.train(preset, words, output=run, quiet=not options.verbose)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    # The first epoch compiles kernels; a rate is of the last.
    speed = {key: log[-1].get(key) for key in ("tokens_per_second", "tflop_per_second", "utilisation")}
    kept = json.loads((run / "metrics.json").read_text())
    found = {
        "preset": preset, "lr": rate, "seed": seed, "steps": log[-1]["step"],
        "seconds": round(time.perf_counter() - began, 1), **speed,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "valid": kept["valid"], "test": result.metrics[0], "unigram": kept["baseline"].get("loss"),
        "log": [{key: row[key] for key in ("step", "train_loss", "valid_loss") if key in row} for row in log],
    }  # fmt: skip
    if options.stage == "final":
        keep(run / "best", options.out / name)
    return found


def keep(best: Path, target: Path) -> None:
    """The best weights in fp16 and what is needed to load them, unless that is too large."""
    from seqgraph.train.checkpoint import read_tensors, write_tensors

    whole = read_tensors(best / "model.safetensors")
    # A tied head is one tensor, and stays one.
    half = {id(value): value.half() if value.is_floating_point() else value for value in whole.values()}
    if sum(value.nbytes for value in half.values()) > LARGEST:
        return
    target.mkdir(parents=True, exist_ok=True)
    write_tensors(target / "model.safetensors", {name: half[id(value)] for name, value in whole.items()})
    for name in ("config.json", "assets.json", "metrics.json", "MODEL_CARD.md"):
        shutil.copy(best / name, target / name)


def table_of(results: list[dict[str, Any]]) -> str:
    """A row for each training: loss of all held-out proteins and by length, and speed."""
    head = "| model | lr | seed | steps | valid | test | ≤256 | 512 | 1k | 2k | 4k | >4k "
    lines = [head + "| tokens/s | TFLOP/s | of peak | GiB |"]
    lines.append("|---" * 16 + "|")
    for r in results:
        bins = [f"{r['test'][name]:.3f}" if name in r["test"] else "" for name in BINS]
        cells = [
            r["preset"],
            f"{r['lr']:g}",
            r["seed"],
            r["steps"],
            f"{r['valid']['loss']:.4f}",
            f"{r['test']['loss']:.4f}",
            *bins,
        ]
        share = f"{r['utilisation']:.1%}" if r["utilisation"] else ""
        cells += [f"{r['tokens_per_second']:,.0f}", r["tflop_per_second"], share, r["peak_gib"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["pack", "tune", "final"])
    parser.add_argument("--data", type=Path, required=True, help="the packed table; for pack: swissprot_2014_01.tsv.xz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; for pack: the table to write")
    parser.add_argument("--members", type=int, default=2, help="pack: proteins of each training cluster")
    parser.add_argument("--work", type=Path, default=Path("/tmp/pretrain"), help="folder of the runs")
    parser.add_argument("--sizes", nargs="+", default=["8m"], choices=["8m", "35m"])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--eval-every", type=int, default=2, help="epochs between evaluations")
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--lr", nargs="+", default=[], metavar="PRESET=LR", help="final: the rate of each preset")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tokens", type=int, default=65536, help="of a step")
    parser.add_argument("--limit", type=float, default=560, help="seconds for everything")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more overrides, for both models")
    parser.add_argument("--resume", action="store_true", help="leave out what OUT/results.jsonl has already")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if options.stage == "pack":
        pack(options.data, options.out, options.members)
        return
    began = time.perf_counter()
    options.set = [f"train.max_tokens={options.tokens}", "train.epochs=1000", *options.set]
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    table = options.work / "proteins.tsv"
    if options.data.suffix == ".xz":
        table.write_bytes(lzma.decompress(options.data.read_bytes()))
    else:
        table = options.data.resolve()
    file = options.out / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if options.resume and file.exists() else []
    done = {(r["preset"], r["lr"], r["seed"]) for r in results}
    for preset, rate, seed in jobs(options):
        if (preset, rate, seed) in done:
            continue
        like = [r["seconds"] for r in results if r["preset"] == preset and r["steps"] == options.steps]
        left = options.limit - (time.perf_counter() - began)
        if left < max(like, default=20):
            print(
                f"{preset} lr {rate:g} seed {seed}: left out, {left:.0f} s left, {max(like, default=20):.0f} s needed"
            )
            continue
        results.append(train(preset, rate, seed, table, options))
        file.write_text("".join(json.dumps(r) + "\n" for r in results))
        r = results[-1]
        print(f"{preset} lr {rate:g} seed {seed}: test {r['test']['loss']:.4f}, valid {r['valid']['loss']:.4f}, "
              f"{r['tokens_per_second']:,.0f} tokens/s, {r['seconds']:.0f} s", flush=True)  # fmt: skip
    print("\n" + table_of(results))


if __name__ == "__main__":
    main()
