"""Scenes in a Gazebo world: the camera is at a random free place, and light, textures and furniture vary."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.folders import files_below
from fadepth_core.rendering.raster import TEXTURE_SIDE, Geometry, Light, Materials
from fadepth_core.rendering.textures import TextureSet
from fadepth_core.synthetic.assets.meshes import Part, Surface, bounds
from fadepth_core.synthetic.assets.models import Model
from fadepth_core.synthetic.assets.places import Places
from fadepth_core.synthetic.assets.sdf import Library, read_sdf
from fadepth_core.synthetic.assets.stage import Atlas, Placements, build_stage
from fadepth_core.synthetic.assets.views import Range, draw_intrinsics, is_good_view, lamp_light
from fadepth_core.synthetic.dataset import Scene, Track, camera_pose, camera_rotation

Random = np.random.Generator
_log = logging.getLogger(__name__)

#: Parts of a world that reach farther than this from its origin are left out, metres.
_MAX_EXTENT = 500.0
#: Kind of a part, by its name; the first match counts.
_KINDS = {
    "wall": re.compile("wall", re.IGNORECASE),
    "ceiling": re.compile("ceiling|roof", re.IGNORECASE),
    "carpet": re.compile(r"carpet|\brug", re.IGNORECASE),
    "floor": re.compile("floor|ground", re.IGNORECASE),
}
#: Procedural textures for parts of these kinds; None: for other parts, if their picture is missing.
_TEXTURES = {
    "wall": "plaster plaster plaster wallpaper wallpaper brick concrete tiles wood",
    "ceiling": "plaster plaster concrete tiles",
    "carpet": "carpet cloth",
    "floor": "parquet tiles carpet wood concrete paving planks",
    None: "cloth plaster wood poster metal",
}
#: Attempts to draw a good view.
_TRIES = 300


class World:
    """A loaded Gazebo world, from which scenes are drawn.

    A world without ceiling gets one.

    Args:
        library: the models that the world may include.
        world: the world's file, see `find_world`.
        atlas: the pictures of the world are added to it.

    Attributes:
        file: the world's file.
        places: map of the free floor.

    Raises:
        ImportError: trimesh, or a package it needs for a format, is missing.
        DataError: no such world, nothing in it could be loaded, or it has no free floor for a camera.
    """

    def __init__(self, library: Library, world: str, atlas: Atlas):
        self.file = find_world(library.root, world)
        parts = []
        for part in read_sdf(self.file, library):
            if np.abs(bounds([part])).max() < _MAX_EXTENT:
                parts.append(part)
            else:
                _log.warning("%s: '%s' is more than %g m away, left out", self.file, part.name, _MAX_EXTENT)
        if not parts:
            raise DataError(f"{self.file}: everything in it is more than {_MAX_EXTENT:g} m away")
        stage = build_stage(parts, atlas)
        self.places = Places(stage.geometry)
        if not self.places.area():
            raise DataError(f"{self.file}: no free floor at height 0 for a camera to stand on")
        if self.places.roofed < 0.5:  # many worlds have no ceiling, so that they can be seen from above
            parts.append(_ceiling(bounds(parts), self.places.wall_height + 0.02))
            stage = build_stage(parts, atlas)
        self._stage, self._textures = stage, atlas.textures
        self._first = np.searchsorted(stage.part, np.arange(len(stage.names) + 1))  # first triangle of each part
        self._kinds = [next((kind for kind, name in _KINDS.items() if name.search(n)), None) for n in stage.names]

    def draw(
        self, rng: Random, texels: np.ndarray, size: tuple[int, int], heights: Range, view: Range, retexture: float,
        furniture: Sequence[Model], scatter: int,
    ) -> tuple[Scene, np.ndarray, np.ndarray]:  # fmt: skip
        """Draw a scene, K [3, 3], and the camera-to-world pose [4, 4].

        Args:
            rng: source of the random numbers.
            texels: all texels of the atlas, see `Atlas.finish`.
            size: height and width, pixels.
            heights: range of the camera's height, metres.
            view: range of the horizontal field of view, degrees.
            retexture: probability that walls get other textures, and the same for floors, carpets and ceilings.
            furniture: models that may be placed on free floor in front of the camera.
            scatter: largest number of these models.

        Raises:
            DataError: no attempt gave a good view (`is_good_view`).
        """
        # The surroundings, seen through windows and in reflections, are dark or bright. Vertical mirrors would show the
        # horizon of bright surroundings, so in that case only floors reflect.
        bright = rng.random() < 0.5
        geometry, materials = self._vary_materials(rng, retexture, bright)
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
            count = int(rng.integers(0, scatter + 1)) if furniture else 0
            scene = self._add_furniture(rng, bare, pose, furniture, count, not bright)
            if scene is not bare and not is_good_view(scene, intrinsics, pose, size, 0.3, 0.25):
                continue
            scene.light = self._light(rng, position)
            if bright:
                sky = np.full(3, rng.uniform(0.7, 1.5))
                scene.light = scene.light._replace(haze_rgb=sky, zenith_rgb=sky)
            return scene, intrinsics, pose
        raise DataError(
            f"{self.file}: no good view in {_TRIES} attempts: an object was too close, or there was too much sky or only "
            "one bare wall"
        )

    def _add_furniture(
        self, rng: Random, scene: Scene, pose: np.ndarray, furniture: Sequence[Model], count: int, glossy: bool
    ) -> Scene:
        """The scene with up to `count` models added on free floor in front of the camera, at most 8 m away."""
        if not count:
            return scene
        placements, taken = Placements(), [(pose[[0, 2], 3], 0.4)]
        ahead = pose[:3, 3] + rng.uniform(2, 4) * pose[:3, 2] * (1, 0, 1)
        for _ in range(count):
            model = furniture[int(rng.integers(len(furniture)))]
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
        """Draw the light of a lamp under the ceiling near the camera, or from one side as through large windows."""
        near = self.places.draw_near(rng, position, 2.5, 0.1)
        x, z = position[[0, 2]] if near is None else near
        high = float(np.clip(self.places.ceiling(position) - rng.uniform(0.1, 0.4), 1.9, 8.0))
        light = lamp_light(rng, self._textures, np.array([x, -high, z]))
        dim = rng.uniform(0.35, 1.0)  # weaker ambient light gives stronger contrast
        light = light._replace(up_rgb=dim * light.up_rgb, down_rgb=dim * light.down_rgb)
        if rng.random() < 0.7:
            return light._replace(lamp_rgb=light.lamp_rgb * max(1.0, (high / 2.4) ** 2))
        side = rng.normal(0, 1, 3) * (1, 0.5, 1) - (0, 0.5, 0)
        # No shadows: this projection maps every point outside the shadow map, where everything is lit.
        unshadowed = np.zeros((3, 4))
        unshadowed[:, 3] = -100
        return light._replace(
            lamp=np.array([*(side / np.linalg.norm(side)), 0.0]), lamp_rgb=rng.uniform(0.2, 0.9) * (light.up_rgb + 0.2),
            shadow_view=unshadowed, shadow_map=np.zeros((2, 2), np.float32),
        )  # fmt: skip

    def _vary_materials(self, rng: Random, retexture: float, bright: bool) -> tuple[Geometry, Materials]:
        """Geometry and materials with random tints and gloss, and with procedural textures on some parts.

        Parts whose picture is missing always get a procedural texture, other parts with probability `retexture`. If
        `bright`, only floors are glossy.
        """
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
        new_rows: dict[tuple, tuple[int, float]] = {}
        for part, kind in enumerate(self._kinds):
            old = int(faces[self._first[part]])
            if columns["cutout"][old] or not (stage.incomplete[old] or changed.get(kind, False)):
                continue
            if (kind, old) not in new_rows:
                row = _draw_material(rng, self._textures, _TEXTURES[kind], glossy=kind == "floor" or not bright)
                for name, column in columns.items():
                    columns[name] = np.concatenate([column, np.array([row[name]], column.dtype)])
                new_rows[kind, old] = len(columns["texture"]) - 1, rng.uniform(1.0, 3.0)
            triangles = slice(self._first[part], self._first[part + 1])
            faces[triangles], tile = new_rows[kind, old]
            vertices = slice(3 * self._first[part], 3 * self._first[part + 1])
            uv[vertices] = stage.metric_uv[vertices] / tile
        columns["tint"] = np.clip(columns["tint"], 0, 1.1).astype(np.float32)
        return stage.geometry._replace(uv=uv, materials=faces), Materials(**columns)


def find_world(root: Path, world: str) -> Path:
    """Find the file of a world.

    Args:
        root: folder of the models.
        world: path of the file, absolute or relative to `root`, or only its name, with or without suffix.

    Raises:
        DataError: there is no such world.
    """
    for path in (root / world, user_path(world)):
        if path.is_file():
            return path
    files = files_below(root)
    found = [
        path for suffix in (".world", ".sdf") for path in files if path.suffix == suffix and path.name != "model.sdf"
    ]
    named = [path for path in found if world in (path.name, path.stem)]
    if not named:
        known = ", ".join(path.stem for path in found if path.suffix == ".world")
        raise DataError(f"{root}: no world '{world}'; there are {known or 'none'}")
    return named[0]


def _draw_material(rng: Random, textures: TextureSet, names: str, glossy: bool) -> dict:
    """A row of `Materials` with a random texture of one of the recipes `names` (separated by spaces)."""
    tint = np.clip(rng.uniform(0.5, 1.1) * (1 + 0.1 * rng.standard_normal(3)), 0.05, 1.1)
    return dict(
        texture=int(rng.choice(textures.rows[str(rng.choice(names.split()))])), side=TEXTURE_SIDE, tint=tint, cutout=False,
        gloss=rng.uniform(0, 0.05) * glossy, glass=0.0, stain=0.15, glow=0.0, translucent=0.0,
    )  # fmt: skip


def _ceiling(extent: np.ndarray, height: float) -> Part:
    """A ceiling at `height` metres above a world with bounding box `extent` [2, 3].

    Its picture counts as missing, so that it gets another texture in every scene.
    """
    (left, low, _), (right, high, _) = extent
    corners = np.array([[left, low], [right, low], [right, high], [left, low], [right, high], [left, high]])
    corners = np.column_stack([corners, np.full(6, height)]).reshape(2, 3, 3).astype(np.float32)
    down = np.broadcast_to(np.float32([0, 0, -1]), (2, 3, 3))
    return Part(corners, down, corners[..., :2], Surface(incomplete=True), "ceiling")
