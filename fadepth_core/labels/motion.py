"""Camera poses of a clip for stereo labels: from the recording's odometry, or by structure from motion.

clip -> point tracks -> check of the odometry -> odometry                    -> Motion -> labels.stereo
                                              or labels.structure + labels.scale
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from tqdm import tqdm

from fadepth_core.common.errors import DataError
from fadepth_core.data.video import Clip
from fadepth_core.labels.tracks import AGREES, MIN_TRACKS, Tracks, fitted_poses, follow, parallax, reprojection_errors

Method = Literal["auto", "odometry", "structure"]
#: Depth of a frame by other means: frame number -> metres [h, w] at the clip's size for training, 0 where unknown.
ScaleReference = Callable[[int], np.ndarray]

#: Number of places of a recording at which the odometry is compared with the images.
_PLACES = 40
#: At each place, tracks are followed until their parallax is this share of the image's width, or over so many frames.
_PARALLAX, _MOST_FRAMES = 0.02, 30
#: With less image motion the camera stands, and with less parallax it only turns, pixels.
_STANDS, _TURNS = 3.0, 1.5
#: See `check_odometry`.
_BAD_ERROR, _BAD_RATIO, _BAD_SHARE = 1.0, 2.0, 0.2
#: A place at which fewer tracks agree with one rigid motion is filled with moving objects.
_RIGID_SHARE = 0.5
#: Shortest baseline of stereo, in units of the nearest depth (the smallest of `labels.stereo`), and largest rotation in
#: degrees between two frames that see the same.
_BASELINE, _MAX_ROTATION = 0.3, 45.0


@dataclass(frozen=True)
class Motion:
    """Poses of a clip.

    Attributes:
        poses: camera-to-world [N, 4, 4] float64 of each frame of the clip, NaN where unknown.
        source: "odometry" or "structure from motion".
        scale: what the lengths are known from: "odometry", "speed", "camera height", "reference depth", or "unknown";
            then lengths are in an arbitrary unit.
        notes: sentences for the report.
        figures: measured values by name, e.g. "odometry error px".
    """

    poses: np.ndarray
    source: str
    scale: str
    notes: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OdometryCheck:
    """How well poses agree with the images, see `check_odometry`.

    Attributes:
        places: number of places at which the camera moves and the poses could be compared.
        error: median over the places of the reprojection error with the poses, pixels at the size for training.
        image_error: the same with the motion that fits the images best.
        bad: share of the places at which the poses are wrong.
        frames: the first frame of each place, and whether the poses are wrong there.
    """

    places: int
    error: float
    image_error: float
    bad: float
    frames: tuple[tuple[int, bool], ...]

    @property
    def good(self) -> bool:
        return self.places > 0 and self.bad <= _BAD_SHARE


@dataclass(frozen=True)
class Place:
    """A short stretch of a clip at which the camera moves.

    Attributes:
        tracks: in its first, middle and last frame.
        error: median reprojection error of the best rigid motion, pixels; infinite if none was found.
        rigid: share of the tracks that agree with it.
        parallax: median image motion that no rotation explains, pixels.
    """

    tracks: Tracks
    error: float
    rigid: float
    parallax: float


def estimate_motion(
    clip: Clip,
    work: Path,
    method: Method = "auto",
    speed: float | None = None,
    camera_height: float | None = None,
    frames: range | None = None,
    scale_reference: ScaleReference | None = None,
) -> Motion:
    """Poses of the frames of a clip.

    "auto" takes the clip's poses if they agree with the images (`check_odometry`), else structure from motion.

    Args:
        clip: a clip with or without poses.
        work: folder for intermediate results; a second run with the same clip continues there.
        method: "odometry" and "structure" skip the decision.
        speed: metres per second, for structure from motion; replaces the clip's speeds.
        camera_height: height of the camera above the ground, metres, for structure from motion.
        frames: frames that are used, the others have no pose; None: all.
        scale_reference: depth of frames by other means, for structure from motion.

    Raises:
        DataError: the camera never moves, nothing in the images is rigid, the clip has no poses (method "odometry"), or
            structure from motion failed.
    """
    numbers = range(clip.count) if frames is None else frames
    if not numbers or numbers[0] < 0 or numbers[-1] >= clip.count:
        raise DataError(f"{clip.path}: has frames 0 to {clip.count - 1}, asked for the poses of {numbers}")
    if method == "odometry" and clip.poses is None:
        raise DataError(f"{clip.camera}: has no poses")
    places = find_places(clip, numbers)
    if method != "structure" and clip.poses is not None:
        check = check_odometry(places, clip.poses, clip.intrinsics)
        if check.good or method == "odometry":
            return _from_odometry(clip, numbers, check)
    raise DataError(f"{clip.path}: structure from motion is not available yet")


def find_places(clip: Clip, frames: Sequence[int]) -> list[Place]:
    """Places all over the recording at which the camera moves.

    Raises:
        DataError: the camera never moves, only turns, or moving objects fill the images.
    """
    starts = sorted({frames[i] for i in np.linspace(0, max(0, len(frames) - 3), _PLACES).astype(int)})
    places, nothing, turning = [], 0, 0
    for start in tqdm(starts, desc=f"checking motion of {clip.name}", unit="place"):
        following = range(start, min(frames[-1] + 1, start + _MOST_FRAMES))
        tracks = follow(lambda n: grey_frame(clip, n), following, _has_parallax(clip))
        if len(tracks.frames) < 3 or tracks.points.shape[1] < MIN_TRACKS:
            nothing += 1
            continue
        if tracks.flow < _STANDS:
            continue
        tracks = tracks.at((0, len(tracks.frames) // 2, -1))
        moved = parallax(tracks, clip.intrinsics)
        if moved < _TURNS:
            turning += 1
            continue
        poses = fitted_poses(tracks, clip.intrinsics)
        errors = np.array([np.inf]) if poses is None else reprojection_errors(tracks, poses, clip.intrinsics)
        places.append(Place(tracks, float(np.median(errors)), float((errors < AGREES).mean()), moved))
    if not places:
        if nothing > len(starts) / 2:
            raise DataError(f"{clip.path}: points can be tracked nowhere; the images are too dark, blurred or uniform")
        raise DataError(f"{clip.path}: the camera {'only turns' if turning else 'never moves'}")
    if np.median([place.rigid for place in places]) < _RIGID_SHARE:
        share = np.median([place.rigid for place in places])
        raise DataError(
            f"{clip.path}: only {share:.0%} of the tracked points agree with one rigid motion; moving objects fill the "
            "images, or the intrinsics are wrong"
        )
    return places


def check_odometry(places: Sequence[Place], poses: np.ndarray, intrinsics: np.ndarray) -> OdometryCheck:
    """Compare poses with the images.

    At each place, points tracked over a few frames (until their parallax is 2 % of the image's width) are triangulated
    with the poses of three frames. The poses are wrong there if the median reprojection error is above 1 pixel (at 416x128) and above twice the
    error of the best rigid motion; the second condition excludes places where the scene moves, not the odometry. The
    poses are good if they are wrong at no more than 20 % of the places.

    Share of wrong places, measured on KITTI odometry 00 (1018 frames) and on 373 frames of a HoloLens: true poses 0 %
    and 10 %; yaw noise of 0.3 degrees per frame 40 % and 77 %; axes of the vehicle instead of the camera 100 % and
    100 %; a time offset of 0.1 s 53 % and 100 %; camera pitched by 3 degrees 62 % and 55 %; a camera that is 1.6 m away
    from its pose 10 % and 100 %.

    Args:
        places: from `find_places`.
        poses: camera-to-world [N, 4, 4] of the clip's frames, metres; NaN where unknown.
        intrinsics: K [3, 3] at the size for training.
    """
    errors, best, frames = [], [], []
    for place in places:
        known = poses[list(place.tracks.frames)]
        if not np.isfinite(known).all() or place.rigid < _RIGID_SHARE:
            continue
        error = float(np.median(reprojection_errors(place.tracks, known, intrinsics)))
        errors.append(error)
        best.append(place.error)
        frames.append((place.tracks.frames[0], error > _BAD_ERROR and error > _BAD_RATIO * place.error))
    if not errors:
        return OdometryCheck(0, np.inf, np.inf, 1.0, ())
    return OdometryCheck(
        len(errors),
        float(np.median(errors)),
        float(np.median(best)),
        float(np.mean([bad for _, bad in frames])),
        tuple(frames),
    )


def usable_frames(motion: Motion, nearest: float) -> np.ndarray:
    """Numbers of the frames whose depth stereo can measure.

    A frame is usable if, before or after it, the nearest frame at a distance of 0.3 times `nearest` looks in the same
    direction (to 45 degrees). This leaves out standing stretches and rotation in place.

    Args:
        motion: poses.
        nearest: depth of the nearest surfaces, in the unit of the poses.
    """
    poses = motion.poses
    known = np.flatnonzero(np.isfinite(poses).all((1, 2)))
    usable = []
    for position, number in enumerate(known):
        for side in (known[position + 1 :], known[:position][::-1]):
            distances = np.linalg.norm(poses[side, :3, 3] - poses[number, :3, 3], axis=1)
            away = np.flatnonzero(distances >= _BASELINE * nearest)
            if len(away) and _angle(poses[number], poses[side[away[0]]]) < _MAX_ROTATION:
                usable.append(int(number))
                break
    return np.array(usable, int)


def shown_frames(numbers: Sequence[int]) -> str:
    """Frame numbers as text, with runs shortened: "3, 10-25"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def grey_frame(clip: Clip, number: int) -> np.ndarray:
    """A frame at the size for training, uint8 [H, W]."""
    return cv2.cvtColor(np.ascontiguousarray(clip.source.frame(number)), cv2.COLOR_RGB2GRAY)


def _from_odometry(clip: Clip, numbers: Sequence[int], check: OdometryCheck) -> Motion:
    assert clip.poses is not None
    poses = np.full((clip.count, 4, 4), np.nan)
    poses[list(numbers)] = clip.poses[list(numbers)]
    figures = {
        "odometry error px": check.error,
        "image error px": check.image_error,
        "wrong places": check.bad,
        "places": float(check.places),
    }
    if not check.places:
        note = "The odometry could not be compared with the images."
    else:
        note = (
            f"The odometry agrees with the images to {check.error:.2f} pixels (best possible {check.image_error:.2f}); "
            f"it is wrong at {check.bad:.0%} of {check.places} places."
        )
    return Motion(poses, "odometry", "odometry", (note,), figures)


def _has_parallax(clip: Clip) -> Callable[[Tracks], bool]:
    least = _PARALLAX * clip.size[1]
    # The flow is at least the parallax, up to noise, and faster to compute.
    return lambda tracks: len(tracks.frames) > 2 and tracks.flow >= least and parallax(tracks, clip.intrinsics) >= least


def _angle(pose: np.ndarray, other: np.ndarray) -> float:
    """Angle between two poses, degrees."""
    cosine = (np.trace(pose[:3, :3].T @ other[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
