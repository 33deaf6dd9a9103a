"""What this plugin offers. Light: it imports neither torch nor a protein library."""

from __future__ import annotations

from collections.abc import Iterator

from seqgraph.plugin import Command, Dataset, Format, Model, Preset, Task, hookimpl

_PRESETS = {
    "lc-plm-sample": "A small LC-PLM on the shipped Swiss-Prot sample, a minute on two CPU cores",
    "lc-plm-8m": "LC-PLM of ESM-2 8M's parameter count on Swiss-Prot, a GPU",
    "esm2-8m": "ESM-2 8M on the same data, with the same task, token budget and optimiser",
    "lc-plm-35m": "LC-PLM of ESM-2 35M's parameter count on Swiss-Prot, a GPU",
    "esm2-35m": "ESM-2 35M on the same data, with the same task, token budget and optimiser",
    "lc-plm-g-8m": "Second stage on an interaction graph, from weights of lc-plm-8m, a GPU",
    "lc-plm-g-sample": "Second stage of lc-plm-sample on an interaction graph of your own, two CPU cores",
    "lc-plm-753m": "The published shape on a table of your own, sharded over several GPUs",
}


@hookimpl
def seqgraph_models() -> Iterator[Model]:
    yield Model(
        name="lc-plm",
        domain="protein",
        summary="Bidirectional Mamba masked language model of proteins, any length",
        target="seqgraph_lc_plm.model:LcPlm",
        config="seqgraph_lc_plm.config:LcPlmConfig",
        example="seqgraph_lc_plm.example:EXAMPLE",
        paper="Wang et al. 2024, Long-context Protein Language Modeling, arXiv 2411.08909",
        since="0.1.0",
    )

    yield Model(
        name="esm2",
        domain="protein",
        summary="ESM-2 by fair-esm with new weights, to be trained beside LC-PLM",
        target="seqgraph_lc_plm.esm2_training:TrainableEsm2",
        config="seqgraph_lc_plm.config:Esm2Config",
        example="seqgraph_lc_plm.example:ESM2",
        paper="Lin et al. 2023, Evolutionary-scale prediction of atomic-level protein structure, Science 379",
        extra="protein",
        since="0.2.0",
    )


@hookimpl
def seqgraph_datasets() -> Iterator[Dataset]:
    yield Dataset(
        name="swissprot-sample",
        domain="protein",
        summary="5,500 Swiss-Prot proteins, families kept apart; ships with the package (CC BY 4.0)",
        target="seqgraph_lc_plm.data:SwissProtSample",
        config="seqgraph_lc_plm.config:SwissProtSampleConfig",
        since="0.1.0",
    )
    yield Dataset(
        name="fasta",
        domain="protein",
        summary="Any FASTA file, plain or compressed, split by a hash of the sequence",
        target="seqgraph_lc_plm.data:Fasta",
        config="seqgraph_lc_plm.config:FastaConfig",
        since="0.1.0",
    )
    yield Dataset(
        name="protein-table",
        domain="protein",
        summary="Any table of sequences, with columns of splits and of clusters if there are any",
        target="seqgraph_lc_plm.data:ProteinTable",
        config="seqgraph_lc_plm.config:ProteinTableConfig",
        since="0.2.0",
    )

    yield Dataset(
        name="interactions",
        domain="protein",
        summary="Walks over an interaction graph (STRING, a list of edges, networkx) as contexts of several proteins",
        target="seqgraph_lc_plm.graph_data:Interactions",
        config="seqgraph_lc_plm.config:InteractionsConfig",
        since="0.2.0",
    )


@hookimpl
def seqgraph_tasks() -> Iterator[Task]:
    yield Task(
        name="masked-lm",
        domain="protein",
        summary="Predict masked residues (15 %; 80-10-10)",
        target="seqgraph_lc_plm.task:MaskedLM",
        config="seqgraph_lc_plm.config:MaskedLMConfig",
        since="0.1.0",
    )
    yield Task(
        name="interaction-lm",
        domain="protein",
        summary="Predict masked residues of proteins beside their neighbours: LC-PLM-G's second stage",
        target="seqgraph_lc_plm.graph_task:InteractionLM",
        config="seqgraph_lc_plm.config:InteractionLMConfig",
        since="0.2.0",
    )


@hookimpl
def seqgraph_presets() -> Iterator[Preset]:
    for name, summary in _PRESETS.items():
        yield Preset(
            name=name,
            domain="protein",
            summary=summary,
            target=f"seqgraph_lc_plm:{name.replace('-', '_')}",
            since="0.1.0",
        )


@hookimpl
def seqgraph_commands() -> Iterator[Command]:
    yield Command(
        name="embed",
        summary="Embed the proteins of a FASTA file (esm-extract's options and files)",
        target="seqgraph_lc_plm.commands:embed",
        since="0.1.0",
    )
    yield Command(
        name="embed-network",
        summary="Embed the proteins of an interaction graph beside their neighbours, or alone",
        target="seqgraph_lc_plm.graph_command:embed_network",
        since="0.2.0",
    )
    yield Command(
        name="probe",
        summary="Measure embeddings on downstream tasks, beside simple features and random weights",
        target="seqgraph_lc_plm.probes.command:probe",
        since="0.2.0",
    )
    yield Command(
        name="cluster-proteins",
        summary="Cluster a FASTA file by shared words, for splits and sampling by family",
        target="seqgraph_lc_plm.cluster_command:cluster_proteins",
        since="0.2.0",
    )
    yield Command(
        name="mutate",
        summary="Score the variants of a protein in a CSV file without training (ProteinGym's format)",
        target="seqgraph_lc_plm.scoring_commands:mutate",
        since="0.1.0",
    )
    yield Command(
        name="saturation",
        summary="Draw a heat map of all single substitutions of a protein",
        target="seqgraph_lc_plm.scoring_commands:saturation",
        since="0.1.0",
    )
    yield Command(
        name="perplexity",
        summary="Pseudo-perplexity of the proteins of a FASTA file",
        target="seqgraph_lc_plm.scoring_commands:perplexity",
        since="0.1.0",
    )
    yield Command(
        name="map",
        summary="Draw a map of protein embeddings, coloured by a column",
        target="seqgraph_lc_plm.map_command:draw_map",
        since="0.1.0",
    )


@hookimpl
def seqgraph_formats() -> Iterator[Format]:
    yield Format(
        name="lc-plm-published",
        domain="protein",
        summary="LC-PLM's safetensors: reverse projections left out, lm_head tied or its own",
        target="seqgraph_lc_plm.checkpoints:lc_plm",
        since="0.2.0",
    )
    yield Format(
        name="caduceus-ph",
        domain="protein",
        summary="Caduceus-Ph (DNA), as a model of token ids",
        target="seqgraph_lc_plm.checkpoints:caduceus",
        since="0.2.0",
    )
    yield Format(
        name="mamba",
        domain="protein",
        summary="Causal Mamba of mamba_ssm or Hugging Face, or ProtMamba, as a model of token ids",
        target="seqgraph_lc_plm.checkpoints:mamba",
        since="0.2.0",
    )
