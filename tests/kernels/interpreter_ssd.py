"""Run the Triton form of ssd in Triton's interpreter; see ``offline.interpreted``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from seqgraph_kernels import ssd

sys.path.insert(0, str(Path(__file__).parent))
from conftest import distance, run, ssd_case
from offline import show

WIDE = ("x", "dt", "z", "B", "C", "x_rev", "dt_rev", "B_rev", "C_rev")
# Chunks are of 16 tokens here and spans of 32: the segment of 37 is walked in two, from either end.
RAGGED = [0, 3, 37, 1]
CASES = {
    "forward": (RAGGED, 2, 3, 1, 5, {"options": False}),
    "reverse": (RAGGED, 4, 3, 2, 5, {"direction": "reverse", "skip": 2}),
    "both": (RAGGED, 2, 3, 1, 5, {"direction": "both"}),
    "both-own": (RAGGED, 2, 3, 2, 5, {"direction": "both", "own": True}),
    "both-own-apart": (RAGGED, 2, 3, 1, 5, {"direction": "both", "own": True, "combine": "none"}),
    "both-apart": (RAGGED, 2, 3, 1, 5, {"direction": "both", "combine": "none"}),
    "shifted": (RAGGED, 2, 3, 1, 5, {"direction": "both", "own": True, "shift": True, "skip": 2}),
    "shifted-reverse": ([20], 2, 3, 1, 5, {"direction": "reverse", "shift": True}),
    "whole-chunks": ([16, 0, 32, 48], 1, 3, 1, 5, {"direction": "both", "options": False}),
    "wide": ([18], 1, 17, 1, 20, {"direction": "both", "options": False}),
    "empty": ([0, 0], 2, 3, 1, 5, {"direction": "both"}),
    "no-segments": ([], 2, 3, 1, 5, {"direction": "both"}),
}


def compare(case, dtype=torch.float32):
    tensors, keywords = case
    rounded = {k: v.to(dtype).double() if k in WIDE else v for k, v in tensors.items()}
    exact = run(ssd, rounded, keywords | {"backend": "reference"}, dtype=torch.float64, wide=WIDE)
    return distance(run(ssd, rounded, keywords | {"backend": "triton"}, dtype=dtype, wide=WIDE), exact)


def main() -> None:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan(), "memory must start as NaN"
    plan = importlib.import_module("seqgraph_kernels.ssd.triton_plan")
    plan.SPAN_LEAST, plan.SHORT = 32, 16
    for name, (lengths, H, P, G, N, options) in CASES.items():
        show(name, compare(ssd_case(lengths, H, P, G, N, **options)))
    show("fp16", compare(ssd_case([35, 2], 2, 3, 1, 5, direction="both"), torch.float16))
    tensors, keywords = ssd_case([35, 2], 2, 3, 1, 5, direction="both")
    tensors["dt"] *= 1e3
    show("huge-steps", compare((tensors, keywords)))


if __name__ == "__main__":
    main()
