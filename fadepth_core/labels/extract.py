"""From a recording to a clip: rectified pictures, camera, times, poses, speed and measured depth (format: `data.video`).

    choose topics -> first pass: stamps, odometry, tf, speed -> choose pictures, interpolate the motion
                  -> second pass: rectified pictures, measured depth -> files

One message at a time is in memory.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.files import write_atomically
from fadepth_core.common.folders import mark_output
from fadepth_core.data.bag import Message, Recording
from fadepth_core.data.bag_depth import cloud_points, depth_pixels
from fadepth_core.data.bag_timeline import Timeline, progress
from fadepth_core.data.bag_topics import COMPRESSED, Camera, Choice, Sources, choose_topics
from fadepth_core.data.images import write_depth
from fadepth_core.data.transforms import frame_name
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
#: Depth and pictures further apart count as taken at different times, nanoseconds.
_SAME_TIME = 2_000_000
#: Frames compared in training are about this far apart: a clip's stride, seconds.
_STEP = 0.1


@dataclass(frozen=True)
class Extraction:
    """What was written.

    Attributes:
        folder: the clip.
        recording: name of the recording.
        frames, seconds: number of frames, and from the first to the last.
        left_out: number of pictures that could not be used.
        poses, speeds, measured, right: number of frames for which each is known.
        sources: what each was read from, in words.
        notes: what was left out or assumed, one sentence each.
        missing: what was not found, one sentence with its consequence each.
    """

    folder: Path
    recording: str
    frames: int
    left_out: int
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
    timeline = Timeline(recording, sources, choice or Choice(), every)
    writer = _Writer(recording, sources, timeline, out, longest_side)
    writer.run()
    return writer.finish()


# ------------------------------------------------------------------------------------------------------------- frames


class _Writer:
    """Writes the frames, and at the end the files that describe them."""

    def __init__(self, recording: Recording, sources: Sources, timeline: Timeline, out: Path, longest_side: int):
        self._recording, self._sources, self._timeline, self._out = recording, sources, timeline, out
        height, width = sources.image.size
        scale = min(1.0, longest_side / max(height, width))
        self._size = round(height * scale), round(width * scale)
        sy, sx = self._size[0] / height, self._size[1] / width
        # Pixel centres are at whole numbers.
        reduce = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
        self._intrinsics = reduce @ sources.image.lens.matrix
        self._bits = {camera.topic.name: BitDepth() for camera in (sources.image, sources.right) if camera}
        self._uncompensated = 0  # longest time between depth and its picture without known motion, nanoseconds
        self._written: set[int] = set()
        self._measured: set[int] = set()
        self._paired: set[int] = set()
        self._problems: dict[str, Counter[str]] = defaultdict(Counter)

    def run(self) -> None:
        sources, timeline, out = self._sources, self._timeline, self._out
        out.mkdir(parents=True, exist_ok=True)
        self._report({"complete": False, "recording": self._recording.path.name})
        _clear_folder(out)
        mark_output(out, _FOLDERS)  # they are no clips of their own
        handlers: dict[str, tuple[dict[int, int], Any]] = {
            sources.image.topic.name: (timeline.picture, self._write_frame)
        }
        for camera, numbers, handler in (
            (sources.right, timeline.right, self._write_right),
            (sources.depth, timeline.depth, self._write_depth),
        ):
            if camera is not None:
                handlers[camera.topic.name] = numbers, handler
        if sources.lidar is not None:
            handlers[sources.lidar.name] = timeline.lidar, self._write_cloud
        numbers_seen: Counter[str] = Counter()
        for message in progress(self._recording, set(handlers), "writing frames"):
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
        to_camera = self._to_frame(camera.frame, self._timeline.stamp(camera.topic, number), frame)
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
        to_camera = self._to_frame(frame_name(decoded.header.frame_id), self._timeline.stamp(topic, number), frame)
        moved = points @ to_camera[:3, :3].T + to_camera[:3, 3]
        self._measure(project_cloud(moved, self._intrinsics, self._size), frame)

    def _to_frame(self, sensor: str, stamp: int, frame: int) -> np.ndarray:
        """Transform [4, 4] from a sensor at its stamp to the rectified camera at the stamp of a frame.

        The camera's motion between the two is compensated where it is known.

        Raises:
            DataError: /tf does not connect the sensor with the camera.
        """
        camera = self._sources.image
        to_camera = self._timeline.transforms(camera.frame, np.array([stamp]), sensor)
        if to_camera is None or not np.isfinite(to_camera).all():
            raise DataError(f"/tf and /tf_static do not connect '{sensor}' with the camera's frame '{camera.frame}'")
        then, now = self._timeline.camera_poses(np.array([stamp, self._timeline.stamps[frame]]))
        motion = np.linalg.inv(now) @ then
        if np.isnan(motion).any():
            motion = np.eye(4)
            self._uncompensated = max(self._uncompensated, abs(int(self._timeline.stamps[frame]) - stamp))
        rectified = np.eye(4)
        rectified[:3, :3] = camera.lens.rotation
        return rectified @ motion @ to_camera[0]

    def _measure(self, depth: np.ndarray, frame: int) -> None:
        if not depth.any():
            raise DataError("no measured point is inside the picture")
        (self._out / "measured").mkdir(exist_ok=True)
        write_depth(self._out / "measured" / f"{frame:06d}.png", depth)
        self._measured.add(frame)

    def finish(self) -> Extraction:
        """Number the frames without gaps and write the files that describe them."""
        timeline, out, sources = self._timeline, self._out, self._sources
        kept = sorted(self._written)
        if len(kept) < 3:
            problem = next(iter(self._problems[sources.image.topic.name]), "") or "; ".join(self._recording.notes)
            raise DataError(
                f"{self._recording.path}: {len(kept)} pictures of {sources.image.topic.name} can be used, need at least 3: "
                f"{problem}"
            )
        self._renumber(kept)
        stamps = timeline.stamps[kept]
        seconds = (stamps - stamps[0]) / 1e9
        poses, speeds = self._poses(kept), timeline.speeds[kept]
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
        poses = self._timeline.poses[kept] @ turn
        known = np.flatnonzero(np.isfinite(poses).all((1, 2)))
        if len(known):
            poses[:, :3, 3] -= poses[known[0], :3, 3].copy()
        return poses

    def _summary(
        self, kept: list[int], seconds: float, poses: int, speeds: int, measured: int, right: int
    ) -> Extraction:
        sources, timeline, recording = self._sources, self._timeline, self._recording
        image = sources.image
        lens = "no rectification needed" if not image.lens.needed else "rectified here"
        words = {"image": image.topic.name, "camera": f"{image.info}, {lens}", **timeline.sources}
        depth_sources = [camera.topic.name for camera in (sources.depth,) if camera]
        depth_sources += [sources.lidar.name] if sources.lidar else []
        if measured:
            words["depth"] = ", ".join(depth_sources)
        if right and sources.right:
            words["right"] = sources.right.topic.name
        notes = [*recording.notes, *sources.notes, *timeline.notes]
        if timeline.dropped:
            notes.append(
                f"{timeline.dropped} of {image.topic.messages} pictures are left out: their stamps jump back or far ahead"
            )
        for name, problems in self._problems.items():
            reason = problems.most_common(1)[0][0]
            notes.append(f"{problems.total()} messages of {name} are left out: {reason}")
        if measured and self._uncompensated > _SAME_TIME:
            notes.append(
                f"depth was measured up to {self._uncompensated / 1e6:.0f} ms before or after its picture, and the motion "
                "between them is not known"
            )
        missing = sources.missing | timeline.missing
        if 0 < poses < len(kept):
            notes.append(
                f"the pose of {len(kept) - poses} of {len(kept)} frames is not known: gaps in {timeline.sources['poses']}"
            )
        elif not poses and "odometry" not in missing and sources.odometry:
            missing["odometry"] = (
                f"no pose of {timeline.sources.get('poses', sources.odometry.name)} is near a picture's stamp: the motion must be "
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
            timeline.dropped + len(timeline.stamps) - len(kept),
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
    """Check that `out` may be written.

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


def _clear_folder(out: Path) -> None:
    """Remove what an earlier extraction wrote, and nothing else."""
    for name in _FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for path in [*out.glob("[0-9]" * 6 + ".jpg"), *(out / name for name in _FILES)]:
        path.unlink(missing_ok=True)
