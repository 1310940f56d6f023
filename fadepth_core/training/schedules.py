"""How the learning rate and the order of the data follow from the iteration number alone, so that a resumed run goes on as if
nothing had happened."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def learning_rate_factor(iteration: int, iterations: int, warmup: int, final: float) -> float:
    """Share of the full learning rate at `iteration` of `iterations`: linear warm-up, then a cosine down to `final`."""
    if iteration < warmup:
        return (iteration + 1) / warmup
    progress = min(1.0, (iteration - warmup) / max(1, iterations - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


class EndlessSampler(Sampler[tuple[int, int]]):
    """Endless (index, draw) keys: a new permutation every epoch, and a number that seeds the sample's augmentation.

    Everything follows from `seed` and the position, so a run that starts at position n sees what an uninterrupted one saw
    from there on, whatever the number of loader processes. Several processes take every `stride`-th key.

    Args:
        length: samples in the data set.
        start: position of the first key.
        offset, stride: which part of the keys is this process's.
    """

    def __init__(self, length: int, seed: int, start: int = 0, offset: int = 0, stride: int = 1):
        self._length, self._seed, self._start, self._offset, self._stride = length, seed, start, offset, stride

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position, epoch, order = self._start * self._stride + self._offset, -1, None
        while True:
            if position // self._length != epoch:
                epoch = position // self._length
                generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
                order = torch.randperm(self._length, generator=generator)
            yield int(order[position % self._length]), self._seed * 1_000_003 + position
            position += self._stride
