"""Damaged sensor_msgs for `fuzz.py`: images, compressed images, camera_info."""

from __future__ import annotations

import functools
import struct
import zlib

import cv2
import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage

from cards import FRAME_ID, image_message, info_message, noise
from fadepth_core.messages.camera_tracker import CameraTracker
from fadepth_core.messages.cdr import MessageError, Stamp
from fadepth_core.messages.encodings import ENCODINGS, BitDepth
from fadepth_core.messages.images import read_compressed
from fadepth_core.messages.outgoing import CameraInfoWriter
from fadepth_ros.messages import read_image
from fadepth_ros.pipeline import DEPTH, INFO, POINTS
from fakes import FakeEngine, RecordedOutputs, make_pipeline
from fuzz import EDGES, Target, damage

SIZE = (24, 32)
RGB = noise(SIZE)
FORMATS = (
    *("jpeg", "png", "", "rgb8; jpeg compressed bgr8", "bayer_rggb8; png compressed ", "mono16; png compressed "),
    *("16UC1; compressedDepth png", "rgba16; tiff compressed", ";", "bayer_", "h264"),
)


def _outcome(read):
    """What `read` returns, or the cause of its refusal."""

    @functools.wraps(read)
    def outcome(raw):
        try:
            read(raw)
        except MessageError as error:
            return error.cause if len(str(error)) < 1000 else "too long a text"
        return "accepted"

    return outcome


def _check_frame(frame):
    rgb = frame.encoding.to_rgb(frame.pixels)
    assert rgb.shape == (*frame.size, 3)
    assert rgb.dtype == np.uint8


# ------------------------------------------------------------------------------------------------------------- images


@functools.cache
def _raw_image(encoding: str) -> bytes:
    kind = ENCODINGS[encoding]
    shape = (int(SIZE[0] * kind.rows), SIZE[1], max(kind.channels, 1))
    message = image_message(np.resize(RGB, shape).astype(kind.dtype), encoding, 10**9)
    message.height = SIZE[0]
    return serialize_message(message)


def _make_image(rng):
    if rng.integers(0, 3):
        return damage(_raw_image(str(rng.choice(list(ENCODINGS)))), rng)
    # Undamaged, but its fields do not fit each other.
    name = str(rng.choice([*ENCODINGS, "rgb9", "", "RGB8", "bayer_rggb12", "32FC1"]))
    height, width = (int(rng.choice([*EDGES, *range(16, 40)])) for _ in range(2))
    step = int(rng.choice([width, 2 * width, 3 * width, *EDGES])) % 2**32
    data = rng.bytes(int(rng.choice([0, 100, 1000, 3000, 9000])))
    name = name.encode() + b"\0"
    raw = b"\0\1\0\0" + struct.pack("<iIIB3x", 1, 0, 1, 0) + struct.pack("<III", height, width, len(name)) + name
    raw += struct.pack("<B", rng.integers(0, 2)) + b"\0" * (-(len(raw) - 4 + 1) % 4)
    return raw + struct.pack("<II", step, len(data)) + data


_depth = BitDepth()


@_outcome
def _read_image(raw):
    _check_frame(read_image(raw, _depth))


def _read_good_image():
    frame = read_image(_raw_image("rgb8"), _depth)
    np.testing.assert_array_equal(frame.encoding.to_rgb(frame.pixels), RGB)


# --------------------------------------------------------------------------------------------------------- compressed


@functools.cache
def _pictures() -> list[bytes]:
    grey = RGB[..., 0]
    wide = RGB.astype(np.uint16) * 257
    progressive = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    made = [
        *((".jpg", RGB, ()), (".jpg", grey, ()), (".jpg", RGB, progressive), (".png", RGB, ()), (".png", grey, ())),
        *((".png", wide, ()), (".png", np.dstack([RGB, grey]), ()), (".webp", RGB, ()), (".tiff", wide, ())),
        (".bmp", RGB, ()),
    ]
    return [cv2.imencode(extension, pixels, options)[1].tobytes() for extension, pixels, options in made]


def _with_checksums(data: bytes) -> bytes:
    """A damaged PNG whose checksums fit, so that its damage reaches the decoder."""
    at, whole = 8, bytearray(data)
    while at + 12 <= len(whole):
        end = at + 8 + struct.unpack_from(">I", whole, at)[0]
        if end + 4 > len(whole):
            break
        struct.pack_into(">I", whole, end, zlib.crc32(whole[at + 4 : end]))
        at = end + 4
    return bytes(whole)


def _compressed(kind: str, data: bytes) -> bytes:
    message = CompressedImage(format=kind)
    message.header.frame_id = FRAME_ID
    raw = serialize_message(message)  # ends with the length of no data
    return raw[:-4] + struct.pack("<I", len(data)) + data


def _make_compressed(rng):
    data = _pictures()[rng.integers(0, len(_pictures()))]
    kind = str(rng.choice(FORMATS))
    if rng.integers(0, 4):
        data = damage(data, rng, header=len(data) if rng.integers(0, 2) else 64)
        return _compressed(kind, _with_checksums(data) if data[1:4] == b"PNG" else data)
    return damage(_compressed(kind, data), rng)


@_outcome
def _read_compressed(raw):
    _check_frame(read_compressed(raw, _depth))


def _read_good_compressed():
    frame = read_compressed(_compressed("rgb8; png compressed rgb8", _pictures()[3]))
    np.testing.assert_array_equal(frame.encoding.to_rgb(frame.pixels), RGB)


# -------------------------------------------------------------------------------------------------------- camera_info


NUMBERS = (np.nan, np.inf, -np.inf, 1e308, -1e308, 1e12, 1e9, 1e6, 1e-300, 5e-324, 0.0, -0.0, 1.0, -1.0, 40.0)
#: Distortion models, each with a number of coefficients; the last are not known, or do not fit.
LENSES = (
    ("plumb_bob", 5),
    ("rational_polynomial", 8),
    ("equidistant", 4),
    ("thin_prism", 14),
    ("omni", 1),
    ("plumb_bob", 3),
)
_frame = read_image(_raw_image("rgb8"))
_tracker = CameraTracker()
_good_info = serialize_message(info_message(SIZE, focal=40.0))


def _make_info(rng):
    if rng.integers(0, 3) == 0:
        return damage(_good_info, rng, header=len(_good_info))
    info = info_message(SIZE, focal=40.0)
    if rng.integers(0, 2):
        info.distortion_model, count = LENSES[rng.integers(0, len(LENSES))]
        info.d = rng.normal(0, rng.choice([0.1, 1.0, 100.0]), count)
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(0, 6)
        if kind < 3:
            values = getattr(info, "kdrp"[rng.integers(0, 4)])
            values[rng.integers(0, len(values))] = rng.choice(NUMBERS)
        elif kind == 3:
            setattr(info, ("height", "width", "binning_x", "binning_y")[rng.integers(0, 4)], int(rng.choice(EDGES)))
        elif kind == 4:
            setattr(info.roi, ("height", "width", "x_offset", "y_offset")[rng.integers(0, 4)], int(rng.choice(EDGES)))
        else:
            info.height = info.width = 0
    return serialize_message(info)


@_outcome
def _read_info(raw):
    _tracker.update(raw)
    camera, problem = _tracker.match(_frame)
    assert (camera is None) != (problem is None)
    if problem is not None:
        raise problem
    assert camera.size == SIZE
    assert np.isfinite(camera.matrix).all()
    assert camera.matrix[0, 0] > 0
    assert camera.matrix[1, 1] > 0
    written = deserialize_message(
        CameraInfoWriter("cam", SIZE, camera, lambda matrix: matrix).write(Stamp(1, 0)), CameraInfo
    )
    numbers = np.concatenate([written.k, written.d, written.r, written.p])
    assert np.abs(numbers).max() < 1e12  # false for NaN, too


def _read_good_info():
    _tracker.update(_good_info)
    camera, problem = _tracker.match(_frame)
    assert problem is None
    assert camera.matrix[0, 0] == 40.0


# ----------------------------------------------------------------------------------------------------------- pipeline


class _ForgetfulEngine(FakeEngine):
    """Keeps no requests: they would hide a growth of the pipeline's memory."""

    def infer(self, request):
        self.calls.clear(), self.requests.clear()
        return super().infer(request)


class _Camera:
    """A pipeline with a fake engine, and a clock for its good images.

    Damage may set a stamp anywhere, so that the next good image seems to be late. One of the next three must work.
    """

    ATTEMPTS = 3

    def __init__(self, compressed: bool):
        self.outputs = RecordedOutputs(DEPTH, INFO, POINTS)
        transport = "compressed" if compressed else "raw"
        self.pipeline = make_pipeline(
            self.outputs,
            _ForgetfulEngine,
            camera_info=False,
            image_transport=transport,
            network_size=[32, 32],
            retry_period=0.0,
        )
        self.compressed, self.second = compressed, 0

    def offer(self, image: bytes, info: bytes | None = None) -> str:
        self.outputs.published.clear()
        if info is not None:
            self.pipeline.offer_camera_info(info)
        self.pipeline.offer_image(image)
        report = self.pipeline.statistics.report()
        assert "internal" not in report.dropped, report.last_error
        if self.outputs.published:
            return "accepted" if POINTS in self.outputs.published else "without cloud"
        return next(iter(report.dropped))

    def check_good(self) -> None:
        good = _compressed("png", _pictures()[3]) if self.compressed else _raw_image("rgb8")
        for _ in range(self.ATTEMPTS):
            self.second += 1
            image = bytearray(good)
            struct.pack_into("<i", image, 4, self.second)
            if self.offer(bytes(image), _good_info) == "accepted":
                return
        raise AssertionError("no good image was used")


_raw_camera, _compressed_camera = (
    functools.cache(functools.partial(_Camera, compressed)) for compressed in (False, True)
)


def _make_raw(rng):
    return _make_image(rng), _make_info(rng)


def _make_both(rng):
    return _make_compressed(rng), _make_info(rng)


TARGETS = (
    Target("pipeline", _make_raw, lambda pair: _raw_camera().offer(*pair), lambda: _raw_camera().check_good()),
    Target(
        "compressed_pipeline",
        _make_both,
        lambda pair: _compressed_camera().offer(*pair),
        lambda: _compressed_camera().check_good(),
    ),
    Target("image", _make_image, _read_image, _read_good_image),
    Target("compressed", _make_compressed, _read_compressed, _read_good_compressed),
    Target("camera_info", _make_info, _read_info, _read_good_info),
)
