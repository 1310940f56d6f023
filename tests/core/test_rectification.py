"""Rectified pictures are those of a pinhole camera, for every distortion model and without a P."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fadepth_core.common.errors import DataError
from fadepth_core.common.rectification import Calibration, Rectification, named_rectified

SIZE = (240, 320)
K = np.array([[200.0, 0, 161], [0, 205, 118], [0, 0, 1]])
NO_P = np.zeros((3, 4))
MODELS = {
    "plumb_bob": [-0.3, 0.1, 0.001, -0.002, 0.01],
    "rational_polynomial": [0.5, 0.1, 0.0005, -0.0003, 0.01, 0.9, 0.2, 0.02],
    "equidistant": [0.02, -0.01, 0.004, -0.001],
}


def calibration(model="plumb_bob", coefficients=(), **other):
    values = {"matrix": K, "rotation": np.eye(3), "projection": NO_P, "size": SIZE} | other
    return Calibration(model=model, distortion=np.array(coefficients, np.float64), **values)


def distorted_pixels(model, coefficients, rays):
    """Pixels of rays [N, 3], by OpenCV's forward models."""
    points = rays.reshape(-1, 1, 3).astype(np.float64)
    if model == "equidistant":
        return cv2.fisheye.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(coefficients))[0].reshape(-1, 2)
    return cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(coefficients))[0].reshape(-1, 2)


@pytest.mark.parametrize("has_p", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_a_point_is_where_the_pinhole_camera_sees_it(model, has_p):
    turn = cv2.Rodrigues(np.array([0.02, -0.03, 0.01]))[0] if has_p else np.eye(3)
    p = np.hstack([np.array([[190.0, 0, 158], [0, 190, 121], [0, 0, 1]]), np.zeros((3, 1))]) if has_p else NO_P
    lens = Rectification(calibration(model, MODELS[model], rotation=turn, projection=p))
    for x, y in [(0, 0), (0.3, -0.2), (-0.35, 0.25)]:
        ray = np.array([x, y, 1.0])
        u, v = distorted_pixels(model, MODELS[model], ray)[0]
        columns, rows = np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0]))
        blob = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 18)
        found = lens(blob.astype(np.float32))
        expected = lens.matrix @ lens.rotation @ ray
        weight = found / found.sum()
        assert (weight * columns).sum() == pytest.approx(expected[0] / expected[2], abs=0.35)
        assert (weight * rows).sum() == pytest.approx(expected[1] / expected[2], abs=0.35)
    assert np.allclose(lens.rotation, turn)


@pytest.mark.parametrize("model", MODELS)
def test_without_p_all_pixels_are_valid_and_few_are_lost(model):
    lens = Rectification(calibration(model, MODELS[model]))
    assert lens.chosen
    assert lens.inside == 1.0
    assert lens.matrix[0, 0] == lens.matrix[1, 1] < 1.35 * K[0, 0]


def test_the_picture_of_a_very_wide_lens_is_limited():
    wide = np.array([[90.0, 0, 159.5], [0, 90, 119.5], [0, 0, 1]])  # 100 degrees to each side
    lens = Rectification(calibration("equidistant", [0.001, 0, 0, 0], matrix=wide))
    assert 2 * np.degrees(np.arctan(159.5 / lens.matrix[0, 0])) == pytest.approx(120, abs=1)


@pytest.mark.parametrize(
    ("options", "rectified"),
    [
        ({}, False),
        ({"model": ""}, False),
        ({"projection": np.hstack([K, [[-20.0], [0], [0]]])}, False),
        ({"coefficients": MODELS["plumb_bob"], "projection": np.hstack([K, np.zeros((3, 1))])}, True),
    ],
)
def test_rectified_pictures_are_left_alone(options, rectified):
    lens = Rectification(calibration(**options), rectified)
    picture = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE)
    assert not lens.needed
    assert lens(picture) is picture
    np.testing.assert_array_equal(lens.matrix, K)


def test_names_of_rectified_topics():
    assert all(map(named_rectified, ["/cam/image_rect", "/infra1/image_rect_raw", "left/rectified/image"]))
    assert not any(map(named_rectified, ["/cam/image_raw", "/direct/image", "/rectangle/image", "/correct"]))


def test_the_baseline_of_a_right_camera():
    assert calibration(projection=np.hstack([K, [[-24.0], [0], [0]]])).baseline == pytest.approx(0.12)
    assert calibration().baseline == 0


def test_intrinsics_of_reduced_pictures():
    half = calibration(size=(480, 640)).for_pictures((240, 320), "/image")
    np.testing.assert_allclose(half.matrix[:2, 2], (K[:2, 2] + 0.5) / 2 - 0.5)
    assert half.matrix[0, 0] == K[0, 0] / 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: calibration("omni", [1.0]), "distortion model 'omni' is not supported"),
        (lambda: calibration("plumb_bob", [0.1, 0.2]), "'plumb_bob' with 2 coefficients"),
        (lambda: calibration("equidistant", [0.1] * 5), "needs 4 coefficients, D has 5"),
        (lambda: calibration(matrix=np.zeros((3, 3))), "K is zero: the camera is not calibrated"),
        (lambda: calibration(matrix=np.full((3, 3), np.nan)), "not finite"),
        (lambda: calibration().for_pictures((240, 319), "/image"), "320x240 pixels, but /image has 319x240"),
        (lambda: calibration().for_pictures((160, 214), "/image"), "nor a whole multiple"),
        (lambda: calibration().for_pictures((360, 480), "/image"), "nor a whole multiple"),
        (lambda: Rectification(calibration())(np.zeros((10, 10), np.uint8)), "320x240 pixels, but a picture has 10x10"),
    ],
)
def test_calibrations_that_cannot_be_used(make, message):
    with pytest.raises(DataError, match=message):
        make()
