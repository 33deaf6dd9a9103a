"""How a domain joins: ``from seqgraph.plugin import hookimpl, Model`` is all a plugin module needs."""

from seqgraph.plugin.hookspec import hookimpl
from seqgraph.plugin.types import Command, Dataset, Descriptor, Format, Model, Order, Preset, Task, Tokenizer

__all__ = ["Command", "Dataset", "Descriptor", "Format", "Model", "Order", "Preset", "Task", "Tokenizer", "hookimpl"]
