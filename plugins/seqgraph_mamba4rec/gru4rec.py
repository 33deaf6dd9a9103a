"""GRU4Rec (Hidasi et al. 2016, arXiv 1511.06939) in its present form: a GRU, and a softmax over all items."""

from __future__ import annotations

from torch import Tensor, nn

from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.base import NextItemModel


class GRU4Rec(NextItemModel):
    """Item embedding, GRU layers, a linear layer back to the embedding's width, and a tied softmax.

    torch's GRU wants dense batches, so this model alone pads, on the right, where a causal net does not see it.
    The recurrent matrices start orthogonal and the input matrices Xavier-uniform (RecBole's choice is Xavier-normal
    for the input ones); the embedding and the linear layer at N(0, 0.02) and torch's own values.

    Args:
        num_items: V.
        d_model: D, width of the items.
        d_hidden: width of the GRU.
        n_layers: GRU layers.
        dropout: on the embedding and between layers.
    """

    capturable = False  # it pads to the longest history

    def __init__(
        self, num_items: int, d_model: int = 64, d_hidden: int = 128, n_layers: int = 1, dropout: float = 0.2
    ) -> None:
        super().__init__(num_items, d_model, dropout)
        self.norm = nn.Identity()
        between = dropout if n_layers > 1 else 0.0
        self.gru = nn.GRU(d_model, d_hidden, n_layers, batch_first=True, dropout=between)
        self.out_proj = nn.Linear(d_hidden, d_model)
        nn.init.normal_(self.item_embedding.weight, std=0.02)
        for name, parameter in self.gru.named_parameters():
            if name.startswith("weight_hh"):
                for gate in parameter.chunk(3):
                    nn.init.orthogonal_(gate)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, stream: TokenStream) -> TokenStream:
        """Item ids (T,) to the same stream with values (T, D)."""
        x = stream.with_values(self.embed(stream))
        if not stream.num_tokens:
            return x
        dense, _ = x.to_dense()
        hidden, _ = self.gru(dense)
        return stream.with_values(self.out_proj(hidden[stream.segment, stream.position]))

    def read(self, stream: TokenStream, at: Tensor) -> Tensor:
        """``self(stream).values[at]``, (P, D)."""
        return self(stream).values[at]
