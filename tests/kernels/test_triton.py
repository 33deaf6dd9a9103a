"""The Triton kernels of the scan without a GPU, in Triton's interpreter."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

CASES = [
    "forward",
    "reverse-all-options",
    "both-shared",
    "both-own",
    "both-own-apart",
    "both-mixed",
    "many-states",
    "pairs",
    "pairs-bf16",
    "bf16",
    "B-alone-bf16",
    "empty",
]
CASES = [f"scan-{name}" for name in CASES]


def release(package):
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.fixture(scope="module")
def interpreted():
    """Error of every case, from one process with the interpreter on."""
    if release("triton") < (3, 9) and release("numpy") >= (2, 4):
        pytest.skip("Triton's interpreter before 3.9 fails on loops with numpy 2.4 and later")
    script = Path(__file__).with_name("interpreter_cases.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("SEQGRAPH_BACKEND", None)
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_interpreted(interpreted, case):
    # Its bf16 stores cut digits off instead of rounding.
    assert interpreted[case]["error"] < (2e-2 if case.endswith("bf16") else 3e-6), interpreted[case]


def test_every_case_is_looked_at(interpreted):
    assert set(interpreted) == set(CASES)
