"""Multi-view stereo: measures the depth of a clip with known poses, as labels for training.

Each frame is compared with several source frames before and after it (`labels.plane_sweep`). A check of consistency
with the depth of neighbouring frames removes most wrong depth, e.g. on moving objects, mirrors and clear sky.

Training on these labels converges much faster than training with the photometric loss. That loss compares each frame
only with its two neighbours and finds depth by gradient descent. Stereo finds it by search, and its baseline may be as
long as the distance of the nearest objects.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from fadepth_core.common.errors import DataError
from fadepth_core.data.video import Clip
from fadepth_core.labels.folder import LabelFolder
from fadepth_core.labels.plane_sweep import MAX_DEPTH_RATIO, PlaneSweep, consistent_inverse

#: Baselines to the source frames before and after a frame, in units of the nearest depth.
_BASELINES = (0.3, 0.6, 1.05)
#: Pixels whose best match has a higher cost are left out.
_MAX_COST = 0.6
#: Regions with fewer pixels are left out: there, wrong depth is confirmed by chance. In an office this removes a quarter of the
#: errors of more than 25 %, with 5 % of the pixels.
_SPECK = 20
#: Baselines to the frames before and after a frame that take part in its consistency check, in the same units. With
#: shorter ones, wrong depth is the same in all of them; with longer ones, they see less of the same surfaces. Where there
#: are not `_NEIGHBOURS` such frames, e.g. at the start of a clip, `_MORE_CHECKS` add some on the other side.
_CHECKS, _MORE_CHECKS, _NEIGHBOURS = (0.15, 0.3), (0.45, 0.6), 4
#: A frame that is measured anyway is preferred for the check if its baseline is at most this multiple of the one wanted.
_LONGER = 1.8
#: Grey frames that are kept, because several frames use them.
_KEPT_FRAMES = 64


def write_stereo(
    clip: Clip,
    folder: Path,
    nearest: float = 4.0,
    first: int = 0,
    every: int = 1,
    numbers: Sequence[int] | None = None,
    threads: int = 1,
) -> int:
    """Measure the depth of a clip with poses and write it as the `depth` folder of its camera file (`data.video`).

    The files are <frame number>.png, 16 bits, metres * 256, 0 where unknown, at the clip's size for training. Files that
    an interrupted run with the same clip, poses and arguments has written are kept.

    Args:
        clip: a clip with poses.
        folder: where to write.
        nearest: depth of the nearest plane, metres; depth up to 30 times this is measured. See `nearest_depth`.
        first: first frame that is measured or used as a source frame.
        every: measure every N-th frame.
        numbers: the frames that are measured, instead of every N-th.
        threads: number of frames that are measured at the same time.

    Returns:
        The number of frames whose depth is in the folder.

    Raises:
        DataError: the clip has no poses, the camera moves too little, an argument is out of range, or a file cannot be
            written.
    """
    if not nearest > 0 or first < 0 or every < 1 or threads < 1:
        raise DataError(
            f"need nearest > 0, first >= 0, every >= 1 and threads >= 1, got nearest {nearest} m, first {first}, "
            f"every {every}, threads {threads}"
        )
    if clip.poses is None:
        raise DataError(f"{clip.camera}: has no poses, which are needed to measure depth")
    wanted = range(first, clip.count, every) if numbers is None else sorted(set(numbers))
    if not wanted or not first <= wanted[0] <= wanted[-1] < clip.count:
        raise DataError(f"{clip.path}: frames to measure must be from {first} to {clip.count - 1}")
    frames = _Frames(clip.poses[:, :3, 3], first, nearest)
    measurable = [number for number in wanted if frames.sources(number)]
    if not measurable:
        raise DataError(f"{clip.path}: the camera never moves by {_BASELINES[0] * nearest:.2g} m from frame {first} on")
    labels = LabelFolder(
        folder, {"method": "stereo", "nearest": nearest, "first": first, "clip": _digest(clip, clip.poses)}
    )
    missing = labels.missing(measurable)
    with ThreadPoolExecutor(threads) as pool:
        sweeps = _Sweeps(clip, clip.poses, frames, nearest, pool)
        try:
            for index, number in enumerate(tqdm(missing, unit="frame", desc=f"stereo of {clip.name}")):
                checks = {n: frames.neighbours(n, measurable) for n in missing[index : index + threads]}
                for n, neighbours in checks.items():
                    sweeps.start([n, *neighbours])
                labels.write(number, sweeps.consistent_depth(number, checks[number]))
                sweeps.forget_before(min(number, *checks[number]) if checks[number] else number)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return len(labels.kept(measurable))


def _digest(clip: Clip, poses: np.ndarray) -> str:
    """Identifies what the depth of a clip depends on besides its frames: size, intrinsics and poses."""
    content = np.concatenate([np.ravel(part) for part in (np.array(clip.size), clip.intrinsics, poses)])
    return hashlib.sha256(content.astype(np.float64).tobytes()).hexdigest()[:16]


class _Sweeps:
    """Plane sweeps of the frames of a clip. Results are kept until `forget_before`, because neighbours share them.

    Args:
        clip: the clip.
        poses: its poses, camera-to-world [N, 4, 4].
        frames: chooses the source frames.
        nearest: depth of the nearest plane, metres.
        pool: where sweeps run.
    """

    def __init__(
        self,
        clip: Clip,
        poses: np.ndarray,
        frames: _Frames,
        nearest: float,
        pool: ThreadPoolExecutor,
    ):
        self._intrinsics, self._poses, self._grey = clip.intrinsics, poses, _GreyFrames(clip)
        self._frames, self._nearest, self._pool = frames, nearest, pool
        self._sweep = PlaneSweep(clip.intrinsics, nearest)
        self._swept: dict[int, Future[tuple[np.ndarray, np.ndarray]]] = {}

    def start(self, numbers: Sequence[int]) -> None:
        """Start the sweeps of these frames that have not been started."""
        for number in numbers:
            if number not in self._swept:
                sources = self._frames.sources(number)
                self._swept[number] = self._pool.submit(
                    self._sweep,
                    self._grey(number),
                    [self._grey(source) for source in sources],
                    [self._motion(number, source) for source in sources],
                )

    def consistent_depth(self, number: int, neighbours: Sequence[int]) -> np.ndarray:
        """Depth of a frame [H, W] in metres; 0 where it is unreliable or differs from that of its neighbours."""
        inverse, cost = self._swept[number].result()
        inverse = consistent_inverse(
            inverse,
            [self._swept[n].result()[0] for n in neighbours],
            [self._motion(number, n) for n in neighbours],
            self._intrinsics,
            self._nearest,
        )
        # At an end of the searched range, the true depth may be outside the range.
        inside = (inverse > 1 / (MAX_DEPTH_RATIO * self._nearest)) & (inverse < 0.98 / self._nearest)
        known = _without_specks(inside & (cost < _MAX_COST))
        return np.where(known, 1 / np.where(known, inverse, 1), 0)

    def forget_before(self, number: int) -> None:
        """Release the results of frames before frame `number`."""
        self._swept = {n: result for n, result in self._swept.items() if n >= number}

    def _motion(self, number: int, other: int) -> np.ndarray:
        """T_{number→other} [4, 4]."""
        return np.linalg.inv(self._poses[other]) @ self._poses[number]


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask without its small regions."""
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    large = statistics[:, cv2.CC_STAT_AREA] >= _SPECK
    return mask & large[regions]


class _GreyFrames:
    """Grey frames of a clip, [H, W] float32 in [0, 1]. The last ones are kept, because they are used several times."""

    def __init__(self, clip: Clip):
        self._clip = clip
        self._kept: dict[int, np.ndarray] = {}

    def __call__(self, number: int) -> np.ndarray:
        if number not in self._kept:
            while len(self._kept) >= _KEPT_FRAMES:
                self._kept.pop(next(iter(self._kept)))
            grey = cv2.cvtColor(np.ascontiguousarray(self._clip.source.frame(number)), cv2.COLOR_RGB2GRAY)
            self._kept[number] = grey.astype(np.float32) / 255
        return self._kept[number]


class _Frames:
    """Chooses frames by their distance. Frames without a known pose have the distance NaN, and are not chosen.

    Args:
        positions: of the camera [N, 3], metres.
        first: no frame before it is chosen.
        nearest: depth of the nearest plane, metres; the unit of baselines.
    """

    def __init__(self, positions: np.ndarray, first: int, nearest: float):
        self._positions, self._first, self._nearest = positions, first, nearest
        self._found: dict[int, list[int]] = {}

    def sources(self, number: int) -> list[int]:
        """Source frames of a frame: on either side, for each baseline the nearest frame with at least this baseline."""
        if number not in self._found:
            baselines = self._baselines(number)
            sides = (range(number - 1, self._first - 1, -1), range(number + 1, len(baselines)))
            found = [self._nearest_frame(baselines, side, least) for side in sides for least in _BASELINES]
            self._found[number] = list(dict.fromkeys(n for n in found if n is not None))
        return self._found[number]

    def neighbours(self, number: int, preferred: Sequence[int]) -> list[int]:
        """Frames whose depth is compared with that of a frame. They have source frames.

        Args:
            preferred: frames that are swept in any case, ascending.
        """
        baselines = self._baselines(number)
        at = bisect_left(preferred, number)
        sides = (
            (range(number - 1, self._first - 1, -1), preferred[:at][::-1]),
            (range(number + 1, len(baselines)), preferred[at + 1 :]),
        )
        found: list[int] = []
        for checks in (_CHECKS, _MORE_CHECKS):
            for side, swept in sides:
                for least in checks:
                    if len(found) >= _NEIGHBOURS:
                        break
                    neighbour = self._nearest_frame(baselines, swept, least)
                    if neighbour is None or baselines[neighbour] > _LONGER * least:
                        neighbour = self._nearest_frame(baselines, side, least)
                    if neighbour is not None and neighbour not in found and self.sources(neighbour):
                        found.append(neighbour)
        return found

    def _baselines(self, number: int) -> np.ndarray:
        """Distances of all frames to a frame [N], in units of the nearest depth."""
        return np.linalg.norm(self._positions - self._positions[number], axis=1) / self._nearest

    @staticmethod
    def _nearest_frame(baselines: np.ndarray, numbers: Sequence[int], least: float) -> int | None:
        """The first frame of `numbers` with at least this baseline."""
        far = np.flatnonzero(baselines[np.asarray(numbers, np.intp)] >= least)
        return int(numbers[far[0]]) if len(far) else None
