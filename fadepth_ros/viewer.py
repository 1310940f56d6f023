"""Shows the depth node's outputs: as a page in a browser, in Foxglove or, without a screen, as a video and a contact sheet.

Subscribes to `image` or `image/compressed`, `depth/points` and `/diagnostics`, and prints a status line with frames per
second, latency and drops. Part of the demo. It also shows recordings of `fadepth predict` that are played.
"""

from __future__ import annotations

import functools
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from fadepth_core.common.files import user_path
from fadepth_core.common.folders import check_output, mark_output
from fadepth_core.messages.cdr import read_stamp
from fadepth_core.messages.encodings import BitDepth
from fadepth_core.messages.images import read_compressed
from fadepth_core.runtime.pictures import COLOR_RANGE, depth_to_color
from fadepth_ros.foxglove_view import LAYOUT, FoxgloveView
from fadepth_ros.messages import read_image
from fadepth_ros.page_view import PageView
from fadepth_ros.parameters import Spec, declare, warn_of_unknown_parameters
from fadepth_ros.process import has_screen, one_line, program, say
from fadepth_ros.scene import Scene, View, cloud_arrays, status_line

SPECS = (
    Spec("mode", "auto", "auto: page if there is a screen, else files.", choices=("auto", "page", "foxglove", "files")),
    # By default only this machine can look, because camera images are private.
    Spec(
        "host", "localhost", "Address that page or Foxglove's connection is served on; 0.0.0.0 for the whole network."
    ),
    Spec(
        "port",
        0,
        "Port of the page (0: 8080; if it is in use, the next free one) or of Foxglove's connection (0: 8765).",
        limits=(0, 65535),
    ),
    Spec("record", "", "With mode foxglove: MCAP file to write what is shown to; it must not exist."),
    Spec("image_transport", "raw", "Topic type of the images, as in the node.", choices=("raw", "compressed")),
    Spec("directory", "demo_output", "Folder of the files."),
    Spec("fps", 25.0, "Frames per second of the video.", limits=(0.1, 1000.0)),
)
#: Ports by default: Viser's and Foxglove's own.
_PAGE_PORT, _FOXGLOVE_PORT = 8080, 8765
#: Frames whose other messages may still arrive. More would hold much memory: one of a 4K camera is 25 MB.
_MOST_WAITING = 8
#: Of them, those kept when depth arrives.
_NEWEST = 4
#: Larger latencies are those of a recording that is played: its stamps are old. Seconds.
_MOST_LATENCY = 60.0
#: Seconds between two lines about messages that cannot be shown.
_COMPLAINT_PERIOD = 5.0
#: Seconds for finishing the video and the contact sheet after a signal.
_REACTION, _CLEANUP = 8.0, 20.0


class FileView:
    """A video of all frames (depth.mp4) and, at the end, a contact sheet of six of them (depth.png), in `directory`.

    All pictures have the layout of the first one. Later images of another shape are shown with borders.

    Raises:
        DataError: the folder has a file of one of these names that this program did not write.
    """

    _WIDTH = 640
    _MAX_HEIGHT = 960  # of one panel

    def __init__(self, directory: Path, fps: float):
        directory.mkdir(parents=True, exist_ok=True)
        self.video_path, self.sheet_path = directory / "depth.mp4", directory / "depth.png"
        check_output(directory, (self.video_path.name, self.sheet_path.name))
        self._fps = fps
        self._video: cv2.VideoWriter | None = None
        self._heights: list[int] = []  # of the panels with the image and the depth, pixels
        self._shown = 0
        self._pictures: list[np.ndarray] = []  # for the sheet: every `_every`-th
        self._every = 1

    def show(self, scene: Scene) -> None:
        picture = self._compose(scene)
        if self._video is None:
            size = (picture.shape[1], picture.shape[0])
            mark_output(self.video_path.parent, [self.video_path.name])
            self._video = cv2.VideoWriter(str(self.video_path), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size)
            if not self._video.isOpened():
                raise OSError(f"{self.video_path}: OpenCV cannot write a video here")
        self._video.write(picture)
        if self._shown % self._every == 0:
            self._pictures.append(picture)
            if len(self._pictures) > 12:  # keep every second one: the clip's length is unknown
                self._pictures, self._every = self._pictures[::2], 2 * self._every
        self._shown += 1

    def close(self) -> None:
        if self._video is None:
            return
        self._video.release()
        chosen = [
            self._pictures[i] for i in np.linspace(0, len(self._pictures) - 1, min(6, len(self._pictures))).astype(int)
        ]
        rows = [np.hstack((chosen[i : i + 2] * 2)[:2]) for i in range(0, len(chosen), 2)]
        try:
            written = cv2.imwrite(str(self.sheet_path), np.vstack(rows))
            if written:
                mark_output(self.sheet_path.parent, [self.sheet_path.name])
        except (OSError, cv2.error):
            written = False
        if not written:  # the video is finished nevertheless
            say(f"{self.sheet_path} cannot be written")

    def _compose(self, scene: Scene) -> np.ndarray:
        """Camera, depth and cloud, one above the other, BGR for OpenCV's writers."""
        width = self._WIDTH
        if not self._heights:
            self._heights = [self._panel_height(scene.image), self._panel_height(scene.depth)]
        color = depth_to_color(scene.depth, *COLOR_RANGE)
        cloud = draw_points(scene.points[scene.finite], scene.colors[scene.finite], (width * 7 // 16, width))
        panels = []
        for title, rgb, height in zip(
            ("camera", "depth", "points, from behind and above the camera"),
            (scene.image, color, cloud),
            (*self._heights, cloud.shape[0]),
            strict=True,
        ):
            panel = cv2.cvtColor(_fit(rgb, (height, width)), cv2.COLOR_RGB2BGR)
            panels.append(_label(panel, title, 18))
        picture = np.vstack(panels)
        _label(picture, scene.status, picture.shape[0] - 10)
        if scene.warning:
            _label(picture, scene.warning, picture.shape[0] - 34, (80, 160, 255))
        return picture

    def _panel_height(self, rgb: np.ndarray) -> int:
        """Even, as video codecs need it, and high enough for the panel's title."""
        height = round(rgb.shape[0] * self._WIDTH / rgb.shape[1])
        return min(max(height, 32), self._MAX_HEIGHT) // 2 * 2


def _fit(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image scaled into (height, width), with black borders if its shape differs."""
    (height, width), (h, w) = size, rgb.shape[:2]
    scale = min(height / h, width / w)
    h, w = max(round(scale * h), 1), max(round(scale * w), 1)
    if abs(height - h) <= 1 and abs(width - w) <= 1:  # differs by rounding
        return cv2.resize(rgb, (width, height))
    panel = np.zeros((height, width, 3), np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    panel[top : top + h, left : left + w] = cv2.resize(rgb, (w, h))
    return panel


def _label(picture: np.ndarray, text: str, y: int, color: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    (width, height), _ = cv2.getTextSize(text, font, size, 1)
    cv2.rectangle(picture, (4, y - height - 4), (12 + width, y + 5), (0, 0, 0), cv2.FILLED)
    cv2.putText(picture, text, (8, y), font, size, color, 1, cv2.LINE_AA)
    return picture


def draw_points(points: np.ndarray, colors: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw a cloud as seen from behind and above its camera: [h, w, 3] uint8.

    Args:
        points: [N, 3] metres, optical frame (x right, y down, z forward).
        colors: [N, 3] uint8.
        size: (height, width) of the picture, pixels.
    """
    height, width = size
    picture = np.full((height, width, 3), 24, np.uint8)
    if len(points) == 0:
        return picture
    # The viewpoint depends on the cloud's extent, so that a room and a road both fill the picture.
    reach = float(np.quantile(points[:, 2], 0.8))
    tilt = np.radians(20.0)
    offset = points - np.array([0.0, -0.25 * reach, -0.35 * reach], np.float32)
    y = np.cos(tilt) * offset[:, 1] - np.sin(tilt) * offset[:, 2]
    z = np.sin(tilt) * offset[:, 1] + np.cos(tilt) * offset[:, 2]
    focal = 0.8 * width
    u = (width / 2 + focal * offset[:, 0] / z).astype(np.int32)
    v = (0.45 * height + focal * y / z).astype(np.int32)
    visible = (z > 0.05 * reach) & (u >= 0) & (u < width - 1) & (v >= 0) & (v < height - 1)
    order = np.flatnonzero(visible)[np.argsort(-z[visible])]  # near points are drawn last, over the far ones
    for du, dv in ((0, 0), (1, 0), (0, 1), (1, 1)):
        picture[v[order] + dv, u[order] + du] = colors[order]
    return picture


class Viewer(Node):
    """Collects image and points of one stamp and shows them. Its parameters are `SPECS`.

    A message that cannot be read or shown is reported and skipped.

    Args:
        options: for `rclpy.node.Node`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("viewer", **options)
        values = declare(self, SPECS)
        warn_of_unknown_parameters(self)
        mode = values["mode"]
        if mode == "auto":
            mode = "page" if has_screen() else "files"
        if values["record"] and mode != "foxglove":
            raise ValueError(f"record: {values['record']}: only with mode foxglove")
        if mode == "page":
            self._view: View = PageView(values["host"], values["port"] or _PAGE_PORT)
            say(f"\n  Look at {self._view.url}   (Ctrl-C ends)\n")
            open_browser(self._view.url)
        elif mode == "foxglove":
            record = user_path(values["record"]) if values["record"] else None
            self._view = FoxgloveView(values["host"], values["port"] or _FOXGLOVE_PORT, record)
            say(f"\n  Open {self._view.url} in Foxglove, with the layout {LAYOUT}   (Ctrl-C ends)\n")
        else:
            self._view = FileView(user_path(values["directory"]), values["fps"])
            say(f"\n  Writing {self._view.video_path} and {self._view.sheet_path}\n")
        # Seconds between two scenes. The page is limited, because a browser cannot show more; files get every frame.
        self._period = 1.0 / 12.0 if mode == "page" else 0.0
        self._last_shown = 0.0
        self._waiting: dict[tuple[int, int], dict[str, bytes]] = {}
        self._bit_depth = BitDepth()
        self._arrivals: deque[tuple[float, float]] = deque(maxlen=512)
        self._diagnostics: dict[str, str] = {}
        self._line_due = 0.0
        self._complaint_due = 0.0
        self._compressed = values["image_transport"] == "compressed"
        image: tuple[Any, str] = (Image, "image")
        if self._compressed:  # the base name is remapped, as image_transport does it
            image = (CompressedImage, f"{self.resolve_topic_name('image')}/compressed")
        for part, (kind, topic), qos in (
            ("image", image, qos_profile_sensor_data),
            ("depth/points", (PointCloud2, "depth/points"), QoSProfile(depth=2)),
        ):
            self.create_subscription(kind, topic, functools.partial(self._on_part, part), qos, raw=True)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def close(self) -> None:
        say(f"\r{self._status():<110}")
        self._view.close()

    def _on_part(self, topic: str, raw: bytes) -> None:
        try:
            self._collect(topic, raw)
            self._print_line()
        except OSError:  # the view cannot be written
            raise
        except Exception as error:
            # Whatever the message contains: it must not end the recording.
            now = time.monotonic()
            if now >= self._complaint_due:
                self._complaint_due = now + _COMPLAINT_PERIOD
                say(f"\ra message of {topic} cannot be shown: {type(error).__name__}: {one_line(error)}")

    def _collect(self, topic: str, raw: bytes) -> None:
        """Keep a message until the others of its stamp are there; then show them."""
        stamp = read_stamp(raw)
        parts = self._waiting.setdefault(stamp, {})
        parts[topic] = raw
        if topic == "depth/points":
            age = 1e-9 * (self.get_clock().now().nanoseconds - stamp.nanoseconds)
            self._arrivals.append((time.monotonic(), age))
        arrived = list(self._waiting)  # in this order
        if topic != "image":
            # The node, which has just published, takes one of the newest images as its next one.
            for frame in arrived[:-_NEWEST]:
                if frame != stamp:
                    del self._waiting[frame]
        elif len(arrived) > _MOST_WAITING:
            # Depth may come many frames later, and then for one of the older images.
            del self._waiting[arrived[-2]]
        if len(parts) == 2:
            for older in list(self._waiting):
                del self._waiting[older]
                if older == stamp:
                    break
            if time.monotonic() - self._last_shown >= self._period:
                self._last_shown = time.monotonic()
                self._show(parts)

    def _show(self, parts: dict[str, bytes]) -> None:
        frame = (read_compressed if self._compressed else read_image)(parts["image"], self._bit_depth)
        points, colors = cloud_arrays(deserialize_message(parts["depth/points"], PointCloud2))
        self._view.show(
            Scene(
                frame.encoding.to_rgb(frame.pixels),
                points,
                colors,
                frame.frame_id,
                frame.stamp.nanoseconds,
                self._figures(),
                self._warning(),
            )
        )

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(": depth"):
                self._diagnostics = {value.key: value.value for value in status.values}

    def _figures(self) -> dict[str, float | str]:
        """Frames per second, latency (ms) unless the stamps are old, and, if a node computes depth, drops and its engine."""
        now = time.monotonic()
        recent = [(t, age) for t, age in self._arrivals if now - t <= 2.0]
        if not recent:
            return {}
        figures: dict[str, float | str] = {"frames_per_second": len(recent) / max(now - recent[0][0], 0.5)}
        latency = float(np.median([age for _, age in recent]))
        if abs(latency) < _MOST_LATENCY:
            figures["latency_ms"] = 1e3 * latency
        if self._diagnostics:  # else nothing computes depth: it was recorded
            figures["dropped"] = sum(
                int(n)
                for key, n in self._diagnostics.items()
                if key.startswith("dropped:") and "no_subscriber" not in key and n.isdecimal()
            )
            figures["engine"] = self._diagnostics.get("engine", "engine starting")
        return figures

    def _status(self) -> str:
        return status_line(self._figures())

    def _warning(self) -> str:
        untrained = self._diagnostics.get("checkpoint", "").endswith("(untrained)")
        return "UNTRAINED NETWORK: this is not depth yet" if untrained else ""

    def _print_line(self) -> None:
        now = time.monotonic()
        if now < self._line_due:
            return
        live = sys.stdout.isatty()
        self._line_due = now + (0.25 if live else 1.0)
        say(f"\r{self._status():<110}" if live else self._status(), end="" if live else "\n")


def open_browser(url: str) -> None:
    if has_screen():
        import webbrowser

        webbrowser.open(url)


def main() -> None:
    with program("viewer") as shutdown:
        shutdown.reaction, shutdown.cleanup = _REACTION, _CLEANUP
        viewer = Viewer()
        executor = SingleThreadedExecutor()
        executor.add_node(viewer)
        try:
            while not shutdown.requested:
                executor.spin_once(timeout_sec=0.2)
        except ExternalShutdownException:
            pass
        finally:  # also after an error: what is recorded is kept
            shutdown.acknowledge()
            viewer.close()


if __name__ == "__main__":
    main()
