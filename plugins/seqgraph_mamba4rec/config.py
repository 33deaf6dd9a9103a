"""Configuration classes: the constructors' keywords, checked. Imports nothing but pydantic and our own reader of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from seqgraph.config import checked


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mamba4RecConfig(_Config):
    """Arguments of :class:`seqgraph_mamba4rec.model.Mamba4Rec`."""

    num_items: int = Field(gt=0, description="items that can be recommended; the data set knows it")
    d_model: int = Field(64, gt=0, description="width of item and token vectors")
    n_layers: int = Field(1, gt=0, description="blocks")
    d_state: int = Field(32, gt=0, description="states a channel")
    d_conv: int = Field(4, gt=0, description="width of the causal convolution")
    expand: int = Field(2, gt=0, description="inner width over d_model")
    mixer: Literal["s6", "ssd"] = Field("s6", description="Mamba-1, as published, or Mamba-2")
    headdim: int = Field(64, gt=0, description="channels of a head, for ssd; expand * d_model is a multiple of it")
    d_ffn: int | None = Field(None, gt=0, description="inner width of the feed-forward part; 4 d_model by default")
    dropout: float = Field(0.2, ge=0, lt=1, description="everywhere that the paper has it")
    residual: bool | None = Field(
        None, description="a residual around the Mamba block; by default only with two or more layers, as published"
    )
    norm: Literal["post", "pre"] = Field("post", description="norms after each part, as published, or before it")
    init: Literal["mamba", "mamba4rec"] = Field(
        "mamba", description="'mamba' keeps Mamba's step sizes; 'mamba4rec' overwrites them, as the release does"
    )
    seen: Literal["none", "bias", "recency"] = Field(
        "none", description="a learnt weight on what the user has had: none, one for all, or one a distance in events"
    )
    item_dropout: float = Field(0.0, ge=0, lt=1, description="in training, on the vectors that the scores are tied to")

    @model_validator(mode="after")
    def _fits(self) -> Mamba4RecConfig:
        if self.norm == "pre" and self.residual is False:
            raise ValueError("norm=pre needs the residual")
        if self.mixer == "ssd" and self.expand * self.d_model % self.headdim:
            raise ValueError(f"expand * d_model is {self.expand * self.d_model}, no multiple of headdim {self.headdim}")
        return self


class SASRecConfig(_Config):
    """Arguments of :class:`seqgraph_mamba4rec.sasrec.SASRec`."""

    num_items: int = Field(gt=0, description="items that can be recommended; the data set knows it")
    d_model: int = Field(64, gt=0, description="width of item and token vectors")
    n_layers: int = Field(2, gt=0, description="blocks")
    n_heads: int = Field(2, gt=0, description="attention heads; d_model is a multiple of it")
    d_ffn: int | None = Field(None, gt=0, description="inner width of the feed-forward part; 4 d_model by default")
    dropout: float = Field(0.2, ge=0, lt=1, description="on the embedding and in every block")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="on the attention weights; above 0 training pads")
    norm: Literal["post", "pre"] = Field("pre", description="norms before each part, or after it (RecBole's)")
    max_length: int = Field(200, gt=0, description="positions; data.max_history may not be larger")
    seen: Literal["none", "bias", "recency"] = Field(
        "none", description="a learnt weight on what the user has had: none, one for all, or one a distance in events"
    )
    item_dropout: float = Field(0.0, ge=0, lt=1, description="in training, on the vectors that the scores are tied to")

    @model_validator(mode="after")
    def _heads(self) -> SASRecConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model is {self.d_model}, no multiple of n_heads {self.n_heads}")
        return self


class GRU4RecConfig(_Config):
    """Arguments of :class:`seqgraph_mamba4rec.gru4rec.GRU4Rec`."""

    num_items: int = Field(gt=0, description="items that can be recommended; the data set knows it")
    d_model: int = Field(64, gt=0, description="width of item vectors")
    d_hidden: int = Field(128, gt=0, description="width of the GRU")
    n_layers: int = Field(1, gt=0, description="GRU layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="on the embedding and between layers")


class LRURecConfig(_Config):
    """Arguments of :class:`seqgraph_mamba4rec.lru.LRURec`."""

    num_items: int = Field(gt=0, description="items that can be recommended; the data set knows it")
    d_model: int = Field(64, gt=0, description="width of item and token vectors")
    n_layers: int = Field(2, gt=0, description="blocks")
    d_state: int | None = Field(None, gt=0, description="complex states of a block; 2 d_model by default")
    d_ffn: int | None = Field(None, gt=0, description="inner width of the feed-forward part; 4 d_model by default")
    dropout: float = Field(0.2, ge=0, lt=1, description="on the embedding and in every block")


class BiMamba4RecConfig(_Config):
    """Arguments of :class:`seqgraph_mamba4rec.cloze.BiMamba4Rec`."""

    num_items: int = Field(gt=0, description="items that can be recommended; the data set knows it")
    d_model: int = Field(64, gt=0, description="width of item and token vectors")
    n_layers: int = Field(1, gt=0, description="blocks")
    d_state: int = Field(32, gt=0, description="states a channel and direction")
    d_conv: int = Field(4, gt=0, description="width of the convolution")
    expand: int = Field(2, gt=0, description="inner width over d_model")
    mixer: Literal["s6", "ssd"] = Field("s6", description="Mamba-1 or Mamba-2")
    headdim: int = Field(64, gt=0, description="channels of a head, for ssd; expand * d_model is a multiple of it")
    share: Literal["none", "projections", "all"] = Field("projections", description="what both directions share")
    d_ffn: int | None = Field(None, gt=0, description="inner width of the feed-forward part; 4 d_model by default")
    dropout: float = Field(0.2, ge=0, lt=1, description="on the embedding and in every block")


def checked_fields(cls: type[BaseModel], fields: dict[str, Any]) -> dict[str, Any]:
    """A constructor's keywords, complete and checked.

    Raises:
        ConfigError: naming each wrong key.
    """
    config = checked(cls, fields, cls.__name__)
    return {name: getattr(config, name) for name in cls.model_fields}


class NextItemConfig(_Config):
    """Arguments of :class:`seqgraph_mamba4rec.task.NextItem`."""

    k: int | tuple[int, ...] = Field(10, description="lengths of the lists that are judged; the first picks the epoch")
    select_by: Literal["all", "unseen"] = Field(
        "all", description="the ranking that picks the best epoch: of all items, or of those not seen"
    )
    select_metric: Literal["NDCG", "HR", "MRR"] = Field("NDCG", description="what of that ranking picks it")
    lists: bool = Field(False, description="coverage and novelty of the lists as well")
    memory_mib: int = Field(256, gt=0, description="largest block of scores held at once, MiB")
    loss: Literal["softmax", "sampled-softmax", "gbce"] = Field("softmax", description="over all items, or drawn ones")
    negatives: int = Field(256, gt=0, description="items drawn for each prediction, for the latter two")
    gbce_t: float = Field(0.75, ge=0, le=1, description="calibration of gbce")
    capture: bool = Field(False, description="replay training steps as CUDA graphs")

    @model_validator(mode="after")
    def _heard(self) -> NextItemConfig:
        default = type(self).model_fields
        for name, losses in (("negatives", ("sampled-softmax", "gbce")), ("gbce_t", ("gbce",))):
            if self.loss not in losses and getattr(self, name) != default[name].default:
                raise ValueError(f"{name} says nothing to loss={self.loss}; take loss={' or loss='.join(losses)}")
        return self

    @field_validator("k")
    @classmethod
    def _lengths(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        ks = (value,) if isinstance(value, int) else value
        if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
            raise ValueError("one or several different numbers from 1")
        return value


class ClozeConfig(NextItemConfig):
    """Arguments of :class:`seqgraph_mamba4rec.task.Cloze`."""

    hidden: float = Field(0.2, gt=0, lt=1, description="share of a history's items that are hidden in training")
    last_only: float = Field(0.1, ge=0, le=1, description="share of histories whose last item alone is hidden")


class _HistoriesConfig(_Config):
    max_history: int | None = Field(
        50, gt=0, description="items a prediction may look at: the last so many; null for all of them"
    )
    examples: Literal["histories", "prefixes"] = Field(
        "histories", description="train every position of a history at once, or every prefix by its last position"
    )
    k_core: int = Field(0, ge=0, description="drop users and items with fewer events until none is left")
    duplicates: Literal["keep", "first", "last", "error"] = Field(
        "keep", description="what to do when a user meets an item again"
    )
    ties: Literal["file", "reversed", "item"] = Field(
        "file", description="events of a user at the same time: as in the file, that reversed, or by raw item id"
    )
    split: Literal["leave-one-out", "time", "users"] = Field(
        "leave-one-out", description="each user's last events, two moments for all users, or users kept apart"
    )
    valid_share: float = Field(0.1, gt=0, lt=1, description="of the events (time) or users (users) in validation")
    test_share: float = Field(0.1, gt=0, lt=1, description="of the events (time) or users (users) in the test")
    targets: Literal["first", "last", "all"] = Field(
        "first", description="for the split in time: which events of a user in a period are asked for"
    )
    split_seed: int = Field(0, ge=0, description="for the split by users: of their choice")


class MovieLens100KConfig(_HistoriesConfig):
    """Arguments of :class:`seqgraph_mamba4rec.data.MovieLens100K`."""

    root: str | None = Field(None, description="a folder with ml-100k.inter; null for the installed RecBole's")
    order: Literal["timestamp", "recbole"] = Field(
        "timestamp", description="exact timestamps, or RecBole's own sorting, which rounds them to fp32"
    )


class RecBoleInterConfig(_HistoriesConfig):
    """Arguments of :class:`seqgraph_mamba4rec.data.RecBoleInter`."""

    root: str | None = Field(None, description="an .inter file (gzip too), or the folder that holds it")
    order: Literal["timestamp", "recbole", "recbole-scaled", "file"] = Field(
        "timestamp",
        description="what puts a user's events in order: the timestamp, the timestamp as RecBole rounds it (also "
        "under its normalize_all), or their lines in the file",
    )
    user_field: str = "user_id"
    item_field: str = "item_id"
    time_field: str = "timestamp"
    title_field: str | None = Field(None, description="the .item column that names an item, for people to read")


class SequencesConfig(_HistoriesConfig):
    """Arguments of :class:`seqgraph_mamba4rec.data.Sequences`."""

    root: str | None = Field(None, description="the text file, gzip too, or a folder that holds it")
    file: str | None = Field(None, description="where the file is, when root is a folder")
    layout: Literal["histories", "pairs"] = Field(
        "histories", description="'user item item ...' or 'user item' on a line; in time order either way"
    )


class EventTableConfig(_HistoriesConfig):
    """Arguments of :class:`seqgraph_mamba4rec.data.EventTable`."""

    root: str | None = Field(None, description="a .csv, .tsv (gzip too) or .parquet file, one event a row")
    order: Literal["timestamp", "file"] = Field(
        "timestamp", description="what puts a user's events in order: their times, or their rows"
    )
    user_field: str = "user"
    item_field: str = "item"
    time_field: str = "timestamp"


class MovieLensConfig(_HistoriesConfig):
    """Arguments of :class:`seqgraph_mamba4rec.data.MovieLens`."""

    root: str | None = Field(None, description="an unpacked archive: u.data, ratings.dat or ratings.csv")
    min_rating: float | None = Field(None, description="leave out ratings below it")
