"""What a model remembers of a user: a state of constant size that each event moves on; saved and loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from seqgraph.encode.state import State
from seqgraph.errors import CheckpointError, DataError
from seqgraph.stream import TokenStream
from seqgraph.train import checkpoint
from seqgraph_mamba4rec.lists import Recommendation, batches, evaluating
from seqgraph_mamba4rec.seen import SeenTerm
from seqgraph_mamba4rec.topk import ItemIndex

FORMAT = 1
"""Version of a folder of states; a reader refuses a later one."""

TENSORS, INDEX = "states.safetensors", "states.json"
READ_OUT = "out"
"""The state's entry that items are compared with: what the model knows after the last event, (B, D)."""

_PARTS = ("conv", "ssm")
_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Streaming:
    """Events one at a time, for a model of causal layers.

    A state is a flat dict of tensors with one row a user: "layers.{i}.conv", "layers.{i}.ssm" and "out", the
    read-out (B, D) after the last event, zeros before the first. Rows may be picked, put back, stored and saved.
    The whole history counts, however long; :meth:`Recommender.recommend` looks at the last ``max_history`` events.
    """

    if TYPE_CHECKING:  # the model has them
        layers: nn.ModuleList
        item_embedding: nn.Embedding
        norm_f: nn.Module
        seen: SeenTerm | None

        def embed(self, stream: TokenStream) -> Tensor: ...
        def catalogue(self) -> Any: ...
        def item_vectors(self) -> Tensor: ...
        def index(self) -> ItemIndex: ...

    def initial_state(self, users: int) -> State:
        """The state of so many users before their first event."""
        weight = self.item_embedding.weight
        state = {f"layers.{i}.{part}": t for i, own in enumerate(self._initial(users)) for part, t in own.items()}
        return state | {READ_OUT: weight.new_zeros(users, weight.shape[1])}

    def _initial(self, users: int) -> list[State]:
        return [cast(Any, layer).mixer.initial_state(users) for layer in self.layers]

    def prefill(self, stream: TokenStream) -> State:
        """The state after each of S histories, read at once.

        Args:
            stream: rows of items (T,), one segment a history.
        """
        x, state = self.embed(stream), State()
        for i, layer in enumerate(cast(Any, self.layers)):
            mixed, own = layer.mixer.prefill(layer.enter(x), stream.cu_seqlens)
            x = layer.leave(x, mixed)
            state |= {f"layers.{i}.{part}": t for part, t in own.items()}
        return state | {READ_OUT: stream.with_values(self.norm_f(x)).pool("last")}

    def step(self, state: State, items: Tensor | Sequence[Any], *, inplace: bool = False) -> State:
        """Take in the next event of each user, in time and memory that do not depend on the history.

        Args:
            state: B rows, of :meth:`initial_state`, :meth:`prefill`, :meth:`user_states` or the step before; on the
                model's device, in any floating dtype.
            items: rows of items (B,) int64, or B raw ids or names.
            inplace: overwrite the tensors of the state, without gradients.

        Returns:
            The new state, in the dtypes of the old one.

        Raises:
            DataError: for an item that the model does not know, or as many items as the state has no rows.
            ValueError: when the state is not one of this model.
        """
        if not isinstance(items, Tensor):
            items = self._rows(items)
        names = [f"layers.{i}.{part}" for i in range(len(self.layers)) for part in _PARTS]
        if odd := {*names, READ_OUT} ^ state.keys():
            raise ValueError(f"not a state of this model: {min(odd)} is missing or too much")
        if items.shape != state[READ_OUT].shape[:1]:
            raise DataError(f"{tuple(items.shape)} items for a state of {len(state[READ_OUT])} users", "one item each")
        new: State = {}
        with evaluating(self):
            each = torch.arange(len(items) + 1, device=items.device, dtype=torch.int32)
            x = self.embed(TokenStream(items, each, items))
            for i, layer in enumerate(cast(Any, self.layers)):
                own = {part: state[f"layers.{i}.{part}"] for part in _PARTS}
                mixed, own = layer.mixer.step(layer.enter(x), own, inplace=inplace)
                x = layer.leave(x, mixed)
                new |= {f"layers.{i}.{part}": t for part, t in own.items()}
            x = self.norm_f(x)
        old = state[READ_OUT]
        new[READ_OUT] = old.copy_(x) if inplace else x.to(old.dtype)
        return new

    def _rows(self, items: Sequence[Any]) -> Tensor:
        catalogue = self.catalogue()
        rows = [catalogue.find(item) for item in items]
        if None in rows:
            raise DataError(f"item {items[rows.index(None)]!r} was not in the training data", "leave it out")
        return torch.tensor(rows, dtype=torch.int64, device=self.item_embedding.weight.device)

    @torch.no_grad()
    def user_states(self, histories: Iterable[Sequence[Any]]) -> State:
        """The state after each history of raw ids or names; a history may be empty.

        Raises:
            DataError: naming the history and the item that is unknown.
        """
        known = self.catalogue().rows(histories, "error", empty=True)
        device = self.item_embedding.weight.device
        with evaluating(self):
            parts = [self.initial_state(0), *(self.prefill(s.to(device)) for s in batches(known))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def recommend_from(
        self,
        state: State,
        k: int = 10,
        *,
        seen: Iterable[Sequence[Any]] | None = None,
        history: Iterable[Sequence[Any]] | None = None,
    ) -> list[list[Recommendation]]:
        """The best k items for each row of a state, without reading anything again.

        Args:
            state: B rows, each after one event at least.
            k: length of the lists; shorter where fewer items are left.
            seen: for each row the items to leave out, raw ids or names; None leaves out none.
            history: for each row what the user has had, oldest first, raw ids or names. A model with a weight for it
                (``model.seen``) needs it: a state of constant size does not say which items those were.

        Raises:
            DataError: for a row without an event, ``seen`` or ``history`` of another number of rows or with an item
                that is unknown, or a model that asks for histories and gets none.
        """
        users = state[READ_OUT].to(self.item_vectors().dtype)
        nobody = (users == 0).all(1)
        if bool(nobody.any()):
            raise DataError(f"row {int(nobody.int().argmax())} of the state has no event yet", "step it first")
        if self.seen is not None and history is None:
            raise DataError(
                "this model has a weight for what a user has had (model.seen)", "pass history=, every row's items"
            )
        catalogue = self.catalogue()
        rows = [None if items is None else catalogue.rows(items, "error", empty=True) for items in (seen, history)]
        for name, given in zip(("seen", "history"), rows, strict=True):
            if given is not None and len(given) != len(users):
                raise DataError(f"{name} has {len(given)} rows, the state has {len(users)}", "give one for each row")
        out, had = (TokenStream.from_ragged(given).to(users.device) if given else None for given in rows)
        return catalogue.describe(*self.index().search(users, k, seen=out, had=had))


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights and of its items' ids, by which its states are recognised: 64 hex digits."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"|{name} {tensor.dtype} {tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for raw in getattr(model, "assets", {}).get("item_ids") or ():
        digest.update(f"|{raw}".encode())
    return digest.hexdigest()


@dataclass
class SavedStates:
    """What :func:`load_states` found.

    Attributes:
        users: the name of each row.
        state: the rows.
        beside: tensors that were saved with them.
        notes: JSON that was saved with them.
    """

    users: list[str]
    state: State
    beside: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def save_states(
    folder: str | PathLike[str],
    model: nn.Module,
    users: Sequence[str],
    state: State,
    *,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    beside: Mapping[str, Tensor] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write states as a folder of safetensors and JSON, whole or not at all.

    Args:
        folder: where.
        model: whose states they are.
        users: the name of each row.
        state: the rows.
        dtype: float32, bfloat16 or float16 to store them in; None leaves them as they are.
        weights: the model's :func:`fingerprint` if it is known already.
        beside: more tensors to keep, under names of their own.
        notes: more to keep, as JSON.

    Returns:
        The folder.

    Raises:
        CheckpointError: when it cannot be written, or a number is too large for float16.
    """
    folder = Path(folder)
    rows = {name: t.detach().to(dtype or t.dtype) for name, t in state.items()}
    if wrong := [name for name, t in rows.items() if len(t) != len(users)]:
        raise CheckpointError(f"{wrong[0]} has {len(rows[wrong[0]])} rows for {len(users)} users")
    if wrong := [name for name, t in rows.items() if not bool(torch.isfinite(t).all())]:
        raise CheckpointError(
            f"{wrong[0]} is too large for {rows[wrong[0]].dtype} or not finite", "store it as float32"
        )
    index = {
        "format": FORMAT,
        "weights": weights or fingerprint(model),
        "versions": checkpoint.versions(),
        "users": list(users),
        "notes": dict(notes or {}),
    }

    def fill(target: Path) -> None:
        tensors = {f"state.{name}": t for name, t in rows.items()}
        checkpoint.write_tensors(target / TENSORS, tensors | {f"beside.{n}": t for n, t in (beside or {}).items()})
        checkpoint.write_json(target / INDEX, index)

    return checkpoint.write_folder(folder, fill)


def load_states(
    folder: str | PathLike[str],
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    any_weights: bool = False,
) -> SavedStates:
    """Read states back, onto the model's device.

    Args:
        folder: what :func:`save_states` wrote.
        model: whose states they must be.
        dtype: what to turn them into; None leaves them as they were stored.
        weights: the model's :func:`fingerprint` if it is known already.
        any_weights: take them though they are of other weights, for what is saved beside them.

    Raises:
        CheckpointError: when a file is missing or damaged, the states are of other weights, or a tensor does not fit.
    """
    folder = Path(folder)
    checkpoint.recover(folder)
    index = checkpoint.read_json(folder / INDEX)
    if not isinstance(index, dict) or not {"format", "weights", "users"} <= index.keys():
        raise CheckpointError(f"{folder / INDEX} does not describe states", "was it written by seqgraph?")
    if index["format"] > FORMAT:
        raise CheckpointError(f"{folder} has format {index['format']}, this seqgraph reads {FORMAT}", "update seqgraph")
    own = weights or fingerprint(model)
    if index["weights"] != own and not any_weights:
        raise CheckpointError(
            f"{folder}: these states are of other weights ({index['weights'][:12]}, the model's are {own[:12]})",
            "load the model that made them, or read the histories again with this one",
        )
    tensors = checkpoint.read_tensors(folder / TENSORS)
    state = {n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")}
    beside = {n.removeprefix("beside."): t for n, t in tensors.items() if n.startswith("beside.")}
    users = [str(user) for user in index["users"]]
    if not any_weights:
        expected = cast(Any, model).initial_state(0)
        shapes = {name: (len(users), *t.shape[1:]) for name, t in expected.items()}
        if shapes != {name: tuple(t.shape) for name, t in state.items()}:
            raise CheckpointError(
                f"{folder / TENSORS} is damaged: its tensors do not fit the model", "take another one"
            )
    device = next(model.parameters()).device
    state = {name: t.to(device, dtype or t.dtype) for name, t in state.items()}
    return SavedStates(users, state, beside, index.get("notes") or {})
