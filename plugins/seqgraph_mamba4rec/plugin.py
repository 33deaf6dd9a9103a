"""What this plugin offers. Light on purpose: discovery imports this module and nothing behind it."""

from __future__ import annotations

from collections.abc import Iterator

from seqgraph.plugin import Command, Dataset, Model, Preset, Task, hookimpl

_PACKAGE = "seqgraph_mamba4rec"
_DOMAIN = "recommendation"


@hookimpl
def seqgraph_models() -> Iterator[Model]:
    """Mamba4Rec."""
    yield Model(
        name="mamba4rec",
        domain=_DOMAIN,
        summary="Causal Mamba over packed user histories; ranks every item as the next one.",
        target=f"{_PACKAGE}.model:Mamba4Rec",
        config=f"{_PACKAGE}.config:Mamba4RecConfig",
        example=f"{_PACKAGE}.example:EXAMPLE",
        paper="Liu et al. 2024, Mamba4Rec, arXiv 2403.03900",
    )


@hookimpl
def seqgraph_datasets() -> Iterator[Dataset]:
    """MovieLens-100k from the installed RecBole, RecBole's atomic files, SASRec's text format."""
    yield Dataset(
        name="ml-100k",
        domain=_DOMAIN,
        summary="MovieLens-100k as the installed RecBole carries it (943 users, 1,682 films), or data.root.",
        target=f"{_PACKAGE}.data:MovieLens100K",
        config=f"{_PACKAGE}.config:MovieLens100KConfig",
    )
    yield Dataset(
        name="recbole-inter",
        domain=_DOMAIN,
        summary="Any RecBole atomic file: an .inter file, or the folder that holds it.",
        target=f"{_PACKAGE}.data:RecBoleInter",
        config=f"{_PACKAGE}.config:RecBoleInterConfig",
    )
    yield Dataset(
        name="sequences",
        domain=_DOMAIN,
        summary="Text files of histories in time order: 'user item item ...' or 'user item' a line, gzip too.",
        target=f"{_PACKAGE}.data:Sequences",
        config=f"{_PACKAGE}.config:SequencesConfig",
    )


@hookimpl
def seqgraph_tasks() -> Iterator[Task]:
    """Next-item prediction."""
    yield Task(
        name="next-item",
        domain=_DOMAIN,
        summary="Softmax over all items; HR, NDCG and MRR with and without the items a user has seen.",
        target=f"{_PACKAGE}.task:NextItem",
        config=f"{_PACKAGE}.config:NextItemConfig",
    )


@hookimpl
def seqgraph_presets() -> Iterator[Preset]:
    """One preset that trains in a minute on a CPU, and the published setting."""
    yield Preset(
        name="ml-100k",
        domain=_DOMAIN,
        summary="Mamba4Rec on MovieLens-100k, every position trained at once (about a minute on two cores).",
        target=f"{_PACKAGE}:ml_100k",
    )
    yield Preset(
        name="mamba4rec-faithful",
        domain=_DOMAIN,
        summary="Mamba4Rec as released: prefixes, last position, its initialisation; needs data.root.",
        target=f"{_PACKAGE}:mamba4rec_faithful",
    )


@hookimpl
def seqgraph_commands() -> Iterator[Command]:
    """``seqgraph recommend``."""
    yield Command(
        name="recommend",
        summary="Recommend items to the users of a CSV file with a trained model.",
        target=f"{_PACKAGE}.recommend:recommend",
    )
