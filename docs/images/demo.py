#!/usr/bin/env python3
"""Make demo.jpg, the picture at the top of the README: camera image, depth and points of one frame of the demo clip.

    python docs/images/demo.py [--frame N] [--checkpoint smalldepth]

The panels are what the demo's viewer shows. Run this again when the shipped checkpoint has changed.
"""

# ruff: noqa: E402 (runs from a clone that was never installed)

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.pictures import COLOR_RANGE, depth_to_color
from fadepth_ros.clip_publisher import DEMO_CLIP, read_frames
from fadepth_ros.viewer import draw_points

WIDTH, GAP = 1200, 8
#: Farther points are left out of the picture, metres: mostly sky.
POINTS_RANGE = 45.0


def titled(rgb: np.ndarray, title: str, size: tuple[int, int]) -> np.ndarray:
    """`rgb` resized to (height, width), with a title in its upper left corner."""
    panel = cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_AREA)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.55
    (width, height), _ = cv2.getTextSize(title, font, scale, 1)
    cv2.rectangle(panel, (0, 0), (width + 16, height + 14), (0, 0, 0), cv2.FILLED)
    cv2.putText(panel, title, (8, height + 7), font, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return panel


def zoomed(cloud: np.ndarray, aspect: float) -> np.ndarray:
    """The part of a picture of points that has points in it, at the given width over height."""
    rows, columns = (np.flatnonzero((cloud != cloud[-1, 0]).any(-1).any(axis)) for axis in (1, 0))
    height, width = (side[-1] - side[0] + 1 for side in (rows, columns))
    height, width = max(height, round(width / aspect)), max(width, round(height * aspect))
    top = max(0, min((rows[0] + rows[-1] - height) // 2, len(cloud) - height))
    left = max(0, min((columns[0] + columns[-1] - width) // 2, cloud.shape[1] - width))
    return cloud[top : top + height, left : left + width]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", type=int, default=60, help="number of the frame of the demo clip")
    parser.add_argument("--checkpoint", type=Path, help="default: the shipped one")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("demo.jpg"))
    args = parser.parse_args()

    camera = json.loads(DEMO_CLIP.with_suffix(".json").read_text())
    k = np.array([[camera["fx"], 0, camera["cx"]], [0, camera["fy"], camera["cy"]], [0, 0, 1]])
    image = next(islice(read_frames(DEMO_CLIP), args.frame, None))
    engine = DepthEngine.load(args.checkpoint, camera_size=image.shape[:2], full_resolution=True)
    result = engine.infer(FrameRequest(image, k, limits=(0.1, 100.0)))

    half = (WIDTH - GAP) // 2
    height = round(half * image.shape[0] / image.shape[1])
    tall = 2 * height + GAP
    finite = np.isfinite(result.points).all(-1)
    finite &= result.depth < POINTS_RANGE
    cloud = zoomed(draw_points(result.points[finite], image[finite], (2 * tall, 2 * half)), half / tall)
    left = np.full((tall, half, 3), 255, np.uint8)
    left[:height] = titled(image, "camera", (height, half))
    left[-height:] = titled(depth_to_color(result.depth, *COLOR_RANGE), "depth", (height, half))
    picture = np.hstack([left, np.full((tall, GAP, 3), 255, np.uint8), titled(cloud, "points", (tall, half))])
    cv2.imwrite(str(args.out), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(f"{args.out}: {picture.shape[1]}x{picture.shape[0]}, {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
