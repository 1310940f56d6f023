"""Evaluation protocols: evaluated pixels, scaling of predictions, predictors, reports, and the folder test set."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from fadepth_core.common.framing import choose_network_size
from fadepth_core.data import DataError, LabelledImage
from fadepth_core.data.folder import FolderTest
from fadepth_core.evaluation import (
    PROTOCOLS,
    EnginePredictor,
    NetworkPredictor,
    Protocol,
    compare,
    compare_evenly,
    evaluate,
    garg_crop,
    picture_sheet,
    prediction_sheet,
    print_table,
    published_rows,
    write_json,
)
from fadepth_core.evaluation.baselines import ConstantDepth, GroundPlane
from fadepth_core.evaluation.report import CAPTION_HEIGHT, TILE_WIDTH
from fadepth_core.evaluation.tiles import MAP_SIZE, map_from_above
from fadepth_core.models import SmallDepth
from fadepth_core.models.depth_network import DepthFeatures
from fadepth_core.runtime.engine import DepthEngine

DATA = os.environ.get("FADEPTH_DATA")

FOLDER = PROTOCOLS["folder"]
METRIC = replace(FOLDER, scaling="none")


def labelled(depth, name="hall"):
    """A grey image with the given depth."""
    depth = np.asarray(depth, np.float32)
    return LabelledImage(np.full((*depth.shape, 3), 128, np.uint8), depth, np.eye(3), name)


def predicting(depth):
    """A predictor that always returns this depth."""
    return lambda image, intrinsics: (1 / np.asarray(depth, np.float32)).astype(np.float32)


# Evaluated pixels --------------------------------------------------------------------------------------------------


def test_garg_crop_of_a_kitti_image():
    assert garg_crop((375, 1242)) == (slice(153, 371), slice(44, 1197))


def test_only_pixels_inside_the_crop_are_evaluated():
    image = labelled(np.full((375, 1242), 10.0))
    whole, cropped = 375 * 1242, 218 * 1153
    for name, count in (
        ("kitti_eigen", cropped), ("kitti_eigen_improved", cropped), ("kitti_eigen_improved_monodepth2", whole),
        ("ddad_80", whole),
    ):  # fmt: skip
        assert compare(predicting(np.ones((4, 4))), image, PROTOCOLS[name]).valid.sum() == count


def test_truth_outside_the_range_is_not_evaluated():
    image = labelled([[0.0, 1e-3, 5.0, 80.0, 150.0, 250.0]])
    predict = predicting(np.full((1, 6), 5.0))
    assert compare(predict, image, PROTOCOLS["ddad_80"]).valid.tolist() == [[False, False, True, False, False, False]]
    assert compare(predict, image, PROTOCOLS["ddad_200"]).valid.tolist() == [[False, False, True, True, True, False]]


def test_improved_truth_is_evaluated_as_by_monodepth2():
    """All known truth is used, for the median as for the errors; predictions are clipped at 80 m."""
    image = labelled([[0.0, 10.0, 20.0, 160.0, 255.0]])
    predict = predicting([[1.0, 1.0, 9.0, 9.0, 9.0]])  # medians of truth and prediction: 90 m and 9 m
    comparison = compare(predict, image, PROTOCOLS["kitti_eigen_improved_monodepth2"])
    assert comparison.valid.tolist() == [[False, True, True, True, True]]
    np.testing.assert_allclose(comparison.depth, [[10, 10, 80, 80, 80]], rtol=1e-6)
    assert comparison.metrics.abs_rel == pytest.approx((0 + 3 + 0.5 + 175 / 255) / 4)


# Scaling of predictions --------------------------------------------------------------------------------------------


def test_median_scaling_uses_the_evaluated_pixels_only():
    """Medians of 4 (truth) and 2 (prediction); the pixel without truth would change the latter."""
    comparison = compare(predicting([[1.0, 2.0, 3.0, 60.0]]), labelled([[2.0, 4.0, 8.0, 0.0]]), FOLDER)
    assert comparison.ratio == pytest.approx(2)
    np.testing.assert_allclose(comparison.depth, [[2, 4, 6, 80]], rtol=1e-6)  # 120 m before clipping
    assert comparison.metrics.abs_rel == pytest.approx((0 + 0 + 2 / 8) / 3)


def test_metric_depth_is_not_scaled():
    comparison = compare(predicting([[1.0, 2.0, 3.0]]), labelled([[2.0, 4.0, 6.0]]), METRIC)
    assert comparison.metrics.abs_rel == pytest.approx(0.5)
    assert comparison.ratio == pytest.approx(2)


def test_predictions_are_clipped_after_scaling():
    protocol = Protocol("near", min_depth=1.0, max_depth=10.0)
    comparison = compare(predicting([[0.1, 1.0, 1.0, 4.0]]), labelled([[2.0, 5.0, 5.0, 5.0]]), protocol)
    np.testing.assert_allclose(comparison.depth, [[1, 5, 5, 10]], rtol=1e-6)  # 0.5 and 20 m before clipping


def test_inverse_depth_is_resized_not_depth():
    """Halfway between 1 m and 4 m the depth is 1 / ((1 + 1/4) / 2) = 1.6 m, not 2.5 m."""
    depth = compare(predicting([[1.0, 4.0]]), labelled(np.full((1, 3), 1.0)), METRIC).depth
    np.testing.assert_allclose(depth, [[1, 1.6, 4]], rtol=1e-6)


def test_errors_name_the_invalid_image():
    with pytest.raises(DataError, match=r"hall: no true depth between 0.001 and 80.0 m, so 'folder'"):
        compare(predicting([[1.0]]), labelled([[0.0, 100.0]]), FOLDER)
    outside = np.zeros((375, 1242))
    outside[0, 0] = 10.0
    with pytest.raises(DataError, match="inside the crop"):
        compare(predicting([[1.0]]), labelled(outside), PROTOCOLS["kitti_eigen"])
    for prediction in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.ones((1, 2, 2))):
        with pytest.raises(ValueError, match="hall: the prediction must be"):
            compare(lambda image, k, prediction=prediction: prediction, labelled([[1.0]]), FOLDER)
    with pytest.raises(DataError, match="no images"):
        evaluate(predicting([[1.0]]), [], FOLDER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "eigen"}, "garg"),
        ({"scaling": "mean"}, "median, none"),
        ({"max_depth": 0.0}, "empty"),
        ({"max_truth": 1e-3}, "no truth"),
    ],
)
def test_invalid_protocols_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol("mine", **options)


# Predictors --------------------------------------------------------------------------------------------------------


class LeftRight(torch.nn.Module):
    """x increases from left to right and with the red channel; records the sizes of its inputs."""

    min_depth, max_depth = 0.1, 100.0

    def __init__(self, training_form=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.training_form = training_form
        self.sizes = []
        self.eval()

    def forward(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        ramp = torch.linspace(0.2, 0.4, image.shape[-1]).expand(image.shape[0], 1, *image.shape[-2:])
        x = self.weight * ramp + 0.05 * image[:, :1]
        return DepthFeatures((x,), (), ()) if self.training_form else x


@pytest.fixture
def picture():
    """Red increases downwards and to the right."""
    rows, columns = np.mgrid[0:96, 0:160]
    image = np.zeros((96, 160, 3), np.uint8)
    image[..., 0] = rows + columns // 2
    return image


def inverse_depth_of(x):
    return (1 / 0.1 - 1 / 100) * x + 1 / 100


def test_the_predicted_inverse_depth_of_a_network(picture):
    """The image is normalised as in training, x is scaled to the network's depth range, and a fitting size is kept."""
    red = (picture[..., 0] / 255 - 0.485) / 0.229
    expected = inverse_depth_of(np.linspace(0.2, 0.4, 160) + 0.05 * red)
    for training_form in (False, True):
        found = NetworkPredictor(LeftRight(training_form), (96, 160))(picture, np.eye(3))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_flip_averages_with_the_mirrored_prediction(picture):
    """The part of x that depends on the colour is kept; the part that depends on the side is averaged out."""
    red = (picture[..., 0] / 255 - 0.485) / 0.229
    found = NetworkPredictor(LeftRight(), (96, 160), flip=True)(picture, np.eye(3))
    np.testing.assert_allclose(found, inverse_depth_of(0.3 + 0.05 * red), rtol=1e-5)


def test_the_network_size_is_chosen_for_the_camera_or_given():
    network = LeftRight()
    predict = NetworkPredictor(network)
    for size in ((375, 1242), (480, 640)):
        assert predict(np.zeros((*size, 3), np.uint8), np.eye(3)).shape == choose_network_size(size)
    NetworkPredictor(network, (192, 640))(np.zeros((375, 1242, 3), np.uint8), np.eye(3))
    assert network.sizes == [(128, 416), choose_network_size((480, 640)), (192, 640)]


def test_training_and_deployment_form_predict_the_same(picture):
    torch.manual_seed(0)
    network = SmallDepth().eval()
    trained, fused = (
        NetworkPredictor(net, (96, 160), flip=True)(picture, np.eye(3)) for net in (network, network.fuse())
    )
    np.testing.assert_allclose(trained, fused, rtol=1e-3)


def test_a_network_in_training_mode_is_refused(picture):
    with pytest.raises(RuntimeError, match="eval"):
        NetworkPredictor(LeftRight().train())(picture, np.eye(3))


# Reports -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluation():
    """Two images whose true depth is two and four times the prediction."""
    depth = np.linspace(1, 10, 48 * 64).reshape(48, 64)
    return evaluate(predicting(depth), [labelled(2 * depth, "a"), labelled(4 * depth, "b")], FOLDER)


def test_ratios_measure_the_metric_scale(evaluation):
    assert [image.ratio for image in evaluation.images] == pytest.approx([2, 4])
    assert evaluation.ratio_median == pytest.approx(3)
    assert evaluation.ratio_spread == pytest.approx(1 / 3)
    assert evaluation.metrics.abs_rel == pytest.approx(0, abs=1e-6)


def test_results_are_split_by_group(evaluation):
    groups = evaluation.by_group(["street", "indoor"])
    assert {name: [image.name for image in part.images] for name, part in groups.items()} == {
        "street": ["a"],
        "indoor": ["b"],
    }
    assert groups["indoor"].ratio_median == pytest.approx(4)


def test_results_are_written_as_json(evaluation, tmp_path):
    write_json(evaluation, tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content == evaluation.to_dict()
    assert content["protocol"] == {
        "name": "folder", "crop": None, "min_depth": 1e-3, "max_depth": 80.0, "scaling": "median",
        "max_truth": None,
    }  # fmt: skip
    assert set(content["metrics"]) == {"abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3"}
    assert [image["name"] for image in content["images"]] == ["a", "b"]
    assert content["images"][1]["metrics"]["d1"] == 1.0


def test_published_rows_of_every_protocol():
    for name, protocol in PROTOCOLS.items():
        rows = published_rows(protocol)
        # The paper prints its improved rows beside monodepth2's, so they belong to monodepth2's protocol only.
        assert bool(rows) == (name not in ("folder", "kitti_eigen_improved"))
        for row in rows:
            assert 0.05 < row.metrics.abs_rel < 0.2
            assert row.metrics.d1 < 1
        assert published_rows(replace(protocol, scaling="none")) == []


def test_published_rows_of_one_size():
    rows = published_rows(PROTOCOLS["kitti_eigen"], (192, 640))
    assert {row.size for row in rows} == {(192, 640)}
    best = next(row for row in rows if row.label == "SmallDepth‡")
    assert (best.metrics.abs_rel, best.metrics.rmse, best.metrics.d1) == (0.094, 4.497, 0.895)
    assert published_rows(PROTOCOLS["kitti_eigen"], (320, 1024)) == []


def test_the_table_has_the_papers_rows(evaluation, capsys):
    print_table(evaluation, published_rows(PROTOCOLS["ddad_200"]), label="SmallDepth, ours")
    title, header, paper, ours, ratios = capsys.readouterr().out.splitlines()
    assert title == "folder: 2 images, no crop, up to 80 m, scaling: median"
    assert header.split() == ["AbsRel", "SqRel", "RMSE", "RMSElog", "d<1.25", "d<1.25^2", "d<1.25^3"]
    assert paper.split() == ["PackNet", "384x640", "0.162", "3.917", "13.452", "0.269", "0.823", "-", "-"]
    assert ours.split() == ["SmallDepth,", "ours", "0.000", "0.000", "0.000", "0.000", "1.000", "1.000", "1.000"]
    assert len(header) == len(paper) == len(ours)
    assert ratios == "truth / prediction: median 3.000, std / median 0.333"


def test_the_picture_sheet_shows_image_depth_and_error(tmp_path):
    rng = np.random.default_rng(0)
    images = [labelled(rng.uniform(1, 10, (48, 64)), f"frame {index}") for index in range(9)]
    images[4].depth[:, 32:] = 0
    comparisons = compare_evenly(predicting(np.linspace(1, 10, 24 * 32).reshape(24, 32)), images, FOLDER, count=3)
    assert [comparison.image.name for comparison in comparisons] == ["frame 0", "frame 4", "frame 8"]
    picture_sheet(comparisons, tmp_path / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    height = CAPTION_HEIGHT + TILE_WIDTH * 48 // 64
    assert sheet.shape == (3 * height, 3 * TILE_WIDTH + MAP_SIZE[1], 3)
    caption, (image, depth, error, _) = (
        sheet[height:][:CAPTION_HEIGHT],
        np.split(sheet[height:][CAPTION_HEIGHT:height], TILE_WIDTH * np.arange(1, 4), 1),
    )
    assert caption.max() == 255
    assert (image == 128).all()
    assert depth.std() > 20
    left, right = error[:, : TILE_WIDTH // 2 - 8], error[:, TILE_WIDTH // 2 + 8 :]
    assert left.any(-1).mean() > 0.2  # the half with ground truth
    assert not right.any()
    with pytest.raises(ValueError, match="at least one"):
        picture_sheet([], tmp_path / "sheet.png")


# The folder test set -----------------------------------------------------------------------------------------------


ENTRY = {"id": "hall", "rgb": "hall.png", "depth": "hall_depth.png", "fx": 50, "fy": 51, "cx": 31.5, "cy": 23.5}


@pytest.fixture
def folder(tmp_path):
    """Two images of different groups, red on the left, 2.5 m away."""
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32, 2] = 255  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "hall.png"), rgb)
    cv2.imwrite(str(tmp_path / "hall_depth.png"), np.full((48, 64), 640, np.uint16))
    write_index(tmp_path, [{**ENTRY, "group": "indoor"}, {**ENTRY, "id": "street", "group": "street"}])
    return tmp_path


def write_index(folder, value):
    (folder / "index.json").write_text(json.dumps(value))


def test_a_folder_yields_images_with_depth(folder):
    images = FolderTest(folder)
    assert len(images) == 2
    assert images.groups == ["indoor", "street"]
    image = images[0]
    assert image.name == "hall"
    assert image.image[0, 0].tolist() == [255, 0, 0]
    assert image.depth.dtype == np.float32
    assert (image.depth == 2.5).all()
    np.testing.assert_array_equal(image.intrinsics, [[50, 0, 31.5], [0, 51, 23.5], [0, 0, 1]])
    assert [image.name for image in FolderTest(folder, groups=["street"])] == ["street"]


def test_a_folder_of_folders_is_one_test_set(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("all")
    for name in ("b", "a"):
        shutil.copytree(folder, root / name)
    images = FolderTest(root)
    assert [image.name for image in images] == ["a/hall", "a/street", "b/hall", "b/street"]
    assert images.groups == ["indoor", "street"] * 2


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "at least one picture"),
        ({"id": "hall"}, "expected a list"),
        ([ENTRY, {key: value for key, value in ENTRY.items() if key != "fx"}], "picture 1 has no 'fx'"),
        ([{**ENTRY, "cx": "middle"}], "picture 0: cx must be a number"),
        (["hall.png"], "picture 0: must be an object with keys"),
    ],
)
def test_errors_name_the_invalid_index(folder, index, message):
    write_index(folder, index)
    with pytest.raises(DataError, match=rf"index\.json: .*{message}"):
        FolderTest(folder)


def test_errors_name_what_is_missing_in_a_folder(folder):
    with pytest.raises(DataError, match=r"no pictures of group forest; groups: indoor, street"):
        FolderTest(folder, groups=["forest"])
    cv2.imwrite(str(folder / "hall_depth.png"), np.full((24, 64), 640, np.uint16))
    with pytest.raises(DataError, match=r"hall_depth\.png: 64x24 pixels, its picture has 64x48"):
        FolderTest(folder)[0]
    (folder / "hall.png").unlink()
    with pytest.raises(DataError, match=r"hall\.png: no such file"):
        FolderTest(folder)[0]
    (folder / "index.json").write_text("[{")
    with pytest.raises(DataError, match=r"index\.json: not JSON"):
        FolderTest(folder)
    with pytest.raises(DataError, match=r"elsewhere/index\.json: no such file"):
        FolderTest(folder / "elsewhere")


@pytest.mark.skipif(not DATA, reason="FADEPTH_DATA, the folder of the development data, is not set")
def test_the_folder_protocol_on_real_images():
    """A constant depth is evaluated on street and indoor images of several cameras."""
    images = FolderTest(Path(DATA) / "eval")
    assert len(images) == 21
    assert {"kitti_object", "rgbd_indoor"} <= set(images.groups)

    def constant(image, intrinsics):
        return np.ones((2, 2), np.float32)

    evaluation = evaluate(constant, (with_plausible_depth(image) for image in images), FOLDER)
    assert len(evaluation.images) == 21
    assert 0.2 < evaluation.metrics.abs_rel < 0.8
    assert evaluation.by_group(images.groups)["rgbd_indoor"].ratio_median < 5


def with_plausible_depth(image):
    known = image.depth[image.depth > 0]
    assert known.size > 1000
    assert known.max() < 200
    return image


def test_the_sheet_without_truth_shows_images_and_depth(tmp_path):
    images = {
        f"frame {i}": (np.random.default_rng(i).integers(0, 255, (48, 96, 3), np.uint8), np.eye(3)) for i in range(2)
    }
    ramp = np.linspace(0.02, 1, 32, dtype=np.float32)[:, None].repeat(64, 1)
    prediction_sheet(lambda image, k: ramp, images, tmp_path / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    height = max(round(TILE_WIDTH * 48 / 96), MAP_SIZE[0]) + CAPTION_HEIGHT
    assert sheet.shape == (2 * height, 2 * TILE_WIDTH + MAP_SIZE[1], 3)
    depth = sheet[CAPTION_HEIGHT : CAPTION_HEIGHT + round(TILE_WIDTH * 48 / 96), TILE_WIDTH : 2 * TILE_WIDTH]
    depth = depth.mean(axis=(1, 2))
    assert (np.diff(depth[::20]) > 0).all(), "near is bright, and depth decreases downwards"
    with pytest.raises(ValueError, match="at least one image"):
        prediction_sheet(lambda image, k: ramp, {}, tmp_path / "none.png")


def red_on_the_map(depth):
    """Positions of the points of a red image on its map: pixels to the right of the camera, and ahead of it."""
    k = np.array([[64.0, 0, 63.5], [0, 64.0, 23.5], [0, 0, 1]])
    red = np.zeros((*depth.shape, 3), np.uint8)
    red[..., 0] = 255
    rows, columns = np.nonzero((map_from_above(red, depth, k) == (0, 0, 255)).all(-1))
    return columns - MAP_SIZE[1] // 2, MAP_SIZE[0] - 1 - rows


def test_the_map_shows_points_at_their_positions():
    """A wall 30 m ahead is a horizontal line half-way up (4 pixels per metre), as wide as the view; a wall 3 m ahead is
    drawn at a larger scale; a wall along the road, 5 m to the right, is a vertical line."""
    x, z = red_on_the_map(np.full((48, 128), 30.0))
    assert set(z) == {120}
    assert (x.min(), x.max()) == (round(-63.5 / 64 * 120), round(63.5 / 64 * 120))
    _, z = red_on_the_map(np.full((48, 128), 3.0))
    assert set(z) == {120}
    far = np.full((48, 128), 10.0)
    far[:, 64:] = 70.0
    x, z = red_on_the_map(far)
    assert x.max() <= 0, "points beyond the end of the map are not drawn"
    assert set(z) == {120}, "10 m ahead on a map of 20 m"
    right = np.arange(128) > 68
    beside = np.where(right, 5 * 64 / np.maximum(np.arange(128) - 63.5, 1), 70)[None].repeat(48, 0)
    x, z = red_on_the_map(beside)
    assert set(x) == {20}
    assert (z.min(), z.max()) == (round(4 * 5 * 64 / 63.5), round(4 * 5 * 64 / 5.5))


def test_the_map_shows_the_highest_of_several_points():
    picture = np.zeros((48, 128, 3), np.uint8)
    picture[:24, :, 1] = 255  # green above red
    picture[24:, :, 0] = 255
    k = np.array([[64.0, 0, 63.5], [0, 64.0, 23.5], [0, 0, 1]])
    shown = map_from_above(picture, np.full((48, 128), 30.0), k)
    assert (shown == (0, 255, 0)).all(-1).sum() == 128
    assert not (shown == (0, 0, 255)).all(-1).any()


def test_baselines_compared_with_values_by_hand():
    k = np.array([[100.0, 0, 32], [0, 50.0, 20], [0, 0, 1]])
    ground = GroundPlane(camera_height=1.5)(np.zeros((48, 64, 3), np.uint8), k)
    assert ground.shape == (48, 64)
    np.testing.assert_allclose(1 / ground[30], 50 * 1.5 / 10, rtol=1e-6)  # ten rows below the horizon
    np.testing.assert_allclose(ground[:20], 1 / 80)
    images = [labelled(np.full((4, 4), depth), str(depth)) for depth in (2.0, 3.0, 40.0)]
    images[0].depth[0] = 90  # beyond the cap
    best = ConstantDepth.typical(images, FOLDER)
    assert best.depth == 3.0
    with pytest.raises(DataError, match="empty: no true depth that 'folder' measures"):
        ConstantDepth.typical([*images, labelled(np.zeros((4, 4)), "empty")], FOLDER)
    assert compare(best, images[1], replace(FOLDER, scaling="none")).metrics.abs_rel == 0


def test_the_table_has_rows_of_groups_and_baselines(capsys):
    images = [labelled(np.full((4, 4), depth), str(depth)) for depth in (1.0, 1.0, 2.0)]
    measured, baseline = (
        evaluate(ConstantDepth(depth), images, replace(FOLDER, scaling="none")) for depth in (1.0, 2.0)
    )
    print_table(measured, label="net", groups=["a", "a", "b"], baselines={"two": baseline})
    rows = capsys.readouterr().out.splitlines()[2:-1]
    names, values = [row[:18].strip() for row in rows], [float(row[18:].split()[0]) for row in rows]
    assert names == ["two", "mean of groups", "net", "mean of groups", "a (2)", "b (1)"]
    assert values == pytest.approx([2 / 3, 0.5, 1 / 6, 0.25, 0.0, 0.5], abs=1e-3)


class FakeEngine:
    """Predicts the height of the image as depth, in metres."""

    backend_name, precision = "openvino", "fp32"

    def infer(self, request):
        return SimpleNamespace(depth=np.full((32, 64), len(request.image), np.float32))


def test_one_engine_is_loaded_per_image_size(checkpoint, monkeypatch):
    """Test sets of several cameras alternate between sizes, and an engine takes seconds to compile."""
    loaded = []

    def load(checkpoint, size, camera_size, *options):
        loaded.append(camera_size)
        return FakeEngine()

    monkeypatch.setattr(DepthEngine, "load", load)
    predict = EnginePredictor(checkpoint, backend="openvino", precision="fp32")
    heights = (64, 48, 64, 48)
    predicted = [predict(np.full((height, 96, 3), 90, np.uint8), np.eye(3) * 80) for height in heights]
    assert loaded == [(64, 96), (48, 96)]
    for height, inverse_depth in zip(heights, predicted, strict=True):
        np.testing.assert_allclose(inverse_depth, 1 / height)
