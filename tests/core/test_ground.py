"""The camera's height above the ground in the image, and the scale of depth from it."""

from __future__ import annotations

import numpy as np
import pytest

from fadepth_core.common.pinhole import unproject
from fadepth_core.rendering.raster import SKY_DEPTH
from fadepth_core.rendering.textures import build_atlas
from fadepth_core.runtime.ground import GroundScale, camera_height
from fadepth_core.synthetic.dataset import SyntheticDataset, draw_street

K = np.array([[200.0, 0, 207.5], [0, 200.0, 63.5], [0, 0, 1]])
SIZE = (128, 416)


def street(height, pitch=0.0, roll=0.0, box=False):
    """Depth above flat ground, walls on both sides 8 m away; angles in radians."""
    rays = unproject(np.ones(SIZE), K)
    down = np.array([np.sin(roll), np.cos(roll) * np.cos(pitch), np.cos(roll) * np.sin(pitch)])
    ground = height / np.maximum(rays @ down, 1e-6)
    walls = 8 / np.maximum(np.abs(rays[..., 0]), 1e-6)
    depth = np.minimum(ground, walls)
    if box:
        depth[70:, 150:260] = 4.0
    return np.where(depth < 80, depth, np.inf).astype(np.float32)


@pytest.mark.parametrize(
    "options", [{}, {"pitch": 0.1}, {"pitch": -0.1, "roll": 0.03}, {"box": True}], ids=lambda o: ",".join(o) or "level"
)
@pytest.mark.parametrize("height", [0.3, 1.65])
def test_height_above_constructed_streets(height, options):
    noisy = street(height, **options) * np.random.default_rng(0).normal(1, 0.02, SIZE)
    assert camera_height(noisy, K) == pytest.approx(height, rel=0.03)


def test_walls_ceilings_noise_and_small_patches_are_not_ground():
    assert camera_height(np.full(SIZE, 5.0, np.float32), K) is None, "a wall ahead"
    assert camera_height(np.full(SIZE, np.inf, np.float32), K) is None
    assert camera_height(np.random.default_rng(0).uniform(1, 50, SIZE), K) is None
    assert camera_height(street(1.5)[::-1], K) is None, "a ceiling is above"
    sparse = np.full(SIZE, np.inf, np.float32)
    sparse[100:120, 180:230] = street(1.5)[100:120, 180:230]
    assert camera_height(sparse, K) is None, "too few points"


def test_rendered_streets():
    """With bends, hills, kerbs and traffic: the ground is found in most, at the height of the rendering camera."""
    ratios = []
    for index in range(20):
        sample = SyntheticDataset("driving", SIZE, static=True, seed=2)[index]
        _, poses, _, _ = draw_street(np.random.default_rng([2, index]), build_atlas(0), True, 1.0)
        depth = np.where(sample.depth < SKY_DEPTH, sample.depth, np.inf)
        found = camera_height(depth, sample.intrinsics.double().numpy())
        if found is not None:
            ratios.append(found / -poses[1][1, 3])
    assert len(ratios) >= 12
    assert np.abs(np.log(ratios)).max() < 0.15
    assert np.median(np.abs(np.log(ratios))) < 0.04


def test_scale_follows_the_ground_smoothly():
    scale = GroundScale(1.65)
    assert scale.factor == 1.0
    scale.update(street(1.1), K)
    assert scale.seen
    assert scale.factor == pytest.approx(1.5, rel=0.01)
    scale.update(street(1.0), K)
    assert 1.5 < scale.factor < 1.55, "one image changes it by a share only"
    for _ in range(40):
        scale.update(street(1.0), K)
    assert scale.factor == pytest.approx(1.65, rel=0.01)
    before = scale.factor
    scale.update(np.full(SIZE, 5.0), K)
    assert not scale.seen
    assert scale.factor == before


def test_any_scale_is_found():
    """Networks trained without metric scale give depth in arbitrary units."""
    scale = GroundScale(1.5)
    scale.update(street(1.5) / 30, K)
    assert scale.factor == pytest.approx(30, rel=0.02)
