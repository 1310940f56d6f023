"""Real rclpy, real topics: the node runs in its own process, the tests are its camera and its subscribers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A domain of our own, so that other ROS programs on this machine or network do not interfere. Set before rclpy reads it.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

import rclpy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.qos import QoSProfile, qos_profile_sensor_data  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2  # noqa: E402

from cards import PATIENCE  # noqa: E402

OUTPUTS = {"depth/image": Image, "depth/camera_info": CameraInfo, "depth/points": PointCloud2, "depth/color": Image}


class NodeProcess:
    """A depth node in its own process, and the lines it prints."""

    def __init__(self, namespace: str, arguments: list[str], environment: dict[str, str]):
        command = [sys.executable, "-m", "fadepth_ros.node", "--ros-args", "-r", f"__ns:={namespace}", *arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self._process.stdout), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def stop(self) -> int:
        """Send SIGINT and return the exit status."""
        if self.alive:
            self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        self._reader.join(PATIENCE)
        return status


class Robot:
    """Publishes as a camera, and subscribes to the node's outputs and diagnostics.

    Attributes:
        received: messages of each output, in order.
        diagnostics, level: of the last status.
        info: CameraInfo that is published with every image, as drivers do; None for none.
    """

    def __init__(self, namespace: str, process: NodeProcess):
        self.process = process
        self.node = rclpy.create_node("robot", namespace=namespace)
        self.received: dict[str, list] = {name: [] for name in OUTPUTS}
        self.diagnostics: dict[str, str] = {}
        self.level: bytes | None = None
        self.info: CameraInfo | bytes | None = None
        self._image = self.node.create_publisher(Image, "image", qos_profile_sensor_data)
        self._compressed = self.node.create_publisher(CompressedImage, "image/compressed", qos_profile_sensor_data)
        self._info = self.node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._subscriptions = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def subscribe(self, *outputs: str) -> None:
        for name in outputs:
            self._subscriptions[name] = self.node.create_subscription(
                OUTPUTS[name], name, self.received[name].append, QoSProfile(depth=10)
            )
        self.wait_for(lambda: all(self.node.count_publishers(self.node.resolve_topic_name(n)) for n in outputs))

    def unsubscribe(self) -> None:
        for subscription in self._subscriptions.values():
            self.node.destroy_subscription(subscription)
        self._subscriptions = {}

    def wait_for_node(self, compressed: bool = False) -> None:
        """Wait until the node has subscribed to the camera's topics."""
        publisher = self._compressed if compressed else self._image
        self.wait_for(lambda: publisher.get_subscription_count() and self._info.get_subscription_count())

    def publish_image(self, message: Image | bytes) -> None:
        if self.info is not None:
            self._info.publish(self.info)
        self._image.publish(message if isinstance(message, bytes) else serialize_message(message))

    def publish_compressed(self, message: CompressedImage) -> None:
        self._compressed.publish(message)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rclpy.spin_once(self.node, timeout_sec=0.02)

    def wait_for(self, condition) -> None:
        """Spin until `condition()` is true."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"no success within {PATIENCE} s; the node printed:\n{self.process.log}"
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def dropped(self, cause: str) -> int:
        return int(self.diagnostics.get(f"dropped: {cause}", "0"))

    def problems(self, cause: str) -> int:
        return int(self.diagnostics.get(f"problem: {cause}", "0"))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{self.node.get_namespace().rstrip('/')}/depth: depth":
                self.diagnostics = {value.key: value.value for value in status.values}
                self.level = status.level


@pytest.fixture(scope="session", autouse=True)
def _rclpy():
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope="session")
def start_robot(_rclpy):
    """Starts a depth node process in its own namespace ("NS" in its arguments) and the robot around it."""
    running: list[tuple[NodeProcess, Robot]] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> Robot:
        namespace = f"/robot{len(running)}"
        process = NodeProcess(namespace, [a.replace("NS", namespace) for a in arguments], environment or {})
        robot = Robot(namespace, process)
        running.append((process, robot))
        return robot

    yield start
    failures = {robot.node.get_namespace(): process.log for process, robot in running if process.stop() != 0}
    for _, robot in running:
        robot.node.destroy_node()
    assert not failures, "these nodes did not end cleanly: " + "\n".join(f"{k}\n{v}" for k, v in failures.items())
