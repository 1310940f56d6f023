"""The temporal filter: jitter is removed, motion is not, and unrelated frames are not compared."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fadepth_core.common.pinhole import unproject
from fadepth_core.runtime.engine import DepthResult
from fadepth_core.runtime.temporal import TemporalFilter

SIZE = (128, 416)
K = np.array([[241.0, 0, 207.5], [0, 245.0, 63.5], [0, 0, 1]])
INTERVAL = 0.1
FILTERS = ("scale", "full")


def street(count=25, speed=5.0, box=None, box_speed=0.0, seed=0):
    """Frames [H, W, 3] of a street with walls, their depths [H, W] and the pixels of a box `box` metres ahead.

    The camera drives with `speed` towards a wall at 70 m; the box drives ahead with `box_speed`, metres per second.
    """
    texture = cv2.GaussianBlur(np.random.default_rng(seed).random((512, 512), np.float32), (0, 0), 1.5)
    texture = 255 * (texture - texture.min()) / np.ptp(texture)
    v, u = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    with np.errstate(divide="ignore"):
        ground, sides = np.where(y > 0, 1.6 / y, np.inf), 6 / np.abs(x)
    frames = []
    for seconds in INTERVAL * np.arange(count):
        travelled = speed * seconds
        depth = np.minimum(ground, 70 - travelled)
        place = np.where(ground > depth, [3 * x * depth, 3 * y * depth], [12 * x * depth, 12 * (depth + travelled)])
        place = np.where(sides < depth, [8 * (sides + travelled), 8 * y * sides + 100], place)
        depth = np.minimum(depth, sides)
        inside = np.zeros(SIZE, bool)
        if box is not None:
            z = box + (box_speed - speed) * seconds
            inside = (np.abs(x * z) < 1.5) & (y * z < 1.6) & (y * z > -0.8) & (z < depth + 1)
            depth, place = np.where(inside, z, depth), np.where(inside, [60 * x * z + 37, 60 * y * z + 91], place)
        grey = cv2.remap(texture, *np.mod(place, 511).astype(np.float32), cv2.INTER_LINEAR)
        frames.append((cv2.cvtColor(grey.astype(np.uint8), cv2.COLOR_GRAY2RGB), depth.astype(np.float32), inside))
    return frames


def jittering(frames, whole=0.05, parts=0.0, seed=1):
    """Depths with errors that are new in every frame: of the whole frame, and of its parts (standard deviations of log)."""
    random = np.random.default_rng(seed)
    for _, depth, _ in frames:
        field = cv2.resize(random.normal(0, parts, (5, 12)), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        yield (depth * np.exp(random.normal(0, whole) + field)).astype(np.float32)


def errors(mode, frames, depths):
    """log(filtered depth / true depth) of the frames after the first five [N, H, W]."""
    steady = TemporalFilter(mode)
    filtered = [
        depth * steady.correction(image, depth, K, INTERVAL * number)
        for number, ((image, _, _), depth) in enumerate(zip(frames, depths, strict=True))
    ]
    return np.log(np.stack(filtered) / np.stack([true for _, true, _ in frames]))[5:]


@pytest.fixture(scope="module")
def drive():
    return street()


def steps(error):
    """Changes of scale from frame to frame."""
    return np.diff(np.median(error, axis=(1, 2)))


def test_jitter_of_the_scale_is_removed(drive):
    depths = list(jittering(drive))
    before = errors("off", drive, depths)
    for mode in FILTERS:
        after = errors(mode, drive, depths)
        assert steps(after).std() < 0.5 * steps(before).std()
        assert np.abs(after).mean() < 0.95 * np.abs(before).mean()


def test_full_also_removes_the_jitter_of_parts(drive):
    depths = list(jittering(drive, whole=0.0, parts=0.04))
    off, scale, full = (np.abs(np.diff(errors(mode, drive, depths), axis=0)).mean() for mode in ("off", *FILTERS))
    assert full < 0.75 * min(off, scale)


@pytest.mark.parametrize("mode", FILTERS)
def test_depth_without_jitter_is_kept_while_the_camera_drives(mode, drive):
    error = errors(mode, drive, [depth for _, depth, _ in drive])
    assert np.abs(np.median(error, axis=(1, 2))).max() < 0.02
    assert np.abs(error).mean() < 0.02


@pytest.mark.parametrize(("speed", "box", "box_speed"), [(5.0, 45.0, -10.0), (8.0, 12.0, 8.0), (0.0, 12.0, 6.0)])
def test_what_moves_by_itself_is_changed_by_at_most_five_percent_more(speed, box, box_speed):
    """An oncoming car, one driving ahead at the camera's speed, and one that leaves a camera at rest."""
    frames = street(20, speed, box, box_speed)
    depths = [depth for _, depth, _ in frames]
    inside = np.stack([pixels for _, _, pixels in frames])[5:]
    scale, full = (errors(mode, frames, depths) for mode in FILTERS)
    assert np.abs(scale[inside]).max() < 0.08
    assert np.abs(full - scale).max() < 0.0501


@pytest.mark.parametrize("mode", FILTERS)
@pytest.mark.parametrize(
    "change", ["clock set back", "same stamp", "gap", "other camera", "other size", "scene cut", "engine"]
)
def test_frames_that_do_not_belong_together_are_not_compared(mode, change, drive):
    steady = TemporalFilter(mode)
    steady.configure(mode, "engine")
    (first, depth, _), (second, _, _) = drive[:2]
    steady.correction(first, depth, K, 10.0)
    far, intrinsics, seconds = 1.1 * depth, K, 10.1
    if change == "clock set back":
        seconds = 5.0
    elif change == "same stamp":
        seconds = 10.0
    elif change == "gap":
        seconds = 11.5
    elif change == "other camera":
        intrinsics = K * [[1.2], [1.2], [1]]
    elif change == "other size":
        far = far[:64, :208]
    elif change == "scene cut":
        second = street(1, seed=5)[0][0][::-1]
    else:
        steady.configure(mode, "other engine")
    np.testing.assert_array_equal(steady.correction(second, far, intrinsics, seconds), 1)
    assert np.mean(steady.correction(second, 1.1 * far, intrinsics, seconds + 0.1)) < 0.95, "and goes on from there"


@pytest.mark.parametrize("mode", FILTERS)
def test_unknown_depth_and_unknown_intrinsics(mode, drive):
    steady = TemporalFilter(mode)
    for number, ((image, _, _), depth) in enumerate(zip(drive, jittering(drive), strict=True)):
        depth[:40] = (np.nan, np.inf, -np.inf)[number % 3]
        factor = steady.correction(image, depth, None, INTERVAL * number)
        assert np.isfinite(factor).all()
        assert 0.8 < np.mean(factor) < 1.25
    steady.correction(image, np.full(SIZE, np.nan, np.float32), None, INTERVAL * (number + 1))
    assert np.all(steady.correction(image, depth, None, INTERVAL * (number + 2)) == 1)


@pytest.mark.parametrize("mode", FILTERS)
def test_points_are_corrected_with_depth_and_a_known_factor_is_no_jitter(mode, drive):
    steady = TemporalFilter(mode)
    for number, factor in enumerate((1.0, 1.0, 1.5, 1.5)):  # 1.5: a correction by the camera's height begins
        image, depth, _ = drive[number]
        depth = np.float32(1.1 if number % 2 else 1) * depth * np.float32(factor)
        points = unproject(depth, K).astype(np.float32)
        result = steady.apply(DepthResult(depth, points, K), image, INTERVAL * number, factor)
        np.testing.assert_allclose(result.points[..., 2], result.depth, rtol=1e-6)
        assert np.median(result.depth / depth) == pytest.approx(1.0, abs=0.11)
        if number == 1:
            assert np.median(result.depth / depth) < 0.95
