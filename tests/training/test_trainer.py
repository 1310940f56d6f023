"""The training loop: what is interrupted goes on bit by bit, what breaks says so, and nothing is lost."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from lightning_fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset

import fadepth_core.training.trainer as trainer_module
from fadepth_core.data import Sample
from fadepth_core.data.augment import Augmentation
from fadepth_core.models.layers.batch_norm import recompute_batch_norm
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.engine import DepthEngine
from fadepth_core.runtime.network import load_network, load_training_network
from fadepth_core.training.config import ConfigError, load_config, read_yaml
from fadepth_core.training.fit import training_set
from fadepth_core.training.schedules import BatchesOfOneKind, EndlessSampler, learning_rate_factor
from fadepth_core.training.trainer import (
    BEST,
    CHECKPOINT,
    STATE,
    Trainer,
    TrainingError,
    parameter_groups,
    step_seed,
)

SIZE = (64, 96)
CONFIGS = Path(__file__).parents[2] / "config" / "training"
SHIPPED = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("shipped/*.yaml")])


class Waves(Dataset):
    """Smooth moving pictures with the same motion everywhere: enough to compute every loss on."""

    def __init__(self, spoil: int | None = None):
        self._spoil = spoil

    def __len__(self):
        return 12

    def __getitem__(self, index):
        h, w = 2 * SIZE[0], 2 * SIZE[1]
        v, u = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
        shift = torch.arange(3).view(3, 1, 1) * 0.02
        rgb = [0.5 + 0.4 * torch.sin(9 * (u + shift) + c + index) * torch.cos(7 * v + c) for c in range(3)]
        frames = torch.stack(rgb, dim=1)
        if index == self._spoil:
            frames = frames * float("nan")
        k = torch.tensor([[150.0, 0, w / 2], [0, 150.0, h / 2], [0, 0, 1]])
        poses = torch.eye(4).repeat(3, 1, 1)
        poses[:, 0, 3] = torch.arange(3) * 0.1
        return Sample(
            frames, k, torch.tensor(0.1), f"waves {index}", torch.tensor(1.0), poses, torch.full((16, 24), 5.0)
        )


def jitter(sample, generator):
    sample.frames = sample.frames * (0.9 + 0.1 * torch.rand(1, generator=generator))
    return sample


def config(output, *overrides):
    return load_config(
        None,
        [
            f"output={output}",
            f"data.size={list(SIZE)}",
            "data.batch_size=2",
            "data.workers=0",
            "pose.network=small",
            "schedule.iterations=6",
            "schedule.warmup=2",
            "log.every=1",
            "log.images_every=2",
            "log.save_every=100",
            "model.residual_drop=0.5",
            *overrides,
        ],
    )


def weights(output):
    return Checkpoint(output / CHECKPOINT).weights


@pytest.mark.parametrize("workers", [0, 1])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, workers):
    option = f"data.workers={workers}"
    Trainer(config(tmp_path / "whole", option), Waves(), jitter).fit()

    def interrupt(progress):
        if progress.iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Trainer(config(tmp_path / "parts", option), Waves(), jitter).fit(on_step=interrupt)
    resumed = Trainer(config(tmp_path / "parts", option), Waves(), jitter)
    resumed.fit(resume=True)
    assert resumed.iteration == 6
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all((whole[name] == parts[name]).all() for name in whole), "bit for bit"


def test_batches_are_of_one_kind_and_go_on_where_a_run_stopped():
    def chunks(skip, count):
        found = iter(BatchesOfOneKind(EndlessSampler(20, 3), 4, lambda index: index % 3, skip))
        return [next(found) for _ in range(count)]

    whole = chunks(0, 30)
    assert all(len({index % 3 for index, _ in batch}) == 1 for batch in whole)
    assert {index for batch in whole for index, _ in batch} == set(range(20))
    draws = [draw for batch in whole for _, draw in batch]
    assert len(set(draws)) == len(draws), "each key once"
    assert chunks(11, 19) == whole[11:]


def test_data_sets_of_two_sizes_in_one_run(tmp_path):
    """Each batch has one; the run resumes bit by bit, and BatchNorm's statistics are of both."""
    options = (
        "data.train=[{name: synthetic, length: 6, static: true},{name: synthetic, preset: indoor, length: 5, static: true, "
        "size: [64, 64]}]", "pose.network=known", "loss.levels=[cr]", "loss.depth=1", "loss.shape=0.5", "model.etm=null",
        "loss.base={photometric: 0, structure: 0, feature: 0, smoothness: 0}", "data.cutmix=0.5", "data.statistics_images=8",
    )  # fmt: skip
    sizes = []

    def trainer(name):
        run = config(tmp_path / name, *options)
        made = Trainer(run, training_set(run), Augmentation(roll=2, pitch=2, camera=0.5))
        made.network.register_forward_pre_hook(
            lambda network, images: sizes.append(tuple(images[0].shape)) if network.training else None
        )
        return made

    def interrupt(progress):
        if progress.iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)

    whole = trainer("whole")
    whole.fit()
    assert sorted(set(sizes)) == [(2, 3, 64, 64), (2, 3, *SIZE)]
    assert {tuple(batch.shape[-2:]) for batch in whole._statistics_batches(64)} == {(64, 64), SIZE}
    with pytest.raises(KeyboardInterrupt):
        trainer("parts").fit(on_step=interrupt)
    trainer("parts").fit(resume=True)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all((expected[name] == found[name]).all() for name in expected)


def test_a_finished_run_is_what_the_node_loads(tmp_path):
    path = Trainer(config(tmp_path), Waves()).fit()
    checkpoint = Checkpoint(path)
    assert checkpoint.description.trained
    assert checkpoint.description.options == {"etm": "etm#"}
    engine = DepthEngine.load(checkpoint, backend="torch")
    assert engine.framing.network_size == SIZE
    assert (tmp_path / "config.yaml").is_file()
    assert load_config(tmp_path / "config.yaml", []) == config(tmp_path)
    assert list(tmp_path.glob("events.out.tfevents*"))
    x = torch.randn(1, 3, *SIZE)
    assert load_network(checkpoint)(x).std() > 0


def test_training_goes_on_from_the_shipped_checkpoint(tmp_path):
    shipped = Checkpoint()
    trainer = Trainer(config(tmp_path, f"model.start={shipped.path}"), Waves())
    x = Waves()[3].frames[1:2]
    with torch.no_grad():
        answer, expected = trainer.network.eval()(x).disparities[0], load_network(shipped)(x)
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-5)
    trainer.fit()
    description = Checkpoint(tmp_path / CHECKPOINT).description
    assert description.form == "training"
    assert description.provenance["licence"] == shipped.description.provenance["licence"]
    assert description.provenance["start"].startswith("smalldepth ")
    with pytest.raises(CheckpointError, match="a smalldepth, not a smalldepth_k5"):
        Trainer(config(tmp_path / "k5", f"model.start={shipped.path}", "model.name=smalldepth_k5"), Waves())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tmp_path):
    with pytest.raises(TrainingError, match=r"not finite at iteration \d.*cr\.photometric.*waves 5.*bad_batch_\d\.pt"):
        Trainer(config(tmp_path, "log.save_every=1"), Waves(spoil=5)).fit()
    (kept,) = tmp_path.glob("bad_batch_*.pt")
    batch = torch.load(kept, weights_only=True)
    assert torch.isnan(batch["frames"]).any()
    assert "waves 5" in batch["name"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    trainer = Trainer(config(tmp_path), Waves())
    trainer.fit()
    before = (tmp_path / CHECKPOINT).read_bytes(), (tmp_path / STATE).read_bytes()

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fadepth_core.runtime.checkpoint.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    assert before == ((tmp_path / CHECKPOINT).read_bytes(), (tmp_path / STATE).read_bytes())


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(TrainingError, match=r"state\.pt: nothing to resume from"):
        Trainer(config(tmp_path), Waves()).fit(resume=True)
    (tmp_path / STATE).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"state\.pt: not the state of this run"):
        Trainer(config(tmp_path), Waves()).fit(resume=True)


def test_a_new_run_does_not_write_over_another(tmp_path):
    Trainer(config(tmp_path, "schedule.iterations=1"), Waves()).fit()
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(TrainingError, match="holds a run already; --resume goes on with it"):
        Trainer(config(tmp_path, "schedule.iterations=1", "seed=3"), Waves()).fit()
    assert (tmp_path / STATE).read_bytes() == before


def test_accumulation_is_one_larger_batch(tmp_path):
    """Two batches of one equal a batch of two, where nothing depends on the batch (no BatchNorm statistics, no drop)."""
    seen = []
    for name, overrides in (("a", ["data.batch_size=1", "accumulate=2"]), ("b", ["data.batch_size=2"])):
        options = [
            "model.residual_drop=0",
            "model.etm=null",
            "loss.levels=[cr]",
            "pose.network=known",
            "loss.depth=1.0",
        ]
        options += [f"loss.base.{term}=0" for term in ("photometric", "structure", "feature", "smoothness")]
        trainer = Trainer(config(tmp_path / name, *options, *overrides, "schedule.iterations=1"), Waves())
        for module in trainer.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module
                module.training = False
        trainer.fit()
        seen.append([p.grad.clone() for p in trainer.network.parameters()])
    for a, b in zip(*seen, strict=True):
        # Convolutions of other batch sizes sum in another order.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_weight_decay_spares_scales_and_shifts(tmp_path):
    network = Trainer(config(tmp_path), Waves()).network
    decayed, plain = parameter_groups(network, 1e-3, 0.1)
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}
    assert all(".gamma" not in names[id(p)] and ".bn" not in names[id(p)] for p in decayed["params"])
    assert any(".gamma" in names[id(p)] for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


# ------------------------------------------------------------------------------------------------------------ BatchNorm


def spread_behind_drop(network, images):
    """Variance of what reaches the BatchNorms behind dropped branches at inference, over the one they divide by; median."""
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


def test_what_is_saved_is_normalised_for_inference(tmp_path):
    """With drop on, survivors are multiplied by 1 / (1 - p), and so is the spread that BatchNorm's running average holds."""
    options = ["model.residual_drop=0.9", "model.constant_drop=true", "loss.levels=[cr]", "schedule.iterations=20"]
    trainer = Trainer(config(tmp_path, *options), Waves())
    trainer.fit()
    (images,) = trainer._statistics_batches(64)
    saved = load_training_network(Checkpoint(tmp_path / CHECKPOINT))
    assert spread_behind_drop(saved, images) == pytest.approx(1, abs=0.1)
    assert spread_behind_drop(trainer.network, images) < 0.7, "else this test could not fail"


class TwoLooks(Waves):
    """A mixture in order: dark pictures, then bright ones."""

    def __len__(self):
        return 160

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        factor = 0.3 if index < 80 else 1.0
        return replace(sample, frames=factor * sample.frames)


def test_a_start_from_a_mixture_answers_as_its_checkpoint(tmp_path, monkeypatch):
    """Whatever the order of the data: statistics are those of all images, not of one data set in each batch."""
    monkeypatch.setattr(trainer_module, "_STATISTICS_PIXELS", 16 * SIZE[0] * SIZE[1])
    shipped = Checkpoint()
    trainer = Trainer(config(tmp_path, f"model.start={shipped.path}", "data.statistics_images=128"), TwoLooks())
    (images,) = trainer._statistics_batches(128)
    with torch.no_grad():
        expected, found = load_network(shipped)(images), trainer.settled()(images).disparities[0]
    assert float((found / expected).log().abs().mean()) < 0.05


def test_frozen_statistics_are_those_of_all_images_and_stay(tmp_path):
    """From half of the run on training normalises as deployment does; resumed, too."""

    def run(name, *options):
        return Trainer(config(tmp_path / name, "loss.levels=[cr]", "model.freeze_statistics=0.5", *options), Waves())

    def statistics(trainer):
        state = trainer.network.state_dict()
        return {key: value.clone() for key, value in state.items() if "running" in key}

    seen = []
    trainer = run("whole")
    trainer.fit(on_step=lambda progress: seen.append(statistics(trainer)))
    moved = [any(not torch.equal(a[key], b[key]) for key in a) for a, b in pairwise(seen)]
    assert moved == [True, True, True, False, False], "recomputed with the fourth step, then left alone"
    last, settled = seen[-1], trainer.settled().state_dict()
    assert all(torch.equal(settled[key], value) for key, value in last.items())

    def interrupt(progress):
        if progress.iteration == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run("parts").fit(on_step=interrupt)
    run("parts").fit(resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_measuring_and_saving_leave_training_as_it_is(tmp_path):
    trainer = Trainer(config(tmp_path, "loss.levels=[cr]"), Waves())
    trainer.fit()
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer._settled = None
    settled = trainer.settled()
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
    assert trainer.settled() is settled, "computed once an iteration"
    assert not settled.training
    state = torch.load(tmp_path / STATE, weights_only=True)["network"]
    saved = weights(tmp_path)
    assert any((saved[name] != state[name].numpy()).any() for name in saved if name.endswith("running_var"))
    assert all(
        (saved[name] == state[name].numpy()).all() for name in saved if ".bn." not in name and "_bn." not in name
    )


def test_recomputed_statistics_are_those_of_all_images():
    """Mean and variance of the whole set, also where batches differ in size and in mean."""
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.9))
    images = torch.randn(7, 3, 4, 5, dtype=torch.float64) * torch.arange(1, 8).view(7, 1, 1, 1)
    recompute_batch_norm(network.double().train(), images.split(3))
    variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    torch.testing.assert_close(network[0].running_mean, mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(network[0].running_var, variance, atol=1e-6, rtol=1e-5)
    assert not network.training


# ------------------------------------------------------------------------------------------- precision, processes, random numbers


def movement(output, precision, monkeypatch):
    """How far the depth network's parameters move in four steps."""
    monkeypatch.setattr(trainer_module, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**20))
    options = [
        "loss.levels=[cr]",
        "pose.network=known",
        "model.residual_drop=0",
        f"precision={precision}",
        "schedule.iterations=4",
    ]
    trainer = Trainer(config(output, *options), Waves())
    start = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    trainer.fit()
    pairs = zip(trainer.network.parameters(), start, strict=True)
    return float(torch.stack([(parameter.detach() - before).norm() for parameter, before in pairs]).norm())


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_half_precision_moves_the_parameters_as_far(tmp_path, precision, monkeypatch):
    """Gradients are clipped after they are unscaled; else AdamW sees gradients of the size of its ε."""
    single = movement(tmp_path / "single", "32-true", monkeypatch)
    assert movement(tmp_path / "half", precision, monkeypatch) == pytest.approx(single, rel=0.2)


def test_the_gradient_scale_survives_a_resume(tmp_path):
    options = ["precision=16-mixed", "loss.levels=[cr]"]
    trainer = Trainer(config(tmp_path, *options, "schedule.iterations=1"), Waves())
    trainer.fit()
    trainer.scaler.update(512.0)
    trainer.save()
    resumed = Trainer(config(tmp_path, *options, "schedule.iterations=1"), Waves())
    resumed.fit(resume=True)
    assert resumed.scaler.get_scale() == 512.0


def test_every_step_of_every_process_draws_its_own_random_numbers(tmp_path, monkeypatch):
    seeds = {step_seed(seed, rank, iteration) for seed in (0, 1) for rank in range(4) for iteration in range(500)}
    assert len(seeds) == 2 * 4 * 500
    drawn = {}
    for rank in (0, 1):
        monkeypatch.setattr(Fabric, "global_rank", rank)
        options = ["loss.levels=[cr]", "schedule.iterations=2"]
        trainer = Trainer(config(tmp_path / str(rank), *options), Waves())
        trainer.fit(
            on_step=lambda progress, rank=rank: drawn.update({(rank, progress.iteration): torch.initial_seed()})
        )
    assert len(set(drawn.values())) == 4


# -------------------------------------------------------------------------------------------------------------- validation


def test_best_and_last_checkpoint_are_kept(tmp_path):
    """By the lowest AbsRel of a validation, across a resume; the untrained network does not count."""
    values = iter([0.1, 0.5, 0.3, 0.4])

    def measure(network, pose_net):
        assert not network.training
        assert not pose_net.training
        return {"abs_rel": next(values)}

    options = ["loss.levels=[cr]", "log.evaluate_every=1"]
    trainer = Trainer(config(tmp_path, *options, "schedule.iterations=2"), Waves(), measure=measure)
    trainer.fit()
    assert trainer.best == {"iteration": 2, "abs_rel": 0.3}
    best = (tmp_path / BEST).read_bytes()
    assert Checkpoint(tmp_path / BEST).description.provenance["iterations"] == "2"
    resumed = Trainer(config(tmp_path, *options, "schedule.iterations=3"), Waves(), measure=measure)
    resumed.fit(resume=True)
    assert resumed.best == {"iteration": 2, "abs_rel": 0.3}
    assert (tmp_path / BEST).read_bytes() == best
    assert Checkpoint(tmp_path / CHECKPOINT).description.provenance["iterations"] == "3"
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert {
        "validation/abs_rel",
        "optimizer/learning_rate",
        "optimizer/gradient_norm_network",
        "optimizer/gradient_norm_pose_net",
        "speed/hours_left",
    } <= set(tags)


def test_a_state_of_another_run_is_refused_with_the_reason(tmp_path):
    options = ["loss.levels=[cr]", "schedule.iterations=1"]
    Trainer(config(tmp_path, *options), Waves()).fit()
    for override, message in (("precision=bf16-mixed", None), ("precision=16-mixed", "saved with another precision"),
                              ("pose.network=known", "saved with another pose.network")):  # fmt: skip
        resumed = Trainer(config(tmp_path, *options, override), Waves())
        if message is None:
            resumed.fit(resume=True)
        else:
            with pytest.raises(TrainingError, match=message):
                resumed.fit(resume=True)
    state = torch.load(tmp_path / STATE, weights_only=True)
    del state["best"]
    torch.save(state, tmp_path / STATE)
    with pytest.raises(TrainingError, match="it lacks best; an older version wrote it, start a new run"):
        Trainer(config(tmp_path, *options), Waves()).fit(resume=True)


def test_a_resumed_run_takes_a_changed_learning_rate(tmp_path):
    options = ["loss.levels=[cr]", "schedule.warmup=0", "schedule.final=1.0"]
    Trainer(config(tmp_path, *options, "schedule.iterations=1"), Waves()).fit()
    resumed = Trainer(config(tmp_path, *options, "schedule.iterations=2", "optimizer.lr=3e-5"), Waves())
    resumed.fit(resume=True)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(3e-5)


def test_hyper_parameters_of_the_etm_come_from_the_configuration(tmp_path):
    """And travel with the checkpoint (Table VII)."""
    settings = "model.etm={branch_drop: 0.2, element_drop: 0.5, dropconv_scale: 1.5}"
    trainer = Trainer(config(tmp_path, settings, "schedule.iterations=1", "loss.levels=[cr]"), Waves())
    trainer.fit()
    for network in (trainer.network, load_training_network(Checkpoint(tmp_path / CHECKPOINT))):
        etm = network.ups[0].low.conv.config
        assert (etm.branch_drop, etm.element_drop, etm.dropconv_scale) == (0.2, 0.5, 1.5)
    assert load_config(tmp_path / "config.yaml", []) == trainer.config


# --------------------------------------------------------------------------------------------------- schedules, configuration


def test_learning_rate_warms_up_and_falls_to_its_end():
    factors = [learning_rate_factor(i, 100, 10, 0.01) for i in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.505)
    assert factors[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def take(sampler, n):
    return [key for key, _ in zip(sampler, range(n), strict=False)]


def test_keys_follow_from_the_position():
    whole = take(EndlessSampler(7, seed=3), 40)
    assert take(EndlessSampler(7, seed=3, start=25), 15) == whole[25:]
    for epoch in range(5):
        assert sorted(index for index, _ in whole[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert [index for index, _ in whole[:7]] != [index for index, _ in whole[7:14]]
    assert len({draw for _, draw in whole}) == 40
    assert take(EndlessSampler(7, seed=4), 40) != whole
    parts = [take(EndlessSampler(7, seed=3, offset=rank, stride=2), 20) for rank in (0, 1)]
    assert [key for pair in zip(*parts, strict=True) for key in pair] == whole


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_configurations_that_ship_can_be_read(path, tmp_path):
    values = read_yaml(path)
    for changes in values.get("variants", {"": []}).values():
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values.get("run", values)))
        load_config(tmp_path / "run.yaml", changes)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_configurations_measure_on_scenes_that_they_do_not_train_on(path):
    """Rendered scenes follow from preset and seed."""
    run = read_yaml(path)
    run = run.get("run", run)

    def scenes(source, seed):
        return (source.get("preset", "driving"), source.get("seed", seed))

    trained = {scenes(source, 0) for source in run["data"]["train"] if source["name"] == "synthetic"}
    measured = [run[section]["data"] for section in ("validation", "evaluation") if section in run]
    measured = [scenes(source, 1) for source in measured if source["name"] == "synthetic"]
    assert not trained & set(measured)
    assert len(set(measured)) == len(measured), "validation and evaluation"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.rescale_to_cr=true", "loss.levels=[cr, flip]"], "there is neither level lr nor level hr"),
        (["loss.speed=0.1", "pose.network=known"], "with known poses there is no motion to correct"),
        (["pose.weights=x.pth", "pose.network=small"], "weights are for fbnetv3_b, not for small"),
        (["model.name=resnet18", "model.weights=x.pth", "model.start=y.safetensors"], "start replaces all weights"),
    ],
)
def test_settings_without_effect_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


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
        ("lr", "--set lr: expected key=value"),
        ("seed.x=1", "--set seed.x=1: 'seed' holds 3, it has no keys below it"),
    ],
)
def test_wrong_settings_are_refused_by_name(override, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace("[", r"\[")):
        load_config(None, ["seed=3", override])


def test_settings_are_read_as_people_write_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optimizer: {lr: 3.0e-4}\nloss: {levels: {cr: {}, flip: {feature: 0}}}\n")
    made = load_config(path, ["optimizer.pose_lr=1e-5", "optimizer.betas=[0.8, 0.9]", "optimizer.betas.1=0.99"])
    assert (made.optimizer.lr, made.optimizer.pose_lr) == (3e-4, 1e-5)
    flip = made.loss.levels["flip"]
    assert (flip.loss, flip.feature, flip.disparity) == (1.0, 0.0, 0.5), "the rest is the paper's"
    assert made.optimizer.betas == (0.8, 0.99)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config(tmp_path / "none.yaml", [])
