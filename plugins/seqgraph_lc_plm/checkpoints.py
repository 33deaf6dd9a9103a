"""Weights of published models in the layouts of their own software: the functions behind ``seqgraph formats``.

Each takes what a file holds and gives the model, or None where the names are another layout's. What cannot be
computed as its authors do is refused with the reason. Weights are kept in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from seqgraph.errors import CheckpointError
from seqgraph.tokenize.protein import ProteinAlphabet
from seqgraph.train.foreign import Weights, fill
from seqgraph_lc_plm.model import LcPlm, MambaLM
from seqgraph_lc_plm.protmamba import ProtMamba

_SHARED = ("mamba_rev.in_proj.weight", "mamba_rev.out_proj.weight")
# ProtMamba's tables of places and of sequences, and what it puts into names when it was trained with checkpointing
_PLACES = ("position_embedding.weight", "seq_position_embedding.weight")
_WRAPPED = ".ckpt_layer."
_BOTH = {"bidirectional": True, "bidirectional_strategy": "add"}


def lc_plm(weights: Weights) -> LcPlm | None:
    """LC-PLM's published layout: ``bimamba.backbone.*`` and ``lm_head.weight``.

    The reverse direction's ``in_proj`` and ``out_proj`` are the forward one's where the file leaves them out; where it
    holds others, the model has two whole blocks a layer. A head that is missing or declared to be the embedding is
    tied to it; one that is stored is kept, also where its values are the embedding's.

    Raises:
        CheckpointError: for tensors missing, left over or of another shape, another alphabet, or a variant that is not
            computed here.
    """
    prefix = "bimamba.backbone."
    if not _has(weights, prefix):
        return None
    _require(weights, {**_BOTH, "rms_norm": True, "norm_epsilon": 1e-5}, "LC-PLM")
    weights, share = _share(weights, prefix)
    shapes = _shapes(weights, prefix, "embedding.weight", "mamba_fwd.")
    tokens = ProteinAlphabet().tokens
    if shapes["vocab_size"] < len(tokens):
        raise CheckpointError(
            f"{weights.file} has another alphabet: its embedding has {shapes['vocab_size']} rows, ESM-2's alphabet has "
            f"{len(tokens)} tokens",
            "only models of ESM-2's alphabet read proteins here",
        )
    if shapes["mixer"] != "s6":
        raise CheckpointError(f"{weights.file} has Mamba-2 blocks; the published LC-PLM has Mamba-1")
    with torch.device("meta"):
        model = LcPlm(
            d_model=shapes["d_model"],
            n_layers=shapes["n_layers"],
            vocab_size=shapes["vocab_size"],
            d_state=shapes["d_state"],
            d_conv=shapes["d_conv"],
            expand=shapes["expand"],
            share=share,
            tie_head=_head(weights, prefix + "embedding.weight") == "tied",
        )
    fill(model, weights, _names(prefix, "embedding.weight", model), cast=torch.float32)
    model.assets = {"alphabet": list(model.alphabet.tokens), "weights": _facts(weights, prefix + "embedding.weight")}
    return model


def caduceus(weights: Weights) -> MambaLM | None:
    """Caduceus-Ph (DNA): the blocks of LC-PLM on the 12 tokens of Caduceus, as a model of token ids.

    Raises:
        CheckpointError: for Caduceus-PS, whose blocks are equivariant to the reverse complement; and as :func:`lc_plm`.
    """
    prefix, embedding = "caduceus.backbone.", "embeddings.word_embeddings.weight"
    if not _has(weights, prefix):
        return None
    if weights.config.get("rcps") or any(".submodule." in n or "complement_map" in n for n in weights.tensors):
        raise CheckpointError(
            f"{weights.file} is a Caduceus-PS, whose layers are equivariant to the reverse complement",
            "only Caduceus-Ph can be loaded",
        )
    _require(weights, _BOTH, "Caduceus")
    weights, share = _share(weights, prefix)
    shapes = _shapes(weights, prefix, embedding, "mamba_fwd.")
    if shapes["bias"] and share == "projections":
        raise CheckpointError(f"{weights.file} adds the bias of its shared out_proj twice, which is not computed here")
    model = _mamba(weights, prefix, embedding, shapes, direction="both", share=share, merge="sum")
    tokens = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", *"ACGTN"]
    model.assets = {"alphabet": tokens, "weights": _facts(weights, prefix + embedding)}
    return model


def mamba(weights: Weights) -> MambaLM | None:
    """A causal Mamba or Mamba-2 of ``mamba_ssm``, a Mamba of Hugging Face, or a ProtMamba with or without positions.

    Raises:
        CheckpointError: for another family under the same names (Falcon-Mamba), and as :func:`lc_plm`.
    """
    prefix = "backbone."
    embedding = "embeddings.weight" if f"{prefix}embeddings.weight" in weights.tensors else "embedding.weight"
    if f"{prefix}{embedding}" not in weights.tensors or not _has(weights, f"{prefix}layers.0.mixer."):
        return None
    if any(_WRAPPED in name for name in weights.tensors):
        weights = replace(weights, tensors={n.replace(_WRAPPED, "."): t for n, t in weights.tensors.items()})
    family = weights.config.get("model_type") or "mamba"
    if family not in ("mamba", "mamba2", "mamba_ssm"):
        raise CheckpointError(f"{weights.file} is a {family}, which is not computed as a Mamba", "not supported")
    if weights.config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise CheckpointError(f"{weights.file} has the activation {weights.config['hidden_act']}, not silu")
    shapes = _shapes(weights, prefix, embedding, "")
    if _has(weights, f"{prefix}position_embedding."):
        return _prot_mamba(weights, prefix, embedding, shapes)
    model = _mamba(weights, prefix, embedding, shapes, direction="forward")
    model.assets = {"weights": _facts(weights, prefix + embedding)}
    return model


# ---------------------------------------------------------------------- parts
def _mamba(weights: Weights, prefix: str, embedding: str, shapes: Mapping[str, Any], **encoder: Any) -> MambaLM:
    eps = weights.config.get("norm_epsilon", weights.config.get("layer_norm_epsilon", 1e-5))
    norm = "layer" if f"{prefix}norm_f.bias" in weights.tensors else "rms"
    tie = _head(weights, prefix + embedding) == "tied"
    with torch.device("meta"):
        model = MambaLM(**shapes, norm=norm, norm_eps=float(eps), tie_head=tie, **encoder)
    fill(model, weights, _names(prefix, embedding, model), cast=torch.float32)
    return model


def _prot_mamba(weights: Weights, prefix: str, embedding: str, shapes: dict[str, Any]) -> ProtMamba:
    """ProtMamba's "1d" and "2d": a token is its embedding, beside its place's, beside its sequence's."""
    tables = [weights.tensors.get(f"{prefix}{name}") for name in (embedding, *_PLACES)]
    rows, widths = zip(*[(0, 0) if table is None else tuple(table.shape) for table in tables], strict=True)
    width, inner = weights.tensors[f"{prefix}layers.0.mixer.out_proj.weight"].shape
    if sum(widths) != width or inner % width:
        raise CheckpointError(
            f"{weights.file}: parts of {' + '.join(map(str, widths))} do not make tokens of width {width}"
        )
    del shapes["d_model"]
    eps = float(weights.config.get("norm_epsilon", 1e-5))
    norm: Any = "layer" if f"{prefix}norm_f.bias" in weights.tensors else "rms"
    with torch.device("meta"):
        model = ProtMamba(
            **{**shapes, "expand": inner // width},
            widths=widths,
            positions=rows[1],
            sequences=rows[2],
            norm=norm,
            norm_eps=eps,
            direction="forward",
            tie_head=_head(weights, prefix + embedding) == "tied",
        )
    fill(model, weights, _names(prefix, embedding, model), cast=torch.float32)
    model.assets |= {"weights": _facts(weights, prefix + embedding)}
    return model


def _has(weights: Weights, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights.tensors)


def _names(prefix: str, embedding: str, model: MambaLM) -> Callable[[str], str]:
    """A parameter's name in our models -> its name in the file."""
    tied = model.lm_head.weight is model.backbone.embedding.weight
    single = not any(".mamba_rev." in name for name, _ in model.named_parameters())

    def source(name: str) -> str:
        if name == "lm_head.weight":
            return prefix + embedding if tied else name
        name = name.removeprefix("backbone.")
        if name == "embedding.weight":
            return prefix + embedding
        return prefix + (name.replace(".mixer.mamba_fwd.", ".mixer.") if single else name)

    return source


def _shapes(weights: Weights, prefix: str, embedding: str, inner: str) -> dict[str, Any]:
    """Sizes and switches of the model, read off the tensors of the embedding and of layer 0.

    Raises:
        CheckpointError: when one of the tensors that tell them is missing.
    """
    first = f"{prefix}layers.0.mixer.{inner}"

    def shape(name: str) -> torch.Size:
        if name not in weights.tensors:
            raise CheckpointError(f"{weights.file} does not hold {name}", "is the file whole?")
        return weights.tensors[name].shape

    vocab_size, d_model = shape(prefix + embedding)
    d_inner = shape(f"{first}out_proj.weight")[1]
    d_conv = shape(f"{first}conv1d.weight")
    stack = f"{prefix}layers."
    layers = {n.removeprefix(stack).split(".")[0] for n in weights.tensors if n.startswith(stack)}
    if d_inner % d_model:
        raise CheckpointError(f"{weights.file}: the inner width {d_inner} is no multiple of the width {d_model}")
    sizes = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "n_layers": 1 + max(int(n) for n in layers if n.isdigit()),
        "expand": d_inner // d_model,
        "d_conv": d_conv[2],
        "bias": f"{first}in_proj.bias" in weights.tensors,
        "conv_bias": f"{first}conv1d.bias" in weights.tensors,
    }
    if f"{first}dt_bias" not in weights.tensors:  # Mamba-2's own
        rank, states = shape(f"{first}dt_proj.weight")[1], shape(f"{first}A_log")[1]
        return {**sizes, "mixer": "s6", "dt_rank": rank, "d_state": states}
    heads, groups = shape(f"{first}A_log")[0], _groups(weights.config)
    states = (d_conv[0] - d_inner) // (2 * groups)
    return {**sizes, "mixer": "ssd", "headdim": d_inner // heads, "ngroups": groups, "d_state": states}


def _groups(config: Mapping[str, Any]) -> int:
    inner = config.get("ssm_cfg")
    return int((inner if isinstance(inner, Mapping) else {}).get("ngroups", config.get("n_groups", 1)))


def _share(weights: Weights, prefix: str) -> tuple[Weights, Literal["projections", "none"]]:
    """Whether both directions share their projections: the file leaves the reverse one's out, or repeats them.

    Returns:
        The weights, with the reverse projections as aliases where they are shared, and "projections" or "none".
    """
    own = {n: n.replace("mamba_rev", "mamba_fwd") for n in weights.tensors if n.endswith(_SHARED) and prefix in n}
    if not all(_same(weights, name, other) for name, other in own.items()):
        return weights, "none"
    if not own and not weights.config.get("bidirectional_weight_tie", True):
        return weights, "none"  # and their names will be said to be missing
    return replace(weights, aliases={**weights.aliases, **own}), "projections"


def _same(weights: Weights, name: str, other: str) -> bool:
    one, two = weights.tensors[name], weights.tensors.get(other)
    return two is not None and one.shape == two.shape and torch.equal(one, two)


def _head(weights: Weights, embedding: str) -> Literal["tied", "equal", "own"]:
    """How the head stands to the embedding: left out or the same storage, equal in value, or its own."""
    head = weights.tensors.get("lm_head.weight")
    if head is None or head.data_ptr() == weights.tensors[embedding].data_ptr():
        return "tied"
    return "equal" if _same(weights, "lm_head.weight", embedding) else "own"


def _facts(weights: Weights, embedding: str) -> dict[str, Any]:
    """Of the file, for ``model.assets``: a head of equal values is told from a tied one."""
    return {"file": weights.file.name, "tensors": len(weights.tensors), "head": _head(weights, embedding)}


def _require(weights: Weights, wanted: Mapping[str, Any], family: str) -> None:
    for key, value in wanted.items():
        found = weights.config.get(key, value)
        if found != value:
            raise CheckpointError(
                f"{weights.file}: config.json says {key}={found!r}; {family} is computed here with {value!r} only"
            )
