"""Read and write image and depth files, and convert camera images to the frames of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fadepth_core.common.errors import DataError
from fadepth_core.common.framing import Framing

#: Suffixes of the image files that are read.
PICTURES = {".png", ".jpg", ".jpeg"}
#: Depth with at least this share of known pixels counts as dense.
_DENSE = 0.4


def read_rgb(path: Path) -> np.ndarray:
    """Read an image file as RGB uint8 [H, W, 3], as it is shown: the rotation of its EXIF orientation is applied.

    Raises:
        DataError: no such file, or not an image.
    """
    return cv2.cvtColor(_read(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def read_depth(path: Path) -> np.ndarray:
    """Read a 16-bit depth PNG (KITTI's format: metres * 256, 0 where unknown) as float32 metres [H, W].

    Raises:
        DataError: no such file, or not one channel of 16 bits.
    """
    raw = _read(path, cv2.IMREAD_UNCHANGED)
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise DataError(f"{path}: expected one channel of 16 bits, found {raw.shape} of {raw.dtype}")
    return raw.astype(np.float32) / 256


def read_depth_at(framing: Framing, path: Path) -> np.ndarray:
    """Read a depth image and bring it to the network's size, float32 metres [h, w], 0 where unknown.

    Dense depth is resized by nearest neighbour. In sparse depth, the smallest of all values that fall into a pixel is
    kept. This is not done with dense depth, because it would widen foreground objects.

    Raises:
        DataError: not a depth image, or its size differs from that of its picture.
    """
    depth = read_depth(path)
    if depth.shape != framing.camera_size:
        height, width = framing.camera_size
        raise DataError(f"{path}: {depth.shape[1]}x{depth.shape[0]} pixels, its picture has {width}x{height}")
    top, left, height, width = framing.crop
    part = depth[top : top + height, left : left + width]
    if np.count_nonzero(part) < _DENSE * part.size:
        return framing.depth_to_network(depth)
    return cv2.resize(part, framing.network_size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def is_depth(path: Path) -> bool:
    """Whether an image file has the format of depth, one channel of 16 bits. False if it cannot be read."""
    try:
        image = _read(path, cv2.IMREAD_UNCHANGED)
    except DataError:
        return False
    return image.dtype == np.uint16 and image.ndim == 2


def encode_depth(depth: np.ndarray) -> bytes:
    """Encode depth [H, W] in metres as the PNG that `read_depth` reads. Depth above 255.996 m becomes 255.996 m."""
    code = np.round(depth * 256).clip(0, 65535).astype(np.uint16)
    return cv2.imencode(".png", code)[1].tobytes()


def write_depth(path: Path, depth: np.ndarray) -> None:
    """Write depth [H, W] in metres to the PNG file `path`, see `encode_depth`."""
    path.write_bytes(encode_depth(depth))


def frames_and_intrinsics(
    images: Sequence[np.ndarray], intrinsics: np.ndarray, size: tuple[int, int], crop_to_aspect: bool
) -> tuple[Tensor, Tensor]:
    """Crop and resize camera images exactly as the depth node does.

    Args:
        images: N images RGB uint8 [H, W, 3] of equal size.
        intrinsics: K [3, 3] of the images, pixels.
        size: (height, width) of the frames, in multiples of 32.
        crop_to_aspect: see `Framing.plan`.

    Returns:
        Frames [N, 3, h, w] float32 in [0, 1], and their K [3, 3] float32.

    Raises:
        FramingError: `size` or the size of the images is not possible.
    """
    framing = Framing.plan(images[0].shape[:2], size, crop_to_aspect)
    frames = torch.from_numpy(np.stack([framing.to_network(image) for image in images])).permute(0, 3, 1, 2)
    return frames.float() / 255, torch.from_numpy(framing.output_intrinsics(intrinsics)).float()


def _read(path: Path, mode: int) -> np.ndarray:
    """Decode an image file. OpenCV's `imread` cannot open every file name, so Python reads the file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if data.size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        image = cv2.imdecode(data, mode)
    except cv2.error as error:  # e.g. more pixels than OpenCV accepts
        raise DataError(f"{path}: not an image that OpenCV can read: {error.err}") from None
    if image is None:
        raise DataError(f"{path}: not an image that OpenCV can read")
    return image
