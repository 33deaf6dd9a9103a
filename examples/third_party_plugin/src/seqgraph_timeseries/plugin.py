"""What this distribution offers. Imports nothing but the descriptors, so that listing stays quick."""

from __future__ import annotations

from collections.abc import Iterator

from seqgraph.plugin import Dataset, Model, Preset, Task, hookimpl

DOMAIN = "timeseries"


@hookimpl
def seqgraph_models() -> Iterator[Model]:
    yield Model(
        name="variate-mamba",
        domain=DOMAIN,
        summary="Forecasts many series at once: a token per variate, a bidirectional Mamba over the variates",
        target="seqgraph_timeseries.model:VariateMamba",
        config="seqgraph_timeseries.config:VariateMambaConfig",
        example="seqgraph_timeseries.example:EXAMPLE",
        paper="after S-Mamba: Wang et al. 2024, arXiv:2403.11144",
    )


@hookimpl
def seqgraph_datasets() -> Iterator[Dataset]:
    yield Dataset(
        name="weather-nyc",
        domain=DOMAIN,
        summary="Hourly weather at three New York airports in 2013, or any CSV file of series by data.root",
        target="seqgraph_timeseries.data:Series",
        config="seqgraph_timeseries.config:SeriesConfig",
    )


@hookimpl
def seqgraph_tasks() -> Iterator[Task]:
    yield Task(
        name="forecasting",
        domain=DOMAIN,
        summary="Mean squared error of the next hours, series scaled by the training part",
        target="seqgraph_timeseries.task:Forecasting",
        config="seqgraph_timeseries.config:ForecastingConfig",
    )


@hookimpl
def seqgraph_presets() -> Iterator[Preset]:
    yield Preset(
        name="weather-nyc",
        domain=DOMAIN,
        summary="24 hours of New York weather from the 96 before: a minute on a laptop",
        target="seqgraph_timeseries:weather_nyc",
    )
