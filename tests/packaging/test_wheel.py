"""What the wheel holds, and that a clean environment works with it and a third party's plugin."""

from __future__ import annotations

import configparser
import json
import os
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"seqgraph", "seqgraph_kernels", "seqgraph_graph_mamba", "seqgraph_lc_plm", "seqgraph_mamba4rec"}
THIRD_PARTY = ROOT / "examples/third_party_plugin"


def build(project: Path, output: Path) -> Path:
    """A wheel, by the build backend itself: no network, no subprocess."""
    from hatchling.builders.wheel import WheelBuilder

    [wheel] = WheelBuilder(str(project)).build(directory=str(output), versions=["standard"])
    return Path(wheel)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_wheel_holds_the_packages_and_nothing_else(names: list[str]) -> None:
    tops = {PurePosixPath(name).parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
        assert f"{package}/__init__.py" in names


def test_every_file_of_the_packages_is_in_the_wheel(names: list[str], project: dict) -> None:
    """An unanchored line of .gitignore would silently leave files out."""
    for folder in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        package = ROOT / folder
        there = {
            f"{package.name}/{path.relative_to(package).as_posix()}"
            for path in package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".nbi", ".nbc")
        }
        assert there <= set(names), sorted(there - set(names))
        assert any(name.endswith(".py") for name in there)


def test_presets_and_templates_are_in_the_wheel(names: list[str]) -> None:
    for plugin in PACKAGES - {"seqgraph", "seqgraph_kernels"}:
        assert any(name.startswith(f"{plugin}/presets/") and name.endswith(".yaml") for name in names), plugin
    assert "seqgraph/cli/templates/plugin/pyproject.toml.tmpl" in names


def test_the_lists_of_plugins_agree(wheel: Path, project: dict) -> None:
    folders = {p.name for p in (ROOT / "plugins").iterdir() if p.is_dir() and not p.name.startswith((".", "__"))}
    listed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert all((ROOT / folder).is_dir() for folder in listed)  # hatchling does not mind a missing one
    assert {Path(folder).name for folder in listed if folder.startswith("plugins/")} == folders
    points = project["project"]["entry-points"]["seqgraph.plugins"]
    assert {value.partition(".")[0] for value in points.values()} == folders
    archive = zipfile.ZipFile(wheel)
    [file] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(file).decode())
    assert dict(parser["seqgraph.plugins"]) == points


def test_every_extra_is_in_all(project: dict) -> None:
    extras = project["project"]["optional-dependencies"]
    assert extras["all"] == [f"seqgraph[{','.join(name for name in extras if name != 'all')}]"]


@pytest.fixture(scope="module")
def clean_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment, into which pip has installed the two wheels.

    All other packages are those of this environment, put last on the path by a .pth file. The .pth files among them
    are not read, so that the editable install of this checkout does not exist there.
    """
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False)
    third_party = build(THIRD_PARTY, tmp_path_factory.mktemp("third"))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel), str(third_party)], check=True, timeout=300)
    [packages] = (folder / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


def test_clean_environment_lists_and_trains_the_third_party(clean_bin: Path, tmp_path: Path, run: Callable) -> None:
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "SEQGRAPH_STRICT_PLUGINS": "1",
        "OMP_NUM_THREADS": "1",
    }

    def program(*words: str) -> str:
        return run(clean_bin / "seqgraph", *words, cwd=tmp_path, env=environ)

    place = run(clean_bin / "python", "-c", "import seqgraph; print(seqgraph.__file__)", cwd=tmp_path, env=environ)
    assert Path(place).is_relative_to(clean_bin.parent)
    plugins = {row["name"]: row for row in json.loads(program("plugins", "--json"))}
    assert {"core", "graph-mamba", "lc-plm", "mamba4rec", "timeseries"} <= set(plugins)
    assert plugins["timeseries"]["distribution"] == "seqgraph-timeseries"
    models = {row["name"]: row for row in json.loads(program("models", "--json"))}
    assert (models["variate-mamba"]["plugin"], models["variate-mamba"]["status"]) == ("timeseries", "ok")
    preset = program("presets", "show", "weather-nyc")
    assert "variate-mamba" in preset
    options = ["train.epochs=1", "model.n_layers=1", "train.lr=3e-3", "-o", "run", "--json"]
    result = json.loads(program("train", "weather-nyc", *options))
    assert result["mean"]["mse"] < 0.9 * result["baseline"]["mse"]
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_every_entry_point_loads_from_the_wheel(clean_bin: Path, tmp_path: Path, run: Callable) -> None:
    code = (
        "from importlib.metadata import entry_points as e\n"
        "print(*sorted(p.load().__file__ for p in e(group='seqgraph.plugins')), sep='\\n')\n"
        "[program] = [p for p in e(group='console_scripts') if p.name == 'seqgraph']\n"
        "print(program.load().__code__.co_filename)"
    )
    files = run(clean_bin / "python", "-c", code, cwd=tmp_path).splitlines()
    assert len(files) >= 5
    assert all(Path(file).is_relative_to(clean_bin.parent) for file in files), files


def test_third_party_passes_its_own_tests(tmp_path: Path, run: Callable, put_on_path: Callable, python: str) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not preset"]
    said = run(python, *words, cwd=THIRD_PARTY, env=put_on_path(THIRD_PARTY))
    assert "22 passed" in said
