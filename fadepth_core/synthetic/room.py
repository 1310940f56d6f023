"""Build random furnished rooms of simple shapes, for a view from an indoor robot or a hand-held camera."""

from __future__ import annotations

import numpy as np

from fadepth_core.rendering import mesh as m
from fadepth_core.rendering.mesh import Mesh
from fadepth_core.rendering.textures import TextureSet

Random = np.random.Generator

#: Textures of furniture, names in `textures.RECIPES`.
_SURFACES = "wood planks plaster metal tiles dead_leaves"


class Room:
    """Builds the mesh of one room. The camera is near the origin and looks along z.

    Args:
        rng: draws the room.
        textures: textures to choose from.
        moving: whether people walk.

    Attributes:
        mesh: the shapes and materials of the room.
        left, right, back, front: positions of the walls along x and z, metres.
        height: height of the ceiling, metres.
    """

    def __init__(self, rng: Random, textures: TextureSet, moving: bool):
        self.rng, self.mesh, self._rows, self._moving = rng, Mesh(), textures.rows, moving
        self.left, self.right = -rng.uniform(1.2, 4), rng.uniform(1.2, 4)
        self.back, self.front = -rng.uniform(1.5, 3), rng.uniform(2.5, 9)
        self.height = rng.uniform(2.3, 3.4)
        self._shell()
        for wall in range(3):
            self._along_wall(wall)
        for _ in range(int(rng.integers(1, 6))):
            x, z = rng.uniform(self.left + 0.5, self.right - 0.5), rng.uniform(1.2, self.front - 0.4)
            rng.choice([self._table, self._chair, self._box, self._plant])(x, z)
        if rng.random() < 0.4:
            self._person(rng.uniform(self.left + 0.5, self.right - 0.5), rng.uniform(1.5, self.front - 0.3))

    def _material(self, names: str, tint: float | m.Colour = 1.0, **options) -> int:
        """Add a material with a random texture of one of the recipes `names` (separated by spaces)."""
        row = int(self.rng.choice(self._rows[str(self.rng.choice(names.split()))]))
        return self.mesh.material(row, tint, **options)

    def _tint(self, low: float = 0.3, high: float = 1.1, colourful: float = 0.2) -> m.Colour:
        """A random colour with brightness from `low` to `high`; `colourful` is its deviation from grey."""
        return tuple(np.clip(self.rng.uniform(low, high) * (1 + colourful * self.rng.standard_normal(3)), 0.02, 1.2))

    def _shell(self) -> None:
        """Add floor, ceiling and walls."""
        rng, mesh = self.rng, self.mesh
        wide, deep = self.right - self.left, self.front - self.back
        floor = self._material(
            "parquet carpet tiles wood concrete", self._tint(0.5, 1.1, 0.1), gloss=rng.uniform(0, 0.06)
        )
        mesh.add(
            m.rectangle((self.left, 0, self.back), (wide, 0, 0), (0, 0, deep), rng.uniform(1, 2.5)), floor, casts=False
        )
        ceiling = self._material("plaster tiles", rng.uniform(0.7, 1.0))
        quad = m.rectangle((self.left, -self.height, self.back), (wide, 0, 0), (0, 0, deep), rng.uniform(1.2, 3))
        mesh.add(quad, ceiling, casts=False)
        paper = self._material("plaster wallpaper brick plaster concrete", self._tint(0.6, 1.1, 0.1), stain=0.15)
        shape = m.walls(wide, self.height, deep, rng.uniform(1.5, 3))
        mesh.add(shape.at((self.left + self.right) / 2, 0, (self.back + self.front) / 2), paper, casts=False)

    def _on_wall(self, wall: int, place: float, width: float, top: float, height: float, out: float = 0.02) -> m.Shape:
        """A flat rectangle on a wall.

        Args:
            wall: 0 ahead, 1 left, 2 right.
            place: position along the wall, 0..1.
            width, height: size, metres.
            top: height of its upper edge above the floor, metres.
            out: distance from the wall, metres.
        """
        if wall == 0:
            x = self.left + place * (self.right - self.left - width)
            return m.rectangle((x, -top, self.front - out), (width, 0, 0), (0, height, 0))
        z = self.back + place * (self.front - self.back - width)
        x = self.left + out if wall == 1 else self.right - out
        return m.rectangle((x, -top, z), (0, 0, width), (0, height, 0))

    def _hang_pictures(self, wall: int) -> None:
        """Add up to three pictures and screens to a wall."""
        rng = self.rng
        for _ in range(int(rng.integers(0, 4))):
            width, height = rng.uniform(0.3, 1.3), rng.uniform(0.3, 1.0)
            quad = self._on_wall(wall, rng.random(), width, rng.uniform(1.3, 2.1), height, rng.uniform(0.02, 0.06))
            self.mesh.add(quad, self._material("poster screen poster dead_leaves"), casts=False)

    def _along_wall(self, wall: int) -> None:
        """Add pictures, a door or window, and furniture along a wall."""
        rng, mesh = self.rng, self.mesh
        self._hang_pictures(wall)
        if rng.random() < 0.6:  # a door or a window
            window = rng.random() < 0.5
            width, height, top = (rng.uniform(0.8, 2), 1.2, 2.1) if window else (0.9, 2.0, 2.0)
            material = self._material("plaster", 0.9, glow=3.0) if window else self._material("door")
            mesh.add(self._on_wall(wall, rng.random(), width, top, height), material, casts=False)
            if window and rng.random() < 0.6:
                curtain = self._on_wall(wall, rng.random(), 0.8, 2.2, 2.1, 0.12)
                mesh.add(curtain, self._material("curtain", self._tint(), translucent=0.5))
        for _ in range(int(rng.integers(0, 5))):  # cupboards, shelves, sofas
            length, depth, height = rng.uniform(0.5, 2), rng.uniform(0.3, 0.8), rng.uniform(0.4, 2.1)
            if wall == 0:
                x, z, yaw = rng.uniform(self.left + 0.5, self.right - 0.5), self.front - depth / 2, 0.0
            else:
                x = self.left + depth / 2 if wall == 1 else self.right - depth / 2
                z, yaw = rng.uniform(1.0, self.front - 0.5), np.pi / 2
            names = "books books wood" if height > 1 and rng.random() < 0.5 else _SURFACES + " cloth cloth"
            shape = m.box(length, height, depth, rng.uniform(0.6, 1.5)).at(x, 0, z, yaw)
            mesh.add(shape, self._material(names, self._tint(), gloss=rng.uniform(0, 0.05)))
            if height < 1.3 and rng.random() < 0.7:
                self._small_objects(x, z, height, 0.4 * depth)

    def _small_objects(self, x: float, z: float, y: float, spread: float) -> None:
        """Add small objects on a surface at height `y`, at most `spread` metres from (x, z) along each axis."""
        rng = self.rng
        for _ in range(int(rng.integers(1, 6))):
            dx, dz = rng.uniform(-spread, spread, 2)
            if rng.random() < 0.4:
                shape = m.cylinder(rng.uniform(0.03, 0.09), rng.uniform(0.08, 0.35), 0.3, 8, rng.uniform(0.02, 0.1))
            else:
                shape = m.box(rng.uniform(0.05, 0.35), rng.uniform(0.03, 0.35), rng.uniform(0.05, 0.3), 0.4)
            material = self._material("poster books dead_leaves plaster keys screen metal", self._tint(0.3, 1.1, 0.4))
            self.mesh.add(shape.at(x + dx, -y, z + dz, rng.uniform(0, 3)), material)

    def _table(self, x: float, z: float) -> None:
        rng, mesh = self.rng, self.mesh
        width, depth, height, yaw = (
            rng.uniform(0.6, 1.8),
            rng.uniform(0.5, 1),
            rng.uniform(0.4, 0.8),
            rng.uniform(-0.5, 0.5),
        )
        wood = self._material(_SURFACES, self._tint(), gloss=rng.uniform(0, 0.06))
        mesh.add(m.box(width, 0.05, depth, 0.8).at(0, -height + 0.05, 0).at(x, 0, z, yaw), wood)
        for sx in (-1, 1):
            for sz in (-1, 1):
                leg = m.box(0.05, height, 0.05, 0.5).at(sx * (width / 2 - 0.05), 0, sz * (depth / 2 - 0.05))
                mesh.add(leg.at(x, 0, z, yaw), wood)
        self._small_objects(x, z, height, 0.35 * depth)

    def _chair(self, x: float, z: float) -> None:
        rng, mesh = self.rng, self.mesh
        yaw, wide = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.9)
        cover = self._material("cloth wood plaster planks", self._tint())
        solid = rng.random() < 0.4
        mesh.add(
            m.box(wide, 0.45 if solid else 0.06, wide, 0.6).at(0, 0.0 if solid else -0.4, 0).at(x, 0, z, yaw), cover
        )
        mesh.add(m.box(wide, 0.5, 0.08, 0.6).at(0, -0.45, wide / 2).at(x, 0, z, yaw), cover)
        if not solid:
            for sx in (-0.45, 0.45):
                for sz in (-0.45, 0.45):
                    mesh.add(m.cylinder(0.02, 0.42, 0.5, 5).at(sx * wide, 0, sz * wide).at(x, 0, z, yaw), cover)

    def _box(self, x: float, z: float) -> None:
        rng = self.rng
        shape = m.box(*rng.uniform(0.2, 0.9, 3), 0.7).at(x, 0, z, rng.uniform(0, 3))
        self.mesh.add(shape, self._material("planks poster dead_leaves cloth plaster", self._tint(0.4, 1.1)))

    def _plant(self, x: float, z: float) -> None:
        rng, mesh = self.rng, self.mesh
        mesh.add(m.cylinder(0.14, 0.35, 0.5, 8, 0.2).at(x, 0, z), self._material("plaster tiles", self._tint()))
        size = rng.uniform(0.4, 1.3)
        centres = rng.uniform(-0.4, 0.4, (24, 3)) * size + (x, -0.35 - size * 0.5, z)
        leaf = self._material("leaves", cutout=True, translucent=0.4)
        mesh.add(m.cards(rng, centres, np.full(24, size * 0.5)), leaf)

    def _person(self, x: float, z: float) -> None:
        rng, mesh = self.rng, self.mesh
        mover = mesh.mover((rng.uniform(-0.8, 0.8) * self._moving, 0, 0))
        height = rng.uniform(1.5, 1.9)
        legs, coat = (self._material("cloth plaster", self._tint(0.05, 0.9, 0.4)) for _ in range(2))
        skin = self._material("plaster", np.array([0.75, 0.5, 0.38]) * rng.uniform(0.3, 1.1))
        mesh.add(m.cylinder(0.13, height * 0.48, 1.0, 8, 0.16).at(x, 0, z), legs, mover=mover)
        mesh.add(m.cylinder(0.18, height * 0.38, 1.0, 8, 0.23).at(x, -height * 0.46, z), coat, mover=mover)
        mesh.add(m.cylinder(0.1, height * 0.14, 1.0, 8, 0.08).at(x, -height * 0.86, z), skin, mover=mover)
