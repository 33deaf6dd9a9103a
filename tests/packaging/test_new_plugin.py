"""The skeleton that ``seqgraph new-plugin`` writes is a plugin that works."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from seqgraph.cli.new_plugin import write_plugin
from seqgraph.errors import UserError
from seqgraph.plugin.manager import Manager


def test_skeleton_is_listed_conforms_and_trains(
    tmp_path: Path, python: str, run: Callable, put_on_path: Callable
) -> None:
    folder = tmp_path / "seqgraph-two-words"
    said = run(python, "-m", "seqgraph", "new-plugin", "two-words", "-o", folder)
    assert f"pip install -e {folder}" in said
    environ = put_on_path(folder)
    rows = {r["name"]: r for r in json.loads(run(python, "-m", "seqgraph", "plugins", "--json", env=environ))}
    assert rows["two-words"]["provides"] == {
        "models": ["two-words"],
        "datasets": ["two-words-toy"],
        "tasks": ["two-words-regression"],
        "presets": ["two-words"],
    }
    # Its own tests: the conformance suite, and a training that beats the mean by far.
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder, env=environ)
    assert "10 passed" in said


def test_skeleton_is_clean(tmp_path: Path, plugin_manager: Manager) -> None:
    folder = write_plugin("seqgraph-clean", tmp_path / "clean")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 13
    for path in files:
        text = path.read_text()
        assert "$" not in text, path
        if path.suffix == ".py":
            ast.parse(text)
            assert max(map(len, text.splitlines()), default=0) <= 120
    assert 'name = "seqgraph-clean"' in (folder / "pyproject.toml").read_text()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["Upper", "two words", "under_score", "", "-x", "9lives", "../x"])
def test_bad_names(name: str, tmp_path: Path, plugin_manager: Manager) -> None:
    with pytest.raises(UserError, match="cannot be a plugin's name"):
        write_plugin(name, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, plugin_manager: Manager) -> None:
    with pytest.raises(UserError, match="exists already"):
        write_plugin("fresh", tmp_path)
    with pytest.raises(UserError, match="named 'core' already"):
        write_plugin("core", tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_plugin("fresh", tmp_path / "file" / "below")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
