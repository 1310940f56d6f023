"""Length of a run, learning rate and random seed of an optimiser step.

Without a limit in minutes they follow from the iteration number alone: they need no saved state, so a resumed run continues like
an uninterrupted one (docs/method.md, section 8).
"""

from __future__ import annotations

import math

import numpy as np

from fadepth_core.training.config import ScheduleConfig


class Schedule:
    """The planned number of iterations of a run, and whether it has ended.

    Attributes:
        iterations: the configured number, or with `minutes` the number that the time allows at the speed so far.
        seconds: time of the finished steps, including the validations between them.
    """

    def __init__(self, config: ScheduleConfig):
        self._limit = None if config.minutes is None else 60 * config.minutes
        self.iterations = config.iterations
        self.seconds = 0.0

    @property
    def follows_time(self) -> bool:
        """Whether the run ends after a time and not after a number of iterations."""
        return self._limit is not None

    def update(self, iteration: int, seconds: float) -> None:
        """State that `iteration` steps are finished after `seconds` of training."""
        self.seconds = seconds
        if self._limit is not None and iteration > 0:
            left = max(0.0, self._limit - seconds)
            self.iterations = iteration + math.ceil(left * iteration / max(seconds, 1e-9))

    def finished(self, iteration: int) -> bool:
        """Whether the run ends after `iteration` steps."""
        if self._limit is not None:
            return iteration > 0 and self.seconds >= self._limit
        return iteration >= self.iterations


def learning_rate_factor(iteration: int, iterations: int, warmup: int, final: float) -> float:
    """Share of the full learning rate at `iteration` of `iterations`: linear warm-up, then a cosine down to `final`."""
    if iteration < warmup:
        return (iteration + 1) / warmup
    progress = min(1.0, (iteration - warmup) / max(1, iterations - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def step_seed(seed: int, rank: int, iteration: int) -> int:
    """Seed of everything random in one optimiser step of one process: drop masks, ETM's masks, colours of level color.

    Different for all processes and iterations.
    """
    return int(np.random.SeedSequence((seed, rank, iteration)).generate_state(1)[0])
