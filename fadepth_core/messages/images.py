"""Reads serialized camera images: `sensor_msgs/Image` and `CompressedImage`.

An image is read in place from its CDR bytes: building a typed message in Python copies its data several times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fadepth_core.common.framing import MAX_SIDE, MIN_SIDE
from fadepth_core.common.picture_header import PictureError, read_picture_header
from fadepth_core.messages.cdr import LONGEST_TEXT, CdrReader, MessageError, Stamp
from fadepth_core.messages.encodings import ENCODINGS, BitDepth, Encoding
from fadepth_core.messages.quiet_decoder import decode_picture


@dataclass(frozen=True)
class Frame:
    """One camera frame.

    Attributes:
        size: (height, width) of the image in pixels.
        pixels: view of the message's data as `encoding` describes it.
        damage: what the decoder of a compressed image says is wrong with its data.
    """

    stamp: Stamp
    frame_id: str
    size: tuple[int, int]
    encoding: Encoding
    pixels: np.ndarray
    damage: str = ""


#: Converts a serialized Image, whose encoding is given, to [H, W, 3] uint8 RGB. Raises MessageError.
OtherEncodings = Callable[[bytes, str], np.ndarray]


def refuse_encoding(raw: bytes, name: str) -> np.ndarray:
    """Raise MessageError for an image whose encoding `name` is not in `ENCODINGS`."""
    raise MessageError("encoding", f"unknown encoding '{name}' (known: {', '.join(ENCODINGS)})")


def read_image(raw: bytes, depth: BitDepth | None = None, others: OtherEncodings = refuse_encoding) -> Frame:
    """Read a serialized sensor_msgs/Image without copying its pixels.

    Args:
        depth: that of the camera, for images of 16 bits; None if this image alone decides.
        others: reads images whose encoding is not in `ENCODINGS`.

    Raises:
        MessageError: it is malformed, its fields contradict each other, or its size or encoding is not supported.
    """
    reader = CdrReader(raw)
    stamp, frame_id = reader.stamp(), reader.string()
    height, width = reader.uint32(), reader.uint32()
    name, big_endian, step, data = reader.string(), reader.uint8(), reader.uint32(), reader.sequence()
    _check_size(height, width)
    encoding = ENCODINGS.get(name)
    if encoding is None:
        pixels = others(raw, name)
        return Frame(stamp, frame_id, (pixels.shape[0], pixels.shape[1]), ENCODINGS["rgb8"], pixels)
    if (encoding.even[0] and height % 2) or (encoding.even[1] and width % 2):
        raise MessageError("size", f"the image is {width}x{height}, '{name}' needs even sides")
    dtype = np.dtype(encoding.dtype)
    row_bytes = width * max(encoding.channels, 1) * dtype.itemsize
    if step < row_bytes:
        raise MessageError("step", f"step is {step}, a row of {width} pixels in '{name}' takes {row_bytes} bytes")
    rows = int(height * encoding.rows)
    if encoding.channels == 0 and step > width and rows * width == len(data):
        # The driver counts the bytes of all planes for each row of the image, and leaves no gaps between rows.
        step = width
    if len(data) < rows * step:
        raise MessageError("short", f"{len(data)} bytes of data, {rows} rows of step {step} make {rows * step}")
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">" if big_endian else "<")
    shape = (rows, width, encoding.channels) if encoding.channels > 1 else (rows, width)
    strides = (step, max(encoding.channels, 1) * dtype.itemsize, dtype.itemsize)[: len(shape)]
    pixels = _native(np.ndarray(shape, dtype, data, strides=strides))
    if encoding.chroma_step != 1.0 and step > width:
        pixels = _without_gaps(data, (height, width), step, encoding)
    if encoding.bits > 8:
        encoding = encoding.with_bits((depth or BitDepth()).update(pixels))
    return Frame(stamp, frame_id, (height, width), encoding, pixels)


def _without_gaps(data: memoryview, size: tuple[int, int], step: int, encoding: Encoding) -> np.ndarray:
    """The planes of an image with gaps between its rows as one array [rows, W] without gaps, as they are converted."""
    height, width = size
    factor = encoding.chroma_step
    chroma_rows = int(height * (encoding.rows - 1) / factor)
    luma = np.ndarray(size, np.uint8, data, strides=(step, 1))
    chroma = np.ndarray(
        (chroma_rows, int(width * factor)), np.uint8, data, height * step, strides=(int(step * factor), 1)
    )
    return np.concatenate([luma.ravel(), chroma.ravel()]).reshape(-1, width)


def _check_size(height: int, width: int) -> None:
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise MessageError("size", f"the image is {width}x{height}; sides must be between {MIN_SIDE} and {MAX_SIDE}")


def _native(pixels: np.ndarray) -> np.ndarray:
    """Convert to native byte order and rows of whole values, as OpenCV requires. Most frames need no conversion."""
    if pixels.dtype.isnative and pixels.strides[0] % pixels.itemsize == 0:
        return pixels
    return pixels.astype(pixels.dtype.newbyteorder("="), order="C")


#: Largest compressed image that is decoded, pixels: more than cameras have, and 200 MB.
MAX_COMPRESSED_PIXELS = 64_000_000
_PATTERNS = ("rggb", "bggr", "gbrg", "grbg")
_VIDEO = ("h264", "h265", "hevc", "vp8", "vp9", "av1", "mpeg4", "ffmpeg", "theora")


def read_compressed(raw: bytes, depth: BitDepth | None = None, max_pixels: int = MAX_COMPRESSED_PIXELS) -> Frame:
    """Read a serialized sensor_msgs/CompressedImage: JPEG, PNG, WebP, TIFF or BMP.

    `format` is read as compressed_image_transport does: "ENCODING; jpeg compressed TARGET", where TARGET may be missing, or
    only "jpeg". As there, EXIF orientation is ignored: camera_info describes the image as it is stored.

    Args:
        depth: that of the camera, for images of 16 bits; None if this image alone decides.
        max_pixels: images with more are refused, before they are decoded.

    Raises:
        MessageError: it is malformed, cannot be decoded, or its size is not supported.
    """
    reader = CdrReader(raw)
    stamp, frame_id, kind, view = reader.stamp(), reader.string(), reader.string(), reader.sequence()
    data = bytes(view)
    if "compresseddepth" in kind.lower() or data[12:20] == b"\x89PNG\r\n\x1a\n":  # a PNG after the parameters of depth
        raise MessageError("encoding", f"'{kind}' is a depth image; the node needs the camera's picture")
    try:
        height, width = read_picture_header(data).size
    except PictureError as error:
        text = f"{len(data)} bytes of '{kind}' are not an image that can be decoded: {error}"
        if any(name in kind.lower() for name in _VIDEO):
            text += "; video must be decoded before: ros2 run image_transport republish"
        raise MessageError("encoding", text) from None
    _check_size(height, width)
    if height * width > max_pixels:
        raise MessageError(
            "size", f"the image is {width}x{height}; at most {max_pixels / 1e6:.0f} megapixels are decoded"
        )
    pixels, complaint = decode_picture(data)
    if pixels is None or pixels.shape[:2] != (height, width):
        raise MessageError("encoding", f"{len(data)} bytes of '{kind}' are not an image that OpenCV can decode")
    encoding = ENCODINGS.get(_stored_encoding(kind, pixels))
    if encoding is None:
        shape = f"{pixels.shape[2] if pixels.ndim == 3 else 1} values of {pixels.dtype} a pixel"
        raise MessageError("encoding", f"the image of '{kind}' has {shape}; known are 1, 3 and 4 of 8 or 16 bits")
    if encoding.even[0] and (height % 2 or width % 2):
        raise MessageError("size", f"the image is {width}x{height}, '{kind}' needs even sides")
    if encoding.bits > 8:
        encoding = encoding.with_bits((depth or BitDepth()).update(pixels))
    # Webcams write a few bytes too many; nothing of the picture is missing.
    damage = "" if "extraneous bytes" in complaint else complaint.partition("\n")[0][:LONGEST_TEXT]
    return Frame(stamp, frame_id, (height, width), encoding, pixels, damage)


def _stored_encoding(kind: str, pixels: np.ndarray) -> str:
    """The encoding of a decoded picture [H, W] or [H, W, C], as compressed_image_transport's subscriber finds it."""
    source, separator, target = kind.lower().partition(";")
    source = source.strip()
    bits = 8 * pixels.itemsize if pixels.dtype.kind == "u" else 0
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 1:
        pattern = source.removeprefix("bayer_")[:4] if source.startswith("bayer_") else ""
        return f"bayer_{pattern}{bits}" if pattern in _PATTERNS else f"mono{bits}"
    # A picture file's colours are in OpenCV's order, unless the encoder was given RGB as if it was BGR. The publisher says
    # which by the target; without one, the subscriber assumes RGB.
    given_rgb = separator and source.startswith(("rgb", "bgr")) and "compressed bgr" not in target
    return f"{'rgb' if given_rgb else 'bgr'}{'a' if channels == 4 else ''}{bits}" if channels in (3, 4) else ""
