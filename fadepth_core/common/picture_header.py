"""Size of a compressed picture from its first bytes, and whether its data are complete.

Decoders allocate what the header claims before they look at the data: a JPEG of 700 bytes can claim 30000×30000 pixels, which
takes OpenCV 5 GB and several seconds. And they write a line to stderr for each damaged picture. So pictures from topics are
checked here before they are decoded.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

#: Formats whose header is read here.
FORMATS = ("JPEG", "PNG", "WebP", "TIFF", "BMP")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: A Huffman-coded JPEG has at least one bit for each block of 8×8 pixels.
_JPEG_PIXELS_PER_BYTE = 8 * 64
#: Compression of deflate at best (https://zlib.net/zlib_tech.html).
_DEFLATE_RATIO = 1032
#: Of the methods that TIFF has for images of 8 and 16 bits LZW compresses most: to 12 bits for 4096 bytes.
_LZW_RATIO = 4096 / 1.5
#: Run-length coding in BMP: two bytes for 255 pixels.
_BMP_PIXELS_PER_BYTE = 128
#: Colour profiles and other metadata take up to about 260 segments, a progressive JPEG has about ten scans. A decoder visits the
#: whole picture for each scan, also for one of few bytes.
_JPEG_MAX_SEGMENTS, _JPEG_MAX_SCANS = 1024, 64
#: Values per pixel by PNG colour type.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_SAMPLES = 256, 257, 258, 277


class PictureError(ValueError):
    """Not a complete picture of a known format; the message says why."""


@dataclass(frozen=True)
class PictureHeader:
    """What a picture's header says.

    Attributes:
        format: one of `FORMATS`.
        size: (height, width) as stored, not rotated by EXIF orientation.
    """

    format: str
    size: tuple[int, int]


def read_picture_header(data: bytes) -> PictureHeader:
    """Read a picture's format and size and check that its data may be complete, without decoding it.

    Raises:
        PictureError: it is of another format, cut off, damaged, or too short for its size.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return PictureHeader("JPEG", _jpeg_size(data))
        if data.startswith(_PNG_SIGNATURE):
            return PictureHeader("PNG", _png_size(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return PictureHeader("WebP", _webp_size(data))
        if data[:4] in (b"II*\0", b"MM\0*"):
            return PictureHeader("TIFF", _tiff_size(data))
        if data[:2] == b"BM":
            return PictureHeader("BMP", _bmp_size(data))
    except (struct.error, IndexError):
        raise PictureError("the picture ends inside its header") from None
    raise PictureError(f"not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at, size = 2, None
    for _ in range(_JPEG_MAX_SEGMENTS):
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if at < 0:
            raise PictureError("the JPEG ends inside its header")
        marker = data[at + 1]
        at += 2
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # without contents
            continue
        if marker == 0xD9:
            raise PictureError("the JPEG has no picture data")
        if marker == 0xDA:  # start of scan
            break
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            if marker >= 0xC9:
                raise PictureError("the JPEG is arithmetic-coded")
            size = struct.unpack_from(">HH", data, at + 3)
        at += max(length, 2)
    else:
        raise PictureError(f"the JPEG has more than {_JPEG_MAX_SEGMENTS} segments before its picture data")
    if size is None:
        raise PictureError("the JPEG has no size")
    if data.rfind(b"\xff\xd9", at) < 0:
        raise PictureError("the JPEG is cut off: it has no end marker")
    if data.count(b"\xff\xda", at) >= _JPEG_MAX_SCANS:
        raise PictureError(f"the JPEG has more than {_JPEG_MAX_SCANS} scans")
    _check_length(data, size, size[0] * size[1] / _JPEG_PIXELS_PER_BYTE)
    return size


def _png_size(data: bytes) -> tuple[int, int]:
    width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR" or color not in _PNG_CHANNELS:
        raise PictureError("the PNG's header is damaged")
    _check_length(data, (height, width), height * (width * bits * _PNG_CHANNELS[color] / 8) / _DEFLATE_RATIO)
    at, kind = len(_PNG_SIGNATURE), b""
    view = memoryview(data)
    while kind != b"IEND":
        if at + 12 > len(data):
            raise PictureError("the PNG is cut off")
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            raise PictureError("the PNG is cut off")
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise PictureError(f"the PNG is damaged: wrong checksum of {kind.decode('latin-1')!r}")
        at = end + 4
    return height, width


def _webp_size(data: bytes) -> tuple[int, int]:
    if len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
        raise PictureError("the WebP is cut off")
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":
        width, high, height, high_height = struct.unpack_from("<HBHB", data, 24)
        return (height | high_height << 16) + 1, (width | high << 16) + 1
    raise PictureError("the WebP's header is damaged")


def _tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data[0] == ord("I") else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    fields = {_TIFF_BITS: 1, _TIFF_SAMPLES: 1}
    for entry in range(at + 2, at + 2 + 12 * min(count, 256), 12):
        tag, kind, values = struct.unpack_from(order + "HHI", data, entry)
        where = entry + 8
        if tag == _TIFF_BITS and values > 2:  # one for each sample, elsewhere
            (where,) = struct.unpack_from(order + "I", data, where)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_SAMPLES):
            (fields[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, where)
    if _TIFF_WIDTH not in fields or _TIFF_HEIGHT not in fields:
        raise PictureError("the TIFF has no size")
    if fields[_TIFF_BITS] > 16 or fields[_TIFF_SAMPLES] > 4:
        raise PictureError(f"the TIFF has {fields[_TIFF_SAMPLES]} values of {fields[_TIFF_BITS]} bits a pixel")
    size = (fields[_TIFF_HEIGHT], fields[_TIFF_WIDTH])
    _check_length(data, size, size[0] * size[1] * fields[_TIFF_SAMPLES] * fields[_TIFF_BITS] / 8 / _LZW_RATIO)
    return size


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<hh" if header == 12 else "<ii", data, 18)
    size = (abs(height), width)  # a negative height means that the top row comes first
    bits, compression = (24, 0) if header == 12 else struct.unpack_from("<HI", data, 28)
    run_length = compression in (1, 2)
    _check_length(data, size, size[0] * width * (1 / _BMP_PIXELS_PER_BYTE if run_length else bits / 8))
    return size


def _check_length(data: bytes, size: tuple[int, int], least: float) -> None:
    if len(data) < least:
        raise PictureError(f"{len(data)} bytes cannot hold {size[1]}x{size[0]} pixels")
