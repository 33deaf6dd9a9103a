"""RecBole both ways: our models under its Trainer and evaluator, its data and configurations in ours."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml

from seqgraph.cli.main import main
from seqgraph.config import load_config
from seqgraph.errors import ConfigError, DataError, PluginError
from seqgraph_mamba4rec.data import MovieLens100K, RecBoleInter
from seqgraph_mamba4rec.recbole_adapter import from_recbole_dataset, repaired
from seqgraph_mamba4rec.recbole_config import translate

needs_recbole = pytest.mark.skipif(
    importlib.util.find_spec("recbole") is None, reason="RecBole is not installed (no wheel of ray 2.6.3 for it)"
)
PUBLISHED = """
gpu_id: 0
use_gpu: False
load_col:
  inter: ['user_id', 'item_id', 'timestamp']
user_inter_num_interval: "[5,inf)"
item_inter_num_interval: "[5,inf)"
hidden_size: 64
num_layers: 1
dropout_prob: 0.2
loss_type: 'CE'
d_state: 32
d_conv: 4
expand: 2
epochs: 300
train_batch_size: 2048
eval_batch_size: 4096
stopping_step: 10
learning_rate: 0.001
train_neg_sample_args: ~
MAX_ITEM_LIST_LENGTH: 200
eval_args:
  split: {'LS': 'valid_and_test'}
  order: TO
  mode: full
metrics: ['Hit', 'NDCG', 'MRR']
valid_metric: NDCG@10
topk: [10]
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An atomic file in which item i is followed by i + 1 (mod 15)."""
    monkeypatch.chdir(tmp_path)
    rng, lines = np.random.default_rng(0), ["user_id:token\titem_id:token\ttimestamp:float"]
    for u in range(50):
        start, first = rng.integers(15), rng.integers(1000)
        lines += [f"u{u}\ti{(start + j) % 15}\t{first + 10 * j}" for j in range(rng.integers(5, 12))]
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "world.inter").write_text("\n".join(lines) + "\n")
    return tmp_path


def options(**more):
    return {
        "data_path": ".",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "MAX_ITEM_LIST_LENGTH": 20,
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "checkpoint_dir": "saved",
        "epochs": 5,
        "learning_rate": 0.01,
        "train_batch_size": 64,
        "hidden_size": 16,
        "embedding_size": 16,
        "inner_size": 32,
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 10,
    } | more


# ---------------------------------------------------------------------------------------------- ours in theirs
@needs_recbole
@pytest.mark.parametrize("name", ["SeqgraphMamba4Rec", "SeqgraphSASRec", "SeqgraphGRU4Rec", "SeqgraphLRURec"])
def test_our_models_train_under_recboles_trainer(world, name):
    with repaired(unpickle=True):
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.trainer import Trainer

        from seqgraph_mamba4rec import recbole_models

        cls = getattr(recbole_models, name)
        config = Config(model=cls, dataset="world", config_dict=options(dropout=0.0, d_state=8, residual=True))
        dataset = create_dataset(config)
        ours = from_recbole_dataset(dataset, max_history=20)
        train, valid, test = data_preparation(config, dataset)
        torch.manual_seed(0)
        model = cls(config, train.dataset)
        assert model.net.num_items == 15 and model.net.item_embedding.embedding_dim == 16
        trainer = Trainer(config, model)
        trainer.fit(train, valid, show_progress=False, verbose=False)
        theirs = trainer.evaluate(test, load_best_model=True, show_progress=False)
    assert theirs["hit@10"] > 0.9 and theirs["mrr@10"] > 0.5
    # The same weights, through our data and our metrics.
    from seqgraph_mamba4rec.task import NextItem

    task = NextItem(model.net).eval()
    with torch.no_grad():
        task.evaluation_step(ours.collate(ours.split("test")[:]))
    mine = task.ranked.compute()
    for a, b in (("HR@10", "hit@10"), ("NDCG@10", "ndcg@10"), ("MRR@10", "mrr@10")):
        assert mine[a] == pytest.approx(theirs[b], abs=1e-6)


@needs_recbole
def test_their_trainer_has_dropout_on_the_item_table_too(world):
    with repaired():
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation

        from seqgraph_mamba4rec.recbole_models import SeqgraphMamba4Rec

        config = Config(
            model=SeqgraphMamba4Rec,
            dataset="world",
            config_dict=options(dropout=0.0, d_state=8, item_dropout=0.5, train_batch_size=512),
        )
        dataset = create_dataset(config)
        train, *_ = data_preparation(config, dataset)
        model = SeqgraphMamba4Rec(config, train.dataset)
        (interaction,) = list(train)
        assert model.net.item_dropout == 0.5 and model.net.training
        first, second = (model.calculate_loss(interaction) for _ in range(2))
        model.eval()
        assert first != second and model.calculate_loss(interaction) == model.calculate_loss(interaction)


@needs_recbole
def test_run_recbole_finds_our_models_by_name_and_loads_its_checkpoint(world):
    with repaired(unpickle=True):
        from recbole.quick_start import load_data_and_model, run_recbole

        import seqgraph_mamba4rec.recbole_models  # noqa: F401

        result = run_recbole(
            model="SeqgraphMamba4Rec", dataset="world", config_dict=options(epochs=1, d_state=4), saved=True
        )
        (file,) = (world / "saved").glob("*.pth")
        model = load_data_and_model(str(file))[1]
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    assert type(model).__name__ == "SeqgraphMamba4Rec" and model.net.layers[0].mixer.d_state == 4
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


@needs_recbole
def test_predicting_one_item_is_a_column_of_all(world):
    with repaired():
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.data.interaction import Interaction

        from seqgraph_mamba4rec.recbole_models import SeqgraphMamba4Rec

        config = Config(model=SeqgraphMamba4Rec, dataset="world", config_dict=options())
        train, _, _ = data_preparation(config, create_dataset(config))
        model = SeqgraphMamba4Rec(config, train.dataset).eval()
        rows = torch.zeros(2, 20, dtype=torch.int64)
        rows[0, :3], rows[1, :1] = torch.tensor([4, 1, 15]), 7
        asked = {"item_id_list": rows, "item_length": torch.tensor([3, 1]), "item_id": torch.tensor([15, 1])}
        every = model.full_sort_predict(Interaction(asked))
        one = model.predict(Interaction(asked))
        assert every.shape == (2, 16) and (every[:, 0] == -torch.inf).all()  # [PAD] is never recommended
        torch.testing.assert_close(one, every.gather(1, asked["item_id"][:, None])[:, 0])
        bpr = Config(model=SeqgraphMamba4Rec, dataset="world", config_dict=options(loss_type="BPR"))
        with pytest.raises(ConfigError, match="set loss_type: CE"):
            SeqgraphMamba4Rec(bpr, train.dataset)


# ---------------------------------------------------------------------------------------------- theirs in ours
@needs_recbole
def test_recboles_ml_100k_is_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with repaired():
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.model.sequential_recommender.gru4rec import GRU4Rec

        core = {"user_inter_num_interval": "[20,inf)", "item_inter_num_interval": "[20,inf)"}
        config = Config(model=GRU4Rec, dataset="ml-100k", config_dict=options(MAX_ITEM_LIST_LENGTH=3, **core))
        dataset = create_dataset(config)
        theirs = from_recbole_dataset(dataset, max_history=50)
        data_preparation(config, dataset)
        with pytest.raises(DataError, match="cut into prefixes already"):
            from_recbole_dataset(dataset)
    ours = MovieLens100K(order="recbole", max_history=50, k_core=20)
    named = [np.array(d.item_ids)[d.items].tolist() for d in (theirs, ours)]
    rows = [
        {u: names[a:b] for u, (a, b) in zip(d.user_ids, pairwise(d.borders))} for d, names in zip((theirs, ours), named)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 917 and theirs.num_items < 1000


@needs_recbole
@pytest.mark.parametrize("scaled", [True, False])
def test_recboles_order_of_close_events(tmp_path, monkeypatch, scaled):
    """Seconds of 2001 in fp32: RecBole takes events up to 64 s apart for ties, unless it scales."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near").mkdir()
    rows = [("u", item, 1_000_000_000 + t) for item, t in zip("abcdef", (50, 40, 300, 290, 0, 100_000))]
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (tmp_path / "near" / "near.inter").write_text("\n".join(lines) + "\n")
    with repaired():
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.model.sequential_recommender.gru4rec import GRU4Rec

        config = Config(model=GRU4Rec, dataset="near", config_dict=options(normalize_all=scaled))
        dataset = create_dataset(config)
        theirs = from_recbole_dataset(dataset)
        _, _, test = data_preparation(config, dataset)
        row = test.dataset.inter_feat
        wanted = [*row["item_id_list"][0][: row["item_length"][0]].tolist(), row["item_id"][0].item()]
    ours = RecBoleInter(str(tmp_path / "near"), order="recbole-scaled" if scaled else "recbole")
    exact = RecBoleInter(str(tmp_path / "near"))
    orders = ["".join(np.array(d.item_ids)[d.items]) for d in (theirs, ours, exact)]
    assert orders[0] == orders[1] == "".join("abcdef"[i - 1] for i in wanted)
    assert orders[2] == "ebadcf" and (orders[1] == orders[2]) is scaled


def test_the_authors_configuration_is_the_faithful_preset(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(PUBLISHED)
    arguments = ["rec", "from-recbole", str(tmp_path / "config.yaml"), "--dataset", "ml-1m"]
    assert main([*arguments, "-o", str(tmp_path / "ours.yaml")]) == 0
    ours, preset = load_config(tmp_path / "ours.yaml"), load_config("ml-1m-faithful")
    assert ours.data.fields == {
        "root": "dataset/ml-1m", "order": "recbole", "examples": "prefixes", "max_history": 200, "k_core": 5
    }  # fmt: skip
    assert ours.model == preset.model
    same = ours.train.model_copy(update={"patience": preset.train.patience, "eval_tokens": preset.train.eval_tokens})
    assert same == preset.train and ours.train.patience == 11  # RecBole stops at the eleventh without gain
    assert ours.task.fields == {"k": [10], "select_metric": "NDCG"} and ours.seed == [2020]
    capsys.readouterr()
    assert main(arguments) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load((tmp_path / "ours.yaml").read_text())


def test_recboles_defaults():
    ours = translate({"model": "SASRec", "dataset": "ml-100k"})
    assert ours["model"]["attention_dropout"] == 0.5 and ours["model"]["norm"] == "post"
    assert ours["model"]["max_length"] == 50 and ours["task"]["select_metric"] == "MRR"
    assert ours["data"]["name"] == "ml-100k" and ours["data"]["k_core"] == 0
    load_config(ours)
    gru = translate(
        {"model": "GRU4Rec", "hidden_size": 32, "embedding_size": 8, "topk": [5, 10], "valid_metric": "Hit@5"}
    )
    assert (gru["model"]["d_hidden"], gru["model"]["d_model"]) == (32, 8)
    assert gru["task"]["k"] == [5, 10] and gru["task"]["select_metric"] == "HR"
    load_config(gru)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "NARM", "'NARM' has no counterpart"),
        ("loss_type", "BPR", "set loss_type: CE"),
        ("weight_decay", 0.1, "weight_decay: 0.1"),
        ("eval_args", {"split": {"RS": [0.8, 0.1, 0.1]}}, "only LS: valid_and_test"),
        ("eval_args", {"mode": "uni100"}, "only LS: valid_and_test"),
        ("user_inter_num_interval", "[5,inf)", "different counts"),
        ("item_inter_num_interval", "(5,10]", "more than a k-core"),
        ("valid_metric", "GAUC", "one of NDCG@k"),
        ("val_interval", {"rating": "[3,inf)"}, "val_interval cannot be said"),
        ("train_neg_sample_args", {"distribution": "uniform"}, "train_neg_sample_args"),
    ],
)
def test_what_cannot_be_translated_is_refused(key, value, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
        translate({"dataset": "ml-100k", key: value})
    assert caught.value.hint


def test_a_translated_configuration_reads_recboles_folder(world):
    config = load_config(translate({"dataset": "world", "data_path": str(world)}))
    data = RecBoleInter(**config.data.fields)
    assert data.num_users == 50 and data.split("train").every is False


def test_pandas_3_is_refused_with_the_pin(monkeypatch):
    if importlib.util.find_spec("recbole") is None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.0.1")
    with pytest.raises(PluginError, match="pip install 'pandas<3'"), repaired():
        pass


def test_the_models_need_no_recbole():
    code = """
import sys
for name in ("recbole", "ray", "pandas"):
    sys.modules[name] = None
import seqgraph as sg
from seqgraph_mamba4rec import data, judged, rec, recbole_adapter, recbole_config, task
for name in ("mamba4rec", "sasrec", "gru4rec", "lrurec", "bimamba4rec"):
    sg.create_model(name, num_items=3)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
