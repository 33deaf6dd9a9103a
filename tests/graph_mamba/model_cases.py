"""Small models of every kind, for tests on CPU and GPU."""

from __future__ import annotations

import torch
from torch import nn

from seqgraph.config import arguments
from seqgraph.plugin import manager

MODELS = ("graph-mamba", "gmn", "walk-mamba", "gnn-plus", "gin-vn", "plus-mamba", "gps")
VARIANTS = {
    "graph-mamba": ("graph-mamba", {}),
    "graph-mamba, both ways": ("graph-mamba", {"direction": "both", "average": "output"}),
    "graph-mamba, gelu": ("graph-mamba", {"activation": "gelu", "head_dropout": 0.2}),
    "gmn": ("gmn", {}),
    "gmn, gated": ("gmn", {"local": "gated-gcn", "local_layers": 2, "token_layers": 2}),
    "gmn, walks": ("gmn", {"local": "walk", "window": 2}),
    "gmn, no window": ("gmn", {"local": "walk", "window": 0}),
    "gmn, nodes": ("gmn", {"m": 0}),
    "gmn, one direction": ("gmn", {"direction": "forward", "s": 1}),
    "gmn, no mpnn": ("gmn", {"mpnn": "none"}),
    "gmn, ppr": ("gmn", {"order": "personalized-pagerank", "mpnn": "gin"}),
    "gmn, no pe": ("gmn", {"pe": "none", "n_samples": 2}),
    "walk-mamba": ("walk-mamba", {}),
    "walk-mamba, few": ("walk-mamba", {"rate": 0.3, "length": 12, "window": 0, "virtual_node": False}),
    "walk-mamba, gated": ("walk-mamba", {"mpnn": "gated-gcn", "direction": "forward", "n_samples": 2}),
    "walk-mamba, alone": ("walk-mamba", {"mpnn": "none", "share": "projections", "merge": "sum"}),
    "gnn-plus": ("gnn-plus", {}),
    "gnn-plus, published": ("gnn-plus", {"residual": False, "feed_forward": False, "pe_norm": True}),
    "gnn-plus, normalised": ("gnn-plus", {"normalize": True}),
    "gnn-plus, gin": ("gnn-plus", {"conv": "gin"}),
    "gnn-plus, gated": ("gnn-plus", {"conv": "gated-gcn", "residual": False}),
    "gnn-plus, gelu": ("gnn-plus", {"activation": "gelu", "conv": "gated-gcn", "dropout": 0.1}),
    "gin-vn": ("gin-vn", {}),
    "gin-vn, published": ("gin-vn", {"residual": False, "pe": "none"}),
    "plus-mamba": ("plus-mamba", {}),
    "plus-mamba, gin": ("plus-mamba", {"conv": "gin", "order": "random", "direction": "forward"}),
    "plus-mamba, few": (
        "plus-mamba",
        {"conv": "gin", "n_layers": 3, "every": 2, "residual": True, "feed_forward": True, "activation": "gelu"},
    ),
    "gps": ("gps", {}),
    "gps, gin": ("gps", {"mpnn": "gin", "pool": "max"}),
    "gps, attention": ("gps", {"mpnn": "none", "heads": 2}),
    "gmn, nodes alone": ("gmn", {"m": 0, "mpnn": "none"}),
}


def make(variant: str, **changes) -> nn.Module:
    """A small model in eval mode, its running statistics not those of a new one."""
    name, kwargs = VARIANTS[variant]
    descriptor = manager.get("models", name)
    kwargs = {**manager.resolve_example(descriptor).kwargs, **kwargs, **changes}
    torch.manual_seed(0)
    model = manager.resolve(descriptor)(**arguments(manager.resolve_config(descriptor)(**kwargs)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()
