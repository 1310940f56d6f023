"""A clip's trajectory from the models of its pieces: frames between keyframes are located, models are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fadepth_core.labels.keyframes import Observations, located
from fadepth_core.labels.structure import Model

#: Models are joined by at least this many common frames and points.
_MIN_SHARED, _MIN_POINTS = 3, 20
#: Between keyframes so close, a frame that cannot be located by its points is interpolated.
_MAX_GAP = 10


@dataclass
class Chain:
    """Frames and points in one world frame.

    Attributes:
        poses: camera-to-world pose [4, 4] of each located frame.
        points: coordinates [3] of each point.
        keyframes: those of the frames that are keyframes.
        interpolated: number of frames whose pose is only interpolated.
    """

    poses: dict[int, np.ndarray]
    points: dict[int, np.ndarray]
    keyframes: set[int]
    interpolated: int = 0

    def depths(self, observations: Observations, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [T, 2] and depth [T] of the known points that a frame sees, in the chain's unit."""
        names, pixels = observations.of(frame)
        known = np.array([name in self.points for name in names], bool)
        if not known.any():
            return np.zeros((0, 2)), np.zeros(0)
        world = np.array([self.points[name] for name in names[known]])
        pose = self.poses[frame]
        depth = (world - pose[:3, 3]) @ pose[:3, 2]
        return pixels[known][depth > 0], depth[depth > 0]


def completed(model: Model, observations: Observations) -> Chain:
    """Locate the frames between the keyframes of a model by the points that they see."""
    points = {int(name): point for name, point in zip(model.tracks, model.points, strict=True)}
    poses = {int(frame): pose for frame, pose in zip(model.frames, model.poses, strict=True)}
    chain = Chain(poses, points, set(poses))
    for (first, start), (last, end) in pairwise(list(poses.items())):
        for number in range(first + 1, last):
            guess = interpolated(start, end, (number - first) / (last - first))
            found = located(observations, number, points, guess)
            if found is not None:
                chain.poses[number] = found[0]
            elif last - first <= _MAX_GAP:
                chain.poses[number] = guess
                chain.interpolated += 1
    chain.poses = dict(sorted(chain.poses.items()))
    return chain


def joined(chains: Sequence[Chain]) -> list[Chain]:
    """Join chains that share frames and points; the largest first."""
    results: list[Chain] = []
    for chain in sorted(chains, key=lambda c: min(c.poses)):
        for i, other in enumerate(results):
            if (similarity := _similarity(other, chain)) is not None:
                results[i] = _merge(other, chain, *similarity)
                break
        else:
            results.append(chain)
    return sorted(results, key=lambda c: -len(c.poses))


def interpolated(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """The pose [4, 4] that is `share` of the way from one pose to another, with constant rotation and velocity."""
    pose = np.eye(4)
    turned = start[:3, :3].T @ end[:3, :3]
    pose[:3, :3] = start[:3, :3] @ _turned_by(turned, share)
    pose[:3, 3] = (1 - share) * start[:3, 3] + share * end[:3, 3]
    return pose


def _turned_by(rotation: np.ndarray, share: float) -> np.ndarray:
    """Rotation [3, 3] about the same axis by a share of the angle (Rodrigues)."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine = np.linalg.norm(axis) / 2
    if sine < 1e-9:
        return np.eye(3)
    angle = share * np.arctan2(sine, (np.trace(rotation) - 1) / 2)
    x, y, z = axis / (2 * sine)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _similarity(first: Chain, second: Chain) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Scale, rotation [3, 3] and translation [3] from the second world to the first; None if too little is shared.

    The scale is the median ratio of the distances from shared cameras to shared points, which also works for cameras
    on a straight line or in one place.
    """
    frames = sorted(first.poses.keys() & second.poses.keys())
    points = sorted(first.points.keys() & second.points.keys())
    if len(frames) < _MIN_SHARED or len(points) < _MIN_POINTS:
        return None
    a, b = (np.array([chain.poses[n] for n in frames]) for chain in (first, second))
    x, y = (np.array([chain.points[n] for n in points]) for chain in (first, second))
    distances = [np.linalg.norm(world[None] - poses[:, None, :3, 3], axis=-1) for world, poses in ((x, a), (y, b))]
    scale = float(np.median(distances[0] / np.maximum(distances[1], 1e-12)))
    u, _, v = np.linalg.svd(np.einsum("nij,nkj->ik", a[:, :3, :3], b[:, :3, :3]))
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    shift = np.median(a[:, :3, 3] - scale * b[:, :3, 3] @ rotation.T, axis=0)
    return scale, rotation, shift


def _merge(first: Chain, second: Chain, scale: float, rotation: np.ndarray, shift: np.ndarray) -> Chain:
    """Both chains in the world of the first. Half of the shared frames keep the pose of the first."""
    shared = sorted(first.poses.keys() & second.poses.keys())
    middle = shared[len(shared) // 2]
    poses: dict[int, np.ndarray] = {}
    for number, pose in second.poses.items():
        moved = np.eye(4)
        moved[:3, :3] = rotation @ pose[:3, :3]
        moved[:3, 3] = scale * rotation @ pose[:3, 3] + shift
        poses[number] = moved
    kept = {n: p for n, p in first.poses.items() if n not in poses or n <= middle}
    points = {n: scale * rotation @ point + shift for n, point in second.points.items()}
    return Chain(
        dict(sorted((poses | kept).items())),
        points | first.points,
        first.keyframes | second.keyframes,
        first.interpolated + second.interpolated,
    )
