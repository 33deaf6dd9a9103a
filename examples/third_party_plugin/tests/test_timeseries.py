"""The plugin by itself: conformance, data, and a model that learns."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from seqgraph_timeseries.data import Series, read_csv
from seqgraph_timeseries.task import Forecasting, trivial_forecasts

import seqgraph as sg
from seqgraph.errors import DataError
from seqgraph.testing import CHECKS, check_model


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check: str) -> None:
    check_model("variate-mamba", [check])


@pytest.fixture(scope="module")
def weather() -> Series:
    return Series()


def test_weather_is_real_and_complete(weather: Series) -> None:
    assert len(weather.variates) == 15
    # New York in 2013: the yearly mean at the airports was 55 degrees Fahrenheit.
    temperatures = [i for i, name in enumerate(weather.variates) if name.endswith("_temp")]
    table = weather.parts["train"].table.double().numpy() * weather.std + weather.mean
    assert all(50 < table[:, i].mean() < 65 for i in temperatures)
    assert all(torch.isfinite(part.table).all() for part in weather.parts.values())
    assert max(table[:, i].max() for i, n in enumerate(weather.variates) if n.endswith("wind_speed")) < 60


def test_splits_are_in_time_and_apart(weather: Series) -> None:
    sizes = {name: len(weather.split(name)) for name in ("train", "valid", "test")}
    assert sizes == {"train": 5992, "valid": 850, "test": 1723}
    # The steps that are forecast in one split are in no other.
    steps = [size + weather.horizon - 1 for size in sizes.values()]
    assert sum(steps) + weather.lookback == 8730


def test_trivial_forecasts() -> None:
    past = torch.arange(48.0).reshape(1, 48)
    guesses = trivial_forecasts(past, 30)
    assert guesses["last value"].eq(47).all()
    assert torch.equal(guesses["same hour a day ago"][0, :24], torch.arange(24.0, 48.0))
    assert torch.equal(guesses["same hour a day ago"][0, 24:], torch.arange(24.0, 30.0))


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "No such file"),
        ("", "holds no series"),
        ("time,a\n", "holds no series"),
        ("time,a\n0,1\n1,x\n", "line 3: a is 'x', not a number"),
        ("time,a,b\n0,1\n", "line 2: 2 cells, the heading has 3"),
        ("time,a\n" + "0,\n" * 300, "the series a has no value"),
        ("time,a\n" + "0,5\n" * 300, "the series a never changes"),
        ("time,a\n0,1\n1,2\n", "2 rows are too few"),
    ],
)
def test_bad_files_are_named(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=said) as error:
        Series(root=str(path))
    assert str(path) in error.value.message


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "series.csv.gz"
    path.write_bytes(gzip.compress(b"time,a\n" * 1000)[:-20])
    with pytest.raises(DataError, match="series"):
        read_csv(path)


def test_missing_cells_are_interpolated(tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    cells = ["" if i % 7 == 3 else str(i) for i in range(300)]
    path.write_text("time,a\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    series = Series(root=str(path), lookback=4, horizon=2)
    table = series.parts["train"].table[:, 0].numpy() * series.std[0] + series.mean[0]
    np.testing.assert_allclose(table, np.arange(len(table)), atol=1e-3)


def test_forecast_in_own_units(weather: Series) -> None:
    model = sg.create_model("variate-mamba", lookback=96, horizon=24, d_model=8, n_layers=1).eval()
    model.assets = weather.assets()
    window = weather.split("test")[0]
    mean, std = torch.from_numpy(weather.mean).float(), torch.from_numpy(weather.std).float()
    raw = model.forecast(window[:, :96].T * std + mean)
    with torch.no_grad():
        scaled = model(weather.collate([window[:, :96]]))
    torch.testing.assert_close(raw, scaled.T * std + mean, rtol=1e-4, atol=1e-3)


def test_preset_learns_more_than_the_best_trivial_forecast(tmp_path: Path) -> None:
    result = sg.train(
        "weather-nyc", ["train.epochs=1", "model.n_layers=1", "train.lr=3e-3"], output=tmp_path / "run", quiet=True
    )
    assert result.mean["mse"] < 0.9 * result.baseline["mse"]
    assert Forecasting.monitor == "mse"
    model = sg.load(tmp_path / "run")
    assert model.forecast(torch.zeros(96, 15)).shape == (24, 15)
