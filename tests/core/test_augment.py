"""Augmentation changes intrinsics, depth, poses and teacher maps together with the frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fadepth_core.data import Sample, collate
from fadepth_core.data.augment import Augmentation, cutmix_strip
from fadepth_core.geometry import relative_motion, reproject
from fadepth_core.geometry import sample as sample_at
from fadepth_core.synthetic.dataset import SyntheticDataset

H, W = 60, 96
K = torch.tensor([[80.0, 0, 45.0], [0, 82.0, 31.0], [0, 0, 1]])
POINT = torch.tensor([0.6, -0.3, 4.0])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def spot(centre):
    """An image [H, W] with a blurred bright spot at `centre` (u, v)."""
    v, u = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return torch.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / 18.0)


def project(k, point):
    return (k @ point / point[2])[:2]


def sample_with_a_spot():
    """A bright spot at `POINT`, 4 m away, on a background 9 m away."""
    picture = spot(project(K, POINT))
    depth = torch.full((H, W), 9.0)
    depth[picture > 0.5] = 4.0
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([-0.3, 0, 0.3])
    return Sample(picture.expand(3, 3, H, W).clone(), K, torch.tensor(0.1), "spot", None, poses, depth)


def centre_of(picture):
    """Centroid (u, v) of an image [H, W]."""
    weight = picture / picture.sum()
    v, u = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return torch.stack([(weight * u).sum(), (weight * v).sum()])


@pytest.fixture(scope="module")
def street():
    """A rendered sample in which only the camera moves."""
    return SyntheticDataset("driving", (96, 192), moving=False)[5]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_points_are_at_the_pixels_given_by_the_new_intrinsics(flip, seed):
    out = Augmentation(scale=1.15, flip=flip, jitter=0)(sample_with_a_spot(), generator(seed))
    assert out.frames.shape == (3, 3, H, W)
    point = POINT * torch.tensor([-1.0, 1, 1]) if flip else POINT
    for frame in out.frames:
        torch.testing.assert_close(centre_of(frame[0]), project(out.intrinsics, point), atol=0.15, rtol=0)
    near = (out.depth == 4.0).float()
    torch.testing.assert_close(centre_of(near), project(out.intrinsics, point), atol=0.6, rtol=0)
    assert out.intrinsics[0, 0] >= 80
    assert set(out.depth.unique().tolist()) == {4.0, 9.0}, "depth is never interpolated"


def test_depth_of_another_size_is_cropped_like_the_frames():
    original = sample_with_a_spot()
    coarse = replace(original, depth=original.depth[::2, ::2])
    out = Augmentation(flip=0, jitter=0)(coarse, generator(1))
    full = Augmentation(flip=0, jitter=0)(original, generator(1))
    assert out.depth.shape == (H // 2, W // 2)
    assert (out.depth != full.depth[::2, ::2]).float().mean() < 0.04


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_true_depth_and_motion_still_explain_the_frames(street, flip):
    def error(item):
        batch = collate([item])
        motion = relative_motion(batch.poses[:, 1], batch.poses[:, 2])
        seen = reproject(batch.depth[:, None], motion, batch.intrinsics)
        difference = (sample_at(batch.frames[:, 2], seen.pixels) - batch.frames[:, 1]).abs()
        return float(difference[seen.valid.expand_as(difference)].mean())

    before = error(street)
    wrong = error(replace(street, poses=street.poses[[2, 1, 0]]))
    assert wrong > 2 * before, "wrong motion must give a larger error"
    for seed in range(3):
        assert error(Augmentation(scale=1.15, flip=flip, jitter=0)(street, generator(seed))) < 1.25 * before


def test_the_three_frames_get_the_same_colour_change():
    item = sample_with_a_spot()
    item.frames[:] = torch.rand(3, H, W, generator=generator(0))
    out = Augmentation(scale=1, flip=0, jitter=1)(item, generator(3))
    assert torch.equal(out.frames[0], out.frames[1])
    assert torch.equal(out.frames[0], out.frames[2])
    assert (out.frames - item.frames).abs().mean() > 0.01
    torch.testing.assert_close(out.intrinsics, item.intrinsics)


def test_without_augmentation_nothing_changes():
    item = sample_with_a_spot()
    out = Augmentation(scale=1, flip=0, jitter=0)(item, generator(0))
    for name in ("frames", "intrinsics", "poses", "depth"):
        assert torch.equal(getattr(out, name), getattr(item, name)), name


def test_the_generator_determines_the_result_and_the_original_is_kept():
    item = sample_with_a_spot()
    known = ("frames", "intrinsics", "poses", "depth")
    kept = {name: getattr(item, name).clone() for name in known}
    results = [Augmentation()(item, generator(seed)) for seed in (7, 7, 8)]
    assert torch.equal(results[0].frames, results[1].frames)
    assert torch.equal(results[0].intrinsics, results[1].intrinsics)
    assert not torch.equal(results[0].intrinsics, results[2].intrinsics)
    for name in known:
        assert torch.equal(getattr(item, name), kept[name]), name


def test_flip_has_the_given_probability():
    item = sample_with_a_spot()
    flipped = sum(
        bool(Augmentation(scale=1, flip=0.25, jitter=0)(item, generator(s)).intrinsics[0, 2] != 45) for s in range(200)
    )
    assert 35 < flipped < 65


@pytest.mark.parametrize("size", [(H, W), (H // 2, W // 3)])
def test_a_cutmix_strip_has_the_frames_and_depth_of_the_other_sample(size):
    one, other = sample_with_a_spot(), sample_with_a_spot()
    one = replace(one, frames=torch.zeros(3, 3, H, W), depth=torch.full((H, W), 1.0))
    other = replace(other, frames=torch.ones(3, 3, H, W), depth=torch.full(size, 2.0), name="other")
    widths = []
    for seed in range(50):
        mixed = cutmix_strip(one, other, generator(seed))
        strip = mixed.frames[0, 0, 0] == 1
        widths.append(int(strip.sum()) / W)
        assert int(strip.diff().sum()) <= 2, "one strip"
        torch.testing.assert_close(mixed.frames, strip.float().expand(3, 3, H, W))
        torch.testing.assert_close(mixed.depth, (1.0 + strip).expand(H, W))
    assert 0.19 < min(widths) < 0.3
    assert 0.55 < max(widths) < 0.68
    assert not one.frames.any(), "the original must not change, because data sets may keep it in memory"
    assert mixed.name == f"{one.name} and other"


# -------------------------------------------------------------------------------------------- camera rotation, teacher


def turned(sample, seed, **settings):
    """`sample` seen by a rotated camera through a longer lens."""
    return Augmentation(**{"scale": 1.3, "stretch": 1.05, "roll": 4, "pitch": 4, "flip": 0, "jitter": 0, **settings})(
        sample, generator(seed)
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_rotated_camera_sees_the_point_at_the_same_distance(seed):
    """Frames, depth along the new optical axis, and poses change together."""
    item = sample_with_a_spot()
    out = turned(item, seed)
    # Poses are relative to the middle camera, so the direction between two cameras shows the rotation.
    assert not torch.allclose(out.poses[2, :3, 3], item.poses[2, :3, 3], atol=1e-3)
    torch.testing.assert_close(out.poses[1], torch.eye(4), atol=1e-6, rtol=0)
    place = centre_of(out.frames[1, 0])
    near = out.depth < 6.5
    near &= out.depth > 0
    torch.testing.assert_close(centre_of(near.float()), place, atol=0.6, rtol=0)
    ray = torch.linalg.inv(out.intrinsics) @ torch.tensor([*place, 1.0])
    # The spot is on a plane at 4 m along the old axis; its distance from the camera does not change.
    expected, found = POINT.norm(), ray.norm() * out.depth[near].mean()
    assert float(found) == pytest.approx(float(expected), rel=0.03)


def test_pixels_from_outside_the_image_have_unknown_depth():
    out = turned(sample_with_a_spot(), 3, scale=1.0, stretch=None, roll=10)
    assert (out.depth == 0).any()
    assert (out.depth[out.depth > 0] > 3.5).all()


def test_true_depth_and_motion_explain_the_frames_of_a_rotated_camera(street):
    out = turned(street, 4, scale=1.15)
    batch = collate([out])
    motion = relative_motion(batch.poses[:, 1], batch.poses[:, 2])
    seen = reproject(batch.depth.clamp(min=0.5)[:, None], motion, batch.intrinsics)
    difference = (sample_at(batch.frames[:, 2], seen.pixels) - batch.frames[:, 1]).abs()
    known = seen.valid & (batch.depth > 0)[:, None]
    before = (batch.frames[:, 2] - batch.frames[:, 1]).abs()
    assert difference[known.expand_as(difference)].mean() < 0.5 * before[known.expand_as(before)].mean()


def test_a_teachers_disparity_is_scaled_with_the_focal_length():
    """A teacher predicts for one focal length: a longer lens reduces its depth, as in `at_focal_length`."""
    item = sample_with_a_spot()
    teacher = {"disparity.0": 1 / item.depth[None], "encoder.0": torch.ones(1, H // 2, W // 2)}
    out = turned(replace(item, teacher=teacher), 2)
    torch.testing.assert_close(out.teacher["encoder.0"], torch.ones(1, H // 2, W // 2))
    longer = float((out.intrinsics[0, 0] * out.intrinsics[1, 1] / (K[0, 0] * K[1, 1])) ** 0.5)
    assert longer > 1.02
    flat = (out.depth == out.depth.median()) | (out.depth > 8)
    ratio = out.teacher["disparity.0"][0] * out.depth / longer
    assert float(ratio[flat].median()) == pytest.approx(1, rel=0.01)


def test_sensor_effects_change_only_the_frames():
    item = sample_with_a_spot()
    item.frames[:] = 0.2 + 0.6 * torch.rand(3, 3, H, W, generator=generator(0))
    results = [turned(item, seed, scale=1, stretch=None, roll=0, pitch=0, camera=1.0) for seed in (1, 1, 2)]
    assert torch.equal(results[0].frames, results[1].frames)
    assert not torch.equal(results[0].frames, results[2].frames)
    for out in results:
        assert out.frames.shape == item.frames.shape
        assert 0.005 < (out.frames - item.frames).abs().mean() < 0.35
        assert 0 <= out.frames.min() <= out.frames.max() <= 1
        assert torch.equal(out.depth, item.depth)
