"""Which frames of a recording teach, which choose the best network, and which judge it.

Neighbouring frames show nearly the same picture. A network that has seen one knows the other. So frames are held back in blocks,
and the frames within a second of a block are not used at all.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

#: Seconds next to a block in which no frame is used.
GAP = 1.0
#: Share of the frames that are held back: one half chooses the best network, the other half judges it.
HELD_BACK = 0.2
#: Most blocks of each kind, the least number of frames of a block, and the largest share of the frames that blocks and the gaps
#: beside them may take. The number of blocks follows.
_BLOCKS, _LEAST, _MOST_TAKEN = 4, 5, 0.5
#: True depth of at most this share of the frames is kept for judging as a whole.
_RARE = 0.1


class Roles(NamedTuple):
    """Frame numbers by their use, in ascending order; no number is in two lists."""

    teach: list[int]
    validate: list[int]
    judge: list[int]


def assign_roles(times: np.ndarray, truth: Collection[int] = (), judge_last: float | None = None) -> Roles:
    """Divide the frames of a recording.

    Args:
        times: seconds of each frame [N].
        truth: frames with measured depth that must not teach. If they are few, all of them judge; else only those in the
            blocks do.
        judge_last: the last part of the recording judges, as a share of its frames, instead of blocks spread over it.

    Returns:
        The frames by their use. A recording of less than about 40 frames has no frames to judge with.
    """
    count = len(times)
    gap = GAP / float(np.median(np.diff(times)))
    role = np.full(count, "t")
    rare = 0 < len(truth) <= max(_RARE * count, 1)
    if judge_last is not None:
        role[round((1 - judge_last) * count) :] = "j"
        free = np.flatnonzero(role == "t")
        _mark_blocks(role, free, "v", 1, HELD_BACK / 2, gap)
    elif rare:
        role[min(truth) : max(truth) + 1] = "j" if max(truth) - min(truth) < 2 * _RARE * count else "t"
        role[sorted(truth)] = "j"
        _mark_blocks(role, np.arange(count), "v", _BLOCKS, HELD_BACK / 2, gap)
    else:
        _mark_blocks(role, np.arange(count), "vj", _BLOCKS, HELD_BACK, gap)
    judge = np.flatnonzero(role == "j")
    if truth and (role[sorted(truth)] == "j").any():
        judge = np.array([number for number in judge if number in set(truth)], int)
    teach = _away_from(times, np.flatnonzero(role == "t"), np.flatnonzero(role != "t"))
    validate = _away_from(times, np.flatnonzero(role == "v"), np.flatnonzero(role == "j"))
    return Roles(teach.tolist(), validate.tolist(), judge.tolist())


def _mark_blocks(role: np.ndarray, frames: np.ndarray, kinds: str, most: int, share: float, gap: float) -> None:
    """Give blocks of the `frames` the kinds in turn, up to `most` of each kind, together `share` of the frames.

    `gap` frames on either side of a block are lost.
    """

    def fits(blocks: int) -> bool:
        enough = share * len(frames) / blocks >= _LEAST
        return enough and share * len(frames) + blocks * 2 * gap <= _MOST_TAKEN * len(frames)

    blocks = next((n * len(kinds) for n in range(most, 0, -1) if fits(n * len(kinds))), len(kinds))
    length = round(share * len(frames) / blocks)
    if length < 1:
        return
    for number in range(blocks):
        middle = round((number + 0.5) * len(frames) / blocks)
        block = frames[middle - length // 2 : middle - length // 2 + length]
        role[block[role[block] == "t"]] = kinds[number % len(kinds)]


def _away_from(times: np.ndarray, frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The `frames` that are at least `GAP` seconds away from all `others`."""
    if not len(frames) or not len(others):
        return frames
    near = np.abs(times[frames][:, None] - times[others][None]).min(axis=1) < GAP
    return frames[~near]
