"""Sizes, crops and intrinsics: a point of the scene is in the published image where its intrinsics project it."""

import numpy as np
import pytest

from fadepth_core.common.framing import PIXELS, Framing, FramingError, choose_network_size, focal_length

CAMERAS = [
    (480, 640),
    (720, 1280),
    (1080, 1920),
    (375, 1242),
    (192, 640),
    (1200, 1600),
    (128, 416),
    (1000, 400),
    (512, 512),
]


@pytest.mark.parametrize("size", CAMERAS)
def test_network_size_follows_the_camera(size):
    h, w = choose_network_size(size)
    assert h % 32 == 0
    assert w % 32 == 0
    assert w / h == pytest.approx(size[1] / size[0], rel=0.10)
    assert h * w == pytest.approx(PIXELS, rel=0.35)


def test_the_papers_size_for_kitti():
    assert choose_network_size((375, 1242)) == (128, 416)
    assert choose_network_size((128, 416)) == (128, 416)


def marked_image(size, u, v, sigma):
    """An image with a bright spot centred on pixel (u, v)."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    return (255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))).astype(np.uint8)


def centroid(image):
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    weight = image.astype(np.float64)
    return (x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("full_resolution", [False, True])
@pytest.mark.parametrize("size", CAMERAS)
def test_intrinsics_follow_the_pixels(size, full_resolution, crop):
    """A point at a known pixel of the camera's image is in the published image where the published K projects it."""
    framing = Framing.plan(size, (128, 256) if crop else None, crop, full_resolution)
    k = np.array([[0.8 * size[1], 0, 0.45 * size[1]], [0, 0.9 * size[1], 0.55 * size[0]], [0, 0, 1]])
    u, v = 0.53 * size[1], 0.47 * size[0]
    ray = np.linalg.inv(k) @ [u, v, 1.0]
    image = marked_image(size, u, v, sigma=0.02 * max(size))
    expected = framing.output_intrinsics(k) @ ray
    found = centroid(framing.output_pixels(image))
    assert found == pytest.approx((expected[0], expected[1]), abs=0.06)


@pytest.mark.parametrize("size", CAMERAS)
def test_to_network_gives_the_network_size(size):
    framing = Framing.plan(size)
    for shape in (size, (*size, 3), (*size, 4)):
        assert framing.to_network(np.zeros(shape, np.uint8)).shape == (*framing.network_size, *shape[2:])


def test_reduction_does_not_alias():
    """A one-pixel checkerboard becomes grey, not stripes."""
    board = (255 * (np.indices((720, 1280)).sum(0) % 2)).astype(np.uint8)
    small = Framing.plan((720, 1280)).to_network(board)
    assert np.abs(small[2:-2, 2:-2].astype(float) - 127.5).max() < 26


def test_the_part_that_depth_shows():
    framing = Framing.plan((480, 640), (128, 416), crop_to_aspect=True)
    image = np.arange(480 * 640).reshape(480, 640)
    top, left, height, width = framing.crop
    np.testing.assert_array_equal(framing.cropped(image), image[top : top + height, left : left + width])
    resized = np.zeros((128, 416), np.uint8)
    assert framing.cropped(resized) is resized


def test_crop_keeps_the_aspect_ratio():
    framing = Framing.plan((480, 640), (128, 416), crop_to_aspect=True)
    top, left, height, width = framing.crop
    assert (left, width) == (0, 640)
    assert width / height == pytest.approx(416 / 128, rel=0.01)
    assert top == (480 - height) // 2


def test_focal_length_at_the_networks_input():
    """Whatever the size of the published depth; the mean of both axes is geometric."""
    k = np.array([[500.0, 0, 320], [0, 405, 240], [0, 0, 1]])
    framing = Framing.plan((480, 640), (160, 320), full_resolution=True)
    assert focal_length(k) == pytest.approx(450)
    assert focal_length(framing.network_intrinsics(k)) == pytest.approx((250 * 135) ** 0.5)
    np.testing.assert_allclose(framing.output_intrinsics(k), k)


def test_projection_matrix_keeps_its_baseline():
    framing = Framing.plan((480, 640), (192, 320))
    p = np.array([[500.0, 0, 320, -60.0], [0, 500, 240, 0], [0, 0, 1, 0]])
    out = framing.output_intrinsics(p)
    assert out[0, 3] / out[0, 0] == pytest.approx(p[0, 3] / p[0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 640),), "640x0"),
        (((480, 100_000),), "100000x480"),
        (((480, 640), (100, 416)), "multiples of 32"),
        (((480, 640), (0, 0)), "multiples of 32"),
        (((16, 3000), (4096, 32), True), "leaves"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(FramingError, match=message):
        Framing.plan(*arguments)
