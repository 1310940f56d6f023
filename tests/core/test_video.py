"""The user's own clips: samples match their JSON and files, and errors name what is invalid."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fadepth_core.data import DataError, collate
from fadepth_core.data.clip_cache import ClipCache
from fadepth_core.data.frames import Frames
from fadepth_core.data.video import VideoDataset, open_clips

SIZE = (64, 96)
CAMERA = {"fx": 100.0, "fy": 102.0, "cx": 60.0, "cy": 44.0, "fps": 10}
DATA = os.environ.get("FADEPTH_DATA")


def pictures(count=12, moving=lambda i: True, height=96, width=128):
    """Frames of a texture that moves four pixels to the left at every frame i for which `moving(i)`."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (height, 4 * width, 3), np.uint8), (0, 0), 2)
    at, frames = 0, []
    for i in range(count):
        at += 4 * moving(i)
        frames.append(np.ascontiguousarray(texture[:, at : at + width]))
    return frames


def write_video(path, frames):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def write_folder(folder, frames, camera=CAMERA):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{i}.png"), frame)  # 10.png sorts before 2.png as text
    if camera is not None:
        (folder / "camera.json").write_text(json.dumps(camera))
    return folder


def write_numbers(path, rows):
    np.savetxt(path, rows)


def forward(count, step=1.0):
    """Poses of a camera that moves forward, as rows of a KITTI file."""
    poses = np.tile(np.eye(4)[:3], (count, 1, 1))
    poses[:, 2, 3] = step * np.arange(count)
    return poses.reshape(count, 12)


@pytest.fixture
def open_video(tmp_path):
    """Opens the data set of a root, with a temporary cache."""
    return lambda root, **options: VideoDataset(root, SIZE, cache=tmp_path / "cache", **options)


def test_frames_of_a_folder_are_in_order_with_their_intrinsics(tmp_path, open_video):
    frames = pictures()
    dataset = open_video(write_folder(tmp_path / "clip", frames))
    assert len(dataset) == 10
    sample = dataset[4]  # frames 4, 5, 6
    assert sample.name == "clip:5"
    assert sample.frames.shape == (3, 3, *SIZE)
    # 128x96 is cropped to 3:2, that is to 128x85 from row 5 on, then reduced by 3/4.
    s = 96 / 128
    sy = 64 / 85
    expected = [[100 * s, 0, s * 60.5 - 0.5], [0, 102 * sy, sy * (44.5 - 5) - 0.5], [0, 0, 1]]
    np.testing.assert_allclose(sample.intrinsics, expected, rtol=1e-6)
    for k, frame in enumerate(frames[4:7]):
        rgb = cv2.cvtColor(cv2.resize(frame[5:90], SIZE[::-1], interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        np.testing.assert_allclose(sample.frames[k].permute(1, 2, 0) * 255, rgb, atol=12)
    assert float(sample.interval) == pytest.approx(0.1)
    assert sample.speed is None
    assert sample.poses is None
    assert sample.depth is None


def test_a_video_is_decoded_once_and_read_by_a_loader_process(tmp_path, open_video):
    write_video(tmp_path / "drive.mp4", pictures(6))
    (tmp_path / "drive.json").write_text(json.dumps({**CAMERA, "speed": 3.5}))
    dataset = open_video(tmp_path)
    assert len(dataset) == 4
    assert float(dataset[0].speed) == 3.5
    (decoded,) = [p for p in (tmp_path / "cache").iterdir() if ".flow" not in p.name]
    stamp = decoded.stat().st_mtime_ns
    again = open_video(tmp_path)
    assert decoded.stat().st_mtime_ns == stamp
    (batch,) = DataLoader(again, batch_size=4, collate_fn=collate, num_workers=1)
    torch.testing.assert_close(batch.frames, collate([dataset[i] for i in range(4)]).frames)
    assert not torch.equal(batch.frames[0, 0], batch.frames[0, 1])


def test_stored_frames_are_whole_and_have_intrinsics_of_their_own(tmp_path):
    write_folder(tmp_path / "clips" / "folder", pictures())
    write_video(tmp_path / "clips" / "drive.mp4", pictures())
    (tmp_path / "clips" / "drive.json").write_text(json.dumps(CAMERA))
    for clip in open_clips(tmp_path / "clips", SIZE, cache=tmp_path / "cache"):
        found = dict(clip.stored_frames([2, 7]))
        assert list(found) == [2, 7]
        for number, frame in found.items():
            difference = frame[..., ::-1].astype(int) - pictures()[number]
            assert np.median(np.abs(difference)) < 6, clip.name  # a video is compressed
        assert clip.stored_intrinsics[0] == pytest.approx([100, 0, 60])


def test_the_frame_rate_of_a_video_is_used_if_the_json_has_none(tmp_path, open_video):
    write_video(tmp_path / "drive.mp4", pictures())
    (tmp_path / "drive.json").write_text(json.dumps({k: v for k, v in CAMERA.items() if k != "fps"}))
    assert float(open_video(tmp_path)[0].interval) == pytest.approx(1 / 25)


def test_the_stride_argument_overrides_that_of_the_clip(tmp_path, open_video):
    root = write_folder(tmp_path / "clip", pictures(), {**CAMERA, "stride": 2})
    dataset = open_video(root)
    assert len(dataset) == 8
    assert float(dataset[0].interval) == pytest.approx(0.2)
    assert len(open_video(root, stride=3)) == 6
    torch.testing.assert_close(dataset[0].frames[2], open_video(root, stride=1)[3].frames[1])  # frame 4


def test_poses_are_relative_to_the_middle_camera(tmp_path, open_video):
    root = write_folder(tmp_path / "clip", pictures(), {**CAMERA, "poses": "poses.txt"})
    poses = forward(12)
    turned = poses.reshape(12, 3, 4).copy()
    turned[:, :, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # looks along the world's x axis, so it moves sideways
    write_numbers(root / "poses.txt", turned.reshape(12, 12))
    sample = open_video(root)[3]
    torch.testing.assert_close(sample.poses[1], torch.eye(4))
    torch.testing.assert_close(sample.poses[2, :3, 3], torch.tensor([-1.0, 0, 0]))
    torch.testing.assert_close(sample.poses[0, :3, 3], torch.tensor([1.0, 0, 0]))


def write_depth(path, depth):
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), (depth * 256).astype(np.uint16))


def test_depth_of_the_stored_size_is_cropped_and_reduced_like_the_frames(tmp_path, open_video):
    """Frames of 128x96 are cropped at top and bottom and reduced by 3/4 to 96x64."""
    root = write_folder(tmp_path / "clip", pictures(), {**CAMERA, "depth": "lidar"})
    stored = np.zeros((96, 128))
    stored[2, 50] = 3.0  # in a row outside the crop
    stored[5, 0], stored[89, 127] = 4.0, 5.0
    stored[40:42, 60:62] = [[9.0, 8.0], [7.0, 9.0]]  # the nearest of the values in a pixel counts
    write_depth(root / "lidar" / "3.png", stored)
    dataset = open_video(root)
    assert len(dataset) == 10, "the folder of depth is not a clip"
    known = dataset[2].depth
    assert known.shape == SIZE
    assert (float(known[0, 0]), float(known[-1, -1])) == (4.0, 5.0)
    assert 7.0 in known[26:29, 44:48]
    assert 3.0 not in known
    assert not dataset[3].depth.any(), "depth of a frame without a depth file is unknown"


def test_depth_of_the_training_size_is_not_resized(tmp_path, open_video):
    root = write_folder(tmp_path / "clip", pictures(), {**CAMERA, "depth": "stereo"})
    depth = np.arange(64 * 96).reshape(SIZE) / 256
    write_depth(root / "stereo" / "000004.png", depth)
    np.testing.assert_array_equal(open_video(root)[3].depth.numpy(), depth)


def test_a_clip_without_depth_among_others_has_unknown_depth(tmp_path, open_video):
    write_folder(tmp_path / "clips" / "a", pictures())
    with_depth = write_folder(tmp_path / "clips" / "b", pictures(), {**CAMERA, "depth": "lidar"})
    write_depth(with_depth / "lidar" / "1.png", np.ones((96, 128)))
    batch = collate([*open_video(tmp_path / "clips")])
    assert batch.depth.flatten(1).any(dim=1).tolist() == [False] * 10 + [True] + [False] * 9


def test_errors_name_invalid_depth_files(tmp_path, open_video):
    root = write_folder(tmp_path / "clip", pictures(), {**CAMERA, "depth": "lidar"})
    (root / "lidar").mkdir()
    with pytest.raises(DataError, match="lidar: no depth"):
        open_video(root)
    write_depth(root / "lidar" / "12.png", np.ones((96, 128)))
    with pytest.raises(DataError, match=r"12\.png: its name is not a frame number from 0 to 11"):
        open_video(root)
    (root / "lidar" / "12.png").rename(root / "lidar" / "2.png")
    write_depth(root / "lidar" / "3.png", np.ones((90, 128)))
    with pytest.raises(DataError, match=r"3\.png: 128x90 pixels, the clip's frames have 128x96"):
        open_video(root)[2]


def test_times_and_speeds_are_read_from_files_beside_the_json(tmp_path, open_video):
    root = write_folder(tmp_path / "clip", pictures(), {**CAMERA, "times": "t.txt", "speed": "v.txt"})
    write_numbers(root / "t.txt", np.arange(12) ** 1.5)
    write_numbers(root / "v.txt", 1.0 + np.arange(12))
    sample = open_video(root)[5]
    assert float(sample.speed) == 7.0
    assert float(sample.interval) == pytest.approx((7**1.5 - 5**1.5) / 2)


def test_a_clip_without_speed_among_others_has_unknown_speed(tmp_path, open_video):
    write_folder(tmp_path / "clips" / "a", pictures(4), {**CAMERA, "speed": 2.0})
    write_folder(tmp_path / "clips" / "b", pictures(4))
    dataset = open_video(tmp_path / "clips")
    speeds = {dataset[i].name.split(":")[0]: float(dataset[i].speed) for i in range(len(dataset))}
    assert speeds["a"] == 2.0
    assert np.isnan(speeds["b"])


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({}, None),
        ({"speed": [5.0] * 6 + [0.0] * 8 + [5.0] * 6}, None),
        ({"poses": "poses.txt"}, np.concatenate([np.arange(6), np.full(8, 5.0), np.arange(6, 12)])),
    ],
)
def test_static_frames_are_left_out(tmp_path, open_video, extra, text):
    """Frames 6 to 13 of 20 are static, by optical flow, by speed, by poses."""
    root = write_folder(tmp_path / "clip", pictures(20, lambda i: not 6 <= i < 14), {**CAMERA, **extra})
    if text is not None:
        poses = forward(20)
        poses[:, 11] = text
        write_numbers(root / "poses.txt", poses)
    dataset = open_video(root)
    names = [int(dataset[i].name.split(":")[1]) for i in range(len(dataset))]
    assert not {*range(8, 12)} & {*names}
    assert {1, 2, 3, 4, 15, 16, 17, 18} <= {*names}


@pytest.mark.parametrize("key", ["poses", "speed"])
def test_samples_without_known_motion_are_left_out(tmp_path, open_video, key):
    root = write_folder(tmp_path / "clip", pictures(), {**CAMERA, key: "motion.txt"})
    values = forward(12) if key == "poses" else np.full((12, 1), 3.0)
    values[5] = np.nan
    write_numbers(root / "motion.txt", values)
    names = [sample.name for sample in open_video(root)]
    unknown = {4, 5, 6} if key == "poses" else {5}  # poses: all three frames must be known
    assert names == [f"clip:{number}" for number in range(1, 11) if number not in unknown]


def test_a_stereo_pair_is_one_clip(tmp_path):
    root = write_folder(tmp_path / "clip", pictures(4), {**CAMERA, "right": "right", "baseline": 0.12})
    write_folder(root / "right", [], None)
    for number in (1, 3):
        cv2.imwrite(str(root / "right" / f"{number:06d}.jpg"), pictures(1)[0])
    (clip,) = open_clips(tmp_path, SIZE)
    assert clip.right == {number: root / "right" / f"{number:06d}.jpg" for number in (1, 3)}
    assert clip.baseline == 0.12
    (root / "camera.json").write_text(json.dumps({**CAMERA, "right": "right"}))
    with pytest.raises(DataError, match="right needs baseline"):
        open_clips(tmp_path, SIZE)


def test_splits_share_no_frame(tmp_path, open_video):
    root = write_folder(tmp_path / "clip", pictures(40), {**CAMERA, "stride": 2})
    seen = {}
    for split in ("train", "val"):
        dataset = open_video(root, split=split, validation=0.25)
        middles = [int(dataset[i].name.split(":")[1]) for i in range(len(dataset))]
        seen[split] = {m + d for m in middles for d in (-2, 0, 2)}
    assert len(seen["val"]) > 8
    assert max(seen["train"]) < min(seen["val"])


def test_the_first_frames_can_be_left_out(tmp_path, open_video):
    root = write_folder(tmp_path / "clip", pictures(20), {**CAMERA, "stride": 2})
    dataset = open_video(root, first=7)
    middles = [int(dataset[i].name.split(":")[1]) for i in range(len(dataset))]
    assert min(middles) == 9, "its first frame is 7"
    with pytest.raises(DataError, match="no clip has a sample of split 'all' from frame 16 on"):
        open_video(root, first=16)


def test_one_camera_file_for_a_folder_of_clips(tmp_path, open_video):
    for name in ("a", "b"):
        write_folder(tmp_path / "clips" / name, pictures(5), None)
    with pytest.raises(DataError, match=r"no camera.json beside it.*an example: \{"):
        open_video(tmp_path / "clips")
    (tmp_path / "clips" / "camera.json").write_text(json.dumps(CAMERA))
    assert len(open_video(tmp_path / "clips")) == 6
    (tmp_path / "elsewhere.json").write_text(json.dumps({**CAMERA, "fps": 5}))
    assert float(open_video(tmp_path / "clips", camera=tmp_path / "elsewhere.json")[0].interval) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ({"fx": 1}, "has no 'fy'; an example"),
        ({**CAMERA, "cx": "middle"}, "cx must be a number, got 'middle'"),
        ({**CAMERA, "width": 640}, "for 640x96 pixels, .*clip has 128x96"),
        ({**CAMERA, "stride": 0}, "stride must be a whole number of at least 1, got 0"),
        ({**CAMERA, "stride": 6}, "12 frames; a sample at stride 6 needs 13"),
        ({**CAMERA, "fps": 0}, "fps, frames per second, as a positive number"),
        ({**CAMERA, "speed": [1.0, 2.0]}, "speed of 2 frames, but .*clip has 12"),
        ({**CAMERA, "speed": "v.txt"}, "'v.txt' is neither beside it nor beside"),
        ({**CAMERA, "depth": "short.txt"}, "depth 'short.txt' is neither beside it nor beside"),
        ({**CAMERA, "poses": "short.txt"}, "poses of 3 frames, but .*clip has 12"),
        ({**CAMERA, "poses": "words.txt"}, "not a table of numbers"),
        ({**CAMERA, "poses": "narrow.txt"}, "twelve numbers"),
        ({**CAMERA, "times": "back.txt"}, "times do not increase"),
        ({**CAMERA, "speed": 0.1}, "stands still in all 10 samples"),
        ({**CAMERA, "speed": [[1.0, 2.0]] * 12}, r"speed of frame 0 must be a number, got \[1.0, 2.0\]"),
        ({**CAMERA, "speed": 5000}, "speed must be in metres per second, got 5000"),
        ({**CAMERA, "speed": "wide.txt"}, "each line must have one number, the speed of a frame; found 2"),
        ({**CAMERA, "fps": 10**400}, "fps must be a finite number"),
        ({**CAMERA, "fx": 0.6, "cx": 0.5}, "normalised"),
        ({**CAMERA, "poses": "mirror.txt"}, r"mirror.txt: the left 3x3 part of pose 1 is not a rotation"),
        ({**CAMERA, "poses": "partly.txt"}, "partly.txt, line 1: a value is not a finite number"),
        ({**CAMERA, "poses": 3}, "poses must be the name of a file or folder, got 3"),
        ({**CAMERA, "poses": "a\0b"}, "poses 'a.*' "),
        ({**CAMERA, "poses": "x" * 300}, "cannot be read: |neither beside it"),
        ([1, 2], r"must be an object with keys, got \[1, 2\]; an example"),
    ],
)
def test_errors_explain_an_invalid_camera_file(tmp_path, open_video, camera, message):
    root = write_folder(tmp_path / "clip", pictures(), camera)
    write_numbers(root / "short.txt", forward(3))
    (root / "words.txt").write_text("one two three\n")
    write_numbers(root / "narrow.txt", np.zeros((12, 7)))
    write_numbers(root / "partly.txt", np.tile([1.0] * 11 + [np.nan], (12, 1)))
    write_numbers(root / "back.txt", np.arange(12)[::-1])
    write_numbers(root / "wide.txt", np.ones((12, 2)))
    write_numbers(root / "mirror.txt", np.tile(np.diag([1.0, 1, -1, 1])[:3].ravel(), (12, 1)))
    with pytest.raises(DataError, match=message) as caught:
        open_video(root)
    assert str(tmp_path) in str(caught.value)


def test_errors_explain_an_invalid_clip(tmp_path, open_video):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        open_video(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no video"):
        open_video(tmp_path / "empty")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match=r"broken.mp4: not a video that OpenCV can read"):
        open_video(tmp_path / "broken.mp4")
    root = write_folder(tmp_path / "two", pictures(2))
    with pytest.raises(DataError, match="two: 2 frames; a sample at stride 1 needs 3"):
        open_video(root)
    (root / "camera.json").write_text("{")
    with pytest.raises(DataError, match=r"camera.json: not JSON"):
        open_video(root)
    with pytest.raises(DataError, match="split must be train, val or all, got 'test'"):
        open_video(root, split="test")


def test_errors_name_a_frame_of_another_size(tmp_path, open_video):
    frames = pictures(6)
    frames[3] = frames[3][:50]
    root = write_folder(tmp_path / "clip", frames, {**CAMERA, "speed": 2.0})
    dataset = open_video(root)
    with pytest.raises(DataError, match=r"3.png: 128x50 pixels, the clip's first frame has 128x96"):
        dataset[1]


def test_a_reversing_vehicle_has_a_positive_speed(tmp_path, open_video):
    root = write_folder(tmp_path / "clip", pictures(6), {**CAMERA, "speed": [-3.0] * 6})
    assert float(open_video(root)[0].speed) == 3.0


def write_damaged_video(path, count=30, kept=0.3):
    """A video whose last part is missing, e.g. of an interrupted copy."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (128, 96))
    for frame in pictures(count):
        writer.write(frame)
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])


def test_a_damaged_video_is_used_as_far_as_it_goes_with_a_warning(tmp_path, open_video, caplog):
    write_damaged_video(tmp_path / "drive.avi")
    (tmp_path / "drive.json").write_text(json.dumps({**CAMERA, "speed": 3.0}))
    for _ in range(2):  # also when it is read from the cache
        caplog.clear()
        assert 3 < len(open_video(tmp_path)) < 12
        assert re.search(r"drive.avi: only \d+ of the 30 frames .* can be decoded; the file is damaged", caplog.text)
    frames = Frames(tmp_path / "drive.avi")
    assert 5 < len(list(frames)) < 14
    assert "can be decoded" in frames.damage


def test_decoded_videos_are_removed_when_they_exceed_the_limit(tmp_path, open_video, monkeypatch):
    """The one that was not used for the longest time first; never one that is in use."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / f"{name}.mp4", pictures(6))
        (tmp_path / name / f"{name}.json").write_text(json.dumps(CAMERA))
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "notes.npy").write_bytes(bytes(10_000_000))  # not ours
    for name in ("a", "b", "a"):
        open_video(tmp_path / name)

    def decoded():
        return sorted({path.name.partition("-")[0] for path in cache.iterdir()} - {"notes.npy"})

    assert decoded() == ["a", "b"]
    monkeypatch.setenv("FADEPTH_CACHE_GIB", str(2.5 * 6 * 64 * 96 * 3 / 2**30))
    dataset = open_video(tmp_path / "c")
    assert decoded() == ["a", "c"], "b was used before a"
    monkeypatch.setenv("FADEPTH_CACHE_GIB", "1e-9")
    open_video(tmp_path / "a")
    assert decoded() == ["a"]
    assert dataset[0].frames.shape == (3, 3, *SIZE), "an open file stays readable"
    (batch,) = DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=1, multiprocessing_context="spawn")
    torch.testing.assert_close(batch.frames[0], dataset[0].frames)
    monkeypatch.setenv("FADEPTH_CACHE_GIB", "much")
    with pytest.raises(DataError, match="FADEPTH_CACHE_GIB=much: expected a positive number"):
        open_video(tmp_path / "a")


def test_a_cache_of_another_user_is_no_reason_to_stop(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)  # the tests may run as root, who may read any folder
    cache = ClipCache(tmp_path)
    cache.trim()
    assert cache.decoded() == {}
    assert cache.clear() == 0


def test_errors_name_a_cache_that_cannot_be_written(tmp_path):
    write_video(tmp_path / "drive.mp4", pictures(4))
    (tmp_path / "drive.json").write_text(json.dumps(CAMERA))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the decoded video: .*; set `cache`"):
        VideoDataset(tmp_path / "drive.mp4", SIZE, cache=tmp_path / "file" / "cache")


@pytest.mark.skipif(not DATA, reason="FADEPTH_DATA, the folder of the development data, is not set")
def test_a_real_sequence_with_poses(tmp_path, open_video):
    root = Path(DATA) / "sequences" / "kitti_odo00" / "kitti_odo00_416x128_10fps_NC.mp4"
    camera = tmp_path / "camera.json"
    intrinsics = {"fx": 240.970, "fy": 244.717, "cx": 203.539, "cy": 63.052}
    camera.write_text(json.dumps({**intrinsics, "poses": "poses.txt", "times": "times.txt"}))
    dataset = open_video(root, camera=camera)
    assert len(dataset) > 950
    steps = [float(dataset[i].poses[2, :3, 3].norm()) for i in range(0, len(dataset), 9)]
    assert np.median(steps) == pytest.approx(0.78, abs=0.03)
