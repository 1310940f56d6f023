"""A run's folder: what is saved, what a resumed run accepts, and that no file is lost."""

from __future__ import annotations

import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.training.run_folder import BEST, CHECKPOINT, STATE, TrainingError
from fadepth_core.training.trainer import Trainer
from short_runs import Waves, short_run

ONE_STEP = ("loss.levels=[cr]", "schedule.iterations=1")


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """The folder of a run of one step."""
    folder = tmp_path_factory.mktemp("one_step")
    Trainer(short_run(folder, *ONE_STEP), Waves()).fit()
    return folder


@pytest.fixture
def run_folder(one_step, tmp_path):
    """A copy of the folder `one_step`."""
    return shutil.copytree(one_step, tmp_path / "run")


def resumed(folder, *options):
    """The run in `folder`, resumed with other options."""
    trainer = Trainer(short_run(folder, *ONE_STEP, *options), Waves())
    trainer.fit(resume=True)
    return trainer


def test_resuming_without_a_usable_state_is_rejected(tmp_path):
    with pytest.raises(TrainingError, match=r"state\.pt: nothing to resume from"):
        resumed(tmp_path)
    (tmp_path / STATE).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"state\.pt: not the state of this run"):
        resumed(tmp_path)


def test_a_new_run_does_not_overwrite_another_one(run_folder):
    before = (run_folder / STATE).read_bytes()
    with pytest.raises(TrainingError, match="holds a run already; --resume continues it"):
        Trainer(short_run(run_folder, *ONE_STEP, "seed=3"), Waves()).fit()
    assert (run_folder / STATE).read_bytes() == before


def test_a_full_disk_leaves_the_previous_checkpoint(run_folder, monkeypatch):
    trainer = resumed(run_folder)
    before = (run_folder / CHECKPOINT).read_bytes(), (run_folder / STATE).read_bytes()

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fadepth_core.runtime.checkpoint.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    assert before == ((run_folder / CHECKPOINT).read_bytes(), (run_folder / STATE).read_bytes())


def test_the_state_of_another_run_is_rejected_with_the_reason(run_folder):
    resumed(run_folder, "precision=bf16-mixed")
    for option, message in (
        ("precision=16-mixed", "saved with another precision"),
        ("pose.network=known", "saved with another pose.network"),
    ):
        with pytest.raises(TrainingError, match=message):
            resumed(run_folder, option)
    state = torch.load(run_folder / STATE, weights_only=True)
    del state["best"]
    torch.save(state, run_folder / STATE)
    with pytest.raises(TrainingError, match="it lacks best; an older version wrote it, start a new run"):
        resumed(run_folder)


def test_a_resumed_run_takes_a_changed_learning_rate(run_folder):
    options = ("schedule.warmup=0", "schedule.final=1.0", "schedule.iterations=2", "optimizer.lr=3e-5")
    assert resumed(run_folder, *options).optimizer.param_groups[0]["lr"] == pytest.approx(3e-5)


def test_measuring_and_saving_do_not_change_the_trained_network(run_folder):
    trainer = resumed(run_folder)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    copied = trainer.evaluation_copy()
    assert trainer.evaluation_copy() is copied, "computed once an iteration"
    assert not copied.training
    trainer.statistics.evaluation_copy(trainer.network, trainer.iteration + 1)  # computed again
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
    state = torch.load(run_folder / STATE, weights_only=True)["network"]
    saved = Checkpoint(run_folder / CHECKPOINT).weights
    assert any((saved[name] != state[name].numpy()).any() for name in saved if name.endswith("running_var"))
    assert all(
        (saved[name] == state[name].numpy()).all() for name in saved if ".bn." not in name and "_bn." not in name
    )


def test_best_and_last_checkpoint_are_kept(tmp_path):
    """The best has the lowest AbsRel in validation, across a resume. The untrained network does not count."""
    values = iter([0.1, 0.5, 0.3, 0.4])

    def measure(network, pose_net):
        assert not network.training
        assert not pose_net.training
        return {"abs_rel": next(values)}

    def trainer(iterations):
        options = ("loss.levels=[cr]", "log.evaluate_every=1", f"schedule.iterations={iterations}")
        return Trainer(short_run(tmp_path, *options), Waves(), measure=measure)

    first = trainer(2)
    first.fit()
    assert first.best == {"iteration": 2, "abs_rel": 0.3}
    best = (tmp_path / BEST).read_bytes()
    assert Checkpoint(tmp_path / BEST).description.provenance["iterations"] == "2"
    second = trainer(3)
    second.fit(resume=True)
    assert second.best == {"iteration": 2, "abs_rel": 0.3}
    assert (tmp_path / BEST).read_bytes() == best
    assert Checkpoint(tmp_path / CHECKPOINT).description.provenance["iterations"] == "3"
    curve = EventAccumulator(str(tmp_path)).Reload().Scalars("validation/abs_rel")
    assert [(point.step, round(point.value, 6)) for point in curve] == [(0, 0.1), (1, 0.5), (2, 0.3), (3, 0.4)]
