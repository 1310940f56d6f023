"""Camera motion for labels: odometry is used if it agrees with the images, else structure from motion replaces it."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest

from fadepth_core.common.errors import DataError
from fadepth_core.data.video import open_clips
from fadepth_core.labels.chain import Chain, joined
from fadepth_core.labels.motion import Motion, check_odometry, estimate_motion, find_places, usable_frames
from fadepth_core.labels.scale import depth_factor, ground_height, path_factors, rescaled, smooth_factors
from fadepth_core.labels.structure import available

HEIGHT, WIDTH, FOCAL = 96, 256, 150.0
K = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
HALL = np.array([4.0, 1.5, 40.0])  # half of its width, height and length, metres
STEP = 0.3
COUNT = 20


def turned(degrees, axis=1):
    """Pose [4, 4] that is rotated about an axis of the camera (1: yaw)."""
    vector = np.zeros(3)
    vector[axis] = np.radians(degrees)
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(vector)[0]
    return pose


def drive(count=COUNT):
    """Poses on a curve through the hall, camera-to-world."""
    poses = [turned(-6)]
    for i in range(count - 1):
        poses.append(poses[-1] @ turned(0.8 * np.sin(i / 4)))
        poses[-1][:3, 3] += STEP * poses[-1][:3, 2]
    return np.array(poses)


def picture(pose):
    """The hall, a textured box, as a camera at `pose` sees it: RGB [H, W, 3]."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(u - K[0, 2]) / FOCAL, (v - K[1, 2]) / FOCAL, np.ones(u.shape)], axis=-1) @ pose[:3, :3].T
    walls = np.where(rays > 0, HALL, -HALL)
    distances = (walls - pose[:3, 3]) / np.where(rays == 0, 1e-9, rays)
    wall = distances.argmin(-1)
    points = pose[:3, 3] + distances.min(-1)[..., None] * rays
    # Texture coordinates are the two others of x, y and z; every wall has its own part of the texture.
    across = np.where(wall == 0, points[..., 1], points[..., 0])
    along = np.where(wall == 2, points[..., 1], points[..., 2])
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024), np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)
    x, y = 20 * across + 300 * wall + 500, 20 * along + 100 * wall + 500
    grey = cv2.remap(texture, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.repeat(grey[..., None], 3, axis=2)


def open_clip(folder, pictures, poses=None, **keys):
    folder.mkdir()
    camera = {"fx": FOCAL, "fy": FOCAL, "cx": K[0, 2], "cy": K[1, 2], "fps": 10, **keys}
    if poses is not None:
        np.savetxt(folder / "poses.txt", poses[:, :3].reshape(-1, 12))
        camera["poses"] = "poses.txt"
    for i, image in enumerate(pictures):
        cv2.imwrite(str(folder / f"{i:06d}.png"), image)
    (folder / "camera.json").write_text(json.dumps(camera))
    return open_clips(folder, (HEIGHT, WIDTH))[0]


@pytest.fixture(scope="module")
def hall(tmp_path_factory):
    """Clip of the drive through the hall with its true poses, and the places that are checked."""
    poses = drive()
    clip = open_clip(tmp_path_factory.mktemp("motion") / "hall", [picture(pose) for pose in poses], poses)
    return clip, find_places(clip, range(clip.count))


WRONG = {
    "yaw noise": lambda p: np.array(
        [q @ turned(a) for q, a in zip(p, np.random.default_rng(0).normal(size=len(p)), strict=True)]
    ),
    "late": lambda p: p[np.maximum(np.arange(len(p)) - 2, 0)] @ np.array([turned(3 * i % 7) for i in range(len(p))]),
    "axes of the vehicle": lambda p: p @ np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
    "world to camera": np.linalg.inv,
    "backwards": lambda p: p * np.array([[1, 1, 1, -1]] * 3 + [[1, 1, 1, 1]]),
}


def test_odometry_that_agrees_with_the_images_is_used(hall, tmp_path):
    clip, _ = hall
    motion = estimate_motion(clip, tmp_path, frames=range(5, COUNT))
    assert motion.source == motion.scale == "odometry"
    assert np.array_equal(motion.poses[5:], clip.poses[5:])
    assert np.isnan(motion.poses[:5]).all()  # not asked for
    assert motion.figures["odometry error px"] < 0.5


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_wrong_odometry_is_rejected(hall, spoil):
    clip, places = hall
    assert check_odometry(places, clip.poses, clip.intrinsics).good
    assert not check_odometry(places, spoil(clip.poses), clip.intrinsics).good


def moving_blocks(count):
    """Blocks that move in directions of their own, as a crowd does."""
    random = np.random.default_rng(1)
    texture = cv2.GaussianBlur(random.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 1.5)
    motion = random.uniform(-3, 3, (3, 8, 2))
    images = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    for row, column in np.ndindex(3, 8):
        block = np.s_[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        for i in range(count):
            shift = np.array([[1, 0, motion[row, column, 0] * i], [0, 1, motion[row, column, 1] * i]])
            images[(i, *block)] = cv2.warpAffine(texture[block], shift, (32, 32), borderMode=cv2.BORDER_WRAP)
    return cv2.normalize(images, None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        (lambda: [picture(np.eye(4))] * 12, "never moves"),
        (lambda: [picture(turned(i)) for i in range(12)], "only turns"),
        (lambda: np.zeros((12, HEIGHT, WIDTH, 3), np.uint8), "can be tracked nowhere"),
        (lambda: moving_blocks(12), "moving objects"),
    ],
)
def test_recordings_without_usable_motion_say_why(tmp_path, pictures, reason):
    clip = open_clip(tmp_path / "clip", pictures())
    with pytest.raises(DataError, match=f"^{clip.path}: .*{reason}"):
        estimate_motion(clip, tmp_path)


@pytest.mark.skipif(not available(), reason="pycolmap is not installed")
def test_structure_from_motion_finds_the_path_and_resumes(hall, tmp_path, monkeypatch):
    clip, _ = hall
    truth = clip.poses
    monkeypatch.setattr(clip, "poses", WRONG["yaw noise"](truth))
    motion = estimate_motion(clip, tmp_path)  # the odometry is wrong in rotation, but not in length
    assert motion.source == "structure from motion"
    assert motion.scale == "odometry"
    located = np.isfinite(motion.poses[:, 0, 0])
    assert located.mean() > 0.9
    first = np.argmax(located)
    estimate, true = (np.linalg.inv(poses[first]) @ poses[located] for poses in (motion.poses, truth))
    length = STEP * located.sum()
    assert np.linalg.norm(estimate[:, :3, 3] - true[:, :3, 3], axis=1).max() < 0.03 * length

    monkeypatch.setattr("subprocess.Popen", None)  # a second run starts no process
    again = estimate_motion(clip, tmp_path, camera_height=HALL[1])
    assert again.scale == "camera height"
    lengths = [np.linalg.norm(np.diff(m.poses[located, :3, 3], axis=0), axis=1).sum() for m in (motion, again)]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.05)


@pytest.mark.parametrize(
    ("script", "reason"),
    [("exit 1", "no message"), ("echo no memory; echo '@ 0x7f Py_RunMain'; kill -ABRT $$", "no memory (signal 6)")],
)
def test_failure_of_the_process_is_one_line(hall, tmp_path, monkeypatch, script, reason):
    clip, _ = hall
    process = tmp_path / "process"
    process.write_text(f"#!/bin/sh\n{script}\n")
    process.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(process))
    monkeypatch.setattr("fadepth_core.labels.structure.available", lambda: True)
    with pytest.raises(DataError, match=rf"^{clip.path}: structure from motion failed: {re.escape(reason)}$"):
        estimate_motion(clip, tmp_path, "structure")


def test_scale_follows_a_drift():
    """Steps whose unit drifts by a factor of two, with outliers and a stop, get their lengths back."""
    random = np.random.default_rng(0)
    true = np.full(100, 0.5)
    true[40:50] = 0  # standing
    drift = np.linspace(1, 2, 100)
    poses = np.tile(np.eye(4), (101, 1, 1))
    poses[1:, 2, 3] = np.cumsum(true / drift)
    measured = true * random.normal(1, 0.03, 100)
    measured[::9] *= 3
    frames, factors = path_factors(poses[:, :3, 3], measured, range(101))
    assert not set(frames) & set(range(40, 50))
    steps = np.diff(rescaled(poses, smooth_factors(frames, factors, range(101), window=8))[:, 2, 3])
    assert steps == pytest.approx(true, rel=0.08)


def test_ground_below_the_camera_gives_its_height():
    random = np.random.default_rng(0)
    ground = np.column_stack([random.uniform(-4, 4, 60), np.full(60, 1.6), random.uniform(3, 14, 60)])
    ground[:, 1] += random.normal(0, 0.02, 60)
    bushes = np.column_stack([random.uniform(-5, 5, 80), random.uniform(-2, 1.2, 80), random.uniform(3, 14, 80)])
    pitch = turned(3, axis=0)[:3, :3]  # of the camera, which moves along the ground
    points = np.concatenate([ground, bushes]) @ pitch
    assert ground_height(points, np.array([0.0, 0.0, 1.0]) @ pitch) == pytest.approx(1.6, abs=0.03)
    assert ground_height(bushes[:30], np.array([0.0, 0.0, 1.0])) is None


def test_known_depth_gives_the_factor():
    reference = np.zeros((20, 30))
    reference[10:] = 6.0
    pixels = np.column_stack([np.arange(30), np.linspace(-3, 22, 30)])
    assert depth_factor(pixels, np.full(30, 2.0), reference) == pytest.approx(3.0)
    assert depth_factor(pixels, np.full(30, 2.0), np.zeros((20, 30))) is None


def test_pieces_are_joined_by_shared_frames_and_points():
    poses = dict(enumerate(drive(30)))
    points = dict(enumerate(np.random.default_rng(0).uniform(-4, 4, (60, 3)) + np.array([0, 0, 12])))
    move = turned(50)
    move[:3, 3] = 7, -3, 2

    def moved(pose):
        result = move @ pose
        result[:3, 3] = move[:3, :3] @ pose[:3, 3] * 0.3 + move[:3, 3]
        return result

    first = Chain({n: p for n, p in poses.items() if n < 20}, points, set(range(0, 20, 2)))
    world = {n: 0.3 * move[:3, :3] @ point + move[:3, 3] for n, point in points.items()}
    second = Chain({n: moved(p) for n, p in poses.items() if n >= 12}, world, set(range(12, 30, 2)))
    (chain,) = joined([second, first])
    assert np.array(list(chain.poses.values())) == pytest.approx(np.array(list(poses.values())), abs=1e-9)
    apart = Chain({40: np.eye(4), 41: turned(1)}, {100: np.zeros(3)}, {40})
    assert [len(c.poses) for c in joined([apart, first, second])] == [30, 2]


def test_standing_and_turning_frames_are_not_usable():
    poses = np.tile(np.eye(4), (60, 1, 1))
    poses[:20, 2, 3] = 0.2 * np.arange(20)
    poses[20:, 2, 3] = poses[19, 2, 3]  # stands, turns by 180 degrees, drives back
    poses[30:40] = poses[30:40] @ np.array([turned(18 * i) for i in range(1, 11)])
    poses[40:] = poses[39]
    poses[40:, 2, 3] -= 0.2 * np.arange(1, 21)
    poses[5] = np.nan
    usable = usable_frames(Motion(poses, "odometry", "odometry"), nearest=2.0)
    assert set(usable) == {*range(5), *range(6, 32), *range(37, 60)}
