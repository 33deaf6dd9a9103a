"""What this plugin offers. Imports no torch and no domain library."""

from __future__ import annotations

from collections.abc import Iterable

from seqgraph.plugin import Command, Dataset, Model, Preset, Task, hookimpl
from seqgraph_graph_mamba.catalogue import DATASETS, PRESETS, TASKS

_PACKAGE = "seqgraph_graph_mamba"


@hookimpl
def seqgraph_models() -> Iterable[Model]:
    """Graph-Mamba, Graph Mamba Networks, walk tokens, and what to compare them with."""
    for name, module, stem, summary, paper in (
        (
            "graph-mamba",
            "model",
            "GraphMamba",
            "GatedGCN beside a selective SSM over prioritized nodes.",
            "Wang, Tsepa, Ma & Wang, Graph-Mamba, 2024, arXiv:2402.00789",
        ),
        (
            "gmn",
            "gmn",
            "GMN",
            "Neighbourhoods of each node from far to near, then all nodes: two-way selective SSMs.",
            "Behrouz & Hashemi, Graph Mamba Networks, 2024, arXiv:2402.08678",
        ),
        (
            "walk-mamba",
            "walk_mamba",
            "WalkMamba",
            "A two-way selective SSM along random walks, read back onto nodes and edges; linear in the graph.",
            "Chen, Schulz & Borgwardt, NeuralWalker, 2024, arXiv:2406.03386",
        ),
        (
            "gnn-plus",
            "gnn_plus",
            "GNNPlus",
            "Tuned message passing, the baseline to beat: GCN+, GIN+ or GatedGCN+.",
            "Luo, Shi & Wu, Unlocking the Potential of Classic GNNs, 2025, arXiv:2502.09263",
        ),
        (
            "gin-vn",
            "gin_vn",
            "GINVN",
            "GIN with a virtual node, molecules' usual baseline, as the Open Graph Benchmark has it.",
            "Hu et al., Open Graph Benchmark, 2020, arXiv:2005.00687",
        ),
        (
            "plus-mamba",
            "plus_mamba",
            "PlusMamba",
            "GCN+ or GIN+ with a narrow two-way selective SSM over prioritized nodes beside each convolution.",
            "not published; its parts are arXiv:2502.09263 and arXiv:2402.00789",
        ),
        (
            "gps",
            "gps",
            "GPS",
            "GatedGCN beside full attention, quadratic in the nodes of a graph.",
            "Rampasek et al., General, Powerful, Scalable Graph Transformer, 2022, arXiv:2205.12454",
        ),
    ):
        yield Model(
            name=name,
            domain="graph",
            summary=summary,
            target=f"{_PACKAGE}.{module}:{stem}",
            config=f"{_PACKAGE}.model_config:{stem}Config",
            example=f"{_PACKAGE}.example:{name.replace('-', '_').upper()}",
            paper=paper,
            extra="graph",
        )


@hookimpl
def seqgraph_datasets() -> Iterable[Dataset]:
    """Molecules, LRGB, and graphs of nodes."""
    yield from DATASETS


@hookimpl
def seqgraph_tasks() -> Iterable[Task]:
    """What is learnt of graphs, nodes and links."""
    yield from TASKS


@hookimpl
def seqgraph_presets() -> Iterable[Preset]:
    """Run configurations."""
    yield from PRESETS
    for name, summary in (
        ("ogbg-molesol", "Graph-Mamba on ESOL: about a minute on two CPU cores, no download."),
        ("ogbg-molbace", "Graph-Mamba on ogbg-molbace; needs --data-root."),
        ("ogbg-molbbbp", "Graph-Mamba on ogbg-molbbbp; needs --data-root."),
        ("ogbg-molfreesolv", "Graph-Mamba on ogbg-molfreesolv; needs --data-root."),
        ("ogbg-molbace-gin-vn", "GIN with a virtual node on ogbg-molbace, OGB's recipe; needs --data-root."),
        ("ogbg-molbbbp-gin-vn", "GIN with a virtual node on ogbg-molbbbp, OGB's recipe; needs --data-root."),
        ("ogbg-molesol-gin-vn", "GIN with a virtual node on ESOL, OGB's recipe; no download."),
        ("ogbg-molfreesolv-gin-vn", "GIN with a virtual node on ogbg-molfreesolv, OGB's recipe; needs --data-root."),
        ("ogbg-molesol-tiny", "Graph-Mamba on ESOL for a few steps: does everything run?"),
        ("peptides-func", "Graph-Mamba on Peptides-func with the published hyper-parameters; needs --data-root."),
        ("peptides-func-plus", "Graph-Mamba on Peptides-func, in both directions and with the recipe of GNN+."),
        ("peptides-func-gmn", "Graph Mamba Networks on Peptides-func."),
        ("peptides-func-gmn-one-direction", "Its ablation: one direction."),
        ("peptides-func-gmn-no-mpnn", "Its ablation: no message passing."),
        ("peptides-func-gmn-ppr", "Its ablation: the order of personalised PageRank."),
        ("peptides-func-gmn-no-pe", "Its ablation: no positional encoding."),
        ("peptides-func-gmn-nodes", "Its form with node tokens, m = 0."),
        ("peptides-func-walk", "Walk tokens on Peptides-func, with NeuralWalker's hyper-parameters."),
        ("peptides-func-gcn", "GCN+ on Peptides-func, the message passing to beat."),
        ("peptides-func-gcn-mamba", "GCN+ on Peptides-func with a BiMamba over the nodes beside its last convolution."),
        ("peptides-func-gin", "GIN+ on Peptides-func."),
        ("peptides-func-gated-gcn", "GatedGCN+ on Peptides-func."),
        ("peptides-func-gps", "GPS on Peptides-func, tuned."),
    ):
        yield Preset(
            name=name, domain="graph", summary=summary, target=f"{_PACKAGE}:{name.replace('-', '_')}", extra="graph"
        )


@hookimpl
def seqgraph_commands() -> Iterable[Command]:
    """Use of a trained model."""
    yield Command(
        name="predict",
        summary="Predict properties of the molecules in a CSV file.",
        target=f"{_PACKAGE}.predict:predict",
        extra="graph",
    )
    yield Command(
        name="baseline",
        summary="Test fingerprints and gradient boosting on the molecules of a data set.",
        target=f"{_PACKAGE}.fingerprints:baseline",
        extra="graph",
    )
