#!/usr/bin/env python3
"""How fast is the node, and where does the time go?

Three processes over real topics on this machine: a camera that publishes noise as fast as asked, the node, and a
listener that counts depth images and clouds. The pass-through engine answers with a constant plane at once, so what is
left is the node's own cost.

    python benchmarks/node.py                      the four rows of the README
    python benchmarks/node.py --engine real --size 720x1280 --rate 60 --seconds 10

Then the steps of one frame, each timed in this process by itself; what the first table has beyond their sum is the
middleware, the executor, and three processes sharing the machine.

Figures: frames per second that arrived at the listener, age of the depth (stamp to arrival), and processor time per
frame for each process (steadier than frames per second on a shared machine).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROWS = (
    ("pass-through", "128x416", 600),
    ("real", "128x416", 600),
    ("pass-through", "720x1280", 60),
    ("real", "720x1280", 60),
)


class PassThroughEngine:
    """Answers every frame with the plane z = 5 m, computed once."""

    description = "pass-through"
    takes_network_size, follows_camera, batches = True, False, False
    failures, degraded = (), False

    def __init__(self, _settings, camera_size, _logger):
        import numpy as np

        from fadepth_core.common.framing import Framing
        from fadepth_core.runtime.checkpoint import Checkpoint

        self.checkpoint = Checkpoint()
        self.framing = Framing.plan(camera_size)
        self._depth = np.full(self.framing.output_size, 5.0, np.float32)
        self._points = np.zeros((*self.framing.output_size, 3), np.float32)
        self._points[..., 2] = 5.0

    def infer(self, image, intrinsics=None, *, points=True, scale=1.0, limits=None):
        from fadepth_core.runtime.engine import DepthResult

        return DepthResult(self._depth, self._points if points else None, intrinsics)


def serve_node(engine: str) -> int:
    from fadepth_ros.node import run
    from fadepth_ros.pipeline import load_engine

    return run(PassThroughEngine if engine == "pass-through" else load_engine)


def serve_camera(size: tuple[int, int], rate: float) -> int:
    """Publish one noisy frame again and again, `rate` times a second, until told to stop."""
    import numpy as np
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CameraInfo, Image

    from fadepth_ros.messages import Camera, CameraInfoWriter, ImageWriter, Stamp

    rclpy.init()
    node = rclpy.create_node("camera")
    h, w = size
    k = [float(w), 0.0, w / 2, 0.0, float(w), h / 2, 0.0, 0.0, 1.0]
    info = CameraInfo(height=h, width=w, k=k, r=[1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0], p=[0.0] * 12)
    image_writer = ImageWriter("camera", size, "rgb8")
    info_writer = CameraInfoWriter("camera", size, Camera("camera", size, np.eye(3), info, np.eye(3)), lambda m: m)
    images = node.create_publisher(Image, "image", qos_profile_sensor_data)
    infos = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
    pixels = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    due = time.monotonic()
    while rclpy.ok():
        stamp = Stamp(*node.get_clock().now().seconds_nanoseconds())
        infos.publish(info_writer.write(stamp))
        images.publish(image_writer.write(stamp, pixels))
        # After a stall the camera goes on at its rate; it does not catch up in a burst.
        due = max(due + 1.0 / rate, time.monotonic() - 2.0 / rate)
        time.sleep(max(0.0, due - time.monotonic()))
    return 0


def listen(seconds: float, warmup: float, pids: dict[str, int]) -> dict:
    """Count depth images and clouds for `seconds` after `warmup`; ages in ms, processor ms per depth image."""
    import rclpy
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image, PointCloud2

    rclpy.init()
    node = rclpy.create_node("listener")
    ages, clouds = [], []
    clock = node.get_clock()

    def on_depth(raw: bytes) -> None:
        sec, nanosec = struct.unpack_from("<iI", raw, 4)
        ages.append(1e-6 * (clock.now().nanoseconds - (sec * 10**9 + nanosec)))

    node.create_subscription(Image, "depth/image", on_depth, QoSProfile(depth=2), raw=True)
    node.create_subscription(
        PointCloud2, "depth/points", lambda raw: clouds.append(len(raw)), QoSProfile(depth=2), raw=True
    )

    def spin(duration: float) -> None:
        end = time.monotonic() + duration
        while time.monotonic() < end:
            rclpy.spin_once(node, timeout_sec=0.1)

    spin(warmup)
    ages.clear(), clouds.clear()
    pids = {**pids, "listener": os.getpid()}
    before, start = {name: _cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
    spin(seconds)
    wall = time.monotonic() - start
    used = {name: _cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    rclpy.shutdown()
    n = len(ages)
    if n == 0:
        raise RuntimeError("no depth image arrived")
    ages.sort()
    return {
        "fps": n / wall,
        "clouds": len(clouds) / wall,
        "age p50": ages[n // 2],
        "age p99": ages[int(0.99 * n)],
        **{f"cpu {name}": 1e3 * value / n for name, value in used.items()},
    }


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(engine: str, size: str, rate: float, seconds: float, domain: int) -> dict:
    """One row: start camera and node, listen, stop them.

    Raises:
        RuntimeError: the listener failed or got no depth image; with what the three said last.
    """
    environment = {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(ROOT / "config" / "fastdds.xml"),
        **os.environ,
    }
    me = [sys.executable, __file__, "--serve"]
    with tempfile.TemporaryFile("w+") as log:
        children = {
            "node": subprocess.Popen([*me, "node", "--engine", engine], env=environment, stderr=log),
            "camera": subprocess.Popen(
                [*me, "camera", "--size", size, "--rate", str(rate)], env=environment, stderr=log
            ),
        }
        try:
            pids = json.dumps({name: child.pid for name, child in children.items()})
            listener = subprocess.run(
                [*me, "listener", "--seconds", str(seconds), "--pids", pids],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            if listener.returncode != 0:
                log.seek(0)
                raise RuntimeError(f"{engine}, {size}: nothing was measured\n{log.read()[-3000:]}")
            return json.loads(listener.stdout)
        finally:
            for child in children.values():
                child.send_signal(signal.SIGINT)
            for child in children.values():
                child.wait(10)


def steps(size: tuple[int, int], frames: int = 200) -> dict[str, float]:
    """Median milliseconds of each step that the node takes with one frame of `size`, all outputs wanted."""
    import numpy as np

    from fadepth_core.runtime.engine import DepthEngine
    from fadepth_ros import messages
    from fadepth_ros.messages import CloudWriter, ImageWriter, Stamp

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    raw = ImageWriter("camera", size, "rgb8").write(Stamp(0, 0), pixels)
    engine = DepthEngine.load(camera_size=size)
    k = np.array([[size[1], 0, size[1] / 2], [0, size[1], size[0] / 2], [0, 0, 1]], float)
    rgb = engine.framing.to_network(pixels)
    result = engine.infer(rgb, k)
    image_writer = ImageWriter("camera", engine.framing.output_size, "32FC1")
    cloud_writer = CloudWriter("camera", engine.framing.output_size, coloured=True)
    tasks = {
        "read the message": lambda: messages.read_image(raw),
        "crop and resize": lambda: engine.framing.to_network(pixels),
        "network, depth": lambda: engine.infer(rgb, k, points=False),
        "network, depth and points": lambda: engine.infer(rgb, k),
        "write depth/image": lambda: image_writer.write(Stamp(0, 0), result.depth),
        "write depth/points": lambda: cloud_writer.write(Stamp(0, 0), result.points, rgb, None),
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(frames + 20):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if turn >= 20:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: sorted(values)[frames // 2] for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("pass-through", "real"))
    parser.add_argument("--size", default="128x416", help="camera's height x width")
    parser.add_argument("--rate", type=float, default=600.0, help="camera's frames per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument(
        "--rounds", type=int, default=3, help="every row is measured this often, in turn; medians are shown"
    )
    parser.add_argument("--serve", choices=("node", "camera", "listener"), help=argparse.SUPPRESS)
    parser.add_argument("--pids", default="{}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve == "node":
        return serve_node(args.engine)
    if args.serve == "camera":
        height, width = args.size.split("x")
        return serve_camera((int(height), int(width)), args.rate)
    if args.serve == "listener":
        print(json.dumps(listen(args.seconds, 4.0, json.loads(args.pids))))
        return 0
    rows = [(args.engine, args.size, args.rate)] if args.engine else list(ROWS)
    results: dict = {row: [] for row in rows}
    for turn in range(args.rounds):
        for index, row in enumerate(rows):
            results[row].append(measure(*row, args.seconds, domain=100 + (turn * len(rows) + index) % 100))
    print(
        f"{os.cpu_count()} processors, {args.rounds} rounds of {args.seconds:.0f} s, medians; times in ms per depth image"
    )
    columns = ("fps", "clouds", "age p50", "age p99", "cpu camera", "cpu node", "cpu listener")
    print(f"{'engine':<14}{'camera':>16}" + "".join(f"{c:>13}" for c in columns))
    for (engine, size, rate), runs in results.items():
        medians = [sorted(run[c] for run in runs)[len(runs) // 2] for c in columns]
        print(f"{engine:<14}{size + f' @{rate:g}':>16}" + "".join(f"{m:>13.2f}" for m in medians))
    sizes = list(dict.fromkeys(size for _, size, _ in rows))
    columns = [steps(tuple(int(side) for side in size.split("x"))) for size in sizes]
    print(f"\n{'one step, ms':<30}" + "".join(f"{size:>12}" for size in sizes))
    for name in columns[0]:
        print(f"{name:<30}" + "".join(f"{column[name]:>12.3f}" for column in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
