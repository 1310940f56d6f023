"""BatchNorm statistics of what is measured, saved and exported: over many images, with drop off."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fadepth_core.models.layers.batch_norm import recompute_batch_norm
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.network import load_network, load_training_network
from fadepth_core.training import batch_norm
from fadepth_core.training.run_folder import CHECKPOINT
from fadepth_core.training.trainer import Trainer
from short_runs import SIZE, Waves, interrupt_after, same_weights, short_run

CPU = torch.device("cpu")


def test_recomputed_statistics_are_those_of_all_images():
    """Mean and variance of the whole set, also if batches differ in size and in mean."""
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.9))
    images = torch.randn(7, 3, 4, 5, dtype=torch.float64) * torch.arange(1, 8).view(7, 1, 1, 1)
    recompute_batch_norm(network.double().train(), images.split(3))
    variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    torch.testing.assert_close(network[0].running_mean, mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(network[0].running_var, variance, atol=1e-6, rtol=1e-5)
    assert not network.training


def variance_ratio(network, images):
    """Median over channels: variance of the inputs of the BatchNorms after dropped branches, over their running variance."""
    norms = [block.project.bn for stage in network.blocks for block in stage]
    ratios = []
    hooks = [
        norm.register_forward_pre_hook(lambda norm, inputs: ratios.append(inputs[0].var((0, 2, 3)) / norm.running_var))
        for norm in norms
    ]
    with torch.no_grad():
        network.eval()(images)
    for hook in hooks:
        hook.remove()
    return float(torch.cat(ratios).median())


def test_saved_statistics_are_those_without_drop(tmp_path):
    """Drop multiplies the remaining branches by 1 / (1 - p), which increases the variance that running averages see."""
    options = ["model.residual_drop=0.9", "model.constant_drop=true", "loss.levels=[cr]", "schedule.iterations=20"]
    options += ["model.etm=null", "pose.network=known", "data.statistics_images=12"]
    trainer = Trainer(short_run(tmp_path, *options), Waves())
    trainer.fit()
    (images,) = trainer.statistics.batches(64, CPU)
    saved = load_training_network(Checkpoint(tmp_path / CHECKPOINT))
    assert variance_ratio(saved, images) == pytest.approx(1, abs=0.1)
    assert variance_ratio(trainer.network, images) < 0.7, "otherwise this test could not fail"


class DarkThenBright(Waves):
    """A mixture in the order of its parts: dark pictures, then bright ones."""

    def __len__(self):
        return 160

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        factor = 0.3 if index < 80 else 1.0
        return replace(sample, frames=factor * sample.frames)


def test_statistics_do_not_depend_on_the_order_of_a_mixture(tmp_path, monkeypatch):
    """Each batch of statistics images has pictures of all parts: a run starts with its checkpoint's predictions."""
    monkeypatch.setattr(batch_norm, "PIXELS_PER_PASS", 16 * SIZE[0] * SIZE[1])
    shipped = Checkpoint()
    options = [f"model.start={shipped.path}", "data.statistics_images=128"]
    trainer = Trainer(short_run(tmp_path, *options), DarkThenBright())
    (images,) = trainer.statistics.batches(128, CPU)
    with torch.no_grad():
        expected, found = load_network(shipped)(images), trainer.evaluation_copy()(images).disparities[0]
    assert float((found / expected).log().abs().mean()) < 0.05


def test_with_statistics_frozen_from_the_start_training_starts_from_exactly_the_checkpoints_network(tmp_path):
    shipped = Checkpoint()
    options = [
        f"model.start={shipped.path}",
        "data.statistics_images=8",
        "model.freeze_statistics=0",
        "loss.levels=[cr]",
    ]
    trainer = Trainer(short_run(tmp_path, *options, "schedule.iterations=1", "optimizer.lr=1e-30"), DarkThenBright())
    trainer.fit()
    images = torch.randn(2, 3, 64, 96)  # of quite another kind than those of which statistics would be computed
    with torch.no_grad():
        expected, found = load_network(shipped)(images), trainer.evaluation_copy()(images).disparities[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_frozen_statistics_stay_also_in_a_resumed_run(tmp_path):
    """Statistics are frozen from half of the run on."""

    def run(name):
        options = ("loss.levels=[cr]", "model.etm=null", "pose.network=known", "model.freeze_statistics=0.5")
        return Trainer(short_run(tmp_path / name, *options), Waves())

    def statistics(trainer):
        state = trainer.network.state_dict()
        return {key: value.clone() for key, value in state.items() if "running" in key}

    seen = []
    trainer = run("whole")
    trainer.fit(on_step=lambda progress: seen.append(statistics(trainer)))
    changed = [any(not torch.equal(a[key], b[key]) for key in a) for a, b in pairwise(seen)]
    assert changed == [True, True, True, False, False], "recomputed in the fourth step, then kept"
    last, copied = seen[-1], trainer.evaluation_copy().state_dict()
    assert all(torch.equal(copied[key], value) for key, value in last.items())

    with pytest.raises(KeyboardInterrupt):
        run("parts").fit(on_step=interrupt_after(4))
    run("parts").fit(resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
