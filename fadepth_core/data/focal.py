"""One camera for all data: scenes scaled so that every focal length becomes the same.

From one picture nobody can tell a near object from one twice as far through a lens twice as long. A network that is to
answer in metres for several cameras is therefore trained as if all had one focal length, and its answer is scaled by the
ratio at the end (the canonical camera space of Metric3D, Yin et al. 2023). Focal lengths are in pixels of the network's
input, so a picture of twice the size counts as one through a lens twice as long, which is how filters see it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from fadepth_core.common.sample import Sample


def focal_length(intrinsics: Tensor | np.ndarray) -> float:
    """sqrt(f_x·f_y) of K [3, 3], pixels."""
    return float(intrinsics[0, 0] * intrinsics[1, 1]) ** 0.5


def at_focal_length(sample: Sample, focal: float, width: int) -> Sample:
    """The sample of a scene scaled by focal / its own focal length: depth, camera positions and speed.

    Pictures stay as they are: scaling everything around the camera changes none of them.

    Args:
        sample: unbatched.
        focal: pixels at the network's input.
        width: of the network's input, pixels; the sample's frames may be larger.
    """
    factor = focal / (focal_length(sample.intrinsics) * width / sample.frames.shape[-1])
    poses = sample.poses
    if poses is not None:
        poses = poses.clone()
        poses[:, :3, 3] *= factor
    return replace(
        sample,
        poses=poses,
        depth=None if sample.depth is None else sample.depth * factor,
        speed=None if sample.speed is None else sample.speed * factor,
    )


class AtFocalLength(Dataset):
    """A data set whose samples have been through `at_focal_length`."""

    def __init__(self, dataset: Dataset, focal: float, width: int):
        self._dataset, self._focal, self._width = dataset, focal, width

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        return at_focal_length(self._dataset[index], self._focal, self._width)
