"""Several processes train what one process trains: BatchNorm, unknown targets and uneven batches included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch_geometric.data import Data

sys.path.insert(0, str(Path(__file__).parent))
from model_cases import VARIANTS, make

from seqgraph.train.run import train
from seqgraph_graph_mamba.graph import collate
from seqgraph_graph_mamba.norm import RowNorm


def graphs(path: Path, count: int = 61) -> Path:
    """A file of graphs of all sizes with two targets, every third of the second unknown."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        nodes = 2 + i % 13
        edges = torch.randint(0, nodes, (2, 2 * nodes), generator=generator)
        x = torch.randn(nodes, 3, generator=generator)
        y = torch.tensor([[float(x.sum()), float("nan") if i % 3 == 0 else float(nodes)]])
        made.append(Data(x=x, edge_index=edges, y=y))
    torch.save(made, path)
    return path


def configuration(file: Path, device: str) -> dict:
    """Nothing is drawn in training; BatchNorm is everywhere; the last batches are smaller than the others."""
    return {
        "model": {"name": "graph-mamba", "order": "none", "n_permutations": 1, "dropout": 0.0, "d_model": 16}
        | {"n_layers": 2, "pe": "rwse", "pe_norm": True, "pe_size": 4, "pe_width": 4},
        "data": {"name": "pyg-file", "root": str(file)},
        "task": {"name": "graph-regression"},
        "train": {"epochs": 3, "max_items": 7, "lr": 1e-2, "clip": 0.5, "patience": None, "accelerator": device},
    }


def log(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


TWO_GPUS = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=TWO_GPUS)])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(strategy, device, tmp_path, join_pairs):
    raw = configuration(graphs(tmp_path / "graphs.pt"), device)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seqgraph"]
    done = subprocess.run(
        [
            sys.executable,
            *command,
            "train",
            str(tmp_path / "run.yaml"),
            "-o",
            str(tmp_path / "two"),
            "train.strategy=" + strategy,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    join_pairs()
    train(raw, output=tmp_path / "one", quiet=True)
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 3 and one[0]["train_loss"] > 1.1 * one[-1]["train_loss"]
    # A GPU adds up messages in any order: equal at first, and near after some steps of Adam.
    near = [1e-5] * 3 if device == "cpu" else [1e-4, 1e-4, 1e-3]
    for mine, theirs, bound in zip(one, two, near, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=bound)
        # A bias in front of BatchNorm has no gradient but rounding, of which Adam makes whole steps: training does
        # not see them, evaluation by running statistics does, a little.
        assert mine == pytest.approx(theirs, rel=2e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_takes_part_whatever_the_batch(variant, odd_graphs):
    """DDP waits for the gradient of each."""
    model = make(variant).train()
    model(collate(odd_graphs[:1])).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("rows", [0, 1, 2, 40])
def test_shared_statistics_of_one_process_are_batch_norm(rows, monkeypatch):
    torch.manual_seed(0)
    norms = RowNorm(5).double(), RowNorm(5).double()
    inputs = (torch.randn(rows, 5, dtype=torch.float64) * 3 + 100).requires_grad_()
    expected = norms[0](inputs)
    expected.sin().sum().backward()
    gradient, inputs.grad = inputs.grad, None
    for name, answer in {"is_initialized": True, "get_world_size": 2, "all_reduce": None}.items():
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, answer=answer: answer)
    found = norms[1](inputs)
    found.sin().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inputs.grad, gradient)
    for mine, theirs in zip([*norms[1].parameters()], [*norms[0].parameters()], strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    for mine, theirs in zip(norms[1].buffers(), norms[0].buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
