"""KITTI RAW: samples, LiDAR depth and errors, on a small data set in the downloaded layout."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
import torch

from fadepth_core.data import DataError
from fadepth_core.data.kitti import Entry, KittiDataset, KittiTest, read_list

DAY, DRIVE = "2011_09_26", "2011_09_26_drive_0001_sync"
SIZE = (96, 310)  # height and width of the pictures
K2 = np.array([[180.0, 0, 152.0], [0, 181.0, 43.0], [0, 0, 1]])
#: Camera 3 is half a metre to the right of the rectified origin.
K3, OFFSET = np.array([[180.0, 0, 150.0], [0, 181.0, 43.0], [0, 0, 1]]), -0.5
#: LiDAR: x ahead, y left, z up; 0.27 m behind the camera and 0.08 m above it.
R, T = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]), np.array([0, 0.08, -0.27])


def numbers(values):
    return " ".join(f"{value:.9e}" for value in np.ravel(values))


@pytest.fixture
def kitti(tmp_path):
    """Five frames of one drive, both cameras, LiDAR and inertial unit."""
    day = tmp_path / DAY
    drive = day / DRIVE
    p2, p3 = np.zeros((3, 4)), np.zeros((3, 4))
    p2[:, :3], p3[:, :3] = K2, K3
    p3[:, 3] = K3 @ [OFFSET, 0, 0]
    day.mkdir()
    (day / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.950000e-02\n"
        f"R_rect_00: {numbers(np.eye(3))}\nP_rect_02: {numbers(p2)}\nP_rect_03: {numbers(p3)}\n"
    )
    (day / "calib_velo_to_cam.txt").write_text(
        f"calib_time: 15-Mar-2012 11:37:16\nR: {numbers(R)}\nT: {numbers(T)}\ndelta_f: {numbers([0, 0])}\n"
    )
    for camera, shade in (("02", 100), ("03", 200)):
        folder = drive / f"image_{camera}" / "data"
        folder.mkdir(parents=True)
        for i in range(5):
            picture = np.full((*SIZE, 3), shade, np.uint8)
            picture[..., 2] = 10 * i  # red
            cv2.imwrite(str(folder / f"{i:010d}.png"), picture)
        times = "".join(f"2011-09-26 13:02:{25 + 0.1 * i + 0.01 * (i == 3):012.9f}\n" for i in range(5))
        (folder.parent / "timestamps.txt").write_text(times)
    (drive / "oxts" / "data").mkdir(parents=True)
    (drive / "velodyne_points" / "data").mkdir(parents=True)
    for i in range(5):
        fields = np.zeros(30)
        fields[8:11] = [3.0 + i, 4.0, 0.0]
        (drive / "oxts" / "data" / f"{i:010d}.txt").write_text(" ".join(map(str, fields)))
    return tmp_path


def entries(*frames, side="l"):
    return [Entry(f"{DAY}/{DRIVE}", frame, side) for frame in frames]


def write_points(root, frame, points):
    """Write a LiDAR sweep of points given as (pixel column, row, depth in metres) of camera 2."""
    rows = []
    for u, v, depth in points:
        x = depth * np.linalg.inv(K2) @ [u, v, 1]
        rows.append([*(R.T @ (x - T)), 0.5])
    path = root / DAY / DRIVE / "velodyne_points" / "data" / f"{frame:010d}.bin"
    np.array(rows, np.float32).tofile(path)


def write_sweeps(root, frames):
    for frame in frames:
        write_points(root, frame, [(100, 50, 20.0 + frame)])


def names(dataset):
    return [dataset[i].name for i in range(len(dataset))]


def test_the_published_lists_are_part_of_the_package():
    lengths = {"eigen_zhou_train_files": 39810, "eigen_zhou_val_files": 4424, "eigen_test_files": 697}
    for name, length in {**lengths, "eigen_benchmark_test_files": 652}.items():
        assert len(read_list(name)) == length
    assert read_list("eigen_zhou_train_files")[0] == Entry("2011_09_26/2011_09_26_drive_0022_sync", 473, "r")


def test_a_sample_is_three_frames_with_camera_time_and_speed(kitti):
    dataset = KittiDataset(kitti, size=(64, 160), entries=entries(2))
    (sample,) = (dataset[i] for i in range(len(dataset)))
    assert sample.frames.shape == (3, 3, 64, 160)
    torch.testing.assert_close(sample.frames[:, 0].mean((1, 2)) * 255, torch.tensor([10.0, 20, 30]))
    assert float(sample.frames[1, 2].mean() * 255) == pytest.approx(100)
    sx, sy = 160 / 310, 64 / 96
    expected = [[180 * sx, 0, sx * 152.5 - 0.5], [0, 181 * sy, sy * 43.5 - 0.5], [0, 0, 1]]
    np.testing.assert_allclose(sample.intrinsics, expected, rtol=1e-6)
    assert float(sample.interval) == pytest.approx(0.105, abs=1e-6)
    assert float(sample.speed) == pytest.approx(np.hypot(5, 4))
    assert sample.poses is None


def test_the_right_camera_has_its_own_pictures_and_calibration(kitti):
    sample = KittiDataset(kitti, size=(96, 320), entries=entries(2, side="r"))[0]
    assert float(sample.frames[1, 2].mean() * 255) == pytest.approx(200)
    assert float(sample.intrinsics[0, 2]) == pytest.approx(320 / 310 * 150.5 - 0.5)


def test_jpeg_images_are_read_and_speed_is_optional(kitti):
    folder = kitti / DAY / DRIVE / "image_02" / "data"
    for path in folder.iterdir():
        cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
        path.unlink()
    (folder / "._0000000000.png").write_bytes(b"written by macOS")
    shutil.rmtree(kitti / DAY / DRIVE / "oxts")
    sample = KittiDataset(kitti, size=(64, 160), entries=entries(1))[0]
    assert float(sample.frames[2, 0].mean() * 255) == pytest.approx(20, abs=2)
    assert sample.speed is None


def test_lidar_depth_follows_the_conventions_of_the_published_figures(kitti):
    # Two points on one pixel, one apart, one above the picture, one behind the camera.
    write_points(kitti, 2, [(100, 50, 20.0), (100.2, 50.1, 8.0), (30.4, 10, 5.0), (50, -40, 9.0), (60, 50, -4.0)])
    image = KittiTest(kitti, entries=entries(2))[0]
    assert image.depth.shape == SIZE
    assert image.image.shape == (*SIZE, 3)
    rows, columns = np.nonzero(image.depth)
    found = {(int(c), int(r)): float(image.depth[r, c]) for r, c in zip(rows, columns, strict=True)}
    assert found == {(99, 49): pytest.approx(8.27, abs=1e-4), (29, 9): pytest.approx(5.27, abs=1e-4)}
    np.testing.assert_allclose(image.intrinsics, K2)


def test_the_right_cameras_lidar_depth_uses_its_offset(kitti):
    write_points(kitti, 2, [(160, 50, 10.0)])
    depth = KittiTest(kitti, entries=entries(2, side="r"))[0].depth
    ((row,), (column,)) = np.nonzero(depth)
    assert (row, column) == (49, round(160 - 2 - 180 * 0.5 / 10) - 1)


def test_improved_depth_is_read_from_train_or_val(kitti, tmp_path):
    annotated = tmp_path / "annotated"
    folder = annotated / "val" / DRIVE / "proj_depth" / "groundtruth" / "image_02"
    folder.mkdir(parents=True)
    depth = np.zeros(SIZE, np.uint16)
    depth[50, 60] = 2560
    cv2.imwrite(str(folder / "0000000002.png"), depth)
    test = KittiTest(kitti, "improved", annotated, entries=entries(2, 3))
    assert test[0].depth[50, 60] == 10.0
    assert np.count_nonzero(test[0].depth) == 1
    with pytest.raises(DataError, match=r"neither train nor val holds .*0000000003.png"):
        test[1]
    with pytest.raises(DataError, match="needs improved_root"):
        KittiTest(kitti, "improved", entries=entries(2))


def test_missing_drives_are_counted_and_named(tmp_path, kitti):
    with pytest.raises(DataError, match=r"of the list's \d+ drives are missing: 2011_09_26/.*synced.*raw_data"):
        KittiDataset(tmp_path)
    with pytest.raises(DataError, match=r"1 of the list's 2 drives.*drive_0009"):
        KittiTest(kitti, entries=[*entries(1), Entry(f"{DAY}/drive_0009", 1, "l")])
    with pytest.raises(DataError, match="side 'left'; sides are l and r"):
        KittiDataset(kitti, entries=entries(2, side="left"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda day: (day / DRIVE / "image_02" / "data" / "0000000003.png").unlink(), "0000000003.png: no such file"),
        (lambda day: shutil.rmtree(day / DRIVE / "image_02" / "data"), "data: no pictures, neither .png nor .jpg"),
        (lambda day: (day / "calib_cam_to_cam.txt").unlink(), "calib_cam_to_cam.txt: no such file"),
        (lambda day: (day / "calib_cam_to_cam.txt").write_text("P_rect_02: 1 2\n"), "no 'P_rect_02' of 12 numbers"),
        (lambda day: (day / "calib_cam_to_cam.txt").write_text("P_rect_02: a b\n"), "no 'P_rect_02' of 12 numbers"),
        (lambda day: (day / DRIVE / "image_02" / "timestamps.txt").write_text("noon\n"), "timestamps.txt: not times"),
        (lambda day: (day / DRIVE / "image_02" / "timestamps.txt").write_text(""), "timestamps for 0 frames"),
        (lambda day: (day / DRIVE / "oxts" / "data" / "0000000002.txt").write_text("1 2"), "no velocity in it"),
        (lambda day: (day / DRIVE / "oxts" / "data" / "0000000002.txt").write_text("nan " * 30), "no velocity in it"),
        (lambda day: (day / DRIVE / "oxts" / "data" / "0000000002.txt").write_bytes(b"\xff"), "not text in UTF-8"),
        (lambda day: (day / "calib_cam_to_cam.txt").write_text("P_rect_02: " + "nan " * 12), "not a finite number"),
        (
            lambda day: (day / "calib_cam_to_cam.txt").write_text("P_rect_02: 0.58 0 0.5 0 0 1.9 0.5 0 0 0 1 0"),
            "P_rect_02: fx 0.58 is no focal length in pixels",
        ),
    ],
)
def test_errors_name_the_invalid_file(kitti, spoil, message):
    spoil(kitti / DAY)
    with pytest.raises(DataError, match=message):
        KittiDataset(kitti, entries=entries(2))[0]


def test_entries_may_be_rows_or_a_text_file(kitti, tmp_path):
    write_sweeps(kitti, (1, 2))
    drive = f"{DAY}/{DRIVE}"
    listed = tmp_path / "val.txt"
    listed.write_text(f"{drive} 1 l\n{drive} 0000000002 r\n\n")
    for given in ([[drive, 1, "l"], (drive, 2, "r")], listed, str(listed)):
        train, test = KittiDataset(kitti, size=(64, 160), entries=given), KittiTest(kitti, entries=given)
        assert names(train) == [f"{DRIVE}/image_02/1", f"{DRIVE}/image_03/2"]
        assert names(test) == [f"{DRIVE}/1", f"{DRIVE}/2"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([[f"{DAY}/{DRIVE}", 1]], r"entries, row 0: expected drive, frame and side, got \["),
        ([["a", 1, "l"], f"{DAY}/{DRIVE} 1 l"], "entries, row 1: expected drive, frame and side, got '2011"),
        ([[7, 1, "l"]], "entries, row 0: the drive must be a folder such as .*, got 7"),
        ([["a", -1, "l"]], "entries, row 0: the frame must be a whole number, got -1"),
        ([["a", 1, ["l"]]], "entries, row 0: side .*; sides are l and r"),
        ([], "the list is empty"),
        (3, "must be a list of .* or the path of a text file, got 3"),
        ("no/such/list.txt", "no/such/list.txt: no such file"),
    ],
)
def test_errors_name_the_invalid_row_of_entries(kitti, entries, message):
    for kind in (KittiDataset, KittiTest):
        with pytest.raises(DataError, match=message) as error:
            kind(kitti, entries=entries)
        assert "\n" not in str(error.value)


def test_errors_name_the_invalid_line_of_an_entries_file(kitti, tmp_path):
    (tmp_path / "list.txt").write_text(f"{DAY}/{DRIVE} 1 l\n{DAY}/{DRIVE} one l\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2: the frame must be a whole number, got 'one'"):
        KittiDataset(kitti, entries=tmp_path / "list.txt")


def test_the_validation_split_has_lidar_depth(kitti, monkeypatch):
    write_sweeps(kitti, range(5))
    lists = {"eigen_zhou_val_files": entries(*range(5)), "eigen_test_files": entries(3)}
    monkeypatch.setattr("fadepth_core.data.kitti.read_list", lists.__getitem__)
    assert names(KittiTest(kitti)) == [f"{DRIVE}/3"]
    validation = KittiTest(kitti, split="val")
    assert names(validation) == [f"{DRIVE}/{n}" for n in range(5)]
    assert validation[4].depth.max() == pytest.approx(24.27, abs=1e-4)
    with pytest.raises(DataError, match="split val has no improved ground truth"):
        KittiTest(kitti, "improved", kitti, split="val")
    with pytest.raises(DataError, match="split must be test or val, got 'train'"):
        KittiTest(kitti, split="train")


def test_the_lists_contain_no_frames_without_lidar_sweep():
    for name in ("eigen_test_files", "eigen_benchmark_test_files", "eigen_zhou_val_files"):
        drive = "2011_09_26/2011_09_26_drive_0009_sync"
        assert not [e for e in read_list(name) if e.drive == drive and 177 <= e.frame <= 180]


def test_errors_name_the_invalid_sweep(kitti):
    with pytest.raises(DataError, match=r"0000000002.bin: no such file"):
        KittiTest(kitti, entries=entries(2))[0]
    (kitti / DAY / DRIVE / "velodyne_points" / "data" / "0000000002.bin").write_bytes(b"\0" * 20)
    with pytest.raises(DataError, match="5 numbers; expected four for each point"):
        KittiTest(kitti, entries=entries(2))[0]
