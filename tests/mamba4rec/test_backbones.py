"""The models beside Mamba4Rec: packing, causality, their recurrences by hand, initial values, and that they learn."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from seqgraph.errors import ConfigError, DataError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec import attention, config
from seqgraph_mamba4rec.cloze import BiMamba4Rec, hide, with_last
from seqgraph_mamba4rec.data import Sequences
from seqgraph_mamba4rec.gru4rec import GRU4Rec
from seqgraph_mamba4rec.lru import LinearRecurrentUnit, LRURec, recur
from seqgraph_mamba4rec.model import Mamba4Rec
from seqgraph_mamba4rec.sasrec import CausalAttention, SASRec
from seqgraph_mamba4rec.task import Cloze, NextItem, complete

ITEMS = 31
CAUSAL = {
    "mamba4rec-pre": lambda: Mamba4Rec(ITEMS, d_model=16, d_state=4, n_layers=2, norm="pre"),
    "sasrec-pre": lambda: SASRec(ITEMS, d_model=16, max_length=20),
    "sasrec-post": lambda: SASRec(ITEMS, d_model=16, max_length=20, norm="post"),
    "gru4rec": lambda: GRU4Rec(ITEMS, d_model=16, d_hidden=24, n_layers=2),
    "lrurec": lambda: LRURec(ITEMS, d_model=16),
}
EVERY = CAUSAL | {
    "bimamba4rec": lambda: BiMamba4Rec(ITEMS, d_model=16, d_state=4, n_layers=2),
    "bimamba4rec-ssd": lambda: BiMamba4Rec(ITEMS, d_model=16, d_state=4, mixer="ssd", headdim=8),
}


def loud(make) -> nn.Module:
    """A model with weights of a size at which every term matters."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith(("A_log", "dt_bias", "_log")):
                p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


def histories(*lengths: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randint(ITEMS, (n,), generator=g) for n in lengths]


@pytest.mark.parametrize("name", EVERY)
def test_packed_is_one_by_one(name):
    model, rows = loud(EVERY[name]), histories(9, 1, 0, 17, 2)
    packed = model.encode_users(TokenStream.from_ragged(rows))
    assert packed.isfinite().all() and packed.shape == (5, 16)
    for user, row in zip(packed, rows, strict=True):
        torch.testing.assert_close(model.encode_users(TokenStream.from_ragged([row]))[0], user, atol=1e-5, rtol=1e-5)
    assert packed[0].norm() > 0.1
    nobody = model.encode_users(TokenStream.from_ragged([]))
    assert nobody.shape == (0, 16)


@pytest.mark.parametrize("name", CAUSAL)
def test_reading_some_tokens_is_reading_all_and_choosing(name):
    model, stream = loud(CAUSAL[name]).double(), TokenStream.from_ragged(histories(9, 1, 0, 6))
    at = torch.tensor([3, 8, 9, 15])
    everywhere, there = model(stream).values[at], model.read(stream, at)
    torch.testing.assert_close(there, everywhere, atol=1e-12, rtol=1e-10)
    up = torch.randn(4, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(there, parameters, up), torch.autograd.grad(everywhere, parameters, up)):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("name", CAUSAL)
def test_no_position_sees_its_future_and_no_history_its_neighbours(name):
    model = loud(CAUSAL[name])
    stream = TokenStream.from_ragged(histories(9, 1, 6))
    before = model(stream).values
    for t in (0, 4, 8, 9, 12):
        changed = stream.with_values(stream.values.clone())
        changed.values[t] = (changed.values[t] + 1) % ITEMS
        moved = (model(changed).values - before).abs().amax(1) > 1e-7
        later = (stream.segment == stream.segment[t]) & (torch.arange(16) >= t)
        assert moved[later].all() and not moved[~later].any()


def test_a_cloze_model_sees_both_sides():
    model = loud(EVERY["bimamba4rec"])
    stream = TokenStream.from_ragged(histories(9, 4))
    before = model(stream).values
    changed = stream.with_values(stream.values.clone())
    changed.values[4] = (changed.values[4] + 1) % ITEMS
    moved = (model(changed).values - before).abs().amax(1) > 1e-7
    assert moved[:9].all() and not moved[9:].any()


@pytest.mark.parametrize("name", EVERY)
def test_only_items_can_be_recommended(name):
    model = loud(EVERY[name])
    model.assets = {"item_ids": [f"i{n}" for n in range(ITEMS)]}
    (row,) = model.recommend([["i3", "i30"]], k=99)
    assert sorted(r.item for r in row) == sorted(f"i{n}" for n in range(ITEMS) if n not in (3, 30))
    assert model.item_embedding.num_embeddings == ITEMS  # neither padding nor mask among them


@pytest.mark.parametrize("name", EVERY)
def test_tables_and_matrices_start_small(name):
    torch.manual_seed(0)
    model = EVERY[name]()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            assert 0.015 < module.weight.std() < 0.025
    assert model.scores(model.encode_users(TokenStream.from_ragged(histories(6)))).abs().max() < 1.0


# ---------------------------------------------------------------------------------------------- attention
def reference_attention(q, k, v, cu):
    out = torch.zeros_like(q)
    for a, b in zip(cu[:-1].tolist(), cu[1:].tolist()):
        for t in range(a, b):
            for h in range(q.shape[1]):
                weight = (k[a : t + 1, h] @ q[t, h] / q.shape[2] ** 0.5).softmax(0)
                out[t, h] = weight @ v[a : t + 1, h]
    return out


def test_packed_attention_is_softmax_attention_with_its_gradients():
    g = torch.Generator().manual_seed(2)
    cu = torch.tensor([0, 5, 5, 6, 13], dtype=torch.int32)
    q, k, v = (torch.randn(13, 2, 8, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3))
    ours = attention.packed_attention(q, k, v, cu, max_length=7)
    wanted = reference_attention(q, k, v, cu)
    torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-10)
    up = torch.randn(13, 2, 8, generator=g, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(ours, [q, k, v], up), torch.autograd.grad(wanted, [q, k, v], up)):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    nothing = attention.packed_attention(q[:0], k[:0], v[:0], cu[:1], max_length=7)
    assert nothing.shape == (0, 2, 8)


def test_padding_never_leaks_into_attention():
    """What stands beyond a segment's end in the dense copy is poison."""
    q = torch.randn(9, 2, 8)
    cu = torch.tensor([0, 2, 9], dtype=torch.int32)
    clean = attention.padded_attention(q, q, q, cu, max_length=7)
    poisoned = q.clone()
    poisoned[2:] = torch.nan
    assert torch.equal(attention.padded_attention(poisoned, poisoned, poisoned, cu, max_length=7)[:2], clean[:2])


def test_ragged_flash_is_asked_for_causal_attention():
    """The CUDA path itself needs a GPU; here, that it calls torch's kernel with what this version takes."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    inspect.signature(varlen.varlen_attn).bind(
        *[torch.zeros(1)] * 3, torch.zeros(2), torch.zeros(2), 1, 1, **_flash_keywords(varlen)
    )
    assert attention._ragged_flash() is not None


def _flash_keywords(varlen):
    given = {}

    def spy(*args, **kwargs):
        given.update(kwargs)

    spy.__signature__ = inspect.signature(varlen.varlen_attn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", spy)
        attention._ragged_flash()(1, 2, 3, 4, 5)
    assert given in ({"window_size": (-1, 0)}, {"is_causal": True})
    return given


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ragged_flash_on_a_gpu(dtype):
    g = torch.Generator().manual_seed(2)
    cu = torch.tensor([0, 5, 5, 6, 200], dtype=torch.int32)
    q, k, v = (torch.randn(200, 2, 32, generator=g, dtype=torch.float32) for _ in range(3))
    rows = [t.to("cuda", dtype).requires_grad_() for t in (q, k, v)]
    out = attention.packed_attention(*rows, cu.cuda(), max_length=200)
    exact = [t.detach().double().cpu().requires_grad_() for t in rows]
    wanted = attention.padded_attention(*exact, cu, max_length=200)
    torch.testing.assert_close(out.double().cpu(), wanted, atol=2e-2, rtol=2e-2)
    up = torch.randn(200, 2, 32, generator=g)
    ours = torch.autograd.grad(out, rows, up.to("cuda", dtype))
    for a, b in zip(ours, torch.autograd.grad(wanted, exact, up.double())):
        torch.testing.assert_close(a.double().cpu(), b, atol=4e-2, rtol=4e-2)


def test_sasrec_counts_positions_from_the_first_event_and_refuses_more_than_it_has():
    model = loud(CAUSAL["sasrec-pre"])
    row = histories(8)[0]
    a, b = (model(TokenStream.from_ragged([r])).values for r in (row, row[1:]))
    assert (a[1:] - b).abs().max() > 1e-3  # the same items at other positions
    same = torch.full((6,), 3)
    out = model(TokenStream.from_ragged([same])).values
    assert (out[1:] - out[:-1]).abs().amax(1).min() > 1e-3
    with pytest.raises(DataError, match="21 events, the model 20 positions"):
        model(TokenStream.from_ragged(histories(21)))
    with pytest.raises(ValueError, match="no multiple"):
        CausalAttention(10, 3, 0.0, 5)
    model.assets = {"item_ids": [str(n) for n in range(ITEMS)], "max_history": None}
    long = [str(n) for n in range(ITEMS)]
    assert model.recommend([long], filter_seen=False) == model.recommend([long[-20:]], filter_seen=False)


def test_training_on_longer_histories_than_there_are_positions_is_refused(tmp_path):
    (tmp_path / "s.txt").write_text("u a b c d\n")
    model = SASRec(4, max_length=20)
    for limit, said in ((50, "50"), (None, "unlimited")):
        with pytest.raises(ConfigError, match=f"max_history is {said}, the model reads 20"):
            NextItem(model).setup(Sequences(str(tmp_path / "s.txt"), max_history=limit))
    NextItem(model).setup(Sequences(str(tmp_path / "s.txt"), max_history=20))


# ---------------------------------------------------------------------------------------------- recurrences
def test_doubling_is_the_recurrence():
    g = torch.Generator().manual_seed(3)
    cu = torch.tensor([0, 6, 6, 7, 40], dtype=torch.int32)
    parts = torch.randn(2, 40, 5, generator=g, dtype=torch.float64)
    x = torch.complex(parts[0], parts[1]).requires_grad_()
    log_step = torch.complex(-torch.rand(5, generator=g).double() * 0.3, torch.rand(5, generator=g).double() * 6)
    log_step.requires_grad_()
    wanted = []
    for a, b in zip(cu[:-1].tolist(), cu[1:].tolist()):
        h = torch.zeros(5, dtype=torch.complex128)
        for t in range(a, b):
            h = log_step.exp() * h + x[t]
            wanted.append(h)
    wanted = torch.stack(wanted)
    ours = recur(x, log_step, cu)
    torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-10)
    up = torch.complex(*torch.randn(2, 40, 5, generator=g, dtype=torch.float64))
    for a, b in zip(torch.autograd.grad(ours, [x, log_step], up), torch.autograd.grad(wanted, [x, log_step], up)):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


def test_linear_recurrent_unit_starts_on_its_ring():
    torch.manual_seed(0)
    unit = LinearRecurrentUnit(8, 500, r_min=0.8, r_max=0.99)
    modulus = torch.exp(-unit.nu_log.exp())
    assert 0.799 < modulus.min() < 0.82 and 0.97 < modulus.max() < 0.991
    assert modulus.square().mean().item() == pytest.approx((0.8**2 + 0.99**2) / 2, rel=0.02)  # uniform over the ring
    torch.testing.assert_close(unit.gamma_log.exp(), torch.sqrt(1 - modulus**2))


# ---------------------------------------------------------------------------------------------- cloze
def test_hiding_items():
    torch.manual_seed(0)
    stream = TokenStream.from_lengths(torch.arange(60_000) % ITEMS, [20] * 3000)
    holed, gone = hide(stream, 0.3, 0.25, ITEMS)
    assert torch.equal(holed.values == ITEMS, gone) and torch.equal(holed.values[~gone], stream.values[~gone])
    last = stream.position == 19
    assert gone[~last].float().mean().item() == pytest.approx(0.3 * 0.75, abs=0.01)
    assert gone[last].float().mean().item() == pytest.approx(0.3 * 0.75 + 0.25, abs=0.03)
    alone = gone[last] & (torch.zeros(3000).index_add(0, stream.segment, gone.float()) == 1)
    assert alone.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert hide(TokenStream.from_ragged([[], [1]]), 0.5, 1.0, ITEMS)[1].sum() == 1  # an empty history hides nothing


def test_one_more_item_at_the_end_of_each_history():
    stream = TokenStream.from_ragged([[1, 2], [], [3]])
    assert with_last(stream, 9).validate().values.tolist() == [1, 2, 9, 9, 3, 9]
    longer = with_last(stream, torch.tensor([7, 8, 9]))
    assert longer.values.tolist() == [1, 2, 7, 8, 3, 9] and longer.lengths.tolist() == [3, 1, 2]


@pytest.mark.parametrize("examples", ["histories", "prefixes"])
def test_a_cloze_is_made_of_whole_histories(tmp_path, examples):
    (tmp_path / "s.txt").write_text("u a b c d e f\nv c b a d\n")
    data = Sequences(str(tmp_path / "s.txt"), examples=examples, max_history=3)
    train = data.split("train")
    whole = complete(data.collate(train[:]))
    for example, segment in zip(train, whole.unbind(), strict=True):
        assert segment.values.tolist() == [*example.history.tolist(), int(example.target[-1])]


def test_a_model_that_sees_both_sides_is_not_asked_for_what_it_sees():
    with pytest.raises(ConfigError, match="sees the very items") as caught:
        NextItem(EVERY["bimamba4rec"]())
    assert caught.value.hint == "task=cloze"


def test_the_next_item_is_a_hidden_one_after_the_last():
    model = loud(EVERY["bimamba4rec"])
    row = histories(7)[0]
    asked = model(TokenStream.from_ragged([torch.cat([row, torch.tensor([ITEMS])])])).values[-1]
    torch.testing.assert_close(model.encode_users(TokenStream.from_ragged([row]))[0], asked)
    with torch.no_grad():
        model.hidden_item.copy_(torch.linspace(-1, 2, 16))
    assert (model.encode_users(TokenStream.from_ragged([row]))[0] - asked).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="a Mamba4Rec cannot"):
        Cloze(Mamba4Rec(3))


# ---------------------------------------------------------------------------------------------- learning
@pytest.mark.parametrize("name", EVERY)
def test_every_model_learns_a_world_of_successors(name, tmp_path):
    """Item i is followed by i + 1 (mod 31)."""
    g = torch.Generator().manual_seed(0)
    rows = [[(int(s) + j) % ITEMS for j in range(12)] for s in torch.randint(ITEMS, (64,), generator=g)]
    (tmp_path / "s.txt").write_text("".join(f"u{n} {' '.join(map(str, row))}\n" for n, row in enumerate(rows)))
    data = Sequences(str(tmp_path / "s.txt"), max_history=20)
    torch.manual_seed(0)
    model = EVERY[name]()
    task = (Cloze if name.startswith("bi") else NextItem)(model, k=1)
    task.setup(data)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    batch = data.collate(data.split("train")[:])
    for _ in range(120):
        optimizer.zero_grad()
        task.training_step(batch)["loss"].backward()
        optimizer.step()
    task.eval()
    with torch.no_grad():
        task.evaluation_step(data.collate(data.split("test")[:]))
    assert task.ranked.compute()["HR@1"] > 0.9


@pytest.mark.parametrize("cls", [SASRec, GRU4Rec, LRURec, BiMamba4Rec])
def test_config_fields_are_the_constructors_keywords(cls):
    fields = getattr(config, f"{cls.__name__}Config").model_fields
    parameters = list(inspect.signature(cls).parameters.values())
    assert [p.name for p in parameters] == list(fields)
    for p in parameters[1:]:
        assert fields[p.name].default == p.default


def test_task_fields_are_the_constructors_keywords():
    own = {n: p.default for n, p in inspect.signature(NextItem).parameters.items() if n != "model"}
    assert own == {n: f.default for n, f in config.NextItemConfig.model_fields.items()}
    more = {n: p.default for n, p in inspect.signature(Cloze).parameters.items() if n not in ("model", "options")}
    assert own | more == {n: f.default for n, f in config.ClozeConfig.model_fields.items()}
    for bad in (0, (10, 0), (), (5, 5)):
        with pytest.raises(ValueError, match="different numbers from 1"):
            config.NextItemConfig(k=bad)


@pytest.mark.parametrize("make", [Mamba4Rec, SASRec])
def test_item_dropout_is_on_what_the_scores_are_tied_to_in_training_alone(make):
    torch.manual_seed(0)
    model = make(3000, d_model=16, dropout=0.0, item_dropout=0.25)
    table = model.item_embedding.weight
    first, second = model.tied_vectors(), model.tied_vectors()
    assert abs((first == 0).float().mean() - 0.25) < 0.01 and not torch.equal(first, second)
    torch.testing.assert_close(first[first != 0], table[first != 0] / 0.75)
    stream = TokenStream.from_ragged(histories(9, 4))
    task, same = NextItem(model), model(stream).values
    assert torch.equal(model(stream).values, same)  # the read-outs have the dropout of their own alone
    assert not torch.equal(task._loss(same, stream.values), task._loss(same, stream.values))
    model.eval()
    assert torch.equal(model.tied_vectors(), table) and torch.equal(model.scores(same), same @ table.T)


@pytest.mark.parametrize("make", [Mamba4Rec, SASRec])
def test_lists_of_a_model_in_training_are_those_of_one_that_is_not(make):
    torch.manual_seed(0)
    model = make(200, d_model=16, item_dropout=0.5)
    model.assets = {"item_ids": [f"i{n}" for n in range(200)]}
    found = []
    for training in (False, True, True):
        model.train(training)
        lists = [model.recommend([["i3", "i7"], ["i9"]], k=5)]
        if make is Mamba4Rec:
            lists.append(model.recommend_from(model.user_states([["i3", "i7"], ["i9"]]), k=5))
        found.append(lists)
    assert found[0] == found[1] == found[2]
