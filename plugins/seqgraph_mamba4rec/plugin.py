"""What this plugin offers. Light on purpose: discovery imports this module and nothing behind it."""

from __future__ import annotations

from collections.abc import Iterator

from seqgraph.plugin import Command, Dataset, Model, Preset, Task, hookimpl

_PACKAGE = "seqgraph_mamba4rec"
_DOMAIN = "recommendation"


@hookimpl
def seqgraph_models() -> Iterator[Model]:
    """Mamba4Rec, and the models that it is compared with."""
    for name, summary, target, config, example, paper in (
        (
            "mamba4rec",
            "Causal Mamba over packed user histories; ranks every item as the next one.",
            "model:Mamba4Rec",
            "Mamba4RecConfig",
            "EXAMPLE",
            "Liu et al. 2024, Mamba4Rec, arXiv 2403.03900",
        ),
        (
            "sasrec",
            "Causal self-attention over packed user histories; ranks every item as the next one.",
            "sasrec:SASRec",
            "SASRecConfig",
            "SASREC",
            "Kang and McAuley 2018, SASRec, arXiv 1808.09781",
        ),
        (
            "gru4rec",
            "A GRU over user histories; ranks every item as the next one.",
            "gru4rec:GRU4Rec",
            "GRU4RecConfig",
            "GRU4REC",
            "Hidasi et al. 2016, GRU4Rec, arXiv 1511.06939",
        ),
        (
            "lrurec",
            "Linear recurrent units over packed user histories; ranks every item as the next one.",
            "lru:LRURec",
            "LRURecConfig",
            "LRUREC",
            "Yue et al. 2024, LRURec, arXiv 2310.02367",
        ),
        (
            "bimamba4rec",
            "Bidirectional Mamba that names hidden items (task cloze), the next one too.",
            "cloze:BiMamba4Rec",
            "BiMamba4RecConfig",
            "BIMAMBA4REC",
            "Sun et al. 2019, BERT4Rec, arXiv 1904.06690, with Mamba blocks",
        ),
    ):
        yield Model(
            name=name,
            domain=_DOMAIN,
            summary=summary,
            target=f"{_PACKAGE}.{target}",
            config=f"{_PACKAGE}.config:{config}",
            example=f"{_PACKAGE}.example:{example}",
            paper=paper,
        )


@hookimpl
def seqgraph_datasets() -> Iterator[Dataset]:
    """MovieLens, RecBole's atomic files, tables of events, text files of histories."""
    for name, summary, target in (
        (
            "ml-100k",
            "MovieLens-100k as the installed RecBole carries it (943 users, 1,682 films), or data.root.",
            "MovieLens100K",
        ),
        ("movielens", "MovieLens' own files: u.data, ratings.dat or ratings.csv of any size.", "MovieLens"),
        ("recbole-inter", "Any RecBole atomic file: an .inter file, or the folder that holds it.", "RecBoleInter"),
        ("events", "A CSV or Parquet file of (user, item, timestamp), one event a row.", "EventTable"),
        (
            "sequences",
            "Text files of histories in time order: 'user item item ...' or 'user item' a line, gzip too.",
            "Sequences",
        ),
    ):
        yield Dataset(
            name=name,
            domain=_DOMAIN,
            summary=summary,
            target=f"{_PACKAGE}.data:{target}",
            config=f"{_PACKAGE}.config:{target}Config",
        )


@hookimpl
def seqgraph_tasks() -> Iterator[Task]:
    """Next-item prediction, and the cloze."""
    yield Task(
        name="next-item",
        domain=_DOMAIN,
        summary="A loss over items; HR, NDCG and MRR with and without the items a user has seen.",
        target=f"{_PACKAGE}.task:NextItem",
        config=f"{_PACKAGE}.config:NextItemConfig",
    )
    yield Task(
        name="cloze",
        domain=_DOMAIN,
        summary="Name hidden items from both sides (BERT4Rec), for bimamba4rec; metrics as next-item.",
        target=f"{_PACKAGE}.task:Cloze",
        config=f"{_PACKAGE}.config:ClozeConfig",
    )


@hookimpl
def seqgraph_presets() -> Iterator[Preset]:
    """Presets that train in minutes on a CPU, the published setting, and tuned ones by data set."""
    for name, summary in (
        ("ml-100k", "Mamba4Rec on MovieLens-100k, every position trained at once (about a minute on two cores)."),
        ("mamba4rec-faithful", "Mamba4Rec as released: prefixes, last position, its initialisation; needs data.root."),
        ("ml-1m", "Mamba4Rec in the strong setting on MovieLens-1M; needs data.root."),
        ("ml-1m-faithful", "Mamba4Rec as released on MovieLens-1M; needs data.root."),
        ("ml-1m-sasrec", "SASRec in the strong setting on MovieLens-1M; needs data.root."),
        ("beauty", "Mamba4Rec in the strong setting on Amazon Beauty; needs data.root."),
        ("sports", "Mamba4Rec, wide, in the strong setting on Amazon Sports and Outdoors; needs data.root."),
        ("toys", "Mamba4Rec, wide, in the strong setting on Amazon Toys and Games; needs data.root."),
        ("video-games", "Mamba4Rec, wide, in the strong setting on Amazon Video Games; needs data.root."),
        ("beauty-sasrec", "SASRec in the strong setting on Amazon Beauty; needs data.root."),
        ("video-games-sasrec", "SASRec, wide, in the strong setting on Amazon Video Games; needs data.root."),
        ("bimamba4rec", "Bidirectional Mamba trained by cloze; needs data.root."),
    ):
        target = f"{_PACKAGE}:{name.replace('-', '_')}"
        yield Preset(name=name, domain=_DOMAIN, summary=summary, target=target)


@hookimpl
def seqgraph_commands() -> Iterator[Command]:
    """``seqgraph recommend`` and ``seqgraph serve``."""
    yield Command(
        name="recommend",
        summary="Recommend items to the users of a CSV file with a trained model.",
        target=f"{_PACKAGE}.recommend:recommend",
    )
    yield Command(
        name="serve",
        summary="Serve lists over HTTP that change with each event, and a page to try it on.",
        target=f"{_PACKAGE}.serve.command:serve",
        extra="serve",
    )
    yield Command(
        name="rec",
        summary="Judge recommenders: per-user ranks, comparisons with intervals, baselines, RecBole's configurations.",
        target=f"{_PACKAGE}.rec:app",
    )
