"""Losses, metrics and baselines, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, mean_absolute_error, roc_auc_score, root_mean_squared_error

from seqgraph.errors import ConfigError, DataError
from seqgraph_graph_mamba.data import GraphDataset
from seqgraph_graph_mamba.example import items
from seqgraph_graph_mamba.graph import Graph
from seqgraph_graph_mamba.metrics import MacroRanking, TargetError
from seqgraph_graph_mamba.table import GraphTable
from seqgraph_graph_mamba.task import GraphClassification, GraphRegression


def _random(seed: int, labels: bool):
    """Scores with ties, and targets of four columns with unknown values; the last column has no positive."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(40, 4)).round(1)
    target = generator.integers(0, 2, (40, 4)).astype(float) if labels else generator.normal(size=(40, 4))
    target[generator.random((40, 4)) < 0.2] = np.nan
    if labels:
        target[:, 3] = np.where(np.isnan(target[:, 3]), np.nan, 0)
    return scores, target


def _columns(scores, target):
    for s, y in zip(scores.T, target.T, strict=True):
        known = ~np.isnan(y)
        yield s[known], y[known]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_rankings_are_scikit_learns(seed):
    scores, target = _random(seed, labels=True)
    for kind, reference in (("ap", average_precision_score), ("rocauc", roc_auc_score)):
        expected = [reference(y, s) for s, y in _columns(scores, target) if y.sum() > 0]
        metric = MacroRanking(kind)
        for part in range(0, 40, 13):
            metric.update(torch.tensor(scores[part : part + 13]), torch.tensor(target[part : part + 13]))
        assert float(metric.compute()) == pytest.approx(np.mean(expected), abs=1e-6)


def test_confident_logits_are_not_ties():
    """In fp32 a sigmoid makes 1.0 of both 20 and 30."""
    metric = MacroRanking("ap")
    metric.update(torch.tensor([[20.0], [30.0], [25.0]]), torch.tensor([[0.0], [1.0], [0.0]]))
    assert float(metric.compute()) == 1.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_errors_are_scikit_learns(seed):
    predicted, target = _random(seed, labels=False)
    for kind, reference in (("rmse", root_mean_squared_error), ("mae", mean_absolute_error)):
        expected = np.mean([reference(y, s) for s, y in _columns(predicted, target)])
        metric = TargetError(kind, 4)
        for part in range(0, 40, 17):
            metric.update(torch.tensor(predicted[part : part + 17]), torch.tensor(target[part : part + 17]))
        assert float(metric.compute()) == pytest.approx(expected, rel=1e-6)


def _dataset(y: torch.Tensor, kind: str) -> GraphDataset:
    """Fifteen graphs with the targets y (15, K): nine to train on, three each to validate and test on."""
    graphs = [g for seed in range(3) for g in items(seed)]
    made = [Graph(g.x, g.edge_index, g.edge_attr, row) for g, row in zip(graphs, y, strict=True)]
    splits = {"train": np.arange(9), "valid": np.arange(9, 12), "test": np.arange(12, 15)}
    names = [f"t{k}" for k in range(y.shape[1])]
    return GraphDataset(GraphTable.from_graphs(made), splits, targets=names, kind=kind)


@pytest.fixture
def targets() -> torch.Tensor:
    y = torch.randn(15, 2, generator=torch.Generator().manual_seed(0)) * 3 + 7
    y[2, 0] = y[13, 1] = float("nan")
    return y


def test_regression_learns_standardised_and_measures_in_units(make_model, targets):
    data, model = _dataset(targets, "regression"), make_model(d_out=2)
    task = GraphRegression(model, loss="l1")
    task.setup(data)
    task.setup(data)  # idempotent
    split = data.split("test")
    batch = data.collate(list(split))
    output = model(batch).detach()
    train = targets[:9]
    mean = train.nanmean(0)
    deviation = (train - mean).square().nanmean(0).sqrt()
    known = ~torch.isnan(batch.y)
    found = task.evaluation_step(batch)
    standard = (batch.y - mean) / deviation
    assert float(found["loss"].detach()) == pytest.approx(float((output - standard).abs()[known].mean()), rel=1e-5)
    assert int(found["size"]) == int(known.sum()) == 5
    errors = output * deviation + mean - batch.y
    expected = np.mean([float(errors[known[:, k], k].square().mean().sqrt()) for k in range(2)])
    assert float(task.metrics()["rmse"].compute()) == pytest.approx(expected, rel=1e-5)
    # the model predicts in the same unit on its own
    np.testing.assert_allclose(model.predict(list(split)), output * deviation + mean, rtol=1e-4)


def test_statistics_of_a_checkpoint_win(make_model, targets):
    model = make_model(d_out=2)
    model.assets = {"targets": {"kind": "regression", "mean": [1.0, 2.0], "std": [3.0, 4.0]}}
    task = GraphRegression(model)
    task.setup(_dataset(targets, "regression"))
    assert task.mean.tolist() == [1.0, 2.0] and task.deviation.tolist() == [3.0, 4.0]


def test_regression_baseline_is_the_training_mean(make_model, targets):
    baseline = GraphRegression(make_model(d_out=2)).baseline(_dataset(targets, "regression"))
    error = targets[:9].nanmean(0) - targets[12:]
    expected = np.mean([float(column[~torch.isnan(column)].square().mean().sqrt()) for column in error.T])
    assert baseline["rmse"] == pytest.approx(expected, rel=1e-5) and set(baseline) == {"rmse", "mae"}


def test_classification_loss_leaves_unknown_labels_out(make_model):
    y = torch.randint(0, 2, (15, 3), generator=torch.Generator().manual_seed(1)).float()
    y[12, 0] = float("nan")
    data, model = _dataset(y, "classification"), make_model(d_out=3)
    task = GraphClassification(model)
    task.setup(data)
    batch = data.collate(list(data.split("test")))
    logits = model(batch).detach().numpy()
    known = ~np.isnan(batch.y.numpy())
    p = 1 / (1 + np.exp(-logits))
    entropy = -np.where(batch.y.numpy() == 1, np.log(p), np.log(1 - p))[known].mean()
    assert float(task.training_step(batch)["loss"].detach()) == pytest.approx(entropy, rel=1e-5)
    assert model.assets["targets"]["kind"] == "classification"
    baseline = task.baseline(data)
    assert baseline["rocauc"] == pytest.approx(0.5) and 0 < baseline["ap"] <= 1


def test_gradients_survive_a_batch_without_known_targets(make_model):
    y = torch.zeros(15, 1)
    data, model = _dataset(y, "regression"), make_model(d_out=1).train()
    task = GraphRegression(model)
    task.setup(data)
    batch = data.collate([Graph(g.x, g.edge_index, g.edge_attr, torch.tensor([float("nan")])) for g in items(0)])
    task.training_step(batch)["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_task_and_data_must_fit(make_model, targets):
    with pytest.raises(DataError, match="labels are 0 or 1"):
        GraphClassification(make_model(d_out=2)).setup(_dataset(targets, "regression"))
    with pytest.raises(ConfigError, match="d_out is 3, the data have 2"):
        GraphRegression(make_model(d_out=3)).setup(_dataset(targets, "regression"))
    with pytest.raises(DataError, match="'t1' is unknown in every training record"):
        _dataset(torch.cat([targets[:, :1], torch.full((15, 1), float("nan"))], dim=1), "regression")
