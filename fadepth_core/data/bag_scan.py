"""Read what is left of recordings without an index: cut short by a full disk, a crash or a power failure.

`rosbags` needs the index that a recorder writes at the end. Without it, a file is read from its start, record by record,
until a record is incomplete. The formats:
- MCAP: https://mcap.dev/spec
- ROS 1: http://wiki.ros.org/Bags/Format/2.0
- rosbag2's SQLite files: tables `topics` (id, name, type) and `messages` (topic_id, timestamp, data)
"""

from __future__ import annotations

import bz2
import io
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fadepth_core.common.documents import one_line
from fadepth_core.common.errors import DataError

_MCAP = b"\x89MCAP0\r\n"
_ROS1 = b"#ROSBAG V2.0\n"
#: Longer records are damage: no recorder writes chunks of this size, bytes.
_LONGEST = 1 << 32


class ScannedMessage(NamedTuple):
    """A message of a file that is read from its start.

    Attributes:
        topic, type: names, `sensor_msgs/msg/Image`.
        time: when it was recorded, nanoseconds.
        data: the serialized message: CDR, or of ROS 1.
    """

    topic: str
    type: str
    time: int
    data: bytes


class _Incomplete(Exception):
    """The data ends inside a record."""


def scan(path: Path, note: Callable[[str], None]) -> Iterator[ScannedMessage]:
    """The messages of a file in the order in which they are stored.

    Args:
        path: .mcap, .db3 or .bag.
        note: called at most once, with how much of the file was read and why not all of it.

    Raises:
        DataError: the file has another format.
    """
    if path.suffix == ".db3":
        yield from _scan_sqlite(path, note)
        return
    with path.open("rb") as stream:
        start = stream.read(len(_ROS1))
        if start.startswith(_MCAP):
            stream.seek(len(_MCAP))
            records = _scan_mcap(stream, {}, {})
        elif start == _ROS1:
            records = _scan_ros1(stream, {})
        else:
            raise DataError(f"{path}: {_other_format(path, start)}")
        try:
            yield from records
        # A damaged record has any content: every error of the decoders and of the conversions means the same.
        except (_Incomplete, ValueError, LookupError, RuntimeError, struct.error, OSError, EOFError) as error:
            size = path.stat().st_size
            if isinstance(error, _Incomplete):
                note(f"{path.name}: cut after {size} bytes, before its end; the messages up to there are used")
            else:
                reason = "a channel that was not announced" if isinstance(error, LookupError) else one_line(error)
                note(f"{path.name}: damaged near byte {stream.tell()} of {size}, read up to there: {reason}")


def _other_format(path: Path, start: bytes) -> str:
    if not start:
        return "the file is empty"
    if start.startswith((b"\x89MCAP", b"#ROSBAG V")):
        version = start.split(b"\r")[0][1:] if start.startswith(b"\x89") else start.split(b"\n")[0][1:]
        return f"version '{version.decode(errors='replace')}' of the format is not supported"
    return f"not a recording ({path.suffix}): its first bytes are those of another format"


# ---------------------------------------------------------------------------------------------------------------- MCAP


def _scan_mcap(
    stream: BinaryIO, schemas: dict[int, str], channels: dict[int, tuple[str, str]]
) -> Iterator[ScannedMessage]:
    """Messages from the records of a file or of a chunk; `schemas` and `channels` collect their names."""
    while opcode := stream.read(1):
        length = struct.unpack("<Q", _exactly(stream, 8))[0]
        if opcode[0] in (0x02, 0x0F):  # footer, end of the data
            return
        if length > _LONGEST:
            raise ValueError(f"a record claims {length} bytes")
        if opcode[0] == 0x06:
            yield from _scan_chunk(stream, length, schemas, channels)
            continue
        record = _exactly(stream, length)
        if opcode[0] == 0x03:
            schemas[struct.unpack_from("<H", record)[0]] = _text(record, 2)[0]
        elif opcode[0] == 0x04:
            number, schema = struct.unpack_from("<HH", record)
            channels[number] = _text(record, 4)[0], schemas.get(schema, "")
        elif opcode[0] == 0x05:
            channel, _, time, _ = struct.unpack_from("<HIQQ", record)
            topic, kind = channels[channel]
            yield ScannedMessage(topic, kind, time, record[22:])


def _scan_chunk(
    stream: BinaryIO, length: int, schemas: dict[int, str], channels: dict[int, tuple[str, str]]
) -> Iterator[ScannedMessage]:
    data = stream.read(length)
    if len(data) < 40:
        raise _Incomplete
    compression, at = _text(data, 28)
    size = struct.unpack_from("<Q", data, at)[0]
    content = data[at + 8 : at + 8 + size]
    if compression:
        if len(data) < length:
            raise _Incomplete
        content = _decompressor(compression)(content)
    yield from _scan_mcap(io.BytesIO(content), schemas, channels)
    if len(data) < length:
        raise _Incomplete


def _text(record: bytes, at: int) -> tuple[str, int]:
    """A string with its length before it, and where it ends."""
    length = struct.unpack_from("<I", record, at)[0]
    if at + 4 + length > len(record):
        raise _Incomplete
    return record[at + 4 : at + 4 + length].decode(), at + 4 + length


def _decompressor(name: str) -> Callable[[bytes], bytes]:
    # Both are dependencies of rosbags.
    if name == "lz4":
        from lz4.frame import decompress

        return decompress
    if name == "zstd":
        return unzstd
    if name == "bz2":
        return bz2.decompress
    raise ValueError(f"compression '{name[:20]}' is not supported")


def unzstd(data: bytes) -> bytes:
    """Decompress a Zstandard frame.

    Raises:
        ValueError: it is damaged.
    """
    try:
        from compression import zstd  # from Python 3.14 on
    except ImportError:
        from backports import zstd
    try:
        return zstd.decompress(data)
    except zstd.ZstdError as error:
        raise ValueError(one_line(error)) from None


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise _Incomplete
    return data


# --------------------------------------------------------------------------------------------------------------- ROS 1


def _scan_ros1(stream: BinaryIO, connections: dict[int, tuple[str, str]]) -> Iterator[ScannedMessage]:
    """Messages from the records of a file or of a chunk; `connections` collects topics and types."""
    while start := stream.read(4):
        if len(start) < 4:
            raise _Incomplete
        fields = _fields(_exactly(stream, struct.unpack("<I", start)[0]))
        length = struct.unpack("<I", _exactly(stream, 4))[0]
        data = stream.read(length)
        operation = fields["op"][0]
        cut = len(data) < length
        if operation == 0x05:
            compression = fields["compression"].decode()
            if compression != "none":
                if cut:
                    raise _Incomplete
                data = _decompressor(compression)(data)
            yield from _scan_ros1(io.BytesIO(data), connections)
        if cut:
            raise _Incomplete
        if operation == 0x07:
            kind = _fields(data)["type"].decode()
            package, _, name = kind.partition("/")
            connections[struct.unpack("<I", fields["conn"])[0]] = fields["topic"].decode(), f"{package}/msg/{name}"
        elif operation == 0x02:
            seconds, nanoseconds = struct.unpack("<II", fields["time"])
            topic, kind = connections[struct.unpack("<I", fields["conn"])[0]]
            yield ScannedMessage(topic, kind, seconds * 10**9 + nanoseconds, data)


def _fields(header: bytes) -> dict[str, bytes]:
    """The fields of a record's header: each `name=value` with its length before it."""
    fields, at = {}, 0
    while at < len(header):
        length = struct.unpack_from("<I", header, at)[0]
        name, _, value = header[at + 4 : at + 4 + length].partition(b"=")
        fields[name.decode()] = value
        at += 4 + length
    return fields


# -------------------------------------------------------------------------------------------------------------- SQLite


def _scan_sqlite(path: Path, note: Callable[[str], None]) -> Iterator[ScannedMessage]:
    """Messages in the order of their rows, which a cut file still has: its index over time is often at the end."""
    count = 0
    try:
        # immutable: a file that is damaged or on a read-only disk must not be repaired by SQLite.
        database = sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)
    except sqlite3.Error as error:
        raise DataError(f"{path}: {one_line(error)}") from None
    try:
        # Without this, SQLite refuses a file that has fewer pages than its header states.
        database.execute("PRAGMA writable_schema = ON")
        topics = {number: (name, kind) for number, name, kind in database.execute("SELECT id, name, type FROM topics")}
        rows = database.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY id")
        for count, (topic, time, data) in enumerate(rows, 1):  # noqa: B007 - used where reading fails
            yield ScannedMessage(*topics[topic], time, data)
    except (sqlite3.Error, LookupError) as error:
        if not count:
            raise DataError(f"{path}: no message could be read: {one_line(error)}") from None
        note(f"{path.name}: damaged after {count} messages, read up to there: {one_line(error)}")
    finally:
        database.close()
