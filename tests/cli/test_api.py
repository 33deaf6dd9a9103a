"""``import seqgraph as sg``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import seqgraph as sg
from seqgraph.errors import ConfigError, PluginError
from seqgraph.plugin import Model, Tokenizer
from seqgraph.plugin.manager import Manager
from seqgraph.stream import TokenStream


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    d_model: int = Field(8, ge=1)
    n_layers: int = 2


class Net(nn.Module):
    def __init__(self, *, d_model: int = 8, n_layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(n_layers))


def spell(text: str, *, shift: int = 0) -> TokenStream:
    return TokenStream.from_ragged([[ord(letter) + shift for letter in text]])


@pytest.fixture(autouse=True)
def plugin(plugin_manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("api_subject")
    module.Net, module.Config, module.spell = Net, Config, spell
    monkeypatch.setitem(sys.modules, module.__name__, module)
    sg.register(
        [
            Model(name="net", domain="a", summary="One.", target="api_subject:Net", config="api_subject:Config"),
            Model(name="other", domain="b", summary="One.", target="api_subject:Net", config="api_subject:Config"),
            Tokenizer(name="spell", domain="a", summary="Letters.", target="api_subject:spell"),
        ]
    )


def test_list_models() -> None:
    assert sg.list_models() == ["net", "other"]
    assert sg.list_models(domain="b") == ["other"]
    assert sg.list_models("none") == []


def test_create_model() -> None:
    model = sg.create_model("net", d_model=3, n_layers=1)
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 3), (3,)]
    assert model.assets == {}
    assert len(sg.create_model("net").layers) == 2


def test_create_model_on_meta() -> None:
    with torch.device("meta"):
        model = sg.create_model("net")
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "name, fields, error, said, hint",
    [
        ("net", {"d_modl": 3}, ConfigError, "d_modl", "d_model"),
        ("net", {"d_model": 0}, ConfigError, "d_model", ""),
        ("net", {"d_model": "wide"}, ConfigError, "d_model", ""),
        ("nett", {}, PluginError, "nett", "did you mean net?"),
    ],
)
def test_create_model_explains(name: str, fields: dict, error: type, said: str, hint: str) -> None:
    with pytest.raises(error, match=said) as caught:
        sg.create_model(name, **fields)
    assert hint in (caught.value.hint or "")


def test_tokenize() -> None:
    assert sg.tokenize("spell", "ab", shift=1).values.tolist() == [98, 99]
    with pytest.raises(PluginError, match="no tokenizer is named 'spel'"):
        sg.tokenize("spel", "ab")


def test_packages_that_are_functions_too() -> None:
    """The import system puts the packages seqgraph.train and seqgraph.tokenize where the functions are."""
    train = importlib.import_module("seqgraph.train")
    assert sg.train is train and callable(train)
    assert importlib.import_module("seqgraph.train.task").Task.__module__ == "seqgraph.train.task"
    with pytest.raises(PluginError, match="no preset is named"):
        sg.train("no-such-preset")
    with pytest.raises(TypeError):
        sg.tokenize()


def test_train_takes_overrides() -> None:
    with pytest.raises(ConfigError, match="epohcs"):
        sg.train({"model": "net", "data": "x", "task": "y"}, ["train.epohcs=3"])


def test_public_names() -> None:
    assert set(sg.__all__) <= set(dir(sg))
    for name in sg.__all__:
        assert getattr(sg, name) is not None
    assert sg.TokenStream is TokenStream and isinstance(sg.tokenize("spell", "a").values, Tensor)
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        sg.create_modle  # noqa: B018
