"""Convert parts to the renderer's input: geometry, a table of materials, and one atlas of all image textures.

The axes are changed from Gazebo's (x forward, y left, z up) to those of the scenes (x right, y down, z forward).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fadepth_core.rendering.raster import TEXTURE_SIDE, TEXTURE_TEXELS, Geometry, Materials
from fadepth_core.rendering.textures import TextureSet, build_atlas, mipmaps, spread_colours
from fadepth_core.synthetic.assets.meshes import Part, Surface, has_binary_alpha, metric_uv

Random = np.random.Generator

#: Rotation from Gazebo's axes to the scenes'.
TO_OPTICAL = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
#: Albedo of a white texel in an image texture.
_WHITE = 0.9


class Atlas:
    """Texture atlas: the procedural textures, followed by the pictures of models.

    Args:
        side: largest side at which a picture is stored, texels: `TEXTURE_SIDE` times 1, 2 or 4.

    Attributes:
        textures: the procedural textures.
        white: first row and side of a white texture, for surfaces without picture.

    Raises:
        ValueError: `side` is not one of these three.
    """

    def __init__(self, side: int):
        if side not in (TEXTURE_SIDE, 2 * TEXTURE_SIDE, 4 * TEXTURE_SIDE):
            raise ValueError(f"texture_side must be {TEXTURE_SIDE} times 1, 2 or 4, got {side}")
        self.textures: TextureSet = build_atlas(0)
        self._side = side
        self._rows = [self.textures.texels]
        self._count = len(self.textures.texels)
        # Row and side by the identity of the picture. The picture is stored too, because an id is only unique as long
        # as its object exists.
        self._known: dict[tuple, tuple[np.ndarray, tuple[int, int]]] = {}
        white = np.full((1, 1, 4), 255, np.uint8)
        self.white = self.add(Surface((1.0, 1.0, 1.0), white))

    def add(self, surface: Surface) -> tuple[int, int]:
        """Add a surface's picture, multiplied by the surface's colour; return its first row and its side in the atlas.

        Alpha that is not coverage is stored too. The renderer uses it as the weight of the tint; in pictures of
        vehicles it marks the painted areas.
        """
        key = (id(surface.picture), surface.colour, surface.cutout)
        if key not in self._known:
            side = TEXTURE_SIDE
            while side < self._side and side < max(surface.picture.shape[:2]):
                side *= 2
            self._rows.append(_levels(surface, side).reshape(-1, TEXTURE_TEXELS, 4))
            self._known[key] = (surface.picture, (self._count, side))
            self._count += len(self._rows[-1])
        return self._known[key][1]

    def finish(self) -> np.ndarray:
        """Return all texels [N, TEXTURE_TEXELS, 4] uint8, and release the pictures. Do not call `add` afterwards."""
        self._known.clear()
        self._rows = [np.concatenate(self._rows)]
        return self._rows[0]


def _levels(surface: Surface, side: int) -> np.ndarray:
    """A picture with its levels as the atlas stores it: [4^k · TEXTURE_TEXELS, 4] uint8 for side 2^k · TEXTURE_SIDE."""
    level = surface.picture.astype(np.float32) / 255
    level[..., :3] = level[..., :3] ** 2.2 * np.float32(surface.colour)
    if surface.cutout:
        spread_colours(level, 15)
    smaller = min(surface.picture.shape[:2]) >= side
    level = cv2.resize(level, (side, side), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return mipmaps(level)


@dataclass
class Stage:
    """Parts as one geometry in the scenes' axes.

    Attributes:
        geometry: its materials are rows of `materials`.
        materials: one row for each surface.
        incomplete: [M] whether the material's picture is missing.
        painted: [M] whether alpha marks painted areas, which may have any colour.
        metric_uv: [V, 2] texture coordinates in metres, for textures that replace a part's own.
        part: [F] index of the part of each triangle.
        names: names of the parts.
    """

    geometry: Geometry
    materials: Materials
    incomplete: np.ndarray
    painted: np.ndarray
    metric_uv: np.ndarray
    part: np.ndarray
    names: list[str]


def build_stage(parts: Sequence[Part], atlas: Atlas) -> Stage:
    """Convert parts, which are in Gazebo's axes, to one stage. Their pictures are added to the atlas."""
    numbers: dict[tuple, int] = {}
    surfaces: list[Surface] = []
    material_of_part = []
    for part in parts:
        surface = part.surface
        # Parts whose picture is missing have separate materials, because each may get another texture.
        key = (id(surface.picture), surface.colour, surface.cutout, part.name if surface.incomplete else None)
        if key not in numbers:
            numbers[key] = len(surfaces)
            surfaces.append(surface)
        material_of_part.append(numbers[key])
    counts = [len(part.corners) for part in parts]
    turn = TO_OPTICAL.T.astype(np.float32)
    geometry = Geometry(
        np.concatenate([part.corners for part in parts]).reshape(-1, 3) @ turn,
        np.concatenate([part.normals for part in parts]).reshape(-1, 3) @ turn,
        np.concatenate([part.uv for part in parts]).reshape(-1, 2),
        np.arange(3 * sum(counts), dtype=np.int32).reshape(-1, 3),
        np.repeat(np.array(material_of_part, np.int32), counts),
        np.ones(sum(counts), bool),
    )
    plain = np.array([surface.picture is None for surface in surfaces])
    places = [atlas.white if surface.picture is None else atlas.add(surface) for surface in surfaces]
    rows, sides = zip(*places, strict=True)
    tints = [surface.colour if surface.picture is None else (1, 1, 1) for surface in surfaces]
    cutout = np.array([surface.cutout for surface in surfaces])
    zeros = np.zeros(len(surfaces), np.float32)
    materials = Materials(
        texture=np.array(rows, np.int32),
        side=np.array(sides, np.int32),
        tint=_WHITE * np.array(tints, np.float32),
        cutout=cutout,
        gloss=zeros,
        glass=zeros,
        stain=np.where(plain, 0.12, 0.0).astype(np.float32),
        glow=zeros,
        translucent=np.where(cutout, 0.4, 0.0).astype(np.float32),
    )
    return Stage(
        geometry,
        materials,
        np.array([surface.incomplete for surface in surfaces]),
        np.array([s.picture is not None and not s.cutout and has_binary_alpha(s.picture) for s in surfaces]),
        np.concatenate([metric_uv(part.corners, part.normals) for part in parts]).reshape(-1, 2),
        np.repeat(np.arange(len(parts)), counts),
        [part.name for part in parts],
    )


class Placements:
    """The models placed in a scene. `merged` joins them with the rest of the scene."""

    def __init__(self):
        self._pieces: list[tuple[Geometry, Materials, int]] = []

    def add(
        self, stage: Stage, position: Sequence[float], yaw: float, scale: float | Sequence[float] = 1.0,
        tints: np.ndarray | None = None, gloss: float = 0.0, mover: int = 0,
    ) -> None:  # fmt: skip
        """Place a model: scale it, rotate it about the vertical axis, then move it.

        Args:
            stage: the model.
            position: (x, y, z), metres.
            yaw: rotation to the right, radians.
            scale: one factor, or one each for x, y, z.
            tints: [M, 3] linear colours, multiplied with the materials' tints.
            gloss: mirror reflection of all its materials.
            mover: number of its velocity, see `mesh.Mesh.mover`.
        """
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]], np.float32)
        vertices = (stage.geometry.vertices * np.float32(scale)) @ turn + np.asarray(position, np.float32)
        normals = (stage.geometry.normals / np.float32(scale)) @ turn
        table = stage.materials
        if tints is not None:
            table = table._replace(tint=np.clip(table.tint * tints, 0.01, 1).astype(np.float32))
        table = table._replace(gloss=np.full(len(table.tint), gloss, np.float32))
        self._pieces.append((stage.geometry._replace(vertices=vertices, normals=normals), table, mover))

    def merged(
        self, geometry: Geometry, mover: np.ndarray, materials: Materials
    ) -> tuple[Geometry, np.ndarray, Materials]:
        """Geometry, mover of each vertex [V] and materials of a scene, joined with those of the placed models.

        Args:
            geometry, mover, materials: those of the scene without the models.
        """
        geometries, movers, tables = [geometry], [mover], [materials]
        vertices, rows = len(geometry.vertices), len(materials.tint)
        for piece, table, piece_mover in self._pieces:
            geometries.append(
                piece._replace(faces=piece.faces + np.int32(vertices), materials=piece.materials + np.int32(rows))
            )
            movers.append(np.full(len(piece.vertices), piece_mover))
            tables.append(table)
            vertices, rows = vertices + len(piece.vertices), rows + len(table.tint)
        return (
            Geometry(*(np.concatenate(column) for column in zip(*geometries, strict=True))),
            np.concatenate(movers),
            Materials(*(np.concatenate(column) for column in zip(*tables, strict=True))),
        )
