"""Depth that a teacher predicts for pictures nobody has measured, kept beside them for a student to learn from.

Pictures cost nothing, and a small network takes over what it is shown. The result has the form of `data.pictures`:

    OUT/index.json       one entry for each picture, with its path, its depth and its camera
    OUT/depth/NAME.png   16 bits, metres * 256, at the picture's size
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
from tqdm import tqdm

from fadepth_core.data.folder import INDEX
from fadepth_core.data.images import read_rgb, write_depth
from fadepth_core.data.pictures import list_pictures
from fadepth_core.evaluation import Predictor
from fadepth_core.runtime.checkpoint import write_atomically
from fadepth_core.runtime.framing import PIXELS, Framing, choose_network_size


def label_pictures(source: Path, predict: Predictor, out: Path, every: int = 1, pixels: int = PIXELS) -> int:
    """Predict the depth of all pictures of a folder; returns their number.

    Args:
        source: what `data.pictures` takes: a folder of pictures, with or without an index.
        predict: the teacher.
        out: folder to write to. Depth that is there already is not predicted again, so an interrupted run goes on.
        every: take every N-th picture only.
        pixels: about how many the teacher's input has; each picture keeps its aspect ratio.

    Raises:
        DataError: no pictures, or one that cannot be read.
    """
    pictures = list_pictures(source)[::every]
    (out / "depth").mkdir(parents=True, exist_ok=True)
    entries = []
    for number, picture in enumerate(tqdm(pictures, unit="picture")):
        path = out / "depth" / f"{number:06d}.png"
        image = read_rgb(picture.rgb)
        height, width = image.shape[:2]
        matrix = picture.camera(image)
        if not path.is_file():
            # At the network's size already, so that an engine is built for each of few sizes and not for every picture's.
            framing = Framing.plan((height, width), choose_network_size((height, width), pixels))
            inverse_depth = predict(framing.to_network(image), framing.output_intrinsics(matrix))
            # Inverse depth, not depth, is interpolated, as evaluation does.
            write_depth(path, 1 / cv2.resize(inverse_depth, (width, height), interpolation=cv2.INTER_LINEAR))
        fx, fy, cx, cy = (float(matrix[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
        entries.append(
            {
                "id": picture.name,
                "rgb": Path(os.path.relpath(picture.rgb, out)).as_posix(),
                "depth": f"depth/{path.name}",
                **{"fx": fx, "fy": fy, "cx": cx, "cy": cy},
            }
        )
    text = json.dumps(entries, indent=0)
    write_atomically(out / INDEX, lambda part: Path(part).write_text(text, encoding="utf-8"))
    return len(entries)
