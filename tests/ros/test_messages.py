"""Reading and writing serialized messages: all encodings, the middleware's layout, and malformed messages."""

import struct

import cv2
import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, RegionOfInterest

from cards import FRAME_ID, SIZE, image_message, info_message
from fadepth_ros import messages
from fadepth_ros.messages import CameraInfoWriter, CloudWriter, ImageWriter, MessageError, Stamp

STAMP = 12_345_678_901


def card() -> np.ndarray:
    """An image of smooth colours, which subsampled and Bayer encodings can represent."""
    v, u = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] / max(SIZE)
    return np.clip(np.stack([40 + 180 * u, 200 - 150 * v, 60 + 120 * v * u], -1), 0, 255).astype(np.uint8)


def yuv(rgb):
    """Y at full resolution, U and V averaged over 2×2 pixels: OpenCV's conversion to I420 (video range)."""
    planar = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    h, w = rgb.shape[:2]
    y, chroma = planar[:h], planar[h:].reshape(2, h // 2, w // 2)
    return y, chroma[0], chroma[1]


def packed_422(rgb, order):
    y, u, v = yuv(rgb)
    u, v = u.repeat(2, 0), v.repeat(2, 0)
    parts = {"y0": y[:, 0::2], "y1": y[:, 1::2], "u": u, "v": v}
    return np.stack([parts[name] for name in order], -1).reshape(*rgb.shape[:2], 2)


def nv(rgb, first, second):
    y, u, v = yuv(rgb)
    chroma = {"u": u, "v": v}
    return np.vstack([y, np.stack([chroma[first], chroma[second]], -1).reshape(-1, rgb.shape[1])])


def mosaic(rgb, pattern):
    """The values of a sensor with this Bayer pattern, named by its first two rows."""
    out = np.empty(rgb.shape[:2], np.uint8)
    for index, color in enumerate(pattern):
        row, column = divmod(index, 2)
        out[row::2, column::2] = rgb[row::2, column::2, "rgb".index(color)]
    return out


def grey(rgb):
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


ENCODE = {
    "rgb8": lambda rgb: rgb,
    "bgr8": lambda rgb: rgb[..., ::-1],
    "8UC3": lambda rgb: rgb[..., ::-1],
    "rgba8": lambda rgb: np.dstack([rgb, np.full(SIZE, 9, np.uint8)]),
    "bgra8": lambda rgb: np.dstack([rgb[..., ::-1], np.full(SIZE, 9, np.uint8)]),
    "mono8": grey,
    "8UC1": grey,
    "mono16": lambda rgb: grey(rgb).astype(np.uint16) * 257,
    "16UC1": lambda rgb: grey(rgb).astype(np.uint16) * 257,
    "yuv422": lambda rgb: packed_422(rgb, ("u", "y0", "v", "y1")),
    "uyvy": lambda rgb: packed_422(rgb, ("u", "y0", "v", "y1")),
    "yuv422_yuy2": lambda rgb: packed_422(rgb, ("y0", "u", "y1", "v")),
    "yuyv": lambda rgb: packed_422(rgb, ("y0", "u", "y1", "v")),
    "nv12": lambda rgb: nv(rgb, "u", "v"),
    "nv21": lambda rgb: nv(rgb, "v", "u"),
    "bayer_rggb8": lambda rgb: mosaic(rgb, "rggb"),
    "bayer_bggr8": lambda rgb: mosaic(rgb, "bggr"),
    "bayer_gbrg8": lambda rgb: mosaic(rgb, "gbrg"),
    "bayer_grbg8": lambda rgb: mosaic(rgb, "grbg"),
}
GREY = ("mono8", "8UC1", "mono16", "16UC1")


def encoded(encoding, padding=0):
    message = image_message(ENCODE[encoding](card()), encoding, STAMP, padding=padding)
    message.height = SIZE[0]  # planar formats have more rows of data than the image
    return message


def test_every_encoding_of_the_table_is_tested():
    assert set(ENCODE) == set(messages.ENCODINGS)


@pytest.mark.parametrize("padding", [0, 1, 12])
@pytest.mark.parametrize("encoding", ENCODE)
def test_every_encoding_is_converted_to_rgb(encoding, padding):
    frame = messages.read_image(serialize_message(encoded(encoding, padding)))
    assert frame.stamp == Stamp(12, 345_678_901)
    assert frame.frame_id == FRAME_ID
    assert frame.size == SIZE
    rgb = frame.encoding.to_rgb(frame.pixels)
    expected = grey(card())[..., None].repeat(3, -1) if encoding in GREY else card()
    assert rgb.shape == (*SIZE, 3)
    assert rgb.dtype == np.uint8
    error = np.abs(rgb.astype(int) - expected)[2:-2, 2:-2]
    assert error.max() <= (0 if encoding[:3] in ("rgb", "bgr", "8UC", "mon", "16U") else 9)


def test_16_bit_images_of_the_other_byte_order_are_read():
    message = encoded("mono16")
    swapped = np.frombuffer(message.data, np.uint16).byteswap()
    message.data, message.is_bigendian = swapped.tobytes(), 1
    frame = messages.read_image(serialize_message(message))
    np.testing.assert_array_equal(frame.encoding.to_rgb(frame.pixels)[..., 0], grey(card()))


def test_pixels_are_not_copied():
    raw = serialize_message(encoded("rgb8"))
    frame = messages.read_image(raw)
    assert np.shares_memory(frame.pixels, np.frombuffer(raw, np.uint8))


def test_big_endian_cdr_is_read():
    little = serialize_message(encoded("rgb8"))
    h, w = SIZE
    frame_id = FRAME_ID.encode() + b"\0"
    big = b"\0\0\0\0" + struct.pack(">iII", 12, 345_678_901, len(frame_id)) + frame_id
    big += b"\0" * (-(len(big) - 4) % 4) + struct.pack(">III", h, w, 5) + b"rgb8\0" + b"\0"
    big += b"\0" * (-(len(big) - 4) % 4) + struct.pack(">II", 3 * w, 3 * w * h)
    a, b = messages.read_image(little), messages.read_image(big + card().tobytes())
    assert (a.stamp, a.frame_id, a.size) == (b.stamp, b.frame_id, b.size)
    assert np.array_equal(a.pixels, b.pixels)


@pytest.mark.parametrize(
    ("change", "cause", "text"),
    [
        ({"encoding": "rgb9"}, "encoding", "unknown encoding 'rgb9' .known: rgb8, bgr8"),
        ({"encoding": ""}, "encoding", "unknown encoding ''"),
        ({"step": 100}, "step", "step is 100, a row of 160 pixels in 'rgb8' takes 480 bytes"),
        ({"data": b"\1" * 1000}, "short", "1000 bytes of data, 120 rows of step 480 make 57600"),
        ({"data": b""}, "short", "0 bytes of data"),
        ({"height": 0}, "size", "160x0"),
        ({"width": 4_294_967_295}, "size", "4294967295x120"),
        ({"encoding": "nv12", "height": 121}, "size", "'nv12' needs even sides"),
        ({"step": 4_000_000_000}, "short", "120 rows of step 4000000000"),
        ({"encoding": "x" * 3_000_000}, "malformed", "a text field has 3000001 bytes"),
    ],
)
def test_wrong_fields_are_named_in_the_error(change, cause, text):
    message = encoded("rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(MessageError, match=text) as error:
        messages.read_image(serialize_message(message))
    assert error.value.cause == cause


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (np.random.default_rng(0).bytes(500), "not a CDR-encoded message"),
        (b"\0\1\0\0" + b"\xff" * 200, "a field claims 4294967295 bytes"),
        (b"\0\1\0\0" + b"\0" * 9, "inside its header"),
        (serialize_message(encoded("rgb8"))[:1000], "are left in the message"),
    ],
    ids=["no CDR", "claim", "header", "cut"],
)
def test_malformed_images_are_refused_with_the_reason(raw, text):
    with pytest.raises(MessageError, match=text) as error:
        messages.read_image(raw)
    assert error.value.cause == "malformed"


@pytest.mark.parametrize("read", [messages.read_image, messages.read_compressed, messages.read_camera_info])
def test_damaged_messages_raise_only_message_errors(read):
    """Truncated messages, changed bytes and random bytes."""
    rng = np.random.default_rng(0)
    compressed = CompressedImage(format="png", data=cv2.imencode(".png", card())[1].tobytes())
    sources = [serialize_message(m) for m in (encoded("rgb8"), encoded("nv12"), compressed, info_message())]
    refused = 0
    for index in range(900):
        raw = bytearray(sources[index % len(sources)])
        kind = index % 3
        if kind == 0:
            raw = raw[: rng.integers(0, len(raw))]
        elif kind == 1:
            for at in rng.integers(0, min(len(raw), 120), 6):
                raw[at] = rng.integers(0, 256)
        else:
            raw = bytearray(rng.integers(0, 256, rng.integers(0, 200), dtype=np.uint8).tobytes())
        try:
            read(bytes(raw))
        except MessageError:
            refused += 1
    assert refused > 300


def test_compressed_images_are_decoded_or_refused():
    for extension in (".png", ".jpg"):
        data = cv2.imencode(extension, card()[..., ::-1])[1].tobytes()
        message = CompressedImage(format=extension[1:], data=data)
        message.header.frame_id, message.header.stamp.sec = FRAME_ID, 7
        frame = messages.read_compressed(serialize_message(message))
        assert (frame.stamp.sec, frame.frame_id, frame.size) == (7, FRAME_ID, SIZE)
        assert np.abs(frame.encoding.to_rgb(frame.pixels).astype(int) - card()).max() <= (
            0 if extension == ".png" else 8
        )
    with pytest.raises(MessageError, match="5 bytes of 'jpeg' are not an image"):
        messages.read_compressed(serialize_message(CompressedImage(format="jpeg", data=b"hello")))
    huge = bytearray(cv2.imencode(".png", card())[1].tobytes())
    huge[16:24] = struct.pack(">II", 100_000, 100_000)  # the width and height that the header claims
    with pytest.raises(MessageError, match="are not an image that OpenCV can decode"):
        messages.read_compressed(serialize_message(CompressedImage(format="png", data=bytes(huge))))


# ------------------------------------------------------------------------------------------------------------ outgoing


def assert_same_bytes(raw, message):
    """`raw` is what the middleware writes, except for alignment bytes, which it does not initialise."""
    assert len(raw) == len(serialize_message(message))
    assert deserialize_message(raw, type(message)) == message


@pytest.mark.parametrize("frame_id", ["", "a", "camera_optical_frame"])
@pytest.mark.parametrize(("encoding", "dtype", "channels"), [("32FC1", "f4", 1), ("16UC1", "u2", 1), ("rgb8", "u1", 3)])
def test_written_images_have_the_middlewares_bytes(frame_id, encoding, dtype, channels):
    shape = (5, 7, channels) if channels > 1 else (5, 7)
    pixels = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    raw = ImageWriter(frame_id, (5, 7), encoding).write(Stamp(3, 4), pixels)
    expected = Image(height=5, width=7, encoding=encoding, step=7 * pixels[0, 0].nbytes, data=pixels.tobytes())
    expected.header.frame_id, expected.header.stamp.sec, expected.header.stamp.nanosec = frame_id, 3, 4
    assert_same_bytes(raw, expected)


@pytest.mark.parametrize("coloured", [False, True])
def test_written_clouds_are_organised(coloured):
    points = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
    points[0, 0] = np.nan
    rgb = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    raw = CloudWriter("cam", (4, 6), coloured).write(Stamp(3, 4), points, rgb if coloured else None, None)
    cloud = deserialize_message(raw, PointCloud2)
    assert_same_bytes(raw, cloud)
    assert (cloud.height, cloud.width, cloud.is_dense, cloud.is_bigendian) == (4, 6, False, False)
    assert [f.name for f in cloud.fields] == ["x", "y", "z"] + ["rgb"] * coloured
    assert [f.offset for f in cloud.fields] == [0, 4, 8, 12][: 3 + coloured]
    assert (cloud.point_step, cloud.row_step) == (16, 96) if coloured else (12, 72)
    floats = np.frombuffer(cloud.data, np.float32).reshape(4, 6, -1)
    np.testing.assert_array_equal(floats[..., :3], points)
    if coloured:
        packed = floats[..., 3].copy().view(np.uint32)
        np.testing.assert_array_equal(np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], -1), rgb)
        assert (packed >> 24 == 0).all()


def test_points_outside_the_range_are_dropped():
    points = np.zeros((1, 4, 3), np.float32)
    points[0, :, 2] = [0.5, 1.0, 3.0, 9.0]
    cloud = deserialize_message(
        CloudWriter("cam", (1, 4), False).write(Stamp(0, 0), points, None, (1.0, 5.0)), PointCloud2
    )
    z = np.frombuffer(cloud.data, np.float32).reshape(-1, 3)[:, 2]
    np.testing.assert_array_equal(z, [np.nan, 1.0, 3.0, np.nan])


def test_a_writer_keeps_nothing_of_the_previous_frame():
    writer = CloudWriter("cam", (1, 2), True)
    ones, rgb = np.ones((1, 2, 3), np.float32), np.full((1, 2, 3), 255, np.uint8)
    writer.write(Stamp(0, 0), ones * np.nan, rgb, (0.5, 2.0))
    cloud = deserialize_message(writer.write(Stamp(1, 0), ones, 0 * rgb, None), PointCloud2)
    np.testing.assert_array_equal(np.frombuffer(cloud.data, np.float32).reshape(2, 4), [[1, 1, 1, 0]] * 2)


# --------------------------------------------------------------------------------------------------------- camera info


def test_intrinsics_follow_region_and_binning():
    """K is of the full sensor; the image is a region of interest, binned 2×2."""
    info = info_message((480, 640), focal=500.0)
    info.binning_x = info.binning_y = 2
    info.roi = RegionOfInterest(x_offset=100, y_offset=40, width=400, height=300)
    camera = messages.read_camera_info(serialize_message(info))
    assert camera.size == (150, 200)
    assert camera.matrix[0, 0] == pytest.approx(250.0)
    assert camera.matrix[0, 2] == pytest.approx((info.k[2] - 100 + 0.5) / 2 - 0.5)


def test_p_is_used_instead_of_k_if_it_is_set():
    info = info_message()
    info.p[0] = 99.0
    assert messages.read_camera_info(serialize_message(info)).matrix[0, 0] == 99.0
    info.p = [0.0] * 12
    assert messages.read_camera_info(serialize_message(info)).matrix[0, 0] == info.k[0]


def test_written_camera_info_has_converted_k_and_p():
    info = info_message()
    info.p[3] = -20.0
    camera = messages.read_camera_info(serialize_message(info))
    half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    out = deserialize_message(
        CameraInfoWriter("cam", (60, 80), camera, lambda m: half @ m).write(Stamp(3, 4)), CameraInfo
    )
    assert (out.header.frame_id, out.header.stamp.sec, out.height, out.width) == ("cam", 3, 60, 80)
    np.testing.assert_allclose(out.k.reshape(3, 3), half @ info.k.reshape(3, 3))
    np.testing.assert_allclose(out.p.reshape(3, 4), half @ info.p.reshape(3, 4))
    assert (list(out.d), out.distortion_model) == ([0.0] * 5, "plumb_bob")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda i: setattr(i, "k", [0.0] * 9), "uncalibrated"),
        (lambda i: i.k.__setitem__(2, np.nan), "calibration"),
        (lambda i: i.k.__setitem__(0, -5.0), "calibration"),
        (lambda i: i.p.__setitem__(5, 0.0), "calibration"),
        (lambda i: i.k.__setitem__(0, 1e-300), "calibration"),
        (lambda i: i.k.__setitem__(4, 1e300), "calibration"),
        (lambda i: i.p.__setitem__(2, 1e9), "calibration"),
        (lambda i: i.k.__setitem__(1, 50.0), "calibration"),
        (lambda i: i.k.__setitem__(8, 0.0), "calibration"),
        (lambda i: setattr(i, "roi", RegionOfInterest(x_offset=4_000_000_000, width=10, height=10)), "calibration"),
        (lambda i: setattr(i, "roi", RegionOfInterest(width=1000, height=10)), "calibration"),
    ],
)
def test_unusable_camera_info_is_refused(change, cause):
    info = info_message()
    change(info)
    with pytest.raises(MessageError) as error:
        messages.read_camera_info(serialize_message(info))
    assert error.value.cause == cause
