"""Depth of a rectified stereo pair by semi-global matching (OpenCV's StereoSGBM), as labels for training.

The pair is matched at the size in which it is stored, because an error of the disparity in pixels then is a smaller
error of the depth. Pixels of the left frame that the right camera does not see are left out: the match from the right
frame to the left one must lead back to where it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from fadepth_core.common.errors import DataError
from fadepth_core.data.images import read_rgb
from fadepth_core.data.video import Clip
from fadepth_core.labels.folder import LabelFolder

#: Largest disparity as a share of the image's width. Nearer surfaces are not measured.
_LARGEST_DISPARITY = 0.2
#: Smallest disparity, pixels: depth beyond is too uncertain.
_SMALLEST_DISPARITY = 1.5
#: Side of the matched windows, pixels.
_WINDOW = 5
#: Largest difference of the disparities of both directions, pixels.
_TOLERANCE = 1.0
#: The second best match must be worse than the best by so many percent.
_UNIQUENESS = 5
#: Regions of similar disparity with fewer pixels are left out; neighbouring pixels of a region differ by at most so many
#: pixels.
_SPECKLE_SIZE, _SPECKLE_RANGE = 80, 2
#: StereoSGBM returns disparities in sixteenths of a pixel, and their number must be a multiple of this.
_UNITS = 16


def write_pair_depth(clip: Clip, folder: Path, numbers: Sequence[int]) -> int:
    """Measure the depth of frames of a stereo clip and write it as the `depth` folder of its camera file (`data.video`).

    The files are <frame number>.png, 16 bits, metres * 256, 0 where unknown, at the clip's size for training. Files that
    an interrupted run with the same cameras has written are kept.

    Args:
        clip: a clip with `right` and `baseline`.
        folder: where to write.
        numbers: the frames that are measured. Those without a right frame are left out.

    Returns:
        The number of frames whose depth is in the folder.

    Raises:
        DataError: the clip is not of a stereo pair, a frame is invalid, or a file cannot be written.
    """
    if clip.right is None or clip.baseline is None:
        raise DataError(f"{clip.camera}: has no right and baseline, which a stereo pair needs")
    wanted = [number for number in sorted(set(numbers)) if number in clip.right]
    top, left, height, width = clip.source.framing.crop
    focal = float(clip.stored_intrinsics[0, 0])
    settings = {"method": "pair", "focal": focal, "baseline": clip.baseline, "size": list(clip.size)}
    labels = LabelFolder(folder, settings)
    missing = labels.missing(wanted)
    frames = clip.stored_frames(missing)
    for number, frame in tqdm(frames, total=len(missing), unit="frame", desc=f"stereo pairs of {clip.name}"):
        depth = pair_depth(frame, _right_frame(clip.right[number], frame), focal, clip.baseline)
        depth = depth[top : top + height, left : left + width]
        # Not averaged, because depth must not be interpolated across edges.
        labels.write(number, cv2.resize(depth, clip.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))
    return len(labels.kept(wanted))


def _right_frame(path: Path, left: np.ndarray) -> np.ndarray:
    """The right frame, RGB uint8 of the size of the left one."""
    right = read_rgb(path)
    if right.shape != left.shape:
        (h, w), (height, width) = right.shape[:2], left.shape[:2]
        raise DataError(f"{path}: {w}x{h} pixels, the left frame has {width}x{height}")
    return right


def pair_depth(left: np.ndarray, right: np.ndarray, focal: float, baseline: float) -> np.ndarray:
    """Depth of the left frame of a rectified pair, [H, W] float32 metres, 0 where unknown.

    Args:
        left, right: RGB uint8 [H, W, 3]; a point is in the same row of both.
        focal: f_x of both cameras, pixels.
        baseline: distance of the cameras, metres.
    """
    greys = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (left, right)]
    disparity = _disparity(*greys)
    # Mirrored, the right frame is the left one of a pair.
    mirrored = _disparity(*(np.ascontiguousarray(grey[:, ::-1]) for grey in reversed(greys)))[:, ::-1]
    columns = np.arange(left.shape[1])
    seen_at = np.rint(columns - disparity).astype(np.intp)
    back = np.take_along_axis(mirrored, seen_at.clip(0, left.shape[1] - 1), axis=1)
    consistent = (seen_at >= 0) & (np.abs(back - disparity) <= _TOLERANCE) & (disparity >= _SMALLEST_DISPARITY)
    return np.where(consistent, focal * baseline / np.where(consistent, disparity, 1), 0).astype(np.float32)


def _disparity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Disparity of the left grey image [H, W] float32, pixels; negative where there is no match."""
    count = max(_UNITS, round(_LARGEST_DISPARITY * left.shape[1] / _UNITS) * _UNITS)
    matcher = cv2.StereoSGBM.create(
        minDisparity=0,
        numDisparities=count,
        blockSize=_WINDOW,
        P1=8 * _WINDOW**2,  # as OpenCV's documentation recommends for one channel
        P2=32 * _WINDOW**2,
        uniquenessRatio=_UNIQUENESS,
        speckleWindowSize=_SPECKLE_SIZE,
        speckleRange=_SPECKLE_RANGE,
        mode=cv2.StereoSGBM_MODE_SGBM_3WAY,
    )
    # OpenCV does not match the first `count` columns; repeated edges on the left give them candidates.
    padded = [cv2.copyMakeBorder(grey, 0, 0, count, 0, cv2.BORDER_REPLICATE) for grey in (left, right)]
    return matcher.compute(*padded)[:, count:].astype(np.float32) / _UNITS
