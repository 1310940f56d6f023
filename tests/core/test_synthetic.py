"""Rendered scenes: depth, motion and intrinsics of the samples match their images."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fadepth_core.common import jit
from fadepth_core.data import collate
from fadepth_core.geometry import relative_motion, reproject, sample
from fadepth_core.rendering import mesh as m
from fadepth_core.rendering import raster
from fadepth_core.rendering.raster import SKY_DEPTH
from fadepth_core.rendering.textures import bark, build_atlas, fractal, parquet, planks
from fadepth_core.synthetic.dataset import Scene, SyntheticDataset, SyntheticTest, Track, daylight, draw_street

SIZE = (96, 192)
SMALL = (48, 96)
K = np.array([[100.0, 0, 95.5], [0, 100, 47.5], [0, 0, 1]])


def tensors(item):
    return {name: value for name, value in vars(item).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("preset", ["driving", "indoor"])
def test_samples_are_reproducible_in_a_loader_process(preset):
    dataset = SyntheticDataset(preset, SMALL, length=2, seed=4)
    (worker,) = DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=1)
    here = collate([SyntheticDataset(preset, SMALL, length=2, seed=4)[i] for i in range(2)])
    for name, value in tensors(here).items():
        assert torch.equal(value, tensors(worker)[name]), name
    assert not torch.equal(here.frames[0], here.frames[1])
    assert not torch.equal(here.frames[0], SyntheticDataset(preset, SMALL, seed=5)[0].frames)


@pytest.mark.parametrize("preset", ["driving", "indoor"])
def test_samples_are_complete_and_in_range(preset):
    dataset = SyntheticDataset(preset, SMALL)
    for index in range(2):
        item = dataset[index]
        assert item.frames.shape == (3, 3, *SMALL)
        assert item.depth.shape == SMALL
        assert all(value.dtype == torch.float32 for value in tensors(item).values())
        assert 0 <= item.frames.min() < 0.4 < item.frames.max() <= 1
        assert item.frames.std() > 0.05
        assert 0.05 < item.depth.min() < item.depth.max() <= SKY_DEPTH
        torch.testing.assert_close(item.poses[1], torch.eye(4))
        travelled = item.poses[2, :3, 3].norm()
        assert float(travelled) == pytest.approx(float(item.speed * item.interval), rel=0.1, abs=0.02)


def visible(seen):
    """Pixels of the middle camera that no other of its pixels occludes in the other camera, [1, 1, H, W]."""
    height, width = SIZE
    u, v = seen.pixels.round().long().unbind(1)
    cell = (v.clamp(0, height - 1) * width + u.clamp(0, width - 1)).flatten()
    moved = seen.depth.flatten()
    nearest = torch.full_like(moved, torch.inf).scatter_reduce(0, cell, moved, "amin")
    return (moved < 1.05 * nearest[cell]).view(1, 1, height, width)


@pytest.mark.parametrize("preset", ["driving", "indoor"])
def test_true_depth_and_motion_explain_the_other_frames(preset):
    """Warping reduces the difference between the frames of a static scene to less than 40 %.

    The rest is noise, exposure, reflections, and leaves thinner than a pixel.
    """
    dataset = SyntheticDataset(preset, SIZE, moving=False)
    warped_error, plain_error = [], []
    for index in range(3):
        item = collate([dataset[index]])
        middle = item.frames[:, 1]
        for other in (0, 2):
            seen = reproject(
                item.depth[:, None], relative_motion(item.poses[:, 1], item.poses[:, other]), item.intrinsics
            )
            moved = seen.valid & visible(seen) & (seen.flow.norm(dim=1, keepdim=True) > 1)
            moved = moved.expand_as(middle)
            warped_error.append((sample(item.frames[:, other], seen.pixels) - middle)[moved].abs())
            plain_error.append((item.frames[:, other] - middle)[moved].abs())
    assert torch.cat(warped_error).mean() < 0.4 * torch.cat(plain_error).mean()
    assert torch.cat(warped_error).median() < 0.02


def scene_of(mesh, track=Track()):  # noqa: B008 - immutable
    geometry, mover = mesh.geometry()
    textures = build_atlas(0)
    light = daylight(np.random.default_rng(0), textures)
    return Scene(geometry, mover, np.array(mesh.velocities), track, mesh.materials(), light, textures.texels)


def camera(x=0.0, y=-1.5, z=0.0):
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def ground_and_box():
    mesh = m.Mesh()
    row = build_atlas(0).rows["asphalt"][0]
    mesh.add(m.rectangle((-50, 0, 100), (100, 0, 0), (0, 0, -110), 4.0), mesh.material(row))
    mesh.add(m.box(2, 1, 2).at(1, 0, 11), mesh.material(row, 0.4), mover=mesh.mover((1.0, 0, 0)))
    return mesh


def test_depth_matches_the_geometry():
    """Ground 1.5 m below the camera; a box of 2 x 1 x 2 m whose front is 10 m ahead, with edges at x = 0 and 2."""
    _, depth = scene_of(ground_and_box()).render_at(0.0, K, camera(), SIZE)
    rows = np.arange(52, 96)
    np.testing.assert_allclose(depth[rows, 20], 1.5 / ((rows - 47.5) / 100), rtol=1e-4)
    face = np.isclose(depth, 10.0, rtol=1e-5)
    np.testing.assert_array_equal(np.nonzero(face.any(0))[0], np.arange(96, 116))  # 95.5 + 100·x/10 for x = 0 .. 2
    np.testing.assert_array_equal(np.nonzero(face.any(1))[0], np.arange(53, 63))  # 47.5 + 100·y/10 for y = 0.5 .. 1.5
    assert depth[0, 0] == SKY_DEPTH


def test_depths_of_two_views_agree():
    """Depth of the first camera, transformed by the motion, equals depth of the second."""
    scene, poses = scene_of(ground_and_box()), [camera(), camera(0.4, -1.6, 1.0)]
    turn = np.deg2rad(4)
    poses[1][:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    here, there = (torch.from_numpy(scene.render_at(0.0, K, pose, SIZE)[1])[None, None].double() for pose in poses)
    motion = relative_motion(*(torch.from_numpy(pose)[None] for pose in poses))
    seen = reproject(here, motion, torch.from_numpy(K)[None])
    # On a plane, bilinear interpolation is exact for inverse depth.
    expected = 1 / sample(1 / there, seen.pixels)
    compared = seen.valid & (here < SKY_DEPTH) & (seen.depth < 1.01 * expected)
    agrees = (seen.depth / expected - 1).abs() < 1e-3
    assert compared.float().mean() > 0.25
    assert agrees[compared].float().mean() > 0.97, "all but the edges of the box and the horizon"


def test_objects_move_with_their_velocity():
    scene = scene_of(ground_and_box())
    for time in (-0.5, 0.0, 1.0):
        _, depth = scene.render_at(time, K, camera(), SIZE)
        columns = np.nonzero(np.isclose(depth, 10.0, rtol=1e-5).any(0))[0]
        np.testing.assert_array_equal(columns, np.arange(96 + 10 * time, 116 + 10 * time))


def test_the_ground_follows_the_track():
    track = Track((6.0, 300.0), (2.0, 200.0))
    mesh = m.Mesh()
    z = np.arange(-5.0, 100, 1.0)
    line, side = np.stack([np.zeros_like(z), np.zeros_like(z), z], 1), np.array([4.0, 0, 0])
    mesh.add(m.strip(line - side, line + side, 4.0), mesh.material(build_atlas(0).rows["asphalt"][0]))
    at = 40.0
    x, y = track.shift(at)
    _, depth = scene_of(mesh, track).render_at(0.0, K, camera(x, y - 1.5, at - 4), SIZE)
    # The middle of the road at z = 40 lies 4 m ahead of the camera and 1.5 m below it.
    assert depth[round(47.5 + 100 * 1.5 / 4), 95] == pytest.approx(4.0, rel=0.02)
    slope = track.slope(at)
    numeric = [(b - a) / 0.02 for a, b in zip(track.shift(at - 0.01), track.shift(at + 0.01), strict=True)]
    np.testing.assert_allclose(slope, numeric, rtol=1e-4)


def test_the_camera_keeps_its_height_above_the_ground():
    for seed in range(4):
        scene, poses, _, _ = draw_street(np.random.default_rng(seed), build_atlas(0), False, 1.0)
        heights = [scene.track.shift(pose[2, 3])[1] - pose[1, 3] for pose in poses]
        assert min(heights) > 0.35
        assert max(heights) < 2.05
        assert np.ptp(heights) < 0.04, "only the vibration of a car"


def test_stride_multiplies_the_time_between_frames():
    near, far = (SyntheticDataset("driving", SMALL, stride=s)[1] for s in (1.0, 3.0))
    assert float(far.interval) == pytest.approx(3 * float(near.interval))
    assert float(far.speed) == pytest.approx(float(near.speed))
    assert float(far.poses[2, :3, 3].norm()) == pytest.approx(3 * float(near.poses[2, :3, 3].norm()), rel=0.05)


def test_test_images_have_unknown_depth_in_the_sky():
    test = SyntheticTest("driving", SMALL, length=3)
    images = list(test)
    assert len(images) == len(test) == 3
    assert all(image.image.dtype == np.uint8 and image.image.shape == (*SMALL, 3) for image in images)
    assert all(image.depth.max() < SKY_DEPTH for image in images)
    assert any((image.depth == 0).any() for image in images)
    assert not np.array_equal(images[0].image, images[1].image)
    with pytest.raises(IndexError):
        test[3]


def test_iteration_ends_after_an_epoch():
    dataset = SyntheticDataset("indoor", SMALL, length=2)
    assert len(list(dataset)) == len(dataset) == 2
    with pytest.raises(IndexError):
        dataset[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "moon"}, "preset must be 'driving' or 'indoor', got 'moon'"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"stride": 0}, "stride must be positive, got 0"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticDataset(**options)


def test_without_numba_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(
        ImportError, match=r"rendered scenes and multi-view stereo need numba: pip install 'fadepth_ros\[train\]'"
    ):
        runpy.run_path(jit.__file__)


def test_a_static_sample_repeats_one_view_with_the_same_depth():
    static, moving = (SyntheticDataset("driving", SIZE, seed=5, static=static)[3] for static in (True, False))
    for i in (0, 2):
        noise, motion = ((item.frames[i] - item.frames[1]).abs().mean() for item in (static, moving))
        assert noise < 0.5 * motion
    assert torch.equal(static.depth, moving.depth)
    assert torch.allclose(static.poses, torch.eye(4).expand(3, 4, 4), atol=1e-6)
    assert static.speed == 0


def test_the_depth_of_the_sky_is_far_or_unknown():
    far, unknown = (SyntheticDataset("driving", SMALL, seed=1, static=True, sky=sky)[0].depth for sky in (True, False))
    above = far >= raster.SKY_DEPTH
    assert 0.02 < above.float().mean() < 0.9
    assert torch.equal(unknown, far.masked_fill(above, 0))


@pytest.mark.parametrize(("draw", "axis"), [(planks, 0), (bark, 0), (parquet, 1)])
def test_grain_follows_the_boards_and_the_trunk(draw, axis):
    tone = draw(np.random.default_rng(0))[..., :3].mean(-1)
    along, across = (np.abs(np.diff(tone, axis=a)).mean() for a in (axis, 1 - axis))
    assert along < 0.7 * across


def test_stretched_noise_is_long_along_the_stretched_axis():
    noise = fractal(np.random.default_rng(0), 1.0, (8.0, 1.0))
    assert np.abs(np.diff(noise, axis=1)).mean() < 0.5 * np.abs(np.diff(noise, axis=0)).mean()
