"""The fields of a run's sections; pydantic only."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class VariateMambaConfig(BaseModel):
    """See :class:`seqgraph_timeseries.model.VariateMamba`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lookback: int = Field(ge=1)
    horizon: int = Field(ge=1)
    d_model: int = Field(64, ge=1)
    n_layers: int = Field(2, ge=1)
    d_state: int = Field(16, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    window_norm: bool = True


class SeriesConfig(BaseModel):
    """See :class:`seqgraph_timeseries.data.Series`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str | None = None
    lookback: int = Field(96, ge=1)
    horizon: int = Field(24, ge=1)


class ForecastingConfig(BaseModel):
    """The task has no settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
