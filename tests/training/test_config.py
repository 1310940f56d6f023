"""Configurations: short forms, kinds of teacher, error messages, and the files of config/training."""

from __future__ import annotations

import re

import pytest
import yaml

from fadepth_core.training.config import (
    CachedTeacherConfig,
    ConfigError,
    NetworkTeacherConfig,
    PredictionsConfig,
    load_config,
    read_yaml,
    save_config,
)
from short_runs import NO_BASE_LOSS, ROOT

CONFIGS = ROOT / "config" / "training"
SHIPPED = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("shipped/*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_can_be_read(path, tmp_path):
    values = read_yaml(path)
    for changes in values.get("variants", {"": []}).values():
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values.get("run", values)))
        load_config(tmp_path / "run.yaml", changes)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_configuration_measures_on_scenes_that_it_trains_on(path):
    """Rendered scenes are determined by preset and seed."""
    run = read_yaml(path)
    run = run.get("run", run)

    def scenes(source, seed):
        return (source.get("preset", "driving"), source.get("seed", seed))

    trained = {scenes(source, 0) for source in run["data"]["train"] if source["name"] == "synthetic"}
    measured = [run[section]["data"] for section in ("validation", "evaluation") if section in run]
    measured = [scenes(source, 1) for source in measured if source["name"] == "synthetic"]
    assert not trained & set(measured)
    assert len(set(measured)) == len(measured), "validation and evaluation"


def test_short_forms_and_overrides_are_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optimizer: {lr: 3.0e-4}\nloss: {levels: {cr: {}, flip: {feature: 0}}}\n")
    config = load_config(path, ["optimizer.pose_lr=1e-5", "optimizer.betas=[0.8, 0.9]", "optimizer.betas.1=0.99"])
    assert (config.optimizer.lr, config.optimizer.pose_lr) == (3e-4, 1e-5)
    flip = config.loss.levels["flip"]
    assert (flip.loss, flip.feature, flip.disparity) == (1.0, 0.0, 0.5), "keys left out have the paper's values"
    assert config.optimizer.betas == (0.8, 0.99)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config(tmp_path / "none.yaml", [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate: Extra inputs are not permitted"),
        ("optimizer.lr=fast", "optimizer.lr: Input should be a valid number"),
        ("data.size=[100, 416]", "size must be two positive multiples of 32, got"),
        ("model.residual_drop=1.0", "model.residual_drop: Input should be less than 1"),
        ("loss.levels=[lr]", "levels must contain cr"),
        ("loss.levels=[cr, big]", "loss.levels.big"),
        ("loss.levels={cr: {feature: 0.1}}", "level cr has no consistency terms"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("model.etm={branch_drop: 1.0}", "model.etm.ETMSettings.branch_drop: Input should be less than 1"),
        ("model.etm={p_b: 0.1}", "model.etm.ETMSettings.p_b: Extra inputs are not permitted"),
        ("teacher={source: net.safetensors, mu: 1}", "teacher.mu: Extra inputs are not permitted"),
        ("teacher={cache: maps}", "teacher.source: Field required"),
        ("lr", "--set lr: expected key=value"),
        ("seed.x=1", "--set seed.x=1: 'seed' is 3 and has no keys below it"),
    ],
)
def test_a_wrong_setting_is_rejected_with_its_key(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(None, ["seed=3", override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.rescale_to_cr=true", "loss.levels=[cr, flip]"], "there is neither level lr nor level hr"),
        (["loss.speed=0.1", "pose.network=known"], "pose.network is 'known'"),
        (["pose.weights=x.pth", "pose.network=small"], "weights are for fbnetv3_b, not for small"),
        (["model.name=resnet18", "model.weights=x.pth", "model.start=y.safetensors"], "start replaces all weights"),
    ],
)
def test_settings_without_effect_are_rejected(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_one_focal_length_and_levels_of_other_sizes_are_rejected():
    with pytest.raises(ConfigError, match=r"data\.focal_length cannot be used with levels of another size: hr, lr"):
        load_config(None, ["data.focal_length=200"])
    assert load_config(None, ["data.focal_length=200", "loss.levels=[cr, flip, color]"]).data.focal_length == 200


def test_cutmix_is_for_true_depth_alone():
    """The pasted strip has no neighbouring frames that another loss could compare."""
    alone = [NO_BASE_LOSS, "loss.levels=[cr]", "loss.depth=1", "data.cutmix=0.5"]
    assert load_config(None, alone).data.cutmix == 0.5
    for setting in ("loss.base.photometric=1", "loss.levels=[cr, flip]"):
        with pytest.raises(ConfigError, match=r"data\.cutmix: the strip of another picture has no"):
            load_config(None, [*alone, setting])


# -------------------------------------------------------------------------------------------------------------- teachers


def teacher_config(source, *settings):
    return load_config(None, [f"teacher.source={source}", *(f"teacher.{setting}" for setting in settings)]).teacher


def test_the_kind_of_teacher_is_decided_by_source_and_cache(tmp_path):
    network = teacher_config("net.safetensors")
    assert type(network) is NetworkTeacherConfig
    assert (network.encoder, network.decoder, network.disparity) == (0.01, 0.01, 1.0), "best row of Table XI"
    cached = teacher_config("net.safetensors", f"cache={tmp_path}")
    assert type(cached) is CachedTeacherConfig
    predictions = teacher_config(tmp_path)
    assert type(predictions) is PredictionsConfig
    assert (predictions.encoder, predictions.decoder, predictions.depth) == (0, 0, 0)
    for expected in (network, cached, predictions):
        run = load_config(None, []).model_copy(update={"teacher": expected})
        save_config(run, tmp_path / "run.yaml")
        assert load_config(tmp_path / "run.yaml", []).teacher == expected


def test_null_and_zero_are_accepted_for_keys_that_a_kind_of_teacher_lacks(tmp_path):
    """Configurations saved by earlier versions have all keys."""
    unset = ("cache=null", "encoder=null", "decoder=null", "depth=0.0")
    assert teacher_config("net.safetensors", *unset) == teacher_config("net.safetensors")
    assert teacher_config(tmp_path, *unset) == teacher_config(tmp_path)
    assert teacher_config(tmp_path, "encoder=0.0", "decoder=0") == teacher_config(tmp_path)


def test_settings_that_a_kind_of_teacher_lacks_are_rejected(tmp_path):
    for setting in ("encoder=0.1", "decoder=0.1", "depth=1", f"cache={tmp_path / 'cache'}"):
        key = setting.split("=")[0]
        with pytest.raises(ConfigError, match=f"teacher: .*{key}: a folder of predicted depth has no feature maps"):
            teacher_config(tmp_path, setting)
    with pytest.raises(ConfigError, match=r"teacher\.channels: .*a folder of predicted depth has no channels"):
        teacher_config(tmp_path, "channels=projection")
    with pytest.raises(ConfigError, match=r"teacher\.channels: .*the cache keeps the mean over channels"):
        teacher_config("net.safetensors", "channels=projection", f"cache={tmp_path}")
