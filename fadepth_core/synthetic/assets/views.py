"""Cameras and lamps for scenes of 3D models, and a check of views before they are rendered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fadepth_core.rendering.raster import SKY_DEPTH, Light
from fadepth_core.rendering.textures import TextureSet
from fadepth_core.synthetic.dataset import Scene, lamplight

Random = np.random.Generator
Range = tuple[float, float]

#: Side of a lamp's shadow map in texels, and half of its field of view in degrees. Outside the field of view everything
#: is lit, even behind walls. A wider field would need more texels, because the lamp sees walls at a slant.
_SHADOW_TEXELS, _SHADOW_VIEW = 1024, 78.0


def draw_intrinsics(rng: Random, size: tuple[int, int], view: Range) -> np.ndarray:
    """Draw K [3, 3] of a camera with nearly square pixels and a principal point near the middle.

    Args:
        rng: source of the random numbers.
        size: height and width, pixels.
        view: range of the horizontal field of view, degrees.
    """
    height, width = size
    focal = 0.5 * width / np.tan(np.deg2rad(rng.uniform(*view)) / 2)
    centre = ((width - 1) / 2 + width * rng.normal(0, 0.015), (height - 1) / 2 + height * rng.normal(0, 0.02))
    return np.array([[focal, 0, centre[0]], [0, focal * rng.uniform(0.98, 1.02), centre[1]], [0, 0, 1]])


def lamp_light(rng: Random, textures: TextureSet, lamp: np.ndarray) -> Light:
    """Draw the light of a lamp at `lamp` [3] metres, under a ceiling, and ambient light.

    Like `synthetic.dataset.lamplight`, but with a larger shadow map, and mirrors show neither a sky nor a horizon.
    """
    light = lamplight(rng, textures, lamp, _SHADOW_TEXELS, _SHADOW_VIEW)
    # If the edges of shadows were wider than 1.5 texels, walls that the lamp sees at a slant would shadow themselves.
    return light._replace(haze_rgb=0.5 * light.down_rgb, zenith_rgb=0.5 * light.down_rgb, soft=rng.uniform(0.5, 1.5))


def is_good_view(
    scene: Scene, intrinsics: np.ndarray, pose: np.ndarray, size: tuple[int, int], nearest: float, sky: float
) -> bool:
    """Whether a view is good enough to be used: nothing too near, not too much sky, and more than one bare wall.

    The view is rendered at a sixth of its size, without shadows. It needs edges in the image, and second differences of
    inverse depth, which a plane does not have.

    Args:
        scene: the scene at time 0.
        intrinsics: K [3, 3], pixels.
        pose: camera-to-world pose [4, 4].
        size: (height, width) of the view, pixels.
        nearest: smallest allowed depth, metres.
        sky: largest allowed share of pixels with sky.
    """
    small = (max(24, size[0] // 6), max(24, size[1] // 6))
    scale = np.diag([small[1] / size[1], small[0] / size[0], 1.0])
    unlit = replace(scene, light=scene.light._replace(shadow_map=np.zeros((1, 1), np.float32)))
    picture, depth = unlit.render_at(0.0, scale @ intrinsics, pose, small)
    if depth.min() < nearest or np.mean(depth >= SKY_DEPTH) > sky:
        return False
    near, middle, far = np.quantile(depth, (0.05, 0.5, 0.95))
    if middle < 3.5 * nearest or far < 2 * near:
        return False
    grey = np.log(picture.mean(-1) + 0.02)
    edges = (np.abs(np.diff(grey, axis=0))[:, 1:] > 0.08) | (np.abs(np.diff(grey, axis=1))[1:] > 0.08)
    bends = np.abs(np.diff(1 / depth, 2, axis=1)) * depth[:, 1:-1] > 0.02
    return bool(edges.mean() > 0.06 and bends.mean() > 0.06)
