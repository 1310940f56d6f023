"""Shows scenes on a page in the browser (Viser): the cloud, with the camera image, the depth and their controls beside it."""

from __future__ import annotations

import errno
import io
import socket
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fadepth_core.runtime.pictures import COLOR_RANGE, depth_to_color
from fadepth_core.runtime.snapshot import write_snapshot
from fadepth_ros.scene import Scene

#: What the slider can set, metres.
_SLIDER = (0.1, 100.0)
#: Points are this much larger than the distance of neighbours on a surface that faces the camera: others are farther apart.
_OVERLAP = 1.4
#: The cloud is drawn in this many parts from near to far, because Viser has one size for all points of a part.
_PARTS = 8
#: Vertical field of view, rad, and downward tilt, rad, of the viewpoint.
_FOV, _TILT = np.radians(50.0), np.radians(12.0)
#: Share of the points that may be outside of the first view: single points far away do not decide about it.
_OUTSIDE = 0.02


class PageView:
    """A page served by this process.

    A slider sets the range of depth: colours of the depth image, and points that are shown. A button downloads the frame.

    Args:
        host: address that the page is served on.
        port: of the page; if it is in use, the next free one.

    Raises:
        ImportError: Viser is not installed.
        OSError: the address cannot be used.
    """

    def __init__(self, host: str, port: int):
        import viser

        _check_address(host, port)  # Viser would wait for ever
        self._server = viser.ViserServer(host=host, port=port, label="fadepth", verbose=False)
        gui = self._server.gui
        gui.configure_theme(
            control_layout="fixed", control_width="large", dark_mode=True, show_logo=False, show_share_button=False
        )
        self._server.scene.set_up_direction("-y")  # optical frame: y points down
        self._warning = gui.add_markdown("")
        self._status = gui.add_markdown("waiting for depth")
        blank = np.zeros((32, 104, 3), np.uint8)
        self._image = gui.add_image(blank, label="camera", format="jpeg")
        self._depth = gui.add_image(blank, label="depth", format="jpeg")
        self._legend = gui.add_image(draw_legend(*COLOR_RANGE), label="metres", format="png")
        self._range: Any = gui.add_multi_slider(
            "near, far (m)", min=_SLIDER[0], max=_SLIDER[1], step=0.1, initial_value=COLOR_RANGE, min_range=0.5
        )
        self._colors = gui.add_dropdown("points", ("camera's colours", "depth's colours"))
        whole, save = gui.add_button("Show the whole cloud"), gui.add_button("Save picture, depth and cloud")
        self._range.on_update(self._on_control)
        self._colors.on_update(self._on_control)
        whole.on_click(self._on_whole)
        save.on_click(lambda event: self._save(event.client))
        self._server.scene.add_frame("/camera", show_axes=False)
        self._drawing = threading.Lock()  # Viser calls the functions of the controls in threads
        self._parts: dict[int, Any] = {}  # drawn parts of the cloud, by their number
        self._scene: Scene | None = None
        self._fitted: set[int] = set()  # clients whose viewpoint has been set
        self.url = f"http://{host}:{self._server.get_port()}"

    def show(self, scene: Scene) -> None:
        if self._scene is None or not self._scene.finite.any():
            self._set_range(scene)
        self._scene = scene
        with self._server.atomic():
            self._draw()
            self._image.image = scene.image
            self._status.content = scene.status
            self._warning.content = f"**{scene.warning}**" if scene.warning else ""
        for number, client in self._server.get_clients().items():
            if number not in self._fitted:
                self._fitted.add(number)
                self._look(client)

    def close(self) -> None:
        self._server.stop()

    def _draw(self) -> None:
        """Draw what depends on the controls."""
        with self._drawing:
            if self._scene is not None:
                self._draw_scene(self._scene)

    def _draw_scene(self, scene: Scene) -> None:
        near, far = self._range.value
        color = depth_to_color(scene.depth, near, far)
        self._depth.image = color
        by_depth = self._colors.value == self._colors.options[1] and color.shape == scene.colors.shape
        parts = split_by_depth(scene.points, color if by_depth else scene.colors, (near, far), _PARTS)
        for index, (points, colors, size) in enumerate(parts):
            if len(points):
                self._parts[index] = self._server.scene.add_point_cloud(
                    f"/camera/points/{index}", points, colors, point_size=size, point_shading="flat"
                )
            elif index in self._parts:  # Viser draws no empty cloud
                self._parts.pop(index).remove()

    def _set_range(self, scene: Scene) -> None:
        """Let the slider begin with the range of a scene, and reach twice as far: a room and a road differ."""
        near, far = depth_range(scene)
        self._range.max = min(2 * far, _SLIDER[1])
        self._range.value = (near, far)

    def _on_control(self, _event: Any) -> None:
        near, far = self._range.value
        self._legend.image = draw_legend(near, far)
        with self._server.atomic():
            self._draw()

    def _on_whole(self, event: Any) -> None:
        if self._scene is not None:
            self._set_range(self._scene)
            self._on_control(event)
        self._look(event.client)

    def _look(self, client: Any) -> None:
        """Set a client's viewpoint so that the cloud fills the view."""
        scene = self._scene
        if scene is None or client is None:
            return
        near, far = self._range.value
        points = scene.points[scene.finite]
        points = points[(points[:, 2] >= near) & (points[:, 2] <= far)]
        if not len(points):
            return
        position, target = fit_view(points, client.camera.aspect, _FOV, _TILT)
        with client.atomic():
            client.camera.fov = float(_FOV)
            client.camera.up_direction = (0.0, -1.0, 0.0)
            client.camera.position = tuple(position)
            client.camera.look_at = tuple(target)

    def _save(self, client: Any) -> None:
        """Let a client's browser download the frame on the page."""
        scene = self._scene
        if scene is None or client is None:
            return
        name = f"fadepth_{scene.stamp // 10**6}"
        client.send_file_download(f"{name}.zip", pack_snapshot(scene, name), save_immediately=True)


def pack_snapshot(scene: Scene, name: str) -> bytes:
    """A zip file with the picture (PNG), the depth (NPY, float32 metres) and the cloud (PLY) of a scene, called `name`."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w") as archive:
        for path in write_snapshot(Path(folder), name, scene.image, scene.depth, scene.points, scene.colors):
            archive.write(path, path.name)
    return packed.getvalue()


def depth_range(scene: Scene) -> tuple[float, float]:
    """Nearest and farthest depth of a scene with a margin, metres, within what the slider can set."""
    depth = scene.points[scene.finite][:, 2]
    if not len(depth):
        return COLOR_RANGE
    near, far = np.quantile(depth, (_OUTSIDE / 2, 1 - _OUTSIDE / 2)) * (0.8, 1.25)
    near = np.clip(round(float(near), 1), _SLIDER[0], _SLIDER[1] / 2)
    return float(near), float(np.clip(round(float(far), 1), near + 0.5, _SLIDER[1]))


def split_by_depth(
    points: np.ndarray, colors: np.ndarray, limits: tuple[float, float], parts: int
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """The points of a cloud from near to far, each part with the size that closes the gaps between its points.

    Neighbours at depth z are z / f apart, so that a single size would be too large for near points or too small for far ones.

    Args:
        points: [h, w, 3], an image of points; NaN where there is no depth.
        colors: [h, w, 3] uint8.
        limits: nearest and farthest depth to keep, metres.
        parts: how many; each covers the same ratio of depths, and may be empty.

    Returns:
        Points [N, 3], colours [N, 3] and size of a point (metres) of each part.
    """
    z = points[..., 2]
    with np.errstate(invalid="ignore"):
        keep = np.isfinite(points).all(-1) & (z >= limits[0]) & (z <= limits[1])
    points, colors, depth = points[keep], colors[keep], z[keep]
    angle = _OVERLAP * _pixel_angle(z, keep, points)
    edges = np.geomspace(*limits, parts + 1)
    part = np.clip(np.searchsorted(edges, depth, side="right") - 1, 0, parts - 1)
    found = []
    for index in range(parts):
        own = part == index
        size = angle * float(np.median(depth[own])) if own.any() else angle * float(edges[index])
        found.append((points[own], colors[own], size))
    return found


def _pixel_angle(z: np.ndarray, keep: np.ndarray, points: np.ndarray) -> float:
    """Distance of neighbouring points divided by their depth: 1 / f in pixels, the larger one of both directions.

    Args:
        points: [N, 3], those of `keep` [h, w].
    """
    if len(points) < 2:
        return 0.005
    rows, columns = np.nonzero(keep)
    slopes = [
        np.ptp(points[:, axis] / points[:, 2]) / max(np.ptp(index), 1)
        for axis, index in ((0, columns), (1, rows))
        if np.ptp(index) > 0
    ]
    return float(max(slopes)) if slopes and z.shape[0] > 1 else 0.005


def fit_view(points: np.ndarray, aspect: float, fov: float, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """The viewpoint from which a cloud fills the view, seen along the optical axis and `tilt` downwards.

    Args:
        points: [N, 3], optical frame (y down).
        aspect: width divided by height of the view.
        fov: vertical field of view, rad.
        tilt: rad.

    Returns:
        Position and a point in the middle of the view, [3] each.
    """
    forward = np.array([0.0, np.sin(tilt), np.cos(tilt)])
    down = np.array([0.0, np.cos(tilt), -np.sin(tilt)])
    across, along, ahead = points[:, 0], points @ down, points @ forward
    half = np.tan(fov / 2)
    # A point is inside if |across - a| <= half * aspect * (ahead - c): two half planes for each direction. The nearest
    # viewpoint c that has all points inside follows from the outermost points on both sides.
    centre, reach = [], []
    for values, slope in ((across, half * aspect), (along, half)):
        high = np.quantile(values - slope * ahead, 1 - _OUTSIDE / 2)
        low = np.quantile(-values - slope * ahead, 1 - _OUTSIDE / 2)
        centre.append((high - low) / 2)
        reach.append(-(high + low) / (2 * slope))
    c = min(reach)
    position = np.array([centre[0], 0.0, 0.0]) + centre[1] * down + c * forward
    # The direction that is as wide as the view is in its middle now. The other one is brought there by looking at its middle.
    distance = ahead - c
    seen = distance > 0.05 * np.median(distance)
    slopes = [
        np.quantile(values[seen] / distance[seen], (_OUTSIDE / 2, 1 - _OUTSIDE / 2)).mean()
        for values in (across - centre[0], along - centre[1])
    ]
    direction = forward + slopes[0] * np.array([1.0, 0.0, 0.0]) + slopes[1] * down
    return position, position + max(np.median(distance), 1e-3) * direction


def draw_legend(near: float, far: float, size: tuple[int, int] = (44, 416)) -> np.ndarray:
    """The colours of depth with their metres: [h, w, 3] uint8 RGB, near on the left."""
    height, width = size
    bar = height // 2
    depth = np.geomspace(near, far, width, dtype=np.float32)
    picture = np.full((height, width, 3), 24, np.uint8)
    picture[:bar] = depth_to_color(depth[None].repeat(bar, 0), near, far)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.4
    right = -width
    for value in _ticks(near, far):
        text = f"{value:g}"
        x = round(np.log(value / near) / np.log(far / near) * (width - 1))
        (extent, _), _ = cv2.getTextSize(text, font, scale, 1)
        left = int(np.clip(x - extent // 2, 0, width - extent - 2))
        if left <= right + 4:
            continue
        right = left + extent
        cv2.line(picture, (x, bar), (x, bar + 4), (255, 255, 255), 1)
        cv2.putText(picture, text, (left, height - 6), font, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def _ticks(near: float, far: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from `near` to `far`, and both ends, in an order in which the first ones matter most."""
    inside = [digit * 10.0**power for power in range(-2, 4) for digit in (1, 2, 5) if near < digit * 10.0**power < far]
    return sorted({round(near, 2), *inside, round(far, 2)})


def _check_address(host: str, port: int) -> None:
    """Raise OSError if this machine cannot serve on the address. A port in use is no error: Viser takes the next one."""
    problem: OSError | None = None
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(address)
                    return
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        return
                    problem = error
    except (OSError, UnicodeError) as error:
        raise OSError(f"cannot serve a page on '{host}': {error}") from error
    if problem is not None:
        raise OSError(f"cannot serve a page on {host}:{port}: {problem}")
