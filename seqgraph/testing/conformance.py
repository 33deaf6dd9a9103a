"""What every model of every plugin must do, as checks that raise AssertionError with the reason."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from seqgraph.config import arguments
from seqgraph.errors import PluginError
from seqgraph.plugin import manager
from seqgraph.plugin.types import Model
from seqgraph.testing.example import ModelExample
from seqgraph.train import checkpoint

_UNKNOWN = "no_such_field_of_any_model"


@dataclass
class Subject:
    """A model under test, with what its plugin says of it."""

    descriptor: Model

    @cached_property
    def cls(self) -> type[nn.Module]:
        return manager.resolve(self.descriptor)

    @cached_property
    def config(self) -> type[BaseModel]:
        return manager.resolve_config(self.descriptor)

    @cached_property
    def example(self) -> ModelExample:
        example = manager.resolve_example(self.descriptor)
        _require(isinstance(example, ModelExample), f"the example of {self.descriptor.name} is no ModelExample")
        return example

    def build(self, seed: int = 0) -> nn.Module:
        """A model with the example's arguments and the random weights of a seed."""
        torch.manual_seed(seed)
        return self.cls(**arguments(self.config(**self.example.kwargs)))

    def outputs(self, model: nn.Module, items: list[Any]) -> list[Tensor]:
        """One tensor an item, from one batch."""
        outputs = list(self.example.outputs(model, self.example.collate(items)))
        _require(len(outputs) == len(items), f"{len(outputs)} outputs for {len(items)} examples in one batch")
        for output in outputs:
            _require(output.is_floating_point(), f"an output is {output.dtype}, not floating")
            _require(bool(torch.isfinite(output).all()), "an output is not finite")
        return outputs


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _require_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    _require(found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if found.numel():
        difference = float((found - expected).abs().max())
        _require(difference <= tolerance, f"{what}: differs by {difference:.3g}, more than {tolerance:.3g}")


# ---------------------------------------------------------------------- the checks
def check_config(subject: Subject) -> None:
    """The config survives JSON, cannot be changed, and refuses a field it does not know."""
    config = subject.config(**subject.example.kwargs)
    again = subject.config(**json.loads(json.dumps(config.model_dump(mode="json"))))
    _require(again == config, f"the config changes on its way through JSON: {config!r} became {again!r}")
    _require(bool(subject.config.model_config.get("frozen")), f"{subject.config.__name__} must be frozen")
    try:
        subject.config(**subject.example.kwargs, **{_UNKNOWN: 1})
    except ValidationError:
        return
    raise AssertionError(f"{subject.config.__name__} takes an unknown field: set extra='forbid'")


def check_constructor(subject: Subject) -> None:
    """The constructor takes the config's fields as keywords, no more and no less, with the same defaults."""
    parameters = dict(inspect.signature(subject.cls).parameters)
    for parameter in parameters.values():
        plain = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        _require(plain, f"the constructor takes {parameter}: name every keyword")
    fields = subject.config.model_fields
    _require(not parameters.keys() - fields.keys(), f"not in the config: {sorted(parameters.keys() - fields.keys())}")
    _require(not fields.keys() - parameters.keys(), f"only in the config: {sorted(fields.keys() - parameters.keys())}")
    for name, parameter in parameters.items():
        if parameter.default is not parameter.empty and not fields[name].is_required():
            default = fields[name].get_default(call_default_factory=True)
            same = default == parameter.default
            _require(same, f"{name} is {parameter.default!r} in the constructor and {default!r} in the config")


def check_meta(subject: Subject) -> None:
    """It can be made on the "meta" device, without memory for its weights."""
    with torch.device("meta"):
        model = subject.build()
    there = {name: p.device.type for name, p in model.named_parameters() if p.device.type != "meta"}
    _require(not there, f"parameters that ignore the default device: {there}")


def check_gradients(subject: Subject) -> None:
    """In training, every parameter gets a finite gradient from a batch on the CPU."""
    model = subject.build().train()
    _backward(subject, model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    without = [name for name, p in trained if p.grad is None]
    _require(not without, f"parameters without a gradient: {', '.join(without)}")
    wild = [name for name, p in trained if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    _require(not wild, f"gradients that are not finite: {', '.join(wild)}")


def _backward(subject: Subject, model: nn.Module) -> None:
    outputs = subject.outputs(model, subject.example.items(0))
    generator = torch.Generator().manual_seed(0)
    # Random weights: the sum of a softmax or of a normalised vector would have no gradient at all.
    loss = sum((o * torch.randn(o.shape, generator=generator).to(o)).sum() for o in outputs)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise AssertionError("the outputs do not depend on any parameter")
    loss.backward()


def check_batching(subject: Subject) -> None:
    """An example gives the same alone as among others, whatever their lengths and order."""
    model, items = subject.build().eval(), subject.example.items(1)
    _require(len(items) > 1, "the example has only one item: give several, of different sizes")
    with torch.no_grad():
        together = subject.outputs(model, items)
        backwards = subject.outputs(model, items[::-1])[::-1]
        for index, item in enumerate(items):
            [alone] = subject.outputs(model, [item])
            what = f"example {index}"
            _require_close(together[index], alone, subject.example.tolerance, f"{what} in a batch and alone")
            _require_close(backwards[index], alone, subject.example.tolerance, f"{what} in a batch turned round")


def check_deterministic(subject: Subject) -> None:
    """In ``eval`` mode the same batch gives the same output, bit by bit, whatever the random state."""
    model, batch = subject.build().eval(), subject.example.collate(subject.example.items(2))
    with torch.no_grad():
        torch.manual_seed(1)
        first = subject.example.outputs(model, batch)
        torch.manual_seed(2)
        second = subject.example.outputs(model, batch)
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        _require(torch.equal(a, b), f"example {index} comes out differently the second time in eval mode")


def check_save_and_load(subject: Subject) -> None:
    """A checkpoint brings back the same output, and using a model does not change the names of its tensors."""
    model, items = subject.build(seed=3), subject.example.items(3)
    names = list(model.state_dict())
    _require(list(subject.build(seed=4).state_dict()) == names, "two models of one config have different tensors")
    _backward(subject, model.train())
    model.eval()
    with torch.no_grad():
        expected = subject.outputs(model, items)
    _require(list(model.state_dict()) == names, "using the model changed the names in its state_dict")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loaded = _saved_and_loaded(subject, model, Path(folder) / "checkpoint")
        for index, output in enumerate(subject.outputs(loaded, items)):
            _require_close(output, expected[index], 0.0, f"example {index} after saving and loading")


def _saved_and_loaded(subject: Subject, model: nn.Module, folder: Path) -> nn.Module:
    fields = subject.config(**subject.example.kwargs).model_dump(mode="json")
    try:
        manager.provider(subject.descriptor)
    except PluginError:  # a descriptor at hand that is not registered
        folder.mkdir()
        checkpoint.write_tensors(folder / checkpoint.MODEL, model.state_dict())
        loaded = subject.build(seed=5).eval()
        checkpoint.load_state(loaded, folder / checkpoint.MODEL)
        return loaded
    checkpoint.save(folder, model, name=subject.descriptor.name, fields=fields)
    loaded = checkpoint.load(folder)
    _require(not loaded.training, "a loaded model must be in eval mode")
    return loaded


def check_relabelling(subject: Subject) -> None:
    """Renumbering the nodes renumbers the output and changes nothing else, where there are nodes."""
    relabel = subject.example.relabel
    if relabel is None:
        return
    model, generator = subject.build().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for index, item in enumerate(subject.example.items(4)):
            [expected] = subject.outputs(model, [item])
            renumbered, back = relabel(item, generator)
            [found] = subject.outputs(model, [renumbered])
            what = f"example {index} with its nodes renumbered"
            _require_close(back(found), expected, subject.example.tolerance, what)


CHECKS: dict[str, Callable[[Subject], None]] = {
    "config": check_config,
    "constructor": check_constructor,
    "meta": check_meta,
    "gradients": check_gradients,
    "batching": check_batching,
    "deterministic": check_deterministic,
    "save-and-load": check_save_and_load,
    "relabelling": check_relabelling,
}
"""Every check by name."""


def check_model(model: str | Model, checks: Iterable[str] = CHECKS) -> None:
    """Run the conformance suite on one model.

    Args:
        model: a registered name, or a descriptor with an ``example``.
        checks: names in ``CHECKS``; all by default.

    Raises:
        AssertionError: naming the model, the check and what is wrong.
    """
    descriptor = manager.get("models", model) if isinstance(model, str) else model
    _require(descriptor.example is not None, f"{descriptor.name}: the descriptor has no example")
    subject = Subject(descriptor)
    for name in checks:
        state = torch.get_rng_state()
        try:
            CHECKS[name](subject)
        except Exception as error:
            said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{descriptor.name}: {name}: {said}") from error
        finally:
            torch.set_rng_state(state)
