"""Baselines that every network should beat: predictors that ignore the image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import LabelledImage
from fadepth_core.evaluation.protocols import Protocol, valid_pixels

#: Depth above the horizon, metres.
_FAR = 80.0


@dataclass(frozen=True)
class ConstantDepth:
    """The same depth everywhere, in metres."""

    depth: float = 1.0

    def __call__(self, _image: np.ndarray, _intrinsics: np.ndarray) -> np.ndarray:
        """A `Predictor`."""
        return np.full((2, 2), 1 / self.depth, np.float32)

    @classmethod
    def typical(cls, images: Iterable[LabelledImage], protocol: Protocol) -> ConstantDepth:
        """The median of the images' median ground-truth depths: the constant is fitted to the test set.

        Raises:
            DataError: an image has no valid ground-truth depth.
        """
        medians = []
        for image in images:
            truth = image.depth[valid_pixels(image.depth, protocol)]
            if not truth.size:
                raise DataError(f"{image.name}: no true depth that '{protocol.name}' measures")
            medians.append(np.median(truth))
        return cls(float(np.median(medians)))


@dataclass(frozen=True)
class GroundPlane:
    """Flat ground below a level camera at `camera_height` metres; the depth above the horizon is 80 m."""

    camera_height: float

    def __call__(self, image: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        """A `Predictor`: inverse depth (v - c_y) / (f_y · h) in row v."""
        height, width = image.shape[:2]
        rows = (np.arange(height) - intrinsics[1, 2]) / (intrinsics[1, 1] * self.camera_height)
        return np.repeat(np.maximum(rows, 1 / _FAR)[:, None], width, axis=1).astype(np.float32)
