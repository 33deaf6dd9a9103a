"""The guide in docs/ is run: its ``console`` and ``python`` blocks in order, in one folder, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "train-a-gnn-replacement.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Each command of a console block, and the lines below it."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def run(command: str | list[str], folder: Path) -> list[str]:
    """What it prints, on both streams; ``seqgraph`` is this interpreter's."""
    if isinstance(command, str):
        command = ["bash", "-c", re.sub(r"^seqgraph\b", f"{sys.executable} -m seqgraph", command)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"GOMP_SPINCOUNT": "1000", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 2) and "Traceback" not in done.stdout, done.stdout[-3000:]
    return [line.rstrip() for line in done.stdout.splitlines()]


def shape(lines: list[str]) -> list[str]:
    """Without numbers, stars of the best epochs, and the widths of columns that hang on them."""
    masked = [re.sub(r"-?\d[\d,.]*(e[-+]\d+)?", "#", re.sub(r"fingerprint \w+|\*$", "", line)) for line in lines]
    return [re.sub(r"\s+", " ", line).strip() for line in masked if line.strip()]


@pytest.mark.slow
def test_the_guide_prints_what_it_says(tmp_path):
    blocks = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    assert sum(kind == "console" for kind, _ in blocks) > 7
    for kind, text in blocks:
        if kind == "python":
            run([sys.executable, "-c", text], tmp_path)
            continue
        for command, told in commands(text):
            assert shape(run(command, tmp_path)) == shape(told), command


def test_the_guide_names_presets_and_settings_that_exist():
    from seqgraph.config import load_config
    from seqgraph.plugin import manager

    text = GUIDE.read_text(encoding="utf-8")
    presets = {entry.descriptor.name for entry in manager.entries("presets")}
    pattern = r"^(?:\$ |torchrun .* )?seqgraph train (?!runs/)([a-z][\w-]*)((?: [\w.]+=\S+)*)"
    found = re.findall(pattern, text, re.MULTILINE)
    assert len(found) > 6
    for name, overrides in found:
        assert name in presets
        load_config(name, overrides.split())
    named = set(re.findall(r"`(peptides-func[\w-]*|ogbg-molesol[\w-]*)", text)) - {"peptides-func-"}
    assert named <= presets
