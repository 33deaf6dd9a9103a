"""ProtMamba (Sgarbossa et al. 2024): a causal Mamba of homologs one after another, with learnt positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqgraph.errors import ConfigError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import ProteinAlphabet
from seqgraph_lc_plm.base import TokenModel
from seqgraph_lc_plm.model import Backbone, MambaLM

TOKENS = (*ProteinAlphabet().tokens, *(f"<mask-{i}>" for i in range(1, 6)))
"""ESM-2's 33 tokens, and five that stand for spans to be filled in, ids 33 to 37."""


class PositionedBackbone(Backbone):
    """Blocks on the token's embedding beside that of its place, and beside that of its sequence if ``sequences``.

    Args:
        vocab_size: V.
        widths: of the token's, the place's and the sequence's part of a token; the last may be 0.
        positions: rows of the places' embedding; later places are the last one.
        sequences: rows of the sequences' embedding; 0 for none.
        n_layers: number of blocks.
        **encoder: see :class:`Encoder`.
    """

    def __init__(
        self,
        vocab_size: int,
        widths: tuple[int, int, int],
        n_layers: int,
        *,
        positions: int,
        sequences: int = 0,
        **encoder: Any,
    ) -> None:
        super().__init__(vocab_size, sum(widths), n_layers, **encoder)
        self.embedding = nn.Embedding(vocab_size, widths[0])
        self.position_embedding = nn.Embedding(positions, widths[1])
        self.seq_position_embedding = nn.Embedding(sequences, widths[2]) if sequences else None

    def tokens(self, stream: TokenStream, positions: Tensor | None = None) -> Tensor:
        """Ids (T,) -> (T, D); see :meth:`ProtMamba.forward`."""
        places, sequences = places_of(stream)
        places = places if positions is None else positions.to(places)
        tables = [(self.embedding, stream.values), (self.position_embedding, places)]
        if self.seq_position_embedding is not None:
            tables.append((self.seq_position_embedding, sequences))
        first, *rest = tables
        parts = [first[0](first[1]), *(table(rows.clamp(0, table.num_embeddings - 1)) for table, rows in rest)]
        return torch.cat(parts, -1)


class ProtMamba(MambaLM):
    """A language model of token ids in ESM-2's alphabet with ProtMamba's positions.

    A segment holds homologs one after another, each with a <cls> in front. The head reads the token's part of a hidden
    state alone.

    Parameters are named as those of :class:`MambaLM`, with ``backbone.position_embedding.weight`` and, where sequences
    are numbered ("2d"), ``backbone.seq_position_embedding.weight``.

    Args:
        vocab_size: V, rows of embedding and head.
        widths: see :class:`PositionedBackbone`.
        n_layers: number of blocks.
        tie_head: the head's weight is the embedding's.
        **backbone: its other arguments.
    """

    def __init__(
        self, vocab_size: int, widths: tuple[int, int, int], n_layers: int, *, tie_head: bool = True, **backbone: Any
    ) -> None:
        TokenModel.__init__(self)
        self.vocab_size, self.d_model, self.n_layers = vocab_size, sum(widths), n_layers
        self.assets = {"alphabet": list(TOKENS)}
        self.backbone: PositionedBackbone = PositionedBackbone(vocab_size, widths, n_layers, **backbone)
        self.lm_head = nn.Linear(widths[0], vocab_size, bias=False)
        if tie_head:
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, stream: TokenStream, where: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits of the token that follows each; see :meth:`TokenModel.forward`.

        Args:
            stream: values (T,) int64.
            where: as there.
            positions: places (T,) of the tokens in their sequences, for spans that are filled in behind them: both
                <mask-i> and the span then have those that the span has in the sequence, and the <eos> before the
                spans has place 0. By default they count from each <cls>.

        Raises:
            ConfigError: for positions of another shape.
        """
        if positions is not None and positions.shape != stream.values.shape:
            raise ConfigError(f"positions are {tuple(positions.shape)}, the tokens {tuple(stream.values.shape)}")
        tokens = stream.with_values(self.backbone.tokens(stream, positions))
        hidden = self.backbone.encoded(tokens).values[:, : self.lm_head.in_features]
        return self.lm_head(hidden if where is None else hidden[where])


def places_of(stream: TokenStream) -> tuple[Tensor, Tensor]:
    """The place of each token in its sequence, from 0, and the sequence's number in its segment, from 1: (T,) int64.

    A sequence begins at each <cls> and with the segment; a segment without <cls> in front begins with number 0.
    """
    begins = stream.values == ProteinAlphabet.cls_id
    first = stream.cu_seqlens[:-1].long()[stream.segment.long()]  # of each token's segment
    index = torch.arange(stream.num_tokens, device=stream.values.device)
    start = torch.where(begins, index, 0).cummax(0).values if len(index) else index
    count = begins.long().cumsum(0)
    before = count[first] - begins[first].long()  # of earlier segments
    return index - torch.maximum(start, first), count - before
