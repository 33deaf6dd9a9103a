"""What every language model on packed token streams can do, and what one of proteins can do with raw sequences."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn

from seqgraph.errors import ConfigError
from seqgraph.stream import TokenStream
from seqgraph.tokenize.protein import RESIDUE, ProteinAlphabet

Pooling = Literal["mean", "max", "bos", "residue"]
Semantics = Literal["residual", "upstream"]


class TokenModel(nn.Module):
    """A language model of token ids: embedding, blocks, head.

    Attributes:
        d_model: D, token width.
        n_layers: number of blocks.
        assets: what goes with the weights besides them; JSON only.
    """

    d_model: int
    n_layers: int
    assets: dict[str, Any]

    def forward(self, stream: TokenStream, where: Tensor | None = None) -> Tensor:
        """Logits of a stream of token ids.

        Args:
            stream: values (T,) int64.
            where: the tokens whose logits are wanted, a mask (T,) or indices (K,); all by default.

        Returns:
            (T, vocab_size), or (K, vocab_size), floating.
        """
        raise NotImplementedError

    def hidden_states(
        self, stream: TokenStream, layers: Collection[int], semantics: Semantics = "residual"
    ) -> dict[int, Tensor]:
        """{layer, as asked for: (T, D)} of a stream of token ids on the model's device; see :meth:`represent`."""
        raise NotImplementedError

    def flops(self, lengths: Sequence[int], predicted: float = 1.0) -> float:
        """Floating-point operations of a forward pass over segments of these lengths.

        Args:
            lengths: tokens of each segment.
            predicted: share of the tokens whose logits are made.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def represent(
        self, stream: TokenStream, layers: Collection[int], *, semantics: Semantics = "residual"
    ) -> dict[int, TokenStream]:
        """Hidden states of a stream of token ids, on the model's device, without gradient and dropout.

        Args:
            stream: values (T,) int64.
            layers: 0 is the token embedding, i what ``semantics`` says of block i, n (or -1) the output of the final
                norm; negative numbers count from the end, as in ESM.
            semantics: "residual", the residual stream after block i, as in ESM; or "upstream", what LC-PLM's
                released code calls hidden state i: what block i adds to the stream. Layers 0 and n are the same.

        Returns:
            {layer, as asked for: the stream with values (T, D) float32}.

        Raises:
            ConfigError: for a layer that does not exist.
        """
        self.check_layers(layers)
        if semantics not in get_args(Semantics):
            raise ConfigError(f"no semantics {semantics!r}", f"one of {', '.join(get_args(Semantics))}")
        with self.inference():
            stream = stream.to(self.device)
            states = self.hidden_states(stream, layers, semantics)
            return {layer: stream.with_values(values.float()) for layer, values in states.items()}

    def check_layers(self, layers: Collection[int]) -> None:
        """Raise ConfigError for a layer that does not exist."""
        bound = self.n_layers + 1
        if wrong := [layer for layer in layers if not -bound <= layer < bound]:
            raise ConfigError(f"no layer {wrong[0]}", f"this model has layers {-bound} to {bound - 1}")

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Without gradient and dropout; the mode comes back afterwards."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)


class ProteinLM(TokenModel):
    """A language model of amino acids in ESM-2's alphabet, for raw sequences of any length.

    Attributes:
        alphabet: ESM-2's 33 tokens.
    """

    alphabet: ProteinAlphabet

    @overload
    def embed(
        self,
        sequences: Sequence[str],
        *,
        layers: int = ...,
        pooling: Pooling = ...,
        max_tokens: int = ...,
        semantics: Semantics = ...,
    ) -> Tensor | list[Tensor]: ...

    @overload
    def embed(
        self,
        sequences: Sequence[str],
        *,
        layers: Sequence[int],
        pooling: Pooling = ...,
        max_tokens: int = ...,
        semantics: Semantics = ...,
    ) -> dict[int, Tensor | list[Tensor]]: ...

    def embed(
        self,
        sequences: Sequence[str],
        *,
        layers: int | Sequence[int] = -1,
        pooling: Pooling = "mean",
        max_tokens: int = 16384,
        semantics: Semantics = "residual",
    ) -> Any:
        """Embed proteins of any length. Runs without gradient and dropout; a batch gives what one by one gives.

        Args:
            sequences: amino acids as letters, in either case; ``<mask>`` may stand for one.
            layers: one number or several; see :meth:`represent`.
            pooling: "mean" or "max" over the residues, "bos" (the ``<cls>`` token), or "residue" (no pooling).
            max_tokens: tokens in one forward pass; a longer protein is one pass by itself.
            semantics: see :meth:`represent`.

        Returns:
            For one layer: (len(sequences), D) on the CPU, or a list of (L_i, D) with "residue".
            For several: {layer, as asked for: the same}.

        Raises:
            DataError: for an empty sequence or a letter that is no amino acid, naming the sequence's number.
            ConfigError: for a layer or a pooling that does not exist.
        """
        wanted = [layers] if isinstance(layers, int) else list(layers)
        if pooling not in get_args(Pooling):
            raise ConfigError(f"no pooling {pooling!r}", f"one of {', '.join(get_args(Pooling))}")
        tokens = self._encode(sequences)
        found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(tokens) for layer in wanted}
        for batch in cut_batches(tokens.lengths.tolist(), max_tokens):
            for layer, states in self.represent(tokens[batch], wanted, semantics=semantics).items():
                for i, value in zip(batch, pool(states, pooling), strict=True):
                    found[layer][i] = value.cpu()
        results: dict[int, Any] = {
            layer: values if pooling == "residue" or not values else torch.stack(values)
            for layer, values in found.items()
        }
        if not len(tokens) and pooling != "residue":
            results = {layer: torch.empty(0, self.d_model) for layer in wanted}
        return results[layers] if isinstance(layers, int) else results

    def logits(self, sequences: Sequence[str], *, max_tokens: int = 16384) -> list[Tensor]:
        """Unnormalised log-probabilities of the 33 tokens at each residue: a list of (L_i, 33) float32 on the CPU.

        Raises:
            DataError: as :meth:`embed`.
        """
        tokens = self._encode(sequences)
        found = [torch.empty(0)] * len(tokens)
        for batch in cut_batches(tokens.lengths.tolist(), max_tokens):
            stream = tokens[batch]
            values = self._logits(stream)
            for i, value in zip(batch, pool(stream.with_values(values), "residue"), strict=True):
                found[i] = value
        return found

    def pseudo_perplexity(self, sequence: str, *, max_tokens: int = 16384) -> float:
        """exp of the mean negative log-likelihood of each residue when it alone is masked (Salazar et al. 2020).

        Costs as many tokens as the square of the length.

        Raises:
            DataError: as :meth:`embed`.
        """
        tokens = self._encode([sequence]).values  # (L + 2,)
        length, total = len(tokens), 0.0
        step = max(1, max_tokens // length)
        for start in range(1, length - 1, step):
            places = torch.arange(start, min(start + step, length - 1))
            copies = tokens.repeat(len(places), 1)
            copies[torch.arange(len(places)), places] = self.alphabet.mask_id
            logits = self._logits(TokenStream.from_dense(copies))
            picked = logits[torch.arange(len(places)) * length + places]
            total += float(nn.functional.cross_entropy(picked, tokens[places], reduction="sum"))
        return math.exp(total / (length - 2))

    def _logits(self, stream: TokenStream) -> Tensor:
        with self.inference():
            logits = self(stream.to(self.device))
        return logits[:, : len(self.alphabet)].float().cpu()

    def _encode(self, sequences: Sequence[str]) -> TokenStream:
        return self.alphabet.encode([sequences] if isinstance(sequences, str) else sequences)


def pool(stream: TokenStream, pooling: Pooling) -> Tensor | list[Tensor]:
    """Hidden states (T, D) with roles -> (S, D), or a list of (L_s, D) of the residues alone."""
    if pooling == "bos":
        return stream.pool("first")
    residues = residues_of(stream)
    if pooling == "residue":
        return list(residues.values.split(residues.lengths.tolist()))
    return residues.pool(pooling)


def residues_of(stream: TokenStream) -> TokenStream:
    """The same segments without their special tokens; the stream must have roles."""
    assert stream.role is not None
    keep = stream.role == RESIDUE
    lengths = torch.bincount(stream.segment[keep], minlength=stream.num_segments)
    return TokenStream.from_lengths(stream.values[keep], lengths, source=stream.source[keep], role=stream.role[keep])


def cut_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences of these lengths in batches of at most max_tokens tokens, alike in length.

    A sequence longer than max_tokens is a batch by itself.
    """
    batches: list[list[int]] = []
    used = max_tokens + 1
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if used + lengths[index] > max_tokens:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += lengths[index]
    return batches
