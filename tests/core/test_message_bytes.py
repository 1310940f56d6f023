"""Serialized messages without ROS: the bytes agree with those of another implementation of CDR, in both directions."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from fadepth_core.messages.camera_info import read_camera_info
from fadepth_core.messages.cdr import MessageError, Stamp
from fadepth_core.messages.images import read_compressed, read_image
from fadepth_core.messages.outgoing import CLOUD_FIELDS, CameraInfoWriter, CloudWriter, ImageWriter

typesys = pytest.importorskip("rosbags.typesys")
STORE = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)
TYPES = STORE.types
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def header(frame_id="camera_optical_frame"):
    return TYPES["std_msgs/msg/Header"](TYPES["builtin_interfaces/msg/Time"](12, 345_678_901), frame_id)


def image(pixels, encoding, frame_id="camera_optical_frame"):
    height, width = pixels.shape[:2]
    step = pixels.strides[0]
    return TYPES["sensor_msgs/msg/Image"](
        header(frame_id), height, width, encoding, 0, step, pixels.ravel().view(np.uint8)
    )


def camera_info(frame_id="camera_optical_frame", model="plumb_bob", coefficients=5):
    k = np.array([25.0, 0, 14.5, 0, 26.0, 9.5, 0, 0, 1])
    p = np.insert(k, [3, 6, 9], 0.0)
    region = TYPES["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    d = np.linspace(0, 0.1, coefficients)
    return TYPES["sensor_msgs/msg/CameraInfo"](
        header(frame_id), 20, 30, model, d, k, np.eye(3).ravel(), p, 0, 0, region
    )


def serialized(message) -> bytes:
    return bytes(STORE.serialize_cdr(message, message.__msgtype__))


@pytest.mark.parametrize("little_endian", [True, False])
def test_images_and_camera_info_are_read_in_both_byte_orders(little_endian):
    def raw(message):
        return bytes(STORE.serialize_cdr(message, message.__msgtype__, little_endian=little_endian))

    frame = read_image(raw(image(PIXELS, "bgr8")))
    assert (frame.stamp, frame.frame_id, frame.size) == (Stamp(12, 345_678_901), "camera_optical_frame", (20, 30))
    np.testing.assert_array_equal(frame.encoding.to_rgb(frame.pixels), PIXELS[..., ::-1])
    png = cv2.imencode(".png", PIXELS)[1].ravel()
    frame = read_compressed(raw(TYPES["sensor_msgs/msg/CompressedImage"](header(), "bgr8; png compressed bgr8", png)))
    np.testing.assert_array_equal(frame.encoding.to_rgb(frame.pixels), PIXELS[..., ::-1])
    message = camera_info()
    camera = read_camera_info(raw(message))
    assert camera.size == (20, 30)
    for name in "dkrp":
        np.testing.assert_array_equal(getattr(camera.info, name), getattr(message, name))


def test_an_unknown_encoding_is_refused_or_left_to_the_caller():
    raw = serialized(image(PIXELS, "rgb9"))
    with pytest.raises(MessageError, match=r"unknown encoding 'rgb9' \(known: rgb8, bgr8"):
        read_image(raw)
    frame = read_image(raw, others=lambda raw, name: PIXELS if name == "rgb9" else None)
    np.testing.assert_array_equal(frame.encoding.to_rgb(frame.pixels), PIXELS)


@pytest.mark.parametrize("frame_id", ["", "a", "ab", "abc", "camera_optical_frame"])
def test_written_messages_have_the_bytes_of_another_implementation(frame_id):
    stamp, depth = Stamp(12, 345_678_901), np.linspace(1, 9, 600, dtype=np.float32).reshape(20, 30)
    for pixels, encoding in ((depth, "32FC1"), (depth.astype(np.uint16), "16UC1"), (PIXELS, "rgb8")):
        raw = ImageWriter(frame_id, (20, 30), encoding).write(stamp, pixels)
        assert raw == serialized(image(pixels, encoding, frame_id))
    for fields, names in CLOUD_FIELDS.items():
        field = TYPES["sensor_msgs/msg/PointField"]
        point_fields = [field(name, 4 * index, field.FLOAT32, 1) for index, name in enumerate(names)]
        points = np.zeros((20, 30, len(names)), np.float32)
        points[..., :3] = np.dstack([depth] * 3)
        cloud = (header(frame_id), 20, 30, point_fields, False, 4 * len(names), 120 * len(names))
        expected = TYPES["sensor_msgs/msg/PointCloud2"](*cloud, points.ravel().view(np.uint8), False)
        raw = CloudWriter(frame_id, (20, 30), fields).write(stamp, points[..., :3], 0 * PIXELS)
        assert raw == serialized(expected)


@pytest.mark.parametrize(("model", "coefficients"), [("plumb_bob", 5), ("", 0), ("rational_polynomial", 8)])
@pytest.mark.parametrize("frame_id", ["", "a", "camera"])
def test_a_written_camera_info_has_the_bytes_of_another_implementation(frame_id, model, coefficients):
    message = camera_info(frame_id, model, coefficients)
    camera = read_camera_info(serialized(message))
    raw = CameraInfoWriter(frame_id, (20, 30), camera, lambda matrix: matrix).write(Stamp(12, 345_678_901))
    assert raw == serialized(message)


def test_messages_are_read_without_ros_and_torch():
    modules = "('rclpy', 'sensor_msgs', 'rosbags', 'torch')"
    program = (
        "import sys, fadepth_core.messages.images, fadepth_core.messages.outgoing; "
        f"assert not sys.modules.keys() & set({modules})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
