"""Learning rate and random seed of each step."""

from __future__ import annotations

import time
from itertools import count, pairwise
from types import SimpleNamespace

import pytest

from fadepth_core.training import trainer as trainer_module
from fadepth_core.training.config import ScheduleConfig
from fadepth_core.training.schedules import Schedule, learning_rate_factor, step_seed
from fadepth_core.training.trainer import Trainer
from short_runs import Waves, short_run


def test_learning_rate_warms_up_and_falls_to_its_end():
    factors = [learning_rate_factor(i, 100, 10, 0.01) for i in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.505)
    assert factors[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_every_step_of_every_process_has_its_own_seed():
    seeds = {step_seed(seed, rank, iteration) for seed in (0, 1) for rank in range(4) for iteration in range(500)}
    assert len(seeds) == 2 * 4 * 500


def test_a_run_of_minutes_plans_its_iterations_from_its_speed():
    schedule = Schedule(ScheduleConfig(minutes=2, iterations=7))
    schedule.update(10, 30.0)
    assert schedule.iterations == 40
    assert not schedule.finished(10)
    schedule.update(20, 90.0)  # slower now: a third of the time is left for a third of the steps
    assert schedule.iterations == 27
    schedule.update(25, 120.5)
    assert schedule.finished(25)
    assert schedule.iterations == 25


def test_training_for_minutes_ends_in_time_with_the_last_learning_rate(tmp_path, monkeypatch):
    clock = count(0, 10)  # each step takes 10 s
    fake = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr(trainer_module, "time", fake)
    trainer = Trainer(short_run(tmp_path, "loss.levels=[cr]", "schedule.minutes=1", "schedule.warmup=1"), Waves())
    rates = []
    trainer.fit(on_step=lambda progress: rates.append(progress.learning_rate / trainer.config.optimizer.lr))
    assert trainer.iteration == 6
    assert rates[0] == 1.0
    assert all(a > b for a, b in pairwise(rates[1:]))
    assert rates[-1] < 0.15

    again = Trainer(short_run(tmp_path, "loss.levels=[cr]", "schedule.minutes=1.5", "schedule.warmup=1"), Waves())
    again.fit(resume=True)
    assert again.iteration == 9, "the time of the first run counts"
