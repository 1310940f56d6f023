"""Learning rate and random seed of each step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fadepth_core.training.schedules import learning_rate_factor, step_seed


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
