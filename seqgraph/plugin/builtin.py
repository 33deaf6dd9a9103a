"""The core's own plugin: it comes in by the same hooks as anyone's."""

from __future__ import annotations

from collections.abc import Iterator

from seqgraph.plugin.hookspec import hookimpl
from seqgraph.plugin.types import Command, Order, Tokenizer

_ORDERS = {
    "degree": "Number of neighbours",
    "random": "Seeded noise",
    "pagerank": "PageRank",
    "personalized-pagerank": "PageRank that restarts at chosen nodes",
    "rwse": "How rarely random walks come back (or, on request, how often they land)",
    "bfs": "Breadth-first distance",
    "rcm": "Reverse Cuthill-McKee, which keeps neighbours close",
    "core-number": "k-core number",
    "eigenvector": "Eigenvector centrality",
    "cluster": "Louvain's communities, the largest last or shuffled",
}

_TOKENIZERS = {
    "nodes": ("graph", "One token a node, in the order of a score"),
    "neighborhoods": ("graph", "Walk-sampled neighbourhoods of each node, from large to small"),
    "walks": ("graph", "Fixed-length walks with identity and adjacency windows"),
    "residues": ("protein", "Amino acids with start, end and mask tokens"),
    "interaction-contexts": ("protein", "node2vec walks over proteins with edge and no-edge tokens"),
    "histories": ("recommendation", "The items of each user, in the order of time"),
}

_COMMANDS = {
    "doctor": ("seqgraph.cli.doctor:doctor", "What is installed, which kernels run, and what is broken"),
    "plugins": ("seqgraph.cli.listing:plugins", "Plugins, their state and the cure"),
    "models": ("seqgraph.cli.listing:models", "Models"),
    "datasets": ("seqgraph.cli.listing:datasets", "Data sets"),
    "tasks": ("seqgraph.cli.listing:tasks", "Tasks"),
    "tokenizers": ("seqgraph.cli.listing:tokenizers", "Tokenizers"),
    "orders": ("seqgraph.cli.listing:orders", "Node orders"),
    "formats": ("seqgraph.cli.listing:formats", "Other software's weights that can be loaded"),
    "presets": ("seqgraph.cli.presets:presets", "Presets: list them, or show one"),
    "train": ("seqgraph.cli.train:train", "Train a model from a preset or a YAML file"),
    "evaluate": ("seqgraph.cli.evaluate:evaluate", "Evaluate a finished run"),
    "report": ("seqgraph.cli.report:report", "Compare runs in one HTML page"),
    "new-plugin": ("seqgraph.cli.new_plugin:new_plugin", "Write the skeleton of a plugin of your own"),
}


@hookimpl
def seqgraph_orders() -> Iterator[Order]:
    for name, summary in _ORDERS.items():
        yield Order(name=name, target=f"seqgraph.order:{name.replace('-', '_')}", summary=summary)


@hookimpl
def seqgraph_tokenizers() -> Iterator[Tokenizer]:
    for name, (domain, summary) in _TOKENIZERS.items():
        target = f"seqgraph.tokenize:{name.replace('-', '_')}"
        yield Tokenizer(name=name, target=target, domain=domain, summary=summary)


@hookimpl
def seqgraph_commands() -> Iterator[Command]:
    for name, (target, summary) in _COMMANDS.items():
        yield Command(name=name, target=target, summary=summary)
