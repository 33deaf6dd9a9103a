"""``seqgraph doctor``: what is installed, which kernels run and why, and what is broken."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

from seqgraph.cli import output
from seqgraph.cli.listing import Json, note_if_none, plugin_rows

_PACKAGES = (
    *("seqgraph", "torch", "triton", "numba", "numpy", "scipy", "lightning", "torchmetrics", "safetensors"),
    *("pydantic", "pluggy", "typer", "rich", "torch-geometric", "rdkit", "networkx", "fair-esm", "recbole"),
    *("pandas", "matplotlib", "jinja2", "scikit-learn"),
)


def doctor(json: Json = False) -> None:
    """Show versions, devices, threads, the kernels' backends and the plugins, with what to do where something lacks."""
    found: dict[str, Any] = {
        "python": {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()},
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(),
        "backends": _backends(),
        "plugins": plugin_rows(),
    }
    if json:
        output.print_json(found)
        return
    out = output.console()
    out.print(f"[bold]Python[/] {found['python']['version']} on {found['python']['platform']}")
    out.print("\n[bold]Packages[/]")
    output.print_table(["package", "version"], [[n, v or "not installed"] for n, v in found["packages"].items()])
    out.print("\n[bold]Devices[/]")
    output.print_table(["what", "value"], [[name, _text(value)] for name, value in found["devices"].items()])
    out.print("\n[bold]Kernels[/]")
    columns = list(found["backends"][0]) if found["backends"] else []
    output.print_table(columns, [[_text(row[c]) for c in columns] for row in found["backends"]])
    out.print("\n[bold]Plugins[/]")
    output.print_table(
        ["plugin", "status", "distribution", "reason", "cure"],
        [[_text(p[c]) for c in ("name", "status", "distribution", "reason", "cure")] for p in found["plugins"]],
    )
    note_if_none()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import torch

    devices: dict[str, Any] = {
        "cpu cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "SEQGRAPH_BACKEND": os.environ.get("SEQGRAPH_BACKEND"),
        "cuda build": torch.version.cuda,
        "cuda available": torch.cuda.is_available(),
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return devices


def _backends() -> list[dict[str, Any]]:
    try:
        from seqgraph_kernels import backend_report

        return backend_report()
    except Exception as error:  # the doctor is called when things are broken
        return [{"op": "all", "available": False, "reason": f"{type(error).__name__}: {error}"}]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)
