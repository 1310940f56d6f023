"""Depth that a teacher predicts for pictures nobody has measured, kept beside them for a student to learn from.

Pictures cost nothing, and a small network takes over what it is shown. The result has the form of `data.pictures`:

    OUT/index.json       one entry for each picture, with its path, its depth and its camera
    OUT/depth/NAME.png   16 bits, metres * 256, at the picture's size
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from fadepth_core.common.framing import PIXELS, Framing, choose_network_size
from fadepth_core.data.folder import camera_values, write_index
from fadepth_core.data.images import read_rgb, write_depth
from fadepth_core.data.pictures import list_pictures
from fadepth_core.evaluation import Predictor


def label_pictures(
    source: Path, predict: Predictor, out: Path, every: int = 1, pixels: int = PIXELS, aspect: float | None = None
) -> int:
    """Predict the depth of all pictures of a folder; returns their number.

    Args:
        source: what `data.pictures` takes: a folder of pictures, with or without an index.
        predict: the teacher.
        out: folder to write to. Depth that is there already is not predicted again, so an interrupted run goes on.
        every: take every N-th picture only.
        pixels: about how many the teacher's input has; each picture keeps its aspect ratio.
        aspect: width over height that the teacher sees at least: of a taller picture the middle rows, the others have no known
            depth. A teacher that has seen streets in wide pictures alone takes a street in a 4:3 picture for a room: depth of
            1600 of them was half of what it is in their middle rows.

    Raises:
        DataError: no pictures, or one that cannot be read.
    """
    pictures = list_pictures(source)[::every]
    (out / "depth").mkdir(parents=True, exist_ok=True)
    entries = []
    for number, picture in enumerate(tqdm(pictures, unit="picture")):
        path = out / "depth" / f"{number:06d}.png"
        image = read_rgb(picture.rgb)
        matrix = picture.camera(image)
        if not path.is_file():
            write_depth(path, _predicted(predict, image, matrix, pixels, aspect))
        entries.append(
            {
                "id": picture.name,
                "rgb": Path(os.path.relpath(picture.rgb, out)).as_posix(),
                "depth": f"depth/{path.name}",
                **camera_values(matrix),
            }
        )
    write_index(out, entries)
    return len(entries)


def _predicted(
    predict: Predictor, image: np.ndarray, matrix: np.ndarray, pixels: int, aspect: float | None
) -> np.ndarray:
    """Depth [H, W] in metres of a picture with K `matrix`; 0 in rows that the teacher does not see."""
    height, width = image.shape[:2]
    rows = height if aspect is None else min(height, round(width / aspect))
    top = (height - rows) // 2
    seen = matrix.copy()
    seen[1, 2] -= top
    # At the network's size already, so that an engine is built for each of few sizes and not for every picture's.
    framing = Framing.plan((rows, width), choose_network_size((rows, width), pixels))
    inverse_depth = predict(framing.to_network(image[top : top + rows]), framing.output_intrinsics(seen))
    depth = np.zeros((height, width), np.float32)
    # Inverse depth, not depth, is interpolated, as evaluation does.
    depth[top : top + rows] = 1 / cv2.resize(inverse_depth, (width, rows), interpolation=cv2.INTER_LINEAR)
    return depth
