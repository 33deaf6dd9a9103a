"""An untrained ESM-2 by fair-esm, to be trained beside LC-PLM on the same data with the same task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqgraph.errors import ConfigError, PluginError
from seqgraph_lc_plm.esm2 import Esm2

# name -> (n_layers, d_model, heads), as published
SIZES: dict[str, tuple[int, int, int]] = {
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
}


class TrainableEsm2(Esm2):
    """fair-esm's ``ESM2`` with new weights, on packed streams.

    Linear and embedding weights start from N(0, 0.02²) and biases from zero, as in BERT, RoBERTa and Hugging Face's
    ESM-2. (The class by itself starts its embedding, which is also the head's weight, from N(0, 1): a loss of some
    hundred nats.) The contact head, which the masked language model does not use, is frozen.

    Args:
        size: a published shape: "8M", "35M", "150M" or "650M".
        d_model: D, token width; wins over ``size``.
        n_layers: number of blocks; wins over ``size``.
        heads: attention heads; wins over ``size``.
        token_dropout: ESM-2's rescaling of the embeddings by the share of masks.
        attention: "sdpa" computes fair-esm's attention by torch's fused kernels, the same function in memory linear in
            the length; "fair-esm" leaves the class as it is, with every attention matrix kept.

    Raises:
        ConfigError: for an unknown size, or heads that do not fit the width.
        PluginError: without fair-esm.
    """

    def __init__(
        self,
        *,
        size: str = "8M",
        d_model: int | None = None,
        n_layers: int | None = None,
        heads: int | None = None,
        token_dropout: bool = True,
        attention: Literal["sdpa", "fair-esm"] = "sdpa",
    ) -> None:
        if size not in SIZES:
            raise ConfigError(f"esm2 has no size {size!r}", f"one of {', '.join(SIZES)}")
        depth, width, many = SIZES[size]
        depth, width, many = n_layers or depth, d_model or width, heads or many
        if width % (2 * many):
            raise ConfigError(f"d_model {width} in {many} heads: rotary positions need an even width of each")
        try:
            from esm.model.esm2 import ESM2
        except ImportError:
            raise PluginError("esm2 needs fair-esm", 'pip install "seqgraph[protein]"') from None
        super().__init__(ESM2(depth, width, many, token_dropout=token_dropout))
        self.assets: dict[str, Any] = {}
        self.network.contact_head.requires_grad_(False)
        if attention == "sdpa":
            for layer in self.network.layers:
                layer.self_attn.forward = _Fused(layer.self_attn)
        with torch.no_grad():
            for module in self.network.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    module.weight.normal_(std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            self.network.embed_tokens.weight[self.network.padding_idx].zero_()

    def flops(self, lengths: Sequence[int], predicted: float = 1.0) -> float:
        """Floating-point operations of a forward pass over proteins of these lengths, without padding.

        24 D² a token and block for the matrices, 4 L D for attention over L tokens; the head on all tokens, as fair-esm
        computes it (``predicted`` does not matter).
        """
        d, n = self.d_model, self.n_layers
        head = 2 * d * (d + self.network.alphabet_size)
        return float(sum(length * (n * (24 * d * d + 4 * length * d) + head) for length in lengths))


class _Fused:
    """A replacement of the forward pass of one of fair-esm's attentions with rotary positions.

    Args:
        owner: the attention, whose parameters and rotation are used.
    """

    def __init__(self, owner: Any) -> None:
        self.owner, self.plain = owner, owner.forward

    def __call__(self, query: Tensor, key_padding_mask: Tensor | None = None, **rest: Any) -> tuple[Tensor, Any]:
        """Tokens (L, B, D) and padding (B, L) -> (L, B, D), and None for the attention unless it is asked for."""
        if rest.get("need_head_weights") or rest.get("attn_mask") is not None:
            return self.plain(query=query, key_padding_mask=key_padding_mask, **rest)
        own = self.owner
        length, batch, width = query.shape

        def heads(x: Tensor) -> Tensor:
            return x.reshape(length, batch * own.num_heads, own.head_dim).transpose(0, 1)

        value = heads(own.v_proj(query))
        q, k = own.rot_emb(heads(own.q_proj(query) * own.scaling), heads(own.k_proj(query)))
        q, k, value = (x.to(value.dtype).unflatten(0, (batch, own.num_heads)) for x in (q, k, value))
        seen = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, value, attn_mask=seen, scale=1.0)  # (B, H, L, D / H)
        return own.out_proj(out.permute(2, 0, 1, 3).reshape(length, batch, width)), None
