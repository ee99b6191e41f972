import json
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from llm_mde.config import Config, TrackingConfig, tracking_uri
from llm_mde.errors import ConfigError
from llm_mde.recipes import PACKAGE, build, dump, find, flat, load, paths, read_yaml, shipped

ROOT = PACKAGE.parent
RUN_YAMLS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("launch/*.yaml"))
DS_JSONS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("launch/ds/*.json"))
OTHER_YAMLS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("tune/spaces/*.yaml", "shards/*.yaml")
    for path in ROOT.glob(pattern)
)


def nodes(node=Config):
    yield node
    for field in node.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from nodes(field.annotation)


def test_defaults_are_the_reference_run():
    config = Config()
    optim, train, model = config.optim, config.train, config.model
    assert (optim.lr, optim.betas, optim.eps, optim.weight_decay) == (
        2e-5,
        (0.9, 0.999),
        1e-8,
        0.01,
    )
    assert (optim.clip, optim.lr_scale.prototypes, optim.lr_scale.head) == (1.0, 0.02, 1.0)
    assert (train.batch, train.epochs, train.patience, train.loss) == (32, 50, 5, "silog")
    assert (train.eval_every, train.max_steps) == (1, None)
    assert (model.image_size, model.max_depth, model.prompt) == ((224, 224), 10.0, "apg")
    assert (model.vit.tune, model.vit.lora.r, model.vit.lora.alpha) == ("lora", 96, 192)
    assert (model.llm.tune, model.llm.lora.r, model.llm.lora.alpha) == ("lora", 32, 64)
    assert (model.reprogram.prototypes, model.reprogram.heads) == (1000, 8)
    assert model.head.widths == (256, 128, 64, 32)
    dropouts = model.vit.lora, model.llm.lora, model.llm, model.reprogram
    assert {part.dropout for part in dropouts} == {0.1}


@pytest.mark.parametrize("name", RUN_YAMLS)
def test_shipped_run_loads(name):
    assert load(shipped(name)) == load(Path(name))


@pytest.mark.parametrize("name", DS_JSONS)
def test_shipped_deepspeed_json_loads(name):
    settings = json.loads(shipped(name).read_text())
    assert not {"optimizer", "scheduler"} & set(settings)
    zero = settings["zero_optimization"]
    stage, _, offload = Path(name).stem.removeprefix("zero").partition("_")
    assert (str(zero["stage"]), "offload_optimizer" in zero) == (stage, offload == "offload")


@pytest.mark.parametrize("name", OTHER_YAMLS)
def test_other_shipped_yaml_is_a_mapping(name):
    assert read_yaml(shipped(name))


def test_reference_yaml_is_the_reference_run():
    left = flat(load(shipped("launch/nyu.yaml")))
    free = {"name", "data.workers"}
    assert {k: v for k, v in left.items() if k not in free} == {
        k: v for k, v in flat(Config()).items() if k not in free
    }


@pytest.mark.parametrize("node", list(nodes()), ids=lambda node: node.__name__)
def test_every_field_has_a_docstring(node):
    assert [name for name, field in node.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("data.workrs=1", "data.workers"),
        ("lr=1", "optim.lr"),
        ("modle.vit.tune=full", "model"),
        ("model.vit.r=4", "model.vit.lora.r"),
        ("batch_size=8", "train.batch"),
    ],
)
def test_unknown_key_names_the_nearest(word, nearest):
    key = word.partition("=")[0]
    unknown = "modle" if key.startswith("modle") else key
    with pytest.raises(ConfigError) as caught:
        load(sets=[word])
    assert str(caught.value) == f"--set {word}: unknown key {unknown}, did you mean {nearest}?"


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("optim.lr=-1", "optim.lr: expected greater than 0, got -1"),
        ("optim.lr=.inf", "optim.lr: expected a finite number, got inf"),
        ("optim.lr=fast", "optim.lr: expected a valid number, unable to parse string as a number"),
        ("optim.lr.x=1", "optim.lr: expected a valid number"),
        ("optim.betas=[0.9, 1]", "optim.betas.1: expected less than 1, got 1"),
        ("model.vit.lora.r=0", "model.vit.lora.r: expected greater than or equal to 1, got 0"),
        ("model.vit.tune=some", "model.vit.tune: expected 'full', 'lora' or 'frozen', got 'some'"),
        ("model.image_size=[0, 4]", "model.image_size.0: expected greater than or equal to 1"),
        ("data.augment.zoom=[2, 1.5]", "data.augment.zoom: expected the smaller zoom first"),
        ("data.augment.zoom=[0.5, 1]", "data.augment.zoom.0: expected greater than or equal to 1"),
        ("train=3", "train: expected a valid dictionary or instance of TrainConfig, got 3"),
        ("train.micro_batch=5", "train.batch 32 is not a multiple of train.micro_batch 5"),
        ("name=a/b", "name: expected the name of one folder, got 'a/b'"),
        ("name=..", "name: expected the name of one folder, got '..'"),
        ("runs=~nobody.here/x", "runs: expected a path, ~nobody.here has no home folder"),
        ("seed=-1", "seed: expected greater than or equal to 0, got -1"),
    ],
)
def test_bad_value_says_where_what_and_why(word, problem):
    with pytest.raises(ConfigError) as caught:
        load(sets=[word])
    assert str(caught.value).startswith(f"--set {word}: {problem}")


@pytest.mark.parametrize("word", ["optim.lr", "=3", "", "optim.lr=[1"])
def test_set_without_key_or_value_is_refused(word):
    with pytest.raises(ConfigError, match="^--set"):
        load(sets=[word])


def test_set_through_a_value_is_refused():
    with pytest.raises(ConfigError, match="^optim.lr.x: lr is a value, not a group of settings"):
        load(sets=["optim.lr=1", "optim.lr.x=1"])


def test_set_reads_yaml_values_and_wins_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: file\noptim: {lr: 1.0e-3, clip: 2}\n")
    words = ["optim.lr=2e-5", "train.max_steps=7", "model.image_size=[96, 128]", "data.cache=yes"]
    config = load(path, sets=[*words, "train.max_steps=8"])
    assert (config.name, config.optim.lr, config.optim.clip) == ("file", 2e-5, 2.0)
    assert (config.train.max_steps, config.model.image_size) == (8, (96, 128))
    assert config.data.cache is True
    assert load(sets=["train.max_steps=null"]).train.max_steps is None


def test_every_problem_is_named_at_once():
    with pytest.raises(ConfigError, match=r"seed: expected .*; unknown key optim.x"):
        build({"seed": -1, "optim": {"x": 1}})


def test_partial_lora_group_keeps_the_defaults_of_its_place():
    config = build({"model": {"vit": {"lora": {"r": 4}}, "llm": {"lora": {"dropout": 0.0}}}})
    assert (config.model.vit.lora.r, config.model.vit.lora.alpha) == (4, 192)
    assert (config.model.llm.lora.r, config.model.llm.lora.alpha) == (32, 64)


def test_dump_is_read_back(tmp_path):
    config = load(sets=["optim.lr=3e-7", "data.shards=shards", "model.head.widths=[8, 4, 2, 1]"])
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert load(path) == config
    assert yaml.safe_load(dump(config))["optim"]["lr"] == 3e-7


def test_paths_are_absolute_wherever_they_come_from(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Config().run_dir == tmp_path / "runs" / "reference"
    assert Config() == load()
    assert load(sets=["data.shards=a/b"]).data.shards == str(tmp_path / "a" / "b")
    assert load(sets=["data.shards=s3://a/b"]).data.shards == "s3://a/b"


def test_flat_and_paths_name_the_same_leaves():
    assert set(flat(Config())) < set(paths())
    assert flat(Config())["model.vit.lora.r"] == 96


def test_tree_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


def test_a_key_that_stands_twice_is_refused_and_aliases_are_not(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("seed: 1\ntrain:\n  batch: 2\n  batch: 4\n")
    with pytest.raises(ConfigError, match="line 4, column 3: batch again$"):
        read_yaml(path)
    path.write_text("a: &a {x: 1}\nb: {c: &b {<<: *a, x: 2}}\nd: {<<: *b, x: 3}\n1: e\n'1': f\n")
    found = read_yaml(path)
    assert (found["b"]["c"]["x"], found["d"]["x"], found[1], found["1"]) == (2, 3, "e", "f")
    path.write_text("name: {{x}}\n")
    with pytest.raises(ConfigError, match="not a readable YAML file: line 1"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n", "expected `key: value` lines, got list"),
        ("a: [", "not a readable YAML file: line 1, column 5: "),
    ],
)
def test_file_that_is_no_mapping_is_refused(tmp_path, text, problem):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {problem}")


def test_empty_file_is_the_reference_run(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("# nothing\n")
    assert load(path) == Config()


def test_recipe_is_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find(Path("launch/nyu.yaml")) == shipped("launch/nyu.yaml")
    mine = tmp_path / "launch" / "nyu.yaml"
    mine.parent.mkdir()
    mine.write_text("name: mine\n")
    assert load(Path("launch/nyu.yaml")).name == "mine"
    with pytest.raises(ConfigError, match="^launch/none.yaml: no such file"):
        load(Path("launch/none.yaml"))


def test_tracking_store_is_the_configured_else_the_environments_else_local(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert tracking_uri(TrackingConfig()) == "http://server"
    assert tracking_uri(TrackingConfig(uri="sqlite:///mine.db")) == "sqlite:///mine.db"
