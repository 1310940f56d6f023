"""Pseudo-labels: a teacher's depth of pictures without measured depth, written to files for a student (`fadepth label`).

The result is a folder for the data set `data.pictures`:

    OUT/index.json       for each picture its path, its depth and its camera
    OUT/depth/NAME.png   16 bits, metres * 256, of the picture's size
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
        source: a folder of pictures as for `data.pictures`, with or without an index.
        predict: the teacher.
        out: folder to write to. Existing depth is kept, so that an interrupted call can be repeated.
        every: use every N-th picture only.
        pixels: approximate number of pixels of the teacher's input; each picture keeps its aspect ratio.
        aspect: least width over height of the teacher's input. Of a taller picture it sees the middle rows, and depth of the
            other rows is unknown (0). A teacher that was trained only on wide pictures of streets predicts too little depth
            for 4:3 pictures: on 1600 pictures, half of the depth that it predicts for their middle rows alone.

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
            write_depth(path, _predict_depth(predict, image, matrix, pixels, aspect))
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


def _predict_depth(
    predict: Predictor, image: np.ndarray, matrix: np.ndarray, pixels: int, aspect: float | None
) -> np.ndarray:
    """Depth [H, W] in metres of a picture with intrinsics `matrix`; 0 in rows that the teacher does not see."""
    height, width = image.shape[:2]
    rows = height if aspect is None else min(height, round(width / aspect))
    top = (height - rows) // 2
    seen = matrix.copy()
    seen[1, 2] -= top
    # Resized here, so that engines are built for a few network sizes instead of the size of each picture.
    framing = Framing.plan((rows, width), choose_network_size((rows, width), pixels))
    inverse_depth = predict(framing.to_network(image[top : top + rows]), framing.output_intrinsics(seen))
    depth = np.zeros((height, width), np.float32)
    # Inverse depth, not depth, is interpolated, as evaluation does.
    depth[top : top + rows] = 1 / cv2.resize(inverse_depth, (width, rows), interpolation=cv2.INTER_LINEAR)
    return depth
