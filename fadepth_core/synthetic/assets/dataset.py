"""Data set of rendered scenes of 3D models with exact depth, motion and intrinsics, generated from a seed.

It uses the renderer and the light of `synthetic.dataset`, but shapes and image textures come from files: the user's own
models, or a Gazebo world. Rendered images are not stored. This package contains no models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.folders import check_folder
from fadepth_core.rendering.occlusion import ambient_occlusion
from fadepth_core.rendering.raster import Light
from fadepth_core.synthetic.assets.meshes import require_trimesh
from fadepth_core.synthetic.assets.models import ROOM, STREET, load_models
from fadepth_core.synthetic.assets.room import ModelRoom
from fadepth_core.synthetic.assets.sdf import Library
from fadepth_core.synthetic.assets.stage import Atlas
from fadepth_core.synthetic.assets.street import ModelStreet
from fadepth_core.synthetic.assets.views import Range, draw_intrinsics, is_good_view, lamp_light
from fadepth_core.synthetic.assets.world import World
from fadepth_core.synthetic.dataset import (
    RenderedDataset,
    Scene,
    Track,
    camera_pose,
    camera_rotation,
    daylight,
    indoor_motion,
)

Random = np.random.Generator
Kind = Literal["world", "street", "room"]

#: By kind: range of the camera's height in metres, and of the horizontal field of view in degrees.
_HEIGHTS: dict[str, Range] = {"world": (0.2, 1.7), "room": (0.2, 1.7), "street": (0.5, 2.0)}
_VIEWS: dict[str, Range] = {"world": (50, 85), "room": (50, 85), "street": (50, 90)}
#: By kind: radius of ambient occlusion in metres, and the share of light that full occlusion removes.
_OCCLUSION = {"world": (0.5, 0.7), "room": (0.5, 0.7), "street": (1.0, 0.5)}
#: Attempts to draw a street or room with a good view.
_TRIES = 20


class AssetsDataset(RenderedDataset):
    """`Sample`s of scenes made of models; the same seed and index give the same sample.

    Args:
        root: folder with the models. It contains model folders with an SDF file (as Gazebo's) or model files, at any
            depth.
        world: a Gazebo world below `root`: its file, or the file's name without suffix.
        kind: "world": the Gazebo world. "street": streets of models with a role of `models.STREET` (houses, vehicles,
            trees ...). "room": rooms of models with a role of `models.ROOM` (furniture). Default: "world" if `world` is
            given, else "street".
        size: height and width of the frames, pixels.
        length: number of samples in an epoch; each is another scene.
        seed: seed of the scenes.
        moving: whether vehicles and people move.
        stride: factor on the time between frames.
        static: neither objects nor the camera move: one view is repeated three times, which takes a third of the
            rendering time.
        sky: true: the depth of the sky is `SKY_DEPTH`; false: it is unknown (0), as in all measured depth.
        heights: range of the camera's height above the floor, metres; default: 0.2 to 1.7, in streets 0.5 to 2.
        view: range of the horizontal field of view, degrees; default: 50 to 85, in streets 50 to 90.
        texture_side: largest side of a model's image texture in memory, texels: 256, 512 or 1024.
        retexture: probability that the walls of a world get other textures, and the same for its floors and ceilings.
        scatter: largest number of furniture models of the folder that are placed on the free floor of a world.
        roles: regular expressions that replace the name patterns of some roles of a street or room.

    Raises:
        ImportError: trimesh, or a package it needs for a format, is missing; the message names the extra.
        DataError: there is no such folder or world, or nothing in it can be used.
        ValueError: another option is invalid.
    """

    def __init__(
        self, root: str | Path, world: str | None = None, kind: Kind | None = None, size: tuple[int, int] = (288, 384),
        length: int = 10_000, seed: int = 0, moving: bool = True, stride: float = 1.0, static: bool = False, sky: bool =
            True,
        heights: Range | None = None, view: Range | None = None, texture_side: int = 512, retexture: float = 0.3,
        scatter: int = 6, roles: Mapping[str, str] | None = None,
    ):  # fmt: skip
        kind = kind or ("world" if world else "street")
        if kind not in _HEIGHTS or (kind == "world") != (world is not None):
            raise ValueError(
                f"kind must be 'world' with a world, or 'street' or 'room' without one; got '{kind}', world {world!r}"
            )
        if scatter < 0:
            raise ValueError(f"scatter must be at least 0, got {scatter}")
        root = user_path(root)
        super().__init__(f"{root.name} {world or kind}", size, length, seed, stride, static, sky)
        self._heights = _check_range("heights", heights or _HEIGHTS[kind], 0.05, 100)
        self._view = _check_range("view", view or _VIEWS[kind], 5, 150)
        require_trimesh()
        check_folder(root)
        self._kind, self._moving, self._retexture, self._scatter = kind, moving, retexture, scatter
        atlas = Atlas(texture_side)
        self._textures = atlas.textures
        library = Library(root)
        self._world = World(library, world, atlas) if world is not None else None
        known = _override_names(STREET if kind == "street" else ROOM, roles or {})
        try:
            self._models = load_models(library, known, atlas) if kind != "world" or scatter else {"furniture": []}
        except DataError:
            if kind != "world":
                raise
            self._models = {"furniture": []}
        self._texels = atlas.finish()

    def render_view(
        self, scene: Scene, time: float, intrinsics: np.ndarray, pose: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Linear image [H, W, 3] with ambient occlusion, and depth [H, W] in metres."""
        picture, depth = super().render_view(scene, time, intrinsics, pose)
        radius, strength = _OCCLUSION[self._kind]
        shade = 1 - strength + strength * ambient_occlusion(depth, intrinsics, radius)
        return picture * shade[..., None], depth

    def draw(self, rng: Random) -> tuple[Scene, np.ndarray, np.ndarray, float, float]:
        """Draw a scene and the motion of a camera in it.

        If none of `_TRIES` streets or rooms gives a good view, the last one is taken.

        Returns:
            The scene, K [3, 3], camera-to-world poses [3, 4, 4], seconds between frames, and the camera's speed in m/s.

        Raises:
            DataError: a world without a good view.
        """
        if self._world is not None:
            scene, intrinsics, pose = self._world.draw(
                rng, self._texels, self._size, self._heights, self._view, self._retexture, self._models["furniture"],
                self._scatter,
            )  # fmt: skip
            return scene, intrinsics, *_draw_motion(rng, pose, self._stride)
        street = self._kind == "street"
        for _ in range(_TRIES):
            scene, poses, interval, speed = self._draw_street(rng) if street else self._draw_room(rng)
            intrinsics = draw_intrinsics(rng, self._size, self._view)
            if is_good_view(scene, intrinsics, poses[1], self._size, 0.8 if street else 0.3, 0.6):
                break
        return scene, intrinsics, poses, interval, speed

    def _draw_street(self, rng: Random) -> tuple[Scene, np.ndarray, float, float]:
        """Draw a street, camera-to-world poses [3, 4, 4], seconds between frames, and the camera's speed in m/s."""
        street = ModelStreet(rng, self._textures, self._moving, self._models)
        bend = rng.choice([-1, 1]) * rng.gamma(1.0, 3.0), rng.uniform(180, 500)
        track = Track(bend, (rng.normal(0, 1.0), rng.uniform(150, 400)))
        on_foot = rng.random() < 0.25
        speed = rng.uniform(0.5, 2) if on_foot else rng.uniform(3, 16)
        interval = self._stride * (rng.uniform(0.15, 0.4) if on_foot else min(rng.uniform(0.05, 0.12), 1.8 / speed))
        across = rng.uniform(0.6, 1.3) if on_foot else rng.uniform(0.1, 0.65)
        x, height = street.half * across * (1 if rng.random() < 0.7 else -1), rng.uniform(*self._heights)
        heading, pitch, roll = rng.normal(0, 0.3 if on_foot else 0.08), rng.normal(0, 0.04), rng.normal(0, 0.015)
        poses = []
        for z in (-speed * interval, 0.0, speed * interval):
            (dx, dy), (slope_x, slope_y) = track.shift(z), track.slope(z)
            angles = np.array([np.arctan(slope_x) + heading, pitch - np.arctan(slope_y), roll])
            angles += rng.normal(0, [0.0015, 0.0025, 0.0015])
            position = np.array([x + dx, dy - height + rng.normal(0, 0.006), z])
            poses.append(camera_pose(camera_rotation(*angles), position))
        scene = _scene(street, track, daylight(rng, self._textures), self._texels)
        return scene, np.stack(poses), interval, speed

    def _draw_room(self, rng: Random) -> tuple[Scene, np.ndarray, float, float]:
        """Draw a room; returns the same as `_draw_street`."""
        room = ModelRoom(rng, self._textures, self._moving, self._models["furniture"])
        x, z = rng.uniform(room.left, room.right) * 0.6, rng.uniform(0, room.front - 0.5)
        light = lamp_light(rng, self._textures, np.array([x, -room.height + 0.1, z]))
        angles = rng.normal(0, 0.4), np.deg2rad(rng.uniform(-15, 20)), rng.normal(0, 0.03)
        pose = camera_pose(
            camera_rotation(*angles), np.array([0, -min(rng.uniform(*self._heights), room.height - 0.3), 0])
        )
        return _scene(room, Track(), light, self._texels), *_draw_motion(rng, pose, self._stride)


def _scene(drawn: ModelStreet | ModelRoom, track: Track, light: Light, texels: np.ndarray) -> Scene:
    """The scene of a street or room, including the models placed in it."""
    geometry, mover, materials = drawn.placements.merged(*drawn.mesh.geometry(), drawn.mesh.materials())
    return Scene(geometry, mover, np.array(drawn.mesh.velocities), track, materials, light, texels)


def _draw_motion(rng: Random, pose: np.ndarray, stride: float) -> tuple[np.ndarray, float, float]:
    """Draw the motion of a hand-held camera or an indoor robot around `pose`.

    Returns:
        Camera-to-world poses [3, 4, 4], seconds between them, and the speed in m/s.
    """
    interval, velocity = indoor_motion(rng, stride)
    spin = rng.normal(0, [0.3, 0.15, 0.06])
    poses = []
    for time in (-interval, 0.0, interval):
        moved = camera_pose(camera_rotation(*(spin * time)), velocity * time)
        poses.append(pose @ moved)
    return np.stack(poses), interval, float(np.linalg.norm(velocity))


def _check_range(name: str, value: Sequence[float], low: float, high: float) -> Range:
    """`value`, after a check that it is a range within [low, high]; `name` names the option in the error."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(f"{name} must be two numbers from {low:g} to {high:g} in order, got {tuple(value)}")
    return float(value[0]), float(value[1])


def _override_names(known: Mapping, names: Mapping[str, str]) -> dict:
    """The roles `known`, in which the patterns `names` replace those of some roles."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"no role {', '.join(unknown)}; there are {', '.join(known)}")
    for role, pattern in names.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"names of role {role}: {error}") from error
    return {role: replace(what, names=names.get(role, what.names)) for role, what in known.items()}
