"""Worlds of Gazebo as they are, seen from free places, under light, with surfaces and loose things that change by scene."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.synthetic.assets.meshes import Part, Surface, bounds
from fadepth_core.synthetic.assets.models import Model
from fadepth_core.synthetic.assets.places import Places
from fadepth_core.synthetic.assets.sdf import Library, read_sdf
from fadepth_core.synthetic.assets.stage import Atlas, Placements, build_stage
from fadepth_core.synthetic.assets.views import Range, draw_intrinsics, is_good_view, lamp_light
from fadepth_core.synthetic.dataset import Scene, Track, camera_pose, camera_rotation
from fadepth_core.synthetic.raster import TEXTURE_SIDE, Geometry, Light, Materials
from fadepth_core.synthetic.textures import TextureSet

Random = np.random.Generator
_log = logging.getLogger(__name__)

#: Nothing of a world is drawn that is farther from its origin, metres.
_FAR = 500.0
#: What parts are, by their names; the first that fits.
_KINDS = {
    "wall": re.compile("wall", re.IGNORECASE),
    "ceiling": re.compile("ceiling|roof", re.IGNORECASE),
    "carpet": re.compile(r"carpet|\brug", re.IGNORECASE),
    "floor": re.compile("floor|ground", re.IGNORECASE),
}
#: Textures of the scenes for them, and for other parts that lack their picture.
_TEXTURES = {
    "wall": "plaster plaster plaster wallpaper wallpaper brick concrete tiles wood",
    "ceiling": "plaster plaster concrete tiles",
    "carpet": "carpet cloth",
    "floor": "parquet tiles carpet wood concrete paving planks",
    None: "cloth plaster wood poster metal",
}
#: How often a view is drawn until one is good.
_TRIES = 300


class World:
    """A loaded world.

    Args:
        library: the models.
        world: its file, see `find_world`.
        atlas: takes its pictures.

    Raises:
        ImportError: trimesh, or what it needs for a format, is missing.
        DataError: no such world, nothing in it could be loaded, or there is no floor for a camera.
    """

    def __init__(self, library: Library, world: str, atlas: Atlas):
        self.file = find_world(library.root, world)
        parts = []
        for part in read_sdf(self.file, library):
            if np.abs(bounds([part])).max() < _FAR:
                parts.append(part)
            else:
                _log.warning("%s: '%s' is more than %g m away, left out", self.file, part.name, _FAR)
        if not parts:
            raise DataError(f"{self.file}: everything in it is more than {_FAR:g} m away")
        stage = build_stage(parts, atlas)
        self.places = Places(stage.geometry)
        if not self.places.area():
            raise DataError(f"{self.file}: no free floor at height 0 for a camera to stand on")
        if self.places.roofed < 0.5:  # many worlds leave the ceiling out, for a view from above
            parts.append(_ceiling(bounds(parts), self.places.wall_height + 0.02))
            stage = build_stage(parts, atlas)
        self._stage, self._textures = stage, atlas.textures
        self._first = np.searchsorted(stage.part, np.arange(len(stage.names) + 1))  # triangle of each part
        self._kinds = [next((kind for kind, name in _KINDS.items() if name.search(n)), None) for n in stage.names]

    def draw(
        self, rng: Random, texels: np.ndarray, size: tuple[int, int], heights: Range, view: Range, retexture: float,
        things: Sequence[Model], scatter: int,
    ) -> tuple[Scene, np.ndarray, np.ndarray]:  # fmt: skip
        """A scene, K [3, 3], and the camera-to-world pose [4, 4].

        Args:
            texels: of the atlas.
            size: height and width, pixels. heights: of the camera, metres, from and to.
            view: horizontal field of view, degrees, from and to.
            retexture: probability that walls have other textures, and the same for floors, carpets and ceilings.
            things: models of which up to `scatter` stand on free floor before the camera.

        Raises:
            DataError: in many tries there was no view without something close by, much sky, or one bare wall only.
        """
        # What is seen through windows is either as dark as what mirrors show, or bright: then only floors are mirrors, because
        # upright ones would show a horizon.
        bright = rng.random() < 0.5
        geometry, materials = self._redecorated(rng, retexture, bright)
        bare = Scene(
            geometry, np.zeros(len(geometry.vertices), int), np.zeros((1, 3)), Track(), materials,
            self._light(rng, np.zeros(3)), texels,
        )  # fmt: skip
        for _ in range(_TRIES):
            position = self.places.draw(rng, rng.uniform(*heights))
            if position is None:
                continue
            intrinsics = draw_intrinsics(rng, size, view)
            yaw, pitch, roll = rng.uniform(-np.pi, np.pi), rng.uniform(-15, 20), np.clip(rng.normal(0, 2), -5, 5)
            pose = camera_pose(camera_rotation(yaw, np.deg2rad(pitch), np.deg2rad(roll)), position)
            if not is_good_view(bare, intrinsics, pose, size, 0.3, 0.25):
                continue
            scene = self._furnished(
                rng, bare, pose, things, int(rng.integers(0, scatter + 1)) if things else 0, not bright
            )
            if scene is not bare and not is_good_view(scene, intrinsics, pose, size, 0.3, 0.25):
                continue
            scene.light = self._light(rng, position)
            if bright:
                sky = np.full(3, rng.uniform(0.7, 1.5))
                scene.light = scene.light._replace(haze_rgb=sky, zenith_rgb=sky)
            return scene, intrinsics, pose
        raise DataError(f"{self.file}: no view without something close by, much sky, or one bare wall only")

    def _furnished(
        self, rng: Random, scene: Scene, pose: np.ndarray, things: Sequence[Model], count: int, glossy: bool
    ) -> Scene:
        """The scene with up to `count` models on free floor before the camera, at most 7 m away."""
        if not count:
            return scene
        placements, taken = Placements(), [(pose[[0, 2], 3], 0.4)]
        ahead = pose[:3, 3] + rng.uniform(2, 4) * pose[:3, 2] * (1, 0, 1)
        for _ in range(count):
            model = things[int(rng.integers(len(things)))]
            radius = 0.5 * float(np.hypot(*model.extent[[0, 2]]))
            place = self.places.draw_near(rng, ahead, 4.0, radius)
            if place is None or any(np.hypot(*(place - other)) < radius + reach for other, reach in taken):
                continue
            taken.append((place, radius))
            yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.5 else rng.integers(4) * np.pi / 2
            model.place(
                rng, placements, (place[0], 0, place[1]), yaw, rng.uniform(0.9, 1.1), chroma=0.12, glossy=glossy
            )
        geometry, mover, materials = placements.merged(scene.geometry, scene.mover, scene.materials)
        return replace(scene, geometry=geometry, mover=mover, materials=materials)

    def _light(self, rng: Random, position: np.ndarray) -> Light:
        """A lamp under the ceiling not far from the camera, or light from one side as from large windows."""
        near = self.places.draw_near(rng, position, 2.5, 0.1)
        x, z = position[[0, 2]] if near is None else near
        high = float(np.clip(self.places.ceiling(position) - rng.uniform(0.1, 0.4), 1.9, 8.0))
        light = lamp_light(rng, self._textures, np.array([x, -high, z]))
        dim = rng.uniform(0.35, 1.0)  # the weaker the light from everywhere, the stronger the contrast
        light = light._replace(up_rgb=dim * light.up_rgb, down_rgb=dim * light.down_rgb)
        if rng.random() < 0.7:
            return light._replace(lamp_rgb=light.lamp_rgb * max(1.0, (high / 2.4) ** 2))
        side = rng.normal(0, 1, 3) * (1, 0.5, 1) - (0, 0.5, 0)
        nowhere = np.zeros((3, 4))  # a shadow map in which nothing lies: all of it is lit
        nowhere[:, 3] = -100
        return light._replace(
            lamp=np.array([*(side / np.linalg.norm(side)), 0.0]), lamp_rgb=rng.uniform(0.2, 0.9) * (light.up_rgb + 0.2),
            shadow_view=nowhere, shadow_map=np.zeros((2, 2), np.float32),
        )  # fmt: skip

    def _redecorated(self, rng: Random, retexture: float, bright: bool) -> tuple[Geometry, Materials]:
        """Geometry and materials with varied tints and gloss, and here and there a texture of the scenes' own."""
        stage = self._stage
        columns = {name: column.copy() for name, column in stage.materials._asdict().items()}
        count = len(columns["texture"])
        columns["tint"] *= np.exp(rng.normal(0, 0.12, (count, 1)) + rng.normal(0, 0.04, (count, 3)))
        columns["gloss"] = np.where(rng.random(count) < 0.3, rng.uniform(0, 0.06, count), 0).astype(np.float32)
        if bright:
            floors = [self._first[part] for part, kind in enumerate(self._kinds) if kind == "floor"]
            columns["gloss"][~np.isin(np.arange(count), stage.geometry.materials[floors])] = 0
        changed = {kind: rng.random() < retexture for kind in _KINDS}
        faces, uv = stage.geometry.materials.copy(), stage.geometry.uv.copy()
        fresh: dict[tuple, tuple[int, float]] = {}
        for part, kind in enumerate(self._kinds):
            old = int(faces[self._first[part]])
            if columns["cutout"][old] or not (stage.incomplete[old] or changed.get(kind, False)):
                continue
            if (kind, old) not in fresh:
                row = _draw_material(rng, self._textures, _TEXTURES[kind], glossy=kind == "floor" or not bright)
                for name, column in columns.items():
                    columns[name] = np.concatenate([column, np.array([row[name]], column.dtype)])
                fresh[kind, old] = len(columns["texture"]) - 1, rng.uniform(1.0, 3.0)
            triangles = slice(self._first[part], self._first[part + 1])
            faces[triangles], tile = fresh[kind, old]
            vertices = slice(3 * self._first[part], 3 * self._first[part + 1])
            uv[vertices] = stage.metric_uv[vertices] / tile
        columns["tint"] = np.clip(columns["tint"], 0, 1.1).astype(np.float32)
        return stage.geometry._replace(uv=uv, materials=faces), Materials(**columns)


def find_world(root: Path, world: str) -> Path:
    """The file that `world` names: a path, one relative to `root`, or the name of a file below with or without its suffix.

    Raises:
        DataError: there is none.
    """
    for path in (root / world, Path(world)):
        if path.is_file():
            return path
    found = [
        path for suffix in ("world", "sdf") for path in sorted(root.rglob(f"*.{suffix}")) if path.name != "model.sdf"
    ]
    named = [path for path in found if world in (path.name, path.stem)]
    if not named:
        known = ", ".join(path.stem for path in found if path.suffix == ".world")
        raise DataError(f"{root}: no world '{world}'; there are {known or 'none'}")
    return named[0]


def _draw_material(rng: Random, textures: TextureSet, names: str, glossy: bool) -> dict:
    """A row of `Materials` with one of the textures of these names."""
    tint = np.clip(rng.uniform(0.5, 1.1) * (1 + 0.1 * rng.standard_normal(3)), 0.05, 1.1)
    return dict(
        texture=int(rng.choice(textures.rows[str(rng.choice(names.split()))])), side=TEXTURE_SIDE, tint=tint, cutout=False,
        gloss=rng.uniform(0, 0.05) * glossy, glass=0.0, stain=0.15, glow=0.0, translucent=0.0,
    )  # fmt: skip


def _ceiling(extent: np.ndarray, height: float) -> Part:
    """A level rectangle above a world of that extent [2, 3], with another texture in every scene."""
    (left, low, _), (right, high, _) = extent
    corners = np.array([[left, low], [right, low], [right, high], [left, low], [right, high], [left, high]])
    corners = np.column_stack([corners, np.full(6, height)]).reshape(2, 3, 3).astype(np.float32)
    down = np.broadcast_to(np.float32([0, 0, -1]), (2, 3, 3))
    return Part(corners, down, corners[..., :2], Surface(incomplete=True), "ceiling")
