"""Shapes made of textured quads, and `Mesh`, which collects shapes, materials and velocities for the renderer.

World coordinates are those of an optical frame that looks along the road or into the room: x right, y down, z forward,
metres. The ground is at y = 0. A quad has four corners [4, 3], listed in order around it, and texture
coordinates [4, 2]. The unit of texture coordinates is the tile: from 0 to 1 the texture is shown once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fadepth_core.rendering.raster import TEXTURE_SIDE, Geometry, Materials

Colour = tuple[float, float, float]


class Shape(NamedTuple):
    """N quads: `corners` [N, 4, 3] in metres, `uv` [N, 4, 2] in tiles."""

    corners: np.ndarray
    uv: np.ndarray

    def at(self, x: float, y: float, z: float, yaw: float = 0.0) -> Shape:
        """The shape rotated about the vertical axis by `yaw` radians, then moved by (x, y, z) metres."""
        c, s = np.cos(yaw), np.sin(yaw)
        return Shape(self.corners @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) + (x, y, z), self.uv)


def join(*shapes: Shape) -> Shape:
    """All shapes as one."""
    return Shape(np.concatenate([s.corners for s in shapes]), np.concatenate([s.uv for s in shapes]))


def rectangle(origin, along, down, tile: float | None = None) -> Shape:
    """A parallelogram with one corner at `origin` and the sides `along` and `down`, each [3] in metres.

    It shows its texture once, or repeats it every `tile` metres.
    """
    origin, along, down = (np.asarray(v, float) for v in (origin, along, down))
    u, v = (1.0, 1.0) if tile is None else (np.linalg.norm(along) / tile, np.linalg.norm(down) / tile)
    corners = np.stack([origin, origin + along, origin + along + down, origin + down])
    return Shape(corners[None], np.array([[[0, 0], [u, 0], [u, v], [0, v]]], float))


def walls(width: float, height: float, length: float, tile: float | None = None, taper: float = 0.0) -> Shape:
    """The four side faces of a box standing on y = 0, centred in x and z. Lengths in metres.

    `taper` is the horizontal distance from each side at the bottom to the same side at the top.
    """
    w, d, t = width / 2, length / 2, taper
    low = np.array([[-w, 0, -d], [w, 0, -d], [w, 0, d], [-w, 0, d]])
    top = np.array([[t - w, -height, t - d], [w - t, -height, t - d], [w - t, -height, d - t], [t - w, -height, d - t]])
    nexts = [1, 2, 3, 0]
    corners = np.stack([top, top[nexts], low[nexts], low], axis=1)
    uv = np.zeros((4, 4, 2))
    for side, extent in enumerate((width, length, width, length)):
        u, v = (1.0, 1.0) if tile is None else (extent / tile, height / tile)
        uv[side] = [[0, 0], [u, 0], [u, v], [0, v]]
    return Shape(corners, uv)


def lid(width: float, height: float, length: float, tile: float | None = None) -> Shape:
    """The top face of a box of that size (metres), standing on y = 0, centred in x and z."""
    return rectangle((-width / 2, -height, -length / 2), (width, 0, 0), (0, 0, length), tile)


def box(width: float, height: float, length: float, tile: float | None = None) -> Shape:
    """A box of that size (metres), standing on y = 0, centred in x and z, without bottom face."""
    return join(walls(width, height, length, tile), lid(width, height, length, tile))


def gable(width: float, height: float, rise: float, length: float, tile: float) -> tuple[Shape, Shape]:
    """A gable roof on a box of that size (metres), with its ridge along x and `rise` metres higher than the box.

    Returns:
        The two slopes, and the two triangular walls below them.
    """
    w, d = width / 2 + 0.3, length / 2 + 0.4
    slopes = join(
        rectangle((-w, -height - rise, 0), (2 * w, 0, 0), (0, rise, -d), tile),
        rectangle((-w, -height - rise, 0), (2 * w, 0, 0), (0, rise, d), tile),
    )
    ends = []
    for x in (-width / 2, width / 2):
        peak, left, right = (x, -height - rise, 0), (x, -height, -length / 2), (x, -height, length / 2)
        ends.append([peak, peak, right, left])
    return slopes, Shape(np.array(ends), np.tile([[0.5, 0], [0.5, 0], [1, 1], [0, 1]], (2, 1, 1)).astype(float))


def cylinder(radius: float, height: float, tile: float, sides: int = 8, top_radius: float | None = None) -> Shape:
    """An upright cylinder, or a cone frustum if `top_radius` is given, on y = 0, without end faces. Metres."""
    top_radius = radius if top_radius is None else top_radius
    angle = np.arange(sides + 1) * 2 * np.pi / sides
    ring = np.stack([np.cos(angle), np.zeros_like(angle), np.sin(angle)], 1)
    low, top = radius * ring, top_radius * ring - (0, height, 0)
    corners = np.stack([top[:-1], top[1:], low[1:], low[:-1]], axis=1)
    u = np.arange(sides) * 2 * np.pi * radius / sides / tile
    du, v = 2 * np.pi * radius / sides / tile, height / tile
    uv = np.stack([np.stack([u, 0 * u], 1), np.stack([u + du, 0 * u], 1), np.stack([u + du, 0 * u + v], 1)], 1)
    return Shape(corners, np.concatenate([uv, np.stack([u, 0 * u + v], 1)[:, None]], 1))


def cards(rng: np.random.Generator, centres: np.ndarray, size: np.ndarray) -> Shape:
    """Randomly rotated squares for foliage, with centres [N, 3] and sides `size` [N] in metres."""
    n = len(centres)
    yaw, tilt = rng.uniform(0, 2 * np.pi, n), rng.uniform(-1.2, 1.2, n)
    along = np.stack([np.cos(yaw), np.zeros(n), np.sin(yaw)], 1)
    down = np.stack([-np.sin(yaw) * np.sin(tilt), np.cos(tilt), np.cos(yaw) * np.sin(tilt)], 1)
    half = size[:, None, None] / 2
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = centres[:, None] + half * (signs[None, :, :1] * along[:, None] + signs[None, :, 1:] * down[:, None])
    return Shape(corners, np.tile((signs + 1) / 2.0, (n, 1, 1)))


def strip(left: np.ndarray, right: np.ndarray, tile: float) -> Shape:
    """A band between two lines of N + 1 points, [N + 1, 3] each. Its texture is projected vertically, as on a floor."""
    corners = np.stack([left[1:], right[1:], right[:-1], left[:-1]], axis=1)
    return Shape(corners, corners[..., [0, 2]] / tile)


class Mesh:
    """Collects the shapes, materials and velocities of a scene."""

    def __init__(self):
        self._corners: list[np.ndarray] = []
        self._uv: list[np.ndarray] = []
        self._materials: list[np.ndarray] = []
        self._casts: list[np.ndarray] = []
        self._movers: list[np.ndarray] = []
        self._table: list[tuple] = []
        self.velocities = [np.zeros(3)]

    def material(
        self, texture: int, tint: Colour | float = 1.0, *, cutout: bool = False, gloss: float = 0.0, glass: float = 0.0,
        stain: float = 0.0, glow: float = 0.0, translucent: float = 0.0,
    ) -> int:  # fmt: skip
        """Add a material (see `raster.Materials`) and return its number, which `add` takes."""
        tint = (tint,) * 3 if np.isscalar(tint) else tuple(tint)
        self._table.append((texture, tint, cutout, gloss, glass, stain, glow, translucent))
        return len(self._table) - 1

    def mover(self, velocity: tuple[float, float, float]) -> int:
        """Add a velocity in metres per second and return its number, which `add` takes."""
        self.velocities.append(np.asarray(velocity, float))
        return len(self.velocities) - 1

    def add(self, shape: Shape, material: int | np.ndarray, *, casts: bool = True, mover: int = 0) -> None:
        """Add a shape.

        Args:
            shape: in world coordinates, at time 0.
            material: number of its material, or one number for each quad.
            casts: whether it casts a shadow.
            mover: number of its velocity; 0 is at rest.
        """
        n = len(shape.corners)
        self._corners.append(shape.corners)
        self._uv.append(shape.uv)
        self._materials.append(np.broadcast_to(np.asarray(material, np.int32), n))
        self._casts.append(np.full(n, casts))
        self._movers.append(np.full(n, mover))

    def materials(self) -> Materials:
        """The table of all materials."""
        texture, tint, cutout, *rest = zip(*self._table, strict=True)
        return Materials(
            np.array(texture, np.int32),
            np.full(len(texture), TEXTURE_SIDE, np.int32),
            np.array(tint, np.float32),
            np.array(cutout),
            *(np.array(column, np.float32) for column in rest),
        )

    def geometry(self) -> tuple[Geometry, np.ndarray]:
        """The geometry, with two triangles per quad, and for each vertex [V] the number of its velocity."""
        corners = np.concatenate(self._corners)
        count = len(corners)
        # The cross product of the diagonals is also correct for triangles, which are quads with two equal corners.
        normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
        first = 4 * np.arange(count, dtype=np.int32)[:, None]
        faces = (first + np.array([0, 1, 2, 0, 2, 3], np.int32)).reshape(-1, 3)
        geometry = Geometry(
            corners.reshape(-1, 3).astype(np.float32),
            np.repeat(normals, 4, axis=0).astype(np.float32),
            # In C order: another memory layout would make numba compile the renderer again.
            np.concatenate(self._uv).reshape(-1, 2).astype(np.float32, order="C"),
            faces,
            np.repeat(np.concatenate(self._materials), 2),
            np.repeat(np.concatenate(self._casts), 2),
        )
        return geometry, np.repeat(np.concatenate(self._movers), 4)
