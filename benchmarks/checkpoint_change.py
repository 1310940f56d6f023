#!/usr/bin/env python3
"""Changes the checkpoint of a running node again and again, and prints what that costs.

The node runs in its own process with the real engine. This process is its camera, at a constant rate, its subscriber and
its operator, which sets `checkpoint` to one of two files in turn. All frames are the same, so that depth changes with the
network only. The next change begins a second after that.

    python benchmarks/checkpoint_change.py --size 128x416 --changes 20

Columns of each phase, "steady" without and "changes" with changes: frames sent, answered and lost, age of depth (stamp to
arrival, ms), longest time between two depth images (ms), processor time of the node per second (s). Then for each change:
seconds from the call to the answer, and to the first frame of the new network. Exits with 1 if a change was refused or did
not take effect.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")

import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from fadepth_core.runtime.checkpoint import ASSETS

#: Seconds to wait for an answer; enough for a very busy machine.
PATIENCE = 60.0
NAMESPACE = "/change"


class Rig:
    """The camera, the subscriber and the operator of the node with process id `pid`."""

    def __init__(self, pid: int, size: tuple[int, int], rate: float):
        self._pid, self._period = pid, 1.0 / rate
        self._node = rclpy.create_node("rig", namespace=NAMESPACE)
        self._images = self._node.create_publisher(Image, "image", qos_profile_sensor_data)
        self._infos = self._node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._parameters = self._node.create_client(SetParameters, "depth/set_parameters")
        self._node.create_subscription(Image, "depth/image", self._on_depth, QoSProfile(depth=10))
        height, width = size
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        self._image = Image(height=height, width=width, encoding="rgb8", step=3 * width, data=noise.tobytes())
        k = [float(width), 0.0, width / 2, 0.0, float(width), height / 2, 0.0, 0.0, 1.0]
        self._info = CameraInfo(height=height, width=width, k=k, p=[0.0] * 12)
        self._due = time.monotonic()
        self._sent: dict[int, float] = {}  # monotonic time by stamp
        self._answered: dict[int, float] = {}
        self._depth = 0.0  # mean of the last depth image, metres

    def wait_for_depth(self) -> None:
        """Raises RuntimeError if none arrives."""
        self._run_until(lambda: bool(self._answered), "no depth")

    def run(self, seconds: float) -> None:
        """Send frames."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._send()

    def change(self, checkpoint: Path) -> tuple[float, float]:
        """Set the checkpoint; seconds to the answer and to the first frame of the new network."""
        before = self._depth
        request = SetParameters.Request(parameters=[Parameter("checkpoint", value=str(checkpoint)).to_parameter_msg()])
        start = time.monotonic()
        future = self._parameters.call_async(request)
        self._run_until(future.done, "no answer")
        answered = time.monotonic() - start
        (result,) = future.result().results
        if not result.successful:
            raise RuntimeError(result.reason)
        self._run_until(lambda: abs(self._depth / before - 1.0) > 0.01, "the change took no effect")
        return answered, time.monotonic() - start

    def phase(self, name: str, seconds: float, changes: list[Path]) -> list[tuple[float, float]]:
        """Send frames, change the checkpoint in between, and print a row; the times of each change."""
        self._sent.clear(), self._answered.clear()
        start, used = time.monotonic(), self._cpu_seconds()
        times = []
        for checkpoint in changes:
            times.append(self.change(checkpoint))
            self.run(1.0)
        self.run(max(0.0, start + seconds - time.monotonic()))
        wall, used = time.monotonic() - start, self._cpu_seconds() - used
        self._serve(1.0)  # the last answers
        arrivals = sorted(self._answered.values())
        ages = [1e3 * (self._answered[stamp] - self._sent[stamp]) for stamp in self._answered]
        gap = 1e3 * max(np.diff(arrivals))
        row = (len(self._sent), len(self._answered), len(self._sent) - len(self._answered))
        print(
            f"{name:<9}"
            + "".join(f"{value:>10}" for value in row)
            + f"{np.percentile(ages, 50):>10.1f}{np.percentile(ages, 99):>10.1f}{gap:>10.0f}{used / wall:>10.2f}",
            flush=True,
        )
        return times

    def _run_until(self, condition, problem: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(problem)
            self._send()

    def _send(self) -> None:
        """Publish one frame, then serve this process's own callbacks until the next one is due."""
        now = self._node.get_clock().now()
        self._image.header.stamp = self._info.header.stamp = now.to_msg()
        self._sent[now.nanoseconds] = time.monotonic()
        self._infos.publish(self._info)
        self._images.publish(self._image)
        self._due = max(self._due + self._period, time.monotonic())
        self._serve(self._due - time.monotonic())

    def _serve(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            rclpy.spin_once(self._node, timeout_sec=rest)

    def _on_depth(self, message: Image) -> None:
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        if stamp in self._sent:
            self._answered[stamp] = time.monotonic()
            depth = np.frombuffer(message.data, np.float32)
            self._depth = float(depth[np.isfinite(depth)].mean())

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="128x416", help="camera's height x width")
    parser.add_argument("--rate", type=float, default=30.0, help="camera's frames per second")
    parser.add_argument("--changes", type=int, default=20)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    problem = ""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        names = ("smalldepth_nc", "smalldepth")
        for name in names:
            for suffix in (".safetensors", ".onnx"):
                shutil.copy(ASSETS / f"{name}{suffix}", folder)
        files = [Path(folder, f"{name}.safetensors") for name in names]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "fadepth_ros.node", "--ros-args", "-r", f"__ns:={NAMESPACE}"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        rclpy.init()
        try:
            rig = Rig(process.pid, (height, width), options.rate)
            rig.wait_for_depth()
            rig.run(2.0)
            columns = ("sent", "answered", "lost", "age p50", "age p99", "gap", "cpu")
            print(f"{options.size:<9}" + "".join(f"{column:>10}" for column in columns))
            rig.phase("steady", 20.0, [])
            times = rig.phase("changes", 0.0, [files[turn % 2] for turn in range(options.changes)])
            for name, values in zip(("answer", "new depth"), zip(*times, strict=True), strict=True):
                print(f"seconds to {name}: median {np.median(values):.2f}, longest {max(values):.2f}")
        except RuntimeError as error:
            problem = str(error)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
            rclpy.try_shutdown()
        if problem:
            log.seek(0)
            print("".join(log.readlines()[-40:]), problem, sep="\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
