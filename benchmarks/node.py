#!/usr/bin/env python3
"""Measures the speed of the node and of the steps of one frame.

Three processes over real topics on this machine: a camera that publishes noise at a given rate, the node, and a listener
that counts depth images and clouds. The pass-through engine returns a constant plane at once, so that its rows show the
node's own cost.

    python benchmarks/node.py                      the four rows of docs/speed.md
    python benchmarks/node.py --engine real --size 720x1280 --rate 60 --seconds 10

The second table has the steps of one frame, each timed alone in this process. The age in the first table is larger than the
sum of the steps: the middleware, the executor, and three processes that share the machine take the rest.

Figures: depth images and clouds per second at the listener, age of the depth (stamp to arrival), and processor time per
depth image of each process (on a shared machine it varies less than frames per second).
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

#: Seconds to wait for messages or for the end of a process; enough for a very busy machine.
_PATIENCE = 120.0
ROWS = (
    ("pass-through", "128x416", 600),
    ("real", "128x416", 600),
    ("pass-through", "720x1280", 60),
    ("real", "720x1280", 60),
)
COLUMNS = ("fps", "clouds", "age p50", "age p99", "cpu camera", "cpu node", "cpu listener")


class PassThroughEngine:
    """Returns the plane z = 5 m, computed once, for every frame."""

    description = "pass-through"
    takes_network_size, follows_camera, batches = True, False, False
    failures, degraded, building = (), False, False

    def __init__(self, _settings, camera_size, _logger):
        import numpy as np

        from fadepth_core.common.framing import Framing
        from fadepth_core.runtime.checkpoint import Checkpoint

        self.checkpoint = Checkpoint()
        self.framing = Framing.plan(camera_size)
        self._depth = np.full(self.framing.output_size, 5.0, np.float32)
        self._points = np.zeros((*self.framing.output_size, 3), np.float32)
        self._points[..., 2] = 5.0

    def infer(self, request):
        from fadepth_core.runtime.engine import DepthResult

        return DepthResult(self._depth, self._points if request.points else None, request.intrinsics)


def serve_node(engine: str) -> None:
    from fadepth_ros.engine_pool import load_engine
    from fadepth_ros.node import run

    run(PassThroughEngine if engine == "pass-through" else load_engine, args=[])


def serve_camera(size: tuple[int, int], rate: float) -> None:
    """Publish the same frame of noise `rate` times a second, until SIGINT."""
    import numpy as np
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import CameraInfo, Image

    from fadepth_core.messages.camera_info import read_camera_info
    from fadepth_core.messages.cdr import Stamp
    from fadepth_core.messages.outgoing import CameraInfoWriter, ImageWriter

    rclpy.init()
    node = rclpy.create_node("camera")
    h, w = size
    k = [float(w), 0.0, w / 2, 0.0, float(w), h / 2, 0.0, 0.0, 1.0]
    info = CameraInfo(height=h, width=w, k=k, r=[1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0], p=[0.0] * 12)
    image_writer = ImageWriter("camera", size, "rgb8")
    camera = read_camera_info(serialize_message(info))
    info_writer = CameraInfoWriter("camera", size, camera, lambda matrix: matrix)
    images = node.create_publisher(Image, "image", qos_profile_sensor_data)
    infos = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
    pixels = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    due = time.monotonic()
    while rclpy.ok():
        stamp = Stamp(*node.get_clock().now().seconds_nanoseconds())
        infos.publish(info_writer.write(stamp))
        images.publish(image_writer.write(stamp, pixels))
        # After a delay the camera continues at its rate and does not send the missed frames.
        due = max(due + 1.0 / rate, time.monotonic() - 2.0 / rate)
        time.sleep(max(0.0, due - time.monotonic()))


def listen(seconds: float, warmup: float, pids: dict[str, int]) -> dict[str, float]:
    """The figures `COLUMNS`: ages in ms, processor time in ms per depth image.

    Waits for the first depth image and cloud, then for `warmup` seconds, and measures for `seconds`, longer if none arrive.

    Raises:
        RuntimeError: they do not arrive within `_PATIENCE` seconds.
    """
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
        """Receive for `duration` seconds and at least one depth image and one cloud."""
        start = time.monotonic()
        ages.clear(), clouds.clear()
        while time.monotonic() < start + duration or not (ages and clouds):
            if time.monotonic() > start + duration + _PATIENCE:
                raise RuntimeError(f"{len(ages)} depth images and {len(clouds)} clouds arrived")
            rclpy.spin_once(node, timeout_sec=0.1)

    spin(0.0)
    spin(warmup)
    pids = {**pids, "listener": os.getpid()}
    before, start = {name: _cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
    spin(seconds)
    wall = time.monotonic() - start
    used = {name: _cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    rclpy.shutdown()
    n = len(ages)
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


def measure(engine: str, size: str, rate: float, seconds: float, domain: int, warmup: float = 2.0) -> dict[str, float]:
    """Start camera and node, run `listen`, and stop them; one row of the table.

    Raises:
        RuntimeError: the listener failed; with the last lines that the three printed.
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
                [*me, "listener", "--seconds", str(seconds), "--warmup", str(warmup), "--pids", pids],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            if listener.returncode != 0:
                log.seek(0)
                raise RuntimeError(f"{engine}, {size}: the listener failed\n{log.read()[-3000:]}")
            return json.loads(listener.stdout)
        finally:
            for child in children.values():
                child.send_signal(signal.SIGINT)
            for child in children.values():
                child.wait(_PATIENCE)


def steps(size: tuple[int, int], frames: int = 200) -> dict[str, float]:
    """Median time in ms of each step of a frame of `size`, with depth image and cloud."""
    import numpy as np

    from fadepth_core.messages.cdr import Stamp
    from fadepth_core.messages.outgoing import CloudWriter, ImageWriter
    from fadepth_core.runtime.engine import DepthEngine, FrameRequest
    from fadepth_ros.messages import read_image

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    raw = ImageWriter("camera", size, "rgb8").write(Stamp(0, 0), pixels)
    engine = DepthEngine.load(camera_size=size)
    k = np.array([[size[1], 0, size[1] / 2], [0, size[1], size[0] / 2], [0, 0, 1]], float)
    rgb = engine.framing.to_network(pixels)
    depth_only, with_points = FrameRequest(rgb, k, points=False), FrameRequest(rgb, k)
    result = engine.infer(with_points)
    image_writer = ImageWriter("camera", engine.framing.output_size, "32FC1")
    cloud_writer = CloudWriter("camera", engine.framing.output_size, coloured=True)
    tasks = {
        "read the message": lambda: read_image(raw),
        "crop and resize": lambda: engine.framing.to_network(pixels),
        "network, depth": lambda: engine.infer(depth_only),
        "network, depth and points": lambda: engine.infer(with_points),
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
        "--rounds", type=int, default=3, help="how often all rows are measured; the table shows medians"
    )
    parser.add_argument("--serve", choices=("node", "camera", "listener"), help=argparse.SUPPRESS)
    parser.add_argument("--warmup", type=float, default=2.0, help=argparse.SUPPRESS)
    parser.add_argument("--pids", default="{}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve == "node":
        serve_node(args.engine)
    elif args.serve == "camera":
        serve_camera(_size(args.size), args.rate)
    elif args.serve == "listener":
        print(json.dumps(listen(args.seconds, args.warmup, json.loads(args.pids))))
    else:
        report(args)
    return 0


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def report(args: argparse.Namespace) -> None:
    """Measure all rows and print both tables."""
    rows = [(args.engine, args.size, args.rate)] if args.engine else list(ROWS)
    results: dict = {row: [] for row in rows}
    for turn in range(args.rounds):
        for index, row in enumerate(rows):
            results[row].append(measure(*row, args.seconds, domain=100 + (turn * len(rows) + index) % 100))
    print(
        f"{os.cpu_count()} processors, {args.rounds} rounds of {args.seconds:.0f} s, medians; times in ms per depth image"
    )
    print(f"{'engine':<14}{'camera':>16}" + "".join(f"{c:>13}" for c in COLUMNS))
    for (engine, size, rate), runs in results.items():
        medians = [sorted(run[c] for run in runs)[len(runs) // 2] for c in COLUMNS]
        print(f"{engine:<14}{size + f' @{rate:g}':>16}" + "".join(f"{m:>13.2f}" for m in medians))
    sizes = list(dict.fromkeys(size for _, size, _ in rows))
    columns = [steps(_size(size)) for size in sizes]
    print(f"\n{'one step, ms':<30}" + "".join(f"{size:>12}" for size in sizes))
    for name in columns[0]:
        print(f"{name:<30}" + "".join(f"{column[name]:>12.3f}" for column in columns))


if __name__ == "__main__":
    sys.exit(main())
