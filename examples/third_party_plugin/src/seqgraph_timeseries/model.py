"""A token per variate, read in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqgraph.encode import MLP, Encoder
from seqgraph.stream import TokenStream


class VariateMamba(nn.Module):
    """Forecast several series at once, each past window being one token.

    A linear layer turns the whole window of a variate into its token, a bidirectional Mamba lets the variates see
    one another, and a head reads each variate's future off its token: S-Mamba's idea (Wang et al. 2024,
    arXiv:2403.11144), with this library's encoder in place of theirs. The number of variates is free.

    Args:
        lookback: steps that are read.
        horizon: steps that are forecast.
        d_model: token width D.
        n_layers: encoder blocks.
        d_state: states a channel.
        dropout: after each block.
        window_norm: give each window zero mean and unit spread, and undo it on the forecast.

    Attributes:
        assets: after loading, the names ("variates") of the series, their "mean" and "std".
    """

    assets: dict[str, Any]

    def __init__(
        self,
        *,
        lookback: int,
        horizon: int,
        d_model: int = 64,
        n_layers: int = 2,
        d_state: int = 16,
        dropout: float = 0.1,
        window_norm: bool = True,
    ) -> None:
        super().__init__()
        self.window_norm = window_norm
        self.embed = nn.Linear(lookback, d_model)
        self.encoder = Encoder(d_model, n_layers, dropout=dropout, d_state=d_state)
        self.head = MLP(d_model, horizon, dropout=dropout)
        self.assets = {}

    def forward(self, windows: TokenStream) -> Tensor:
        """Forecast.

        Args:
            windows: a segment a window, a token a variate, values (T, lookback).

        Returns:
            (T, horizon) in the same scale.
        """
        past = windows.values
        if not self.window_norm:
            return self._read(windows, past)
        mean = past.mean(1, keepdim=True)  # (T, 1)
        spread = (past.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return self._read(windows, (past - mean) / spread) * spread + mean

    def _read(self, windows: TokenStream, past: Tensor) -> Tensor:
        return self.head(self.encoder(windows.with_values(self.embed(past))).values)

    @torch.no_grad()
    def forecast(self, history: Tensor) -> Tensor:
        """Forecast from raw values.

        Args:
            history: (lookback, V), the series in the order of ``assets["variates"]``.

        Returns:
            (horizon, V) in the series' own units.
        """
        mean, std = (torch.tensor(self.assets[name]).to(history) for name in ("mean", "std"))
        scaled = (history - mean) / std
        return self(TokenStream.from_ragged([scaled.T])).T * std + mean
