"""Nothing heavy is imported before it is used: measured in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

HEAVY = ("torch", "numpy", "scipy", "numba", "lightning", "torchmetrics", "rdkit", "torch_geometric", "pandas", "esm")
ASK = f"import sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
# Processor time, the best of a few: on an idle machine that is the time a user waits, and a busy one does not matter.
TIMED = """
import resource, subprocess, sys
def used():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
best = 9e9
for _ in range(4):
    before = used()
    subprocess.run([sys.executable, *{command!r}], check=True, stdout=subprocess.DEVNULL)
    best = min(best, used() - before)
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
