"""CDR, the serialization of ROS 2 messages (OMG DDS-RTPS, "plain CDR": XCDR version 1), one value after another.

The first four bytes say the byte order. Every value is aligned to its size, counted from the end of these four bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

#: Longest string that is accepted, for example a frame_id, bytes.
LONGEST_TEXT = 256
#: Encapsulation header: plain CDR, little endian.
_LITTLE_ENDIAN = b"\0\1\0\0"


class MessageError(ValueError):
    """A message cannot be used.

    Attributes:
        cause: a short fixed key under which it is counted.
    """

    def __init__(self, cause: str, text: str):
        super().__init__(text)
        self.cause = cause


class Stamp(NamedTuple):
    """builtin_interfaces/Time."""

    sec: int
    nanosec: int

    @property
    def nanoseconds(self) -> int:
        """Time since the clock's zero, nanoseconds."""
        return self.sec * 1_000_000_000 + self.nanosec


class CdrReader:
    """Reads the values of a serialized message in order. Every read is checked against the message's end.

    Raises:
        MessageError: the message is no CDR, or a value is outside it (cause "malformed").
    """

    def __init__(self, raw: bytes):
        if len(raw) < 4 or raw[0] != 0 or raw[1] not in (0, 1):
            raise MessageError("malformed", "not a CDR-encoded message")
        self._raw = raw
        self._order = "<" if raw[1] else ">"
        self._at = 4

    def _unpack(self, code: str, size: int) -> Any:
        # Alignment is relative to the end of the encapsulation header, which has 4 bytes.
        at = self._at + (-(self._at - 4) % size)
        if at + size > len(self._raw):
            raise MessageError("malformed", f"the message ends after {len(self._raw)} bytes, inside its header")
        self._at = at + size
        return struct.unpack_from(self._order + code, self._raw, at)[0]

    def uint8(self) -> int:
        return self._unpack("B", 1)

    def uint32(self) -> int:
        return self._unpack("I", 4)

    def stamp(self) -> Stamp:
        return Stamp(self._unpack("i", 4), self.uint32())

    def doubles(self, count: int) -> np.ndarray:
        """[count] float64, of an array of fixed length, or of a sequence whose length has been read."""
        if count == 0:
            return np.empty(0)
        at = self._at + (-(self._at - 4) % 8)
        if at + 8 * count > len(self._raw):
            raise MessageError("malformed", f"the message ends after {len(self._raw)} bytes")
        self._at = at + 8 * count
        return np.frombuffer(self._raw, self._order + "f8", count, at).astype(np.float64)

    def sequence(self) -> memoryview:
        """View of a sequence of bytes."""
        length = self.uint32()
        if self._at + length > len(self._raw):
            raise MessageError(
                "malformed", f"a field claims {length} bytes where {len(self._raw) - self._at} are left in the message"
            )
        self._at += length
        return memoryview(self._raw)[self._at - length : self._at]

    def string(self) -> str:
        """A string of at most `LONGEST_TEXT` bytes."""
        text = self.sequence()
        if len(text) > LONGEST_TEXT:  # because warnings and diagnostics repeat the text
            raise MessageError("malformed", f"a text field has {len(text)} bytes, more than {LONGEST_TEXT}")
        try:
            return bytes(text).rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise MessageError("malformed", "a text field is not UTF-8") from error


class CdrWriter:
    """Serializes values in order, little endian. Alignment bytes are 0.

    Attributes:
        raw: what has been written.
    """

    def __init__(self) -> None:
        self.raw = bytearray(_LITTLE_ENDIAN)

    def _pack(self, code: str, size: int, *values: Any) -> None:
        self.raw += b"\0" * (-(len(self.raw) - 4) % size) + struct.pack(f"<{len(values)}{code}", *values)

    def uint8(self, value: int) -> None:
        """Also writes a bool."""
        self._pack("B", 1, value)

    def uint32(self, *values: int) -> None:
        self._pack("I", 4, *values)

    def floats(self, *values: float) -> None:
        """32-bit numbers."""
        self._pack("f", 4, *values)

    def doubles(self, values: Iterable[float]) -> None:
        """An array of fixed length, of 64-bit numbers."""
        self._pack("d", 8, *values)

    def string(self, text: str) -> None:
        data = text.encode() + b"\0"
        self.uint32(len(data))
        self.raw += data

    def header(self, stamp: Stamp, frame_id: str) -> None:
        """A std_msgs/Header."""
        self._pack("i", 4, stamp.sec)
        self.uint32(stamp.nanosec)
        self.string(frame_id)


def read_stamp(raw: bytes) -> Stamp:
    """The stamp of any serialized message that begins with a std_msgs/Header."""
    return CdrReader(raw).stamp()
