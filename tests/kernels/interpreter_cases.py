"""Run the Triton kernels in Triton's interpreter and print each case's error as one line of JSON.

A program and not a test: Triton decides when it decorates a kernel, so the variable must be set in a fresh process.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch

from seqgraph_kernels import selective_scan
from seqgraph_kernels.selective_scan.plan import Plan

sys.path.insert(0, str(Path(__file__).parent))
from conftest import WIDE, distance, run, scan_case

SCANS = {
    "forward": {"options": False},
    "reverse-all-options": {"direction": "reverse"},
    "both-shared": {"direction": "both"},
    "both-own": {"direction": "both", "own": True},
    "both-own-apart": {"direction": "both", "own": True, "combine": "none"},
}


def compare(op, case, dtype=torch.float32, wide=WIDE):
    tensors, keywords = case
    rounded = {k: v.to(dtype).double() if k in wide else v for k, v in tensors.items()}
    exact = run(op, rounded, keywords | {"backend": "reference"}, dtype=torch.float64)
    return distance(run(op, rounded, keywords | {"backend": "triton"}, dtype=dtype, wide=wide), exact)


def main() -> None:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan(), "memory must start as NaN"
    # Spans of two chunks, so that a segment of 35 tokens is cut in two and its state is handed on.
    triton = importlib.import_module("seqgraph_kernels.selective_scan.triton")
    triton.CHUNK = 16
    triton.forward_plan = lambda sizes: Plan(32, 1 + sizes.even)
    triton.backward_plan = lambda sizes: Plan(32, 1 + sizes.even)
    for name, options in SCANS.items():
        show(f"scan-{name}", compare(selective_scan, scan_case([0, 35, 3], 5, 3, **options)))
    # 64 channels: two to a lane, loaded and stored as one.
    show("scan-pairs", compare(selective_scan, scan_case([34, 3], 64, 5, direction="both")))
    show("scan-pairs-bf16", compare(selective_scan, scan_case([4, 3], 64, 4), torch.bfloat16))
    show("scan-bf16", compare(selective_scan, scan_case([4, 3], 5, 3), torch.bfloat16))
    # B in another precision than C, whose gradients are one product.
    one = compare(selective_scan, scan_case([4, 3], 5, 3, direction="both"), torch.bfloat16, (*WIDE, "B"))
    show("scan-B-alone-bf16", one)
    # The second direction shares some arguments and has a skip where the first has none.
    mixed, keywords = scan_case([0, 35, 3], 5, 3, direction="both", own=True)
    for shared in ("x_rev", "dt_rev", "C_rev", "dt_bias_rev", "D"):
        del mixed[shared]
    show("scan-both-mixed", compare(selective_scan, (mixed, keywords)))
    # Walked in several turns, forward and backward.
    show("scan-many-states", compare(selective_scan, scan_case([3, 0, 20], 3, 37, direction="both")))
    show("scan-empty", compare(selective_scan, scan_case([0, 0], 5, 3, direction="both")))


def show(name: str, result: tuple[float, str]) -> None:
    print(json.dumps({"case": name, "error": result[0], "worst": result[1]}), flush=True)


if __name__ == "__main__":
    main()
