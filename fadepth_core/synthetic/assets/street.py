"""Streets as in `synthetic.street`, with houses, vehicles, trees, poles and other objects from the models of a folder.

Ground, road, pavements and the positions of objects are those of `synthetic.street`. For variety, a few objects are
still built of simple shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fadepth_core.rendering.textures import TextureSet
from fadepth_core.synthetic.assets.models import Model
from fadepth_core.synthetic.assets.stage import Placements
from fadepth_core.synthetic.street import Street

Random = np.random.Generator

#: Vehicles longer than this, metres, are buses and lorries, which are drawn less often.
_LONG = 6.0


class ModelStreet(Street):
    """A street with models.

    Args:
        rng, textures, moving: see `Street`.
        models: by role, see `models.STREET`.
        procedural: probability that an object is built of simple shapes, as in `Street`, although there is a model.

    Attributes:
        placements: the placed models. They are not in `mesh`.
    """

    def __init__(
        self, rng: Random, textures: TextureSet, moving: bool, models: Mapping[str, list[Model]],
        procedural: float = 0.15,
    ):  # fmt: skip
        self.placements, self._models, self._procedural = Placements(), models, procedural
        houses = models["building"]
        # As in real streets, a few houses are repeated.
        self._houses = [houses[i] for i in rng.integers(len(houses), size=5)] if houses else []
        super().__init__(rng, textures, moving)

    def _pick(self, role: str) -> Model | None:
        """A random model of that role. None: the object is to be built of simple shapes, as in `Street`."""
        known = self._models[role]
        if not known or self.rng.random() < self._procedural:
            return None
        return known[int(self.rng.integers(len(known)))]

    def _mover(self, heading: float, speed: float) -> int:
        """Number of the velocity (see `Mesh.mover`) with that heading in radians and speed in m/s; 0 at rest."""
        return self.mesh.mover((np.sin(heading) * speed, 0, np.cos(heading) * speed)) if speed else 0

    def _building(self, side: int, x: float, z: float, width: float) -> None:
        rng = self.rng
        if self._houses and rng.random() >= self._procedural:
            for _ in range(6):
                model = self._houses[int(rng.integers(len(self._houses)))]
                quarter = int(rng.integers(4))
                wide, deep = model.extent[[2, 0]] if quarter % 2 == 0 else model.extent[[0, 2]]
                scale = float(np.clip(width / wide, 0.75, 1.35))
                if wide * scale < width + 1.0:
                    at = (side * (x + deep * scale / 2), 0, z)
                    model.place(rng, self.placements, at, quarter * np.pi / 2, scale)
                    return
        super()._building(side, x, z, width)

    def _tree(self, x: float, z: float) -> None:
        model = self._pick("tree")
        if model is None or self.rng.random() < 0.3:  # procedural trees are more varied than the models of a folder
            super()._tree(x, z)
            return
        stretch = self.rng.uniform(3.5, 13) / model.extent[1]
        wide = stretch * self.rng.uniform(0.8, 1.2)
        model.place(self.rng, self.placements, (x, 0, z), self.rng.uniform(-np.pi, np.pi), (wide, stretch, wide))

    def _pole(self, x: float, z: float) -> None:
        model = self._pick("pole")
        if model is None:
            super()._pole(x, z)
            return
        yaw = self.rng.integers(4) * np.pi / 2 + self.rng.normal(0, 0.1)  # the front side of a model is unknown
        model.place(self.rng, self.placements, (x, 0, z), yaw, self.rng.uniform(0.85, 1.15))

    def _clutter(self, x: float, z: float) -> None:
        model = self._pick("clutter")
        if model is None:
            super()._clutter(x, z)
            return
        yaw, scale = self.rng.uniform(-np.pi, np.pi), self.rng.uniform(0.9, 1.1)
        model.place(self.rng, self.placements, (x, 0, z), yaw, scale, chroma=0.1)

    def _vehicle(self, x: float, z: float, yaw: float, speed: float = 0.0) -> None:
        model = self._pick("vehicle")
        if model is None:
            super()._vehicle(x, z, yaw, speed)
            return
        for _ in range(2):
            if max(model.extent[[0, 2]]) > _LONG:
                model = self._pick("vehicle") or model
        mover = self._mover(yaw, speed)
        along = 0.0 if model.extent[2] >= model.extent[0] else np.pi / 2
        turn = yaw + along + self.rng.integers(2) * np.pi + self.rng.normal(0, 0.02)
        model.place(self.rng, self.placements, (x, 0, z), turn, self.rng.uniform(0.94, 1.06), paint=True, mover=mover)

    def _person(self, x: float, z: float, speed: float, heading: float) -> None:
        model = self._pick("person")
        if model is None:
            super()._person(x, z, speed, heading)
            return
        mover = self._mover(heading, speed)
        model.place(self.rng, self.placements, (x, 0, z), heading, self.rng.uniform(0.92, 1.06), mover=mover)
