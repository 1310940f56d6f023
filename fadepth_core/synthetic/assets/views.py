"""Cameras and lamps for scenes of 3D models, and the test whether a view is worth rendering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fadepth_core.synthetic.dataset import Scene, lamplight
from fadepth_core.synthetic.raster import SKY_DEPTH, Light
from fadepth_core.synthetic.textures import TextureSet

Random = np.random.Generator
Range = tuple[float, float]

#: Side of a lamp's shadow map in texels, and half of its field of view in degrees. Beyond that view everything is lit,
#: even behind walls; a wider view would need more texels, because thin shadows fall on walls that are seen at a slant.
_SHADOW_TEXELS, _SHADOW_VIEW = 1024, 78.0


def draw_intrinsics(rng: Random, size: tuple[int, int], view: Range) -> np.ndarray:
    """K [3, 3] with nearly square pixels and a principal point near the middle.

    Args:
        size: height and width, pixels.
        view: range of the horizontal field of view, degrees.
    """
    height, width = size
    focal = 0.5 * width / np.tan(np.deg2rad(rng.uniform(*view)) / 2)
    centre = ((width - 1) / 2 + width * rng.normal(0, 0.015), (height - 1) / 2 + height * rng.normal(0, 0.02))
    return np.array([[focal, 0, centre[0]], [0, focal * rng.uniform(0.98, 1.02), centre[1]], [0, 0, 1]])


def lamp_light(rng: Random, textures: TextureSet, lamp: np.ndarray) -> Light:
    """Light of a lamp at `lamp` [3] under a ceiling, and ambient light; mirrors show neither sky nor horizon."""
    light = lamplight(rng, textures, lamp, _SHADOW_TEXELS, _SHADOW_VIEW)
    # With wider edges than 1.5 texels, walls that the lamp sees at a slant would cast shadows on themselves.
    return light._replace(haze_rgb=0.5 * light.down_rgb, zenith_rgb=0.5 * light.down_rgb, soft=rng.uniform(0.5, 1.5))


def is_good_view(
    scene: Scene, intrinsics: np.ndarray, pose: np.ndarray, size: tuple[int, int], nearest: float, sky: float
) -> bool:
    """Whether nothing is nearer than `nearest` metres, at most `sky` is sky, and the view is not one bare wall.

    `sky` is a share of the pixels. Renders the view at a sixth of the size without shadows. A plane has no second
    differences of inverse depth, and a bare one has no edges.
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
