"""Reading and writing serialized messages: all encodings, the middleware's layout, and malformed messages."""

import functools
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, RegionOfInterest

from cards import FRAME_ID, SIZE, image_message, info_message
from fadepth_core.messages.camera_info import read_camera_info
from fadepth_core.messages.cdr import MessageError, Stamp
from fadepth_core.messages.encodings import ENCODINGS, BitDepth
from fadepth_core.messages.images import read_compressed
from fadepth_core.messages.outgoing import CameraInfoWriter, CloudWriter, ImageWriter
from fadepth_core.messages.quiet_decoder import is_quiet
from fadepth_ros.messages import read_image

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


def i420(rgb):
    return np.concatenate([plane.ravel() for plane in yuv(rgb)]).reshape(-1, rgb.shape[1])


def nv24(rgb):
    y, u, v = yuv(rgb)
    return np.vstack([y, np.stack([u, v], -1).repeat(2, 0).repeat(2, 1).reshape(-1, rgb.shape[1])])


def mosaic(rgb, pattern):
    """The values of a sensor with this Bayer pattern, named by its first two rows."""
    out = np.empty(rgb.shape[:2], rgb.dtype)
    for index, color in enumerate(pattern):
        row, column = divmod(index, 2)
        out[row::2, column::2] = rgb[row::2, column::2, "rgb".index(color)]
    return out


def grey(rgb):
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def wide(pixels):
    """The same brightness in 16 bits."""
    return pixels.astype(np.uint16) * 257


def alpha(pixels):
    return np.dstack([pixels, np.full(SIZE, 9, pixels.dtype)])


PATTERNS = ("rggb", "bggr", "gbrg", "grbg")
ENCODE = {
    "rgb8": lambda rgb: rgb,
    "bgr8": lambda rgb: rgb[..., ::-1],
    "rgba8": alpha,
    "bgra8": lambda rgb: alpha(rgb[..., ::-1]),
    "mono8": grey,
    "yuv422": lambda rgb: packed_422(rgb, ("u", "y0", "v", "y1")),
    "yuyv": lambda rgb: packed_422(rgb, ("y0", "u", "y1", "v")),
    "nv12": lambda rgb: nv(rgb, "u", "v"),
    "nv21": lambda rgb: nv(rgb, "v", "u"),
    "nv24": nv24,
    "i420": i420,
    **{f"bayer_{pattern}8": functools.partial(mosaic, pattern=pattern) for pattern in PATTERNS},
}
ENCODE |= {
    f"{name[:-1]}16": functools.partial(lambda rgb, encode: wide(encode(rgb)), encode=encode)
    for name, encode in ENCODE.items()
    if name.endswith("8")
}
SAME = {
    "8UC1": "mono8",
    "8UC3": "bgr8",
    "8UC4": "bgra8",
    "16UC1": "mono16",
    "16UC3": "bgr16",
    "16UC4": "bgra16",
    "uyvy": "yuv422",
    "yuv422_yuy2": "yuyv",
    "yuv420": "i420",
}
ENCODE |= {name: ENCODE[other] for name, other in SAME.items()}
WIDE = [name for name in ENCODE if name.startswith("16") or name.endswith("16")]


def encoded(encoding, padding=0):
    message = image_message(ENCODE[encoding](card()), encoding, STAMP, padding=padding)
    message.height = SIZE[0]  # planar formats have more rows of data than the image
    return message


def test_every_encoding_of_the_table_is_tested():
    assert set(ENCODE) == set(ENCODINGS)


@pytest.mark.parametrize("padding", [0, 1, 12])
@pytest.mark.parametrize("encoding", ENCODE)
def test_every_encoding_is_converted_to_rgb(encoding, padding):
    if ENCODINGS[encoding].chroma_step != 1.0:
        padding = 0  # see test_planes_with_gaps_between_rows_are_read
    frame = read_image(serialize_message(encoded(encoding, padding)))
    assert frame.stamp == Stamp(12, 345_678_901)
    assert frame.frame_id == FRAME_ID
    assert frame.size == SIZE
    rgb = frame.encoding.to_rgb(frame.pixels)
    encoding = SAME.get(encoding, encoding)
    expected = grey(card())[..., None].repeat(3, -1) if encoding.startswith("mono") else card()
    assert rgb.shape == (*SIZE, 3)
    assert rgb.dtype == np.uint8
    error = np.abs(rgb.astype(int) - expected)[2:-2, 2:-2]
    assert error.max() <= (0 if encoding[:3] in ("rgb", "bgr", "mon") else 9)


@pytest.mark.parametrize("encoding", ["i420", "nv24", "nv12"])
def test_planes_with_gaps_between_rows_are_read(encoding):
    """V4L2: the step of chroma planes is half that of the first plane (I420), the same (NV12), or twice that (NV24)."""
    chroma = {"i420": (SIZE[0], SIZE[1] // 2), "nv24": (SIZE[0], 2 * SIZE[1]), "nv12": (SIZE[0] // 2, SIZE[1])}[
        encoding
    ]
    planes = ENCODE[encoding](card())
    first = np.pad(planes[: SIZE[0]], ((0, 0), (0, 16)))
    rest = np.pad(planes[SIZE[0] :].reshape(chroma), ((0, 0), (0, 16 * chroma[1] // SIZE[1])))
    message = image_message(first, encoding, STAMP)
    message.width, message.data = SIZE[1], first.tobytes() + rest.tobytes()
    frame = read_image(serialize_message(message))
    assert np.abs(frame.encoding.to_rgb(frame.pixels).astype(int) - card())[2:-2, 2:-2].max() <= 9


def test_the_step_of_planar_images_may_count_all_planes():
    message = encoded("nv12")
    message.step = SIZE[1] * 3 // 2  # bytes of data divided by height
    frame = read_image(serialize_message(message))
    np.testing.assert_array_equal(frame.pixels, ENCODE["nv12"](card()))


@pytest.mark.parametrize("encoding", WIDE)
def test_16_bit_images_of_the_other_byte_order_are_read(encoding):
    message = encoded(encoding)
    raw = [serialize_message(message)]
    message.data, message.is_bigendian = np.frombuffer(message.data, np.uint16).byteswap().tobytes(), 1
    raw.append(serialize_message(message))
    little, big = (frame.encoding.to_rgb(frame.pixels) for frame in map(read_image, raw))
    np.testing.assert_array_equal(little, big)


def dark(bits, part=1.0):
    """[H, W] uint16 of a camera with so many bits, of which a scene uses a part."""
    return (np.linspace(0, part * (2**bits - 1), SIZE[0] * SIZE[1]).reshape(SIZE)).astype(np.uint16)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "bayer_grbg16"])
def test_the_bits_that_a_camera_leaves_zero_do_not_darken_its_images(encoding, bits):
    pixels = dark(bits) if encoding != "rgb16" else np.dstack([dark(bits)] * 3)
    frame = read_image(serialize_message(image_message(pixels, encoding, STAMP)))
    rgb = frame.encoding.to_rgb(frame.pixels)
    expected = np.linspace(0, 255, SIZE[0] * SIZE[1]).reshape(SIZE)
    assert np.abs(rgb[2:-2, 2:-2] - expected[2:-2, 2:-2, None]).max() <= 3


def test_the_depth_of_values_stays_the_same_from_frame_to_frame():
    depth = BitDepth()
    assert [depth.update(dark(12, part)) for part in (0.05, 1.0, 0.01, 0.5, 0.0)] == [10, 12, 12, 12, 12]
    assert [depth.update(dark(bits)) for bits in (16, 16, 12)] == [16, 16, 16]


def test_defective_pixels_and_a_damaged_frame_do_not_darken_a_camera_for_good():
    depth, defective = BitDepth(), dark(12)
    defective[7, 7:11] = 65535
    assert depth.update(defective) == 12
    damaged = dark(12).byteswap()
    assert [depth.update(pixels) for pixels in (damaged, dark(12))] == [16, 12]
    assert [depth.update(pixels) for pixels in (damaged, dark(12))] == [16, 16]
    assert [depth.update(dark(12)) for _ in range(BitDepth.MEMORY)][-1] == 12


def test_pixels_are_not_copied():
    raw = serialize_message(encoded("rgb8"))
    frame = read_image(raw)
    assert np.shares_memory(frame.pixels, np.frombuffer(raw, np.uint8))


def test_big_endian_cdr_is_read():
    little = serialize_message(encoded("rgb8"))
    h, w = SIZE
    frame_id = FRAME_ID.encode() + b"\0"
    big = b"\0\0\0\0" + struct.pack(">iII", 12, 345_678_901, len(frame_id)) + frame_id
    big += b"\0" * (-(len(big) - 4) % 4) + struct.pack(">III", h, w, 5) + b"rgb8\0" + b"\0"
    big += b"\0" * (-(len(big) - 4) % 4) + struct.pack(">II", 3 * w, 3 * w * h)
    a, b = read_image(little), read_image(big + card().tobytes())
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
        read_image(serialize_message(message))
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
        read_image(raw)
    assert error.value.cause == "malformed"


# ---------------------------------------------------------------------------------------------------------- compressed


def compressed(data, kind=""):
    if isinstance(data, np.ndarray):
        data = cv2.imencode(".png", data)[1].tobytes()
    message = CompressedImage(format=kind, data=data)
    message.header.frame_id, message.header.stamp.sec = FRAME_ID, 7
    return serialize_message(message)


def decoded(data, kind=""):
    frame = read_compressed(compressed(data, kind))
    assert (frame.stamp.sec, frame.frame_id, frame.size) == (7, FRAME_ID, SIZE)
    return frame.encoding.to_rgb(frame.pixels)


def picture(extension, rgb=None, *options):
    return cv2.imencode(extension, (card() if rgb is None else rgb)[..., ::-1], options)[1].tobytes()


@pytest.mark.parametrize("extension", [".jpg", ".png", ".tiff", ".bmp", ".webp"])
@pytest.mark.parametrize("kind", ["jpeg", ""])
def test_compressed_images_are_decoded_whatever_their_format_is_called(extension, kind):
    assert np.abs(decoded(picture(extension), kind).astype(int) - card()).max() <= (8 if extension == ".jpg" else 0)


BGR, GREY = card()[..., ::-1], grey(card())


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("rgb8; png compressed bgr8", BGR),
        ("bgr8; png compressed bgr8", BGR),
        ("bgr8;png compressed bgr8", BGR),
        ("RGB8; PNG compressed BGR8", BGR),
        ("rgb8; png compressed rgb8", card()),
        ("rgb8; png compressed ", card()),
        ("bgr8; png compressed ", card()),
        ("rgba8; png compressed ", ENCODE["rgba8"](card())),
        ("rgba8; png compressed bgra8", ENCODE["bgra8"](card())),
        ("rgb16; png compressed bgr16", wide(BGR)),
        ("8UC3; png compressed ", BGR),
        ("yuv422_yuy2; jpeg compressed bgr8", BGR),
        ("bayer_rggb8; png compressed bgr8", BGR),  # the publisher has converted it
        ("png", BGR),
        ("jpeg; rgb8", BGR),
        ("; ; compressed", BGR),
    ],
)
def test_the_format_of_a_compressed_image_tells_the_order_of_its_colours(kind, stored):
    np.testing.assert_array_equal(decoded(stored, kind), card())


@pytest.mark.parametrize(
    "kind", ["mono8; png compressed ", "mono16; png compressed ", "16UC1; png compressed", "png", ""]
)
def test_compressed_grey_images_are_read_in_8_and_16_bits(kind):
    expected = np.dstack([GREY] * 3)
    np.testing.assert_array_equal(decoded(GREY, kind), expected)
    np.testing.assert_array_equal(decoded(wide(GREY), kind), expected)
    assert np.abs(decoded(GREY.astype(np.uint16) * 16, kind).astype(int) - expected).max() <= 1  # 12 bits


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", [8, 16])
def test_compressed_mosaics_give_the_same_as_raw_ones(pattern, bits):
    name = f"bayer_{pattern}{bits}"
    frame = read_image(serialize_message(encoded(name)))
    np.testing.assert_array_equal(
        decoded(ENCODE[name](card()), f"{name}; png compressed "), frame.encoding.to_rgb(frame.pixels)
    )


def test_orientation_is_ignored_because_camera_info_belongs_to_the_stored_image():
    tag = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)  # a quarter turn
    data = picture(".jpg")
    exif = b"\xff\xe1" + struct.pack(">H", 8 + len(tag)) + b"Exif\0\0" + tag
    assert cv2.imdecode(np.frombuffer(data[:2] + exif + data[2:], np.uint8), 1).shape[:2] == SIZE[::-1]
    assert np.abs(decoded(data[:2] + exif + data[2:]).astype(int) - card()).max() <= 8


def tiff(pixels):
    return cv2.imencode(".tiff", pixels)[1].tobytes()


def claim(data, height, width):
    """`data` with another size in its header."""
    data = bytearray(data)
    if data[:2] == b"\xff\xd8":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif data[:2] == b"BM":
        struct.pack_into("<ii", data, 18, width, height)
    elif data[:2] == b"II":
        (directory,) = struct.unpack_from("<I", data, 4)
        for tag, side in ((256, width), (257, height)):
            entry = data.index(struct.pack("<H", tag), directory)
            struct.pack_into("<HII", data, entry + 2, 4, 1, side)
    elif data[:4] == b"RIFF":
        struct.pack_into("<I", data, 21, width - 1 | height - 1 << 14)
    else:
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


JPEG, PNG = picture(".jpg"), picture(".png")


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"", "jpeg", "0 bytes of 'jpeg' are not an image that can be decoded: not JPEG, PNG, WebP, TIFF or BMP"),
        (b"hello", "jpeg", "not JPEG, PNG"),
        (b"\0\0\0\1\x67", "h264", "video must be decoded before"),
        (b"\0" * 12 + PNG, "16UC1; compressedDepth png", "is a depth image; the node needs the camera's picture"),
        (b"\0" * 12 + PNG, "", "is a depth image"),
        (JPEG[: len(JPEG) // 2], "jpeg", "the JPEG is cut off"),
        (JPEG[:100], "jpeg", "the JPEG ends inside its header"),
        (JPEG[:4], "jpeg", "ends inside its header"),
        (claim(JPEG, 8000, 8000), "jpeg", "bytes cannot hold 8000x8000 pixels"),
        (JPEG[:-2] + JPEG[JPEG.index(b"\xff\xda") :] * 70, "jpeg", "more than 64 scans"),
        (b"\xff\xd8" + b"\xff\xe1\0\2" * 2000, "jpeg", "more than 1024 segments"),
        (PNG[:-12], "png", "the PNG is cut off"),
        (PNG[:400] + b"\0\0\0" + PNG[403:], "png", "wrong checksum of 'IDAT'"),
        (claim(PNG, 10_000, 10_000), "png", "bytes cannot hold 10000x10000 pixels"),
        (picture(".webp")[:-8], "webp", "the WebP is cut off"),
        (picture(".tiff")[:1000], "tiff", "ends inside its header"),
        (tiff(np.ones(SIZE, np.float32)), "32FC1; tiff compressed ", "1 values of 32 bits a pixel"),
        (tiff(np.ones(SIZE, np.float64)), "64FC1; tiff compressed ", "1 values of 64 bits a pixel"),
        (claim(picture(".bmp"), 10_000, 10_000), "bmp", "bytes cannot hold 10000x10000 pixels"),
        (claim(picture(".tiff"), 10_000, 10_000), "tiff", "bytes cannot hold 10000x10000 pixels"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:20],
)
def test_compressed_data_that_cannot_be_used_are_refused_with_the_reason(data, kind, text, capfd):
    with pytest.raises(MessageError, match=text) as error:
        read_compressed(compressed(data, kind))
    assert error.value.cause == "encoding"
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (claim(picture(".webp", None, cv2.IMWRITE_WEBP_QUALITY, 101), 10_000, 10_000), "10000x10000; at most 64 mega"),
        (picture(".png", np.zeros((20, 20_000, 3), np.uint8)), "20000x20; sides must be"),
        (picture(".jpg", np.zeros((8, 8, 3), np.uint8)), "8x8; sides must be"),
    ],
)
def test_the_size_of_a_compressed_image_is_checked_before_it_is_decoded(data, text):
    with pytest.raises(MessageError, match=text) as error:
        read_compressed(compressed(data))
    assert error.value.cause == "size"


def test_a_jpeg_whose_data_end_too_early_is_decoded_with_the_decoders_complaint(capfd):
    """Many webcams lose the last blocks of each picture, and the picture is good."""
    frame = read_compressed(compressed(JPEG[:-40] + JPEG[-2:], "jpeg"))
    assert np.abs(frame.encoding.to_rgb(frame.pixels).astype(int) - card())[:100].max() <= 8
    printed = capfd.readouterr().err
    assert "premature end of data segment" in (frame.damage if is_quiet() else printed)
    assert not (printed and is_quiet())


def test_compressed_images_are_decoded_where_proc_is_not_mounted():
    """The decoder's thread then cannot find its file descriptors."""
    program = """
import os, cv2, numpy as np
from fadepth_core.messages import quiet_decoder
def listdir(path, real=os.listdir):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", path)
    return real(path)
os.listdir = listdir
data = cv2.imencode(".png", np.full((20, 30, 3), 7, np.uint8))[1].tobytes()
for _ in range(2):
    assert quiet_decoder.decode_picture(data)[0].mean() == 7
assert not quiet_decoder.is_quiet()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_harmless_damage_of_a_jpeg_is_decoded_without_a_line_on_stderr(capfd):
    """Webcams write a few bytes too many, or a buffer's rest. libjpeg complains of each picture."""
    assert decoded(JPEG[:-2] + b"\1\2\3\4" + JPEG[-2:]).std() > 10
    assert decoded(JPEG + b"\0" * 1000).std() > 10
    assert not (capfd.readouterr().err and is_quiet())


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


@pytest.mark.parametrize(("fields", "last"), [("xyz", None), ("xyzrgb", "rgb"), ("xyzi", "intensity")])
def test_written_clouds_are_organised(fields, last):
    points = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
    points[0, 0] = np.nan
    rgb = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    raw = CloudWriter("cam", (4, 6), fields).write(Stamp(3, 4), points, rgb)
    cloud = deserialize_message(raw, PointCloud2)
    assert_same_bytes(raw, cloud)
    assert (cloud.height, cloud.width, cloud.is_dense, cloud.is_bigendian) == (4, 6, False, False)
    assert [f.name for f in cloud.fields] == ["x", "y", "z"] + ([last] if last else [])
    assert [f.offset for f in cloud.fields] == [0, 4, 8, 12][: 4 if last else 3]
    assert (cloud.point_step, cloud.row_step) == ((16, 96) if last else (12, 72))
    floats = np.frombuffer(cloud.data, np.float32).reshape(4, 6, -1)
    np.testing.assert_array_equal(floats[..., :3], points)
    if last == "rgb":
        packed = floats[..., 3].copy().view(np.uint32)
        np.testing.assert_array_equal(np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], -1), rgb)
        assert (packed >> 24 == 0).all()
    if last == "intensity":
        np.testing.assert_allclose(floats[..., 3], rgb @ [0.299, 0.587, 0.114], atol=0.51)


def test_dropped_points_are_not_numbers():
    points, dropped = np.ones((1, 4, 3), np.float32), np.array([[True, False, False, True]])
    cloud = deserialize_message(
        CloudWriter("cam", (1, 4), "xyz").write(Stamp(0, 0), points, None, dropped), PointCloud2
    )
    z = np.frombuffer(cloud.data, np.float32).reshape(-1, 3)[:, 2]
    np.testing.assert_array_equal(z, [np.nan, 1.0, 1.0, np.nan])


def test_a_writer_keeps_nothing_of_the_previous_frame():
    writer = CloudWriter("cam", (1, 2), "xyzrgb")
    ones, rgb = np.ones((1, 2, 3), np.float32), np.full((1, 2, 3), 255, np.uint8)
    writer.write(Stamp(0, 0), ones * np.nan, rgb, np.ones((1, 2), bool))
    cloud = deserialize_message(writer.write(Stamp(1, 0), ones, 0 * rgb), PointCloud2)
    np.testing.assert_array_equal(np.frombuffer(cloud.data, np.float32).reshape(2, 4), [[1, 1, 1, 0]] * 2)


# --------------------------------------------------------------------------------------------------------- camera info


def test_intrinsics_follow_region_and_binning():
    """K is of the full sensor; the image is a region of interest, binned 2×2."""
    info = info_message((480, 640), focal=500.0)
    info.binning_x = info.binning_y = 2
    info.roi = RegionOfInterest(x_offset=100, y_offset=40, width=400, height=300)
    camera = read_camera_info(serialize_message(info))
    assert camera.size == (150, 200)
    assert camera.matrix[0, 0] == pytest.approx(250.0)
    assert camera.matrix[0, 2] == pytest.approx((info.k[2] - 100 + 0.5) / 2 - 0.5)


def test_p_is_used_instead_of_k_if_it_is_set():
    info = info_message()
    info.p[0] = 99.0
    assert read_camera_info(serialize_message(info)).matrix[0, 0] == 99.0
    info.p = [0.0] * 12
    assert read_camera_info(serialize_message(info)).matrix[0, 0] == info.k[0]


def test_written_camera_info_has_converted_k_and_p():
    info = info_message()
    info.p[3] = -20.0
    camera = read_camera_info(serialize_message(info))
    half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    out = deserialize_message(
        CameraInfoWriter("cam", (60, 80), camera, lambda m: half @ m).write(Stamp(3, 4)), CameraInfo
    )
    assert (out.header.frame_id, out.header.stamp.sec, out.height, out.width) == ("cam", 3, 60, 80)
    np.testing.assert_allclose(out.k.reshape(3, 3), half @ info.k.reshape(3, 3))
    np.testing.assert_allclose(out.p.reshape(3, 4), half @ info.p.reshape(3, 4))
    assert (list(out.d), out.distortion_model) == ([0.0] * 5, "plumb_bob")


def test_only_what_is_used_of_a_camera_info_is_judged():
    """Calibrations of fisheye cameras have a skew, rectified ones a K that nobody uses."""
    for index, value in ((1, 1e-12), (1, 50.0), (0, -5.0), (4, 1e-300), (8, 0.0)):
        info = info_message()
        info.k[index] = value
        camera = read_camera_info(serialize_message(info))
        np.testing.assert_allclose(camera.matrix, info.p.reshape(3, 4)[:, :3])
        assert len(camera.notes) == (value != 1e-12)  # said where K is not published as it is
        np.testing.assert_allclose(camera.info.k, camera.matrix.ravel() if camera.notes else info.k)
    info = info_message()
    info.p[1] = info.k[1] = 0.01 * info.p[0]
    info.p[10] = 1 + 1e-9
    camera = read_camera_info(serialize_message(info))
    assert camera.matrix[0, 1] == 0.0
    assert camera.notes == ("the skew of P, 1.4, is ignored",)


def test_a_p_that_is_the_identity_is_not_set():
    info = info_message()
    info.p = np.eye(3, 4).ravel()
    camera = read_camera_info(serialize_message(info))
    np.testing.assert_allclose(camera.matrix, info.k.reshape(3, 3))
    assert camera.notes == ("P is the identity, so K is used",)


def test_a_camera_info_without_size_takes_that_of_the_image():
    info = info_message()
    info.height = info.width = 0
    assert read_camera_info(serialize_message(info)).size == (0, 0)
    camera = read_camera_info(serialize_message(info), SIZE)
    assert camera.size == SIZE
    assert camera.notes == ("it has no size; that of the image is used",)
    np.testing.assert_allclose(camera.matrix, info.k.reshape(3, 3))
    info.binning_x = info.binning_y = 2
    camera = read_camera_info(serialize_message(info), SIZE)
    assert camera.size == SIZE
    assert camera.matrix[0, 0] == info.k[0] / 2


def set_item(name, index, value):
    return lambda info: getattr(info, name).__setitem__(index, value)


def k_only(index, value):
    def change(info):
        info.p = [0.0] * 12
        info.k[index] = value

    return change


@pytest.mark.parametrize(
    ("change", "cause", "text"),
    [
        (lambda i: setattr(i, "k", [0.0] * 9), "uncalibrated", "K.0. is 0"),
        (set_item("k", 2, np.nan), "calibration", r"K\[2\] is nan"),
        (set_item("k", 4, 1e300), "calibration", r"K\[4\] is 1e\+300"),
        (set_item("r", 3, np.nan), "calibration", r"R\[3\] is nan"),
        (set_item("d", 1, -np.inf), "calibration", r"D\[1\] is -inf"),
        (set_item("p", 3, 1e308), "calibration", r"P\[3\] is 1e\+308"),
        (set_item("p", 5, 0.0), "calibration", "focal lengths of P"),
        (set_item("p", 2, 1e6), "calibration", "principal point of P"),
        (set_item("p", 1, 50.0), "calibration", "P is not"),
        (set_item("p", 10, 0.0), "calibration", "P is not"),
        (k_only(0, -5.0), "calibration", "focal lengths of K"),
        (k_only(0, 1e-300), "calibration", "focal lengths of K"),
        (k_only(1, 50.0), "calibration", "K is not"),
        (k_only(8, 0.0), "calibration", "K is not"),
        (
            lambda i: setattr(i, "roi", RegionOfInterest(x_offset=4_000_000_000, width=10, height=10)),
            "calibration",
            "out",
        ),
        (lambda i: setattr(i, "roi", RegionOfInterest(width=1000, height=10)), "calibration", "outside its 160x120"),
        (lambda i: setattr(i, "width", 0), "calibration", "its size is 0x120"),
        (lambda i: setattr(i, "d", [0.0] * 1000), "malformed", "D has 1000 numbers"),
        (lambda i: setattr(i.header, "frame_id", "x" * 1000), "malformed", "a text field has 1001 bytes"),
    ],
)
def test_unusable_camera_info_is_refused(change, cause, text):
    info = info_message()
    change(info)
    with pytest.raises(MessageError, match=text) as error:
        read_camera_info(serialize_message(info))
    assert error.value.cause == cause
