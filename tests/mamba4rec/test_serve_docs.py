"""``docs/from-clicks-to-a-service.md``: its commands run in its order, on a part of its data, and print such things."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from service import Client, Process

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "from-clicks-to-a-service.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(YAML,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
# Each command and what it prints.
CONSOLE = [
    (command, answer)
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    for command, answer in re.findall(r"^\$ ([^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", block, re.MULTILINE)
]
USERS = 120


def run(command: list[str], folder: Path) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The folder after step 2, with the first users only and one epoch."""
    pytest.importorskip("recbole", reason="the page's data come with RecBole")
    folder = tmp_path_factory.mktemp("tour")
    run([sys.executable, "-c", PYTHON[0]], folder)
    lines = (folder / "clicks.csv").read_text().splitlines(keepends=True)
    told = next(answer for command, answer in CONSOLE if command.startswith("head"))
    assert "".join(lines[:3]) == told and len(lines) == 100_001
    kept = [line for line in lines[1:] if int(line.split(",")[0]) <= USERS]
    (folder / "clicks.csv").write_text(lines[0] + "".join(kept))
    (folder / "clicks.yaml").write_text(YAML)
    (train,) = [command for command, _ in CONSOLE if command.startswith("seqgraph train")]
    printed = run([sys.executable, "-m", *shlex.split(train), "train.epochs=1"], folder)
    assert re.search(r"^HR@10-unseen( +\d\S*){3}$", printed, re.MULTILINE)
    return folder


def shape(value):
    """JSON with its texts and numbers taken for one another."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return None if value is None else type(value)


def test_the_file_of_lists(shop):
    told = dict(CONSOLE)
    prepare = next(command for command in told if command.startswith("printf"))
    command = next(command for command in told if command.startswith("seqgraph recommend"))
    run(["bash", "-c", prepare], shop)
    assert run([sys.executable, "-m", *shlex.split(command)], shop) == told[command]
    lines, expected = (shop / "lists.csv").read_text().splitlines(), told["cat lists.csv"].splitlines()
    assert lines[0] == expected[0] and [x.split(",")[:2] for x in lines] == [x.split(",")[:2] for x in expected]


def test_the_service(shop):
    """Each curl of the page against a service of its own, killed where the page kills it."""
    asked = [(c, a) for c, a in CONSOLE if c.startswith("curl") and "localhost" in c]
    assert len(asked) == 7 and "history?user=ann" in asked[-1][0]
    service = Process(shop / "shop", shop / "shop.users")
    try:
        for command, answer in asked:
            words = shlex.split(command)
            if "history?user" in command:
                service.end(9)
                service = Process(shop / "shop", shop / "shop.users")
            body = words[words.index("-d") + 1].encode() if "-d" in words else None
            path = "/" + next(word for word in words if word.startswith("localhost")).partition("/")[2]
            _, got = Client(service.url)(path, raw=body)
            expected = json.loads(answer)
            assert shape(got) == shape(expected)
            if "rank" not in answer and "weights" not in answer:
                assert got == expected
    finally:
        service.end(9)


def test_python_without_a_server(shop):
    printed = run([sys.executable, "-c", PYTHON[1]], shop).splitlines()
    assert len(printed) == 2 and printed[0].count("'") >= 6 and printed[1] == "['ann', 'bob']"


def test_options_that_the_page_names_exist():
    from seqgraph_mamba4rec.serve import command

    source = Path(command.__file__).read_text()
    for option in set(re.findall(r"--[a-z]+(?:-[a-z]+)*", TEXT)):
        assert f"{option[2:].replace('-', '_')}:" in source or option == "--max-k", option
