"""What this plugin offers. Imports no torch and no domain library."""

from __future__ import annotations

from collections.abc import Iterable

from seqgraph.plugin import Command, Dataset, Model, Preset, Task, hookimpl

_PACKAGE = "seqgraph_graph_mamba"


@hookimpl
def seqgraph_models() -> Iterable[Model]:
    """Graph-Mamba."""
    yield Model(
        name="graph-mamba",
        domain="graph",
        summary="GatedGCN beside a selective SSM over prioritized nodes, one prediction a graph.",
        target=f"{_PACKAGE}.model:GraphMamba",
        config=f"{_PACKAGE}.config:GraphMambaConfig",
        example=f"{_PACKAGE}.example:EXAMPLE",
        paper="Wang, Tsepa, Ma & Wang, Graph-Mamba, 2024, arXiv:2402.00789",
        extra="graph",
    )


@hookimpl
def seqgraph_datasets() -> Iterable[Dataset]:
    """Molecules."""
    for name, summary, stem in (
        (
            "ogbg-molesol",
            "ESOL, water solubility of 1,128 molecules, scaffold split; ships with the package.",
            "OgbMolesol",
        ),
        ("peptides-func", "LRGB's Peptides-func, 15,535 peptides, 10 labels; needs data.root.", "PeptidesFunc"),
        ("smiles-csv", "Any CSV with a column of SMILES and columns of targets; needs data.root.", "SmilesCsv"),
    ):
        yield Dataset(
            name=name,
            domain="graph",
            summary=summary,
            target=f"{_PACKAGE}.data:{stem}",
            config=f"{_PACKAGE}.config:{stem}Config",
            extra="graph",
        )


@hookimpl
def seqgraph_tasks() -> Iterable[Task]:
    """Values and labels of graphs."""
    for name, summary, stem in (
        ("graph-regression", "Real values of graphs: L1 or MSE, RMSE and MAE in physical units.", "GraphRegression"),
        ("graph-classification", "Labels of graphs: logistic loss, macro AP and ROC-AUC.", "GraphClassification"),
    ):
        yield Task(
            name=name,
            domain="graph",
            summary=summary,
            target=f"{_PACKAGE}.task:{stem}",
            config=f"{_PACKAGE}.config:{stem}Config",
            extra="graph",
        )


@hookimpl
def seqgraph_presets() -> Iterable[Preset]:
    """Run configurations."""
    for name, summary in (
        ("ogbg-molesol", "Graph-Mamba on ESOL: about a minute on two CPU cores, no download."),
        ("ogbg-molesol-tiny", "Graph-Mamba on ESOL for a few steps: does everything run?"),
        ("peptides-func", "Graph-Mamba on Peptides-func with the published hyper-parameters; needs --data-root."),
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
