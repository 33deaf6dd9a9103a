"""Small weights as other software names them, folders to load them from, and a causal Mamba of others."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

D, E, N, R, W, V, DEPTH = 32, 64, 4, 2, 4, 48, 3


def draw(*shape, scale=0.2):
    return torch.randn(*shape) * scale


def direction():
    """What one direction owns, with the initial time scales of Mamba-1."""
    return {
        "conv1d.weight": draw(E, 1, W),
        "conv1d.bias": draw(E),
        "x_proj.weight": draw(R + 2 * N, E),
        "dt_proj.weight": draw(E, R),
        "dt_proj.bias": draw(E) - 3,
        "A_log": torch.log(torch.arange(1.0, N + 1)).repeat(E, 1) + draw(E, N),
        "D": draw(E) + 1,
    }


def projections():
    return {"in_proj.weight": draw(2 * E, D), "out_proj.weight": draw(D, E)}


CONFIG = {
    "d_model": D,
    "n_layer": DEPTH,
    "d_intermediate": 0,
    "layer": "Mamba1",
    "ssm_cfg": {},
    "bidirectional": True,
    "bidirectional_strategy": "add",
    "bidirectional_weight_tie": True,
    "rms_norm": True,
    "norm_epsilon": 1e-5,
    "tie_embeddings": False,
    "model_type": "lcplm",
}


def write_folder(path, tensors, metadata=None, name="model.safetensors", **config):
    """A folder of weights; None as metadata for a file without any."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if name.endswith(".bin"):
        torch.save(tensors, path / name)
    else:
        save_file(tensors, path / name, metadata=metadata)
    return path


def causal(embedding="embedding.weight"):
    """Tensors as mamba_ssm has them."""
    torch.manual_seed(1)
    tensors = {f"backbone.{embedding}": draw(V, D), "backbone.norm_f.weight": draw(D) + 1, "lm_head.weight": draw(V, D)}
    for i in range(DEPTH):
        tensors[f"backbone.layers.{i}.norm.weight"] = draw(D) + 1
        own = {**projections(), **direction()}
        tensors |= {f"backbone.layers.{i}.mixer.{name}": value for name, value in own.items()}
    return tensors


def causal_logits(tensors, embedding, ids):
    """A causal Mamba through mambapy, an implementation of others."""
    from mambapy.mamba import Mamba, MambaConfig

    config = MambaConfig(d_model=D, n_layers=DEPTH, dt_rank=R, d_state=N, d_conv=W, pscan=False)
    model = Mamba(config)
    layers = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.layers.")}
    model.load_state_dict(layers)
    with torch.no_grad():
        out = model(tensors[f"backbone.{embedding}"][ids][None])[0]
        out = out / torch.sqrt((out * out).mean(-1, keepdim=True) + 1e-5) * tensors["backbone.norm_f.weight"]
        return out @ tensors["lm_head.weight"].T
