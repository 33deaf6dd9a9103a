"""The learned term of what a user has had: against a dense reference, in every loss, ranking, list and state."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqgraph.errors import ConfigError, DataError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.captured import Captured, Filled, size_of
from seqgraph_mamba4rec.histories import HistoryBatch
from seqgraph_mamba4rec.loss import gbce_loss, sampled_softmax_loss, softmax_loss
from seqgraph_mamba4rec.model import Mamba4Rec
from seqgraph_mamba4rec.sasrec import SASRec
from seqgraph_mamba4rec.seen import SeenTerm, following
from seqgraph_mamba4rec.states import fingerprint, load_states, save_states
from seqgraph_mamba4rec.task import NextItem
from seqgraph_mamba4rec.topk import ItemIndex

ITEMS = 13
KINDS = ("bias", "recency")


def term(kind, seed=0):
    made = SeenTerm(kind).double()
    torch.nn.init.normal_(made.theta, std=0.2, generator=torch.Generator().manual_seed(seed))
    return made


def bucket(age, kind):
    """By its definition: 0, 1, 2 to 3, 4 to 7, 8 to 15, 16 and more."""
    return 0 if kind == "bias" or age == 0 else min(5, 1 + int(math.log2(age)))


def dense(made, kind, stream, at):
    """What is added to each score, (P, V), token by token."""
    weights, rows, borders = made(), [], stream.cu_seqlens.tolist()
    for token in at:
        begin = max(b for b in borders[:-1] if b <= token) if len(stream) else 0
        last = {int(stream.values[t]): t for t in range(begin, token + 1)}
        added = [weights[bucket(token - last[i], kind)] if i in last else weights.new_zeros(()) for i in range(ITEMS)]
        rows.append(torch.stack(added))
    return torch.stack(rows) if rows else weights.new_zeros(0, ITEMS)


def case(lengths, seed=0, share=1.0):
    g = torch.Generator().manual_seed(seed)
    size = sum(lengths)
    values = torch.randint(ITEMS, (size,), generator=g)
    stream = TokenStream.from_lengths(values, lengths, source=values)
    at = (torch.rand(size, generator=g) < share).nonzero()[:, 0]
    h, w = (torch.randn(n, 6, generator=g, dtype=torch.float64, requires_grad=True) for n in (len(at), ITEMS))
    return stream, at, h, w, torch.randint(ITEMS, (len(at),), generator=g)


def close(ours, theirs, of):
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-11)
    for a, b in zip(torch.autograd.grad(ours, of), torch.autograd.grad(theirs, of), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(sum),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(KINDS),
    budget=st.sampled_from([1, 3000, 1 << 20]),
    share=st.sampled_from([0.3, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_softmax_is_that_of_the_dense_sum(lengths, seed, kind, budget, share):
    stream, at, h, w, target = case(lengths, seed, share)
    made = term(kind, seed)
    had = made.had(stream, None if share == 1 else at)
    ours = softmax_loss(h, w, target, budget=budget, had=had)
    if not len(at):
        assert ours.item() == 0
        return
    logits = h @ w.T + dense(made, kind, stream, at.tolist())
    close(ours, torch.nn.functional.cross_entropy(logits, target), [h, w, made.theta])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[150, 2, 80], [300]])
def test_distances_far_back(kind, lengths):
    stream, at, h, w, target = case(lengths, 4)
    made = term(kind)
    wanted = torch.nn.functional.cross_entropy(h @ w.T + dense(made, kind, stream, at.tolist()), target)
    close(softmax_loss(h, w, target, had=made.had(stream)), wanted, [h, w, made.theta])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [sampled_softmax_loss, gbce_loss])
@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_of_drawn_items_too(kind, loss, budget):
    """Three draws: the reference adds the dense term to the candidates' logits by a read-out of its own."""
    stream, at, h, w, target = case([9, 1, 0, 14], 5)
    made = term(kind)
    ours = loss_of(loss, h, w, target, budget, had=made.had(stream))
    # An item's column of its own for each prediction: h . w + term = [h, e_p] . [w, term of p]
    eye = torch.eye(len(at), dtype=torch.float64)
    wide_w = torch.cat([w, dense(made, kind, stream, at.tolist()).T], 1)
    theirs = loss_of(loss, torch.cat([h, eye], 1), wide_w, target, 1 if budget == 1 else 1 << 24)
    close(ours, theirs, [h, w, made.theta])


def loss_of(loss, h, w, target, budget, **more):
    torch.manual_seed(7)
    return loss(h, w, target, negatives=3, budget=budget, **more)


def test_a_weight_of_zero_changes_nothing():
    stream, _, h, w, target = case([5, 9])
    assert softmax_loss(h, w, target, had=SeenTerm("recency").double().had(stream)) == softmax_loss(h, w, target)


@pytest.mark.parametrize("kind", KINDS)
def test_no_prediction_knows_what_comes_after_it(kind):
    stream, at, h, w, target = case([11], 2)
    made = term(kind)
    for now in range(10):
        changed = stream.values.clone()
        changed[now + 1 :] = (changed[now + 1 :] + 5) % ITEMS
        first, second = (
            softmax_loss(h[now : now + 1], w, target[:1], had=made.had(stream.with_values(v), at[now : now + 1]))
            for v in (stream.values, changed)
        )
        assert first == second


def test_the_next_of_the_same_item():
    stream = TokenStream.from_ragged(
        [torch.tensor([3, 1, 3, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([3, 1])]
    )
    assert following(stream).tolist() == [2, 6, 3, 6, 6, 6]
    assert (
        following(
            TokenStream.from_lengths(torch.empty(0, dtype=torch.int64), [0], source=torch.empty(0, dtype=torch.int64))
        ).tolist()
        == []
    )


# ---------------------------------------------------------------------------------------------- models and tasks
MODELS = {
    "s6": lambda kind: Mamba4Rec(ITEMS, d_model=16, d_state=8, n_layers=2, dropout=0.0, seen=kind),
    "ssd": lambda kind: Mamba4Rec(ITEMS, d_model=16, d_state=16, mixer="ssd", headdim=16, dropout=0.0, seen=kind),
    "sasrec": lambda kind: SASRec(ITEMS, d_model=16, dropout=0.0, max_length=64, seen=kind),
}


def model(name, kind):
    torch.manual_seed(1)
    made = MODELS[name](kind)
    torch.nn.init.normal_(made.seen.theta, std=0.1)
    torch.nn.init.normal_(made.item_embedding.weight)
    made.assets = {"item_ids": [f"i{n}" for n in range(ITEMS)], "max_history": 20}
    return made.eval()


def batch(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    items = torch.randint(ITEMS, (2, sum(lengths)), generator=g)
    stream = TokenStream.from_lengths(items[0], lengths, source=items[0])
    return HistoryBatch(stream, torch.arange(sum(lengths)), items[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_prefixes_and_histories_are_trained_alike(name, kind):
    """Every prefix by its last position, or every position at once: one loss, one gradient."""
    whole, one = batch([7, 1, 5]), NextItem(model(name, kind))
    prefixes = [whole.stream[s].values[: n + 1] for s in range(3) for n in range(int(whole.stream.lengths[s]))]
    stream = TokenStream.from_ragged(prefixes)
    apart = HistoryBatch(stream, stream.cu_seqlens[1:].long() - 1, whole.target)
    found = []
    for each in (whole, apart):
        one.zero_grad()
        loss = one.training_step(each)["loss"]
        loss.backward()
        found.append((loss.item(), one.model.seen.theta.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-4)
    assert found[0][1].abs().max() > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_what_a_recorded_batch_is_filled_up_with_changes_nothing(name):
    one = NextItem(model(name, "recency").train())
    captured, given = Captured(one._counted, one.parameters()), batch([60, 30, 1])
    room = Filled.empty(size_of(given.stream), torch.device("cpu"))
    for each in (batch([50, 40, 9], 3), given):
        room.fill(each.stream, each.target)
    loss, grads = captured.run(room)
    wanted = one.training_step(given)["loss"]
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for ours, theirs in zip(grads, [p.grad for p in one.parameters()], strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_those_of_the_dense_sum_over_whole_histories(kind):
    """The model reads windows of what the users had; the term counts all of it."""
    made = model("s6", kind)
    seen = batch([15, 4, 9]).stream
    windows = TokenStream.from_ragged([s.values[-4:] for s in seen.unbind()])
    target = torch.tensor([1, 7, 2])
    one = NextItem(made, memory_mib=1)
    one.budget, one.ranks = 4 * ITEMS * 2, []  # two users at once
    with torch.no_grad():
        one.evaluation_step(HistoryBatch(windows, windows.cu_seqlens[1:].long() - 1, target, seen, torch.arange(3)))
        scores = made.scores(made.encode_users(windows))
    scores = scores + dense(made.seen, kind, seen, (seen.cu_seqlens[1:] - 1).tolist()).detach()
    wanted = (scores >= scores.gather(1, target[:, None])).sum(1)
    assert torch.cat([ranks[1] for ranks in one.ranks]).tolist() == wanted.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_lists_states_and_steps_agree(kind, tmp_path):
    """recommend reads the histories; a state stepped event by event, saved and loaded, gives the same lists."""
    made, histories = model("s6", kind), [["i3", "i1", "i3", "i12"], ["i5"], [f"i{n % 7}" for n in range(18)]]
    for keep in (False, True):
        wanted = made.recommend(histories, k=6, filter_seen=not keep)
        state = made.initial_state(3)
        for t in range(18):
            on = [i for i, h in enumerate(histories) if t < len(h)]
            rows = {name: x[on] for name, x in state.items()}
            for name, x in made.step(rows, [histories[i][t] for i in on]).items():
                state[name][on] = x.detach()
        save_states(tmp_path / "s", made, ["a", "b", "c"], state)
        state = load_states(tmp_path / "s", made).state
        got = made.recommend_from(state, k=6, seen=None if keep else histories, history=histories)
        for ours, theirs in zip(got, wanted, strict=True):
            assert [one.item for one in ours] == [one.item for one in theirs]
            assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-5)
    with torch.no_grad():
        stream = TokenStream.from_ragged([torch.tensor([int(i[1:]) for i in h]) for h in histories])
        every = made.scores(made.encode_users(stream)) + dense(
            made.seen, kind, stream, (stream.cu_seqlens[1:] - 1).tolist()
        )
    best = every[0].topk(6)
    assert [one.item for one in wanted[0]] == [f"i{n}" for n in best.indices]
    assert [one.score for one in wanted[0]] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_state_alone_does_not_say_what_was_had():
    made = model("s6", "bias")
    with pytest.raises(DataError, match=r"model\.seen"):
        made.recommend_from(made.user_states([["i1"]]))


@pytest.mark.parametrize("name", ["history", "seen"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_list_is_refused_that_has_other_rows_than_the_state(name, count):
    made = model("s6", "bias")
    state = made.user_states([["i1"], ["i2"]])
    with pytest.raises(DataError, match=f"{name} has {count} rows, the state has 2"):
        made.recommend_from(state, **{"history": [["i1"], ["i2"]], name: [["i1"]] * count})


def test_an_index_with_a_term_asks_for_histories_and_refuses_faiss():
    made = model("s6", "bias")
    with pytest.raises(ValueError, match="pass had="):
        made.index().search(torch.zeros(1, made.item_vectors().shape[1]), 1)
    with pytest.raises(ValueError, match="FAISS knows no term"):
        ItemIndex(torch.zeros(4, 2), backend="faiss", term=made.seen)


def test_states_of_other_weights_of_the_term_are_refused():
    first, second = model("s6", "bias"), model("s6", "bias")
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        second.seen.theta += 1
    assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize("budget", [1, 200, 1 << 20])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_search_in_blocks_is_that_of_the_dense_sum(budget, backend):
    made, g = term("recency").float(), torch.Generator().manual_seed(2)
    items, users = torch.randn(ITEMS, 4, generator=g), torch.randn(3, 4, generator=g)
    had = batch([8, 0, 30], 4).stream
    index = ItemIndex(items, budget=budget, backend=backend, faiss_from=1, term=made)
    scores, rows = index.search(users, 5, had=had)
    added = torch.zeros(3, ITEMS)
    for user in (0, 2):
        token = int(had.cu_seqlens[user + 1]) - 1
        added[user] = dense(made, "recency", had, [token])[0].detach()
    wanted = (users @ items.T + added).topk(5)
    torch.testing.assert_close(scores, wanted.values, atol=1e-5, rtol=1e-5)
    assert rows.tolist() == wanted.indices.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_whether_people_come_back(kind):
    """Users who never do, and users who only do: the weight falls, or rises."""
    g = torch.Generator().manual_seed(0)
    never = [torch.randperm(ITEMS, generator=g) for _ in range(8)]
    again = [torch.randint(ITEMS, (3,), generator=g).repeat(4) for _ in range(8)]
    for histories, sign in ((never, -1), (again, 1)):
        stream = TokenStream.from_ragged([h[:-1] for h in histories])
        given = HistoryBatch(stream, torch.arange(stream.num_tokens), torch.cat([h[1:] for h in histories]))
        torch.manual_seed(0)
        one = NextItem(Mamba4Rec(ITEMS, d_model=8, d_state=4, dropout=0.0, seen=kind))
        optimizer = torch.optim.Adam(one.parameters(), lr=3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            one.training_step(given)["loss"].backward()
            optimizer.step()
        weights = one.model.seen().detach()
        # One weight stands for all distances; of several, that of the last item but two, which is the one to come.
        assert sign * weights[2 if kind == "recency" else 0] > 0.5


def test_the_serving_layer_knows_what_users_had(tmp_path):
    import asyncio

    from seqgraph_mamba4rec.serve.engine import Engine
    from seqgraph_mamba4rec.serve.store import UserStore

    made = model("s6", "recency")
    history = ["i3", "i1", "i3", "i12", "i1"]

    async def lists(store):
        engine = Engine(store)
        engine.start()
        for item in history if not store.rows else []:
            await engine.add("u", made.catalogue().row(item))
        rows = [made.catalogue().row(item) for item in history]
        found = [(await engine.ask(who, past, 6, False))[0] for who, past in (("u", ()), (None, rows))]
        await engine.stop()
        return found

    wanted = made.recommend([history], k=6, filter_seen=False)[0]
    for _ in range(2):  # the second time from the snapshot
        for found in asyncio.run(lists(UserStore(tmp_path, made, capacity=4))):
            assert [one.item for one in found] == [one.item for one in wanted]
            assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-5)


def test_a_model_without_the_term_is_what_it_was():
    assert Mamba4Rec(ITEMS).seen is None and "seen.theta" not in Mamba4Rec(ITEMS).state_dict()


def test_recbole_is_refused(tmp_path):
    pytest.importorskip("recbole")
    from seqgraph_mamba4rec.recbole_adapter import repaired

    with repaired():
        from recbole.config import Config

        from seqgraph_mamba4rec.recbole_models import SeqgraphSASRec

        config = Config(
            model=SeqgraphSASRec,
            dataset="ml-100k",
            config_dict=json.loads('{"seen": "bias", "loss_type": "CE", "train_neg_sample_args": null}'),
        )

        class Data:
            def num(self, field):
                return ITEMS + 1

        with pytest.raises(ConfigError, match="seen: bias"):
            SeqgraphSASRec(config, Data())
