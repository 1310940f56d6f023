"""Distillation: from a network at work, from its answers kept on disk, and from depth that somebody else predicted."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from fadepth_core.common.color import normalise
from fadepth_core.data import DataError, collate
from fadepth_core.data.augment import Augmentation
from fadepth_core.data.pictures import write_pictures
from fadepth_core.losses import ApxLoss, ApxReading
from fadepth_core.models.layers.head import disparity_to_depth
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network, load_training_network
from fadepth_core.synthetic.dataset import SyntheticDataset
from fadepth_core.training.config import ConfigError, load_config
from fadepth_core.training.fit import training_set
from fadepth_core.training.teacher import Distillation, Predictions, TeacherCache, WithTeacher, load_teacher
from fadepth_core.training.trainer import CHECKPOINT, Trainer

ROOT = Path(__file__).resolve().parents[2]
SIZE = (64, 96)
#: From the teacher alone.
ALONE = "loss.base={photometric: 0, structure: 0, feature: 0, smoothness: 0}"


def config(output, *overrides):
    return load_config(
        None,
        [
            f"output={output}",
            "data.train=[{name: synthetic, length: 4, static: true}]",
            f"data.size={list(SIZE)}",
            "data.batch_size=2",
            "data.workers=0",
            "model.residual_drop=0",
            "model.etm=null",
            "pose.network=known",
            "loss.levels=[cr]",
            "schedule.iterations=2",
            "schedule.warmup=0",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A training checkpoint of a few steps against true depth."""
    output = tmp_path_factory.mktemp("teacher")
    run = config(
        output, ALONE, "loss.depth=1", "schedule.iterations=6", "seed=5", "optimizer.lr=2e-3",
        "provenance.licence=CC BY-NC-SA 3.0",
    )  # fmt: skip
    return Trainer(run, training_set(run)).fit()


@pytest.fixture
def dataset():
    return SyntheticDataset("driving", SIZE, length=4, static=True)


def changed_copy(path, target):
    """The same network with one weight changed."""
    checkpoint = Checkpoint(path)
    weights = {name: value.copy() for name, value in checkpoint.weights.items()}
    next(iter(weights.values())).flat[0] += 0.5
    from fadepth_core.runtime.checkpoint import save_checkpoint

    save_checkpoint(target, weights, checkpoint.description)
    return Checkpoint(target)


def fill(folder, teacher, dataset, network=None):
    cache = TeacherCache(folder, Checkpoint(teacher))
    cache.fill(network or load_training_network(Checkpoint(teacher)), dataset, 1, 2, 0)
    return cache


def refuses(image):
    raise AssertionError("the teacher was asked")


class Silent(torch.nn.Linear):
    """A teacher that must not be asked."""

    def __init__(self):
        super().__init__(1, 1)

    forward = staticmethod(refuses)


# -------------------------------------------------------------------------------------------------- a network at work


def test_a_student_comes_closer_to_its_teacher(teacher, tmp_path):
    """From the teacher's depth alone, without any other loss: the proportions of its answers become the teacher's."""
    run = config(
        tmp_path, ALONE, f"teacher.source={teacher}", "schedule.iterations=30", "optimizer.lr=2e-3", "teacher.encoder=0",
        "teacher.decoder=0", "data.augment={scale: 1, flip: 0, jitter: 0}",
    )  # fmt: skip
    losses = []
    trainer = Trainer(run, training_set(run))
    trainer.fit(on_step=lambda progress: losses.append(progress.loss))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


@pytest.mark.parametrize("cached", [False, True])
def test_a_student_learns_the_metres_of_its_teacher(teacher, tmp_path, cached):
    """Of pictures whose depth nobody knows, augmented; distributions alone leave the scale open."""
    pictures = tmp_path / "pictures"
    write_pictures(SyntheticDataset("driving", SIZE, length=4, static=True), pictures, range(4))
    index = json.loads((pictures / "index.json").read_text())
    (pictures / "index.json").write_text(
        json.dumps([{k: v for k, v in entry.items() if k != "depth"} for entry in index])
    )

    def ratio(weight):
        output = tmp_path / str(weight)
        run = config(
            output, ALONE, f"data.train=[{{name: pictures, root: {json.dumps(str(pictures))}}}]", "data.focal_length=100",
            f"teacher.source={teacher}", "teacher.encoder=0", "teacher.decoder=0", f"teacher.depth={weight}", "loss.depth=1",
            "loss.shape=0.1", "schedule.iterations=40", "optimizer.lr=3e-3", "model.start_depth=40", "data.cutmix=0",
            "data.augment={scale: 1.3, stretch: 1, roll: 2, jitter: 0}",
            *([f"teacher.cache={json.dumps(str(tmp_path / 'cache'))}"] if cached else []),
        )  # fmt: skip
        trainer = Trainer(run, training_set(run))
        trainer.fit()
        images = next(trainer._statistics_batches(8))
        asked = load_training_network(Checkpoint(teacher))
        with torch.no_grad():
            found, expected = (
                disparity_to_depth(network(images).disparities[0]).median() for network in (trainer.settled(), asked)
            )
        return float(found / expected)

    assert ratio(1.0) == pytest.approx(1, abs=0.25)
    assert not 0.6 < ratio(0.0) < 1.6, "else this test could not fail"


def test_the_teacher_stays_as_it_is(teacher, tmp_path):
    run = config(tmp_path, f"teacher.source={teacher}", "data.train=[{name: synthetic, length: 4}]")
    trainer = Trainer(run, training_set(run))
    before = {name: value.clone() for name, value in trainer._teacher.state_dict().items()}
    trainer.fit()
    assert all(torch.equal(value, before[name]) for name, value in trainer._teacher.state_dict().items())
    said = Checkpoint(tmp_path / CHECKPOINT).description.provenance
    assert said["teacher"] == f"smalldepth {Checkpoint(teacher).weights_sha256[:12]}"
    assert said["licence"] == "CC BY-NC-SA 3.0", "the teacher's"


def test_projections_are_trained_and_resumed(teacher, tmp_path):
    options = (f"teacher.source={teacher}", "teacher.channels=projection", ALONE, "schedule.iterations=4")
    whole = Trainer(run := config(tmp_path / "whole", *options), training_set(run))
    start = [p.detach().clone() for p in whole.apx.parameters()]
    whole.fit()
    assert len(start) == 10
    assert all(not torch.equal(p, q) for p, q in zip(start, whole.apx.parameters(), strict=True))
    run = config(tmp_path / "parts", *options)
    first = Trainer(run, training_set(run))
    with pytest.raises(KeyboardInterrupt):
        first.fit(on_step=lambda progress: setattr(first, "_stop", progress.iteration == 2))
    second = Trainer(run, training_set(run))
    second.fit(resume=True)
    for expected, found in zip(whole.apx.parameters(), second.apx.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    names = Checkpoint(tmp_path / "parts" / CHECKPOINT).weights
    assert not any("projection" in name for name in names), "nobody needs them after training"


def test_a_teacher_that_cannot_be_used_is_named(teacher, tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such file"):
        load_teacher(config(tmp_path, f"teacher.source={tmp_path / 'none.safetensors'}"))
    with pytest.raises(CheckpointError, match="a teacher trained at 64x96 pixels, the student's are 96x160"):
        load_teacher(config(tmp_path, f"teacher.source={teacher}", "data.size=[96, 160]"))
    checkpoint, deployed = Checkpoint(teacher), tmp_path / "deployed.safetensors"
    export_checkpoint(load_network(checkpoint), checkpoint.description, deployed)
    with pytest.raises(CheckpointError, match="a deployment checkpoint; a training checkpoint is needed here"):
        load_teacher(config(tmp_path, f"teacher.source={deployed}"))


def test_settings_that_make_no_sense_are_refused(tmp_path, teacher):
    for setting in ("encoder=0.1", "decoder=0.1", f"cache={tmp_path / 'cache'}"):
        with pytest.raises(
            ConfigError, match=f"{setting.split('=')[0]}: a folder of predicted depth has no feature maps"
        ):
            config(tmp_path, f"teacher.source={tmp_path}", f"teacher.{setting}")
    with pytest.raises(ConfigError, match="channels: a folder of predicted depth has none"):
        config(tmp_path, f"teacher.source={tmp_path}", "teacher.channels=projection")
    with pytest.raises(ConfigError, match="cache: keeps the mean over channels"):
        config(tmp_path, f"teacher.source={teacher}", "teacher.channels=projection", f"teacher.cache={tmp_path}")


def test_command_line(teacher, tmp_path):
    path = tmp_path / "distill.yaml"
    run = config(tmp_path / "out").model_dump(mode="json")
    path.write_text(yaml.safe_dump(run))
    command = [sys.executable, str(ROOT / "training" / "run.py"), "distill", "--config", str(path), "--teacher"]
    result = subprocess.run([*command, str(teacher)], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "depth.safetensors").is_file()
    missing = subprocess.run([*command, "nobody.safetensors"], capture_output=True, text=True, timeout=240)
    assert missing.returncode == 1
    assert "error: nobody.safetensors: no such file" in missing.stderr


def test_the_large_network_teaches_the_small_one(timm, tmp_path):
    run = config(tmp_path / "large", ALONE, "loss.depth=1", "model={name: hqdecv2}", "schedule.iterations=1")
    checkpoint = Trainer(run, training_set(run)).fit()
    run = config(tmp_path / "small", f"teacher.source={checkpoint}", "teacher.channels=projection")
    trainer = Trainer(run, training_set(run))
    losses = []
    trainer.fit(on_step=lambda progress: losses.append(progress.loss))
    assert np.isfinite(losses).all()
    widths = [(p.shape[1], p.shape[0]) for p in trainer.apx.projections["encoder"].parameters()]
    assert widths == [(32, 24), (64, 48), (128, 64), (256, 160), (512, 256)]
    cached = config(tmp_path / "cached", f"teacher.source={checkpoint}", f"teacher.cache={tmp_path / 'cache'}")
    Trainer(cached, training_set(cached)).fit()


# ----------------------------------------------------------------------------------------------------- answers on disk


def test_what_the_cache_gives_is_what_the_teacher_answers(teacher, dataset, tmp_path):
    cache = fill(tmp_path, teacher, dataset)
    network = load_training_network(Checkpoint(teacher)).requires_grad_(False)
    batch = collate([WithTeacher(dataset, cache)[i] for i in range(4)])
    frames = normalise(batch.frames[:, 1])
    student = load_training_network(changed_copy(teacher, tmp_path / "student.safetensors"))
    outputs = student(frames)
    depth_range = (student.min_depth, student.max_depth)
    # L1, since it is in proportion to what differs, the rounding included.
    apx = ApxLoss(reading=ApxReading(distance="l1"))
    live = Distillation(apx, depth_range, network)(frames, outputs, batch)
    kept = Distillation(apx, depth_range, None)(frames, outputs, batch)
    assert live > 0.01
    assert kept.item() == pytest.approx(live.item(), rel=2e-3), "half precision"


def test_the_cache_is_filled_once(teacher, dataset, tmp_path):
    first = fill(tmp_path, teacher, dataset)
    again = fill(tmp_path, teacher, dataset, network=Silent())
    for name, values in first.maps(dataset[2]).items():
        assert torch.equal(again.maps(dataset[2])[name], values)


def test_another_teacher_or_picture_has_another_entry(teacher, dataset, tmp_path):
    cache = fill(tmp_path, teacher, dataset)
    sample = dataset[0]
    brighter = replace(sample, frames=sample.frames + 1e-3)
    with pytest.raises(DataError, match=f"no entry for '{sample.name}'"):
        cache.maps(brighter)
    other = TeacherCache(tmp_path, changed_copy(teacher, tmp_path / "other.safetensors"))
    with pytest.raises(DataError, match="no entry for"):
        other.maps(sample)


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign"])
def test_a_damaged_entry_is_named(teacher, dataset, tmp_path, damage):
    cache = fill(tmp_path, teacher, dataset)
    path = cache.path(dataset[1])
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-100] ^= 0xFF
    path.write_bytes({"flipped": data, "cut": data[:-10], "foreign": b"not a safetensors file"}[damage])
    for read in (lambda: cache.maps(dataset[1]), lambda: fill(tmp_path, teacher, dataset)):
        with pytest.raises(DataError, match="a damaged entry of the teacher's cache") as error:
            read()
        assert str(path) in str(error.value)
        assert "delete it, and it is made anew" in str(error.value)
    path.unlink()
    fill(tmp_path, teacher, dataset).maps(dataset[1])


def test_augmentation_takes_the_teachers_maps_along(dataset):
    """A map that says where each pixel comes from, against the frames, which say the same."""
    h, w = SIZE
    v, u = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    sample = replace(dataset[0], frames=torch.stack([u, v, u]).expand(3, 3, h, w).clone())
    for k, size in enumerate(((64, 96), (16, 24))):
        maps = torch.nn.functional.interpolate(torch.stack([u, v])[None], size, mode="area")[0]
        # Feature maps: a disparity follows the focal length as well.
        sample.teacher = {"encoder.0": maps[:1], "encoder.1": maps[1:]}
        for seed in range(4):
            changed = Augmentation(jitter=0)(sample, torch.Generator().manual_seed(seed))
            frames = torch.nn.functional.interpolate(changed.frames[1][None], size, mode="area")[0]
            inside = (slice(2, -2), slice(2, -2))  # the smaller map's border pixels have no neighbours to blend with
            for found, expected in (
                (changed.teacher["encoder.0"], frames[0]),
                (changed.teacher["encoder.1"], frames[1]),
            ):
                assert (found[0] - expected)[inside].abs().max() < (0.02, 0.03)[k]


def test_a_run_fills_and_uses_its_cache(teacher, tmp_path):
    run = config(tmp_path / "out", ALONE, f"teacher.source={teacher}", f"teacher.cache={tmp_path / 'cache'}")
    dataset = training_set(run)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4
    trainer = Trainer(run, dataset, Augmentation())
    assert trainer._teacher is None, "nobody is asked any more"
    trainer.fit()


# ------------------------------------------------------------------------------------------------- somebody else's depth


def test_predictions_teach(dataset, tmp_path):
    """True depth as the prediction: the loss against it is that of the true proportions, whatever the unit and size."""
    source = Predictions(tmp_path)
    for i in range(4):
        sample = dataset[i]
        path = source.path(sample.name)
        depth = sample.depth.clamp(0.5, 80).numpy()
        if i % 2:
            np.save(path.with_name(f"{path.name}.npy"), cv2.resize(7 * depth, (150, 110)))
        else:
            cv2.imwrite(f"{path}.png", (depth * 256).astype(np.uint16))
    run = config(tmp_path / "out", ALONE, f"teacher.source={tmp_path}", "schedule.iterations=20", "optimizer.lr=2e-3")
    losses = []
    Trainer(run, training_set(run)).fit(on_step=lambda progress: losses.append(progress.loss))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    truth = 1 / dataset[1].depth.clamp(0.5, 80)
    found = torch.nn.functional.interpolate(source.maps(dataset[1])["disparity.0"][None], SIZE, mode="area")[0, 0]
    assert (7 * found / truth - 1).abs().median() < 0.05


def test_predictions_that_are_missing_or_no_depth_are_named(dataset, tmp_path):
    source, sample = Predictions(tmp_path), dataset[0]
    assert source.path("../clip (1).mp4:12") == tmp_path / "_" / "clip__1_.mp4_12"
    with pytest.raises(DataError, match=rf"no prediction for '{sample.name}': neither .*\.npy nor .*\.png"):
        source.maps(sample)
    path = source.path(sample.name)
    path = path.with_name(f"{path.name}.npy")
    for bad in (np.zeros((4, 4), np.float32), np.full((4, 4), np.nan, np.float32), np.ones((4, 4), int), np.ones(4)):
        np.save(path, bad)
        with pytest.raises(DataError, match="not a map of positive, finite depths"):
            source.maps(sample)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a numpy array"):
        source.maps(sample)
