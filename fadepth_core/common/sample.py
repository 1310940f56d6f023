"""Items of the data sets: `Sample` for training, `LabelledImage` for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass
class Sample:
    """Three consecutive frames t-1, t, t+1 of one camera, or a single frame.

    After `collate` every tensor has a leading batch dimension B.

    Attributes:
        frames: [N, 3, H, W] float32 RGB in [0, 1], in temporal order; N is 3, or 1 if no loss compares frames.
        intrinsics: K [3, 3] float32, in pixels of `frames`; pixel centres are at whole numbers.
        interval: [] float32, seconds between consecutive frames.
        name: source of the middle frame, for logs and error messages.
        speed: [] float32, measured speed of the camera in metres per second. NaN: unknown in this sample, but known in
            others of its data set. None: unknown in the whole data set.
        poses: [N, 4, 4] float32 camera-to-world (optical frame, metres) of each frame, if known.
        depth: [h, w] float32 true depth of the middle frame in metres, at its own size, 0 where unknown; None if not
            known.
        sharp: [] bool, whether the edges in `depth` are aligned with those in the image. False for depth predicted by a
            teacher; None means true.
        teacher: a teacher's maps of the middle frame by name, each float32 [1, h, w] at its own size; see
            `training.teacher`.
    """

    frames: Tensor
    intrinsics: Tensor
    interval: Tensor
    name: str | list[str]
    speed: Tensor | None = None
    poses: Tensor | None = None
    depth: Tensor | None = None
    sharp: Tensor | None = None
    teacher: dict[str, Tensor] | None = None

    @property
    def middle(self) -> Tensor:
        """The middle frame of an unbatched sample, [3, H, W]."""
        return self.frames[len(self.frames) // 2]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Sample:
        """The same sample with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Sample:
        """The same sample in page-locked memory, from which `to` can copy to a GPU asynchronously.

        `DataLoader(pin_memory=True)` calls this method on every batch.
        """
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Sample:
        """The same sample with `change` applied to every tensor, including the teacher's maps."""
        changed: dict[str, Any] = {
            name: change(value) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        if self.teacher is not None:
            changed["teacher"] = {name: change(value) for name, value in self.teacher.items()}
        return Sample(**changed)


class SampleDataset(Protocol):
    """A training set: unbatched samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def evenly_spread(length: int, count: int) -> list[int]:
    """Up to `count` indices of a sequence of `length`, evenly spaced from the first item to the last."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack samples into a batch. A field that is None in any sample is None in the batch.

    Raises:
        RuntimeError: a field differs in size between the samples.
        KeyError: a sample lacks one of the first sample's teacher maps.
    """
    batch: dict[str, Any] = {}
    for f in fields(Sample):
        values = [getattr(sample, f.name) for sample in samples]
        if f.name == "name":
            batch[f.name] = values
        elif any(value is None for value in values):
            batch[f.name] = None
        elif f.name == "teacher":
            batch[f.name] = {key: torch.stack([value[key] for value in values]) for key in values[0]}
        else:
            batch[f.name] = torch.stack(values)
    return Sample(**batch)


@dataclass
class LabelledImage:
    """One image of a test set with its true depth.

    Attributes:
        image: RGB uint8 [H, W, 3] at the camera's size.
        depth: true depth in metres along the optical axis, float32 [H, W], 0 where unknown.
        intrinsics: K [3, 3] of `image`; pixel centres are at whole numbers.
        name: for logs and reports.
    """

    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    name: str
