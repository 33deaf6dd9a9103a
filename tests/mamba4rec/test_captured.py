"""Steps as CUDA graphs: what is filled in changes nothing, gradients come back once, replays train alike."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import product

import pytest
import torch

from seqgraph.errors import ConfigError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec import loss as losses
from seqgraph_mamba4rec.captured import Captured, Filled, Recorded, size_of
from seqgraph_mamba4rec.gru4rec import GRU4Rec
from seqgraph_mamba4rec.histories import HistoryBatch
from seqgraph_mamba4rec.lru import LRURec
from seqgraph_mamba4rec.model import Mamba4Rec
from seqgraph_mamba4rec.sasrec import SASRec
from seqgraph_mamba4rec.task import NextItem

ITEMS = 29
MODELS = {
    "s6": lambda: Mamba4Rec(ITEMS, d_model=16, d_state=8, n_layers=2, dropout=0.0),
    "ssd": lambda: Mamba4Rec(ITEMS, d_model=16, d_state=16, mixer="ssd", headdim=16, dropout=0.0),
    "sasrec": lambda: SASRec(ITEMS, d_model=16, dropout=0.0, max_length=70),
    "lru": lambda: LRURec(ITEMS, d_model=16, dropout=0.0),
    "seen": lambda: Mamba4Rec(ITEMS, d_model=16, d_state=8, dropout=0.0, seen="recency"),
}
RANDOM = MODELS | {"dropped": lambda: Mamba4Rec(ITEMS, d_model=16, d_state=8, dropout=0.0, item_dropout=0.3)}


def batch(lengths, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    items = torch.randint(ITEMS, (2, sum(lengths)), generator=g)
    stream = TokenStream.from_lengths(items[0], lengths, source=items[0])
    return HistoryBatch(stream, torch.arange(sum(lengths)), items[1]).to(device)


def task(name, **options):
    torch.manual_seed(1)
    return NextItem(RANDOM[name](), **options)


def of(module):
    return [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("lengths", [[70, 3, 1, 60], [1], [7] * 36 + [4], [64, 64, 64, 64], [5, 0, 6]])
def test_a_size_has_room(lengths):
    stream = batch(lengths).stream
    size = size_of(stream)
    room = Filled.empty(size, torch.device("cpu"))
    room.fill(stream, stream.values)
    assert size.tokens % 256 == 0 and size.tokens - stream.num_tokens < 256
    full = room.stream().validate()  # rising borders up to its last token, nothing longer than the longest
    assert int(full.lengths.max()) <= max(lengths)
    assert full.cu_seqlens[: len(lengths) + 1].tolist() == stream.cu_seqlens.tolist()


@pytest.mark.parametrize("stream", [batch([]).stream, batch([0, 0]).stream])
def test_nothing_has_no_size(stream):
    assert size_of(stream) is None


def test_lengths_that_the_host_does_not_know_have_no_size():
    stream = batch([3, 4]).stream
    assert size_of(TokenStream(stream.values, stream.cu_seqlens, stream.source)) is None


def has_the_step_of(one, given, ours, *, atol, rtol):
    """That a filled-up batch's loss and gradients are those of the plain step."""
    loss, grads = ours
    one.zero_grad()
    wanted = one.training_step(given)["loss"]
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for got, theirs in zip(grads, of(one), strict=True):
        torch.testing.assert_close(got, theirs, atol=atol, rtol=rtol)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_filled_in_changes_neither_loss_nor_gradients(name):
    one = task(name)
    captured = Captured(one._counted, one.parameters())
    first, second = batch([70, 30, 1, 40, 70]), batch([66, 5, 9, 2, 60], seed=3)
    room = Filled.empty(size_of(first.stream), torch.device("cpu"))
    for given in (first, second):  # the second finds the first's items behind its own
        room.fill(given.stream, given.target)
        has_the_step_of(one, given, captured.run(room), atol=2e-6, rtol=1e-4)


def ends(given):
    """The batch with a prediction at the last token of each history."""
    at = given.stream.cu_seqlens[1:].long() - 1
    return HistoryBatch(given.stream, at, given.target[at])


@pytest.mark.parametrize("name", MODELS)
def test_prefixes_are_filled_up_to_sizes_of_their_own(name):
    one = task(name)
    captured = Captured(one._counted, one.parameters())
    first, second = ends(batch([70, 30, 1, 40, 70])), ends(batch([66, 5, 9, 2, 60], seed=3))
    size = size_of(first.stream, first.at)
    assert size == size_of(second.stream, second.at) and (size.tokens, size.some) == (8192, 5)
    room = Filled.empty(size, torch.device("cpu"))
    for given in (first, second):
        room.fill(given.stream, given.target, given.at)
        has_the_step_of(one, given, captured.run(room), atol=5e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["s6", "seen"])
@pytest.mark.parametrize("loss", ["sampled-softmax", "gbce"])
@pytest.mark.parametrize("at_once", [False, True])
def test_losses_over_drawn_items_count_the_batch_alone(name, loss, at_once, monkeypatch):
    """What each prediction draws depends on its place, so that both draw the same for the batch's own."""

    def places(high, size, device):
        return torch.arange(size[0] * size[1], device=device).view(*size) * 7 % high

    one, batches = task(name, loss=loss, negatives=9), (batch([70, 30, 1, 40, 70]), batch([66, 5, 9, 2, 60], seed=3))
    captured = Captured(one._counted, one.parameters())
    monkeypatch.setattr(torch, "randint", places)
    monkeypatch.setattr(losses, "_all_at_once", lambda *given: at_once)
    for given in batches:
        room = Filled.empty(size_of(given.stream), torch.device("cpu"))
        room.fill(given.stream, given.target)
        has_the_step_of(one, given, captured.run(room), atol=2e-6, rtol=1e-4)


@dataclass
class Again:
    """Stands for a graph: runs everything again, into the tensors that it gave first."""

    captured: Captured
    room: Filled
    given: tuple

    def pool(self):
        return None

    def replay(self):
        with torch.enable_grad():
            loss, grads = self.captured.run(self.room)
        self.given[0].copy_(loss)
        for old, new in zip(self.given[1], grads, strict=True):
            old.copy_(new)


@pytest.fixture
def without_a_gpu(monkeypatch):
    def record(self, room):
        given = self.run(room)
        return Recorded(Again(self, room, given), room, *given)

    monkeypatch.setattr(Captured, "_record", record)


def test_gradients_arrive_once_and_are_scaled(without_a_gpu):
    one = task("s6")
    captured = Captured(one._counted, one.parameters())
    given = batch([30, 20, 10])
    assert captured(given.stream, given.target) is None and captured(given.stream, given.target) is None
    one.zero_grad()
    one.training_step(given)["loss"].backward()
    wanted = of(one)
    for times in (1, 2):  # gradients add up over batches, and none is the graph's own tensor
        if times == 1:
            one.zero_grad()
        (captured(given.stream, given.target) * 0.5).backward()
        for ours, theirs in zip(of(one), wanted, strict=True):
            torch.testing.assert_close(ours, theirs * 0.5 * times, atol=2e-6, rtol=1e-4)


def test_a_loss_cannot_go_back_after_another_batch(without_a_gpu):
    one = task("s6")
    captured, given = Captured(one._counted, one.parameters()), batch([30, 20, 10])
    losses = [captured(given.stream, given.target) for _ in range(4)]
    losses[3].backward()
    with pytest.raises(RuntimeError, match="another batch"):
        losses[2].backward()


def test_a_loss_cannot_go_back_after_a_batch_of_another_size(without_a_gpu):
    """Graphs share memory: the other one's replay may have written where the gradients were."""
    one = task("s6")
    captured, given = Captured(one._counted, one.parameters()), (batch([30, 20, 10]), batch([60] * 5))
    first, _ = [[captured(each.stream, each.target) for _ in range(3)][-1] for each in given]
    assert len(captured.graphs) == 2
    with pytest.raises(RuntimeError, match="another batch"):
        first.backward()


def test_gradients_are_made_outside_autocast():
    """As they are of a step that is not replayed, where the trainer has left autocast by then."""
    weight, seen = torch.nn.Parameter(torch.ones(())), []

    def loss(stream, target, at, count):
        made = weight * stream.values.sum()
        made.register_hook(lambda grad: seen.append(torch.is_autocast_enabled("cpu")))
        return made

    given = batch([30, 20, 10])
    with torch.autocast("cpu", torch.bfloat16):
        room = Filled.empty(size_of(given.stream), torch.device("cpu"))
        room.fill(given.stream, given.target)
        Captured(loss, [weight]).run(room)
    assert room.size.half == torch.bfloat16 and seen == [False]


def test_few_graphs_are_kept(without_a_gpu):
    one = task("s6")
    captured = Captured(one._counted, one.parameters())
    for tokens in range(200, 4000, 256):
        for _ in range(3):
            given = batch([20] * (tokens // 20))
            captured(given.stream, given.target)
    assert len(captured.graphs) == 12 < len(captured.met)


def test_a_recording_that_fails_is_told_once_and_nothing_is_recorded_from_then_on(without_a_gpu, monkeypatch):
    one, given, other = task("s6"), batch([30, 20, 10]), batch([60] * 5)
    captured = Captured(one._counted, one.parameters())
    for _ in range(3):
        kept = captured(given.stream, given.target)
    assert kept is not None and len(captured.graphs) == 1

    def fails(self, room):
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    monkeypatch.setattr(Captured, "_record", fails)
    assert captured(other.stream, other.target) is None and captured(other.stream, other.target) is None
    with pytest.warns(UserWarning, match="computed each time: operation not permitted when stream is capturing$"):
        assert captured(other.stream, other.target) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(captured(each.stream, each.target) is None for each in (given, other) * 4)
    assert not captured.graphs


def test_on_a_cpu_nothing_is_recorded():
    one, given = task("s6", capture=True), batch([30, 20, 10])
    for _ in range(5):
        one.training_step(given)["loss"].backward()
    assert one._captured is None


def test_a_model_that_pads_is_refused():
    with pytest.raises(ConfigError, match="GRU4Rec"):
        NextItem(GRU4Rec(ITEMS), capture=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", [*MODELS, "prefixes"])
def test_replays_train_as_steps_do(name, half):
    """Twelve steps of AdamW over four batches of two sizes, captured and not."""
    batches = [batch([40 + 30 * (i % 2), 64, 64, 20 + i % 4], seed=i % 4, device="cuda") for i in range(12)]
    if name == "prefixes":
        batches, name = [ends(given) for given in batches], "s6"
    found = []
    for capture in (False, True):
        one = task(name, capture=capture).cuda()
        optimizer = torch.optim.AdamW(one.parameters(), lr=3e-3)
        losses = []
        for given in batches:
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                loss = one.training_step(given)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            # a loss that is kept keeps its nodes, and with them the stream that they were made on
            del loss
        found.append(torch.tensor(losses))
        assert capture == bool(one._captured and one._captured.graphs)
    torch.testing.assert_close(*found, atol=2e-2 if half else 2e-4, rtol=0)
    assert found[0][8:].mean() < found[0][:4].mean()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["s6", "sasrec", "seen", "dropped"])
@pytest.mark.parametrize(("loss", "at_once"), [("softmax", True), *product(("sampled-softmax", "gbce"), (False, True))])
def test_replays_draw_anew(name, loss, at_once, monkeypatch):
    """The recorded step draws or drops other items each time: its losses are those of plain steps on average."""
    if loss == "softmax" and name != "dropped":
        pytest.skip("nothing is drawn")
    monkeypatch.setattr(losses, "_all_at_once", lambda *given: at_once)
    given, found = batch([64, 40, 64, 20], device="cuda"), []
    for capture in (False, True):
        one = task(name, loss=loss, negatives=8, capture=capture).cuda()
        values = torch.stack([one.training_step(given)["loss"].detach() for _ in range(200)])[10:]
        assert capture == bool(one._captured and one._captured.graphs)
        assert len(values.unique()) > 150
        found.append(values)
    error = sum(each.var() / len(each) for each in found).sqrt()
    assert abs(found[0].mean() - found[1].mean()) < 5 * error
