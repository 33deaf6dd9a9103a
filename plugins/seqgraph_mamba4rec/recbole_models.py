"""Our models as RecBole's: ``Config(model=SeqgraphMamba4Rec)``, its data loaders, Trainer and evaluator.

Import it inside :func:`seqgraph_mamba4rec.recbole_adapter.repaired`. The classes are found by name too, as in
``run_recbole(model="SeqgraphMamba4Rec")``.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import torch
from pydantic import BaseModel
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from seqgraph.errors import ConfigError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec import config as configs
from seqgraph_mamba4rec.base import NextItemModel
from seqgraph_mamba4rec.gru4rec import GRU4Rec
from seqgraph_mamba4rec.loss import softmax_loss
from seqgraph_mamba4rec.lru import LRURec
from seqgraph_mamba4rec.model import Mamba4Rec
from seqgraph_mamba4rec.recbole_config import model_fields
from seqgraph_mamba4rec.sasrec import SASRec


class _Ours(SequentialRecommender):
    """Unpads what RecBole pads. Values come from RecBole's configuration, under RecBole's names or ours.

    RecBole's item i is our i - 1; its [PAD] is no item here, neither in the training softmax nor in the ranking.

    Raises:
        ConfigError: for ``loss_type`` other than CE, values that the model does not take, or a learnt weight of what
            a user has had (``seen``).
    """

    ours: type[NextItemModel]
    config_class: type[BaseModel]

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if config["loss_type"] not in (None, "CE"):
            raise ConfigError(f"loss_type {config['loss_type']!r} in RecBole", "set loss_type: CE")
        given = {key: value for key, value in config.final_config_dict.items() if value is not None}
        fields = model_fields(self.ours.__name__, given)
        fields |= {key: given[key] for key in self.config_class.model_fields if key in given}
        if "max_length" in self.config_class.model_fields:
            fields["max_length"] = self.max_seq_length
        checked = configs.checked_fields(self.config_class, fields | {"num_items": self.n_items - 1})
        if checked.get("seen", "none") != "none":
            raise ConfigError(
                f"seen: {checked['seen']} in RecBole, whose batches cut histories off",
                "train such a model with seqgraph train",
            )
        self.net = self.ours(**checked)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Histories (B, L), 0 on the right, and their lengths (B,), to read-outs (B, D)."""
        return self.net.encode_users(TokenStream.from_dense(item_seq - 1, item_seq_len))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Mean cross-entropy over all items."""
        users = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return softmax_loss(users, self.net.tied_vectors(), interaction[self.POS_ITEM_ID] - 1)

    def predict(self, interaction: Any) -> Tensor:
        """The score of one item each, (B,)."""
        users = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return (users * self.net.item_embedding(interaction[self.ITEM_ID] - 1)).sum(1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, (B, V + 1); [PAD]'s is minus infinity."""
        scores = self.net.scores(self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]))
        return torch.cat([scores.new_full((len(scores), 1), -torch.inf), scores], 1)


class SeqgraphMamba4Rec(_Ours):
    """:class:`seqgraph_mamba4rec.model.Mamba4Rec` in RecBole."""

    ours, config_class = Mamba4Rec, configs.Mamba4RecConfig


class SeqgraphSASRec(_Ours):
    """:class:`seqgraph_mamba4rec.sasrec.SASRec` in RecBole."""

    ours, config_class = SASRec, configs.SASRecConfig


class SeqgraphGRU4Rec(_Ours):
    """:class:`seqgraph_mamba4rec.gru4rec.GRU4Rec` in RecBole."""

    ours, config_class = GRU4Rec, configs.GRU4RecConfig


class SeqgraphLRURec(_Ours):
    """:class:`seqgraph_mamba4rec.lru.LRURec` in RecBole."""

    ours, config_class = LRURec, configs.LRURecConfig


# RecBole looks models up as recbole.model.<kind>.<name in lower case>.
for _class in (SeqgraphMamba4Rec, SeqgraphSASRec, SeqgraphGRU4Rec, SeqgraphLRURec):
    _name = f"recbole.model.sequential_recommender.{_class.__name__.lower()}"
    _module = types.ModuleType(_name)
    _module.__spec__ = importlib.machinery.ModuleSpec(_name, None)
    setattr(_module, _class.__name__, _class)
    sys.modules[_name] = _module
