"""Distillation from the three kinds of teacher: a running network, its maps in a cache, and predicted depth in a folder."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import yaml

from fadepth_core.common.color import normalise
from fadepth_core.data import DataError, collate
from fadepth_core.data.augment import Augmentation
from fadepth_core.data.pictures import write_pictures
from fadepth_core.geometry import disparity_to_depth
from fadepth_core.losses import ApxLoss, ApxOptions
from fadepth_core.models import build_model
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network, load_training_network
from fadepth_core.synthetic.dataset import SyntheticDataset
from fadepth_core.training.config import LossConfig, load_config
from fadepth_core.training.fit import training_set
from fadepth_core.training.run_folder import CHECKPOINT, DEPLOYED
from fadepth_core.training.teacher import (
    Distillation,
    NetworkTeacher,
    Predictions,
    TeacherCache,
    WithTeacher,
    load_teacher,
)
from fadepth_core.training.trainer import Trainer
from short_runs import NO_BASE_LOSS, fadepth, interrupt_after

SIZE = (64, 96)


def config(output, *overrides):
    """Two iterations on rendered streets, level cr, known motion."""
    options = [
        f"output={output}",
        "data.train=[{name: synthetic, length: 4, static: true}]",
        f"data.size={list(SIZE)}",
        "data.batch_size=2",
        "data.workers=0",
        "data.cache=true",
        "model.residual_drop=0",
        "model.etm=null",
        "pose.network=known",
        "loss.levels=[cr]",
        "schedule.iterations=2",
        "schedule.warmup=0",
    ]
    return load_config(None, [*options, *overrides])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A training checkpoint after a few steps on true depth."""
    output = tmp_path_factory.mktemp("teacher")
    run = config(
        output, NO_BASE_LOSS, "loss.depth=1", "schedule.iterations=6", "seed=5", "optimizer.lr=2e-3",
        "provenance.licence=CC BY-NC-SA 3.0",
    )  # fmt: skip
    return Trainer(run, training_set(run)).fit()


@pytest.fixture
def dataset():
    return SyntheticDataset("driving", SIZE, length=4, static=True)


def changed_copy(path, target):
    """A checkpoint of the same network with one weight changed."""
    checkpoint = Checkpoint(path)
    weights = {name: value.copy() for name, value in checkpoint.weights.items()}
    next(iter(weights.values())).flat[0] += 0.5
    save_checkpoint(target, weights, checkpoint.description)
    return Checkpoint(target)


def filled_cache(folder, teacher, dataset, network=None):
    cache = TeacherCache(folder, Checkpoint(teacher))
    cache.fill(network or load_training_network(Checkpoint(teacher)), dataset, 1, 2, 0)
    return cache


class NeverCalled(torch.nn.Linear):
    """A network that must not be called."""

    def __init__(self):
        super().__init__(1, 1)

    def forward(self, image):
        raise AssertionError("the teacher was called")


# --------------------------------------------------------------------------------------------------- a running network


def test_a_student_approaches_its_teacher(teacher, tmp_path):
    """With the teacher's depth as the only loss."""
    run = config(
        tmp_path, NO_BASE_LOSS, f"teacher.source={teacher}", "schedule.iterations=16", "optimizer.lr=2e-3",
        "teacher.encoder=0", "teacher.decoder=0", "data.augment={scale: 1, flip: 0, jitter: 0}",
    )  # fmt: skip
    losses = []
    Trainer(run, training_set(run)).fit(on_step=lambda progress: losses.append(progress.loss))
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


def test_a_student_learns_the_scale_of_its_teacher(teacher, tmp_path):
    """From augmented pictures without true depth, by `teacher.depth`; distributions alone leave the scale undetermined."""
    pictures = tmp_path / "pictures"
    write_pictures(SyntheticDataset("driving", SIZE, length=4, static=True), pictures, range(4))
    index = json.loads((pictures / "index.json").read_text())
    without_depth = [{key: value for key, value in entry.items() if key != "depth"} for entry in index]
    (pictures / "index.json").write_text(json.dumps(without_depth))

    def median_ratio(weight):
        """Median depth of the student over that of the teacher."""
        run = config(
            tmp_path / str(weight), NO_BASE_LOSS, f"data.train=[{{name: pictures, root: {json.dumps(str(pictures))}}}]",
            "data.focal_length=100", f"teacher.source={teacher}", "teacher.encoder=0", "teacher.decoder=0",
            f"teacher.depth={weight}", "loss.depth=1", "loss.shape=0.1", "schedule.iterations=18", "optimizer.lr=4e-3",
            "model.start_depth=40", "data.augment={scale: 1.3, stretch: 1, roll: 2, jitter: 0}",
        )  # fmt: skip
        trainer = Trainer(run, training_set(run))
        trainer.fit()
        images = next(trainer.statistics.batches(8, torch.device("cpu")))
        networks = (trainer.evaluation_copy(), load_training_network(Checkpoint(teacher)))
        with torch.no_grad():
            found, expected = (disparity_to_depth(network(images).disparities[0]).median() for network in networks)
        return float(found / expected)

    assert median_ratio(1.0) == pytest.approx(1, abs=0.25)
    assert not 0.6 < median_ratio(0.0) < 1.6, "otherwise this test could not fail"


def test_the_teacher_is_not_trained_and_named_in_the_checkpoint(teacher, tmp_path):
    run = config(tmp_path, f"teacher.source={teacher}", "data.train=[{name: synthetic, length: 4}]")
    trainer = Trainer(run, training_set(run))
    network = trainer.distillation.teacher.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer.fit()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    provenance = Checkpoint(tmp_path / CHECKPOINT).description.provenance
    assert provenance["teacher"] == f"smalldepth {Checkpoint(teacher).weights_sha256[:12]}"
    assert provenance["licence"] == "CC BY-NC-SA 3.0", "the teacher's"


def test_projections_are_trained_and_resumed(teacher, tmp_path):
    options = (f"teacher.source={teacher}", "teacher.channels=projection", NO_BASE_LOSS, "schedule.iterations=4")
    run = config(tmp_path / "whole", *options)
    whole = Trainer(run, training_set(run))
    start = [p.detach().clone() for p in whole.apx.parameters()]
    whole.fit()
    assert len(start) == 10
    assert all(not torch.equal(p, q) for p, q in zip(start, whole.apx.parameters(), strict=True))
    run = config(tmp_path / "parts", *options)
    with pytest.raises(KeyboardInterrupt):
        Trainer(run, training_set(run)).fit(on_step=interrupt_after(2))
    resumed = Trainer(run, training_set(run))
    resumed.fit(resume=True)
    for expected, found in zip(whole.apx.parameters(), resumed.apx.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    names = Checkpoint(tmp_path / "parts" / CHECKPOINT).weights
    assert not any("projection" in name for name in names), "they are used in training only"


def test_a_teacher_that_cannot_be_used_is_rejected_with_the_reason(teacher, tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such file"):
        load_teacher(config(tmp_path, f"teacher.source={tmp_path / 'none.safetensors'}"))
    with pytest.raises(CheckpointError, match="a teacher trained at 64x96 pixels, the student's are 96x160"):
        load_teacher(config(tmp_path, f"teacher.source={teacher}", "data.size=[96, 160]"))
    checkpoint, deployed = Checkpoint(teacher), tmp_path / "deployed.safetensors"
    export_checkpoint(load_network(checkpoint), checkpoint.description, deployed)
    with pytest.raises(CheckpointError, match="a deployment checkpoint; a training checkpoint is needed here"):
        load_teacher(config(tmp_path, f"teacher.source={deployed}"))


def test_the_command_distill(teacher, tmp_path):
    path = tmp_path / "distill.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path / "out").model_dump(mode="json")))
    result = fadepth("distill", "--config", path, "--teacher", teacher)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / DEPLOYED).is_file()
    missing = fadepth("distill", "--config", path, "--teacher", "missing.safetensors")
    assert missing.returncode == 1
    assert "error: missing.safetensors: no such file" in missing.stderr


def test_hqdecv2_teaches_smalldepth(timm, teacher, tmp_path):
    """SmallDepth learns from projections of HQDecv2's wider maps, and from a cache of its maps."""
    options = (NO_BASE_LOSS, "schedule.iterations=1")
    checkpoint = tmp_path / "large.safetensors"
    weights = {name: value.numpy() for name, value in build_model("hqdecv2").state_dict().items()}
    save_checkpoint(checkpoint, weights, replace(Checkpoint(teacher).description, model="hqdecv2"))
    run = config(tmp_path / "small", *options, f"teacher.source={checkpoint}", "teacher.channels=projection")
    trainer = Trainer(run, training_set(run))
    losses = []
    trainer.fit(on_step=lambda progress: losses.append(progress.loss))
    assert np.isfinite(losses).all()
    widths = [(p.shape[1], p.shape[0]) for p in trainer.apx.projections["encoder"].parameters()]
    assert widths == [(32, 24), (64, 48), (128, 64), (256, 160), (512, 256)]
    cached = config(
        tmp_path / "cached", *options, f"teacher.source={checkpoint}", f"teacher.cache={tmp_path / 'cache'}"
    )
    Trainer(cached, training_set(cached)).fit()


# -------------------------------------------------------------------------------------------------------------- a cache


def test_cached_maps_give_the_loss_of_the_running_network(teacher, dataset, tmp_path):
    """The loss between the maps, and the losses against the teacher's depth."""
    cache = filled_cache(tmp_path, teacher, dataset)
    network = NetworkTeacher(load_training_network(Checkpoint(teacher)).requires_grad_(False))
    batch = collate([WithTeacher(dataset, cache)[i] for i in range(4)])
    frames = normalise(batch.frames[:, 1])
    student = load_training_network(changed_copy(teacher, tmp_path / "student.safetensors"))
    outputs = student(frames)
    depth_range = (student.min_depth, student.max_depth)
    # L1, because it is proportional to the differences, which include rounding to half precision.
    apx = ApxLoss(options=ApxOptions(distance="l1"))
    for weight, tolerance in ((0.0, 2e-3), (10.0, 5e-3)):
        settings = (weight, LossConfig(depth=1))
        running = Distillation(apx, depth_range, network, *settings)(frames, outputs, batch)
        cached = Distillation(apx, depth_range, None, *settings)(frames, outputs, batch)
        assert running > 0.01
        assert cached.item() == pytest.approx(running.item(), rel=tolerance), "half precision"


def test_the_cache_is_filled_once(teacher, dataset, tmp_path):
    first = filled_cache(tmp_path, teacher, dataset)
    again = filled_cache(tmp_path, teacher, dataset, network=NeverCalled())
    for name, values in first.maps(dataset[2]).items():
        assert torch.equal(again.maps(dataset[2])[name], values)


def test_another_teacher_or_picture_has_another_entry(teacher, dataset, tmp_path):
    cache = filled_cache(tmp_path, teacher, dataset)
    sample = dataset[0]
    brighter = replace(sample, frames=sample.frames + 1e-3)
    with pytest.raises(DataError, match=f"no entry for '{sample.name}'"):
        cache.maps(brighter)
    other = TeacherCache(tmp_path, changed_copy(teacher, tmp_path / "other.safetensors"))
    with pytest.raises(DataError, match="no entry for"):
        other.maps(sample)


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign"])
def test_a_damaged_entry_is_named(teacher, dataset, tmp_path, damage):
    cache = filled_cache(tmp_path, teacher, dataset)
    path = cache.path(dataset[1])
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-100] ^= 0xFF
    path.write_bytes({"flipped": data, "cut": data[:-10], "foreign": b"not a safetensors file"}[damage])
    for read in (lambda: cache.maps(dataset[1]), lambda: filled_cache(tmp_path, teacher, dataset)):
        with pytest.raises(DataError, match="a damaged entry of the teacher's cache") as error:
            read()
        assert str(path) in str(error.value)
        assert "delete it, and the next run creates it again" in str(error.value)
    path.unlink()
    filled_cache(tmp_path, teacher, dataset).maps(dataset[1])


def test_augmentation_changes_maps_and_frames_alike(dataset):
    """Frames and maps that hold the coordinates of each pixel stay equal."""
    h, w = SIZE
    v, u = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    sample = replace(dataset[0], frames=torch.stack([u, v, u]).expand(3, 3, h, w).clone())
    for k, size in enumerate(((64, 96), (16, 24))):
        maps = torch.nn.functional.interpolate(torch.stack([u, v])[None], size, mode="area")[0]
        # Feature maps: disparity is scaled with the focal length as well.
        sample.teacher = {"encoder.0": maps[:1], "encoder.1": maps[1:]}
        for seed in range(4):
            changed = Augmentation(jitter=0)(sample, torch.Generator().manual_seed(seed))
            frames = torch.nn.functional.interpolate(changed.frames[1][None], size, mode="area")[0]
            inside = (slice(2, -2), slice(2, -2))  # border pixels of the smaller map have no neighbours to interpolate
            for found, expected in (
                (changed.teacher["encoder.0"], frames[0]),
                (changed.teacher["encoder.1"], frames[1]),
            ):
                assert (found[0] - expected)[inside].abs().max() < (0.02, 0.03)[k]


def test_a_run_fills_and_uses_its_cache(teacher, tmp_path):
    run = config(tmp_path / "out", NO_BASE_LOSS, f"teacher.source={teacher}", f"teacher.cache={tmp_path / 'cache'}")
    dataset = training_set(run)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4
    trainer = Trainer(run, dataset, Augmentation())
    assert trainer.distillation.teacher is None, "no network runs beside the student"
    trainer.fit()


# --------------------------------------------------------------------------------------------------- predicted depth


def test_a_student_learns_from_predicted_depth(dataset, tmp_path):
    """True depth as the prediction, in two sizes and units, with the loss that ignores the unit."""
    source = Predictions(tmp_path)
    for i in range(4):
        sample = dataset[i]
        path = source.path(sample.name)
        depth = sample.depth.clamp(0.5, 80).numpy()
        if i % 2:
            np.save(path.with_name(f"{path.name}.npy"), cv2.resize(7 * depth, (150, 110)))
        else:
            cv2.imwrite(f"{path}.png", (depth * 256).astype(np.uint16))
    run = config(
        tmp_path / "out", NO_BASE_LOSS, f"teacher.source={tmp_path}", "schedule.iterations=14", "optimizer.lr=2e-3"
    )
    losses = []
    Trainer(run, training_set(run)).fit(on_step=lambda progress: losses.append(progress.loss))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert Checkpoint(tmp_path / "out" / CHECKPOINT).description.provenance["teacher"] == tmp_path.name
    truth = 1 / dataset[1].depth.clamp(0.5, 80)
    found = torch.nn.functional.interpolate(source.maps(dataset[1])["disparity.0"][None], SIZE, mode="area")[0, 0]
    assert (7 * found / truth - 1).abs().median() < 0.05


def test_missing_and_invalid_predictions_are_named(dataset, tmp_path):
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
