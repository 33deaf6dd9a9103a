"""Nothing heavy is imported before it is used: measured in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

HEAVY = ("torch", "numpy", "scipy", "numba", "lightning", "torchmetrics", "rdkit", "torch_geometric", "pandas", "esm")
ASK = f"import sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
# Best of a few, because the machine may be busy; the limit is the issue's.
TIMED = """
import subprocess, sys, time
best = 9e9
for _ in range(5):
    start = time.perf_counter()
    subprocess.run([sys.executable, *{command!r}], check=True, stdout=subprocess.DEVNULL)
    best = min(best, time.perf_counter() - start)
print(best)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import seqgraph",
        "import seqgraph as sg; sg.list_models(); sg.list_models('graph'); dir(sg)",
        "from seqgraph.plugin import manager; manager.records()",
        "from seqgraph.cli.main import main; assert main(['--help']) == 0",
        "from seqgraph.cli.main import main; assert main(['--version']) == 0",
        "from seqgraph.cli.main import main; assert main(['plugins', '--json']) == 0",
        "from seqgraph.cli.main import main; assert main(['models', '--json']) == 0",
        "from seqgraph.cli.main import main; assert main(['presets']) == 0",
    ],
)
def test_imports_nothing_heavy(code: str, program: Callable) -> None:
    result = program(python=f"{code}\n{ASK}")
    assert result.code == 0, result.err
    assert result.err.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [["-c", "import seqgraph"], ["-m", "seqgraph", "--help"]], ids=" ".join)
def test_takes_under_a_second(command: list[str], program: Callable) -> None:
    result = program(python=TIMED.format(command=command))
    assert result.code == 0, result.err
    assert float(result.out) < 1.0
