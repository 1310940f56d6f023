"""Rooms as in `synthetic.room`, with furniture from the models of a folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fadepth_core.rendering.textures import TextureSet
from fadepth_core.synthetic.assets.models import Model
from fadepth_core.synthetic.assets.stage import Placements
from fadepth_core.synthetic.room import Room

Random = np.random.Generator


class ModelRoom(Room):
    """A room with models.

    Args:
        rng, textures, moving: see `Room`.
        models: furniture that stands on the floor, see `models.ROOM`.
        procedural: probability that a piece of furniture is built of simple shapes, as in `Room`.

    Attributes:
        placements: the placed models. They are not in `mesh`.
    """

    def __init__(
        self, rng: Random, textures: TextureSet, moving: bool, models: Sequence[Model], procedural: float = 0.15
    ):
        self.placements, self._models, self._procedural = Placements(), models, procedural
        self._taken = [(0.0, 0.0, 0.5)]  # x, z, radius; the first is the camera
        super().__init__(rng, textures, moving)

    def _place_random(self, x: float, z: float) -> bool:
        """Try to place a random model. False: furniture of simple shapes is to be built instead, as in `Room`."""
        if self.rng.random() < self._procedural:
            return False
        model = self._models[int(self.rng.integers(len(self._models)))]
        self._place(model, x, z, self.rng.uniform(-np.pi, np.pi))
        return True

    def _place(self, model: Model, x: float, z: float, yaw: float) -> None:
        """Place a model, unless it is higher than the room or too close to another one or the camera."""
        radius = 0.5 * float(np.hypot(*model.extent[[0, 2]]))
        if model.extent[1] > self.height or any(
            np.hypot(x - a, z - b) < 0.85 * (radius + r) for a, b, r in self._taken
        ):
            return
        self._taken.append((x, z, radius))
        model.place(self.rng, self.placements, (x, 0, z), yaw, self.rng.uniform(0.9, 1.1), chroma=0.12)

    def _along_wall(self, wall: int) -> None:
        rng = self.rng
        if rng.random() < 0.3:
            super()._along_wall(wall)
            return
        for _ in range(int(rng.integers(0, 5))):
            model = self._models[int(rng.integers(len(self._models)))]
            quarter = int(rng.integers(4))
            wide, deep = model.extent[[0, 2]] if quarter % 2 == 0 else model.extent[[2, 0]]
            if wall == 0:
                x, z = rng.uniform(self.left, self.right), self.front - deep / 2 - 0.05
            else:
                x = self.left + wide / 2 + 0.05 if wall == 1 else self.right - wide / 2 - 0.05
                z = rng.uniform(0.8, self.front)
            inside = self.left + wide / 2 <= x <= self.right - wide / 2 and z + deep / 2 <= self.front
            if inside:
                self._place(model, x, z, quarter * np.pi / 2)
        self._hang_pictures(wall)

    def _table(self, x: float, z: float) -> None:
        if not self._place_random(x, z):
            super()._table(x, z)

    def _chair(self, x: float, z: float) -> None:
        if not self._place_random(x, z):
            super()._chair(x, z)

    def _box(self, x: float, z: float) -> None:
        if not self._place_random(x, z):
            super()._box(x, z)

    def _plant(self, x: float, z: float) -> None:
        if not self._place_random(x, z):
            super()._plant(x, z)
