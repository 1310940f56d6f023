"""Depth of a recording, as a recording: the messages that the node would have published for every frame.

`/depth/image`, `/depth/camera_info` and `/depth/points` have the stamp and the frame_id of their image, and were "recorded"
at the image's time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fadepth_core.common.camera import PinholeCamera
from fadepth_core.common.framing import FramingError
from fadepth_core.data.bag import Message, Recording, Topic
from fadepth_core.data.bag_topics import CAMERA_INFO, CLOUD, COMPRESSED, IMAGE, CameraTopics
from fadepth_core.data.bag_writer import RecordingWriter
from fadepth_core.data.video import read_camera
from fadepth_core.messages.camera_info import Camera
from fadepth_core.messages.camera_tracker import CameraTracker, unusual
from fadepth_core.messages.cdr import MessageError
from fadepth_core.messages.encodings import BitDepth
from fadepth_core.messages.images import Frame, read_compressed, read_image
from fadepth_core.runtime.camera_messages import OutputWriters, rgb_for
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.rectifier import RectifiedCamera, Rectifier
from fadepth_core.runtime.temporal import TemporalFilter

DEPTH, INFO, POINTS = "/depth/image", "/depth/camera_info", "/depth/points"
OUTPUTS = {
    DEPTH: Topic(DEPTH, IMAGE, 0),
    INFO: Topic(INFO, CAMERA_INFO, 0),
    POINTS: Topic(POINTS, CLOUD, 0),
}


@dataclass(frozen=True)
class BagPrediction:
    """What to compute from a recording.

    Attributes:
        intrinsics: K [3, 3] of the camera, pixels.
        camera: JSON file with the intrinsics. If neither is given, the recording's CameraInfo is used.
        points: whether to write clouds.
        encoding: of the depth images: "32FC1", metres, or "16UC1", millimetres.
        full_resolution: depth at the size of the images instead of the network's.
        copy: whether to copy all other messages of the recording.
        backend, precision: as for `DepthEngine.load`.
        rectify: mode of `Rectifier`.
        temporal: mode of `TemporalFilter`.
    """

    checkpoint: Checkpoint
    intrinsics: np.ndarray | None = None
    camera: Path | None = None
    points: bool = True
    encoding: str = "32FC1"
    full_resolution: bool = False
    copy: bool = False
    backend: str = "auto"
    precision: str = "auto"
    rectify: str = "auto"
    temporal: str = "off"


class BagReport:
    """What became of the images of a recording.

    Attributes:
        images: images that were read.
        frames: those with depth.
        with_camera: those with a CameraInfo, and with points if they were requested.
        dropped: number of images without depth, by cause.
        first_dropped: number and reason of the first of them.
    """

    def __init__(self) -> None:
        self.images = self.frames = self.with_camera = 0
        self.dropped: Counter[str] = Counter()
        self.first_dropped = ""
        self._notes: dict[str, str] = {}
        self._noted: Counter[str] = Counter()

    def note(self, text: str, key: str | None = None) -> None:
        """Add a note, if it is the first one of its `key`; default: the text."""
        key = text if key is None else key
        self._notes.setdefault(key, text)
        self._noted[key] += 1

    @property
    def notes(self) -> list[str]:
        """What is unusual, one sentence each, with the number of images that it holds for, if that is not all or one."""
        return [
            f"{text} ({self._noted[key]} of {self.images} images)" if 1 < self._noted[key] < self.images else text
            for key, text in self._notes.items()
        ]


def predict_recording(
    recording: Recording, topics: CameraTopics, writer: RecordingWriter, options: BagPrediction, report: BagReport
) -> Iterator[None]:
    """Write the depth of a recording, a frame at a time.

    Args:
        writer: open.
        report: filled on the way.

    Yields:
        None after each image, whether or not it could be used.

    Raises:
        EngineError: the network cannot run.
        DataError, OSError: the camera file cannot be used, or the result cannot be written.
    """
    for topic in OUTPUTS.values():
        if topic.name != POINTS or options.points:
            writer.add(topic)
    copied = _add_copied(recording, writer, report) if options.copy else set()
    predictor = _FramePredictor(recording.path, topics, options, report)
    image, info = topics.image.name, topics.info.name if topics.info else None
    if info is not None:
        # CameraInfo is often recorded just after the first image.
        predictor.use_camera_info(next((message.raw for message in recording.messages([info])), b""))
    used = {image} if info is None else {image, info}
    for message in recording.messages(copied | used):
        if message.topic in copied:
            writer.write(*message)
        if message.topic == info:
            predictor.use_camera_info(message.raw)
        elif message.topic == image:
            predictor.process(message, writer)
            yield


def _add_copied(recording: Recording, writer: RecordingWriter, report: BagReport) -> set[str]:
    """Declare the topics of a recording that are copied; returns their names."""
    copied = set()
    for topic in recording.topics.values():
        if topic.name in OUTPUTS:
            report.note(f"{topic.name} of the recording is not copied: the result has its own")
        elif writer.add(topic):
            copied.add(topic.name)
        else:
            report.note(f"{topic.name} is not copied: its message type {topic.type} is not known")
    return copied


class _FramePredictor:
    """Reads the images of one camera and writes their depth."""

    def __init__(self, path: Path, topics: CameraTopics, options: BagPrediction, report: BagReport):
        self._path, self._topics, self._options, self._report = path, topics, options, report
        self._cameras, self._bit_depth, self._writers = CameraTracker(), BitDepth(), OutputWriters()
        self._rectifier = Rectifier(
            options.rectify, topics.image.name, topics.info.name if topics.info else "camera_info"
        )
        self._temporal = TemporalFilter(options.temporal)
        self._engine: DepthEngine | None = None
        self._given: Camera | None = None  # made of what the user gives

    def use_camera_info(self, raw: bytes) -> None:
        self._cameras.update(raw)

    def process(self, message: Message, writer: RecordingWriter) -> None:
        """Write the depth of an image, or count it as dropped."""
        self._report.images += 1
        try:
            frame = self._decode(message.raw)
            engine = self._engine_for(frame)
        except (MessageError, FramingError) as error:
            self._drop(error)
            return
        camera = self._match(frame, engine)
        known = camera or self._cameras.last_match(frame)  # one unusable CameraInfo does not make the scale jump
        rectified = None
        if known is not None:
            prepared = self._rectified(known, engine)
            camera = None if camera is None else prepared.camera
            known, rectified = prepared.camera, prepared.framing
        points = self._options.points and camera is not None
        request = FrameRequest(rgb_for(engine, frame, rectified), None if known is None else known.matrix, points)
        result = engine.infer(request)
        if rectified is not None and rectified.outside is not None:
            result = result.unseen(rectified.outside)
        image, seconds = engine.framing.cropped(request.image), 1e-9 * frame.stamp.nanoseconds
        result = self._temporal.apply(result, image, seconds)
        writer.write(DEPTH, message.time, self._writers.depth(frame, result.depth, self._options.encoding))
        if camera is not None:
            self._report.with_camera += 1
            writer.write(INFO, message.time, self._writers.camera_info(frame, camera, engine.framing))
        if result.points is not None:
            cloud = self._writers.points(frame, result.points, request.image, engine.framing, rectified=rectified)
            writer.write(POINTS, message.time, cloud)
        self._report.frames += 1

    def _decode(self, raw: bytes) -> Frame:
        if self._topics.image.type != COMPRESSED:
            return read_image(raw, self._bit_depth)
        frame = read_compressed(raw, self._bit_depth, self._cameras.max_pixels)
        if frame.damage:
            self._report.note(
                f"image {self._report.images} is damaged: {frame.damage}; its depth is written", "damaged"
            )
        return frame

    def _engine_for(self, frame: Frame) -> DepthEngine:
        if self._engine is None or self._engine.framing.camera_size != frame.size:
            options = self._options
            self._engine = DepthEngine.load(
                options.checkpoint,
                camera_size=frame.size,
                backend=options.backend,
                precision=options.precision,
                full_resolution=options.full_resolution,
            )
        return self._engine

    def _match(self, frame: Frame, engine: DepthEngine) -> Camera | None:
        """The camera of a frame; None, with a note, if it is not known."""
        if self._options.intrinsics is not None or self._options.camera is not None:
            return self._given_camera(frame.size)
        camera, problem = self._cameras.match(frame)
        if camera is not None:
            for text in unusual(camera, frame):
                self._report.note(f"camera_info: {text}")
            return camera
        metres = " and depth is not in metres of this camera" if engine.follows_camera else ""
        reason = str(problem) if self._topics.info else f"no camera_info of {self._topics.image.name}"
        self._report.note(f"{reason}: {INFO} and {POINTS} are left out{metres}", getattr(problem, "cause", None))
        return None

    def _rectified(self, camera: Camera, engine: DepthEngine) -> RectifiedCamera:
        """The camera as the engine sees it, with a note of what is done."""
        prepared, name = self._rectifier.prepare(camera, engine.framing), self._topics.image.name
        if prepared.problem is not None:
            self._report.note(f"{name}: {prepared.problem}; straight lines are bent in the clouds", "rectification")
        elif prepared.framing is not None:
            self._report.note(f"{name}: images are rectified here ({prepared.status})", "rectification")
        return prepared

    def _given_camera(self, size: tuple[int, int]) -> Camera:
        if self._given is None or self._given.size != size:
            matrix = self._options.intrinsics
            if self._options.camera is not None:
                matrix = read_camera(self._options.camera, size, self._path)[0]
            assert matrix is not None  # see `_match`
            self._given = Camera.pinhole(PinholeCamera.from_matrix(matrix, "intrinsics", size).matrix, size)
        return self._given

    def _drop(self, error: MessageError | FramingError) -> None:
        cause = error.cause if isinstance(error, MessageError) else "size"
        self._report.dropped[cause] += 1
        if not self._report.first_dropped:
            self._report.first_dropped = f"image {self._report.images}: {error}"
