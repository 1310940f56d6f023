"""Rectified pictures are those of a pinhole camera, for every distortion model and without a P."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fadepth_core.common.errors import DataError
from fadepth_core.common.framing import Framing
from fadepth_core.common.rectification import Calibration, Rectification, RectifiedFraming, named_rectified

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
    assert RectifiedFraming(lens, Framing.plan(SIZE)).outside is None
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


@pytest.mark.parametrize(
    "options", [{"network_size": (32, 64)}, {"network_size": (96, 96), "crop_to_aspect": True}, {}]
)
@pytest.mark.parametrize("model", MODELS)
def test_a_point_is_where_the_network_expects_it(model, options):
    turn = cv2.Rodrigues(np.array([0.02, -0.03, 0.01]))[0]
    lens = Rectification(calibration(model, MODELS[model], rotation=turn, projection=np.hstack([K, np.zeros((3, 1))])))
    framing = Framing.plan(SIZE, **options)
    to_network = RectifiedFraming(lens, framing).to_network
    for x, y in [(0, 0), (0.25, -0.2), (-0.3, 0.2)]:
        ray = np.array([x, y, 1.0])
        u, v = distorted_pixels(model, MODELS[model], ray)[0]
        columns, rows = np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0]))
        blob = 60000 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 40)
        found = to_network(blob.astype(np.uint16)).astype(float)
        assert found.shape == framing.network_size
        expected = framing.network_intrinsics(lens.matrix) @ lens.rotation @ ray
        columns, rows = np.meshgrid(np.arange(found.shape[1]), np.arange(found.shape[0]))
        assert (found * columns).sum() / found.sum() == pytest.approx(expected[0] / expected[2], abs=0.2)
        assert (found * rows).sum() / found.sum() == pytest.approx(expected[1] / expected[2], abs=0.2)


@pytest.mark.parametrize("size", [(240, 320), (361, 481), (720, 1280)])
def test_details_finer_than_the_network_are_averaged(size):
    """Squares of one pixel: they become grey, not a pattern of their own."""
    matrix = np.array([[0.6 * size[1], 0, size[1] / 2], [0, 0.6 * size[1], size[0] / 2], [0, 0, 1]])
    lens = Rectification(calibration("plumb_bob", MODELS["plumb_bob"], size=size, matrix=matrix))
    squares = 255 * (np.indices(size).sum(axis=0) % 2).astype(np.uint8)
    found = RectifiedFraming(lens, Framing.plan(size, (64, 96))).to_network(squares)
    assert found.std() < 12
    assert found.mean() == pytest.approx(127.5, abs=3)


@pytest.mark.parametrize("full_resolution", [False, True])
@pytest.mark.parametrize(("model", "coefficients"), [*MODELS.items(), ("plumb_bob", [-0.3, 0, 0, 0])])
def test_what_the_lens_does_not_show_is_marked(model, coefficients, full_resolution):
    """A P with a wider view than the lens. The last polynomial leads rays at more than 46 degrees back into the picture."""
    wide = np.array([[60.0, 0, 161, 0], [0, 60, 118, 0], [0, 0, 1, 0]])
    lens = Rectification(calibration(model, coefficients, projection=wide))
    framing = Framing.plan(SIZE, (64, 96), full_resolution=full_resolution)
    outside = RectifiedFraming(lens, framing).outside
    assert outside.shape == framing.output_size
    rows, columns = np.indices(outside.shape)
    rays = (
        np.stack([columns, rows, np.ones(outside.shape)], axis=-1)
        @ np.linalg.inv(framing.output_intrinsics(wide[:, :3])).T
    )
    seen = distorted_pixels(model, coefficients, rays.reshape(-1, 3)).reshape(*outside.shape, 2)
    expected = ((seen < -0.5) | (seen > np.array(SIZE[::-1]) - 0.5)).any(axis=-1)
    if len(coefficients) == 4 and model == "plumb_bob":
        expected |= np.hypot(rays[..., 0], rays[..., 1]) > np.sqrt(1 / 0.9)
    assert 0.1 < expected.mean() < 0.9
    assert (outside != expected).mean() < 0.03  # along the border


def test_the_network_sees_no_edge_where_the_lens_shows_nothing():
    wide = np.array([[60.0, 0, 161, 0], [0, 60, 118, 0], [0, 0, 1, 0]])
    lens = Rectification(calibration("plumb_bob", MODELS["plumb_bob"], projection=wide))
    framing, white = RectifiedFraming(lens, Framing.plan(SIZE, (64, 96))), np.full((*SIZE, 3), 255, np.uint8)
    assert framing.outside.any()
    for picture in (framing.to_network(white), framing.to_camera(white)):
        assert picture.min() == 255


def test_rays_lead_back_to_their_pixels():
    """Also in the corners. The last lens shows nothing there: its polynomial leads no ray to them."""
    pixels = np.array([[0.0, 0.0], [319, 0], [160, 239], [161, 118]])
    for model, coefficients in MODELS.items():
        rays = np.column_stack([calibration(model, coefficients).normalise(pixels), np.ones(len(pixels))])
        np.testing.assert_allclose(distorted_pixels(model, coefficients, rays), pixels, atol=1e-3)
    found = calibration("plumb_bob", [-0.3, 0, 0, 0]).normalise(pixels)
    assert np.isnan(found).any(axis=1).tolist() == [True, True, False, False]


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
        # RealSense: its coefficients lead from the picture with distortion to that without.
        (lambda: calibration("inverse_brown_conrady", [0.1] * 5), "'inverse_brown_conrady' is not supported"),
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
