"""Images of lenses with distortion: the cloud is that of the scene, whatever the lens.

The scene is a ball around the camera. Its images state where each pixel's ray meets the ball: red, green and blue are x, y and
z. The engine reads z from the image it gets, so that errors are those of the geometry.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from cards import SIZE, image_message, info_message
from fadepth_core.common.pinhole import unproject
from fadepth_core.runtime.engine import DepthResult
from fadepth_ros.diagnostics import status_values, summary
from fadepth_ros.pipeline import CONFIDENCE, DEPTH, INFO, POINTS
from fakes import SECOND, EngineLoader, FakeEngine, RecordedOutputs, make_pipeline, settings

K = np.array([[70.0, 0, 79], [0, 72, 61], [0, 0, 1]])
D = {
    "plumb_bob": [-0.25, 0.05, 0.001, -0.002, 0.0],
    "rational_polynomial": [0.5, 0.1, 0.0005, -0.0003, 0.01, 0.9, 0.2, 0.02],
    "equidistant": [0.02, -0.01, 0.004, -0.001],
}
CENTRE, RADIUS = np.array([0.2, -0.3, 0.5]), 3.0
#: Metres to the levels 0 and 255.
RANGE = 4.0


class ReadsDepth(FakeEngine):
    """Reads depth from the image."""

    def _run(self, request):
        self.requests.append(request)
        image = request.image
        if image.shape[:2] != self.framing.network_size:
            image = self.framing.to_network(image)
        depth = metres(image)[..., 2].astype(np.float32)
        depth = cv2.resize(depth, self.framing.output_size[::-1])
        k = self.framing.output_intrinsics(request.intrinsics)
        return DepthResult(depth, unproject(depth, k).astype(np.float32) if request.points else None, k)


class AtCameraSize(ReadsDepth):
    takes_network_size = False


class Certain(ReadsDepth):
    has_confidence = True

    def infer(self, request):
        result = super().infer(request)
        return replace(result, confidence=np.ones_like(result.depth))


def metres(levels):
    return RANGE * (np.asarray(levels, float) / 127.5 - 1)


def image_of_the_ball(model):
    rows, columns = np.indices(SIZE)
    pixels = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2).astype(float)
    undistort = cv2.fisheye.undistortPoints if model == "equidistant" else cv2.undistortPoints
    rays = np.concatenate([undistort(pixels, K, np.array(D[model])).reshape(*SIZE, 2), np.ones((*SIZE, 1))], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    along = rays @ CENTRE
    points = rays * (along + np.sqrt(along**2 - CENTRE @ CENTRE + RADIUS**2))[..., None]
    dither = np.random.default_rng(0).random(points.shape)  # else the cloud would have steps
    return serialize_message(
        image_message(np.floor(127.5 * (1 + points / RANGE) + dither).astype(np.uint8), "rgb8", SECOND)
    )


def info_of(model, projection=None, coefficients=None):
    info = info_message(SIZE)
    info.distortion_model = model
    info.d = D[model] if coefficients is None else coefficients
    info.k = K.ravel()
    info.p = np.hstack([np.zeros((3, 3)) if projection is None else projection, np.zeros((3, 1))]).ravel()
    return info


def publish(image, info, *outputs, engine=ReadsDepth, **changes):
    outputs, loader = RecordedOutputs(*outputs), EngineLoader(engine)
    pipeline = make_pipeline(outputs, loader, camera_info=False, **changes)
    pipeline.offer_camera_info(serialize_message(info))
    pipeline.offer_image(image)
    return pipeline, outputs


def cloud(outputs):
    """Points [N, 3] and colours [N, 3] of the last cloud, without those that are not finite."""
    message = deserialize_message(outputs.last[POINTS], PointCloud2)
    values = np.frombuffer(message.data, np.float32).reshape(-1, 4)
    colors = values.view(np.uint8).reshape(-1, 16)[:, [14, 13, 12]]
    known = np.isfinite(values[:, :3]).all(axis=1)
    return values[known, :3], colors[known]


def error(points):
    """Mean distance to the ball, metres."""
    return np.abs(np.linalg.norm(points - CENTRE, axis=1) - RADIUS).mean()


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        (ReadsDepth, {"network_size": [96, 128]}),
        (AtCameraSize, {"network_size": [96, 128]}),
        (ReadsDepth, {"network_size": [96, 96], "crop_to_aspect": True}),
        (ReadsDepth, {"network_size": [96, 128], "full_resolution": True}),
    ],
)
@pytest.mark.parametrize("has_p", [False, True])
@pytest.mark.parametrize("model", D)
def test_the_cloud_has_the_shape_and_the_colours_of_the_scene(model, has_p, engine, changes):
    image, info = image_of_the_ball(model), info_of(model, K if has_p else None)
    pipeline, outputs = publish(image, info, POINTS, engine=engine, **changes)
    points, colors = cloud(outputs)
    assert len(points) > 4000
    assert error(points) < 0.02  # a level is 0.03 m
    assert np.abs(metres(colors) - points).mean() < 0.015  # also that the colour belongs to the point
    assert status_values(pipeline.statistics.report(), pipeline)["rectification"].startswith(f"{model}; ")
    _, outputs = publish(image, info, POINTS, engine=engine, rectify="off", **changes)
    points, colors = cloud(outputs)
    assert error(points) > 0.2
    assert np.abs(metres(colors) - points).mean() > 0.1


def test_the_published_camera_is_the_rectified_one():
    p = K + np.array([[5.0, 0, 2], [0, 3, 1], [0, 0, 0]])
    _, outputs = publish(image_of_the_ball("plumb_bob"), info_of("plumb_bob", p), INFO, full_resolution=True)
    info = deserialize_message(outputs.last[INFO], CameraInfo)
    assert (info.distortion_model, list(info.d)) == ("plumb_bob", [0.0] * 5)
    np.testing.assert_array_equal(info.k.reshape(3, 3), p)
    np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], p)
    np.testing.assert_array_equal(info.r.reshape(3, 3), np.eye(3))


def test_no_depth_where_the_camera_shows_nothing():
    p = K * np.array([[0.4, 1, 1], [1, 0.4, 1], [1, 1, 1]])
    image, info = image_of_the_ball("plumb_bob"), info_of("plumb_bob", p)
    pipeline, outputs = publish(image, info, DEPTH, POINTS, CONFIDENCE, engine=Certain)
    unknown = np.isnan(outputs.depth)
    assert unknown[0, 0]
    assert not unknown[unknown.shape[0] // 2, unknown.shape[1] // 2]
    assert len(cloud(outputs)[0]) == (~unknown).sum()
    confidence = np.frombuffer(deserialize_message(outputs.last[CONFIDENCE], Image).data, np.float32)
    np.testing.assert_array_equal(confidence, 1 - unknown.ravel())
    share = status_values(pipeline.statistics.report(), pipeline)["rectification"]
    assert f"the camera covers {100 * (1 - unknown.mean()):.0f} % of it" in share


@pytest.mark.parametrize(
    ("topic", "mode", "coefficients", "rectified"),
    [
        ("/camera/image_raw", "auto", None, True),
        ("/camera/image_rect", "auto", None, False),
        ("/camera/image_rect_color/compressed", "auto", None, False),
        ("/camera/image_rect", "on", None, True),
        ("/camera/image_raw", "off", None, False),
        ("/camera/image_raw", "auto", [0.0] * 5, False),
        ("/camera/image_raw", "on", [0.0] * 5, True),  # P differs from K
    ],
)
def test_when_images_are_rectified(topic, mode, coefficients, rectified):
    outputs = RecordedOutputs(INFO)
    pipeline = make_pipeline(outputs, camera_info=False, rectify=mode, image_topic=topic)
    info = info_of("plumb_bob", K * np.array([[0.9, 1, 1], [1, 0.9, 1], [1, 1, 1]]), coefficients)
    pipeline.offer_camera_info(serialize_message(info))
    pipeline.offer_image(image_of_the_ball("plumb_bob"))
    status = status_values(pipeline.statistics.report(), pipeline)["rectification"]
    assert (not status.startswith(("not needed", "off"))) == rectified
    published = deserialize_message(outputs.last[INFO], CameraInfo)
    if mode == "auto" and coefficients is None:  # rectified here or before
        np.testing.assert_allclose(published.k.reshape(3, 3), published.p.reshape(3, 4)[:, :3], rtol=1e-9)
        assert not np.any(published.d)
    elif not rectified:
        assert published.k[0] != pytest.approx(published.p[0], rel=1e-3)


def test_a_lens_that_is_not_known_is_reported():
    info = info_of("plumb_bob", K)
    info.distortion_model = "omnidirectional"
    pipeline, outputs = publish(image_of_the_ball("plumb_bob"), info, DEPTH, POINTS)
    assert outputs.published == [DEPTH, POINTS]
    report = pipeline.statistics.report()
    assert report.problems == {"rectification": 1}
    text = summary(report, degraded=False)[1]
    assert "distortion model 'omnidirectional' is not supported" in text
    assert "straight lines are bent in the cloud" in text


def test_the_parameter_holds_from_the_next_image_on():
    image = image_of_the_ball("equidistant")
    pipeline, outputs = publish(image, info_of("equidistant"), POINTS, network_size=[96, 128], rectify="off")
    assert status_values(pipeline.statistics.report(), pipeline)["rectification"] == "off"
    before = error(cloud(outputs)[0])
    pipeline.configure(replace(settings(network_size=[96, 128]), rectify="auto"))
    pipeline.offer_image(image)
    assert error(cloud(outputs)[0]) < 0.1 * before
