"""Events one at a time: equal to the full scan, batched, in half precision, saved and refused."""

from __future__ import annotations

import json

import pytest
import torch

from seqgraph.errors import CheckpointError, DataError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.model import Mamba4Rec
from seqgraph_mamba4rec.states import fingerprint, load_states, save_states

ITEMS = 40
LENGTHS = (0, 1, 2, 3, 17, 90)
KINDS = [
    {},
    {"n_layers": 2},
    {"n_layers": 3, "norm": "pre"},
    {"mixer": "ssd", "headdim": 16},
    {"mixer": "ssd", "headdim": 8, "n_layers": 2, "norm": "pre"},
    {"d_conv": 1, "residual": True},
]


def make(seed: int = 0, **kwargs) -> Mamba4Rec:
    torch.manual_seed(seed)
    model = Mamba4Rec(**{"num_items": ITEMS, "d_model": 16, "d_state": 5, "dropout": 0.4} | kwargs)
    with torch.no_grad():
        for p in model.parameters():  # weights of a size at which every term matters
            p.add_(torch.randn_like(p) * 0.2)
    model.assets = {"item_ids": [str(100 + i) for i in range(ITEMS)], "titles": {"105": "Five", "106": "Six"}}
    return model.eval()


def histories(seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(ITEMS, (n,), generator=g) for n in LENGTHS]


def stepped(model, rows, state=None, inplace=False):
    """All histories event by event: at each time those that have one more."""
    state = model.initial_state(len(rows)) if state is None else state
    with torch.no_grad():
        for t in range(max(map(len, rows))):
            at = torch.tensor([i for i, row in enumerate(rows) if t < len(row)])
            new = model.step(
                {n: v[at] for n, v in state.items()}, torch.stack([rows[i][t] for i in at]), inplace=inplace
            )
            for name, value in state.items():
                value[at] = new[name]
    return state


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_event_by_event_is_the_full_scan(kind, inplace):
    model, rows = make(**kind), histories()
    with torch.no_grad():
        whole = model.encode_users(TokenStream.from_ragged(rows))
        read = model.prefill(TokenStream.from_ragged(rows))
        again = make(**kind).double().encode_users(TokenStream.from_ragged(rows))
    state = stepped(model, rows, inplace=inplace)
    torch.testing.assert_close(read["out"], whole, atol=0, rtol=0)
    assert state.keys() == read.keys() == model.initial_state(1).keys()
    for name, value in read.items():
        torch.testing.assert_close(state[name], value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state["out"].double(), again, atol=1e-5, rtol=1e-5)
    assert not state["out"][0].any() and state["out"][1:].abs().max() > 0.1


def test_a_prefix_read_at_once_goes_on_event_by_event():
    model, rows = make(n_layers=2), [torch.arange(30) % ITEMS, torch.arange(9, 39) % ITEMS]
    with torch.no_grad():
        state = model.prefill(TokenStream.from_ragged([row[:20] for row in rows]))
        state = stepped(model, [row[20:] for row in rows], state)
        torch.testing.assert_close(
            state["out"], model.encode_users(TokenStream.from_ragged(rows)), atol=1e-5, rtol=1e-5
        )


def test_rows_do_not_meet():
    """A user's state is the same alone and in company, and whoever stands where."""
    model, rows = make(), histories()[1:]
    together = stepped(model, rows)
    turned = stepped(model, rows[::-1])
    for i, row in enumerate(rows):
        alone = stepped(model, [row])
        for name in together:
            torch.testing.assert_close(alone[name][0], together[name][i], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(turned[name][-1 - i], together[name][i], atol=1e-5, rtol=1e-5)


def test_a_step_leaves_the_old_state_alone_and_has_no_dropout():
    model = make().train()
    old = stepped(model, histories()[3:])
    kept = {name: value.clone() for name, value in old.items()}
    items = torch.tensor([1, 2, 3])
    new, same = model.step(old, items), model.step(old, items)
    assert model.training
    for name in old:
        assert torch.equal(old[name], kept[name]) and torch.equal(new[name], same[name])
        assert name.endswith("conv") or not torch.equal(new[name], old[name])
    with torch.no_grad():
        over = model.step(old, items, inplace=True)
    for name in old:
        assert over[name] is old[name]
        torch.testing.assert_close(over[name], new[name])


def test_a_step_has_gradients():
    model = make()
    out = model.step(stepped(model, histories()[3:]), torch.tensor([1, 2, 3]))["out"]
    (gradient,) = torch.autograd.grad(out.square().sum(), model.item_embedding.weight)
    assert gradient[1:4].abs().sum() > 0 and not gradient[4:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_states_in_half_precision_stay_near(dtype):
    """Rounding at each of 90 events does not pile up: old errors decay with the state."""
    model, rows = make(), histories()
    half = stepped(model, rows, {n: v.to(dtype) for n, v in model.initial_state(len(rows)).items()})
    whole = stepped(model, rows)
    assert {v.dtype for v in half.values()} == {dtype}
    error = (half["out"].float() - whole["out"]).abs().max() / whole["out"].abs().max()
    assert error < (5e-3 if dtype == torch.float16 else 4e-2)


def test_raw_ids_and_names_go_in_and_lists_come_out():
    model = make()
    rows = [["101", "five"], [139], ["100", 106, "101"]]
    state = model.user_states([row[:-1] for row in rows])
    state = model.step(state, [row[-1] for row in rows])
    expected = model.recommend(rows, k=7)
    got = model.recommend_from(state, k=7, seen=rows)
    for one, other in zip(expected, got, strict=True):
        assert [r.item for r in one] == [r.item for r in other]
        assert [r.score for r in one] == pytest.approx([r.score for r in other], abs=1e-5)
    everything = model.recommend_from(state, k=ITEMS + 5)
    assert [len(row) for row in everything] == [ITEMS] * 3
    assert model.recommend([["FIVE"]])[0] == model.recommend([["105"]])[0]


def test_what_does_not_fit_is_refused():
    model = make()
    state = model.user_states([["100"], []])
    with pytest.raises(DataError, match="item 'x' was not in the training data"):
        model.step(state, ["100", "x"])
    with pytest.raises(DataError, match=r"\(1,\) items for a state of 2 users"):
        model.step(state, ["100"])
    with pytest.raises(DataError, match="row 1 of the state has no event yet"):
        model.recommend_from(state)
    with pytest.raises(ValueError, match=r"not a state of this model: layers.1.conv"):
        model.step(make(n_layers=2).initial_state(2), torch.tensor([1, 2]))
    model.assets["titles"] = {"105": "Same", "106": "same"}
    with pytest.raises(DataError, match=r"2 items are called 'SAME' \(give an id: 105, 106\)"):
        model.recommend([["SAME"]])
    assert model.recommend([["105"]])


# ---------------------------------------------------------------------------------------------- saved
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_states_are_saved_and_go_on(tmp_path, dtype):
    model, rows = make(), histories()
    state = stepped(model, [row[:9] for row in rows])
    users = [f"user {i} é" for i in range(len(rows))]
    save_states(tmp_path / "s", model, users, state, dtype=dtype, notes={"events": 5})
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["states.json", "states.safetensors"]
    found = load_states(tmp_path / "s", model, dtype=torch.float32)
    assert found.users == users and found.notes == {"events": 5}
    for name, value in state.items():
        assert torch.equal(found.state[name], value.to(dtype).float())
    on = stepped(model, [row[9:] for row in rows], found.state)
    whole = stepped(model, rows)
    error = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(on["out"], whole["out"], atol=error, rtol=error)


def test_states_of_other_weights_are_refused(tmp_path):
    model = make()
    save_states(tmp_path / "s", model, ["ann"], model.user_states([["101"]]))
    load_states(tmp_path / "s", make())
    changed = make()
    with torch.no_grad():
        changed.item_embedding.weight[3, 3] += 1e-6
    renamed = make()
    renamed.assets["item_ids"] = renamed.assets["item_ids"][::-1]
    for other in (changed, renamed, make(1), make(n_layers=2)):
        assert fingerprint(other) != fingerprint(model)
        with pytest.raises(CheckpointError, match=r"these states are of other weights .*read the histories again"):
            load_states(tmp_path / "s", other)
    assert fingerprint(make().half()) != fingerprint(model)


def test_damaged_and_unfit_states_are_refused(tmp_path):
    model, folder = make(), tmp_path / "s"
    state = model.user_states([["101"], ["102"]])
    with pytest.raises(CheckpointError, match="2 rows for 1 users"):
        save_states(folder, model, ["ann"], state)
    large = {n: v * 1e6 for n, v in state.items()}
    with pytest.raises(CheckpointError, match=r"too large for torch.float16 .*store it as float32"):
        save_states(folder, model, ["ann", "bob"], large, dtype=torch.float16)
    assert not folder.exists()
    save_states(folder, model, ["ann", "bob"], state)
    index = json.loads((folder / "states.json").read_text())
    for change, said in (
        ({"format": 2}, "has format 2"),
        ({"users": ["ann"]}, "do not fit"),
        ({"weights": "0"}, "other"),
    ):
        (folder / "states.json").write_text(json.dumps(index | change))
        with pytest.raises(CheckpointError, match=said):
            load_states(folder, model)
    (folder / "states.json").write_text(json.dumps(index))
    (folder / "states.safetensors").write_bytes((folder / "states.safetensors").read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"states.safetensors is damaged"):
        load_states(folder, model)
    (folder / "states.json").unlink()
    with pytest.raises(CheckpointError, match=r"states.json is missing"):
        load_states(folder, model)
