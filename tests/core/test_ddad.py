"""DDAD: samples, LiDAR depth and errors, on a small data set in the distributed layout."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from fadepth_core.data import DataError
from fadepth_core.data.ddad import DdadDataset, DdadTest

SIZE = (76, 121)  # a sixteenth of DDAD's pictures
K = {"fx": 130.0, "fy": 131.0, "cx": 60.0, "cy": 38.0, "skew": 0.0}
#: Camera axes in the vehicle's (x ahead, y left, z up): its z is the vehicle's x.
LOOKING_AHEAD = {"qw": 0.5, "qx": -0.5, "qy": 0.5, "qz": -0.5}


def write_scene(root, name, frames):
    """Write a scene of a vehicle that moves 1.5 m per frame; camera 2 m ahead of the LiDAR and 0.5 m below it."""
    folder = root / name
    (folder / "rgb" / "CAMERA_01").mkdir(parents=True)
    (folder / "point_cloud" / "LIDAR").mkdir(parents=True)
    (folder / "calibration").mkdir()
    calibration = {"names": ["LIDAR", "CAMERA_01"], "intrinsics": [{"fx": 0, "fy": 0, "cx": 0, "cy": 0}, K]}
    (folder / "calibration" / "cal.json").write_text(json.dumps(calibration))
    samples, data = [], []
    for i in range(frames):
        x = 1.5 * i
        cv2.imwrite(str(folder / f"rgb/CAMERA_01/{i}.png"), np.full((*SIZE, 3), 20 * i, np.uint8))
        # One point 12 m ahead of the LiDAR, 1 m to the left, at the camera's height; and one behind the vehicle.
        points = np.array([[12.0, 1.0, -0.5], [-5.0, 0.0, 0.0]], np.float32)
        np.savez(folder / f"point_cloud/LIDAR/{i}.npz", data=np.column_stack([points, np.zeros(2, np.float32)]))
        pose = {"translation": {"x": x + 2, "y": 0.0, "z": 1.0}, "rotation": LOOKING_AHEAD}
        lidar_pose = {"translation": {"x": x, "z": 1.5}, "rotation": {"qw": 1.0}}
        time = f"2019-05-10T20:00:0{i // 10}.{i % 10}00000Z"
        data += [
            {
                "key": f"image{i}",
                "id": {"name": "CAMERA_01", "timestamp": time},
                "datum": {"image": {"filename": f"rgb/CAMERA_01/{i}.png", "pose": pose}},
            },
            {
                "key": f"points{i}",
                "id": {"name": "LIDAR", "timestamp": time},
                "datum": {"point_cloud": {"filename": f"point_cloud/LIDAR/{i}.npz", "pose": lidar_pose}},
            },
        ]
        samples.append({"datum_keys": [f"points{i}", f"image{i}"], "calibration_key": "cal"})
    (folder / "scene_abc.json").write_text(json.dumps({"samples": samples, "data": data}))
    return f"{name}/scene_abc.json"


@pytest.fixture
def ddad(tmp_path):
    splits = {
        "0": {"filenames": [write_scene(tmp_path, "000000", 4), write_scene(tmp_path, "000001", 3)]},
        "1": {"filenames": [write_scene(tmp_path, "000150", 2)]},
    }
    (tmp_path / "ddad.json").write_text(json.dumps({"scene_splits": splits}))
    return tmp_path


def test_samples_are_within_one_scene_and_have_the_cameras_poses(ddad):
    dataset = DdadDataset(ddad, size=(64, 96))
    assert [dataset[i].name for i in range(len(dataset))] == ["000000/1", "000000/2", "000001/1"]
    sample = dataset[1]
    assert sample.frames.shape == (3, 3, 64, 96)
    torch.testing.assert_close(sample.frames.mean((1, 2, 3)) * 255, torch.tensor([20.0, 40, 60]))
    assert float(sample.interval) == pytest.approx(0.1)
    expected = torch.eye(4).repeat(3, 1, 1)
    expected[:, 2, 3] = torch.tensor([-1.5, 0, 1.5])  # ahead is z of the optical frame
    torch.testing.assert_close(sample.poses, expected)
    sx, sy = 96 / 121, 64 / 76
    np.testing.assert_allclose(sample.intrinsics[:2, 2], [sx * 60.5 - 0.5, sy * 38.5 - 0.5], rtol=1e-6)


def test_lidar_depth_is_in_the_cameras_frame(ddad):
    test = DdadTest(ddad)
    assert len(test) == 2
    image = test[1]
    ((row,), (column,)) = np.nonzero(image.depth)
    assert image.depth[row, column] == pytest.approx(10, abs=1e-5)
    assert (row, column) == (38, round(60 - 130 * 1 / 10))
    assert image.image.shape == (*SIZE, 3)
    assert image.name == "000150/1"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "ddad.json").unlink(), "ddad.json: no such file; DDAD .* is at https"),
        (lambda root: (root / "ddad.json").write_text("{"), "ddad.json: not JSON"),
        (lambda root: (root / "ddad.json").write_text("{}"), "no scenes of split 'val'"),
        (
            lambda root: (root / "ddad.json").write_text('{"scene_splits": {"1": {"filenames": []}}}'),
            "split 'val' is empty",
        ),
        (lambda root: (root / "000150/scene_abc.json").write_text('{"data": []}'), "not a DDAD scene"),
        (
            lambda root: (root / "000150/scene_abc.json").unlink(),
            "1 of the 1 scenes of split 'val' are missing: 000150/",
        ),
        (
            lambda root: (root / "000150/calibration/cal.json").write_text("{}"),
            r"^\S+cal.json: no intrinsics of CAMERA_01",
        ),
        (lambda root: (root / "000150/point_cloud/LIDAR/0.npz").unlink(), "0.npz: no such file"),
        (lambda root: (root / "000150/point_cloud/LIDAR/0.npz").write_text("x"), "0.npz: not a point cloud"),
        (lambda root: (root / "000150/point_cloud/LIDAR/0.npz").write_bytes(b"PK\3\4 cut"), "0.npz: not a point cloud"),
        (lambda root: (root / "000150/rgb/CAMERA_01/0.png").unlink(), "0.png: no such file"),
    ],
)
def test_errors_name_the_invalid_file(ddad, spoil, message):
    spoil(ddad)
    with pytest.raises(DataError, match=message):
        DdadTest(ddad)[0]


def test_unusable_splits_are_refused(ddad):
    with pytest.raises(DataError, match="no scene of split 'val' has three frames"):
        DdadDataset(ddad, "val")
    with pytest.raises(DataError, match="split must be train or val, got 'test'"):
        DdadDataset(ddad, "test")
