"""The program's manners: exit codes, one red line, listings, loose plugins, broken plugins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

import seqgraph
from seqgraph.errors import DataError
from seqgraph.plugin import Command, Model
from seqgraph.plugin.manager import Manager

KINDS = ["models", "datasets", "tasks", "tokenizers", "orders", "presets"]


class TinyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    d_model: int = 8


def raise_user_error() -> None:
    raise DataError("ratings.csv, line 7:\n  no timestamp", "add a column\nnamed timestamp")


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def raise_unexpected() -> None:
    raise ZeroDivisionError("division\nby zero")


def raise_backend() -> None:
    from seqgraph_kernels import use_backend

    with use_backend("abacus"):
        pass


def raise_no_file() -> None:
    Path("no/such/file").read_text()


def raise_validation() -> None:
    TinyConfig(d_modle=3)


def say(word: str = "hello", loud: bool = False) -> None:
    """Say a word.

    A sentence that is
    broken over two lines.

    Args:
        word: what to say.
    """
    print(word.upper() if loud else word)


@pytest.fixture
def command(plugin_manager: Manager) -> Callable[[str], None]:
    """Registers a function of this module as the command "it"."""

    def register(function: str, extra: str | None = None) -> None:
        target = f"{__name__}:{function}"
        plugin_manager.register(Command(name="it", summary="Does it.", target=target, extra=extra), "mine")

    return register


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets name this module, which pytest's importlib mode does not put into sys.modules under every name."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this())


def _this():
    import types

    module = types.ModuleType(__name__)
    module.__dict__.update(globals())
    return module


@pytest.mark.parametrize(
    "function, code, error",
    [
        ("raise_user_error", 2, "Error: ratings.csv, line 7: no timestamp\nHint: add a column named timestamp\n"),
        ("raise_interrupt", 130, "Interrupted: stopped by the user\n"),
        (
            "raise_unexpected",
            1,
            "Error: ZeroDivisionError: division by zero\nHint: run with --debug for the traceback\n",
        ),
        (
            "raise_backend",
            2,
            "Error: no backend 'abacus'; there are reference, cpu, triton\n"
            "Hint: unset SEQGRAPH_BACKEND, or choose another backend: seqgraph doctor\n",
        ),
        (
            "raise_no_file",
            2,
            "Error: no/such/file: No such file or directory\nHint: check the path, its rights and the free space\n",
        ),
        ("raise_validation", 2, "Error: TinyConfig: d_modle: Extra inputs are not permitted\n"),
    ],
)
def test_errors(function: str, code: int, error: str, command: Callable, cli: Callable) -> None:
    command(function)
    result = cli("it")
    assert (result.code, result.out, result.err) == (code, "", error)


@pytest.mark.parametrize("argv", [["--debug", "it"], ["it", "--debug"]])
@pytest.mark.parametrize("function, code", [("raise_user_error", 2), ("raise_unexpected", 1)])
def test_debug_shows_the_traceback(argv: list[str], function: str, code: int, command: Callable, cli: Callable) -> None:
    command(function)
    result = cli(*argv)
    assert result.code == code
    assert "Traceback" in result.err and function in result.err


def test_usage_errors(command: Callable, cli: Callable) -> None:
    command("say")
    for argv in (["it", "--lout"], ["itt"], ["-p"], ["--nonsense"], ["it", "--word"]):
        result = cli(*argv)
        assert result.code == 2, argv
        assert result.err.startswith("Error: ") and len(result.err.splitlines()) == 2, result.err
    assert cli("it", "--loud").out == "HELLO\n"
    assert "--debug" not in cli("it", "--word", "x", "--", "--debug").out


def test_help_of_a_command_has_no_python_sections(command: Callable, cli: Callable) -> None:
    command("say")
    result = cli("it", "--help")
    assert "Say a word." in result.out and "what to say" not in result.out
    assert "A sentence that is broken over two lines." in result.out


def test_no_arguments_print_the_help(cli: Callable) -> None:
    assert "Usage" in cli().out and cli().code == 0
    assert cli("--version").out == f"seqgraph {seqgraph.__version__}\n"


def test_command_that_cannot_be_imported_spares_the_help(plugin_manager: Manager, cli: Callable) -> None:
    plugin_manager.register(Command(name="it", summary="Does it.", target="no_such_lib.cli:it"), "mine")
    assert "Does it." in cli("--help").out
    result = cli("it")
    assert result.code == 2
    assert result.err.startswith("Error: plugin mine: it: cannot import no_such_lib.cli:it: ModuleNotFoundError")


def test_command_of_a_wrong_kind(plugin_manager: Manager, cli: Callable) -> None:
    plugin_manager.register(Command(name="it", summary="Does it.", target="json:__name__"), "mine")
    result = cli("it")
    assert result.code == 2 and "neither function nor Typer" in result.err


def test_conflicting_command_cannot_be_run(plugin_manager: Manager, cli: Callable) -> None:
    plugin_manager.register(Command(name="doctor", summary="Another.", target="json:loads"), "mine")
    result = cli("doctor")
    assert result.code == 2
    assert "claimed by core" in result.err and "SEQGRAPH_DISABLE_PLUGINS=mine" in result.err
    assert cli("--help").code == 0


@pytest.mark.parametrize("kind", KINDS)
def test_listings(kind: str, cli: Callable) -> None:
    result = cli(kind, "--json")
    assert result.code == 0
    rows = json.loads(result.out)
    text = cli(kind).out
    for row in rows:
        assert {"name", "summary", "target", "status", "plugin", "cure"} <= set(row)
        assert row["name"] in text and row["summary"] in text
    if kind != "orders":
        for row in json.loads(cli(kind, "--domain", "graph", "--json").out):
            assert row["domain"] == "graph"


def test_plugins_listing(cli: Callable, plugin_manager: Manager) -> None:
    plugin_manager.register(
        Model(name="mine", domain="t", summary="One.", target="json:loads", config="json:loads"), "my-plugin"
    )
    rows = {row["name"]: row for row in json.loads(cli("plugins", "--json").out)}
    assert rows["my-plugin"]["provides"] == {"models": ["mine"]}
    assert rows["my-plugin"]["status"] == "ok"
    assert "degree" in rows["core"]["provides"]["orders"]


def test_no_plugin_found_says_so(plugin_manager: Manager, cli: Callable) -> None:
    for argv in (["plugins"], ["models"]):
        result = cli(*argv)
        assert result.code == 0
        assert result.err == "No plugin found: is seqgraph installed? In its checkout: pip install -e .\n"


def test_presets(plugin_manager: Manager, cli: Callable, tmp_path: Path) -> None:
    result = cli("presets", "show", "no-such")
    assert result.code == 2 and "no preset is named 'no-such'" in result.err


def test_preset_that_ships(cli: Callable) -> None:
    names = [row["name"] for row in json.loads(cli("presets", "--json").out)]
    assert names
    for name in names:
        tree = yaml.safe_load(cli("presets", "show", name).out)
        assert {"model", "data", "task"} <= set(tree)


def test_doctor(cli: Callable) -> None:
    found = json.loads(cli("doctor", "--json").out)
    assert found["packages"]["torch"] and found["python"]["version"].startswith("3.")
    assert {"selective_scan", "causal_conv1d"} <= {row["op"] for row in found["backends"]}
    assert {row["name"] for row in found["plugins"]} >= {"core", "graph-mamba", "lc-plm", "mamba4rec"}
    text = cli("doctor").out
    for heading in ("Python", "Packages", "Devices", "Kernels", "Plugins"):
        assert heading in text


def test_doctor_survives_what_is_broken(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqgraph_kernels", None)
    result = cli("doctor")
    assert result.code == 0 and "import of seqgraph_kernels halted" in result.out


def test_loose_plugin_file(plugin_manager: Manager, cli: Callable, tmp_path: Path) -> None:
    file = tmp_path / "loose_commands.py"
    file.write_text(
        dedent("""
        from seqgraph.plugin import Command, hookimpl
        import typer

        app = typer.Typer()

        @app.command()
        def hi():
            print("hi from a file")

        @app.command()
        def ho():
            print("ho")

        @hookimpl
        def seqgraph_commands():
            yield Command(name="loose", summary="From a file.", target="loose_commands:app")
        """)
    )
    for option in (["-p", str(file)], [f"-p{file}"], ["--plugin", str(file)], [f"--plugin={file}"]):
        assert cli(*option, "loose", "hi").out == "hi from a file\n"
        assert "From a file." in cli(*option, "--help").out
    result = cli("-p", str(tmp_path / "absent.py"), "models")
    assert result.code == 2 and "does not exist" in result.err


BROKEN = """
from seqgraph.plugin import hookimpl
@hookimpl
def seqgraph_modles():
    yield 1
"""


def test_broken_plugin_never_breaks_the_program(tmp_path: Path, program: Callable) -> None:
    (tmp_path / "fake_bad.py").write_text(BROKEN)
    info = tmp_path / "fake_bad-3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-bad\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text("[seqgraph.plugins]\nbad = fake_bad\n")
    environ = {"PYTHONPATH": str(tmp_path)}
    result = program("--help", **environ)
    assert result.code == 0 and "doctor" in result.out
    assert "Warning: plugin bad (fake-bad 3.0) is broken: unknown hook 'seqgraph_modles'" in result.err
    rows = {row["name"]: row for row in json.loads(program("plugins", "--json", **environ).out)}
    assert rows["bad"]["status"] == "broken" and rows["core"]["status"] == "ok"
    strict = program("models", **environ, SEQGRAPH_STRICT_PLUGINS="1")
    assert strict.code == 2 and strict.err.startswith("Error: plugin bad")
    quiet = program("--version", **environ, SEQGRAPH_DISABLE_PLUGINS="bad")
    assert quiet.code == 0 and quiet.err == ""
    gone = program("embed", SEQGRAPH_DISABLE_PLUGINS="lc-plm")
    assert gone.code == 2 and "lc-plm is disabled" in gone.err


def test_domains_must_agree(program: Callable, tmp_path: Path) -> None:
    result = program("train", "lc-plm-sample", "model.name=graph-mamba", "-o", str(tmp_path / "run"))
    assert result.code == 2 and "model graph-mamba is of graph, data swissprot-sample is of protein" in result.err
    assert not (tmp_path / "run").exists()


def test_colour_only_on_a_terminal(program: Callable) -> None:
    for environ in ({}, {"NO_COLOR": "1"}):
        result = program("plugins", **environ)
        assert "\x1b" not in result.out + result.err
    assert "\x1b[1;31m" in program("no-such-command", FORCE_COLOR="1").err
    assert "\x1b[1;31m" not in program("no-such-command", FORCE_COLOR="1", NO_COLOR="1").err


def test_reader_that_has_seen_enough(tmp_path: Path) -> None:
    for argv in (["orders", "--json"], ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([sys.executable, "-m", "seqgraph", *argv], stdout=writer, stderr=-1, cwd=tmp_path)
        os.close(writer)
        assert done.stderr == b"", done.stderr
        assert done.returncode == 1


def test_interrupt_from_outside(tmp_path: Path) -> None:
    file = tmp_path / "slow_command.py"
    file.write_text(
        "import time\nfrom seqgraph.plugin import Command, hookimpl\n"
        "def slow():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "@hookimpl\ndef seqgraph_commands():\n"
        "    yield Command(name='slow', summary='Sleeps.', target='slow_command:slow')\n"
    )
    command = [sys.executable, "-m", "seqgraph", "-p", str(file), "slow"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "Interrupted: stopped by the user\n")


def test_wide_rows_are_not_folded_for_a_pipe(plugin_manager: Manager, cli: Callable) -> None:
    summary = "A summary that goes on and on, " * 6
    plugin_manager.register(Model(name="m", domain="t", summary=summary, target="json:loads", config="json:loads"))
    assert summary in cli("models").out


def test_a_domain_that_nothing_is_of(cli: Callable) -> None:
    for kind in ("models", "presets"):
        result = cli(kind, "--domain", "nonsense")
        assert result.code == 2
        assert "nothing is of the domain 'nonsense'" in result.err and "graph, protein" in result.err
