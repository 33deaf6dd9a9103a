"""The commands that list what plugins offer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from seqgraph.cli import output
from seqgraph.errors import UserError
from seqgraph.plugin import manager
from seqgraph.plugin.types import KINDS

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Domain = Annotated[str | None, typer.Option("--domain", help="Only those of this domain.")]


def plugins(json: Json = False) -> None:
    """List the plugins with their state: ok, needs extra (and the cure), disabled or broken (and why)."""
    found = plugin_rows()
    if json:
        output.print_json(found)
        return
    columns = ["plugin", "status", "distribution", "version", "source", "offers"]
    rows = [
        [p["name"], p["status"], p["distribution"] or "-", p["version"] or "-", p["source"], _offers(p["provides"])]
        for p in found
    ]
    output.print_table(columns, rows)
    for plugin in found:
        if plugin["reason"]:
            cure = f"; cure: {plugin['cure']}" if plugin["cure"] else ""
            output.print_note(plugin["name"], f"{plugin['status']}: {plugin['reason']}{cure}")
    note_if_none()


def plugin_rows() -> list[dict[str, Any]]:
    """Every plugin's record, with the names of what it offers by kind."""
    records = manager.records()
    rows = []
    for record in records:
        provides = {kind: [e.descriptor.name for e in manager.entries(kind) if e.record is record] for kind in KINDS}
        rows.append({**asdict(record), "provides": {kind: names for kind, names in provides.items() if names}})
    return rows


def note_if_none() -> None:
    """Say so when there is no plugin but the core's own: a checkout that is not installed."""
    if not any(record.name != manager.CORE for record in manager.records()):
        output.print_note("No plugin found", "is seqgraph installed? In its checkout: pip install -e .")


def _offers(provides: dict[str, list[str]]) -> str:
    counted = [f"{len(names)} {kind if len(names) > 1 else kind.removesuffix('s')}" for kind, names in provides.items()]
    return ", ".join(counted) or "-"


def models(domain: Domain = None, json: Json = False) -> None:
    """List the models."""
    _list("models", domain, json)


def datasets(domain: Domain = None, json: Json = False) -> None:
    """List the data sets."""
    _list("datasets", domain, json)


def tasks(domain: Domain = None, json: Json = False) -> None:
    """List the tasks."""
    _list("tasks", domain, json)


def tokenizers(domain: Domain = None, json: Json = False) -> None:
    """List the tokenizers."""
    _list("tokenizers", domain, json)


def orders(json: Json = False) -> None:
    """List the node orders."""
    _list("orders", None, json)


def formats(domain: Domain = None, json: Json = False) -> None:
    """List the layouts of other software's weights that seqgraph.load reads."""
    _list("formats", domain, json)


def _list(kind: str, domain: str | None, json: bool) -> None:
    list_entries(kind, of_domain(kind, domain), json)


def of_domain(kind: str, domain: str | None) -> list[manager.Entry]:
    """Everything of a kind, or only what is of a domain.

    Raises:
        UserError: for a domain that nothing at all is of.
    """
    entries = manager.entries(kind)
    if domain is None:
        return entries
    found = [e for e in entries if getattr(e.descriptor, "domain", None) == domain]
    known = {d for kind in KINDS for e in manager.entries(kind) if (d := getattr(e.descriptor, "domain", None))}
    if not found and domain not in known:
        raise UserError(f"nothing is of the domain {domain!r}", f"there are: {', '.join(sorted(known))}")
    return found


def list_entries(kind: str, entries: list[manager.Entry], json: bool) -> None:
    """Print entries of one kind as a table or as JSON, with the cures of those that cannot be used."""
    rows = [entry_row(entry) for entry in entries]
    if json:
        output.print_json(rows)
        return
    has_domain = "domain" in KINDS[kind].__dataclass_fields__
    columns = ["name", *["domain"] * has_domain, "status", "plugin", "summary"]
    output.print_table(columns, [[row[column] for column in columns] for row in rows])
    for row in rows:
        if row["reason"]:
            cure = f"; cure: {row['cure']}" if row["cure"] else ""
            output.print_note(row["name"], f"{row['reason']}{cure}")
    note_if_none()


def entry_row(entry: manager.Entry) -> dict[str, Any]:
    """One entry as plain values: the descriptor's fields, its state, and who offers it."""
    return {
        **asdict(entry.descriptor),
        "status": entry.status,
        "reason": entry.reason,
        "cure": entry.cure,
        "plugin": entry.record.name,
        "distribution": entry.record.distribution,
        "version": entry.record.version,
    }
