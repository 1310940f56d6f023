"""Saves one frame for other programs: picture (PNG), depth (NPY) and point cloud (PLY)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fadepth_core.common.files import errors_name, write_atomically
from fadepth_core.runtime.pictures import write_png


def write_snapshot(
    folder: Path,
    name: str,
    picture: np.ndarray,
    depth: np.ndarray,
    points: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    intensity: np.ndarray | None = None,
) -> list[Path]:
    """Write `name`.png, `name`.npy and, with `points`, `name`.ply into `folder`, which is created if it is missing.

    Args:
        picture: [H, W, 3] uint8 RGB.
        depth: [h, w] float32, metres; not finite where unknown, see REP-117.
        points: [..., 3] float32, metres; those that are not finite are left out.
        colors: [..., 3] uint8 RGB of the points, or None.
        intensity: [...] float32 of the points, or None.

    Returns:
        The files.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    png, npy, ply = (folder / f"{name}.{suffix}" for suffix in ("png", "npy", "ply"))
    write_atomically(png, lambda path: write_png(path, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)))

    def write_depth(path: str) -> None:
        with open(path, "wb") as file:  # np.save would append .npy to the name of the temporary file
            np.save(file, depth)

    with errors_name(npy):
        write_atomically(npy, write_depth)
    if points is None:
        return [png, npy]
    content = encode_ply(points, colors, intensity)
    with errors_name(ply):
        write_atomically(ply, lambda path: Path(path).write_bytes(content))
    return [png, npy, ply]


def encode_ply(points: np.ndarray, colors: np.ndarray | None = None, intensity: np.ndarray | None = None) -> bytes:
    """A binary PLY file of the finite points; the arguments are those of `write_snapshot`."""
    points = points.reshape(-1, 3)
    fields: list[tuple[str, str, str, np.ndarray]] = [
        (axis, "<f4", "float", points[:, index]) for index, axis in enumerate("xyz")
    ]
    if colors is not None:
        channels = colors.reshape(-1, 3)
        fields += [(color, "u1", "uchar", channels[:, index]) for index, color in enumerate(("red", "green", "blue"))]
    if intensity is not None:
        fields.append(("intensity", "<f4", "float", intensity.reshape(-1)))
    finite = np.isfinite(points).all(axis=1)
    vertices = np.empty(int(finite.sum()), [(field, dtype) for field, dtype, _, _ in fields])
    for field, _, _, values in fields:
        vertices[field] = values[finite]
    properties = "".join(f"property {kind} {field}\n" for field, _, kind, _ in fields)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n{properties}end_header\n"
    return head.encode() + vertices.tobytes()
