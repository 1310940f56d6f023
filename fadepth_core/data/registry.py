"""Data sets by name, as configurations speak of them, and mixtures of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from itertools import accumulate

import torch
from torch.utils.data import Dataset

from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import LabelledImage, Sample

#: name -> module:class. A module is imported when its data set is asked for: each has requirements of its own.
TRAINING_SETS = {
    "kitti": "fadepth_core.data.kitti:KittiDataset",
    "ddad": "fadepth_core.data.ddad:DdadDataset",
    "video": "fadepth_core.data.video:VideoDataset",
    "pictures": "fadepth_core.data.pictures:PictureDataset",
    "synthetic": "fadepth_core.synthetic.dataset:SyntheticDataset",
    "assets": "fadepth_core.synthetic.assets.dataset:AssetsDataset",
}
TEST_SETS = {
    "kitti": "fadepth_core.data.kitti:KittiTest",
    "ddad": "fadepth_core.data.ddad:DdadTest",
    "folder": "fadepth_core.data.folder:FolderTest",
    "synthetic": "fadepth_core.synthetic.dataset:SyntheticTest",
}


def build_dataset(name: str, size: tuple[int, int], **options) -> Dataset:
    """A training set.

    Args:
        name: one of `TRAINING_SETS`.
        size: height and width of its frames, pixels.
        options: what its class takes.

    Raises:
        DataError: no such data set, an option it does not have, or what the data set itself finds wrong.
    """
    return _construct(name, TRAINING_SETS, {"size": size, **options})


def build_test_set(name: str, **options) -> Sequence[LabelledImage]:
    """A test set, one of `TEST_SETS`; raises as `build_dataset` does."""
    return _construct(name, TEST_SETS, options)


def _construct(name: str, known: dict[str, str], options: dict):
    if name not in known:
        raise DataError(f"no data set '{name}'; there are {', '.join(known)}")
    module, _, attribute = known[name].partition(":")
    made = getattr(import_module(module), attribute)
    try:
        inspect.signature(made).bind(**options)
    except TypeError as error:
        options = ", ".join(inspect.signature(made).parameters)
        raise DataError(f"data set '{name}': {error}; it takes {options}") from error
    try:
        return made(**options)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"data set '{name}': {error}") from error


class Mixture(Dataset):
    """Several data sets as one, in which each has its share of the samples.

    An epoch is as long as it takes to see every sample of every set at least once; sets whose share is large for their
    size are gone through several times.

    Args:
        datasets: none empty.
        shares: relative, positive, one for each.
    """

    def __init__(self, datasets: Sequence[Dataset], shares: Sequence[float]):
        if not datasets or len(datasets) != len(shares) or min(shares) <= 0:
            raise ValueError(f"a mixture needs data sets and one positive share for each, got {list(shares)}")
        lengths = [len(dataset) for dataset in datasets]
        whole = max(length / share for length, share in zip(lengths, shares, strict=True))
        counts = [max(length, round(share * whole)) for length, share in zip(lengths, shares, strict=True)]
        self._datasets, self._ends = list(datasets), list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        number, item = self._find(index)
        return self._datasets[number][item]

    def part(self, index: int) -> int:
        """The number of the data set that a sample comes from."""
        return self._find(index)[0]

    def _find(self, index: int) -> tuple[int, int]:
        start = 0
        for number, (dataset, end) in enumerate(zip(self._datasets, self._ends, strict=True)):
            if index < end:
                return number, (index - start) % len(dataset)
            start = end
        raise IndexError(index)


class _Wrapped(Dataset):
    """A data set in place of another one of the same length."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)


class WithPlaceholders(_Wrapped):
    """A data set whose samples have depth, its sharpness and speed: "unknown" (0, NaN) where it knows none.

    In a mixture, some batches would otherwise have them and others not.
    """

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        return replace(
            sample,
            depth=torch.zeros(sample.frames.shape[-2:]) if sample.depth is None else sample.depth,
            speed=torch.tensor(torch.nan) if sample.speed is None else sample.speed,
            sharp=torch.tensor(True) if sample.sharp is None else sample.sharp,
        )


class MiddleFrames(_Wrapped):
    """A data set without the frames before and after the middle one, for training that compares no frames: a third of the
    work."""

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        return replace(sample, frames=sample.middle[None], poses=None)


class InMemory(_Wrapped):
    """Keeps what it has loaded: for small sets that are slow to load or render, and gone through often."""

    def __init__(self, dataset: Dataset):
        super().__init__(dataset)
        self._kept: dict[int, Sample] = {}

    def __getitem__(self, index: int) -> Sample:
        if index not in self._kept:
            self._kept[index] = self._dataset[index]
        return self._kept[index]
