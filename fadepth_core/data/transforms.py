"""Poses over time and the tree of coordinate frames of a recording (tf2), interpolated at the stamps of its pictures.

Transforms are matrices [4, 4] that map points of a child frame to its parent frame. Stamps are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Between two transforms further apart than this nothing is known, nanoseconds.
MAX_GAP = 500_000_000
#: Before the first and after the last transform, motion is continued for this long, nanoseconds.
MAX_EXTRAPOLATION = 50_000_000


class Track:
    """The poses of a moving frame.

    Args:
        stamps: [N] int64, in any order; of poses with equal stamps the last one counts.
        poses: [N, 4, 4].

    Attributes:
        stamps: increasing.
        poses: in the order of `stamps`.
    """

    def __init__(self, stamps: Sequence[int] | np.ndarray, poses: Sequence[np.ndarray] | np.ndarray):
        times, matrices = np.asarray(stamps, np.int64), np.asarray(poses, np.float64).reshape(-1, 4, 4)
        self.stamps, last = np.unique(times[::-1], return_index=True)
        self.poses = matrices[::-1][last]
        self._quaternions = quaternions(self.poses[:, :3, :3])

    def at(self, stamps: np.ndarray) -> np.ndarray:
        """Poses [M, 4, 4] at stamps [M]: linear for the position, along the shortest arc for the rotation.

        NaN where the neighbouring poses are too far apart (`MAX_GAP`), or none is near (`MAX_EXTRAPOLATION`).
        """
        wanted, known = np.asarray(stamps, np.int64), self.stamps
        result = np.tile(np.eye(4), (len(wanted), 1, 1))
        if len(known) < 2:
            same = np.isin(wanted, known)
            result[same] = self.poses[0] if len(known) else np.nan
            result[~same] = np.nan
            return result
        before = np.clip(np.searchsorted(known, wanted, "right") - 1, 0, len(known) - 2)
        gap = known[before + 1] - known[before]
        share = (wanted - known[before]) / gap
        outside = np.maximum(known[0] - wanted, wanted - known[-1])
        is_known = (gap <= MAX_GAP) & (outside <= MAX_EXTRAPOLATION) | (share == 0) | (share == 1)
        position = self.poses[:, :3, 3]
        result[:, :3, 3] = position[before] + share[:, None] * (position[before + 1] - position[before])
        result[:, :3, :3] = rotations(_slerp(self._quaternions[before], self._quaternions[before + 1], share))
        result[~is_known] = np.nan
        return result

    @property
    def constant(self) -> bool:
        """Whether all poses are equal: some drivers repeat a static transform."""
        return bool(np.abs(self.poses - self.poses[0]).max() < 1e-9)


class TransformTree:
    """The frames of a recording.

    Attributes:
        frames: the names of all frames.
    """

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._static: dict[str, np.ndarray] = {}
        self._moving: dict[str, tuple[list[int], list[np.ndarray]]] = {}
        self._tracks: dict[str, Track] = {}

    def add(self, parent: str, child: str, transform: np.ndarray, stamp: int | None) -> None:
        """Add a transform [4, 4]; `stamp` is None if it is static. A frame has one parent: the last one stated."""
        parent, child = frame_name(parent), frame_name(child)
        if self._parents.get(child, parent) != parent:
            self._moving.pop(child, None)
            self._static.pop(child, None)
        self._parents[child] = parent
        self._tracks.pop(child, None)
        if stamp is None:
            self._static[child] = transform
        else:
            stamps, transforms = self._moving.setdefault(child, ([], []))
            stamps.append(stamp)
            transforms.append(transform)

    @property
    def frames(self) -> set[str]:
        return {*self._parents, *self._parents.values()}

    def ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, the parent's parent, up to the root."""
        chain = [frame_name(frame)]
        while (parent := self._parents.get(chain[-1])) is not None and parent not in chain:
            chain.append(parent)
        return chain

    def moves(self, target: str, source: str) -> bool:
        """Whether a transform between two frames changes. False if they are not connected."""
        up, down = self._branches(target, source)
        return any(self._changes(child) for child in (*up, *down))

    def at(self, target: str, source: str, stamps: np.ndarray) -> np.ndarray | None:
        """Transforms from `source` to `target` [N, 4, 4] at stamps [N], NaN where unknown; None if they are not connected."""
        if not self.connected(target, source):
            return None
        up, down = self._branches(target, source)
        result = np.tile(np.eye(4), (len(stamps), 1, 1))
        for child in up:
            result = self._edge(child, stamps) @ result
        to_common = np.tile(np.eye(4), (len(stamps), 1, 1))
        for child in down:
            to_common = self._edge(child, stamps) @ to_common
        return np.linalg.inv(to_common) @ result

    def connected(self, target: str, source: str) -> bool:
        """Whether two frames are equal or have a common ancestor."""
        return self.ancestors(target)[-1] == self.ancestors(source)[-1] or frame_name(target) in self.ancestors(source)

    def _branches(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """The frames below the nearest common ancestor, from `source` and from `target` upwards."""
        above_target, above_source = self.ancestors(target), self.ancestors(source)
        common = next((frame for frame in above_source if frame in above_target), None)
        if common is None:
            return [], []
        return above_source[: above_source.index(common)], above_target[: above_target.index(common)]

    def _track(self, child: str) -> Track:
        if child not in self._tracks:
            self._tracks[child] = Track(*self._moving[child])
        return self._tracks[child]

    def _changes(self, child: str) -> bool:
        return child not in self._static and not self._track(child).constant

    def _edge(self, child: str, stamps: np.ndarray) -> np.ndarray:
        if child in self._static:
            return np.broadcast_to(self._static[child], (len(stamps), 4, 4))
        track = self._track(child)
        return np.broadcast_to(track.poses[0], (len(stamps), 4, 4)) if track.constant else track.at(stamps)


def frame_name(name: str) -> str:
    """A frame's name as ROS 2 writes it: ROS 1 permits a leading slash."""
    return name.lstrip("/")


def matrix(translation: Sequence[float], quaternion: Sequence[float]) -> np.ndarray | None:
    """Transform [4, 4] of a translation (x, y, z) and a quaternion (x, y, z, w); None if they are invalid."""
    values = np.array([*translation, *quaternion], np.float64)
    length = np.linalg.norm(values[3:])
    if not np.isfinite(values).all() or not 0.9 < length < 1.1:
        return None
    result = np.eye(4)
    result[:3, :3] = rotations(values[None, 3:] / length)[0]
    result[:3, 3] = values[:3]
    return result


def rotations(unit: np.ndarray) -> np.ndarray:
    """Rotation matrices [N, 3, 3] of unit quaternions [N, 4] (x, y, z, w)."""
    x, y, z, w = unit.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def quaternions(matrices: np.ndarray) -> np.ndarray:
    """Unit quaternions [N, 4] (x, y, z, w) of rotation matrices [N, 3, 3].

    Each component has a formula that divides by it; the largest is divided by, so that no precision is lost.
    """
    m = np.moveaxis(matrices, 0, 2)
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    squares = np.stack([1 + 2 * m[i, i] - trace for i in range(3)] + [1 + trace])  # four times those of x, y, z, w
    off = {
        (0, 1): m[0, 1] + m[1, 0], (0, 2): m[0, 2] + m[2, 0], (1, 2): m[1, 2] + m[2, 1],
        (0, 3): m[2, 1] - m[1, 2], (1, 3): m[0, 2] - m[2, 0], (2, 3): m[1, 0] - m[0, 1],
    }  # fmt: skip
    candidates = np.array([[squares[i] if i == j else off[min(i, j), max(i, j)] for j in range(4)] for i in range(4)])
    best = candidates[squares.argmax(axis=0), :, np.arange(matrices.shape[0])]
    return best / np.linalg.norm(best, axis=1, keepdims=True)


def _slerp(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Unit quaternions on the shortest arc from `first` (share 0) to `second` (share 1) and beyond."""
    cosine = (first * second).sum(axis=1)
    second = np.where(cosine[:, None] < 0, -second, second)
    angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
    small = angle < 1e-6
    sine = np.where(small, 1.0, np.sin(angle))
    weights = [np.where(small, 1 - share, np.sin((1 - share) * angle) / sine)]
    weights.append(np.where(small, share, np.sin(share * angle) / sine))
    result = weights[0][:, None] * first + weights[1][:, None] * second
    return result / np.linalg.norm(result, axis=1, keepdims=True)
