"""Point tracks over a few frames, and how well a rigid camera motion explains them.

Corners are tracked by pyramidal Lucas-Kanade (Bouguet 2001) from frame to frame, and dropped if tracking backwards does
not return to the start. `labels.motion` uses the tracks to check odometry and to choose frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np

#: Number of corners, their smallest distance as a share of the image's width, and their relative quality.
_CORNERS, _SPACING, _QUALITY = 400, 0.012, 0.003
#: Largest distance between the start of a track and where backward tracking ends, pixels.
_MAX_RETURN = 0.5
#: Fewer tracks say nothing about the motion.
MIN_TRACKS = 25
#: A track agrees with a motion up to this error, pixels.
AGREES = 1.0
#: Values of the inverse depth that are tried before refinement.
_DEPTHS = 64
#: Side of the correlation window, pyramid levels above the full size, and when the search stops.
_WINDOW, _LEVELS = 13, 4
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.02)


@dataclass(frozen=True)
class Tracks:
    """Points that are visible in all of some frames.

    Attributes:
        frames: F frame numbers.
        points: [F, T, 2] pixels (u, v), pixel centres at whole numbers.
        started: number of tracks in the first frame; T of them reach the last one.
    """

    frames: tuple[int, ...]
    points: np.ndarray
    started: int

    @property
    def flow(self) -> float:
        """Median distance between the first and the last point of a track, pixels; 0 without tracks."""
        if not self.points.shape[1]:
            return 0.0
        return float(np.median(np.linalg.norm(self.points[-1] - self.points[0], axis=-1)))

    def at(self, positions: Iterable[int]) -> Tracks:
        """The same tracks in some of the frames."""
        chosen = list(positions)
        return Tracks(tuple(self.frames[i] for i in chosen), self.points[chosen], self.started)


def follow(
    grey: Callable[[int], np.ndarray],
    frames: Iterable[int],
    enough: Callable[[Tracks], bool],
    min_share: float = 0.35,
) -> Tracks:
    """Track the corners of the first frame through the following ones.

    Args:
        grey: frame number -> uint8 [H, W].
        frames: the frame numbers to visit in this order.
        enough: whether to stop after the last frame of the tracks so far.
        min_share: stop before the frame that fewer than this share of the tracks reach.
    """
    numbers = iter(frames)
    first = next(numbers)
    image = grey(first)
    points = corners(image)[None]
    tracks = Tracks((first,), points, points.shape[1])
    for number in numbers:
        following = grey(number)
        moved, kept = step(image, following, tracks.points[-1])
        if kept.sum() < max(MIN_TRACKS, min_share * tracks.started):
            break
        # Contiguous, because OpenCV accepts no other layout.
        points = np.ascontiguousarray(np.concatenate([tracks.points[:, kept], moved[None, kept]]))
        tracks = Tracks((*tracks.frames, number), points, tracks.started)
        image = following
        if enough(tracks):
            break
    return tracks


def corners(image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Corners (Shi and Tomasi 1994) of a grey image, [T, 2] float32 pixels, none where the mask is 0."""
    spacing = max(4.0, _SPACING * image.shape[1])
    found: np.ndarray | None = cv2.goodFeaturesToTrack(image, _CORNERS, _QUALITY, spacing, mask=mask)
    return np.zeros((0, 2), np.float32) if found is None else found.reshape(-1, 2)


def step(image: np.ndarray, following: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [T, 2] float32 of a grey image in the following one, and which of them were found [T]."""
    if not len(points):
        return points, np.zeros(0, bool)
    moved, found = _lucas_kanade(image, following, points)
    back, found_back = _lucas_kanade(following, image, moved)
    height, width = image.shape
    inside = ((moved >= 0) & (moved <= (width - 1, height - 1))).all(-1)
    returned = np.linalg.norm(back - points, axis=-1) < _MAX_RETURN
    return moved, inside & returned & found & found_back


def _lucas_kanade(image: np.ndarray, following: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        image,
        following,
        points,
        None,  # type: ignore[call-overload]  # no initial values
        winSize=(_WINDOW, _WINDOW),
        maxLevel=_LEVELS,
        criteria=_CRITERIA,
    )
    return moved, found.ravel() > 0


def reprojection_errors(tracks: Tracks, poses: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Reprojection error of each track [T] in pixels, with its best depth in front of the first camera.

    The root mean square over all frames but the first. The first frame's point is kept as it is, and its inverse depth,
    from 0 (infinity) to two per baseline, is found by search and Gauss-Newton steps. Depth behind a camera does not
    count, so a motion in the wrong direction has large errors, and so has a motion that is too short.

    Args:
        tracks: in F frames.
        poses: camera-to-world poses [F, 4, 4] of these frames.
        intrinsics: K [3, 3], pixels.
    """
    return inverse_depths(tracks, poses, intrinsics)[1]


def inverse_depths(tracks: Tracks, poses: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse depth of each track in the first frame [T], and its error [T], see `reprojection_errors`."""
    motions = np.linalg.inv(poses[1:]) @ poses[0]
    homogeneous = np.concatenate([tracks.points[0], np.ones((tracks.points.shape[1], 1))], axis=1)
    rays = homogeneous @ np.linalg.inv(intrinsics).T
    turned = np.einsum("fij,tj->fti", motions[:, :3, :3], rays)
    shifts = motions[:, None, :3, 3]

    def residuals(inverse: np.ndarray) -> np.ndarray:
        """[..., T] -> [..., F - 1, T, 2] pixels."""
        points = (turned + inverse[..., None, :, None] * shifts) @ intrinsics.T
        depth = points[..., 2:]
        pixels = points[..., :2] / np.where(depth > 1e-6, depth, 1e-6)
        return np.where(depth > 1e-6, pixels - tracks.points[1:], 1e6)

    def error(inverse: np.ndarray) -> np.ndarray:
        return np.sqrt((residuals(inverse) ** 2).sum(-1).mean(-2))

    baseline = np.linalg.norm(shifts, axis=-1).max()
    if baseline < 1e-9:
        none = np.zeros(len(rays))
        return none, error(none)
    largest = 2.0 / baseline
    grid = (largest * np.linspace(0, 1, _DEPTHS) ** 2)[:, None].repeat(len(rays), axis=1)
    inverse = grid[error(grid).argmin(0), np.arange(len(rays))]
    step = 1e-5 * largest
    for _ in range(4):
        at = residuals(inverse)
        slope = (residuals(inverse + step) - at) / step
        change = (slope * at).sum((-3, -1)) / np.maximum((slope**2).sum((-3, -1)), 1e-12)
        improved = np.clip(inverse - change, 0, largest)
        inverse = np.where(error(improved) < error(inverse), improved, inverse)
    return inverse, error(inverse)


def fitted_poses(tracks: Tracks, intrinsics: np.ndarray) -> np.ndarray | None:
    """Camera-to-world poses [3, 4, 4] of three frames that explain the tracks best; lengths in units of the baseline.

    The first and the last frame by an essential matrix (five points, RANSAC with local optimisation), the second by its points' depths (PnP).
    None if no motion fits.
    """
    first, middle, last = (np.ascontiguousarray(points, np.float64) for points in tracks.points)
    essential, inliers = cv2.findEssentialMat(
        first, last, intrinsics, method=cv2.USAC_ACCURATE, prob=0.999, threshold=0.5, maxIters=1000
    )
    if essential is None or essential.shape != (3, 3):
        return None
    _, rotation, shift, _ = cv2.recoverPose(essential, first, last, intrinsics, mask=inliers)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[2] = _pose(rotation, shift)
    inverse, error = inverse_depths(tracks.at((0, 2)), poses[[0, 2]], intrinsics)
    used = (error < AGREES) & (inverse > 1e-3)
    if used.sum() < 8:
        return None
    rays = np.concatenate([first, np.ones((len(first), 1))], axis=1) @ np.linalg.inv(intrinsics).T
    points = rays[used] / inverse[used, None]
    found, vector, shift, _ = cv2.solvePnPRansac(points, middle[used], intrinsics, None, reprojectionError=AGREES)
    if not found:
        return None
    poses[1] = _pose(cv2.Rodrigues(vector)[0], shift)
    return poses


def parallax(tracks: Tracks, intrinsics: np.ndarray) -> float:
    """Median image motion from the first to the last frame that no rotation explains, pixels; 0 without tracks.

    The rotation is fitted to the viewing rays by iteratively reweighted least squares (Kabsch 1976).
    """
    if not tracks.points.shape[1]:
        return 0.0
    ends = tracks.points[[0, -1]]
    rays = np.concatenate([ends, np.ones((*ends.shape[:2], 1))], axis=-1) @ np.linalg.inv(intrinsics).T
    units = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    weights = np.ones(ends.shape[1])
    distances = weights
    for _ in range(10):
        u, _, v = np.linalg.svd((weights[:, None] * units[1]).T @ units[0])
        rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
        turned = rays[0] @ rotation.T @ intrinsics.T
        distances = np.linalg.norm(turned[:, :2] / np.maximum(turned[:, 2:], 1e-6) - ends[1], axis=-1)
        weights = 1 / (0.5 + distances)
    return float(np.median(distances))


def _pose(rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Camera-to-world pose [4, 4] of a camera in which a point X of the world has the coordinates R X + t."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ shift.ravel()
    return pose
