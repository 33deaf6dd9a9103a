"""The run configuration: reading, overriding, and saying what is wrong."""

from __future__ import annotations

import pytest

from seqgraph.config import RunConfig, TrainConfig, arguments, build_part, load_config
from seqgraph.errors import ConfigError, PluginError

TOY = """
model: {name: toy-model, d_model: 16}
data: {name: toy-data}
task: toy-task
train: {epochs: 3, lr: 3e-4}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(TOY)
    return path


def test_file_and_overrides(file):
    config = load_config(file, ["train.lr=1e-2", "model.dropout=0.5", "train.clip=null", "seed=0,1,2"])
    assert config.train.lr == 0.01 and config.train.clip is None and config.train.epochs == 3
    assert config.model.fields == {"d_model": 16, "dropout": 0.5}
    assert config.task.name == "toy-task"
    assert config.seed == [0, 1, 2]


def test_yaml_numbers_are_numbers(file):
    assert load_config(file).train.lr == 3e-4
    assert load_config(file, ["train.lr=1e-3"]).train.lr == 1e-3
    assert load_config(file, ["train.precision=32"]).train.precision == "32"


@pytest.mark.parametrize(
    "given, seeds", [("seed=4", [4]), ("seed=[1,2]", [1, 2]), ("seed=3,1", [3, 1]), ("seed=010", [10])]
)
def test_seeds(file, given, seeds):
    assert load_config(file, [given]).seed == seeds


def test_data_root(file, tmp_path):
    assert load_config(file, data_root=tmp_path).data.fields["root"] == str(tmp_path)


def test_another_name_drops_the_old_fields(file):
    assert load_config(file, ["model=toy-model"]).model.fields == {"d_model": 16}
    with pytest.raises(PluginError, match="other"):
        load_config(file, ["model=other"])
    config = load_config(file, ["task.fail_at=3", "task.name=toy-task"])
    assert config.task.fields == {"fail_at": 3}


@pytest.mark.parametrize("name", ["model=toy-model", "model.name=toy-model"])
def test_a_name_comes_before_its_fields_wherever_it_stands(file, name):
    other = {**load_config(file).model_dump(), "model": {"name": "another", "width": 3}}
    assert load_config(other, ["model.d_model=8", name]).model.fields == {"d_model": 8}
    with pytest.raises(ConfigError, match=r"model\.dmodel"):
        load_config(other, ["model.dmodel=8", name])


def test_a_whole_section_takes_the_place_of_what_stands_before_it(file):
    whole = "model={name: toy-model, d_model: 4}"
    assert load_config(file, ["model.d_model=8", whole]).model.fields == {"d_model": 4}
    assert load_config(file, [whole, "model.d_model=8"]).model.fields == {"d_model": 8}
    with pytest.raises(PluginError, match="other"):
        load_config(file, ["model=toy-model", "model.d_model=8", "model=other"])


def test_mapping_and_config_are_sources_too(file):
    config = load_config(file)
    assert load_config(config) == config == load_config(config.model_dump())


def test_defaults_of_the_data_lose_against_the_user(file):
    made = build_part(load_config(file), "model", {"d_in": 7, "d_model": 3})
    assert arguments(made) == {"d_in": 7, "d_model": 16, "dropout": 0.0, "noise": 0.0}


@pytest.mark.parametrize(
    "override, said, hint",
    [
        ("train.epoch=5", "unknown key train.epoch", "train.epochs"),
        ("model.dmodel=5", "unknown key model.dmodel", "model.d_model"),
        ("trian.lr=5", "unknown key trian", "train"),
        ("train.seed=1", "unknown key train.seed", "seed=0,1,2"),
        ("lr=1", "unknown key lr", "train.lr"),
        ("train.schedule=cosin", "train.schedule", None),
        ("train.lr=fast", "train.lr", None),
        ("train.lr=0", "train.lr", None),
        ("model.d_model=wide", "model.d_model", None),
        ("seed=1,1", "seeds must differ", None),
        ("train.lr", "no override", "section.key=value"),
        ("train.lr.x=1", "lr is a value", None),
        ("data.n={a: 1, a: 2}", "twice", None),
        ("data.n=[1", "data.n", None),
    ],
)
def test_errors_name_the_key_and_the_cure(file, override, said, hint):
    with pytest.raises(ConfigError) as error:
        load_config(file, [override])
    assert said in error.value.message
    if hint:
        assert hint in error.value.hint


def test_data_of_another_domain_are_named_as_such(file):
    with pytest.raises(ConfigError, match=r"toy-model does not go with this data set, which sets num_items"):
        build_part(load_config(file), "model", {"d_in": 7, "num_items": 3})


def test_a_field_that_the_data_give_may_be_missing_but_not_at_the_end(file):
    config = load_config(file)
    with pytest.raises(ConfigError, match=r"model\.d_in is missing"):
        build_part(config, "model")


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    with pytest.raises(ConfigError, match="holds no configuration"):
        load_config(empty)
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: {name: a\ntrain: 3")
    with pytest.raises(ConfigError, match=r"broken.yaml line \d"):
        load_config(broken)
    with pytest.raises(ConfigError, match=r"folder without config\.json"):
        load_config(tmp_path)
    with pytest.raises(PluginError, match="no preset is named 'toy'"):
        load_config("toy")


def test_frozen_and_light():
    config = TrainConfig()
    with pytest.raises(ValueError):
        config.lr = 3
    import subprocess
    import sys

    code = "import sys, seqgraph.config, seqgraph.cli.train, seqgraph.cli.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert RunConfig.model_config["extra"] == "forbid"
