"""Data set of rendered streets and rooms with exact depth, motion and intrinsics, generated from a seed.

A sample has three consecutive frames of a random scene, with random focal length, camera height, pitch, motion and
light. Nothing is stored or downloaded, so training can start on a fresh machine. `street` and `room` build the scenes
from shapes (`mesh`) and textures (`textures`); `raster` renders them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from fadepth_core.common.color import to_picture
from fadepth_core.common.sample import LabelledImage, Sample
from fadepth_core.rendering.raster import SKY_DEPTH, Geometry, Light, Materials, depth_map, render
from fadepth_core.rendering.textures import TextureSet, build_atlas
from fadepth_core.synthetic.room import Room
from fadepth_core.synthetic.street import Street

Random = np.random.Generator
Preset = Literal["driving", "indoor"]

#: Side of the shadow map, texels.
_SHADOW_TEXELS = 768


@dataclass(frozen=True)
class Track:
    """Bends and hills of a road: a displacement sideways and in height that depends on z.

    It is added to all vertices of a scene and to the camera's position.

    Attributes:
        bend, hill: (amplitude, wavelength) in metres of a cosine wave with value and slope 0 at z = 0.
    """

    bend: tuple[float, float] = (0.0, 1.0)
    hill: tuple[float, float] = (0.0, 1.0)

    def shift(self, z: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Displacement (x, y) at z, metres."""
        (a, length), (b, period) = self.bend, self.hill
        return a * (1 - np.cos(2 * np.pi * z / length)), b * (1 - np.cos(2 * np.pi * z / period))

    def slope(self, z: float) -> tuple[float, float]:
        """Slopes (dx/dz, dy/dz) of the displacement at z metres."""
        (a, length), (b, period) = self.bend, self.hill
        x, y = 2 * np.pi / length, 2 * np.pi / period
        return a * x * np.sin(x * z), b * y * np.sin(y * z)


@dataclass
class Scene:
    """A scene to render.

    Attributes:
        geometry: at time 0, without the displacement by `track`.
        mover: [V] row of `velocities` for each vertex.
        velocities: [M, 3] metres per second.
        track: bends and hills.
        materials, light: see `raster`; `render_at` fills the light's shadow map.
        atlas: the textures, see `raster.render`.
    """

    geometry: Geometry
    mover: np.ndarray
    velocities: np.ndarray
    track: Track
    materials: Materials
    light: Light
    atlas: np.ndarray

    def render_at(
        self, time: float, intrinsics: np.ndarray, camera_to_world: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render the scene at `time` seconds.

        Args:
            time: seconds; 0 is the time of the middle frame.
            intrinsics: K [3, 3], pixels.
            camera_to_world: pose [4, 4] of the camera.
            size: (height, width), pixels.

        Returns:
            Image [H, W, 3] in linear light, and depth [H, W] in metres, see `raster.render`.
        """
        vertices = self.geometry.vertices + (self.velocities[self.mover] * time).astype(np.float32)
        x, y = self.track.shift(vertices[:, 2])
        vertices[:, 0] += x
        vertices[:, 1] += y
        geometry = self.geometry._replace(vertices=vertices)
        light = self.light
        if light.shadow_map.shape[0] > 1:
            shape, lamp = light.shadow_map.shape, bool(light.lamp[3])
            shadow = depth_map(geometry, self.materials, self.atlas, light.shadow_view, lamp, shape)
            light = light._replace(shadow_map=shadow)
        return render(geometry, self.materials, self.atlas, light, intrinsics, camera_to_world, size)


class RenderedDataset(Dataset[Sample]):
    """`Sample`s of rendered scenes, which subclasses draw; the same seed and index give the same sample.

    Args:
        name: of the samples, before seed and index.
        size, length, seed, stride, static, sky: see `SyntheticDataset`; a static sample repeats the view from the
            middle pose.

    Raises:
        ValueError: `length` or `stride` is too small.
    """

    def __init__(
        self, name: str, size: tuple[int, int], length: int, seed: int, stride: float, static: bool, sky: bool
    ):
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if stride <= 0:
            raise ValueError(f"stride must be positive, got {stride}")
        self._name, self._size, self._length, self._seed = name, tuple(size), length, seed
        self._stride, self._static, self._sky = stride, static, sky

    def draw(self, rng: Random) -> tuple[Scene, np.ndarray, np.ndarray, float, float]:
        """A scene, K [3, 3], camera-to-world poses [3, 4, 4], seconds between frames, and the camera's speed in m/s."""
        raise NotImplementedError

    def render_view(
        self, scene: Scene, time: float, intrinsics: np.ndarray, pose: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Linear image [H, W, 3] and depth [H, W] in metres, `time` seconds after the middle frame."""
        return scene.render_at(time, intrinsics, pose, self._size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends iteration
        rng = np.random.default_rng([self._seed, index])
        scene, intrinsics, poses, interval, speed = self.draw(rng)
        if self._static:
            views, poses, speed = 3 * [self.render_view(scene, 0.0, intrinsics, poses[1])], poses[[1, 1, 1]], 0.0
        else:
            views = [self.render_view(scene, (i - 1) * interval, intrinsics, pose) for i, pose in enumerate(poses)]
        frames = _apply_sensor(rng, np.stack([picture for picture, _ in views]))
        # Poses relative to the middle camera are small enough for float32.
        poses = np.linalg.inv(poses[1]) @ poses
        depth = views[1][1] if self._sky else _without_sky(views[1][1])
        return Sample(
            torch.from_numpy(frames).permute(0, 3, 1, 2),
            torch.from_numpy(intrinsics).float(),
            torch.tensor(interval, dtype=torch.float32),
            f"{self._name} {self._seed}:{index}",
            torch.tensor(speed, dtype=torch.float32),
            torch.from_numpy(poses).float(),
            torch.from_numpy(depth),
        )


class SyntheticDataset(RenderedDataset):
    """`Sample`s of rendered scenes; the same seed and index give the same sample.

    Args:
        preset: "driving" or "indoor".
        size: height and width of the frames, pixels.
        length: number of samples in an epoch; each is another scene.
        seed: seed of the scenes; the textures are the same for all seeds.
        moving: whether objects move.
        stride: factor on the time between frames, like leaving out frames of a video. Small images need a larger
            stride, because the same motion covers fewer of their pixels.
        static: neither objects nor the camera move: one view is repeated three times, which takes half the rendering
            time. For training on depth alone.
        sky: true: the depth of the sky is `SKY_DEPTH`; false: it is unknown (0), as in all measured depth.

    Raises:
        ValueError: `preset`, `length` or `stride` is invalid.
    """

    def __init__(
        self, preset: Preset = "driving", size: tuple[int, int] = (128, 416), length: int = 100_000, seed: int = 0,
        moving: bool = True, stride: float = 1.0, static: bool = False, sky: bool = True,
    ):  # fmt: skip
        if preset not in ("driving", "indoor"):
            raise ValueError(f"preset must be 'driving' or 'indoor', got '{preset}'")
        super().__init__(f"synthetic {preset}", size, length, seed, stride, static, sky)
        self._preset, self._moving = preset, moving

    def draw(self, rng: Random) -> tuple[Scene, np.ndarray, np.ndarray, float, float]:
        draw = draw_street if self._preset == "driving" else draw_room
        scene, *motion = draw(rng, build_atlas(0), self._moving, self._stride)
        return scene, draw_intrinsics(rng, self._size, self._preset), *motion


class SyntheticTest:
    """Test set of `length` rendered scenes, as `LabelledImage`s. The depth of the sky is unknown (0).

    Args:
        preset, size, length, seed: see `SyntheticDataset`.
    """

    def __init__(
        self, preset: Preset = "driving", size: tuple[int, int] = (128, 416), length: int = 100, seed: int = 1
    ):
        self._samples = SyntheticDataset(preset, size, length, seed)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> LabelledImage:
        sample = self._samples[index]
        depth = _without_sky(sample.depth.numpy())
        return LabelledImage(to_picture(sample.middle), depth, sample.intrinsics.double().numpy(), sample.name)


def _without_sky(depth: np.ndarray) -> np.ndarray:
    """Depth [H, W] with 0 (unknown) for the sky."""
    return np.where(depth < SKY_DEPTH, depth, np.float32(0))


def draw_intrinsics(rng: Random, size: tuple[int, int], preset: Preset) -> np.ndarray:
    """K [3, 3] of a camera with square pixels and a principal point near the middle."""
    height, width = size
    view = np.deg2rad(rng.uniform(50, 100) if preset == "driving" else rng.uniform(50, 90))
    # The field of view is horizontal. In narrow images it is that of 1.3 times the height.
    focal = 0.5 * max(width, 1.3 * height) / np.tan(view / 2)
    centre = ((width - 1) / 2 + width * rng.normal(0, 0.02), (height - 1) / 2 + height * rng.normal(0, 0.05))
    return np.array([[focal, 0, centre[0]], [0, focal * rng.uniform(0.97, 1.03), centre[1]], [0, 0, 1]])


def camera_rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Camera to world: roll about z, then pitch up about x, then yaw to the right about y (radians), [3, 3]."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def camera_pose(rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Camera-to-world pose [4, 4] from the camera's rotation [3, 3] and position [3]."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, position
    return pose


def draw_street(
    rng: Random, textures: TextureSet, moving: bool, stride: float
) -> tuple[Scene, np.ndarray, float, float]:
    """Draw a street and the motion of a camera through it.

    Args:
        rng: source of the random numbers.
        textures: see `textures.build_atlas`.
        moving, stride: see `SyntheticDataset`.

    Returns:
        The scene, camera-to-world poses [3, 4, 4], seconds between frames, and the camera's speed in m/s.
    """
    street = Street(rng, textures, moving)
    track = Track(
        (rng.choice([-1, 1]) * rng.gamma(1.0, 3.0), rng.uniform(180, 500)), (rng.normal(0, 1.0), rng.uniform(150, 400))
    )
    on_foot = street.kind in ("town", "suburb") and rng.random() < 0.15
    height = rng.uniform(0.4, 1.7) if on_foot else rng.uniform(1.2, 2.0)
    speed = rng.uniform(0.6, 2) if on_foot else rng.uniform(3, 33 if street.kind == "motorway" else 16)
    # At most 1.8 m between two frames: cameras on fast cars have higher frame rates.
    interval = stride * (rng.uniform(0.15, 0.4) if on_foot else min(rng.uniform(0.05, 0.12), 1.8 / speed))
    x = street.half * (rng.uniform(0.6, 1.3) if on_foot else rng.uniform(0.1, 0.65)) * (1 if rng.random() < 0.7 else -1)
    turn = rng.normal(0, 0.25) if rng.random() < 0.3 else rng.normal(0, 0.03)  # rad/s
    yaw, pitch, roll = rng.normal(0, 0.04), rng.normal(0, 0.035), rng.normal(0, 0.012)
    poses = []
    for step in (-1, 0, 1):
        t = step * interval
        heading = turn * t
        z = speed * t
        dx, dy = track.shift(z)
        slope_x, slope_y = track.slope(z)
        position = np.array([x + 0.5 * heading * z + dx, dy - height + rng.normal(0, 0.006), z])
        shake = rng.normal(0, [0.0015, 0.0025, 0.0015])
        angles = (np.arctan(slope_x) + heading + yaw, pitch - np.arctan(slope_y), roll)
        poses.append(camera_pose(camera_rotation(*(np.array(angles) + shake)), position))
    geometry, mover = street.mesh.geometry()
    scene = Scene(
        geometry,
        mover,
        np.array(street.mesh.velocities),
        track,
        street.mesh.materials(),
        daylight(rng, textures),
        textures.texels,
    )
    return scene, np.stack(poses), interval, speed


def draw_room(rng: Random, textures: TextureSet, moving: bool, stride: float) -> tuple[Scene, np.ndarray, float, float]:
    """Draw a room and the motion of a camera in it; returns the same as `draw_street`."""
    room = Room(rng, textures, moving)
    height = rng.uniform(0.2, 1.7)
    interval, velocity = indoor_motion(rng, stride)
    angles = rng.normal(0, [0.4, 0.15, 0.04])
    spin = rng.normal(0, [0.3, 0.15, 0.06])
    poses = [
        camera_pose(camera_rotation(*(angles + spin * t)), np.array([0, -height, 0]) + velocity * t)
        for t in (-interval, 0.0, interval)
    ]
    geometry, mover = room.mesh.geometry()
    lamp = np.array([rng.uniform(room.left, room.right) * 0.6, -room.height + 0.1, rng.uniform(0, room.front - 0.5)])
    scene = Scene(
        geometry,
        mover,
        np.array(room.mesh.velocities),
        Track(),
        room.mesh.materials(),
        lamplight(rng, textures, lamp),
        textures.texels,
    )
    return scene, np.stack(poses), interval, float(np.linalg.norm(velocity))


def indoor_motion(rng: Random, stride: float) -> tuple[float, np.ndarray]:
    """Draw the motion of a hand-held camera or an indoor robot: seconds between frames, and velocity [3] in m/s."""
    interval = rng.uniform(0.05, 0.2)
    velocity = rng.normal(0, 1, 3) * (0.5, 0.12, 0.6)
    velocity *= np.clip(np.linalg.norm(velocity) * interval, 0.03, 0.15) / (np.linalg.norm(velocity) * interval)
    return interval * stride, velocity


def daylight(rng: Random, textures: TextureSet) -> Light:
    """Draw the light of a sunny day with blue sky and clouds, or of an overcast day."""
    sunny = rng.random() < 0.65
    elevation, azimuth = np.deg2rad(rng.uniform(12, 70)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), -np.sin(elevation), np.cos(elevation) * np.sin(azimuth)])
    warm = np.array([1.0, 0.75 + 0.25 * np.sin(elevation), 0.5 + 0.5 * np.sin(elevation)])
    blue = np.array([0.45, 0.65, 1.0]) if sunny else np.array([0.9, 0.95, 1.0])
    sky = rng.uniform(0.25, 0.7) if sunny else rng.uniform(0.8, 1.1)
    # The shadow map is the sun's view of a square with sides of 75 m, whose centre is on the road 28 m ahead.
    across = np.cross(sun, (0.0, 1.0, 0.0))
    across /= np.linalg.norm(across)
    down = np.cross(sun, across)
    texel = 75.0 / _SHADOW_TEXELS
    centre = np.array([0.0, 0.0, 28.0])
    view = np.stack([across / texel, down / texel, sun])
    offset = np.array([_SHADOW_TEXELS / 2, _SHADOW_TEXELS / 2, 0]) - np.array([*(view[:2] @ centre), 0])
    return Light(
        lamp=np.array([*sun, 0.0]),
        lamp_rgb=warm * (rng.uniform(0.8, 2.2) if sunny else 0.0),
        up_rgb=blue * sky * 0.6,
        down_rgb=np.array([0.3, 0.28, 0.24]) * sky * 0.5,
        haze_rgb=np.array([0.9, 0.95, 1.0]) * rng.uniform(0.8, 1.4),
        haze=rng.choice([0.0, rng.uniform(0.0, 0.004)]),
        zenith_rgb=blue * rng.uniform(0.4, 1.2),
        cloud_rgb=np.full(3, rng.uniform(0.9, 1.6)),
        clouds=np.array([rng.choice(textures.rows["clouds"]), rng.uniform(0, 0.9), rng.uniform(0.05, 0.3), rng.random()]),
        shadow_view=np.column_stack([view, offset]),
        shadow_map=np.zeros((_SHADOW_TEXELS, _SHADOW_TEXELS) if sunny else (1, 1), np.float32),
        soft=float(rng.uniform(0.5, 2)),
    )  # fmt: skip


def lamplight(
    rng: Random, textures: TextureSet, lamp: np.ndarray, texels: int = _SHADOW_TEXELS, half_view: float = 72.0
) -> Light:
    """Draw the light of a lamp under the ceiling, whose shadow map looks down, and ambient light.

    Args:
        lamp: position [3] of the lamp, metres.
        textures: the atlas with the texture of clouds.
        texels: side of the shadow map.
        half_view: half of the shadow map's field of view, degrees.
    """
    half = texels / 2
    focal = half / np.tan(np.deg2rad(half_view))
    # Maps world points to (x·w, y·w, w) texels, where w is the distance below the lamp (y points down).
    view = np.array([[focal, half, 0, 0], [0, half, focal, 0], [0, 1, 0, 0]], float)
    view[:, 3] = -view[:, :3] @ lamp
    tone = np.array([1.0, rng.uniform(0.7, 1.0), rng.uniform(0.45, 1.0)])
    ambient = rng.uniform(0.15, 0.7)
    return Light(
        lamp=np.array([*lamp, 1.0]),
        lamp_rgb=tone * rng.uniform(0.5, 4),
        up_rgb=np.full(3, ambient),
        down_rgb=tone * ambient * 0.7,
        haze_rgb=np.ones(3),
        haze=0.0,
        zenith_rgb=np.ones(3),
        cloud_rgb=np.ones(3),
        clouds=np.array([textures.rows["clouds"][0], 0.0, 0.1, 0.0]),
        shadow_view=view,
        shadow_map=np.zeros((texels, texels), np.float32),
        soft=float(rng.uniform(1, 4)),
    )


def _apply_sensor(rng: Random, pictures: np.ndarray) -> np.ndarray:
    """Convert linear light [3, H, W, 3] to the values a camera stores, float32 in [0, 1].

    Applies random exposure, white balance, gamma and noise.
    """
    exposure = rng.uniform(0.3, 0.5) / np.clip(np.median(pictures[1]), 1e-3, None) ** 0.85
    drift = np.exp(rng.normal(0, 0.006, (3, 1, 1, 1)))  # automatic exposure differs between frames
    balance = np.exp(rng.normal(0, 0.05, 3))
    encoded = np.clip(pictures * (exposure * drift * balance * 0.5), 0, 1) ** (1 / rng.uniform(1.9, 2.4))
    encoded += rng.normal(0, rng.uniform(0.001, 0.007), pictures.shape)
    return np.clip(encoded, 0, 1).astype(np.float32)
