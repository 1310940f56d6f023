"""Build data sets by the names used in configurations, mix several data sets, and wrap them.

Training and evaluation build all their data sets here.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch.utils.data import Dataset

from fadepth_core.common.documents import shown
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.sample import LabelledImage, Sample, SampleDataset

#: name -> module:class. A module is imported only when its data set is built, because some need optional packages.
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


def build_dataset(name: str, size: tuple[int, int], **options: Any) -> SampleDataset:
    """Build a training set.

    Args:
        name: one of `TRAINING_SETS`.
        size: height and width of its frames, pixels.
        options: further arguments of its class.

    Raises:
        DataError: unknown data set or option, or an error of the data set itself.
    """
    return _construct(name, TRAINING_SETS, {"size": size, **options})


def build_test_set(name: str, **options: Any) -> Sequence[LabelledImage]:
    """Build a test set.

    Args:
        name: one of `TEST_SETS`.
        options: arguments of its class.

    Raises:
        DataError: unknown data set or option, or an error of the data set itself.
    """
    return _construct(name, TEST_SETS, options)


def _construct(name: str, known: dict[str, str], options: dict[str, Any]) -> Any:
    if name not in known:
        raise DataError(f"no data set '{name}'; there are {', '.join(known)}")
    module, _, attribute = known[name].partition(":")
    dataset_class = getattr(import_module(module), attribute)
    try:
        inspect.signature(dataset_class).bind(**options)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(dataset_class).parameters)
        raise DataError(f"data set '{name}': {error}; it takes {accepted}") from error
    hints = get_type_hints(dataset_class.__init__)
    checked = {key: _option(f"data set '{name}': {key}", value, hints.get(key, Any)) for key, value in options.items()}
    try:
        return dataset_class(**checked)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"data set '{name}': {error}") from error


def _option(what: str, value: Any, hint: Any) -> Any:
    """`value`, after a check that it has the type `hint` of an argument; text for a path becomes a path.

    Types besides numbers, text, paths, literals and tuples of them are checked by the data set itself.
    """
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for choice in choices:
        if _fits(value, choice):
            return user_path(value) if isinstance(value, str) and Path in choices and str not in choices else value
    names = [_type_name(choice) for choice in choices]
    raise DataError(f"{what} must be {' or '.join(names)}, got {shown(value)}")


def _fits(value: Any, hint: Any) -> bool:
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        return isinstance(value, str)
    if hint is Path:
        return isinstance(value, (str, Path))
    if get_origin(hint) is Literal:
        return not isinstance(value, (dict, list)) and value in get_args(hint)
    if get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        parts = get_args(hint)
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(parts)
            and all(_fits(item, part) for item, part in zip(value, parts, strict=True))
        )
    return True


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {len(get_args(hint))} numbers"
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
        type(None): "null",
    }
    return names.get(hint, str(hint))


class Mixture(Dataset):
    """Several data sets as one, each with a given share of the samples.

    An epoch contains every sample of every set at least once. The samples of a set that is small for its share are
    repeated.

    Args:
        datasets: none of them empty.
        shares: positive weights, one for each data set.

    Raises:
        ValueError: no data sets, not one share for each, or a share that is not positive.
    """

    def __init__(self, datasets: Sequence[SampleDataset], shares: Sequence[float]):
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
        """Index of the data set that sample `index` comes from."""
        return self._find(index)[0]

    def _find(self, index: int) -> tuple[int, int]:
        start = 0
        for number, (dataset, end) in enumerate(zip(self._datasets, self._ends, strict=True)):
            if index < end:
                return number, (index - start) % len(dataset)
            start = end
        raise IndexError(index)


class _Wrapped(Dataset):
    """Base class of the wrappers that change the samples of a data set, but not their number."""

    def __init__(self, dataset: SampleDataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)


class WithPlaceholders(_Wrapped):
    """A data set whose samples all have depth, sharpness and speed; missing ones become 0, true and NaN.

    Needed in a mixture: `collate` sets a field of the batch to None if one of its samples lacks the field.
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
    """Only the middle frame of each sample, for training without losses that compare frames: a third of the work."""

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        return replace(sample, frames=sample.middle[None], poses=None)


class InMemory(_Wrapped):
    """Keeps samples in memory once they are loaded, for small data sets that are slow to load or render."""

    def __init__(self, dataset: SampleDataset):
        super().__init__(dataset)
        self._kept: dict[int, Sample] = {}

    def __getitem__(self, index: int) -> Sample:
        if index not in self._kept:
            self._kept[index] = self._dataset[index]
        return self._kept[index]
