#!/usr/bin/env python3
"""Measures what rectification is worth, and what it costs a frame.

    python benchmarks/rectification.py
    python benchmarks/rectification.py --pictures build/lenses     also the images of a checkerboard, as PNG

The first table has the error of the cloud: a plane and a ball are rendered through each distortion model. Their images hold,
as colours, the true x, y and z of each pixel. They are brought to the network's size as a camera image is, once as they
stand and once rectified. Depth is the true z of the pixel, so that the error, the distance between the point of the cloud
and the true point, is that of the geometry only.

The second table has the time of that step, beside a plain resize and beside rectification at the camera's size with a resize
after it, as image_proc does it. "Aliasing" is the difference from the exact average over each pixel's area, for an image
with details of every size, in grey levels (RMS). "Once" is the
time to prepare the maps. Times in ms, medians of runs in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fadepth_core.common.framing import Framing
from fadepth_core.common.pinhole import unproject
from fadepth_core.common.rectification import Calibration, Rectification, RectifiedFraming

#: D, and the focal length relative to the width: the views are printed.
LENSES = {
    "plumb_bob": ([-0.28, 0.07, 0.0005, -0.0004, 0.0], 0.55),
    "rational_polynomial": ([0.5, 0.1, 0.0005, -0.0003, 0.01, 0.9, 0.2, 0.02], 0.65),
    "equidistant": ([0.02, -0.01, 0.004, -0.001], 0.42),
}
#: Metres to the ends of the 16 bits of a colour.
RANGE = 40.0


@dataclass(frozen=True)
class Lens:
    """A camera with distortion.

    Attributes:
        rays: [H, W, 3], the viewing ray of each pixel, z = 1.
    """

    calibration: Calibration
    rays: np.ndarray

    @classmethod
    def of(cls, model: str, size: tuple[int, int]) -> Lens:
        distortion, focal = LENSES[model]
        height, width = size
        matrix = np.array([[focal * width, 0, 0.505 * width], [0, focal * width, 0.49 * height], [0, 0, 1]])
        calibration = Calibration(size, model, np.array(distortion), matrix, np.eye(3), np.zeros((3, 4)))
        rows, columns = np.indices(size)
        seen = calibration.normalise(np.stack([columns.ravel(), rows.ravel()], axis=1)).reshape(*size, 2)
        return cls(calibration, np.dstack([seen, np.ones(size)]))


def plane(rays: np.ndarray) -> np.ndarray:
    """Points [H, W, 3] of a plane 4 m before the camera, not parallel to the image."""
    normal = np.array([0.12, -0.08, 1.0])
    return rays * (4.0 / (rays @ normal))[..., None]


def ball(rays: np.ndarray) -> np.ndarray:
    """Points [H, W, 3] inside a ball of 3 m around the camera, which is not in its middle."""
    centre, radius = np.array([0.4, -0.3, 0.8]), 3.0
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    along = rays @ centre
    return rays * (along + np.sqrt(along**2 - centre @ centre + radius**2))[..., None]


def errors(lens: Lens, scene: Callable[[np.ndarray], np.ndarray], rectified: bool) -> np.ndarray:
    """Distances [N] between points of the cloud and the true ones, relative to the distance from the camera."""
    size = lens.calibration.size
    framing = Framing.plan(size)
    picture = np.rint((scene(lens.rays) / RANGE + 1) * 32767.5).astype(np.uint16)
    if rectified:
        rectification = Rectification(lens.calibration)
        seen, matrix = RectifiedFraming(rectification, framing).to_network(picture), rectification.matrix
    else:
        seen, matrix = framing.to_network(picture), lens.calibration.matrix
    true = RANGE * (seen / 32767.5 - 1)
    points = unproject(true[..., 2], framing.network_intrinsics(matrix))
    return (np.linalg.norm(points - true, axis=-1) / np.linalg.norm(true, axis=-1)).ravel()


def checkerboard(lens: Lens) -> np.ndarray:
    """[H, W, 3] uint8: squares of 0.4 m on `plane`."""
    points = plane(lens.rays)
    light = (np.floor(points[..., 0] / 0.4) + np.floor(points[..., 1] / 0.4)) % 2
    return cv2.cvtColor((60 + 160 * light).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def medians(steps: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median time of each step, ms; the steps run in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def noise(size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8: noise with details of 1 to 64 pixels, each as strong as the others, as in images of scenes."""
    random, scales = np.random.default_rng(0), (1, 2, 4, 8, 16, 32, 64)
    layers = [
        cv2.resize(
            random.random((size[0] // s + 1, size[1] // s + 1, 3)) - 0.5, size[::-1], interpolation=cv2.INTER_CUBIC
        )
        for s in scales
    ]
    return np.clip(127.5 + 120 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)


def measure(model: str, size: tuple[int, int], runs: int) -> str:
    """A row of the second table."""
    rectification, framing = Rectification(Lens.of(model, size).calibration), Framing.plan(size)
    start = time.perf_counter()
    rectified = RectifiedFraming(rectification, framing)
    prepared = 1e3 * (time.perf_counter() - start)
    picture = noise(size)
    steps = {
        "resize": lambda: framing.to_network(picture),
        "one": lambda: rectified.to_network(picture),
        "two": lambda: framing.to_network(rectification(picture)),
    }
    steps["one"](), steps["two"]()
    ms = medians(steps, runs)
    (h, w), fine = framing.network_size, 12
    matrix = Framing(size, framing.crop, (fine * h, fine * w), framing.output_size).network_intrinsics(
        rectification.matrix
    )
    x, y = cv2.split(rectification.positions(matrix, (fine * h, fine * w)))
    sampled = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    exact = cv2.resize(sampled, (w, h), interpolation=cv2.INTER_AREA).astype(float)
    exact_resize = cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA).astype(float)
    aliasing = [
        np.sqrt(np.mean((steps[name]() - average) ** 2))
        for name, average in (("resize", exact_resize), ("one", exact), ("two", exact))
    ]
    return (
        f"| {size[1]}x{size[0]} | {model} | {ms['resize']:.2f} | {ms['one']:.2f} | {ms['one'] / ms['resize']:.2f} | "
        f"{ms['two']:.2f} | {' | '.join(f'{value:.1f}' for value in aliasing)} | {prepared:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--pictures", type=Path, help="folder for images of a checkerboard, before and after")
    args = parser.parse_args()

    print("| lens | view, degrees | scene | mean error, as it stands | largest | mean error, rectified | largest |")
    print("|---|---|---|---|---|---|---|")
    size = (720, 1280)
    for model in LENSES:
        lens = Lens.of(model, size)
        left, right, top, bottom = (
            np.degrees(np.arctan(value))
            for value in (lens.rays[360, 0, 0], lens.rays[360, -1, 0], lens.rays[0, 640, 1], lens.rays[-1, 640, 1])
        )
        view = f"{right - left:.0f}x{bottom - top:.0f}"
        for scene in (plane, ball):
            before, after = (errors(lens, scene, rectified) for rectified in (False, True))
            figures = " | ".join(f"{100 * value:.2f} %" for e in (before, after) for value in (e.mean(), e.max()))
            print(f"| {model} | {view} | {scene.__name__} | {figures} |")
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            rectified = RectifiedFraming(Rectification(lens.calibration), Framing.plan(size, (352, 640)))
            for name, image in (
                ("raw", checkerboard(lens)),
                ("rectified", rectified.to_network(checkerboard(lens))),
            ):
                cv2.imwrite(str(args.pictures / f"{model}_{name}.png"), image)

    print(
        "\n| camera | lens | resize ms | rectified ms | ratio | rectified, then resized ms | aliasing | then | once ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for size in ((480, 640), (720, 1280), (1080, 1920)):
        for model in LENSES:
            print(measure(model, size, args.runs))


if __name__ == "__main__":
    main()
