"""How the learning rate and the order of the data follow from the iteration number alone, so that a resumed run goes on as if
nothing had happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator

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


class BatchesOfOneKind(Sampler[list[tuple[int, int]]]):
    """Endless batches of keys of an `EndlessSampler`, all of one kind: e.g. of one size, where data sets have several.

    Keys wait until a batch of their kind is full, so kinds alternate as the samples come.

    Args:
        keys: from the first position on.
        size: keys in a batch.
        kind: of a sample, by its index.
        skip: how many batches are left out at the start, for a run that goes on.
    """

    def __init__(self, keys: EndlessSampler, size: int, kind: Callable[[int], Hashable], skip: int = 0):
        self._keys, self._size, self._kind, self._skip = keys, size, kind, skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        waiting: dict[Hashable, list[tuple[int, int]]] = {}
        skip = self._skip
        for key in self._keys:
            kind = self._kind(key[0])
            batch = waiting.setdefault(kind, [])
            batch.append(key)
            if len(batch) == self._size:
                del waiting[kind]
                if skip:
                    skip -= 1
                else:
                    yield batch
