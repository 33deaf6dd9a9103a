"""Configuration of what this plugin offers: the constructors' keywords, nothing more."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Size = Literal["1M", "8M", "35M", "96M", "753M", "1.3B"]


class LcPlmConfig(BaseModel):
    """Arguments of :class:`seqgraph_lc_plm.model.LcPlm`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Size = Field("8M", description="a named width and depth; d_model and n_layers win over it")
    d_model: int | None = Field(None, ge=1, description="D, token width")
    n_layers: int | None = Field(None, ge=1, description="number of blocks")
    d_state: int = Field(16, ge=1, description="N, states a channel")
    d_conv: int = Field(4, ge=1, description="width of the causal convolutions")
    expand: int = Field(2, ge=1, description="E = expand * D")
    mixer: Literal["s6", "ssd"] = Field("s6", description="Mamba-1, as published, or Mamba-2 (usual d_state: 64, 128)")
    headdim: int = Field(64, ge=1, description="channels of a head, for ssd; E is a multiple of it")
    share: Literal["projections", "none"] = Field(
        "projections", description="what both directions share: in_proj, gate and out_proj, as published, or nothing"
    )
    tie_head: bool = Field(False, description="the head's weight is the embedding's, as in ESM-2")
    vocab_size: int = Field(128, ge=33, description="rows of the embedding; 33 are used, the rest are spare")
    dropout: float = Field(0.0, ge=0, lt=1, description="on each block's branch")
    checkpoint: bool = Field(False, description="recompute blocks in the backward pass, to save memory")


class Esm2Config(BaseModel):
    """Arguments of :class:`seqgraph_lc_plm.esm2_training.TrainableEsm2`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Literal["8M", "35M", "150M", "650M"] = Field("8M", description="a named shape of ESM-2; the others win")
    d_model: int | None = Field(None, ge=1, description="D, token width")
    n_layers: int | None = Field(None, ge=1, description="number of blocks")
    heads: int | None = Field(None, ge=1, description="attention heads; D / heads is even")
    token_dropout: bool = Field(True, description="ESM-2's rescaling of embeddings by the share of masks")
    attention: Literal["sdpa", "fair-esm"] = Field("sdpa", description="by torch's fused kernels, or as fair-esm does")


_CROP = "longer training sequences are cropped at random to it; null trains on whole proteins"


class SwissProtSampleConfig(BaseModel):
    """Arguments of :class:`seqgraph_lc_plm.data.SwissProtSample`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str | None = Field(None, description="must be left out: the sample ships with the package")
    max_length: int | None = Field(1024, ge=1, description=_CROP)


class FastaConfig(BaseModel):
    """Arguments of :class:`seqgraph_lc_plm.data.Fasta`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="FASTA file, plain or compressed")
    root: str | None = Field(None, description="folder that a relative path starts from")
    clusters: str | None = Field(None, description="table of cluster, tab, member: an epoch has one protein of each")
    max_length: int | None = Field(1024, ge=1, description=_CROP)
    valid_fraction: float = Field(0.05, ge=0, lt=1)
    test_fraction: float = Field(0.05, ge=0, lt=1)
    split_seed: int = Field(0, description="another number gives another split")
    on_invalid: Literal["error", "unk", "skip"] = Field("error", description="letters that are no amino acids")
    on_duplicate: Literal["error", "number"] = Field("number", description="names that occur twice")


class ProteinTableConfig(BaseModel):
    """Arguments of :class:`seqgraph_lc_plm.data.ProteinTable`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="tab or comma separated table, plain or compressed")
    root: str | None = Field(None, description="folder that a relative path starts from")
    columns: list[str] | None = Field(None, description="names of the columns, for a table without a header")
    sequence: str = Field("sequence", description="the column of sequences")
    cluster: str | None = Field(None, description="the column of clusters: an epoch has one protein of each")
    split: str | None = Field(None, description="the column that says train, valid or test")
    max_length: int | None = Field(1024, ge=1, description=_CROP)
    valid_fraction: float = Field(0.05, ge=0, lt=1, description="where there is no column of splits")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="where there is no column of splits")
    split_seed: int = Field(0, description="another number gives another split")
    on_invalid: Literal["error", "unk", "skip"] = Field("error", description="letters that are no amino acids")


class InteractionsConfig(BaseModel):
    """Arguments of :class:`seqgraph_lc_plm.graph_data.Interactions`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="interactions: STRING's links or actions, a table of two names, or .graphml, .gml")
    sequences: str | None = Field(None, description="FASTA file, or table of name and sequence; .graphml may hold them")
    root: str | None = Field(None, description="folder that relative paths start from")
    proteins: int = Field(3, ge=1, description="of a context at most")
    walks: int = Field(16, ge=1, description="contexts that begin at each protein; an epoch has one of each")
    p: float = Field(4.0, gt=0, description="node2vec's return parameter: small turns back often")
    q: float = Field(1.0, gt=0, description="node2vec's in-out parameter: small leaves the neighbourhood")
    negatives: float = Field(0.25, ge=0, le=1, description="share of contexts of proteins that do not interact")
    singles: float = Field(0.25, ge=0, le=1, description="share of contexts of one protein")
    max_length: int | None = Field(1022, ge=1, description="training proteins are cropped at random to it; null: whole")
    min_score: float = Field(0.0, ge=0, description="leave out interactions with a lower score (STRING: 0 to 1000)")
    valid_fraction: float = Field(0.05, ge=0, lt=1, description="share of the proteins")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of the proteins")
    split_seed: int = Field(0, description="another number gives other splits and walks")
    on_missing: Literal["error", "skip"] = Field("error", description="names in interactions without a sequence")
    on_invalid: Literal["error", "unk", "skip"] = Field("error", description="letters that are no amino acids")


class InteractionLMConfig(BaseModel):
    """Arguments of :class:`seqgraph_lc_plm.graph_task.InteractionLM`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_fraction: float = Field(0.15, gt=0, le=1, description="share of the residues that are predicted")
    eval_seed: int = Field(0, description="decides which residues are masked in evaluation")


class MaskedLMConfig(BaseModel):
    """Arguments of :class:`seqgraph_lc_plm.task.MaskedLM`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_fraction: float = Field(0.15, gt=0, le=1, description="share of the residues that are predicted")
    eval_seed: int = Field(0, description="decides which residues are masked in evaluation")
    length_bins: tuple[int, ...] = Field(
        (), description="upper bounds of bins of protein length, ascending: the loss of each is a metric of its own"
    )
