"""A clip of a street between two walls, with depth in closed form, for tests of stereo and of the commands."""

from __future__ import annotations

import json

import cv2
import numpy as np

SIZE = (64, 96)
K = np.array([[70.0, 0, 47], [0, 70, 24], [0, 0, 1]])
STEP = 0.5  # metres between two frames
HEIGHT, HALF_STREET, END = 1.5, 4.0, 28.0
GAP = 3.0  # nothing is nearer, metres


def render_view(z, ball=None):
    """Grey picture and depth [H, W] of the street with the camera at (0, 0, z) metres: road, two walls, and an end wall.

    Args:
        ball: x of a disc of radius 1 m, 5 m ahead of z = 0; None: no disc.
    """
    v, u = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    with np.errstate(divide="ignore"):
        road = np.where(y > 0, HEIGHT / y, np.inf)
        wall = HALF_STREET / np.abs(x)
    surfaces = np.stack([road, wall, np.full_like(x, END - z)])
    if ball is not None:
        depth = 5 - z
        surfaces = np.concatenate([surfaces, np.where(np.hypot(x * depth - ball, y * depth) < 1, depth, np.inf)[None]])
    kind, depth = surfaces.argmin(0), surfaces.min(0)
    px, py, pz = x * depth, y * depth, z + depth
    across, along = np.select([kind == 0, kind == 1], [px, py], px), np.where(kind >= 2, py, pz)
    if ball is not None:
        across = np.where(kind == 3, px - ball, across)
    return texture(across + 20 * kind, along), depth


def texture(a, b):
    """Noise with details of 0.1 to 0.5 m, at plane coordinates in metres."""
    noise = np.random.default_rng(0).random((512, 512), np.float32)
    total = np.zeros(a.shape)
    for texels, strength in ((2, 0.5), (5, 0.3), (10, 0.2)):
        at = ((a * texels + 100) % 511).astype(np.float32), ((b * texels + 100) % 511).astype(np.float32)
        total += strength * cv2.remap(noise, *at, cv2.INTER_LINEAR)
    return (total * 255).astype(np.uint8)


def write_frames(folder, count=14, poses=True, ball=lambda i: None, step=STEP):
    """Write a clip as PNG files with camera.json; `ball(i)` is the ball's x in frame i."""
    folder.mkdir()
    rows = np.tile(np.eye(4)[:3], (count, 1, 1))
    rows[:, 2, 3] = step * np.arange(count)
    np.savetxt(folder / "poses.txt", rows.reshape(count, 12))
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:03d}.png"), render_view(step * i, ball(i))[0])
    camera = {"fx": 70, "fy": 70, "cx": 47, "cy": 24, "fps": 10} | ({"poses": "poses.txt"} if poses else {})
    (folder / "camera.json").write_text(json.dumps(camera))
