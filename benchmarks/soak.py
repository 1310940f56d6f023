#!/usr/bin/env python3
"""Runs a node for a long time in changing conditions, and prints once a minute what it costs and whether it answers.

The node runs in its own process with the real engine. This process is its camera, its subscribers and its operator:
subscribers of the outputs come and go, the camera's size changes, messages are damaged, parameters are set (some of them to
values that must be refused), and the node is deactivated, cleaned up, configured and activated.

    python benchmarks/soak.py --minutes 20

A row has the node's memory, file descriptors and threads; the depth images of that minute and their age (stamp to arrival,
ms); the service calls so far, and those without an answer after `PATIENCE` seconds. Exits with 1 if a call was not answered,
the node ended, or a good frame has no depth at the end. Needs /proc.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

#: Seconds to wait for an answer or a depth image; enough for a very busy machine.
PATIENCE = 60.0
#: Frames per second of the camera.
RATE = 15.0
#: Mean seconds between two changes of the conditions.
CHANGE_PERIOD = 1.0
#: Share of the images that are damaged.
DAMAGED = 0.05
NAMESPACE = "/soak"
SIZES = ((120, 160), (120, 160), (240, 320), (90, 200))
OUTPUTS = {"depth/image": Image, "depth/camera_info": CameraInfo, "depth/points": PointCloud2, "depth/color": Image}
#: Parameters and values that are accepted.
GOOD_VALUES = (
    ("depth_scale", (0.5, 1.0, 2.0)),
    ("max_depth", (20.0, 100.0)),
    ("points.stride", (1, 2)),
    ("points.fields", ("xyz", "xyzrgb", "xyzi")),
    ("points.voxel_size", (0.0, 0.1)),
    ("points.edge_threshold", (0.0, 0.03)),
    ("temporal", ("off", "scale", "full")),
    ("depth_encoding", ("32FC1", "16UC1")),
    ("full_resolution", (True, False)),
    ("network_size", ([0, 0], [64, 96])),
    ("checkpoint", ("", "smalldepth")),
)
#: Parameters and values that are refused, with a reason.
BAD_VALUES = (
    ("checkpoint", "/nowhere.safetensors"),
    ("network_size", [100, 100]),
    ("depth_scale", -1.0),
    ("depth_encoding", "mono8"),
    ("max_depth", 0.01),
    ("temporal", "on"),
    ("points.voxel_size", 0.001),
)
#: Transitions that follow one after the other; some do not fit the state and must be answered all the same.
TRANSITIONS = (
    (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE),
    (
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
    ),
    (Transition.TRANSITION_CONFIGURE,),
)
COLUMNS = (
    "minute",
    "MB",
    "fds",
    "threads",
    "depth",
    "age p50",
    "age p99",
    "calls",
    "refused",
    "unanswered",
    "restarts",
)


class Soak:
    """The camera, the subscribers and the operator of the node with process id `pid`."""

    def __init__(self, pid: int, seed: int):
        self.pid = pid
        self.calls = self.refused = self.unanswered = self.joined = self.lifecycles = 0
        self._random = np.random.default_rng(seed)
        self._node = rclpy.create_node("soak", namespace=NAMESPACE)
        self._images = self._node.create_publisher(Image, "image", qos_profile_sensor_data)
        self._infos = self._node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._parameters = self._node.create_client(SetParameters, "depth/set_parameters")
        self._transitions = self._node.create_client(ChangeState, "depth/change_state")
        self._pending: list[tuple[float, Any, Callable[[Any], None]]] = []
        self._subscriptions: list[Any] = []
        self._size = SIZES[0]
        self._due = time.monotonic()
        self._busy = False  # while transitions follow one after the other
        self.ages: list[float] = []
        depth = QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)
        self._node.create_subscription(Image, "depth/image", self._on_depth, depth)

    def wait_for_depth(self) -> bool:
        """Send good frames of the first size until one has depth; whether that happened within `PATIENCE` seconds."""
        self._size, end = SIZES[0], time.monotonic() + PATIENCE
        self.ages.clear()
        while not self.ages and time.monotonic() < end:
            self._send(damaged=False)
        return bool(self.ages)

    def run(self, seconds: float) -> None:
        """Send frames and change the conditions."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._random.random() < 1 / (CHANGE_PERIOD * RATE):
                self._change()
            self._send(self._random.random() < DAMAGED)

    def finish_calls(self) -> None:
        """Wait for the answers that are still missing."""
        while self._pending:
            self._send(damaged=False)

    def row(self, minute: int) -> list[str]:
        """What `COLUMNS` names, for the time since the last row."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        p50, p99 = np.percentile(self.ages, (50, 99)) if self.ages else (np.nan, np.nan)
        row = [
            str(minute),
            f"{int(fields['VmRSS'].split()[0]) / 1024:.0f}",
            str(len(os.listdir(f"/proc/{self.pid}/fd"))),
            fields["Threads"].strip(),
            str(len(self.ages)),
            f"{p50:.0f}",
            f"{p99:.0f}",
            *map(str, (self.calls, self.refused, self.unanswered, self.lifecycles)),
        ]
        self.ages.clear()
        return row

    def _on_depth(self, message: Image) -> None:
        stamp = message.header.stamp
        self.ages.append(1e-6 * self._node.get_clock().now().nanoseconds - 1e3 * stamp.sec - 1e-6 * stamp.nanosec)

    def _send(self, damaged: bool) -> None:
        """Publish one frame, then serve this process's own callbacks until the next one is due."""
        height, width = self._size
        image, info = Image(height=height, width=width, encoding="rgb8", step=3 * width), CameraInfo()
        image.header.stamp = info.header.stamp = self._node.get_clock().now().to_msg()
        image.header.frame_id = info.header.frame_id = "camera"
        image.data = self._random.integers(0, 256, 3 * height * width, np.uint8).tobytes()
        info.height, info.width, focal = height, width, 1.2 * width
        info.k = [focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [focal, 0.0, width / 2, 0.0, 0.0, focal, height / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
        self._infos.publish(self._damaged(info) if damaged else info)
        self._images.publish(self._damaged(image) if damaged else image)
        self._due = max(self._due + 1 / RATE, time.monotonic())
        while (rest := self._due - time.monotonic()) > 0:
            rclpy.spin_once(self._node, timeout_sec=rest)
        self._check_calls()

    def _damaged(self, message: Any) -> bytes:
        raw = bytearray(serialize_message(message))
        for _ in range(4):
            raw[self._random.integers(4, min(len(raw), 120))] = self._random.integers(0, 256)
        return bytes(raw[: self._random.integers(5, len(raw))] if self._random.random() < 0.3 else raw)

    def _change(self) -> None:
        kind = self._random.integers(0, 10)
        if kind < 4:
            self._join_or_leave()
        elif kind < 5:
            self._size = SIZES[self._random.integers(0, len(SIZES))]
        elif kind < 8:
            name, values = GOOD_VALUES[self._random.integers(0, len(GOOD_VALUES))]
            self._set_parameter(name, values[self._random.integers(0, len(values))])
        elif kind < 9:
            self._set_parameter(*BAD_VALUES[self._random.integers(0, len(BAD_VALUES))])
        elif not self._busy:
            self._busy = True
            self.lifecycles += 1
            self._follow(list(TRANSITIONS[self._random.integers(0, len(TRANSITIONS))]))

    def _join_or_leave(self) -> None:
        if self._subscriptions and self._random.random() < 0.5:
            index = self._random.integers(0, len(self._subscriptions))
            self._node.destroy_subscription(self._subscriptions.pop(index))
            return
        output = list(OUTPUTS)[self._random.integers(0, len(OUTPUTS))]
        qos = qos_profile_sensor_data if self._random.random() < 0.5 else 5
        self._subscriptions.append(self._node.create_subscription(OUTPUTS[output], output, lambda message: None, qos))
        self.joined += 1

    def _set_parameter(self, name: str, value: Any) -> None:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        self._call(self._parameters, request, self._note_refusal)

    def _note_refusal(self, response: Any) -> None:
        self.refused += sum(not result.successful for result in response.results)

    def _follow(self, transitions: list[int]) -> None:
        """Ask for the next transition when the one before has been answered."""
        if not transitions:
            self._busy = False
            return
        request = ChangeState.Request(transition=Transition(id=transitions.pop(0)))
        self._call(self._transitions, request, lambda response: self._follow(transitions))

    def _call(self, client: Any, request: Any, then: Callable[[Any], None]) -> None:
        self.calls += 1
        self._pending.append((time.monotonic() + PATIENCE, client.call_async(request), then))

    def _check_calls(self) -> None:
        pending, self._pending = self._pending, []
        for deadline, future, then in pending:
            if future.done():
                then(future.result())
            elif time.monotonic() < deadline:
                self._pending.append((deadline, future, then))
            else:
                self.unanswered += 1
                self._busy = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problems = []
    with tempfile.TemporaryFile("w+") as log:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "fadepth_ros.node", "--ros-args", "-r", f"__ns:={NAMESPACE}"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        rclpy.init()
        try:
            soak = Soak(process.pid, options.seed)
            if not soak.wait_for_depth():
                problems.append("no depth at the start")
            print(("{:>11}" * len(COLUMNS)).format(*COLUMNS), flush=True)
            for minute in range(1, max(1, round(options.minutes)) + 1):
                soak.run(60.0)
                if process.poll() is not None:
                    problems.append(f"the node ended with status {process.returncode}")
                    break
                print(("{:>11}" * len(COLUMNS)).format(*soak.row(minute)), flush=True)
            else:
                soak.finish_calls()
                if not soak.wait_for_depth():
                    problems.append("no depth at the end")
            if soak.unanswered:
                problems.append(f"{soak.unanswered} calls were not answered")
            print(f"{soak.joined} subscribers joined; {soak.lifecycles} times a series of lifecycle transitions")
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                problems.append("the node did not end after SIGINT")
                process.kill()
            rclpy.try_shutdown()
        if process.returncode:
            problems.append(f"exit status {process.returncode}")
        log.seek(0)
        lines = log.readlines()
    if problems:
        print("".join(lines[-40:]))
    print("; ".join(problems) or "no problem")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
