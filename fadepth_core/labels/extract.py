"""From a recording to a clip: rectified pictures, camera, times, poses, speed and measured depth (format: `data.video`).

    choose topics -> first pass: stamps, odometry, tf, speed -> choose pictures, interpolate the motion
                  -> second pass: rectified pictures, measured depth -> files

One message at a time is in memory.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from fadepth_core.common.errors import DataError
from fadepth_core.common.files import write_atomically
from fadepth_core.common.folders import mark_output
from fadepth_core.data.bag import Message, Recording, Topic, stamp_of
from fadepth_core.data.bag_depth import cloud_points, depth_pixels
from fadepth_core.data.bag_topics import (
    COMPRESSED,
    FIX,
    ODOMETRY,
    TF,
    TF_STATIC_TOPIC,
    Camera,
    Choice,
    Sources,
    choose_topics,
)
from fadepth_core.data.images import write_depth
from fadepth_core.data.transforms import Track, TransformTree, frame_name, matrix
from fadepth_core.labels.projection import depth_in_metres, project_cloud, register_depth
from fadepth_core.messages.cdr import MessageError
from fadepth_core.messages.encodings import BitDepth
from fadepth_core.messages.images import read_compressed, read_image

#: Largest longest side of the frames, pixels, unless the user asks for another.
LONGEST_SIDE = 832
#: The file that says what was done, and marks a folder as written here.
REPORT = "recording.json"
_WRITER = "fadepth extract"
_FOLDERS = ("measured", "right")
_FILES = ("camera.json", "times.txt", "stamps.txt", "poses.txt", "speed.txt")
_QUALITY = 95
#: Frames compared in training are about this far apart: a clip's stride, seconds.
_STEP = 0.1
#: Pictures of a stereo pair are taken at the same time, apart from this, nanoseconds.
_PAIR_TOLERANCE = 5_000_000
#: A step between two stamps is a jump if it is longer than this and was recorded in much less time, nanoseconds.
_JUMP = 10_000_000_000
#: Clocks differ if two topics were recorded at the same time, and their stamps are further apart than this, nanoseconds.
_OTHER_CLOCK = 1_000_000_000
#: Between two speeds further apart than this nothing is known, nanoseconds: of wheels, and of GPS positions.
_SPEED_GAP, _FIX_GAP = 500_000_000, 2_500_000_000
#: Frames that do not move (REP-105), in the order in which they are looked for: `odom` has no jumps.
_FIXED_FRAMES = ("odom", "map", "world")
#: Of the robot, for poses whose message does not name what they are of.
_BODY_FRAMES = ("base_link", "base_footprint")
#: Radius of the earth at the equator (WGS 84), metres: for the few metres between two GPS positions.
_EARTH = 6_378_137.0


@dataclass(frozen=True)
class Extraction:
    """What was written.

    Attributes:
        folder: the clip.
        recording: name of the recording.
        frames, seconds: number of frames, and from the first to the last.
        poses, speeds, measured, right: number of frames for which each is known.
        sources: what each was read from, in words.
        notes: what was left out or assumed, one sentence each.
        missing: what was not found, one sentence with its consequence each.
    """

    folder: Path
    recording: str
    frames: int
    seconds: float
    poses: int
    speeds: int
    measured: int
    right: int
    sources: dict[str, str]
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def extract(
    path: Path,
    out: Path,
    choice: Choice | None = None,
    longest_side: int = LONGEST_SIDE,
    every: int = 1,
    overwrite: bool = False,
) -> Extraction:
    """Write a recording as a clip.

    Args:
        path: the recording, see `data.bag.Recording`.
        out: folder for the clip. An extraction that was interrupted there is started again.
        choice: topics that are named by the user.
        longest_side: larger frames are reduced, pixels.
        every: take every N-th picture.
        overwrite: replace a complete clip that was extracted before.

    Raises:
        DataError: the recording cannot be used, or the folder has files that were not written here.
        ImportError: rosbags is not installed.
    """
    if longest_side < 32 or every < 1:
        raise DataError(f"need a longest side of at least 32 pixels and every >= 1, got {longest_side} and {every}")
    _check_folder(out, overwrite)
    recording = Recording(path)
    sources = choose_topics(recording, choice or Choice())
    series = _first_pass(recording, sources)
    plan = _Plan(recording, sources, series, choice or Choice(), every)
    writer = _Writer(recording, sources, plan, out, longest_side)
    writer.run()
    return writer.finish()


# ---------------------------------------------------------------------------------------------------------- first pass


@dataclass
class _Series:
    """The times of the messages of a topic, nanoseconds.

    Attributes:
        stamps: of their headers, or `logs` if those are not set.
        logs: when they were recorded.
        values: what was read of each message, if anything.
    """

    stamps: list[int] = field(default_factory=list)
    logs: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, stamp: int, log: int, value: Any = None) -> None:
        self.stamps.append(stamp)
        self.logs.append(log)
        self.values.append(value)

    def clock_offset(self) -> int:
        """Nanoseconds from the stamps to the times of recording, in the median."""
        return int(np.median(np.array(self.logs) - np.array(self.stamps)))


@dataclass
class _FirstPass:
    series: dict[str, _Series]
    tree: TransformTree
    transforms: _Series
    notes: list[str]


def _first_pass(recording: Recording, sources: Sources) -> _FirstPass:
    """Read the times of all messages that are used, and the motion."""
    pictures = {camera.topic.name for camera in (sources.image, sources.right, sources.depth) if camera}
    clouds = {sources.lidar.name} if sources.lidar else set()
    motion = {topic.name for topic in (sources.odometry, sources.speed) if topic and topic.type != TF}
    # A chain from the LiDAR or the depth camera to the camera is needed, too.
    transforms = {topic.name for topic in recording.topics.values() if topic.type == TF}
    result = _FirstPass(defaultdict(_Series), TransformTree(), _Series(), [])
    invalid: Counter[str] = Counter()
    for message in _progress(recording, pictures | clouds | motion | transforms, "reading stamps and motion"):
        name = message.topic
        if name not in motion and name not in transforms:
            result.series[name].add(stamp_of(message.raw), message.time)
            continue
        try:
            decoded = recording.decode(message)
        except DataError:
            invalid[name] += 1
            continue
        if name in transforms:
            _add_transforms(result, decoded, message, recording.topics[name])
        elif (value := _motion_value(decoded, recording.topics[name])) is not None:
            result.series[name].add(stamp_of(message.raw), message.time, value)
        else:
            invalid[name] += 1
    result.notes += [
        f"{count} messages of {name} are damaged or not finite and left out" for name, count in invalid.items()
    ]
    for name, series in result.series.items():
        if not all(series.stamps):
            result.notes.append(f"{name} has stamps of zero: the times of recording are used")
            series.stamps = list(series.logs)
    return result


def _progress(recording: Recording, names: set[str], text: str) -> Iterator[Message]:
    total = sum(recording.topics[name].messages for name in names if name in recording.topics)
    return iter(tqdm(recording.messages(names), desc=text, unit="message", total=total, leave=False))


def _add_transforms(result: _FirstPass, decoded: Any, message: Message, topic: Topic) -> None:
    static = topic.name.endswith(TF_STATIC_TOPIC)
    for transform in decoded.transforms:
        move, turn = transform.transform.translation, transform.transform.rotation
        found = matrix((move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w))
        if found is None:
            continue
        stamp = transform.header.stamp.sec * 10**9 + transform.header.stamp.nanosec
        if not static:
            stamp = stamp or message.time
            result.transforms.add(stamp, message.time)
        result.tree.add(transform.header.frame_id, transform.child_frame_id, found, None if static else stamp)


@dataclass(frozen=True)
class _Pose:
    """A pose of odometry.

    Attributes:
        frame, body: pose of `body` in `frame`; `body` is empty if the message does not name it.
        transform: [4, 4].
        speed: metres per second, None if the message does not have it.
    """

    frame: str
    body: str
    transform: np.ndarray
    speed: float | None


def _motion_value(decoded: Any, topic: Topic) -> Any:
    """A `_Pose`, a speed, or (latitude, longitude) in degrees; None if it is not finite."""
    if topic.type == FIX:
        position = (decoded.latitude, decoded.longitude)
        return position if np.isfinite(position).all() and decoded.status.status >= 0 and any(position) else None
    if topic.type.startswith("geometry_msgs/msg/Twist"):
        twist = getattr(decoded.twist, "twist", decoded.twist)
        speed = _length(twist.linear)
        return speed if np.isfinite(speed) else None
    pose = getattr(decoded.pose, "pose", decoded.pose)
    where, turn = pose.position, pose.orientation
    found = matrix((where.x, where.y, where.z), (turn.x, turn.y, turn.z, turn.w))
    if found is None:
        return None
    moving = topic.type == ODOMETRY
    body = frame_name(decoded.child_frame_id) if moving else ""
    return _Pose(
        frame_name(decoded.header.frame_id), body, found, _length(decoded.twist.twist.linear) if moving else None
    )


def _length(vector: Any) -> float:
    return float(np.linalg.norm([vector.x, vector.y, vector.z]))


# ---------------------------------------------------------------------------------------------------------------- plan


class _Plan:
    """Which messages become which frames, and the motion at any time.

    Attributes:
        stamps: of the frames, increasing.
        picture: for each message of the image's topic, by its number, the frame that it becomes.
        right, depth, lidar: the same for the messages of the other sensors.
        notes: what was assumed or left out.
        missing: additions to `Sources.missing`.
        sources: where the motion comes from, in words.
        dropped: number of pictures left out, because their stamps jump.
    """

    def __init__(self, recording: Recording, sources: Sources, found: _FirstPass, choice: Choice, every: int):
        self._sources, self._found, self._choice = sources, found, choice
        self.notes = list(found.notes)
        self.missing: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        image = found.series[sources.image.topic.name]
        if not image.stamps:
            because = f": {'; '.join(recording.notes)}" if recording.notes else ""
            raise DataError(f"{recording.path}: no picture of {sources.image.topic.name} can be read{because}")
        self._image = image
        kept = _longest_order(np.array(image.stamps), np.array(image.logs))
        self.dropped = len(image.stamps) - len(kept)
        chosen = kept[::every]
        self.picture = {int(number): frame for frame, number in enumerate(chosen)}
        self.stamps = np.array(image.stamps, np.int64)[chosen]
        if len(self.stamps) < 3:
            raise DataError(
                f"{recording.path}: {len(self.stamps)} pictures of {sources.image.topic.name}, need at least 3"
            )
        half = int(np.median(np.diff(self.stamps))) // 2
        self.right = self._nearest(sources.right.topic if sources.right else None, _PAIR_TOLERANCE)
        self.depth = self._nearest(sources.depth.topic if sources.depth else None, half)
        self.lidar = self._nearest(sources.lidar, half)
        self._tree_shift = self._shift("/tf", found.transforms)
        self._motion = self._find_motion()
        self.poses = self.camera_poses(self.stamps)
        self.speeds = self._speeds()

    def camera_poses(self, stamps: np.ndarray) -> np.ndarray:
        """Poses of the camera (not rectified) at stamps of the pictures' clock, [N, 4, 4], NaN where unknown."""
        if self._motion is None:
            return np.full((len(stamps), 4, 4), np.nan)
        track, shift, body = self._motion
        if track is None:
            poses = self.transforms(body, stamps)
            return np.full((len(stamps), 4, 4), np.nan) if poses is None else poses
        to_body = self.transforms(body, stamps)
        return track.at(stamps + shift) @ (np.eye(4) if to_body is None else to_body)

    def transforms(self, target: str, stamps: np.ndarray, source: str | None = None) -> np.ndarray | None:
        """Transforms from `source`, by default the camera, to `target` at stamps of the pictures' clock; see `TransformTree.at`."""
        source = self._sources.image.frame if source is None else source
        return self._found.tree.at(target, source, np.asarray(stamps) + self._tree_shift)

    def stamp(self, topic: Topic, number: int) -> int:
        """The stamp of a message by the pictures' clock."""
        series = self._found.series[topic.name]
        return series.stamps[number] - self._shift(topic.name, series)

    def _shift(self, name: str, series: _Series) -> int:
        """What is added to stamps of the pictures to compare them with those of another topic: 0 if the clocks agree."""
        if not series.stamps:
            return 0
        apart = max(min(series.stamps) - max(self._image.stamps), min(self._image.stamps) - max(series.stamps))
        together = max(min(series.logs) - max(self._image.logs), min(self._image.logs) - max(series.logs)) < 0
        if apart < _OTHER_CLOCK or not together:
            return 0
        note = (
            f"the stamps of {name} are of another clock than the pictures': they are aligned by the times of recording"
        )
        if note not in self.notes:
            self.notes.append(note)
        return self._image.clock_offset() - series.clock_offset()

    def _nearest(self, topic: Topic | None, tolerance: int) -> dict[int, int]:
        """For each message of a topic that is the nearest one to a frame, that frame."""
        if topic is None:
            return {}
        series = self._found.series[topic.name]
        stamps = np.array(series.stamps, np.int64) - self._shift(topic.name, series)
        best: dict[int, tuple[int, int]] = {}
        after = np.clip(np.searchsorted(self.stamps, stamps), 1, len(self.stamps) - 1)
        for number, (stamp, place) in enumerate(zip(stamps, after, strict=True)):
            frame = min((place - 1, place), key=lambda frame: abs(int(self.stamps[frame] - stamp)))
            distance = abs(int(self.stamps[frame] - stamp))
            if distance <= tolerance:
                best[frame] = min(best.get(frame, (distance, number)), (distance, number))
        return {number: frame for frame, (_, number) in best.items()}

    def _find_motion(self) -> tuple[Track | None, int, str] | None:
        """The track of a body, its clock's shift and the body's frame. Without a track: the frame of /tf that stands still."""
        topic = self._sources.odometry
        if topic is None:
            return None
        camera = self._sources.image.frame
        if topic.type == TF:
            return self._motion_of_tf(camera)
        series = self._found.series[topic.name]
        if not series.stamps:
            self.missing["odometry"] = f"{topic.name} has no valid pose: the motion must be found from the pictures"
            return None
        first: _Pose = series.values[0]
        body = first.body or self._body(topic, camera)
        if not self._found.tree.connected(body, camera):
            if self._choice.odometry is None and (motion := self._motion_of_tf(camera)):
                return motion
            self.missing["odometry"] = (
                f"{topic.name} is the motion of '{body}', and /tf and /tf_static do not connect it with the camera's frame "
                f"'{camera}': only its speed is used, the motion must be found from the pictures"
            )
            return None
        by = "" if body == camera else f" of {body}, with the camera by /tf"
        self.sources["poses"] = f"{topic.name}{by}"
        return Track(series.stamps, [pose.transform for pose in series.values]), self._shift(topic.name, series), body

    def _body(self, topic: Topic, camera: str) -> str:
        """What a pose is of, where its message does not say."""
        body = next((frame for frame in _BODY_FRAMES if self._found.tree.connected(frame, camera)), camera)
        what = "the camera's optical frame" if body == camera else f"'{body}'"
        self.notes.append(f"{topic.name} does not say what its poses are of; {what} is assumed")
        return body

    def _motion_of_tf(self, camera: str) -> tuple[None, int, str] | None:
        tree = self._found.tree
        above = tree.ancestors(camera)[1:]
        named = [frame for name in _FIXED_FRAMES for frame in above if frame.rpartition("/")[2] == name]
        for fixed in (*named, *reversed(above)):
            if tree.moves(fixed, camera):
                self.sources["poses"] = f"/tf from {camera} to {fixed}"
                return None, 0, fixed
        self.missing["odometry"] = (
            f"/tf has no moving transform above the camera's frame '{camera}': the motion must be found from the pictures"
        )
        return None

    def _speeds(self) -> np.ndarray:
        """Speed at each frame [N], metres per second, NaN where unknown."""
        unknown = np.full(len(self.stamps), np.nan)
        topic = self._sources.speed
        if topic is None or not self._found.series[topic.name].stamps:
            return unknown
        series = self._found.series[topic.name]
        stamps, order = np.unique(np.array(series.stamps, np.int64), return_index=True)
        values = [series.values[number] for number in order]
        gap = _SPEED_GAP
        if topic.type == FIX:
            speeds, gap = _speeds_of_fixes(stamps, values), _FIX_GAP
            self.notes.append(f"the speed is that of the GPS positions of {topic.name}, which is coarse")
        elif topic.type == ODOMETRY:
            speeds = np.array([pose.speed for pose in values])
            if not speeds.any():  # many drivers do not fill it
                positions = np.array([pose.transform[:3, 3] for pose in values])
                speeds = _speeds_of_positions(stamps, positions, 250_000_000)
        else:
            speeds = np.array(values)
        speeds = _between(stamps, speeds, self.stamps + self._shift(topic.name, series), gap)
        if np.isfinite(speeds).any():
            self.sources["speed"] = topic.name
        return speeds


def _longest_order(stamps: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Numbers of the messages to keep, so that their stamps increase without jumps and as many as possible are kept.

    A jump ahead is a step in the stamps that is much longer than the step in the times of recording.
    """
    steps, recorded = np.diff(stamps), np.abs(np.diff(logs))
    starts = np.flatnonzero((steps <= 0) | (steps > _JUMP + 2 * recorded)) + 1
    runs = np.split(np.arange(len(stamps)), starts)
    # The best chain of runs that ends with each run: number of messages, and the run before it.
    best: list[tuple[int, int]] = []
    for place, run in enumerate(runs):
        count, before = 0, -1
        # Jumps are few; of a recording full of them only the last hundred runs are compared.
        for other in range(max(0, place - 100), place):
            end, start = runs[other][-1], run[0]
            step = stamps[start] - stamps[end]
            if 0 < step <= _JUMP + 2 * abs(logs[start] - logs[end]) and best[other][0] > count:
                count, before = best[other][0], other
        best.append((count + len(run), before))
    place = max(range(len(runs)), key=lambda place: best[place][0])
    kept = []
    while place >= 0:
        kept.append(runs[place])
        place = best[place][1]
    return np.concatenate(kept[::-1])


def _between(stamps: np.ndarray, values: np.ndarray, wanted: np.ndarray, gap: int) -> np.ndarray:
    """Values at other stamps, linearly; NaN where the neighbours are further apart than `gap`, or outside by more than a tenth."""
    found = np.interp(wanted, stamps, values)
    after = np.clip(np.searchsorted(stamps, wanted), 1, max(1, len(stamps) - 1))
    apart = stamps[np.minimum(after, len(stamps) - 1)] - stamps[after - 1]
    outside = np.maximum(stamps[0] - wanted, wanted - stamps[-1])
    found[(apart > gap) & ~np.isin(wanted, stamps) | (outside > gap // 10)] = np.nan
    return found


def _speeds_of_positions(stamps: np.ndarray, positions: np.ndarray, window: int) -> np.ndarray:
    """Speed at each position from those about `window` nanoseconds before and after it."""
    last = len(stamps) - 1
    before = np.searchsorted(stamps, stamps - window).clip(0, last)
    after = np.searchsorted(stamps, stamps + window).clip(0, last)
    seconds = (stamps[after] - stamps[before]) / 1e9
    return np.linalg.norm(positions[after] - positions[before], axis=1) / np.where(seconds > 0, seconds, np.nan)


def _speeds_of_fixes(stamps: np.ndarray, fixes: list[tuple[float, float]]) -> np.ndarray:
    latitude, longitude = np.radians(np.array(fixes)).T
    metres = _EARTH * np.stack([latitude, longitude * np.cos(latitude[0])], axis=1)
    return _speeds_of_positions(stamps, metres, 1_000_000_000)


# --------------------------------------------------------------------------------------------------------- second pass


class _Writer:
    """Writes the frames, and at the end the files that describe them."""

    def __init__(self, recording: Recording, sources: Sources, plan: _Plan, out: Path, longest_side: int):
        self._recording, self._sources, self._plan, self._out = recording, sources, plan, out
        height, width = sources.image.size
        scale = min(1.0, longest_side / max(height, width))
        self._size = round(height * scale), round(width * scale)
        sy, sx = self._size[0] / height, self._size[1] / width
        # Pixel centres are at whole numbers.
        reduce = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
        self._intrinsics = reduce @ sources.image.lens.matrix
        self._bits = {camera.topic.name: BitDepth() for camera in (sources.image, sources.right) if camera}
        self._written: set[int] = set()
        self._measured: set[int] = set()
        self._paired: set[int] = set()
        self._problems: dict[str, Counter[str]] = defaultdict(Counter)

    def run(self) -> None:
        sources, plan, out = self._sources, self._plan, self._out
        out.mkdir(parents=True, exist_ok=True)
        self._report({"complete": False, "recording": self._recording.path.name})
        mark_output(out, _FOLDERS)  # they are no clips of their own
        handlers: dict[str, tuple[dict[int, int], Any]] = {sources.image.topic.name: (plan.picture, self._write_frame)}
        for camera, numbers, handler in (
            (sources.right, plan.right, self._write_right),
            (sources.depth, plan.depth, self._write_depth),
        ):
            if camera is not None:
                handlers[camera.topic.name] = numbers, handler
        if sources.lidar is not None:
            handlers[sources.lidar.name] = plan.lidar, self._write_cloud
        numbers_seen: Counter[str] = Counter()
        for message in _progress(self._recording, set(handlers), "writing frames"):
            wanted, handler = handlers[message.topic]
            number = numbers_seen[message.topic]
            numbers_seen[message.topic] += 1
            if number not in wanted:
                continue
            try:
                handler(message, number, wanted[number])
            except (MessageError, DataError) as error:
                self._problems[message.topic][str(error)] += 1

    def _picture(self, message: Message, camera: Camera) -> np.ndarray:
        """The rectified picture of a message as BGR at the size of the frames."""
        read = read_compressed if camera.topic.type == COMPRESSED else read_image
        frame = read(message.raw, self._bits[message.topic])
        if frame.size != camera.size:
            (h, w), (height, width) = frame.size, camera.size
            raise DataError(f"{w}x{h} pixels, the first picture has {width}x{height}")
        rectified = camera.lens(frame.encoding.to_rgb(frame.pixels))
        if rectified.shape[:2] != self._size:
            rectified = cv2.resize(rectified, self._size[::-1], interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(rectified, cv2.COLOR_RGB2BGR)

    def _write_frame(self, message: Message, number: int, frame: int) -> None:
        _write_picture(self._out / f"{frame:06d}.jpg", self._picture(message, self._sources.image))
        self._written.add(frame)

    def _write_right(self, message: Message, number: int, frame: int) -> None:
        assert self._sources.right is not None
        (self._out / "right").mkdir(exist_ok=True)
        _write_picture(self._out / "right" / f"{frame:06d}.jpg", self._picture(message, self._sources.right))
        self._paired.add(frame)

    def _write_depth(self, message: Message, number: int, frame: int) -> None:
        camera = self._sources.depth
        assert camera is not None
        pixels, encoding = depth_pixels(self._recording.decode(message))
        if pixels.shape != camera.size:
            raise DataError(f"a depth image of {pixels.shape[1]}x{pixels.shape[0]} pixels among others")
        depth = camera.lens(depth_in_metres(pixels, encoding), cv2.INTER_NEAREST)
        to_camera = self._to_frame(camera.frame, self._plan.stamp(camera.topic, number), frame)
        rectified = np.eye(4)
        rectified[:3, :3] = camera.lens.rotation.T
        self._measure(
            register_depth(depth, camera.lens.matrix, to_camera @ rectified, self._intrinsics, self._size), frame
        )

    def _write_cloud(self, message: Message, number: int, frame: int) -> None:
        topic = self._sources.lidar
        if topic is None or frame in self._measured:  # a depth camera measures more pixels
            return
        decoded = self._recording.decode(message)
        points = cloud_points(decoded)
        to_camera = self._to_frame(frame_name(decoded.header.frame_id), self._plan.stamp(topic, number), frame)
        moved = points @ to_camera[:3, :3].T + to_camera[:3, 3]
        self._measure(project_cloud(moved, self._intrinsics, self._size), frame)

    def _to_frame(self, sensor: str, stamp: int, frame: int) -> np.ndarray:
        """Transform [4, 4] from a sensor at its stamp to the rectified camera at the stamp of a frame.

        The camera's motion between the two is compensated where it is known.

        Raises:
            DataError: /tf does not connect the sensor with the camera.
        """
        camera = self._sources.image
        to_camera = self._plan.transforms(camera.frame, np.array([stamp]), sensor)
        if to_camera is None or not np.isfinite(to_camera).all():
            raise DataError(f"/tf and /tf_static do not connect '{sensor}' with the camera's frame '{camera.frame}'")
        then, now = self._plan.camera_poses(np.array([stamp, self._plan.stamps[frame]]))
        motion = np.linalg.inv(now) @ then
        result = to_camera[0] if np.isnan(motion).any() else motion @ to_camera[0]
        rectified = np.eye(4)
        rectified[:3, :3] = camera.lens.rotation
        return rectified @ result

    def _measure(self, depth: np.ndarray, frame: int) -> None:
        if not depth.any():
            raise DataError("no measured point is inside the picture")
        (self._out / "measured").mkdir(exist_ok=True)
        write_depth(self._out / "measured" / f"{frame:06d}.png", depth)
        self._measured.add(frame)

    def finish(self) -> Extraction:
        """Number the frames without gaps and write the files that describe them."""
        plan, out, sources = self._plan, self._out, self._sources
        kept = sorted(self._written)
        if len(kept) < 3:
            problem = next(iter(self._problems[sources.image.topic.name]), "") or "; ".join(self._recording.notes)
            raise DataError(
                f"{self._recording.path}: {len(kept)} pictures of {sources.image.topic.name} can be used, need at least 3: "
                f"{problem}"
            )
        self._renumber(kept)
        stamps = plan.stamps[kept]
        seconds = (stamps - stamps[0]) / 1e9
        poses, speeds = self._poses(kept), plan.speeds[kept]
        measured, right = (len(numbers & set(kept)) for numbers in (self._measured, self._paired))
        (height, width), k = self._size, self._intrinsics
        stride = min(max(1, round(_STEP / float(np.median(np.diff(seconds))))), (len(kept) - 1) // 2)
        camera: dict[str, Any] = {
            **{
                key: round(float(k[place]), 4)
                for key, place in (("fx", (0, 0)), ("fy", (1, 1)), ("cx", (0, 2)), ("cy", (1, 2)))
            },
            **{"width": width, "height": height, "times": "times.txt", "stride": stride},
        }
        np.savetxt(out / "times.txt", seconds, fmt="%.9f")
        np.savetxt(out / "stamps.txt", stamps, fmt="%d")
        poses_known, speeds_known = (int(np.isfinite(v.reshape(len(kept), -1)).all(1).sum()) for v in (poses, speeds))
        if poses_known:
            np.savetxt(out / "poses.txt", poses[:, :3].reshape(-1, 12), fmt="%.9g")
            camera["poses"] = "poses.txt"
        if speeds_known:
            np.savetxt(out / "speed.txt", speeds, fmt="%.6g")
            camera["speed"] = "speed.txt"
        if measured:
            camera["depth"] = "measured"
        if right and sources.right:
            camera |= {"right": "right", "baseline": round(sources.right.baseline, 6)}
        result = self._summary(kept, float(seconds[-1]), poses_known, speeds_known, measured, right)
        # Last: a folder without it is no clip.
        write_atomically(out / "camera.json", lambda part: Path(part).write_text(json.dumps(camera, indent=1) + "\n"))
        self._report({"complete": True, **{key: value for key, value in asdict(result).items() if key != "folder"}})
        return result

    def _renumber(self, kept: list[int]) -> None:
        for folder, suffix, numbers in (
            ("", "jpg", self._written),
            ("measured", "png", self._measured),
            ("right", "jpg", self._paired),
        ):
            for number in sorted(numbers - set(kept)):
                (self._out / folder / f"{number:06d}.{suffix}").unlink()
            for place, number in enumerate(kept):
                if number in numbers and place != number:
                    source = self._out / folder / f"{number:06d}.{suffix}"
                    source.rename(source.with_name(f"{place:06d}.{suffix}"))

    def _poses(self, kept: list[int]) -> np.ndarray:
        """Poses of the rectified camera. The origin is its first known position, so that a file of nine digits is exact."""
        turn = np.eye(4)
        turn[:3, :3] = self._sources.image.lens.rotation.T
        poses = self._plan.poses[kept] @ turn
        known = np.flatnonzero(np.isfinite(poses).all((1, 2)))
        if len(known):
            poses[:, :3, 3] -= poses[known[0], :3, 3].copy()
        return poses

    def _summary(
        self, kept: list[int], seconds: float, poses: int, speeds: int, measured: int, right: int
    ) -> Extraction:
        sources, plan, recording = self._sources, self._plan, self._recording
        image = sources.image
        lens = "no rectification needed" if not image.lens.needed else "rectified here"
        words = {"image": image.topic.name, "camera": f"{image.info}, {lens}", **plan.sources}
        depth_sources = [camera.topic.name for camera in (sources.depth,) if camera]
        depth_sources += [sources.lidar.name] if sources.lidar else []
        if measured:
            words["depth"] = ", ".join(depth_sources)
        if right and sources.right:
            words["right"] = sources.right.topic.name
        notes = [*recording.notes, *sources.notes, *plan.notes]
        if plan.dropped:
            notes.append(
                f"{plan.dropped} of {image.topic.messages} pictures are left out: their stamps jump back or far ahead"
            )
        for name, problems in self._problems.items():
            reason = problems.most_common(1)[0][0]
            notes.append(f"{problems.total()} messages of {name} are left out: {reason}")
        missing = sources.missing | plan.missing
        if 0 < poses < len(kept):
            notes.append(
                f"the pose of {len(kept) - poses} of {len(kept)} frames is not known: gaps in {plan.sources['poses']}"
            )
        elif not poses and "odometry" not in missing and sources.odometry:
            missing["odometry"] = (
                f"no pose of {plan.sources.get('poses', sources.odometry.name)} is near a picture's stamp: the motion must be "
                "found from the pictures"
            )
        if depth_sources and not measured:
            missing["depth"] = f"{', '.join(depth_sources)}: no depth could be brought into the pictures"
        if not speeds and not poses and "speed" not in missing:
            missing["speed"] = "no speed at the stamps of the pictures: the scale of the motion is not known"
        if image.lens.inside < 0.99:
            notes.append(
                f"{100 - 100 * image.lens.inside:.0f} % of the rectified pictures are black, because P shows more than the lens"
            )
        return Extraction(
            self._out,
            recording.path.name,
            len(kept),
            seconds,
            poses,
            speeds,
            measured,
            right,
            words,
            tuple(dict.fromkeys(notes)),
            tuple(missing.values()),
        )

    def _report(self, values: dict[str, Any]) -> None:
        text = json.dumps({"written_by": _WRITER, **values}, indent=1) + "\n"
        write_atomically(self._out / REPORT, lambda part: Path(part).write_text(text))


def _write_picture(path: Path, bgr: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())


# -------------------------------------------------------------------------------------------------------------- folder


def _check_folder(out: Path, overwrite: bool) -> None:
    """Check that `out` may be written, and remove what an earlier extraction left there.

    Raises:
        DataError: it has files that were not written here, or a complete clip and `overwrite` is False.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: exists and is not a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        ours, complete = report["written_by"] == _WRITER, bool(report["complete"])
    except (OSError, ValueError, LookupError, TypeError):
        ours, complete = False, False
    if not ours:
        raise DataError(f"{out}: has files that fadepth extract did not write; name another folder")
    if complete and not overwrite:
        raise DataError(f"{out}: has a clip already; --overwrite replaces it, another folder keeps it")
    for name in _FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for path in [*out.glob("[0-9]" * 6 + ".jpg"), *(out / name for name in _FILES)]:
        path.unlink(missing_ok=True)
