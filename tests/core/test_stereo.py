"""Multi-view stereo of posed clips, on a street canyon whose depth is known in closed form."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from fadepth_core.data import DataError
from fadepth_core.data.images import read_depth
from fadepth_core.data.stereo import write_stereo
from fadepth_core.data.video import VideoDataset, open_clips

SIZE = (64, 96)
K = np.array([[70.0, 0, 47], [0, 70, 24], [0, 0, 1]])
STEP = 0.5  # metres between two frames
HEIGHT, HALF_STREET, END, GAP = 1.5, 4.0, 28.0, 3.0


def look(z, box=None):
    """Grey picture and depth [H, W] from (0, 0, z): road, two walls, an end; `box` is the x of one 5 m ahead of z = 0."""
    v, u = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    with np.errstate(divide="ignore"):
        road = np.where(y > 0, HEIGHT / y, np.inf)
        wall = HALF_STREET / np.abs(x)
    surfaces = np.stack([road, wall, np.full_like(x, END - z)])
    if box is not None:
        depth = 5 - z
        surfaces = np.concatenate([surfaces, np.where(np.hypot(x * depth - box, y * depth) < 1, depth, np.inf)[None]])
    kind, depth = surfaces.argmin(0), surfaces.min(0)
    px, py, pz = x * depth, y * depth, z + depth
    across, along = np.select([kind == 0, kind == 1], [px, py], px), np.where(kind >= 2, py, pz)
    if box is not None:
        across = np.where(kind == 3, px - box, across)
    return texture(across + 20 * kind, along), depth


def texture(a, b):
    """Noise of metre to decimetre size at plane coordinates in metres."""
    noise = np.random.default_rng(0).random((512, 512), np.float32)
    total = np.zeros(a.shape)
    for texels, strength in ((2, 0.5), (5, 0.3), (10, 0.2)):
        at = ((a * texels + 100) % 511).astype(np.float32), ((b * texels + 100) % 511).astype(np.float32)
        total += strength * cv2.remap(noise, *at, cv2.INTER_LINEAR)
    return (total * 255).astype(np.uint8)


def write_clip(folder, count=14, poses=True, box=lambda i: None, step=STEP):
    folder.mkdir()
    rows = np.tile(np.eye(4)[:3], (count, 1, 1))
    rows[:, 2, 3] = step * np.arange(count)
    np.savetxt(folder / "poses.txt", rows.reshape(count, 12))
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:03d}.png"), look(step * i, box(i))[0])
    camera = {"fx": 70, "fy": 70, "cx": 47, "cy": 24, "fps": 10} | ({"poses": "poses.txt"} if poses else {})
    (folder / "camera.json").write_text(json.dumps(camera))
    (clip,) = open_clips(folder, SIZE)
    return clip


def test_depth_of_a_street_is_measured(tmp_path):
    clip = write_clip(tmp_path / "clip")
    assert write_stereo(clip, tmp_path / "depth", nearest=GAP) == clip.count
    for number in (4, 7, 10):
        measured, truth = read_depth(tmp_path / "depth" / f"{number:06d}.png"), look(STEP * number)[1]
        known = measured > 0
        assert known.mean() > 0.5
        error = np.abs(measured - truth)[known] / truth[known]
        assert np.median(error) < 0.03
        assert (error < 0.25).mean() > 0.95


def test_what_moves_by_itself_is_left_out(tmp_path):
    """A ball that crosses the street 5 m ahead: depth where it stands, none where it rolls."""
    shares = []
    for speed in (0.0, 0.35):
        clip = write_clip(tmp_path / f"clip{speed}", 8, box=lambda i, speed=speed: speed * (i - 4), step=0.3)
        write_stereo(clip, tmp_path / f"depth{speed}", nearest=GAP)
        depth = read_depth(tmp_path / f"depth{speed}" / "000004.png")
        ball = look(0.3 * 4, 0.0)[1] != look(0.3 * 4)[1]
        shares.append((np.abs(depth[ball] / (5 - 0.3 * 4) - 1) < 0.15).mean())
    assert shares[0] > 0.6
    assert shares[1] < 0.5 * shares[0]


def test_labels_reach_the_samples(tmp_path):
    """From a folder among the clips, which is not taken for one."""
    clip = write_clip(tmp_path / "clip")
    write_stereo(clip, tmp_path / "clip" / "depth", nearest=GAP, first=2, every=3)
    camera = json.loads(clip.camera.read_text()) | {"depth": "depth"}
    clip.camera.write_text(json.dumps(camera))
    dataset = VideoDataset(tmp_path / "clip", SIZE)
    known = {sample.name.rpartition(":")[2]: bool((sample.depth > 0).any()) for sample in dataset}
    assert [number for number, labelled in known.items() if labelled] == ["2", "5", "8", "11"]
    np.testing.assert_array_equal(dataset[4].depth.numpy(), read_depth(tmp_path / "clip" / "depth" / "000005.png"))


def test_frames_before_the_first_do_not_count(tmp_path):
    clip = write_clip(tmp_path / "clip")
    write_stereo(clip, tmp_path / "depth", nearest=GAP, first=4)
    for i in range(4):
        cv2.imwrite(str(tmp_path / "clip" / f"{i:03d}.png"), np.zeros(SIZE, np.uint8))
    write_stereo(clip, tmp_path / "again", nearest=GAP, first=4)
    files = sorted((tmp_path / "depth").iterdir())
    assert [f.name for f in files] == [f"{n:06d}.png" for n in range(4, 14)]
    assert all(f.read_bytes() == (tmp_path / "again" / f.name).read_bytes() for f in files)


def test_clips_that_cannot_be_measured_are_named(tmp_path):
    with pytest.raises(DataError, match=r"clip/camera\.json: has no poses"):
        write_stereo(write_clip(tmp_path / "clip", poses=False), tmp_path / "depth")
    with pytest.raises(DataError, match=r"still: the camera nowhere moves by 1\.2 m"):
        write_stereo(write_clip(tmp_path / "still", step=0.01), tmp_path / "depth")
