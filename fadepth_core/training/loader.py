"""Makes endless batches of a data set: order of the samples, augmentation, loader processes.

The order and the random numbers depend only on the seed and the position. So a resumed run gets the batches that an
uninterrupted run would have got.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Hashable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fadepth_core.common.color import to_bytes
from fadepth_core.common.sample import Sample, SampleDataset, collate, evenly_spread
from fadepth_core.data.augment import cutmix_strip
from fadepth_core.data.focal import at_focal_length
from fadepth_core.data.registry import Mixture
from fadepth_core.geometry import area_average
from fadepth_core.training.config import DataConfig, TrainConfig

#: Changes an unbatched sample with random numbers of a generator.
Augment = Callable[[Sample, torch.Generator], Sample]


def batches(
    dataset: SampleDataset, augment: Augment | None, config: TrainConfig, start: int, rank: int, world: int
) -> Iterator[Sample]:
    """Endless batches of one process, from the `start`-th on. All samples of a batch have one size.

    Args:
        dataset: unaugmented samples by index. If `config.data` has several sizes, `dataset.part(index)` is the number of the
            data set that a sample comes from.
        augment: None: samples are not augmented.
        rank, world: number of this process and number of processes. Each has its own part of the samples.
    """
    size, sizes = config.data.batch_size, config.data.sizes
    if len(set(sizes)) == 1:
        order: dict[str, Any] = {
            "batch_size": size,
            "sampler": EndlessSampler(len(dataset), config.seed, start * size, rank, world),
        }
    else:
        mixture = cast(Mixture, dataset)
        keys = EndlessSampler(len(dataset), config.seed, 0, rank, world)
        order = {"batch_sampler": BatchesOfOneKind(keys, size, lambda index: sizes[mixture.part(index)], start)}
    return iter(
        DataLoader(
            AugmentedDataset(dataset, augment, config.data, config.frame_factor),
            **order,
            num_workers=config.data.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=config.data.workers > 0,
            worker_init_fn=start_worker,
            # A loader draws a seed when it starts. From torch's global generator, that would change a resumed run's random
            # numbers, so the loader gets its own generator.
            generator=torch.Generator(),
        )
    )


def statistics_images(dataset: SampleDataset, augment: Augment | None, config: TrainConfig) -> list[Tensor]:
    """Augmented middle frames over which BatchNorm's statistics are computed, the same in every run.

    They are spread evenly over the data set, then shuffled. Without shuffling, a batch would contain only one clip, or only one
    data set of a mixture, and would be normalised by its statistics instead of those of all images.

    Returns:
        uint8 [N, 3, H, W] for each size of level cr.
    """
    indices = evenly_spread(len(dataset), config.data.statistics_images)
    indices = np.random.default_rng(0).permutation(indices).tolist()
    loader = DataLoader(
        AugmentedDataset(dataset, augment, config.data, config.frame_factor),
        batch_size=None,
        sampler=[(index, draw) for draw, index in enumerate(indices)],
        num_workers=config.data.workers,
        collate_fn=cast(Any, _middle_frame),  # called with a sample: `batch_size` is None
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    by_size: dict[tuple[int, int], list[Tensor]] = {}
    for frame in loader:
        height, width = frame.shape[-2:]
        size = (height // config.frame_factor, width // config.frame_factor)
        by_size.setdefault(size, []).append(to_bytes(area_average(frame, size)))
    return [torch.cat(images) for images in by_size.values()]


class AugmentedDataset(Dataset):
    """A data set with augmentation, CutMix and the canonical focal length applied to its samples.

    Keys are (index, draw): the number `draw` seeds everything random about the sample.

    Args:
        factor: size of the frames as a multiple of level cr's.
    """

    def __init__(self, dataset: SampleDataset, augment: Augment | None, config: DataConfig, factor: int):
        self._dataset, self._augment = dataset, augment
        self._focal, self._cutmix, self._factor = config.focal_length, config.cutmix, factor

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, draw = key
        generator = torch.Generator().manual_seed(draw)
        sample = self._sample(index, generator)
        if self._cutmix and torch.rand((), generator=generator) < self._cutmix:
            other = self._sample(int(torch.randint(len(self._dataset), (), generator=generator)), generator)
            if other.frames.shape == sample.frames.shape:
                sample = cutmix_strip(sample, other, generator)
        return sample

    def _sample(self, index: int, generator: torch.Generator) -> Sample:
        sample = self._dataset[index]
        if self._augment is not None:
            sample = self._augment(sample, generator)
        if self._focal is None:
            return sample
        # After the augmentation, because it changes the focal length.
        return at_focal_length(sample, self._focal, sample.frames.shape[-1] // self._factor)


class EndlessSampler(Sampler[tuple[int, int]]):
    """Endless keys (index, draw): a new permutation of the samples in every epoch, and a seed for each sample's augmentation.

    Keys follow from `seed` and the position alone, not from the number of loader processes.

    Args:
        length: number of samples in the data set.
        start: position of the first key.
        offset, stride: a training process takes every `stride`-th key, from the `offset`-th on.
    """

    def __init__(self, length: int, seed: int, start: int = 0, offset: int = 0, stride: int = 1):
        self._length, self._seed, self._start, self._offset, self._stride = length, seed, start, offset, stride

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position, epoch = self._start * self._stride + self._offset, -1
        order = torch.empty(0)
        while True:
            if position // self._length != epoch:
                epoch = position // self._length
                generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
                order = torch.randperm(self._length, generator=generator)
            yield int(order[position % self._length]), self._seed * 1_000_003 + position
            position += self._stride


class BatchesOfOneKind(Sampler[list[tuple[int, int]]]):
    """Endless batches of keys of an `EndlessSampler`, each of samples of one kind, e.g. of one size.

    A batch is yielded as soon as it is complete, so the kinds alternate as in the order of the keys.

    Args:
        keys: from the first position on.
        size: number of keys in a batch.
        kind: kind of a sample, by its index.
        skip: number of batches to leave out at the start, for a resumed run.
    """

    def __init__(self, keys: EndlessSampler, size: int, kind: Callable[[int], Hashable], skip: int = 0):
        self._keys, self._size, self._kind, self._skip = keys, size, kind, skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        incomplete: dict[Hashable, list[tuple[int, int]]] = {}
        skip = self._skip
        for key in self._keys:
            kind = self._kind(key[0])
            batch = incomplete.setdefault(kind, [])
            batch.append(key)
            if len(batch) == self._size:
                del incomplete[kind]
                if skip:
                    skip -= 1
                else:
                    yield batch


def start_worker(_number: int) -> None:
    """Set up a loader process: one thread, and Ctrl-C ignored, because the training process ends its workers itself."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _middle_frame(sample: Sample) -> Tensor:
    return sample.middle[None]
