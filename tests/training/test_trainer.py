"""The training loop: an interrupted run continues bit for bit, and errors name their cause."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning_fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fadepth_core.data.augment import Augmentation
from fadepth_core.models import build_model
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from fadepth_core.runtime.engine import DepthEngine
from fadepth_core.runtime.network import load_network, load_training_network
from fadepth_core.training import trainer as trainer_module
from fadepth_core.training.config import load_config
from fadepth_core.training.fit import training_set
from fadepth_core.training.run_folder import CHECKPOINT, CONFIG, TrainingError
from fadepth_core.training.trainer import Trainer, parameter_groups
from short_runs import NO_BASE_LOSS, SIZE, Waves, interrupt_after, jitter, same_weights, short_run

FOUR_STEPS = "schedule.iterations=4"
WHOLE = (FOUR_STEPS, "loss.levels=[cr, hr, color]")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run of four steps, with levels of two sizes and one with random colours."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(short_run(folder, *WHOLE), Waves(), jitter).fit()
    return folder


def test_interrupted_and_resumed_equals_uninterrupted(whole, tmp_path):
    """Bit for bit, also with another number of loader processes."""
    config = short_run(tmp_path, *WHOLE, "data.workers=1")
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, Waves(), jitter).fit(on_step=interrupt_after(2))
    resumed = Trainer(config, Waves(), jitter)
    resumed.fit(resume=True)
    assert resumed.iteration == 4
    assert same_weights(whole, tmp_path)


def test_a_finished_run_has_a_checkpoint_its_settings_and_curves(whole):
    checkpoint = Checkpoint(whole / CHECKPOINT)
    assert checkpoint.description.trained
    assert checkpoint.description.options == {"etm": "etm#"}
    engine = DepthEngine.load(checkpoint, backend="torch")
    assert engine.framing.network_size == SIZE
    assert load_network(checkpoint)(torch.randn(1, 3, *SIZE)).std() > 0
    assert load_config(whole / CONFIG, []) == short_run(whole, *WHOLE)
    log = EventAccumulator(str(whole)).Reload()
    assert [point.step for point in log.Scalars("loss/total")] == [1, 2, 3, 4]
    assert {
        "cr/photometric", "hr/total", "optimizer/learning_rate", "optimizer/gradient_norm_network",
        "optimizer/gradient_norm_pose_net", "speed/images_per_second", "speed/hours_left",
    } <= set(log.Tags()["scalars"])  # fmt: skip
    assert "views/depth" in log.Tags()["images"]


def test_data_sets_of_two_sizes_in_one_run(tmp_path):
    """Each batch has one size; the run resumes bit for bit, and BatchNorm's statistics are of both sizes."""
    other = (64, 64)
    options = (
        FOUR_STEPS, "data.cache=true",
        "data.train=[{name: synthetic, length: 6, static: true},{name: synthetic, preset: indoor, length: 5, static: true, "
        f"size: {list(other)}}}]", "pose.network=known", "loss.levels=[cr]", "loss.depth=1", "loss.shape=0.5", "model.etm=null",
        NO_BASE_LOSS, "data.cutmix=0.5", "data.statistics_images=8",
    )  # fmt: skip
    sizes = set()
    scenes = training_set(short_run(tmp_path, *options))

    def trainer(name):
        made = Trainer(short_run(tmp_path / name, *options), scenes, Augmentation(roll=2, pitch=2, camera=0.5))
        made.network.register_forward_pre_hook(
            lambda network, images: sizes.add(tuple(images[0].shape)) if network.training else None
        )
        return made

    whole = trainer("whole")
    whole.fit()
    assert sizes == {(2, 3, *other), (2, 3, *SIZE)}
    batches = whole.statistics.batches(64, torch.device("cpu"))
    assert {tuple(batch.shape[-2:]) for batch in batches} == {other, SIZE}
    with pytest.raises(KeyboardInterrupt):
        trainer("parts").fit(on_step=interrupt_after(2))
    trainer("parts").fit(resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_training_starts_from_the_shipped_checkpoint(tmp_path):
    shipped = Checkpoint()
    options = (f"model.start={shipped.path}", "loss.levels=[cr]", "schedule.iterations=1")
    trainer = Trainer(short_run(tmp_path, *options), Waves())
    image = Waves()[3].frames[1:2]
    with torch.no_grad():
        found, expected = trainer.network.eval()(image).disparities[0], load_network(shipped)(image)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    trainer.fit()
    description = Checkpoint(tmp_path / CHECKPOINT).description
    assert description.form == "training"
    assert description.provenance["licence"] == shipped.description.provenance["licence"]
    assert description.provenance["start"].startswith("smalldepth ")
    with pytest.raises(CheckpointError, match="a smalldepth, not a smalldepth_k5"):
        Trainer(short_run(tmp_path / "k5", *options, "model.name=smalldepth_k5"), Waves())


def test_training_does_not_start_from_another_deployed_network(tmp_path, timm):
    path = tmp_path / "resnet18.safetensors"
    weights = {name: value.numpy() for name, value in build_model("resnet18").fuse().state_dict().items()}
    shipped = Checkpoint()
    golden = {name: value for name, value in shipped.golden.items() if name != "confidence"}
    save_checkpoint(path, weights, replace(shipped.description, model="resnet18", options={}), golden)
    with pytest.raises(CheckpointError, match="not the weights of this network: it is not a SmallDepth"):
        Trainer(short_run(tmp_path, f"model.start={path}", "loss.levels=[cr]"), Waves())


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path):
    run = short_run(tmp_path, "loss.levels=[cr]", "log.save_every=1")
    with pytest.raises(TrainingError, match=r"not finite at iteration \d.*cr\.photometric.*waves 5.*bad_batch_\d\.pt"):
        Trainer(run, Waves(spoil=5)).fit()
    (path,) = tmp_path.glob("bad_batch_*.pt")
    batch = torch.load(path, weights_only=True)
    assert torch.isnan(batch["frames"]).any()
    assert "waves 5" in batch["name"]


def test_accumulation_equals_a_larger_batch(tmp_path):
    """Two batches of one give the gradients of a batch of two, if nothing depends on the batch (BatchNorm, drop)."""
    gradients = []
    for name, overrides in (("a", ["data.batch_size=1", "accumulate=2"]), ("b", ["data.batch_size=2"])):
        options = [
            "model.residual_drop=0", "model.etm=null", "loss.levels=[cr]", "pose.network=known", "loss.depth=1.0",
            NO_BASE_LOSS, "schedule.iterations=1",
        ]  # fmt: skip
        trainer = Trainer(short_run(tmp_path / name, *options, *overrides), Waves())
        for module in trainer.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module
                module.training = False
        trainer.fit()
        gradients.append([parameter.grad.clone() for parameter in trainer.network.parameters()])
    for a, b in zip(*gradients, strict=True):
        # Convolutions of other batch sizes sum in another order.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_weight_decay_is_for_kernels_only():
    network = build_model("smalldepth", etm="etm#")
    decayed, plain = parameter_groups(network, 1e-3, 0.1)
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}
    assert all(".gamma" not in names[id(p)] and ".bn" not in names[id(p)] for p in decayed["params"])
    assert any(".gamma" in names[id(p)] for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_hyper_parameters_of_the_etm_reach_network_and_checkpoint(tmp_path):
    """The settings that the paper's Table VII varies."""
    settings = "model.etm={branch_drop: 0.2, element_drop: 0.5, dropconv_scale: 1.5}"
    trainer = Trainer(short_run(tmp_path, settings, "schedule.iterations=1", "loss.levels=[cr]"), Waves())
    trainer.fit()
    for network in (trainer.network, load_training_network(Checkpoint(tmp_path / CHECKPOINT))):
        etm = network.ups[0].low.conv.config
        assert (etm.branch_drop, etm.element_drop, etm.dropconv_scale) == (0.2, 0.5, 1.5)
    assert load_config(tmp_path / CONFIG, []) == trainer.config


# -------------------------------------------------------------------------------------------- precision, random numbers


def distance_moved(output, precision):
    """Euclidean distance that the depth network's parameters move in two steps."""
    options = [
        "loss.levels=[cr]", "pose.network=known", "model.residual_drop=0", f"precision={precision}",
        "schedule.iterations=2", "schedule.warmup=0", "data.statistics_images=1", "model.etm=null",
    ]  # fmt: skip
    trainer = Trainer(short_run(output, *options), Waves())
    start = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    trainer.fit()
    pairs = zip(trainer.network.parameters(), start, strict=True)
    return float(torch.stack([(parameter.detach() - before).norm() for parameter, before in pairs]).norm())


@pytest.fixture(scope="module")
def distance_moved_in_float32(tmp_path_factory):
    return distance_moved(tmp_path_factory.mktemp("single"), "32-true")


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_half_precision_moves_the_parameters_as_far(tmp_path, precision, distance_moved_in_float32, monkeypatch):
    """Gradients are unscaled before they are clipped; otherwise AdamW sees gradients of the size of its ε."""
    monkeypatch.setattr(trainer_module, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**20))
    assert distance_moved(tmp_path, precision) == pytest.approx(distance_moved_in_float32, rel=0.2)


def test_the_gradient_scale_is_resumed(tmp_path):
    options = ("loss.levels=[cr]", "pose.network=known", "schedule.iterations=1", "data.statistics_images=1")
    run = short_run(tmp_path, "precision=16-mixed", "model.etm=null", *options)
    trainer = Trainer(run, Waves())
    trainer.fit()
    trainer.scaler.update(512.0)
    trainer.save()
    resumed = Trainer(run, Waves())
    resumed.fit(resume=True)
    assert resumed.scaler.get_scale() == 512.0


def test_every_step_of_every_process_draws_its_own_random_numbers(tmp_path, monkeypatch):
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(Fabric, "global_rank", rank)
        run = short_run(tmp_path / str(rank), "loss.levels=[cr]", "schedule.iterations=2")
        Trainer(run, Waves()).fit(on_step=lambda progress: seeds.append(torch.initial_seed()))
    assert len(set(seeds)) == 4
