"""Folders of single images: reading, writing and shrinking them, and labelling them with a teacher's depth."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from fadepth_core.data import DataError, Sample, collate
from fadepth_core.data.augment import cutmix_strip
from fadepth_core.data.images import read_depth, write_depth
from fadepth_core.data.pictures import PictureDataset, write_pictures
from fadepth_core.data.registry import WithPlaceholders
from fadepth_core.data.shrink import shrink_folders
from fadepth_core.losses import BaseWeights, LevelWeights, PyramidLoss
from fadepth_core.models import DepthFeatures
from fadepth_core.training.labels import label_pictures

CAMERA = {"fx": 100.0, "fy": 110.0, "cx": 63.5, "cy": 47.5}


def picture(seed, height=96, width=128):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_folder(root, entries):
    """Write a folder with an index; an entry is (further keys, depth or None)."""
    root.mkdir(parents=True, exist_ok=True)
    index = []
    for number, (keys, depth) in enumerate(entries):
        cv2.imwrite(str(root / f"{number}.png"), picture(number)[..., ::-1])
        entry = {"id": f"p{number}", "rgb": f"{number}.png", **keys}
        if depth is not None:
            write_depth(root / f"{number}_depth.png", depth)
            entry["depth"] = f"{number}_depth.png"
        index.append(entry)
    (root / "index.json").write_text(json.dumps(index))
    return root


def test_depth_and_camera_are_optional(tmp_path):
    depth = np.full((96, 128), 3.0, np.float32)
    root = write_folder(tmp_path, [(CAMERA, depth), (CAMERA, None), ({}, None)])
    dataset = PictureDataset(root, (96, 128))
    measured, seen, unknown = (dataset[i] for i in range(3))
    assert measured.frames.shape == (1, 3, 96, 128)
    np.testing.assert_array_equal((measured.middle.permute(1, 2, 0) * 255).round().byte().numpy(), picture(0))
    assert torch.equal(measured.depth, torch.full((96, 128), 3.0))
    assert seen.depth is None
    torch.testing.assert_close(
        seen.intrinsics, torch.tensor([[100.0, 0, 63.5], [0, 110.0, 47.5], [0, 0, 1]]), atol=1e-4, rtol=0
    )
    assert unknown.depth is None
    assert unknown.intrinsics[0, 0] == unknown.intrinsics[1, 1]
    assert [dataset[i].name for i in range(3)] == ["p0", "p1", "p2"]


def test_a_folder_without_an_index_yields_all_images(tmp_path):
    for name in ("b.jpg", "deeper/a.png", "deeper/c.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture(1))
    (tmp_path / "notes.txt").write_text("no picture")
    assert len(PictureDataset(tmp_path, (64, 64), every=2)) == 2
    sample = PictureDataset(tmp_path, (64, 64))[0]
    assert (sample.name, sample.frames.shape) == ("b.jpg", (1, 3, 64, 64))


def test_subfolders_are_read_with_and_without_index(tmp_path):
    write_folder(tmp_path / "measured", [(CAMERA, np.ones((96, 128), np.float32)), (CAMERA, None)])
    (tmp_path / "found").mkdir()
    cv2.imwrite(str(tmp_path / "found" / "a.png"), picture(5))
    dataset = PictureDataset(tmp_path, (64, 64))
    samples = [dataset[i] for i in range(len(dataset))]
    assert [sample.name for sample in samples] == ["found/a.png", "measured/p0", "measured/p1"]
    assert [sample.depth is not None for sample in samples] == [False, True, False]


def test_images_and_depth_are_cropped_to_the_given_size(tmp_path):
    """Dense depth is resized by nearest neighbour; of sparse depth no value is lost."""
    depth = np.zeros((96, 128), np.float32)
    depth[:, :64], depth[:, 64:] = 2.0, 8.0
    sparse = np.zeros_like(depth)
    sparse[30::7, 3::5] = depth[30::7, 3::5]
    root = write_folder(tmp_path, [(CAMERA, depth), (CAMERA, sparse)])
    dense, few = (PictureDataset(root, (32, 64))[i] for i in range(2))
    assert torch.equal(dense.depth[:, :32], torch.full((32, 32), 2.0))
    assert torch.equal(dense.depth[:, 32:], torch.full((32, 32), 8.0))
    known = few.depth > 0
    assert 0.05 < known.float().mean() < 0.3
    assert torch.equal(few.depth[known], dense.depth[known])
    torch.testing.assert_close(dense.intrinsics[0, 0], torch.tensor(50.0))


@pytest.mark.parametrize(
    ("keys", "depth", "message"),
    [
        ({}, np.ones((96, 128), np.float32), "picture 0 has no 'fx'"),
        ({"fx": 100.0}, None, "picture 0 has no 'fy'"),
        ({**CAMERA, "cx": "left"}, None, "picture 0: cx must be a number, got 'left'"),
    ],
)
def test_an_incomplete_index_is_refused(tmp_path, keys, depth, message):
    with pytest.raises(DataError, match=f"index.json: {message}"):
        PictureDataset(write_folder(tmp_path, [(keys, depth)]))


def test_errors_name_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        PictureDataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither index\.json nor a picture"):
        PictureDataset(tmp_path)
    root = write_folder(tmp_path, [(CAMERA, np.ones((48, 64), np.float32))])
    with pytest.raises(DataError, match=r"0_depth\.png: 64x48 pixels, its picture has 128x96"):
        PictureDataset(root)[0]
    with pytest.raises(DataError, match="every must be at least 1, got 0"):
        PictureDataset(root, every=0)


class Teacher:
    """Predicts inverse depth that decreases from left to right; records its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, image, intrinsics):
        self.calls.append((image.shape, intrinsics))
        return np.tile(np.linspace(0.5, 0.1, image.shape[1], dtype=np.float32), (image.shape[0], 1))


def test_a_teachers_depth_is_written_as_a_picture_folder(tmp_path):
    pictures, labels = tmp_path / "pictures", tmp_path / "labels"
    pictures.mkdir()
    for name, (height, width) in {"a": (96, 128), "b": (60, 200)}.items():
        cv2.imwrite(str(pictures / f"{name}.png"), picture(3, height, width))
    teacher = Teacher()
    assert label_pictures(pictures, teacher, labels) == 2
    assert [shape for shape, _ in teacher.calls] == [(192, 256, 3), (128, 416, 3)], "aspect ratios are kept"
    for name, size in (("000000", (96, 128)), ("000001", (60, 200))):
        depth = read_depth(labels / "depth" / f"{name}.png")
        assert depth.shape == size
        assert depth[0, 0] == pytest.approx(2, rel=0.02)
        assert depth[0, -1] == pytest.approx(10, rel=0.02)
    sample = PictureDataset(labels, (64, 64))[0]
    assert sample.name == "a.png"
    assert (sample.depth > 0).all()
    # The teacher got the intrinsics of the written entry, so metric depth is right at any focal length.
    focal = json.loads((labels / "index.json").read_text())[0]["fx"]
    assert teacher.calls[0][1][0, 0] == pytest.approx(focal * 2)
    again = Teacher()
    assert label_pictures(pictures, again, labels) == 2
    assert again.calls == [], "an interrupted run is resumed"


class Scenes:
    """A data set whose second sample has no depth; records the indices that are read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.read.append(index)
        frames = torch.full((3, 3, 32, 64), 0.25 * (index + 1))
        matrix = torch.tensor([[40.0, 0, 31.0], [0, 41.0, 15.0], [0, 0, 1]])
        depth = None if index == 1 else torch.full((32, 64), 2.5 * (index + 1))
        return Sample(frames, matrix, torch.tensor(0.1), f"scene {index}", depth=depth)


def test_a_written_data_set_is_read_again(tmp_path):
    scenes = Scenes()
    assert write_pictures(scenes, tmp_path, range(2)) == 2
    assert write_pictures(scenes, tmp_path, range(3)) == 3
    assert write_pictures(scenes, tmp_path, range(1)) == 1
    assert scenes.read == [0, 1, 2], "an interrupted run is resumed"
    dataset = PictureDataset(tmp_path, (32, 64))
    for index in range(3):
        found, expected = dataset[index], scenes[index]
        torch.testing.assert_close(found.frames[0], expected.middle, atol=0.01, rtol=0)
        torch.testing.assert_close(found.intrinsics, expected.intrinsics, atol=1e-4, rtol=0)
        assert (found.depth is None) == (expected.depth is None)
        if found.depth is not None:
            torch.testing.assert_close(found.depth, expected.depth, atol=1 / 256, rtol=0)


def test_the_shape_loss_ignores_a_teachers_depth(tmp_path):
    """In a mixture with measured depth, the shape loss uses only the measured depth."""
    root = write_folder(tmp_path, [(CAMERA, np.tile(np.linspace(2, 9, 128, dtype=np.float32), (96, 1)))])
    sharp, soft = (WithPlaceholders(PictureDataset(root, (64, 96), sharp=value))[0] for value in (True, False))

    class Flat(torch.nn.Module):
        min_depth, max_depth, feature_offset = 0.1, 100.0, 0

        def forward(self, image):
            x = torch.full((len(image), 1, *image.shape[-2:]), 0.02, requires_grad=True)
            return DepthFeatures((x,), (), (x,))

    def shape(*samples):
        loss = PyramidLoss(
            Flat(),
            None,
            (64, 96),
            {"cr": LevelWeights(1.0)},
            BaseWeights(0, 0, 0, 0),
            depth_weight=1.0,
            shape_weight=1.0,
        )
        return float(loss(collate(samples), torch.Tensor.backward).levels["cr"].shape)

    assert shape(soft) == 0
    assert shape(sharp) > 0.1
    assert shape(sharp, soft) == pytest.approx(shape(sharp))
    mixed = cutmix_strip(sharp, soft, torch.Generator().manual_seed(0))
    assert not mixed.sharp


def test_only_the_middle_rows_of_a_tall_image_are_labelled(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "tall.png"), picture(3, 200, 160))
    teacher = Teacher()
    label_pictures(pictures, teacher, tmp_path / "labels", aspect=2.0)
    depth = read_depth(tmp_path / "labels" / "depth" / "000000.png")
    assert depth.shape == (200, 160)
    assert (depth[60:140] > 0).all()
    assert not depth[:60].any()
    assert not depth[140:].any()
    ((shape, matrix),) = teacher.calls
    assert shape[1] / shape[0] == pytest.approx(2, rel=0.15)
    assert matrix[1, 2] == pytest.approx(shape[0] / 2 - 0.5, abs=0.6), "the principal point relative to these rows"


def test_shrinking_keeps_the_shares_and_spreads_the_images(tmp_path):
    ramp = np.tile(np.linspace(2, 90, 256, dtype=np.float32), (192, 1))
    smooth = np.full((192, 256, 3), 120, np.uint8)
    source = tmp_path / "all"
    for name, count in (("streets", 40), ("measured/hall", 20)):
        write_folder(source / name, [(CAMERA, ramp)] * count)
        for number in range(count):
            smooth[..., 1] = 4 * number  # tells the pictures apart after JPEG
            cv2.imwrite(str(source / name / f"{number}.png"), smooth[..., ::-1])
    (source / "photos").mkdir()
    for number in range(10):
        cv2.imwrite(str(source / f"photos/{number}.jpg"), picture(number, 64, 96))
    (source / "models/skins").mkdir(parents=True)
    cv2.imwrite(str(source / "models/skins/brick.png"), picture(0))

    limit = 200_000
    counts = shrink_folders(source, tmp_path / "small", limit, pixels=64 * 96, skip=["models"])
    files = [path for path in (tmp_path / "small").rglob("*.*") if path.suffix in (".jpg", ".png")]
    assert 0.9 * limit < sum(path.stat().st_size for path in files) <= limit
    assert sorted(counts) == ["measured/hall", "photos", "streets"]
    assert counts["streets"] == pytest.approx(2 * counts["measured/hall"], abs=1)
    assert counts["photos"] == pytest.approx(counts["measured/hall"] / 2, abs=1)

    streets = PictureDataset(tmp_path / "small/streets", (64, 96))
    assert len(streets) == counts["streets"] < 40
    numbers = [float(255 * streets[i].middle[1].mean()) / 4 for i in range(len(streets))]
    steps = np.diff([0, *numbers, 39])
    assert steps.min() > -0.5, "in order"
    assert steps.max() < 3 * 40 / len(streets), "spread evenly"
    sample = streets[0]
    expected = PictureDataset(source / "streets", (64, 96))[0]
    torch.testing.assert_close(sample.depth, expected.depth, rtol=0.007, atol=1 / 256)
    torch.testing.assert_close(sample.intrinsics, expected.intrinsics)
    assert PictureDataset(tmp_path / "small/photos", (64, 96))[0].depth is None

    with pytest.raises(DataError, match="not empty"):
        shrink_folders(source, tmp_path / "small", limit)
    with pytest.raises(DataError, match="3 folders"):
        shrink_folders(source, tmp_path / "smaller", 1000, skip=["models"])
