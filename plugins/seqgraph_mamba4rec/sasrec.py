"""SASRec (Kang and McAuley 2018, arXiv 1808.09781): causal self-attention over histories, packed."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from seqgraph.errors import DataError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.attention import packed_attention
from seqgraph_mamba4rec.base import NextItemModel, as_layers
from seqgraph_mamba4rec.blocks import init_normal
from seqgraph_mamba4rec.seen import SeenKind


class CausalAttention(nn.Module):
    """Multi-head self-attention of each token to its segment's tokens up to itself.

    Args:
        d_model: D, a multiple of ``n_heads``.
        n_heads: H.
        dropout: on the attention weights.
        max_length: no segment is longer.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float, max_length: int) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model is {d_model}, no multiple of n_heads {n_heads}")
        self.n_heads, self.p, self.max_length = n_heads, dropout, max_length
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, cu_seqlens: Tensor, *, max_seqlen: int | None = None) -> Tensor:
        """(T, D) to (T, D); no segment is longer than ``max_seqlen``, where the host knows it."""
        query, key, value = self.in_proj(x).unflatten(-1, (3, self.n_heads, -1)).unbind(1)  # (T, H, P)
        dropout = self.p if self.training else 0.0
        longest = self.max_length if max_seqlen is None else max_seqlen
        out = packed_attention(query, key, value, cu_seqlens, max_length=longest, dropout=dropout)
        return self.out_proj(out.flatten(1))


class SASRec(NextItemModel):
    """Item and position embeddings, causal self-attention, and a softmax over all items tied to the embedding.

    Every table and matrix starts at N(0, 0.02), the position table too (left at N(0, 1) it halves the score).
    Position 0 is a history's first item, as in RecBole's.

    Args:
        num_items: V.
        d_model: D, width.
        n_layers: blocks.
        n_heads: attention heads.
        d_ffn: inner width of the feed-forward part; 4 D by default.
        dropout: on the embedding, the attention's output and twice in the feed-forward part.
        attention_dropout: on the attention weights; above 0 training pads.
        norm: "pre" (as in SASRec) or "post" (as in RecBole's).
        max_length: positions; no history may be longer.
        seen: a learnt weight on the scores of what the user has had: "none", "bias" for one weight or "recency" for
            one a distance: see :class:`seqgraph_mamba4rec.seen.SeenTerm`.
        item_dropout: in training, on the item vectors that the scores are tied to.
    """

    def __init__(
        self,
        num_items: int,
        d_model: int = 64,
        n_layers: int = 2,
        n_heads: int = 2,
        d_ffn: int | None = None,
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        norm: Literal["post", "pre"] = "pre",
        max_length: int = 200,
        seen: SeenKind = "none",
        item_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            num_items, d_model, dropout, placement=norm, max_length=max_length, seen=seen, item_dropout=item_dropout
        )
        self.position_embedding = nn.Embedding(max_length, d_model)
        mixers = [CausalAttention(d_model, n_heads, attention_dropout, max_length) for _ in range(n_layers)]
        self.layers = as_layers(mixers, d_model, d_ffn, dropout, placement=norm)
        init_normal(self)

    def embed(self, stream: TokenStream) -> Tensor:
        """Item and position vectors, (T, D).

        Raises:
            DataError: for a history with more events than there are positions (read on the CPU only).
        """
        position, positions = stream.position, self.position_embedding.num_embeddings
        if position.device.type == "cpu" and len(position) and int(position.max()) >= positions:
            raise DataError(
                f"a history has {int(position.max()) + 1} events, the model {positions} positions",
                "give a model.max_length of at least data.max_history",
            )
        x = self.item_embedding(stream.values) + self.position_embedding(position)
        out: Tensor = self.norm(self.dropout(x))
        return out
