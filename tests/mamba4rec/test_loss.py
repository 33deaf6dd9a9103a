"""The losses: against autograd on whole matrices, by hand, in expectation, and within their budget."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from seqgraph.config import load_config
from seqgraph.errors import ConfigError
from seqgraph_mamba4rec import loss as losses
from seqgraph_mamba4rec.loss import gbce_loss, sampled_softmax_loss, softmax_loss


@given(seed=st.integers(0, 2**16), predictions=st.integers(1, 30), budget=st.sampled_from([1, 200, 1 << 20]))
@settings(max_examples=25, deadline=None)
def test_chunked_softmax_is_cross_entropy_with_its_gradients(seed, predictions, budget):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(predictions, 6, generator=g, dtype=torch.float64, requires_grad=True)
    w = torch.randn(11, 6, generator=g, dtype=torch.float64, requires_grad=True)
    target = torch.randint(11, (predictions,), generator=g)
    loss = softmax_loss(h, w, target, budget=budget)
    log_p = (h @ w.T) - (h @ w.T).exp().sum(1, keepdim=True).log()
    wanted = -log_p[torch.arange(predictions), target].mean()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, [h, w]), torch.autograd.grad(wanted, [h, w])):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def case(dtype=torch.float64, predictions=40, items=11):
    g = torch.Generator().manual_seed(3)
    h, w = (torch.randn(n, 6, generator=g, dtype=dtype, requires_grad=True) for n in (predictions, items))
    return h, w, torch.randint(items, (predictions,), generator=g)


def fix_draws(monkeypatch, drawn):
    """Let the losses draw these negatives, row by row."""
    place = iter(drawn.split(1))
    monkeypatch.setattr(
        losses.torch, "randint", lambda high, size, device: torch.cat([next(place) for _ in range(size[0])])
    )


@pytest.mark.parametrize("budget", [1, 4 * 6 * 4 * 7, 1 << 20])
def test_sampled_softmax_by_hand(monkeypatch, budget):
    h, w, target = case()
    drawn = torch.randint(11, (40, 3), generator=torch.Generator().manual_seed(1))
    assert (drawn == target[:, None]).any()  # a draw of the right item must not count
    fix_draws(monkeypatch, drawn)
    loss = sampled_softmax_loss(h, w, target, negatives=3, budget=budget)
    wanted = 0
    for p in range(40):
        own = h[p] @ w[target[p]]
        others = [h[p] @ w[i] for i in drawn[p] if i != target[p]]
        wanted = wanted + torch.stack([own, *others]).logsumexp(0) - own
    wanted = wanted / 40
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, [h, w]), torch.autograd.grad(wanted, [h, w])):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("t", [0.0, 0.75, 1.0])
def test_gbce_is_the_papers_transformed_logit(monkeypatch, t):
    """Against binary cross-entropy on the logit log(1 / (sigmoid(s)^-beta - 1)) that the paper feeds it."""
    h, w, target = case()
    drawn = (target[:, None] + torch.randint(1, 11, (40, 4), generator=torch.Generator().manual_seed(1))) % 11
    fix_draws(monkeypatch, drawn)
    loss = gbce_loss(h, w, target, negatives=4, t=t)
    rate = 4 / 10
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    assert beta == pytest.approx({0.0: 1.0, 0.75: 0.55, 1.0: rate}[t])
    own = (h * w[target]).sum(1) - math.log(11)  # all of eleven items start at about one in eleven
    moved = torch.log(1 / (torch.sigmoid(own) ** -beta - 1))
    logits = torch.cat([moved[:, None], (w[drawn] * h[:, None]).sum(-1) - math.log(11)], 1)
    right = torch.zeros_like(logits)
    right[:, 0] = 1
    wanted = F.binary_cross_entropy_with_logits(logits, right)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-10)
    for ours, theirs in zip(torch.autograd.grad(loss, [h, w]), torch.autograd.grad(wanted, [h, w])):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


def test_gbce_does_not_stay_where_all_items_are_pushed_down():
    """The successor of each of 400 items; with logits that start at a half it takes twenty times as many steps."""
    torch.manual_seed(0)
    items = nn.Embedding(400, 16)
    nn.init.normal_(items.weight, std=0.02)
    net = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.LayerNorm(16))
    optimizer = torch.optim.Adam([*items.parameters(), *net.parameters()], lr=1e-2)
    after = torch.arange(400).roll(-1)
    for _ in range(50):
        loss = gbce_loss(net(items.weight), items.weight, after, negatives=64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = (net(items.weight) @ items.weight.T).topk(10).indices
    assert (best == after[:, None]).any(1).float().mean() > 0.9


def test_many_draws_are_the_whole_catalogue():
    """n draws sum to n / V of all the wrong items; beside so many the right one weighs nothing."""
    torch.manual_seed(0)
    h, w, target = case(predictions=3, items=50)
    h, w = h * 0.3, w * 0.3
    logits = h @ w.T
    wrong = logits.scatter(1, target[:, None], -torch.inf).logsumexp(1)
    wanted = (wrong - logits.gather(1, target[:, None])[:, 0]).mean().item()
    sampled = sampled_softmax_loss(h, w, target, negatives=40_000).item()
    assert sampled - math.log(40_000 / 50) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("loss", [sampled_softmax_loss, gbce_loss])
@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_all_items_logits_at_once_give_the_same_as_the_drawn_ones(monkeypatch, loss, budget):
    h, w, target = case()
    drawn, found = torch.randint(11, (40, 3), generator=torch.Generator().manual_seed(1)), []
    for at_once in (False, True):
        monkeypatch.setattr(losses, "_all_at_once", lambda hidden, num_items, negatives, now=at_once: now)
        fix_draws(monkeypatch, drawn)
        value = loss(h, w, target, negatives=3, budget=budget)
        found.append([value.detach(), *torch.autograd.grad(value, [h, w])])
    torch.testing.assert_close(*found, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("loss", [softmax_loss, sampled_softmax_loss, gbce_loss])
@pytest.mark.parametrize("budget", [1, 700, 1 << 20])
@pytest.mark.parametrize("count", [0, 1, 17, 40])
def test_those_behind_the_count_are_as_if_they_were_not_there(monkeypatch, loss, budget, count):
    """In chunks too: what is drawn depends on the row alone."""
    h, w, target = case()
    drawn = torch.randint(11, (40, 3), generator=torch.Generator().manual_seed(1))
    more = {} if loss is softmax_loss else {"negatives": 3}
    fix_draws(monkeypatch, drawn)
    ours = loss(h, w, target, budget=budget, count=torch.tensor(count), **more)
    fix_draws(monkeypatch, drawn[:count])
    theirs = loss(h[:count], w, target[:count], **more)
    grads = [torch.autograd.grad(one, [h, w]) for one in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kind", ["softmax", "sampled", "gbce"])
def test_nothing_to_predict_half_precision_and_autocast(kind):
    def run(h, w, target):
        torch.manual_seed(1)
        if kind == "softmax":
            return softmax_loss(h, w, target)
        return (sampled_softmax_loss if kind == "sampled" else gbce_loss)(h, w, target, negatives=5)

    h, w, target = case(torch.float32)
    nothing = run(h[:0], w, target[:0])
    assert nothing == 0 and not torch.autograd.grad(nothing, w)[0].any()
    exact = run(h, w, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = run(h, w, target)
    assert loss.dtype == torch.float32 and torch.equal(loss, exact)  # logits stay fp32
    half = run(h.bfloat16(), w, target)
    grad = torch.autograd.grad(half, [h, w])
    assert half.dtype == torch.float32 and all(g.dtype == torch.float32 for g in grad)
    assert half.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("kind", ["softmax", "sampled", "at once", "more draws than items"])
def test_no_tensor_is_larger_than_the_budget(kind, monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, list | tuple) else [out]:
                if isinstance(t, torch.Tensor):
                    self.size = max(self.size, t.numel() * t.element_size())
            return out

    h, w, target = torch.randn(500, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True), torch.arange(500)
    budget = 1 << 16  # 500 x 1000 logits would be thirty times that
    monkeypatch.setattr(losses, "_all_at_once", lambda *given: kind in ("at once", "more draws than items"))
    negatives = 2000 if kind == "more draws than items" else 99
    with Largest() as seen:
        loss = (
            softmax_loss(h, w, target, budget=budget)
            if kind == "softmax"
            else sampled_softmax_loss(h, w, target, negatives=negatives, budget=budget)
        )
        loss.backward()
    assert 0 < seen.size <= budget


@pytest.mark.parametrize(
    ("words", "heard"),
    [
        (["task.negatives=7"], False),
        (["task.gbce_t=0.2"], False),
        (["task.loss=sampled-softmax", "task.gbce_t=0.2"], False),
        (["task.loss=sampled-softmax", "task.negatives=7"], True),
        (["task.loss=gbce", "task.negatives=7", "task.gbce_t=0.2"], True),
        (["task.negatives=256"], True),  # what it is anyway: a run's own configuration says so
    ],
)
def test_a_setting_that_the_loss_does_not_hear_is_refused(words, heard):
    if heard:
        load_config("ml-100k", words)
    else:
        with pytest.raises(ConfigError, match="says nothing to loss="):
            load_config("ml-100k", words)
