"""Learning rate and random seed of an optimiser step, from its iteration number alone.

They need no saved state, so a resumed run continues like an uninterrupted one (docs/method.md, section 8).
"""

from __future__ import annotations

import math

import numpy as np


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
