"""What this plugin offers. Light: it imports neither torch nor a protein library."""

from __future__ import annotations

from collections.abc import Iterator

from seqgraph.plugin import Command, Dataset, Format, Model, Preset, Task, hookimpl


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


@hookimpl
def seqgraph_presets() -> Iterator[Preset]:
    yield Preset(
        name="lc-plm-sample",
        domain="protein",
        summary="A small LC-PLM on the shipped Swiss-Prot sample, a minute on two CPU cores",
        target="seqgraph_lc_plm:lc_plm_sample",
        since="0.1.0",
    )


@hookimpl
def seqgraph_commands() -> Iterator[Command]:
    yield Command(
        name="embed",
        summary="Embed the proteins of a FASTA file, one file each (esm-extract's options)",
        target="seqgraph_lc_plm.commands:embed",
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
        summary="Causal Mamba of mamba_ssm or Hugging Face, or ProtMamba without positions, as a model of token ids",
        target="seqgraph_lc_plm.checkpoints:mamba",
        since="0.2.0",
    )
