"""Recordings of ROS 1 and ROS 2, read without ROS: topics, and their messages as CDR.

`rosbags` reads files with an index. `data.bag_scan` reads what is left of a file that has none, because its recorder was
stopped by a full disk, a crash or a power failure. Messages of ROS 1 are converted, so that all others see those of ROS 2.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fadepth_core.common.documents import one_line
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.folders import natural_order
from fadepth_core.data.bag_scan import scan, unzstd

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos
    from rosbags.typesys.store import Typestore

#: Suffixes of the files of recordings.
BAGS = {".mcap", ".db3", ".bag"}
_METADATA = "metadata.yaml"
#: First bytes of a Zstandard frame: rosbag2 can compress each message.
_ZSTD = b"\x28\xb5\x2f\xfd"
_TF = "tf2_msgs/msg/TFMessage"
#: Older names of types, and those with the same fields.
_SAME_TYPE = {"tf/msg/tfMessage": _TF}


class Topic(NamedTuple):
    """A topic of a recording.

    Attributes:
        name: `/camera/image_raw`.
        type: `sensor_msgs/msg/Image`, also of ROS 1.
        messages: number of messages.
        definition: the text that defines the type, as it was recorded; empty if it was not, and for ROS 1.
        digest: the hash of the definition (REP-2011), empty if it was not recorded.
        qos: the quality of service with which the topic was published; empty if it was not recorded.
    """

    name: str
    type: str
    messages: int
    definition: str = ""
    digest: str = ""
    qos: tuple[Qos, ...] = ()


class Message(NamedTuple):
    """A message of a recording.

    Attributes:
        topic: the topic's name.
        time: when it was recorded, nanoseconds.
        raw: CDR with its encapsulation header of four bytes.
    """

    topic: str
    time: int
    raw: bytes


class _File(Protocol):
    """One file of a recording, or a folder that has an index of its files."""

    topics: list[Topic]

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        """The messages of some topics, mostly in the order of their times."""


def is_bag(path: Path) -> bool:
    """Whether a path is that of a recording: a file by its suffix, a folder by the files in it."""
    if path.is_dir():
        return (path / _METADATA).is_file() or any(_storage_files(path))
    return path.suffix.lower() in BAGS or path.name.endswith(".bag.active")


class Recording:
    """A recording.

    Args:
        path: a folder of rosbag2, or a file: .mcap, .db3 or .bag (ROS 1).

    Attributes:
        path: the folder or file.
        topics: by name. A topic that was recorded with several types is left out.

    Raises:
        DataError: no such file, not a recording, or nothing of it can be read.
        ImportError: rosbags is not installed.
    """

    def __init__(self, path: Path):
        self.path = path = user_path(path)
        self._notes: list[str] = []
        self._damage: dict[Path, tuple[int, str]] = {}
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if not is_bag(path):
            raise DataError(
                f"{path}: not a recording: expected a folder of rosbag2, or a file {', '.join(sorted(BAGS))}"
            )
        self._types = typestore()
        self._files = self._open_folder() if path.is_dir() else [self._open_file(path)]
        self.topics = self._merge(topic for file in self._files for topic in file.topics)
        if not any(topic.messages for topic in self.topics.values()):
            raise DataError(f"{path}: no messages in it{self._because()}")

    @property
    def notes(self) -> list[str]:
        """What is unusual about the recording and which part of it cannot be read, one sentence each.

        Damage is found while messages are read.
        """
        return [*self._notes, *(text for _, text in self._damage.values())]

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        """The messages of some topics, one at a time, mostly in the order in which they were recorded.

        If a file is damaged, its messages up to the damage are yielded, and `notes` says so.
        """
        for file in self._files:
            yield from file.messages(names)

    def decode(self, message: Message) -> Any:
        """The fields of a message of a standard type.

        Raises:
            DataError: it is malformed.
        """
        kind = self.topics[message.topic].type
        try:
            return self._types.deserialize_cdr(message.raw, kind)
        except Exception as error:  # rosbags lets errors of struct, numpy and its own through
            raise DataError(f"{message.topic}: not a {kind}: {one_line(error)}") from None

    def _because(self) -> str:
        return f" ({'; '.join(self.notes)})" if self.notes else ""

    def _note(self, text: str) -> None:
        if text not in self._notes:  # each pass over the recording finds the same
            self._notes.append(text)

    def _note_damage(self, path: Path, read: int, total: int, reason: str) -> None:
        """Note where reading of a file ended; of several passes, the one that asked for the most messages counts."""
        if total > self._damage.get(path, (0, ""))[0]:
            text = f"{path.name}: damaged after {read} of {total} messages, read up to there: {reason}"
            self._damage[path] = total, text

    def _merge(self, topics: Iterable[Topic]) -> dict[str, Topic]:
        merged: dict[str, Topic] = {}
        ambiguous = set()
        for topic in topics:
            before = merged.get(topic.name, Topic(topic.name, topic.type, 0))
            if before.type != topic.type:
                ambiguous.add(topic.name)
            merged[topic.name] = topic._replace(messages=before.messages + topic.messages)
        for name in sorted(ambiguous):
            self._note(f"{name} was recorded with several types; it is left out")
            del merged[name]
        return merged

    def _open_folder(self) -> list[_File]:
        if (self.path / _METADATA).is_file():
            try:
                return [_IndexedFile(self.path, self)]
            except _Unreadable as error:
                problem = str(error)
        else:
            problem = f"no {_METADATA}: the recording was not finished"
        files = list(_storage_files(self.path))
        if not files:
            raise DataError(f"{self.path}: {problem}, and no file ({', '.join(sorted(BAGS))}) to read without it")
        self._note(f"{problem}; the {len(files)} files in the folder are read without it")
        opened, problems = [], []
        for path in files:
            try:
                opened.append(self._open_file(path))
            except DataError as error:
                problems.append(str(error))
        if not opened:
            raise DataError(problems[0])
        for problem in problems:
            self._note(f"left out: {problem}")
        return opened

    def _open_file(self, path: Path) -> _File:
        try:
            return _IndexedFile(path, self)
        except _Unreadable as error:
            scanned = _ScannedFile(path, self)
            if not scanned.topics:
                raise DataError(f"{path}: {error}, and without its index no message can be read") from None
            self._note(f"{path.name}: {error}; it is read without its index")
            return scanned

    def _to_cdr(self, raw: bytes, kind: str) -> bytes | None:
        """A message of ROS 1 as CDR of the same type of ROS 2; None if there is none or it is malformed.

        The types differ in the header only, which has a sequence number in ROS 1; rosbags leaves it out.
        """
        if kind not in self._types.fielddefs:
            return None
        try:
            return bytes(self._types.ros1_to_cdr(raw, kind))
        except Exception as error:  # see `decode`
            self._note(f"a message of {kind} is malformed: {one_line(error)}")
            return None


class _Unreadable(Exception):
    """`rosbags` cannot open a file; the message says why."""


class _IndexedFile:
    """A file or folder that rosbags can read."""

    def __init__(self, path: Path, recording: Recording):
        from rosbags.rosbag1 import Reader as Reader1
        from rosbags.rosbag2 import Reader as Reader2

        self._path, self._recording = path, recording
        self._ros1 = path.suffix == ".bag"
        try:
            self._reader = (Reader1 if self._ros1 else Reader2)(path)
            self._reader.open()
        except PermissionError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        # A damaged file has any content, on which the reader fails in any way: struct.error, TypeError, AssertionError, ...
        except Exception as error:
            raise _Unreadable(_sentence(error)) from None
        self.topics = [
            Topic(connection.topic, _same_type(connection.msgtype), connection.msgcount, *_published_as(connection))
            for connection in self._reader.connections
        ]

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        connections = [connection for connection in self._reader.connections if connection.topic in names]
        if not connections:
            return
        count = 0
        try:
            for connection, time, data in self._reader.messages(connections):
                count += 1
                raw = self._recording._to_cdr(data, _same_type(connection.msgtype)) if self._ros1 else data
                if raw is not None:
                    yield Message(connection.topic, time, bytes(raw))
        except DataError:
            raise
        except Exception as error:  # see `__init__`
            total = sum(connection.msgcount for connection in connections)
            self._recording._note_damage(self._path, count, total, _sentence(error))


class _ScannedFile:
    """A file that is read from its start to where it is damaged, at each pass."""

    def __init__(self, path: Path, recording: Recording):
        self._path, self._recording = path, recording
        counts = Counter((message.topic, _same_type(message.type)) for message in scan(path, recording._note))
        self.topics = [Topic(name, kind, count) for (name, kind), count in counts.items()]

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        ros1 = ".bag" in self._path.suffixes
        for message in scan(self._path, self._recording._note):
            if message.topic not in names:
                continue
            raw: bytes | None = message.data
            if ros1:
                raw = self._recording._to_cdr(message.data, _same_type(message.type))
            elif message.data.startswith(_ZSTD):
                raw = unzstd(message.data)
            if raw is not None:
                yield Message(message.topic, message.time, raw)


@cache  # it takes half a second
def typestore() -> Typestore:
    """The standard message types. Those that are read here are the same in all distributions of ROS 2."""
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise ImportError(f"recordings are read with rosbags: pip install 'fadepth_ros[adapt]' ({error})") from None
    return get_typestore(Stores.ROS2_JAZZY)


def _published_as(connection: Connection) -> tuple[str, str, tuple[Qos, ...]]:
    """`Topic.definition`, `digest` and `qos` of a topic of ROS 2; nothing of a topic of ROS 1."""
    qos = getattr(connection.ext, "offered_qos_profiles", None)
    return ("", "", ()) if qos is None else (connection.msgdef.data, connection.digest, tuple(qos))


def _storage_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda path: natural_order(path.name)):
        if path.suffix.lower() in BAGS and path.is_file() and not path.name.startswith("."):
            yield path


def _same_type(name: str) -> str:
    return _SAME_TYPE.get(name, name)


def _sentence(error: Exception) -> str:
    return one_line(error).rstrip(".")


def stamp_of(raw: bytes) -> int:
    """The stamp of a message that begins with a std_msgs/Header, nanoseconds; 0 if it is too short."""
    if len(raw) < 12:
        return 0
    seconds, nanoseconds = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return seconds * 10**9 + nanoseconds
