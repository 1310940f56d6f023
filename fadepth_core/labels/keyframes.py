"""Point tracks through a whole clip, as input of structure from motion, and the choice of its keyframes.

Points are tracked through every frame, so that long and exact tracks are found without matching descriptors. Only
frames with enough parallax between them, the keyframes, are reconstructed (`labels.structure`). The others are then
located by the points that they see.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
from tqdm import tqdm

from fadepth_core.common.errors import DataError
from fadepth_core.common.files import write_atomically
from fadepth_core.data.video import Clip
from fadepth_core.labels.tracks import MIN_TRACKS, Tracks, corners, parallax, step

log = logging.getLogger(__name__)

#: Larger frames are reduced to this longest side, pixels.
_LONGEST_SIDE = 832
#: A frame becomes a keyframe if since the last one its parallax or its flow exceeds these shares of the image's width, or
#: fewer than this share of the tracks are left.
_PARALLAX, _FLOW, _TRACKED = 0.015, 0.15, 0.6
#: New corners keep this distance from tracked points, as a share of the image's width.
_FREE = 0.015
#: Locating a frame: points, inliers as a share of them, and their largest error in pixels at a width of 416.
_MIN_POINTS, _MIN_INLIERS, _MAX_ERROR = 12, 0.5, 2.0


@dataclass(frozen=True)
class Observations:
    """Tracked points of a clip: M observations of points in frames.

    Attributes:
        frames: [M] frame number of each observation, ascending.
        tracks: [M] number of the observed point.
        pixels: [M, 2] float32 where it is seen (u, v), pixel centres at whole numbers.
        keyframes: frame numbers, ascending.
        intrinsics: K [3, 3] for `pixels`.
        size: (height, width) of the frames in which the points were tracked.
        breaks: frames in which no track continues, e.g. after a cut of the video.
    """

    frames: np.ndarray
    tracks: np.ndarray
    pixels: np.ndarray
    keyframes: tuple[int, ...]
    intrinsics: np.ndarray
    size: tuple[int, int]
    breaks: tuple[int, ...]

    def between(self, first: int, last: int) -> Observations:
        """Those in frames `first` to `last`, both included."""
        start, end = np.searchsorted(self.frames, [first, last + 1])
        return Observations(
            self.frames[start:end],
            self.tracks[start:end],
            self.pixels[start:end],
            tuple(n for n in self.keyframes if first <= n <= last),
            self.intrinsics,
            self.size,
            tuple(n for n in self.breaks if first <= n <= last),
        )

    def of(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Points [T] and pixels [T, 2] of a frame."""
        start, end = np.searchsorted(self.frames, [frame, frame + 1])
        return self.tracks[start:end], self.pixels[start:end]


def load_or_observe(clip: Clip, numbers: Sequence[int], path: Path) -> Observations:
    """`observe`, with the result kept in a file. An unreadable file is replaced.

    Raises:
        DataError: a frame cannot be read, or the file cannot be written.
    """
    try:
        with np.load(path) as file:
            lists = {name: file[name].tolist() for name in ("keyframes", "size", "breaks")}
            return Observations(
                file["frames"],
                file["tracks"],
                file["pixels"],
                tuple(lists["keyframes"]),
                file["intrinsics"],
                (lists["size"][0], lists["size"][1]),
                tuple(lists["breaks"]),
            )
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        log.warning("%s: tracked again, because the file cannot be read: %s", path, error)
    observations = observe(clip, numbers)

    def write(part: str) -> None:
        with open(part, "wb") as stream:  # given a path, numpy would append a suffix
            np.savez(stream, **vars(observations))

    try:
        write_atomically(path, write)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    return observations


def observe(clip: Clip, numbers: Sequence[int]) -> Observations:
    """Track points through frames of a clip; `numbers` ascend."""
    size, intrinsics = _reduced(clip.source.stored_size, clip.stored_intrinsics)
    frames, tracks, pixels = [], [], []
    keyframes: list[int] = []
    breaks: list[int] = []
    points, names, since = np.zeros((0, 2), np.float32), np.zeros(0, int), np.zeros((0, 2), np.float32)
    count, started, previous = 0, 0, None
    images = tqdm(clip.stored_frames(numbers), desc=f"tracking {clip.name}", unit="frame", total=len(numbers))
    for number, image in images:
        grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size[::-1], interpolation=cv2.INTER_AREA)
        if previous is not None:
            points, kept = step(previous, grey, points)
            points, names, since = np.ascontiguousarray(points[kept]), names[kept], since[kept]
            if len(points) < MIN_TRACKS:
                breaks.append(number)
        previous = grey
        if not keyframes or _is_keyframe(Tracks((0, 1), np.stack([since, points]), started), size[1], intrinsics):
            added = corners(grey, _free(size, points))
            points = np.concatenate([points, added])
            names = np.concatenate([names, np.arange(count, count + len(added))])
            count, started, since = count + len(added), len(points), points
            keyframes.append(number)
        frames.append(np.full(len(names), number))
        tracks.append(names)
        pixels.append(points)
    return Observations(
        np.concatenate(frames), np.concatenate(tracks), np.concatenate(pixels), tuple(keyframes), intrinsics, size,
        tuple(breaks),
    )  # fmt: skip


def located(
    observations: Observations, number: int, points: dict[int, np.ndarray], guess: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """Camera-to-world pose [4, 4] of a frame from the points that it sees, and its median error in pixels.

    Args:
        observations: where the points are seen.
        number: the frame.
        points: coordinates [3] of points by their number.
        guess: approximate camera-to-world pose [4, 4].

    Returns:
        None if too few points are known or agree.
    """
    names, pixels = observations.of(number)
    known = np.array([name in points for name in names], bool)
    if known.sum() < _MIN_POINTS:
        return None
    world = np.array([points[name] for name in names[known]])
    seen = pixels[known].astype(np.float64)
    limit = _MAX_ERROR * observations.size[1] / 416
    motion = np.linalg.inv(guess)
    vector, shift = cv2.Rodrigues(motion[:3, :3])[0], motion[:3, 3:].copy()
    inliers = np.ones(len(world), bool)
    errors = np.zeros(len(world))
    for _ in range(3):
        if inliers.sum() < _MIN_POINTS:
            return None
        vector, shift = cv2.solvePnPRefineLM(
            world[inliers], seen[inliers], observations.intrinsics, None, vector, shift
        )
        projected = cv2.projectPoints(world, vector, shift, observations.intrinsics, None)[0].reshape(-1, 2)
        errors = np.linalg.norm(projected - seen, axis=1)
        inliers = errors < max(limit, 1.5 * float(np.median(errors)))
    inliers = errors < limit
    if inliers.mean() < _MIN_INLIERS:
        return None
    pose = np.eye(4)
    rotation = cv2.Rodrigues(vector)[0]
    pose[:3, :3], pose[:3, 3] = rotation.T, -(rotation.T @ shift).ravel()
    return pose, float(np.median(errors[inliers]))


def _is_keyframe(tracks: Tracks, width: int, intrinsics: np.ndarray) -> bool:
    """Whether a frame, the second of the tracks, is far enough from the last keyframe, the first."""
    if tracks.points.shape[1] < max(MIN_TRACKS, _TRACKED * tracks.started) or tracks.flow > _FLOW * width:
        return True
    return tracks.flow > _PARALLAX * width and parallax(tracks, intrinsics) > _PARALLAX * width


def _free(size: tuple[int, int], points: np.ndarray) -> np.ndarray:
    """Mask of the pixels that are far from all points, uint8 [H, W]."""
    mask = np.full(size, 255, np.uint8)
    for u, v in points:
        cv2.circle(mask, (round(float(u)), round(float(v))), max(3, round(_FREE * size[1])), 0, -1)
    return mask


def _reduced(size: tuple[int, int], intrinsics: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """Size (height, width) and K of frames reduced to `_LONGEST_SIDE`."""
    factor = min(1.0, _LONGEST_SIDE / max(size))
    reduced = (round(factor * size[0]), round(factor * size[1]))
    sy, sx = reduced[0] / size[0], reduced[1] / size[1]
    return reduced, np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]]) @ intrinsics
