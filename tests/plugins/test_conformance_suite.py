"""The suite itself: a right model passes, and one that is wrong in one way fails the check that is meant for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from seqgraph.encode import Encoder
from seqgraph.errors import PluginError
from seqgraph.plugin import Model
from seqgraph.plugin.manager import Manager
from seqgraph.stream import TokenStream
from seqgraph.testing import CHECKS, ModelExample, check_model


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    d_model: int = 4
    n_layers: int = 1


class Right(nn.Module):
    """A set of numbers a segment: the encoder reads each in order of size, so that their numbering is nothing."""

    def __init__(self, d_model: int = 4, n_layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(1, d_model)
        self.encoder = Encoder(d_model, n_layers, d_state=2)
        self.head = nn.Linear(d_model, 1)

    def forward(self, stream: TokenStream) -> Tensor:
        """One number a token, (T,)."""
        return self.head(self.encoder(stream.with_values(self.embed(stream.values))).values)[:, 0]


class Leaky(Right):
    def forward(self, stream: TokenStream) -> Tensor:
        return super().forward(stream) + stream.values.mean()


class Noisy(Right):
    def forward(self, stream: TokenStream) -> Tensor:
        return super().forward(stream) + torch.rand(())


class Unused(Right):
    def __init__(self, d_model: int = 4, n_layers: int = 1) -> None:
        super().__init__(d_model, n_layers)
        self.forgotten = nn.Linear(2, 2)


class Wild(Right):
    def forward(self, stream: TokenStream) -> Tensor:
        out = super().forward(stream)
        # sqrt(0): the value is finite and its gradient is not
        return out + (self.head.bias - self.head.bias.detach()).abs().sqrt()


class Lazy(Right):
    def forward(self, stream: TokenStream) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Parameter(torch.ones(()))
        return super().forward(stream) * self.late


class OffDevice(Right):
    def __init__(self, d_model: int = 4, n_layers: int = 1) -> None:
        super().__init__(d_model, n_layers)
        self.scale = nn.Parameter(torch.ones(d_model, device="cpu"))


class Unsaved(Right):
    """Weights that the state_dict does not have."""

    def __init__(self, d_model: int = 4, n_layers: int = 1) -> None:
        super().__init__(d_model, n_layers)
        self.register_buffer("hidden", torch.rand(1), persistent=False)

    def forward(self, stream: TokenStream) -> Tensor:
        return super().forward(stream) + self.hidden


class OtherDefault(Right):
    def __init__(self, d_model: int = 5, n_layers: int = 1) -> None:
        super().__init__(d_model, n_layers)


class OtherWord(Right):
    def __init__(self, width: int = 4, n_layers: int = 1) -> None:
        super().__init__(width, n_layers)


class Loose(BaseModel):
    d_model: int = 4
    n_layers: int = 1


class Rounding(Config):
    def model_dump(self, **kwargs: Any) -> dict[str, Any]:
        return {**super().model_dump(**kwargs), "n_layers": 2}


def _items(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 1, generator=generator) for length in (3, 1, 6)]


def _collate(items: list[Tensor]) -> TokenStream:
    return TokenStream.from_ragged([item.sort(0).values for item in items])


def _outputs(model: nn.Module, batch: TokenStream) -> list[Tensor]:
    return list(model(batch).split(batch.lengths.tolist()))


def _relabel(item: Tensor, generator: torch.Generator) -> tuple[Tensor, Any]:
    return item[torch.randperm(len(item), generator=generator)], lambda output: output


def _example(**changes: Any) -> ModelExample:
    parts = {"kwargs": {}, "items": _items, "collate": _collate, "outputs": _outputs, "relabel": _relabel}
    return ModelExample(**{**parts, **changes})


EXAMPLES = {
    "right": _example(),
    "unsorted": _example(collate=TokenStream.from_ragged),
    "short": _example(outputs=lambda model, batch: _outputs(model, batch)[:-1]),
    "one": _example(items=lambda seed: _items(seed)[:1]),
}


@pytest.fixture
def describe(monkeypatch: pytest.MonkeyPatch):
    """Makes a descriptor of things of this file, which the manager imports by name."""
    import sys
    import types

    def describe(cls: type = Right, config: type = Config, example: str = "right") -> Model:
        module = types.ModuleType("conformance_subject")
        module.Net, module.Config, module.EXAMPLE = cls, config, EXAMPLES[example]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        home = module.__name__
        return Model(
            name="subject",
            domain="test",
            summary="One.",
            target=f"{home}:Net",
            config=f"{home}:Config",
            example=f"{home}:EXAMPLE",
        )

    return describe


def test_right_model_passes(describe, plugin_manager: Manager) -> None:
    descriptor = describe()
    check_model(descriptor)
    plugin_manager.register(descriptor)
    check_model("subject")


@pytest.mark.parametrize(
    "check, wrong, said",
    [
        ("config", {"config": Loose}, "must be frozen"),
        ("config", {"config": Rounding}, "on its way through JSON"),
        ("constructor", {"cls": OtherWord}, r"not in the config: \['width'\]"),
        ("constructor", {"cls": OtherDefault}, "d_model is 5 in the constructor and 4 in the config"),
        ("meta", {"cls": OffDevice}, "ignore the default device: .*scale"),
        ("gradients", {"cls": Unused}, "without a gradient: forgotten.weight, forgotten.bias"),
        ("gradients", {"cls": Wild}, "not finite: head.bias"),
        ("batching", {"cls": Leaky}, "example 0 in a batch and alone: differs by"),
        ("batching", {"example": "short"}, "2 outputs for 3 examples"),
        ("batching", {"example": "one"}, "only one item"),
        ("deterministic", {"cls": Noisy}, "differently the second time"),
        ("save-and-load", {"cls": Lazy}, "names in its state_dict"),
        ("save-and-load", {"cls": Unsaved}, "after saving and loading: differs"),
        ("relabelling", {"example": "unsorted"}, "nodes renumbered: differs"),
    ],
)
def test_wrong_model_fails_its_check(check: str, wrong: dict, said: str, describe) -> None:
    with pytest.raises(AssertionError, match=f"subject: {check}: .*{said}"):
        check_model(describe(**wrong), [check])


def test_every_check_is_tested_above() -> None:
    marks = test_wrong_model_fails_its_check.pytestmark[0].args[1]
    assert {mark[0] for mark in marks} == set(CHECKS)


def test_model_without_example_or_name(plugin_manager: Manager) -> None:
    bare = Model(name="bare", domain="t", summary="One.", target="json:loads", config="json:loads")
    with pytest.raises(AssertionError, match="bare: the descriptor has no example"):
        check_model(bare)
    with pytest.raises(PluginError, match="'no-such'"):
        check_model("no-such")
