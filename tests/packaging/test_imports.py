"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if p.is_dir() and p.name.startswith("seqgraph_"))
PLUGGY_HOMES = {"seqgraph/plugin/manager.py", "seqgraph/plugin/hookspec.py"}
HEAVY = {"torch", "numpy", "scipy", "numba", "lightning", "torchmetrics", "pandas", "rdkit", "torch_geometric"}
# What every start of the program imports.
LIGHT = [
    "seqgraph/__init__.py",
    "seqgraph/api.py",
    "seqgraph/config.py",
    "seqgraph/errors.py",
    *(f"seqgraph/plugin/{p.name}" for p in sorted((ROOT / "seqgraph/plugin").glob("*.py"))),
    *(f"seqgraph/cli/{p.name}" for p in sorted((ROOT / "seqgraph/cli").glob("*.py"))),
    *(f"plugins/{name}/{part}.py" for name in PLUGINS for part in ("__init__", "plugin", "config")),
]


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Top-level names of the packages that a file imports; ``top_only`` leaves out what functions import."""
    return {name.partition(".")[0] for name in modules(path, top_only=top_only)}


def modules(path: Path, *, top_only: bool = False) -> set[str]:
    """Modules that a file imports."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in _nodes(tree, top_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            found.add(node.module or "")
    return found


def _nodes(tree: ast.AST, top_only: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not (top_only and (inside or typing_only)):
            yield from _nodes(node, top_only)


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def users_of(package: str) -> set[str]:
    """Files that import a package."""
    files = [path for folder in ("seqgraph", "kernels", "plugins") for path in sources(folder)]
    return {relative(path) for path in files if package in imports(path)}


def test_kernels_import_nothing_of_ours() -> None:
    for path in sources("kernels"):
        assert not [n for n in imports(path) if n.startswith("seqgraph") and n != "seqgraph_kernels"], relative(path)


def test_core_imports_no_plugin() -> None:
    for path in sources("seqgraph"):
        assert not imports(path) & set(PLUGINS), relative(path)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_do_not_import_each_other(plugin: str) -> None:
    for path in sources(f"plugins/{plugin}"):
        assert not imports(path) & (set(PLUGINS) - {plugin}), relative(path)


def test_pluggy_lives_in_two_files() -> None:
    users = users_of("pluggy")
    assert users == PLUGGY_HOMES


def test_lightning_lives_in_train() -> None:
    users = users_of("lightning")
    assert users
    assert all(user.startswith("seqgraph/train/") for user in users), users
    assert len(users) <= 2, f"Lightning belongs behind one module: {users}"


@pytest.mark.parametrize("path", LIGHT)
def test_light_modules_import_nothing_heavy(path: str) -> None:
    assert not imports(ROOT / path, top_only=True) & HEAVY


def test_source_roots_are_no_packages() -> None:
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not (ROOT / "plugins/__init__.py").exists()


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "from __future__ import annotations\nimport a.b\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import c\ndef f():\n    from d.e import g\n"
        "try:\n    import h\nexcept ImportError:\n    pass\n"
    )
    assert imports(path) >= {"a", "c", "d", "h"}
    assert imports(path, top_only=True) == {"__future__", "a", "typing", "h"}
