"""Writes recordings of ROS 2 without ROS: a folder of rosbag2, or one file of it (.mcap, .db3), by `rosbags`."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from fadepth_core.common.errors import DataError
from fadepth_core.common.folders import check_output, mark_output
from fadepth_core.data.bag import Topic, is_bag, typestore

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

#: Formats of the files of a recording, with their suffixes.
STORAGES = {"mcap": ".mcap", "sqlite3": ".db3"}
#: The version of metadata.yaml: from 9 on (Jazzy), it states the quality of service in a form that older readers do not know.
_VERSION: Final = 8
#: Receivers of transforms that do not change ask for what was published before they started.
_LATCHED = "tf_static"


class RecordingWriter:
    """Writes a recording, one message at a time. A context manager: on leaving, the recording is moved to `path`.

    Until then, and if an error ends it, nothing is at `path`, or what was there before.

    Args:
        path: ends in .mcap or .db3 for one file; anything else is a folder of rosbag2.
        storage: one of `STORAGES`; None: that of the suffix, mcap for a folder.
        overwrite: whether a recording at `path` may be replaced that this program has not written.

    Raises:
        DataError: `path` is taken, or its suffix is that of another format.
        ImportError: rosbags is not installed.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, storage: str | None = None, overwrite: bool = False):
        self.path = path
        self._storage = storage_of(path, storage)
        self._suffix = path.suffix if path.suffix.lower() == STORAGES[self._storage] else ""  # empty for a folder
        self._check_target(overwrite)
        self._connections: dict[str, Connection] = {}

    def _check_target(self, overwrite: bool) -> None:
        if not self.path.parent.is_dir():
            raise DataError(f"{self.path.parent}: no such folder")
        if not overwrite:
            try:
                check_output(self.path.parent, [self.path.name])
            except DataError as error:
                raise DataError(f"{error}; or add --overwrite") from None
        elif self.path.exists() and not is_bag(self.path):
            raise DataError(f"{self.path}: exists and is not a recording; it is not replaced")

    def __enter__(self) -> RecordingWriter:
        typestore()  # an ImportError names the extra to install
        from rosbags.rosbag2 import StoragePlugin, Writer

        # In the same folder, so that the result can be renamed to `path`.
        self._part = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name[:40]}."))
        name = self.path.name.removesuffix(self._suffix)
        self._writer = Writer(self._part / name, version=_VERSION, storage_plugin=StoragePlugin[self._storage.upper()])
        self._writer.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._writer.close()
                self._move()
            else:
                self._writer.abort()
        except sqlite3.Error as problem:
            raise DataError(f"{self.path}: cannot be written: {problem}") from None
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def add(self, topic: Topic) -> bool:
        """Declare a topic. Returns False, and does nothing, if its message type is not known."""
        definition = _definition(topic)
        if definition is None:
            return False
        text, digest = definition
        self._connections[topic.name] = self._writer.add_connection(
            topic.name, topic.type, msgdef=text, rihs01=digest, offered_qos_profiles=topic.qos or _default_qos(topic)
        )
        return True

    def write(self, topic: str, time: int, raw: bytes) -> None:
        """Write a message.

        Args:
            topic: the name of a topic that `add` has declared.
            time: when it was recorded, nanoseconds.
            raw: CDR with its encapsulation header.

        Raises:
            DataError, OSError: it cannot be written.
        """
        try:
            self._writer.write(self._connections[topic], time, raw)
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: cannot be written: {error}") from None

    def _move(self) -> None:
        made = self._writer.path
        if self._suffix:
            made = made / f"{made.name}{STORAGES[self._storage]}"
        if self.path.is_dir():
            shutil.rmtree(self.path)
        made.replace(self.path)
        mark_output(self.path.parent, [self.path.name])


def storage_of(path: Path, storage: str | None = None) -> str:
    """The storage of a recording at `path`, one of `STORAGES`; see `RecordingWriter`.

    Raises:
        DataError: the suffix is that of another format.
    """
    suffix = path.suffix.lower()
    by_suffix = next((name for name, known in STORAGES.items() if known == suffix), None)
    if suffix == ".bag":
        raise DataError(f"{path}: recordings are written for ROS 2: a folder, or a file {', '.join(STORAGES.values())}")
    if by_suffix and storage and storage != by_suffix:
        raise DataError(f"{path}: a file of {storage} ends in {STORAGES[storage]}")
    return by_suffix or storage or "mcap"


def _definition(topic: Topic) -> tuple[str, str] | None:
    """The text that defines a topic's type and its hash; None if they are not known."""
    if topic.definition and topic.digest:
        return topic.definition, topic.digest
    store = typestore()
    if topic.type in store.fielddefs:
        return store.generate_msgdef(topic.type, ros_version=2)[0], store.hash_rihs01(topic.type)
    digest = _digest(topic) if topic.definition else ""
    return (topic.definition, digest) if digest else None


def _digest(topic: Topic) -> str:
    """The hash of a topic's recorded definition; empty if it cannot be computed."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.EMPTY)
    try:
        store.register(get_types_from_msg(topic.definition, topic.type))
        return store.hash_rihs01(topic.type)
    except Exception:  # the text comes from a file and may be anything
        return ""


def _default_qos(topic: Topic) -> list[Any]:
    """The quality of service of a topic whose own is not known."""
    if topic.name.rpartition("/")[2] != _LATCHED:
        return []  # that of the player
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    never = QosTime(0, 0)
    return [
        Qos(
            QosHistory.KEEP_LAST,
            100,
            QosReliability.RELIABLE,
            QosDurability.TRANSIENT_LOCAL,
            never,
            never,
            QosLiveliness.AUTOMATIC,
            never,
            False,
        )
    ]
