"""The entry of the program: picks the one command to import, and turns every error into an exit code."""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from seqgraph.cli import output
from seqgraph.errors import PluginError, UserError
from seqgraph.plugin import manager
from seqgraph.plugin.types import Command
from seqgraph.spinning import limit_spinning

USER_ERROR, UNEXPECTED, INTERRUPTED = 2, 1, 130
_SECTION = re.compile(r"\n\s*(Args|Arguments|Returns|Raises|Yields|Example|Examples):\s*\n.*\Z", re.DOTALL)


@dataclass
class _Line:
    """What must be known of the command line before typer reads it."""

    arguments: list[str] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)
    command: str | None = None
    debug: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        The exit code: 0, 1 for an unexpected error, 2 for one of the user's, 130 when interrupted.
    """
    limit_spinning()
    line = _read(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.simplefilter("always", manager.PluginWarning)
        warnings.showwarning = output.show_warning
        try:
            code = _run(line)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # the reader, "head" say, has seen enough
            # Python flushes once more at the end, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return UNEXPECTED
        except (Exception, KeyboardInterrupt) as error:
            if line.debug:
                traceback.print_exc()
            return _explain(error, line.command)


def _read(argv: Sequence[str]) -> _Line:
    """Find the command's name, the loose plugins and --debug, which may stand anywhere before a "--"."""
    line = _Line()
    rest = iter(argv)
    for word in rest:
        if word == "--":
            line.arguments += [word, *rest]
            break
        if word == "--debug":
            line.debug = True
            continue
        line.arguments.append(word)
        if line.command is not None:
            continue
        if word in ("-p", "--plugin"):
            value = next(rest, None)
            if value is not None:
                line.arguments.append(value)
                line.plugins.append(value)
        elif word.startswith("--plugin="):
            line.plugins.append(word.removeprefix("--plugin="))
        elif word.startswith("-p"):
            line.plugins.append(word.removeprefix("-p"))
        elif not word.startswith("-"):
            line.command = word
    return line


def _run(line: _Line) -> int:
    for plugin in line.plugins:
        manager.load_plugin(plugin)
    app = _build(line.command)
    result = app(args=line.arguments or ["--help"], prog_name="seqgraph", standalone_mode=False)
    if isinstance(result, int) and result == INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _build(chosen: str | None) -> typer.Typer:
    """The program with the chosen command imported, and a stub with a summary for each of the others."""
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", callback=_global_options
    )
    known = set()
    for entry in manager.entries("commands"):
        command = entry.descriptor
        assert isinstance(command, Command)
        known.add(command.name)
        panel = "Commands" if entry.record.name == manager.CORE else "Commands of plugins"
        if command.name == chosen:
            _add(app, manager.resolve(manager.get("commands", command.name)), command, panel)
        elif entry.status in ("ok", "needs extra"):
            app.command(command.name, help=command.summary, rich_help_panel=panel)(_stub)
    strange = chosen is not None and chosen not in known
    if strange and any(record.status == "disabled" for record in manager.records()):
        manager.get("commands", str(chosen))  # its error says which plugins are left out
    return app


def _add(app: typer.Typer, target: Any, command: Command, panel: str) -> None:
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=command.name, help=command.summary, rich_help_panel=panel)
    elif callable(target):
        settings = getattr(target, "context_settings", None)  # click's, of a command that wants some
        text = _help(target) or command.summary
        app.command(command.name, help=text, rich_help_panel=panel, context_settings=settings)(target)
    else:
        owner = manager.provider(command).title
        raise PluginError(f"plugin {owner}: command {command.name}: {command.target} is neither function nor Typer")


def _help(function: Callable[..., Any]) -> str:
    """A function's docstring without the sections that speak of Python, each paragraph on one line."""
    text = _SECTION.sub("", inspect.getdoc(function) or "")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _stub() -> None:
    """Stands for a command that does not run this time."""


def _version(wanted: bool) -> None:
    if wanted:
        from seqgraph import __version__

        print(f"seqgraph {__version__}")
        raise typer.Exit


def _global_options(
    plugin: Annotated[
        list[str] | None,
        typer.Option("-p", "--plugin", metavar="FILE|MODULE", help="Also use the plugin in this file or module."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Graphs, proteins and user histories as ordered token streams, encoded by bidirectional selective SSMs."""


def _explain(error: BaseException, command: str | None) -> int:
    """Print one line for an error, and give its exit code."""
    if isinstance(error, KeyboardInterrupt):
        output.print_note("Interrupted", "stopped by the user")
        return INTERRUPTED
    if isinstance(error, UserError):
        output.print_error(error.message, error.hint)
        return USER_ERROR
    if isinstance(error, typer.Abort):
        output.print_error("aborted")
        return UNEXPECTED
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else f"seqgraph {command or ''}".strip()
        output.print_error(error.format_message(), f"see: {path} --help")
        return error.exit_code
    kernels = sys.modules.get("seqgraph_kernels.dispatch")
    if kernels is not None and isinstance(error, kernels.BackendError):
        output.print_error(str(error), "unset SEQGRAPH_BACKEND, or choose another backend: seqgraph doctor")
        return USER_ERROR
    if "pydantic" in sys.modules:
        from pydantic import ValidationError

        if isinstance(error, ValidationError):
            found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
            output.print_error(f"{error.title}: {'; '.join(found)}")
            return USER_ERROR
    if isinstance(error, OSError) and error.filename is not None:
        output.print_error(f"{error.filename}: {error.strerror}", "check the path, its rights and the free space")
        return USER_ERROR
    output.print_error(f"{type(error).__name__}: {error}", "run with --debug for the traceback")
    return UNEXPECTED
