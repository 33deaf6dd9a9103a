"""Mamba4Rec: against a padded re-derivation of the paper, causality, initialisation, and lists from raw ids."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqgraph.errors import DataError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.config import Mamba4RecConfig
from seqgraph_mamba4rec.model import Mamba4Rec
from seqgraph_mamba4rec.recbole_adapter import from_recbole_state


def small(**kwargs) -> Mamba4Rec:
    torch.manual_seed(0)
    model = Mamba4Rec(**{"num_items": 31, "d_model": 16, "d_state": 5, "dropout": 0.3} | kwargs)
    with torch.no_grad():
        for p in model.parameters():  # weights of a size at which every term matters
            p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-12) * w + b


def mamba_padded(x: Tensor, w: dict[str, Tensor], N: int, K: int) -> Tensor:
    """Mamba-1's published recurrence, one time step after another, (B, L, D) fp64."""
    h, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    L, E = h.shape[1:]
    R = w["dt_proj.weight"].shape[1]
    past = F.pad(h, (0, 0, K - 1, 0))
    conv = sum(past[:, i : i + L] * w["conv1d.weight"][:, 0, i] for i in range(K)) + w["conv1d.bias"]
    u = conv * torch.sigmoid(conv)
    dt, B, C = (u @ w["x_proj.weight"].T).split([R, N, N], -1)
    dt = F.softplus(dt @ w["dt_proj.weight"].T + w["dt_proj.bias"])
    A = -torch.exp(w["A_log"])
    state, out = x.new_zeros(len(x), E, N), []
    for t in range(L):
        state = torch.exp(dt[:, t, :, None] * A) * state + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        out.append((state * C[:, t, None]).sum(-1) + w["D"] * u[:, t])
    return (torch.stack(out, 1) * z * torch.sigmoid(z)) @ w["out_proj.weight"].T


def published(weights: dict[str, Tensor], items: Tensor, lengths: Tensor, *, n_layers: int, N: int, K: int) -> Tensor:
    """Scores of the released model in RecBole's shape: right padding, row 0 is [PAD]. From the authors' own names."""
    w = weights
    x = layer_norm(w["item_embedding.weight"][items], w["LayerNorm.weight"], w["LayerNorm.bias"])
    for i in range(n_layers):
        own = {k.removeprefix(f"mamba_layers.{i}."): v for k, v in w.items() if k.startswith(f"mamba_layers.{i}.")}
        mamba = {k.removeprefix("mamba."): v for k, v in own.items() if k.startswith("mamba.")}
        h = mamba_padded(x, mamba, N, K)
        h = layer_norm(h if n_layers == 1 else h + x, own["LayerNorm.weight"], own["LayerNorm.bias"])
        f = h @ own["ffn.w_1.weight"].T + own["ffn.w_1.bias"]
        f = f * 0.5 * (1 + torch.erf(f / math.sqrt(2)))
        f = f @ own["ffn.w_2.weight"].T + own["ffn.w_2.bias"]
        x = layer_norm(f + h, own["ffn.LayerNorm.weight"], own["ffn.LayerNorm.bias"])
    last = x[torch.arange(len(x)), lengths - 1]
    return last @ w["item_embedding.weight"].T


def authors_state(n_layers: int, items: int, D: int, N: int, K: int) -> dict[str, Tensor]:
    """Random weights under the names of the authors' RecBole code, items without the [PAD] row."""
    g = torch.Generator().manual_seed(5)
    E, R, H = 2 * D, math.ceil(D / 16), 4 * D
    shapes: dict[str, tuple[int, ...]] = {"item_embedding.weight": (items + 1, D)}
    shapes |= {f"LayerNorm.{k}": (D,) for k in ("weight", "bias")}
    for i in range(n_layers):
        block = {
            "mamba.A_log": (E, N),
            "mamba.D": (E,),
            "mamba.in_proj.weight": (2 * E, D),
            "mamba.conv1d.weight": (E, 1, K),
            "mamba.conv1d.bias": (E,),
            "mamba.x_proj.weight": (R + 2 * N, E),
            "mamba.dt_proj.weight": (E, R),
            "mamba.dt_proj.bias": (E,),
            "mamba.out_proj.weight": (D, E),
            "LayerNorm.weight": (D,),
            "LayerNorm.bias": (D,),
            "ffn.w_1.weight": (H, D),
            "ffn.w_1.bias": (H,),
            "ffn.w_2.weight": (D, H),
            "ffn.w_2.bias": (D,),
            "ffn.LayerNorm.weight": (D,),
            "ffn.LayerNorm.bias": (D,),
        }
        shapes |= {f"mamba_layers.{i}.{k}": v for k, v in block.items()}
    return {k: torch.randn(v, generator=g, dtype=torch.float64) * 0.3 for k, v in shapes.items()}


@pytest.mark.parametrize("n_layers", [1, 2])
def test_packed_model_is_the_published_padded_one(n_layers):
    """fp64; a residual around the block only with two layers; RecBole's item i is our i - 1."""
    items, D, N, K = 12, 16, 3, 4
    state = authors_state(n_layers, items, D, N, K)
    model = Mamba4Rec(items, d_model=D, d_state=N, n_layers=n_layers).double().eval()
    model.load_state_dict(from_recbole_state(state))
    histories = [[3, 1, 12, 5, 5, 2, 9], [7], [4, 11]]
    dense = torch.zeros(3, 7, dtype=torch.int64)
    for row, history in enumerate(histories):
        dense[row, : len(history)] = torch.tensor(history)
    wanted = published(state, dense, torch.tensor([7, 1, 2]), n_layers=n_layers, N=N, K=K)
    stream = TokenStream.from_ragged([[i - 1 for i in h] for h in histories])
    got = model.scores(model.encode_users(stream))
    torch.testing.assert_close(got, wanted[:, 1:], atol=1e-9, rtol=1e-9)  # without the column of [PAD]
    residual = Mamba4Rec(items, d_model=D, d_state=N, n_layers=n_layers, residual=n_layers == 1).double().eval()
    residual.load_state_dict(model.state_dict())
    assert (residual.scores(residual.encode_users(stream)) - got).abs().max() > 1e-3


def test_parameters_at_the_published_sizes():
    model = Mamba4Rec(3416)
    count = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(n for name, n in count.items() if "embedding" not in name) == 72_256
    assert sum(n for name, n in count.items() if ".mixer." in name) == 38_784
    assert count["item_embedding.weight"] == 3416 * 64  # no row for padding


def test_no_position_sees_its_future_and_no_history_its_neighbours():
    model = small(n_layers=2)
    g = torch.Generator().manual_seed(1)
    histories = [torch.randint(31, (n,), generator=g) for n in (9, 1, 6)]
    stream = TokenStream.from_ragged(histories)
    before = model(stream).values
    for t in (0, 4, 8, 9, 12):
        changed = stream.with_values(stream.values.clone())
        changed.values[t] = (changed.values[t] + 1) % 31
        moved = (model(changed).values != before).any(1)
        same_history = stream.segment == stream.segment[t]
        allowed = same_history & (torch.arange(16) >= t)
        assert moved[t] and not moved[~allowed].any()
    alone = torch.cat([model(TokenStream.from_ragged([h])).values for h in histories])
    torch.testing.assert_close(alone, before, atol=1e-5, rtol=1e-5)


def test_initialisations():
    torch.manual_seed(0)
    ours, theirs = (Mamba4Rec(200, init=init) for init in ("mamba", "mamba4rec"))
    step = {m: F.softplus(m.layers[0].mixer.dt_proj.bias) for m in (ours, theirs)}
    assert 0.0009 < step[ours].min() < step[ours].max() < 0.11 and step[ours].log().std() > 0.8
    assert torch.allclose(step[theirs], torch.full((128,), math.log(2)))
    for model in (ours, theirs):
        for weight in (model.item_embedding.weight, model.layers[0].ffn.w_1.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not model.layers[0].ffn.w_1.bias.any() and bool((model.norm.weight == 1).all())
    for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        assert theirs.layers[0].mixer.get_submodule(name).weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert ours.layers[0].mixer.in_proj.weight.std() > 0.05
    conv = [m.layers[0].mixer.conv1d.weight.std().item() for m in (ours, theirs)]
    assert min(conv) > 0.2  # a convolution is no Linear: the release leaves it alone


def test_dropout_comes_before_the_norm():
    torch.manual_seed(0)
    model = Mamba4Rec(50, dropout=0.5).train()
    seen = []
    model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(TokenStream.from_ragged([list(range(40))]))
    assert 0.4 < (seen[0] == 0).float().mean() < 0.6


def test_config_fields_are_the_constructors_keywords():
    parameters = list(inspect.signature(Mamba4Rec).parameters.values())
    assert [p.name for p in parameters] == list(Mamba4RecConfig.model_fields)
    for p in parameters[1:]:
        assert Mamba4RecConfig.model_fields[p.name].default == p.default


# ---------------------------------------------------------------------------------------------- recommend
def named(**kwargs) -> Mamba4Rec:
    model = small(**kwargs)
    model.assets = {"item_ids": [str(100 + i) for i in range(31)], "titles": {"105": "Five"}, "max_history": 4}
    return model


def test_recommend_ranks_all_items_from_raw_ids():
    model = named()
    histories = [["101", 105, "130"], ["111"], [100, 101, 102, 103, 104, 105]]
    got = model.recommend(histories, k=5, filter_seen=False)
    for history, row in zip(histories, got):
        tokens = torch.tensor([int(i) - 100 for i in history])[-4:]  # the last four, as in training
        scores = model.scores(model(TokenStream.from_ragged([tokens])).values[-1:])[0]
        best = scores.topk(5)
        assert [int(r.item) - 100 for r in row] == best.indices.tolist()
        assert [r.score for r in row] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert all(r.title == ("Five" if r.item == "105" else None) for r in row)
    whole = model.recommend(histories, k=5, filter_seen=False, max_history=6)
    assert [r.item for r in whole[0]] == [r.item for r in got[0]]
    assert [r.score for r in whole[2]] != [r.score for r in got[2]]


def test_recommend_filters_everything_seen_and_runs_out_gracefully():
    model = named()
    history = [str(100 + i) for i in range(27)]
    (row,) = model.recommend([history], k=10)
    assert {r.item for r in row} == {"127", "128", "129", "130"}  # of the items beyond max_history too
    (every,) = model.recommend([history], k=99, filter_seen=False)
    assert len(every) == 31 and [r.score for r in every] == sorted((r.score for r in every), reverse=True)
    assert model.recommend([]) == []


def test_recommend_refuses_unknown_items_and_leaves_the_mode_alone():
    model = named().train()
    with pytest.raises(DataError, match=r"history 1: item 'x' .*skip"):
        model.recommend([["100"], ["101", "x"]])
    with pytest.raises(DataError, match="history 0 has no item"):
        model.recommend([["x"]], on_unknown="skip")
    with pytest.raises(DataError, match="history 0 has no item"):
        model.recommend([[]])
    skipped, same = model.recommend([["101", "x"], ["101"]], on_unknown="skip")
    assert skipped == same and model.training
    with pytest.raises(DataError, match="item_ids"):
        small().recommend([["1"]])


def test_a_text_is_no_history():
    with pytest.raises(DataError, match=r"history 0 is the text '101'"):
        named().recommend(["101"])
