"""LC-PLM: a bidirectional Mamba masked language model of proteins (Wang et al. 2024, arXiv 2411.08909)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from seqgraph.encode import Encoder
from seqgraph.errors import ConfigError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import ProteinAlphabet
from seqgraph_lc_plm.base import (
    Pooling,
    ProteinLM,
    Semantics,
    TokenModel,
    cut_batches,
    residues_of,
)

__all__ = ["SIZES", "Backbone", "LcPlm", "MambaLM", "Pooling", "cut_batches", "residues_of"]

# name -> (n_layers, d_model); 96M, 753M and 1.3B have the shapes of Mamba 130M, 790M and 1.4B
SIZES: dict[str, tuple[int, int]] = {
    "1M": (8, 128),
    "8M": (16, 256),
    "35M": (24, 448),
    "96M": (24, 768),
    "753M": (48, 1536),
    "1.3B": (48, 2048),
}


class Backbone(Encoder):
    """Token embedding and the stack of blocks: no positions, no scaling, no dropout of tokens."""

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, **encoder: Any) -> None:
        super().__init__(d_model, n_layers, **encoder)
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def tokens(self, stream: TokenStream) -> Tensor:
        """Token ids (T,) -> what the first block reads, (T, D)."""
        return self.embedding(stream.values)

    def forward(self, stream: TokenStream) -> TokenStream:
        """Token ids (T,) -> values (T, D)."""
        return self.encoded(stream.with_values(self.tokens(stream)))

    def encoded(self, stream: TokenStream) -> TokenStream:
        """Values (T, D) -> values (T, D); see :meth:`Encoder.forward`."""
        return super().forward(stream)

    def hidden_states(self, stream: TokenStream, layers: Collection[int]) -> dict[int, Tensor]:
        """Token ids (T,) -> {layer: (T, D)}; see :meth:`Encoder.hidden_states`."""
        return super().hidden_states(stream.with_values(self.tokens(stream)), layers)

    def branches(self, stream: TokenStream, layers: Collection[int]) -> dict[int, Tensor]:
        """As :meth:`hidden_states`, but layer i of 0 < i < n is what block i adds to the stream, (T, D)."""
        n = len(self.layers)
        wanted = {i: i % (n + 1) for i in layers}
        found: dict[int, Tensor] = {}
        for depth, pair in enumerate(self._pairs(stream.with_values(self.tokens(stream)))):
            if depth in wanted.values():
                found[depth] = self._finish(*pair) if depth == n else pair[0]
        return {i: found[depth] for i, depth in wanted.items()}


class MambaLM(TokenModel):
    """A language model of Mamba blocks on token ids of any vocabulary: what other families' weights are read into.

    Parameters are named ``backbone.embedding.weight``, ``backbone.layers.{i}.norm.weight``,
    ``backbone.layers.{i}.mixer.mamba_fwd.*``, ``...mamba_rev.*``, ``backbone.norm_f.weight``, ``lm_head.weight``.

    Args:
        vocab_size: V, rows of embedding and head.
        d_model: D, token width.
        n_layers: number of blocks.
        tie_head: the head's weight is the embedding's.
        **encoder: the arguments of :class:`seqgraph.encode.Encoder`, and through it of the mixer.
    """

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, *, tie_head: bool = False, **encoder: Any) -> None:
        super().__init__()
        self.vocab_size, self.d_model, self.n_layers = vocab_size, d_model, n_layers
        self.assets: dict[str, Any] = {}
        self.backbone = Backbone(vocab_size, d_model, n_layers, **encoder)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_head:
            self.lm_head.weight = self.backbone.embedding.weight
        else:
            nn.init.normal_(self.lm_head.weight, std=0.02)

    def forward(self, stream: TokenStream, where: Tensor | None = None) -> Tensor:
        """Logits (T, V), or (K, V) where they are wanted; see :meth:`TokenModel.forward`."""
        hidden = self.backbone(stream).values
        return self.lm_head(hidden if where is None else hidden[where])

    def hidden_states(
        self, stream: TokenStream, layers: Collection[int], semantics: Semantics = "residual"
    ) -> dict[int, Tensor]:
        """See :meth:`TokenModel.hidden_states`."""
        read = self.backbone.hidden_states if semantics == "residual" else self.backbone.branches
        return read(stream, layers)

    def flops(self, lengths: Sequence[int], predicted: float = 1.0) -> float:
        """See :meth:`TokenModel.flops`: 2 a weight of a matrix product; convolution 2W and scan 6N a channel."""
        per_token = sum(_block_flops(block.mixer) for block in self.backbone.layers.children())
        return float(sum(lengths)) * (per_token + predicted * 2 * self.d_model * self.vocab_size)


class LcPlm(MambaLM, ProteinLM):
    """Masked language model on BiMamba-S blocks: both directions share in_proj, out_proj and gate.

    Parameters are named as in the published file without its prefix ``bimamba.``: ``backbone.embedding.weight``,
    ``backbone.layers.{i}.norm.weight``, ``backbone.layers.{i}.mixer.mamba_fwd.*``, ``...mamba_rev.*``,
    ``backbone.norm_f.weight``, ``lm_head.weight`` (its own tensor, not the embedding's, unless ``tie_head``).

    Args:
        size: a named width and depth: "1M", "8M", "35M", "96M", "753M" (the published one) or "1.3B".
        d_model: D, token width; wins over ``size``.
        n_layers: number of blocks; wins over ``size``.
        d_state: N, states a channel.
        d_conv: width of the causal convolutions.
        expand: inner width E = expand * D.
        mixer: "s6" (Mamba-1, published) or "ssd" (Mamba-2, usually with a ``d_state`` of 64 or 128).
        headdim: channels of a head, for "ssd".
        share: "projections" (published), or "none": two whole blocks.
        tie_head: the head's weight is the embedding's, as in ESM-2.
        vocab_size: rows of embedding and head; ids 0 to 32 are ESM-2's alphabet, the rest are spare.
        dropout: on each block's branch (the published model has none).
        checkpoint: recompute blocks in the backward pass, to save memory.

    Raises:
        ConfigError: for an unknown size, or heads that do not fit the width.
    """

    def __init__(
        self,
        *,
        size: str = "8M",
        d_model: int | None = None,
        n_layers: int | None = None,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        mixer: Literal["s6", "ssd"] = "s6",
        headdim: int = 64,
        share: Literal["projections", "none"] = "projections",
        tie_head: bool = False,
        vocab_size: int = 128,
        dropout: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        if size not in SIZES:
            raise ConfigError(f"lc-plm has no size {size!r}", f"one of {', '.join(SIZES)}, or d_model and n_layers")
        depth, width = SIZES[size]
        d_model, n_layers = d_model or width, n_layers or depth
        if mixer == "ssd" and expand * d_model % headdim:
            raise ConfigError(f"expand * d_model is {expand * d_model}, no multiple of headdim {headdim}")
        super().__init__(
            vocab_size,
            d_model,
            n_layers,
            tie_head=tie_head,
            share=share,
            merge="sum",
            norm="rms",
            norm_eps=1e-5,
            dropout=dropout,
            checkpoint=checkpoint,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            mixer=mixer,
            **({"headdim": headdim} if mixer == "ssd" else {}),
        )
        self.alphabet = ProteinAlphabet()


def _block_flops(mixer: Any) -> float:
    """Floating-point operations a token, forward, of a block's mixer, from the shapes of what it applies."""
    total = 0.0
    for name, weight in mixer.named_parameters():
        last = name.split(".")
        if last[-1] == "weight" and last[-2] in ("in_proj", "out_proj", "x_proj", "dt_proj", "conv1d"):
            total += 2 * weight.numel()
        elif last[-1] == "A_log":
            owner: Any = mixer.get_submodule(".".join(last[:-1]))
            total += 6 * owner.d_inner * owner.d_state
    return total
