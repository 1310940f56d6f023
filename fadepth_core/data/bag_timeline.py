"""Time and motion of a recording: which of its messages become frames, and where the camera is at any time.

The messages are read once: of pictures and scans only the stamps, of odometry, tf and speed all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from fadepth_core.common.errors import DataError
from fadepth_core.data.bag import Message, Recording, Topic, stamp_of
from fadepth_core.data.bag_topics import FIX, ODOMETRY, TF, TF_STATIC_TOPIC, Choice, Sources
from fadepth_core.data.transforms import Track, TransformTree, frame_name, matrix

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
    for message in progress(recording, pictures | clouds | motion | transforms, "reading stamps and motion"):
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


def progress(recording: Recording, names: set[str], text: str) -> Iterator[Message]:
    """The messages of some topics, with a progress bar."""
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


class Timeline:
    """Which messages of a recording become which frames, and the camera's motion at any time.

    Args:
        recording: is read once.
        sources: the topics that are used.
        choice: the topics that the user named: their odometry is not replaced by another.
        every: take every N-th picture.

    Attributes:
        stamps: of the frames, increasing.
        picture: for each message of the image's topic, by its number, the frame that it becomes.
        right, depth, lidar: the same for the messages of the other sensors.
        notes: what was assumed or left out.
        missing: additions to `Sources.missing`.
        sources: where the motion comes from, in words.
        dropped: number of pictures left out, because their stamps jump.
        poses: of the camera (not rectified) at the frames' stamps, [N, 4, 4], NaN where unknown.
        speeds: metres per second [N], NaN where unknown.

    Raises:
        DataError: fewer than three pictures can be used.
    """

    def __init__(self, recording: Recording, sources: Sources, choice: Choice, every: int):
        found = _first_pass(recording, sources)
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
        self._tree_shift = self._shift("/tf", found.transforms)
        self._motion = self._find_motion()
        self.poses = self.camera_poses(self.stamps)
        self.speeds = self._speeds()
        # Half a frame's period. Where the motion is known and compensated, the frames left out by `every` count.
        periods = (
            np.diff(np.array(image.stamps, np.int64)[kept]) if np.isnan(self.poses).all() else np.diff(self.stamps)
        )
        half = int(np.median(periods)) // 2
        self.right = self._nearest(sources.right.topic if sources.right else None, _PAIR_TOLERANCE)
        self.depth = self._nearest(sources.depth.topic if sources.depth else None, half)
        self.lidar = self._nearest(sources.lidar, half)

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
