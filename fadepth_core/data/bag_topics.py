"""Which topics of a recording are used, and what is known about them before all messages are read.

Topics are recognised by their types, by what their first message says and, where that is not enough, by common names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fadepth_core.common.camera import PinholeCamera
from fadepth_core.common.documents import as_object, read_json
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.picture_header import PictureError, read_picture_header
from fadepth_core.common.rectification import Calibration, Rectification, named_rectified
from fadepth_core.data.bag import Recording, Topic
from fadepth_core.data.transforms import frame_name

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO, CLOUD = "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/PointCloud2"
TF, FIX = "tf2_msgs/msg/TFMessage", "sensor_msgs/msg/NavSatFix"
ODOMETRY = "nav_msgs/msg/Odometry"
POSES = ("geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped")
TWISTS = ("geometry_msgs/msg/TwistStamped", "geometry_msgs/msg/TwistWithCovarianceStamped")
#: Of a topic: do not use any.
NONE = "none"
#: In place of a topic of odometry: the transforms of the camera.
TF_TOPIC, TF_STATIC_TOPIC = "/tf", "/tf_static"

#: Encodings of depth images (REP-118). mono16 is one of cameras, too.
_DEPTH_ENCODINGS = ("16UC1", "32FC1")
#: Last parts of topics that image_transport appends.
_TRANSPORTS = {"compressed", "compressedDepth", "theora", "ffmpeg", "raw", "zstd"}
_LIDAR_NAME = re.compile(r"lidar|laser|velodyne|ouster|livox|hesai|rslidar|robosense|pandar", re.IGNORECASE)
_COMMAND_NAME = re.compile(r"cmd|command|desired|target|reference|goal", re.IGNORECASE)
#: How many messages of a topic are tried until one can be used.
_MOST_TRIED = 20
#: How many pictures of a topic are compared: the first ones of a camera that starts may be damaged or of another size.
_MOST_COMPARED = 5
#: Topics whose numbers of messages differ less than this are equally frequent.
_SAME_COUNT = 0.1
#: A camera further to the side than this is the right one of a stereo pair, metres.
_MIN_BASELINE = 1e-3


@dataclass(frozen=True)
class Choice:
    """Topics that the user names. None: found; `NONE`: not used.

    Attributes:
        camera_info: a topic, or a JSON file with fx, fy, cx, cy of rectified pictures.
    """

    image: str | None = None
    camera_info: str | None = None
    odometry: str | None = None
    speed: str | None = None
    depth: str | None = None
    lidar: str | None = None
    right: str | None = None


@dataclass(frozen=True)
class Camera:
    """A topic of pictures, with the calibration for their size.

    Attributes:
        topic: name, type and number of messages.
        info: topic or file of the calibration.
        size: (height, width) of the pictures.
        frame: of the optical frame.
        lens: their rectification.
        baseline: metres from the left camera of a stereo pair; 0 for others.
    """

    topic: Topic
    info: str
    size: tuple[int, int]
    frame: str
    lens: Rectification
    baseline: float


@dataclass
class Sources:
    """What is used of a recording.

    Attributes:
        image: the camera.
        right: the right camera of its stereo pair.
        depth: the depth camera.
        lidar, speed: topics.
        odometry: topic; `TF_TOPIC` for the transforms of the camera.
        notes: choices that were made and things that cannot be used, one sentence each.
        missing: what was not found, by its name here, with the consequence.
    """

    image: Camera
    right: Camera | None = None
    depth: Camera | None = None
    lidar: Topic | None = None
    odometry: Topic | None = None
    speed: Topic | None = None
    notes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


_Kind = Literal["colour", "grey", "depth"]


@dataclass(frozen=True)
class _Picture:
    """What the first messages of a topic of pictures say."""

    topic: Topic
    kind: _Kind
    size: tuple[int, int]
    frame: str

    @property
    def base(self) -> str:
        """The topic without image_transport's part."""
        head, _, last = self.topic.name.rpartition("/")
        return head if last in _TRANSPORTS else self.topic.name


def choose_topics(recording: Recording, choice: Choice) -> Sources:
    """Choose the topics of a recording. Of cameras that have a camera_info, the one with the most pictures is taken.

    Raises:
        DataError: no camera, no calibration of it, or a topic that the user names is not there or has another type.
    """
    chooser = _Chooser(recording, choice)
    sources = Sources(chooser.image())
    sources.notes = chooser.notes
    sources.right = chooser.right(sources.image)
    sources.depth = chooser.depth(sources.image)
    sources.lidar = chooser.lidar()
    sources.odometry = chooser.odometry()
    sources.speed = chooser.speed()
    if sources.right is None:
        sources.missing["right"] = "no right camera of a stereo pair: labels come from the depth sensors or the motion"
    if sources.depth is None and sources.lidar is None:
        sources.missing["depth"] = (
            "no depth camera and no LiDAR: nothing measures depth, so labels come from the motion or a stereo pair, and the "
            "result cannot be compared with a measurement"
        )
    if sources.odometry is None:
        sources.missing["odometry"] = (
            "no odometry, pose or /tf of the camera: the motion must be found from the pictures (structure from motion)"
        )
        if sources.speed is None:
            sources.missing["speed"] = (
                "no speed: the scale of the motion is not known, unless the camera's height is given"
            )
    return sources


@dataclass(frozen=True)
class CameraTopics:
    """The topics of one camera, which need not be calibrated.

    Attributes:
        image: topic of its pictures.
        info: topic of its camera_info; None if there is none.
        notes: choices that were made, one sentence each.
    """

    image: Topic
    info: Topic | None
    notes: tuple[str, ...]


def find_camera(recording: Recording, image: str | None = None, camera_info: str | None = None) -> CameraTopics:
    """The camera that `choose_topics` chooses. If none has a usable calibration, the one with the most pictures.

    Args:
        image, camera_info: topics that the user names; None: found.

    Raises:
        DataError: no camera, or a topic that the user names is not there or has another type.
    """
    return _Chooser(recording, Choice(image, camera_info)).camera_topics()


class _Chooser:
    def __init__(self, recording: Recording, choice: Choice):
        self._recording, self._choice = recording, choice
        self.notes: list[str] = []
        self._pictures = {topic.name: self._usual_picture(topic) for topic in self._of(IMAGE, COMPRESSED)}

    # One method for each of the sources.

    def image(self) -> Camera:
        if name := self._choice.image:
            picture = self._named_picture(name)
            if picture.kind == "depth":
                raise DataError(f"{name}: has depth images; --image names pictures, --depth depth")
            return self._camera(picture, self._choice.camera_info)
        pictures = [picture for picture in self._pictures.values() if picture and picture.kind != "depth"]
        if not pictures:
            because = "".join(f"; {note}" for note in (*self.notes, *self._recording.notes)[:2])
            raise DataError(f"{self._recording.path}: no pictures of a camera in it{self._listing()}{because}")
        cameras: list[Camera] = []
        problems: list[str] = []
        for picture in pictures:
            try:
                cameras.append(self._camera(picture, self._choice.camera_info))
            except DataError as error:
                problems.append(str(error))
        if not cameras:
            raise DataError(
                problems[0] + (f"; neither have the {len(problems) - 1} others" if len(problems) > 1 else "")
            )
        most = max(camera.topic.messages for camera in cameras)

        def rank(camera: Camera) -> tuple:
            picture = self._pictures[camera.topic.name]
            return (
                camera.baseline < _MIN_BASELINE,  # of a stereo pair the left one
                camera.topic.messages >= (1 - _SAME_COUNT) * most,
                picture is not None and picture.kind == "colour",
                named_rectified(camera.topic.name),
                camera.topic.type == IMAGE,
                camera.topic.messages,
            )

        best = max(cameras, key=rank)
        best_picture = self._pictures[best.topic.name]
        others = [p.topic.name for p in pictures if best_picture is not None and p.base != best_picture.base]
        if others:
            self.notes.append(f"several cameras, {best.topic.name} is used; --image names another: {', '.join(others)}")
        return best

    def camera_topics(self) -> CameraTopics:
        info = self._named(self._choice.camera_info, (CAMERA_INFO,)) if self._choice.camera_info else None
        if self._choice.image:
            picture: _Picture | None = self._named_picture(self._choice.image)
        else:
            try:
                picture = self._pictures[self.image().topic.name]
            except DataError:
                pictures = [picture for picture in self._pictures.values() if picture and picture.kind != "depth"]
                if not pictures:
                    raise
                picture = max(pictures, key=lambda picture: (picture.topic.messages, picture.kind == "colour"))
        assert picture is not None  # a camera has pictures that can be read
        return CameraTopics(picture.topic, info or self._info_of(picture), tuple(self.notes))

    def right(self, image: Camera) -> Camera | None:
        name = self._choice.right
        if name == NONE:
            return None
        if name:
            camera = self._camera(self._named_picture(name))
            if camera.baseline < _MIN_BASELINE:
                raise DataError(f"{name}: its camera_info has P[3] = 0, so it is not the right camera of a stereo pair")
            return self._matching(camera, image, required=True)
        if image.baseline >= _MIN_BASELINE:
            return None
        found = []
        for picture in self._pictures.values():
            if picture is None or picture.kind == "depth" or picture.topic.name == image.topic.name:
                continue
            try:
                camera = self._camera(picture)
            except DataError:
                continue  # another camera, of which nothing was asked
            if camera.baseline >= _MIN_BASELINE and (pair := self._matching(camera, image, required=False)):
                found.append(pair)
        near = [camera for camera in found if camera.topic.messages >= 0.5 * image.topic.messages]
        return max(near, key=lambda camera: _shared_parts(camera.topic.name, image.topic.name), default=None)

    def _matching(self, right: Camera, left: Camera, required: bool) -> Camera | None:
        """The right camera, if its rectified pictures have the same rows and focal length as the left one's."""
        difference = np.abs(right.lens.matrix - left.lens.matrix)
        if right.size == left.size and difference.max() < 0.5 and not left.lens.chosen:
            return right
        problem = f"{right.topic.name}: not rectified to the same size, focal length and centre as {left.topic.name}"
        if required:
            raise DataError(problem)
        if right.size == left.size:
            self.notes.append(f"{problem}; it is not used as a stereo pair")
        return None

    def depth(self, image: Camera) -> Camera | None:
        name = self._choice.depth
        if name == NONE:
            return None
        if name:
            picture = self._named_picture(name)
            if picture.kind != "depth":
                raise DataError(f"{name}: not depth images ({', '.join(_DEPTH_ENCODINGS)}, or a PNG of them)")
            return self._depth_camera(picture, image)
        pictures = [picture for picture in self._pictures.values() if picture and picture.kind == "depth"]

        def rank(picture: _Picture) -> tuple:
            return (
                picture.frame == image.frame,
                "aligned" in picture.topic.name,
                picture.topic.type == IMAGE,
                picture.topic.messages,
            )

        for picture in sorted(pictures, key=rank, reverse=True):
            try:
                return self._depth_camera(picture, image)
            except DataError as error:
                self.notes.append(f"{error}; it is not used")
        return None

    def _depth_camera(self, picture: _Picture, image: Camera) -> Camera:
        try:
            return self._camera(picture)
        except DataError:
            # Depth that the driver has registered to the pictures often comes without its own camera_info.
            if picture.frame != image.frame or picture.size != image.size or self._info_of(picture):
                raise
            return Camera(picture.topic, image.info, picture.size, picture.frame, image.lens, 0.0)

    def lidar(self) -> Topic | None:
        name = self._choice.lidar
        if name == NONE:
            return None
        if name:
            return self._named(name, (CLOUD,))
        clouds = self._of(CLOUD)
        # Depth cameras publish clouds, too; those say nothing that their depth images do not say better.
        lidars = [topic for topic in clouds if _LIDAR_NAME.search(topic.name)] or [
            topic for topic in clouds if not re.search("depth|camera|map", topic.name)
        ]
        if len(lidars) > 1:
            self.notes.append(
                f"several point clouds; --lidar names another: {', '.join(topic.name for topic in lidars)}"
            )
        return max(lidars, key=lambda topic: topic.messages, default=None)

    def odometry(self) -> Topic | None:
        name = self._choice.odometry
        if name == NONE:
            return None
        if name:
            return self._named(name, (ODOMETRY, *POSES, TF))
        for kinds in ((ODOMETRY,), POSES):
            if found := [topic for topic in self._of(*kinds) if not _COMMAND_NAME.search(topic.name)]:
                best = max(found, key=lambda topic: topic.messages)
                if len(found) > 1:
                    others = ", ".join(topic.name for topic in found if topic != best)
                    self.notes.append(
                        f"several topics of odometry, {best.name} is used; --odometry names another: {others}"
                    )
                return best
        return self._recording.topics.get(TF_TOPIC)

    def speed(self) -> Topic | None:
        name = self._choice.speed
        if name == NONE:
            return None
        if name:
            return self._named(name, (*TWISTS, ODOMETRY, FIX))
        for kinds in (TWISTS, (ODOMETRY,), (FIX,)):
            found = [topic for topic in self._of(*kinds) if not _COMMAND_NAME.search(topic.name)]
            if found:
                return max(found, key=lambda topic: topic.messages)
        return None

    # What they share.

    def _of(self, *kinds: str) -> list[Topic]:
        return [topic for topic in self._recording.topics.values() if topic.type in kinds and topic.messages]

    def _named(self, name: str, kinds: Iterable[str]) -> Topic:
        topic = self._recording.topics.get(name) or self._recording.topics.get(f"/{name}")
        if topic is None or not topic.messages:
            raise DataError(f"{self._recording.path}: no topic {name} in it{self._listing()}")
        if topic.type not in kinds:
            short = [kind.replace("/msg/", "/") for kind in kinds]
            raise DataError(
                f"{topic.name}: has the type {topic.type.replace('/msg/', '/')}, expected {' or '.join(short)}"
            )
        return topic

    def _named_picture(self, name: str) -> _Picture:
        topic = self._named(name, (IMAGE, COMPRESSED))
        picture = self._pictures[topic.name]
        if picture is None:
            raise DataError(f"{topic.name}: none of its first {_MOST_TRIED} messages is a picture that can be read")
        return picture

    def _listing(self) -> str:
        topics = [f"{topic.name} ({topic.type.replace('/msg/', '/')})" for topic in self._recording.topics.values()]
        shown = ", ".join(topics[:12]) + (f" and {len(topics) - 12} more" if len(topics) > 12 else "")
        return f"; it has {shown}"

    def _usual_picture(self, topic: Topic) -> _Picture | None:
        """What most of the first messages say that can be read; None if none of them is a picture."""
        problem = ""
        found: list[_Picture] = []
        for message in self._first_messages(topic):
            try:
                found.append(
                    _raw_picture(topic, message) if topic.type == IMAGE else _compressed_picture(topic, message)
                )
            except PictureError as error:
                problem = problem or f"{topic.name}: '{message.format[:40]}' cannot be decoded: {error}"
            if len(found) == _MOST_COMPARED:
                break
        if not found:
            self._note(problem or f"{topic.name}: no message can be read")
            return None
        return max(found, key=found.count)  # of several, the first one

    def _first_messages(self, topic: Topic) -> Iterator[Any]:
        """The first messages of a topic, without those that cannot be decoded."""
        for message in islice(self._recording.messages([topic.name]), _MOST_TRIED):
            with suppress(DataError):  # it is counted where all messages are read
                yield self._recording.decode(message)

    def _camera(self, picture: _Picture, info: str | None = None) -> Camera:
        """The camera of a topic of pictures; `info` is the topic or file of its calibration, None if it is to be found.

        Raises:
            DataError: it has no calibration, or one that does not fit.
        """
        name = picture.topic.name
        if info and info not in self._recording.topics and user_path(info).is_file():
            calibration, rectified = _calibration_file(user_path(info), picture.size), True
        else:
            source = self._named(info, (CAMERA_INFO,)) if info else self._info_of(picture)
            if source is None:
                raise DataError(
                    f"{name}: no camera_info, so its intrinsics are not known; name the topic with --camera-info, or a JSON "
                    'file with {"fx": ..., "fy": ..., "cx": ..., "cy": ...} of rectified pictures'
                )
            info, calibration, rectified = source.name, self._calibration(source, picture), named_rectified(name)
        fitted = calibration.for_pictures(picture.size, name)
        if fitted is not calibration and picture.kind != "depth":
            (h, w), (height, width) = calibration.size, picture.size
            self._note(f"{info} is for {w}x{h} pixels, {name} has {width}x{height}: its intrinsics are scaled")
        return Camera(
            picture.topic, info, picture.size, picture.frame, Rectification(fitted, rectified), fitted.baseline
        )

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _info_of(self, picture: _Picture) -> Topic | None:
        """The camera_info of pictures: by its name, else the only one with the same frame."""
        infos = {topic.name: topic for topic in self._of(CAMERA_INFO)}
        for name in _info_names(picture.base):
            if name in infos:
                return infos[name]
        same = [topic for topic in infos.values() if self._frame_of(topic) == picture.frame]
        return same[0] if len(same) == 1 else None

    def _frame_of(self, topic: Topic) -> str | None:
        message = next(self._first_messages(topic), None)
        return None if message is None else frame_name(message.header.frame_id)

    def _calibration(self, info: Topic, picture: _Picture) -> Calibration:
        """The first calibrated message of a camera_info.

        Raises:
            DataError: there is none; the message has the first one's problem.
        """
        problem = ""
        for message in self._first_messages(info):
            try:
                return calibration_of(message, picture.size, info.name)
            except DataError as error:
                problem = problem or str(error)
        raise DataError(problem or f"{info.name}: no message can be read")


def _raw_picture(topic: Topic, message: Any) -> _Picture:
    encoding, size = message.encoding, (message.height, message.width)
    is_depth = encoding in _DEPTH_ENCODINGS or (encoding == "mono16" and "depth" in topic.name)
    kind: _Kind = "depth" if is_depth else "grey" if encoding.startswith(("mono", "8UC1")) else "colour"
    return _Picture(topic, kind, size, frame_name(message.header.frame_id))


def _compressed_picture(topic: Topic, message: Any) -> _Picture:
    """Raises PictureError."""
    data, form = message.data.tobytes(), message.format.lower()
    is_depth = "compresseddepth" in form or form.startswith(tuple(name.lower() for name in _DEPTH_ENCODINGS))
    if "compresseddepth" in form:
        data = data[data.find(b"\x89PNG") :]
    kind: _Kind = "depth" if is_depth else "grey" if "mono" in form else "colour"
    return _Picture(topic, kind, read_picture_header(data).size, frame_name(message.header.frame_id))


def calibration_of(info: Any, size: tuple[int, int], where: object) -> Calibration:
    """The calibration of pictures of `size` (height, width) by a CameraInfo, region of interest and binning applied.

    Raises:
        DataError: no camera has these numbers.
    """
    stated = (int(info.height), int(info.width))
    k, p = np.array(info.k, np.float64).reshape(3, 3), np.array(info.p, np.float64).reshape(3, 4)
    region = info.roi
    binning = np.maximum([info.binning_x, info.binning_y], 1)
    if stated != size and (region.height or region.width or binning.max() > 1):
        area = np.array([region.width or stated[1], region.height or stated[0]])
        # Numbers of K and P are of the full picture (sensor_msgs/CameraInfo). Pixel centres are at whole numbers.
        move = np.eye(3)
        move[[0, 1], [0, 1]] = 1 / binning
        move[:2, 2] = (0.5 - np.array([region.x_offset, region.y_offset])) / binning - 0.5
        k, p = move @ k, move @ p
        stated = tuple((area // binning)[::-1].tolist())
    distortion = np.array(info.d, np.float64)
    rotation = np.array(info.r, np.float64).reshape(3, 3)
    return Calibration(
        stated if any(stated) else size, info.distortion_model.strip().lower(), distortion, k, rotation, p, where
    )


def _calibration_file(path: Path, size: tuple[int, int]) -> Calibration:
    values = as_object(read_json(path), path)
    try:
        camera = PinholeCamera.from_values(values, path, size, "the recording's picture")
    except KeyError as error:
        raise DataError(f"{path}: has no {error}") from None
    nothing = np.zeros((3, 4))
    return Calibration(size, "", np.zeros(0), camera.matrix, np.eye(3), nothing, path)


def _shared_parts(topic: str, other: str) -> int:
    """Number of parts at the start of two topics that are equal."""
    same = [first == second for first, second in zip(topic.split("/"), other.split("/"), strict=False)]
    return [*same, False].index(False)


def _info_names(base: str) -> Iterator[str]:
    """Possible names of the camera_info of a topic of pictures: beside it first (image_transport), then above it."""
    yield f"{base}/camera_info"
    above = base.rpartition("/")[0]
    while above:
        yield f"{above}/camera_info"
        above = above.rpartition("/")[0]
    yield "/camera_info"
