"""Map of the free floor of a world, used to place cameras and furniture."""

from __future__ import annotations

import cv2
import numpy as np

from fadepth_core.rendering.raster import Geometry

Random = np.random.Generator

#: Side of a cell of the map, metres.
CELL = 0.08
#: Smaller free regions are ignored, square metres. They are usually inside of objects such as cupboards.
_MIN_AREA = 1.5
#: Objects lower than this are not obstacles, metres.
_STEP = 0.12
#: Camera heights for which a map is made, metres.
_PLANES = (0.3, 0.7, 1.1, 1.7)


class Places:
    """Grid map of the free floor of a world in the scenes' axes (y down, floor at y = 0).

    For each of the heights `_PLANES`, a cell is free if there is floor and nothing between the floor and a camera at
    that height. The free cells must be connected to a large free region.

    Args:
        geometry: of the world.
        clearance: smallest horizontal distance of a camera to obstacles, metres.

    Attributes:
        roofed: share of the free floor with a roof or ceiling above it, 0..1.
        wall_height: estimated height of the walls, metres.
    """

    def __init__(self, geometry: Geometry, clearance: float = 0.35):
        points, level = _surface_points(geometry)
        height = -points[:, 1]
        ground = points[level & (np.abs(height) < _STEP)]
        if not len(ground):
            ground = np.zeros((1, 3), np.float32)
        self._clearance = clearance
        self._origin = ground[:, [0, 2]].min(0) - 2 * CELL
        self._shape = tuple(((ground[:, [2, 0]].max(0) - self._origin[::-1]) / CELL).astype(int) + 3)
        floor = cv2.morphologyEx(self._occupied(ground), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        free = []
        for plane in _PLANES:
            blocked = self._occupied(points[(height > _STEP) & (height < plane + 0.25)])
            free.append(floor & (1 - cv2.morphologyEx(blocked, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))))
        open_floor = _large_regions(free[-1])
        # For each of `_PLANES`: distance of each cell to the nearest obstacle, metres.
        self._distance = [cv2.distanceTransform(_reachable(f, open_floor), cv2.DIST_L2, 5) * CELL for f in free]
        above = points[level & (height > 2.0)]
        covered = cv2.morphologyEx(self._occupied(above), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
        free = self._distance[0] > 0
        self.roofed = float(covered[free].mean()) if free.any() else 0.0
        self.wall_height = self._wall_height(points[(height > 2.2) & (height < 12)])
        self._above = above

    def area(self) -> float:
        """Area in which a low camera can be placed, square metres."""
        return float((self._distance[0] > self._clearance).sum()) * CELL**2

    def draw(self, rng: Random, height: float) -> np.ndarray | None:
        """Draw a position [3] for a camera at `height` metres; None if there is no place for it."""
        plane = min(int(np.searchsorted(_PLANES, height)), len(_PLANES) - 1)
        cells = np.flatnonzero(self._distance[plane] > self._clearance)
        if not len(cells):
            return None
        row, column = np.unravel_index(rng.choice(cells), self._shape)
        x, z = self._origin + (np.array([column, row]) + rng.random(2)) * CELL
        return np.array([x, -height, z])

    def draw_near(self, rng: Random, position: np.ndarray, reach: float, radius: float) -> np.ndarray | None:
        """Draw a place (x, z) for an object of that radius, at most `reach` metres from `position` [3]; or None."""
        column, row = ((position[[0, 2]] - self._origin) / CELL).astype(int)
        cells = int(reach / CELL)
        top, left = max(0, row - cells), max(0, column - cells)
        rows, columns = np.nonzero(self._distance[-1][top : row + cells + 1, left : column + cells + 1] > radius)
        places = self._origin + (np.stack([columns + left, rows + top], 1) + 0.5) * CELL
        places = places[np.hypot(*(places - position[[0, 2]]).T) < reach]
        return places[rng.integers(len(places))] if len(places) else None

    def ceiling(self, position: np.ndarray) -> float:
        """Height of the ceiling above a position [3], metres. Without a ceiling: the height of the walls."""
        near = np.abs(self._above[:, [0, 2]] - position[[0, 2]]).max(1) < 0.3
        return float(-self._above[near, 1].max()) if near.any() else self.wall_height

    def _wall_height(self, points: np.ndarray) -> float:
        """Height of the walls, metres, from points higher than a door; 2.6 without points.

        It is the height that the highest points of 80 % of the cells reach; cells without points do not count.
        """
        if not len(points):
            return 2.6
        cells = ((points[:, [2, 0]] - self._origin[::-1]) / CELL).astype(int)
        _, column = np.unique(cells, axis=0, return_inverse=True)
        tops = np.zeros(column.max() + 1)
        np.maximum.at(tops, column.ravel(), -points[:, 1])
        return float(np.quantile(tops, 0.2))

    def _occupied(self, points: np.ndarray) -> np.ndarray:
        """Grid uint8 [rows, columns], 1 in cells with points."""
        grid = np.zeros(self._shape, np.uint8)
        cells = ((points[:, [2, 0]] - self._origin[::-1]) / CELL).astype(int)
        inside = ((cells >= 0) & (cells < self._shape)).all(1)
        grid[tuple(cells[inside].T)] = 1
        return grid


def _large_regions(free: np.ndarray) -> np.ndarray:
    """The connected regions with an area of more than `_MIN_AREA`, uint8 [rows, columns]."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(free, connectivity=4)
    large = statistics[:, cv2.CC_STAT_AREA] * CELL**2 > _MIN_AREA
    large[0] = False  # label 0 is the floor that is not free
    return large[labels].astype(np.uint8)


def _reachable(free: np.ndarray, open_floor: np.ndarray) -> np.ndarray:
    """The regions of `free` that are connected to `open_floor`, uint8 [rows, columns].

    They include the space under a table, but not the inside of a box or bed.
    """
    count, labels = cv2.connectedComponents(free, connectivity=4)
    reached = np.zeros(count, bool)
    reached[np.unique(labels[open_floor > 0])] = True
    reached[0] = False
    return reached[labels].astype(np.uint8)


def _surface_points(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] on all triangles, at distances of less than a cell, and whether their triangle is level [N]."""
    corners = geometry.vertices[geometry.faces].astype(np.float64)
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normal = np.cross(a, b)
    level = np.abs(normal[:, 1]) > 0.9 * np.linalg.norm(normal, axis=1)
    longest = np.sqrt(np.max([(edge**2).sum(1) for edge in (a, b, a - b)], axis=0))
    steps = np.clip(np.ceil(longest / (0.7 * CELL)), 1, 600).astype(int)
    points, levels = [], []
    for n in np.unique(steps):
        chosen = steps == n
        i, j = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
        keep = i + j <= n
        u, v = (i[keep] / n)[:, None], (j[keep] / n)[:, None]
        here = corners[chosen, 0][:, None] + u * a[chosen][:, None] + v * b[chosen][:, None]
        points.append(here.reshape(-1, 3).astype(np.float32))
        levels.append(np.repeat(level[chosen], len(u)))
    return np.concatenate(points), np.concatenate(levels)
