"""Correction of depth by the camera's known height above the ground (parameter `camera_height`).

The ground plane is measured in the depth of a frame, at most every `GROUND_PERIOD` seconds. The factor is applied to the
frames after it.
"""

from __future__ import annotations

import numpy as np

from fadepth_core.runtime.engine import DepthResult
from fadepth_core.runtime.ground import GroundScale

#: Seconds between two measurements of the ground.
GROUND_PERIOD = 0.1
#: Scales of former conditions that are remembered.
_KEPT_SCALES = 3


class GroundCorrection:
    """The scale factor of one camera, measured on the ground.

    Attributes:
        scale: tracks the factor; None while `camera_height` is 0.
    """

    def __init__(self) -> None:
        self.scale: GroundScale | None = None
        self._key: tuple | None = None
        # The scales of other conditions, oldest first: a frame of another size must not discard what has been measured.
        self._others: dict[tuple, GroundScale] = {}
        self._due = 0.0

    @property
    def factor(self) -> float:
        """Depth is to be multiplied by this."""
        return 1.0 if self.scale is None else self.scale.factor

    def configure(self, camera_height: float, *conditions: object) -> None:
        """Set the camera's height (metres, 0 for no correction).

        Args:
            conditions: other values that the factor depends on. When one of them changes, the factor is measured again,
                unless it has been measured with these values before.
        """
        if not camera_height:
            self.scale = None
            self._others.clear()
            return
        key = (camera_height, *conditions)
        if self.scale is None or self._key != key:
            if self.scale is not None and self._key is not None:
                self._others[self._key] = self.scale
                while len(self._others) > _KEPT_SCALES:
                    del self._others[next(iter(self._others))]
            known = self._others.pop(key, None)
            self.scale, self._key, self._due = known or GroundScale(camera_height), key, 0.0

    def is_due(self, arrival: float) -> bool:
        """Whether to measure the ground in a frame that arrived at `arrival`, seconds."""
        return self.scale is not None and arrival >= self._due

    def measure(self, result: DepthResult, arrival: float) -> None:
        """Measure the ground in the depth of a frame, to which the present factor has been applied."""
        assert self.scale is not None  # see `is_due`
        assert result.intrinsics is not None
        self._due = arrival + GROUND_PERIOD
        self.scale.update(result.depth / np.float32(self.scale.factor), result.intrinsics)
