"""The hooks. Each is optional, takes nothing, and yields descriptors of :mod:`seqgraph.plugin.types`."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from seqgraph.plugin import types

PROJECT = "seqgraph"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def seqgraph_models() -> Iterable[types.Model]:
    """Models.

    Example::

        @hookimpl
        def seqgraph_models():
            yield Model(
                name="my-model", domain="mine", summary="One line.",
                target="my_package.model:MyModel", config="my_package.config:MyModelConfig",
            )
    """
    return ()


@hookspec
def seqgraph_tokenizers() -> Iterable[types.Tokenizer]:
    """Functions that turn a domain object into a TokenStream."""
    return ()


@hookspec
def seqgraph_orders() -> Iterable[types.Order]:
    """Node orders: ``(edge_index, num_nodes, batch, *, generator) -> scores``."""
    return ()


@hookspec
def seqgraph_datasets() -> Iterable[types.Dataset]:
    """Data sets that ``data.name`` may name."""
    return ()


@hookspec
def seqgraph_tasks() -> Iterable[types.Task]:
    """Tasks that ``task.name`` may name."""
    return ()


@hookspec
def seqgraph_presets() -> Iterable[types.Preset]:
    """Run configurations that ship as YAML files."""
    return ()


@hookspec
def seqgraph_commands() -> Iterable[types.Command]:
    """Commands of the ``seqgraph`` program."""
    return ()


@hookspec
def seqgraph_formats() -> Iterable[types.Format]:
    """Layouts of other software's weights that ``seqgraph.load`` can read."""
    return ()
