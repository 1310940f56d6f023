"""Camera poses of a clip for stereo labels: from the recording's odometry, or by structure from motion.

clip -> point tracks -> check of the odometry -> odometry                    -> Motion -> labels.stereo
                                              or labels.structure + labels.scale
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from tqdm import tqdm

from fadepth_core.common.errors import DataError
from fadepth_core.data.video import Clip
from fadepth_core.labels.chain import Chain, completed, joined
from fadepth_core.labels.keyframes import Observations, load_or_observe
from fadepth_core.labels.scale import (
    FRAME_WINDOW,
    PATH_WINDOW,
    depth_factor,
    ground_height,
    is_constant,
    path_factors,
    rescaled,
    smooth_factors,
    step_lengths,
)
from fadepth_core.labels.structure import TRACKS, VERSION, reconstruct, write_tracks
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
#: Keyframes in a piece of a trajectory, and how many of them it shares with the next. A piece is mapped at once, and the
#: time for that grows faster than its length.
_PIECE, _SHARED = 100, 12
#: Median depth of the points when the scale is unknown.
_UNKNOWN_DEPTH = 10.0
#: Frames that are compared with a reference depth.
_REFERENCES = 60
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
    for value, what in ((speed, "speed"), (camera_height, "camera height")):
        if value is not None and not 0 < value < np.inf:
            raise DataError(f"the {what} must be positive, got {value:g}")
    if method == "odometry" and clip.poses is None:
        raise DataError(f"{clip.camera}: has no poses")
    places = find_places(clip, numbers)
    if method != "structure" and clip.poses is not None:
        check = check_odometry(places, clip.poses, clip.intrinsics)
        if check.good or method == "odometry":
            return _from_odometry(clip, numbers, check)
        rejected: tuple[str, ...] = (f"The odometry was not used. {_described(check)}",)
        figures = _figures(check)
    else:
        rejected, figures = (), {}
    observations, chain, notes = _structure(clip, work, numbers)
    scale = _Scale(clip, observations, chain, speed, camera_height, scale_reference)
    return _from_structure(clip, observations, chain, scale, rejected + notes, figures)


def find_places(clip: Clip, frames: Sequence[int]) -> list[Place]:
    """Places all over the recording at which the camera moves.

    Raises:
        DataError: the camera never moves, only turns, or moving objects fill the images.
    """
    count = max(1, min(_PLACES, len(frames) // 3))
    starts = sorted({frames[i] for i in np.linspace(0, max(0, len(frames) - 3), count).astype(int)})
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
            raise DataError(
                f"{clip.path}: points can be tracked nowhere; the images are too dark, blurred or uniform, or full of moving objects"
            )
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
    with the poses of three frames. The poses are wrong there if the median reprojection error is above 1 pixel at the
    size for training and above twice the error of the best rigid motion; the second condition excludes places where the
    scene moves, not the odometry. The poses are good if they are wrong at no more than 20 % of the places.

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
    note = _described(check)
    return Motion(poses, "odometry", "odometry", (note,), _figures(check))


def _described(check: OdometryCheck) -> str:
    if not check.places:
        return "The odometry could not be compared with the images: it is unknown wherever the camera moves."
    return (
        f"The odometry fits the images to {check.error:.2f} pixels (best possible {check.image_error:.2f}); it is "
        f"wrong at {check.bad:.0%} of {check.places} places."
    )


def _figures(check: OdometryCheck) -> dict[str, float]:
    if not check.places:
        return {"places": 0.0}
    return {
        "odometry error px": check.error,
        "image error px": check.image_error,
        "wrong places": check.bad,
        "places": float(check.places),
    }


def _structure(clip: Clip, work: Path, numbers: Sequence[int]) -> tuple[Observations, Chain, tuple[str, ...]]:
    """The largest trajectory that structure from motion finds, and notes."""
    what = (
        VERSION,
        str(clip.path.resolve()),
        clip.path.stat().st_mtime_ns,
        clip.count,
        clip.stored_intrinsics.tolist(),
        numbers,
    )
    folder = work / f"structure-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}") from error
    observations = load_or_observe(clip, numbers, folder / "observations.npz")
    keyframes = observations.keyframes
    starts = range(0, max(1, len(keyframes) - _SHARED), _PIECE - _SHARED)
    pieces: dict[Path, Observations] = {}
    for start in starts:
        chosen = keyframes[start : start + _PIECE]
        piece = observations.between(chosen[0], chosen[-1])
        used = np.isin(piece.frames, chosen)
        pieces[place := folder / f"piece-{start:05d}"] = piece
        if not (place / TRACKS).is_file():
            write_tracks(
                place, piece.frames[used], piece.tracks[used], piece.pixels[used], piece.intrinsics, piece.size
            )
    results = reconstruct(list(pieces), clip.name)
    failures = [result for result in results.values() if isinstance(result, str)]
    chains = [
        completed(model, pieces[place])
        for place, models in results.items()
        if not isinstance(models, str)
        for model in models
    ]
    if not chains:
        reason = failures[0] if failures else "no two frames have enough common points and parallax"
        raise DataError(f"{clip.path}: structure from motion failed: {reason}")
    found = joined(chains)
    notes = []
    if failures:
        notes.append(f"Structure from motion failed in {len(failures)} of {len(pieces)} pieces: {failures[0]}.")
    if len(found) > 1:
        notes.append(
            f"The trajectory is in {len(found)} parts that could not be joined; only the largest is used, "
            f"{len(found[0].poses)} of {sum(len(chain.poses) for chain in found)} frames."
        )
    if observations.breaks:
        notes.append(f"No point could be tracked into frames {shown_frames(observations.breaks)}.")
    return observations, found[0], tuple(notes)


class _Scale:
    """Metric scale of a trajectory.

    Attributes:
        source: see `Motion.scale`.
        frames, factors: measured factors, see `scale.smooth_factors`; none if unknown.
        window: for `scale.smooth_factors`; None for one factor for the whole trajectory.
        note: sentence for the report.
    """

    def __init__(
        self,
        clip: Clip,
        observations: Observations,
        chain: Chain,
        speed: float | None,
        camera_height: float | None,
        reference: ScaleReference | None,
    ):
        self._clip, self._observations, self._chain = clip, observations, chain
        self.source, self.note = "unknown", ""
        self.window: int | None = None
        self.frames: list[int] = []
        self.factors = np.zeros(0)
        speeds = clip.speeds if speed is None else np.full(clip.count, speed)
        # What the user states counts first, then what is most exact.
        if speed is not None:
            self._from_path(speeds, None, "speed")
        if camera_height is not None and not self.frames:
            self._from_height(camera_height)
        if clip.poses is not None and not self.frames:
            self._from_path(None, clip.poses, "odometry")
        if speeds is not None and not self.frames:
            self._from_path(speeds, None, "speed")
        if reference is not None and not self.frames:
            self._from_depth(reference)
        if not self.frames:
            self.note = "The scale is unknown: lengths and depth are in an arbitrary unit."
            if camera_height is not None:
                self.note += " The ground has too few points to use the camera's height."

    def at(self, frames: Sequence[int]) -> np.ndarray:
        """Factors at frames of the trajectory."""
        if not self.frames:
            depths = [self._chain.depths(self._observations, n)[1] for n in sorted(self._chain.keyframes)]
            return np.full(len(frames), _UNKNOWN_DEPTH / np.median(np.concatenate(depths)))
        if self.window is None:
            return np.full(len(frames), np.exp(np.median(np.log(self.factors))))
        return smooth_factors(self.frames, self.factors, frames, self.window)

    def _from_path(self, speeds: np.ndarray | None, poses: np.ndarray | None, source: str) -> None:
        frames = sorted(self._chain.keyframes)
        lengths = step_lengths(frames, self._clip.times, speeds, poses)
        positions = np.array([self._chain.poses[n][:3, 3] for n in frames])
        self.frames, self.factors = path_factors(positions, lengths, frames)
        if not self.frames:
            return
        self.source = source
        if speeds is not None and is_constant(speeds):
            # One speed for the whole clip is a mean, and says nothing about each step.
            total = np.nansum(lengths) / np.linalg.norm(np.diff(positions, axis=0), axis=1)[np.isfinite(lengths)].sum()
            self.frames, self.factors = [frames[0]], np.array([total])
            self.note = f"The scale is from the mean speed, {speeds[np.isfinite(speeds)][0]:g} m/s."
        else:
            self.window = PATH_WINDOW
            of = "the odometry's path length" if source == "odometry" else "the speed"
            self.note = f"The scale is from {of}, at {len(self.frames)} steps."

    def _from_height(self, camera_height: float) -> None:
        self._measure(lambda n: _ground_factor(self._observations, self._chain, n, camera_height))
        if self.frames:
            self.source = "camera height"
            self.note = (
                f"The scale is from the camera's height, {camera_height:g} m; ground seen in {len(self.frames)} frames."
            )

    def _from_depth(self, reference: ScaleReference) -> None:
        framing = self._clip.source.framing
        (height, width), (h, w) = self._clip.source.stored_size, self._observations.size
        stored = np.array([width / w, height / h])
        to_network = framing.network_intrinsics(np.eye(3))

        def measure(number: int) -> float | None:
            pixels, depth = self._chain.depths(self._observations, number)
            pixels = (pixels + 0.5) * stored - 0.5
            pixels = pixels * to_network[[0, 1], [0, 1]] + to_network[:2, 2]
            return depth_factor(pixels, depth, reference(number))

        self._measure(measure, most=_REFERENCES)
        if self.frames:
            self.source = "reference depth"
            self.note = f"The scale is from other depth of {len(self.frames)} frames."

    def _measure(self, measure: Callable[[int], float | None], most: int | None = None) -> None:
        """Measure the factor at the keyframes, or at `most` of them."""
        frames = np.array(sorted(self._chain.keyframes))
        if most is not None and len(frames) > most:
            frames = frames[np.linspace(0, len(frames) - 1, most).astype(int)]
        found = {int(n): factor for n in frames if (factor := measure(int(n))) is not None}
        self.frames, self.factors, self.window = list(found), np.array(list(found.values())), FRAME_WINDOW


def _ground_factor(observations: Observations, chain: Chain, number: int, camera_height: float) -> float | None:
    """Metres per unit at a keyframe, from the points that it and the keyframes around it see."""
    around = [n for n in observations.keyframes if n in chain.keyframes]
    at = around.index(number)
    names = np.unique(np.concatenate([observations.of(n)[0] for n in around[max(0, at - 2) : at + 6]]))
    world = np.array([chain.points[name] for name in names if name in chain.points])
    if not len(world):
        return None
    pose = chain.poses[number]
    points = (world - pose[:3, 3]) @ pose[:3, :3]
    nearest = points[(points[:, 2] > 0) & (points[:, 2] < 3 * np.median(points[:, 2]))]
    ends = [chain.poses[around[i]][:3, 3] for i in (max(0, at - 3), min(len(around) - 1, at + 3))]
    height = ground_height(nearest, (ends[1] - ends[0]) @ pose[:3, :3])
    return None if height is None else camera_height / height


def _from_structure(
    clip: Clip,
    observations: Observations,
    chain: Chain,
    scale: _Scale,
    notes: tuple[str, ...],
    figures: dict[str, float],
) -> Motion:
    frames = list(chain.poses)
    factors = scale.at(frames)
    poses = np.full((clip.count, 4, 4), np.nan)
    poses[frames] = rescaled(np.array(list(chain.poses.values())), factors)
    known = dict(zip(frames, factors, strict=True))
    depths = [known[n] * chain.depths(observations, n)[1] for n in sorted(chain.keyframes)]
    figures = figures | {
        "located frames": float(len(frames)),
        "keyframes": float(len(chain.keyframes)),
        "interpolated frames": float(chain.interpolated),
        "near depth": float(np.median([np.percentile(depth, 5) for depth in depths if len(depth)])),
        "scale drift": float(factors.max() / factors.min() - 1),
    }
    first = f"Structure from motion located {len(frames)} of {int(observations.frames[-1] - observations.frames[0] + 1)} frames."
    return Motion(poses, "structure from motion", scale.source, (*notes, first, scale.note), figures)


def _has_parallax(clip: Clip) -> Callable[[Tracks], bool]:
    least = _PARALLAX * clip.size[1]
    # The flow is at least the parallax, up to noise, and faster to compute.
    return lambda tracks: len(tracks.frames) > 2 and tracks.flow >= least and parallax(tracks, clip.intrinsics) >= least


def _angle(pose: np.ndarray, other: np.ndarray) -> float:
    """Angle between two poses, degrees."""
    cosine = (np.trace(pose[:3, :3].T @ other[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
