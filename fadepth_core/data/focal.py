"""Canonical camera (Metric3D, Yin et al. 2023): scale each training scene so that all have the same focal length.

One image does not determine scale: an object twice as far away, seen with twice the focal length, looks the same. A
network that predicts metres for several cameras is therefore trained on scenes scaled to one canonical focal length. At
inference, its depth is multiplied by the ratio of the camera's focal length to the canonical one.

Focal lengths are in pixels of the network's input, because the network sees objects at that size: an image enlarged by
two has twice the focal length.
"""

from __future__ import annotations

from dataclasses import replace

from torch.utils.data import Dataset

from fadepth_core.common.framing import focal_length
from fadepth_core.common.sample import Sample, SampleDataset


def at_focal_length(sample: Sample, focal: float, width: int) -> Sample:
    """Scale depth, camera positions and speed of a sample by the ratio of `focal` to the sample's focal length.

    The frames stay valid, because the scene and the camera's motion are scaled by the same factor.

    Args:
        sample: unbatched.
        focal: canonical focal length, pixels at the network's input.
        width: width of the network's input, pixels; the sample's frames may be larger.
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
    """A data set with `at_focal_length` applied to each sample; see there for the arguments."""

    def __init__(self, dataset: SampleDataset, focal: float, width: int):
        self._dataset, self._focal, self._width = dataset, focal, width

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        return at_focal_length(self._dataset[index], self._focal, self._width)
