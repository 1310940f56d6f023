#!/usr/bin/env python3
"""Measures the speed of the node and of the steps of one frame.

Three processes over real topics on this machine: a camera that publishes noise at a given rate, the node, and a listener
that counts depth images and clouds. The pass-through engine returns a constant plane at once, so that its rows show the
node's own cost.

    python benchmarks/node.py                      the four rows of docs/speed.md
    python benchmarks/node.py --engine real --size 720x1280 --rate 60 --seconds 10
    python benchmarks/node.py --idle               what a node without subscribers costs, with `lazy` off and on

The second table has the steps of one frame, each timed alone in this process. The age in the first table is larger than the
sum of the steps: the middleware, the executor, and three processes that share the machine take the rest.

Figures: depth images and clouds per second at the listener, age of the depth (stamp to arrival), and processor time per
depth image of each process (on a shared machine it varies less than frames per second).

`--idle` uses UDP alone, as between two computers, and counts the bytes of the loopback interface (Linux). Listeners come and
go: the table has the times from the creation of a listener until the node has subscribed to the camera, as the listener's
process sees it, and until its first depth image.
"""

from __future__ import annotations

import argparse
import itertools
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
#: Fast DDS profile of `--idle`: UDP on this machine, without shared memory.
UDP_ALONE = """<?xml version="1.0" encoding="UTF-8"?>
<dds xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles">
  <profiles>
    <transport_descriptors>
      <transport_descriptor>
        <transport_id>udp</transport_id>
        <type>UDPv4</type>
        <interfaceWhiteList><address>127.0.0.1</address></interfaceWhiteList>
        <sendBufferSize>4194304</sendBufferSize>
        <receiveBufferSize>4194304</receiveBufferSize>
      </transport_descriptor>
    </transport_descriptors>
    <participant profile_name="udp" is_default_profile="true">
      <rtps>
        <builtin>
          <initialPeersList>
            <locator><udpv4><address>127.0.0.1</address></udpv4></locator>
          </initialPeersList>
        </builtin>
        <userTransports><transport_id>udp</transport_id></userTransports>
        <useBuiltinTransports>false</useBuiltinTransports>
      </rtps>
    </participant>
  </profiles>
</dds>
"""
#: Listeners that are created and destroyed one after the other in each run of `--idle`.
LISTENERS = 5
#: Seconds after which a lazy node has unsubscribed from the camera and built its engine, with a margin.
IDLE_AFTER = 4.0
COLUMNS = ("fps", "clouds", "age p50", "age p99", "cpu camera", "cpu node", "cpu listener")


class PassThroughEngine:
    """Returns the plane z = 5 m, computed once, for every frame."""

    description = "pass-through"
    takes_network_size, follows_camera, batches, has_confidence = True, False, False, False
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


def serve_node(engine: str, lazy: bool) -> None:
    from fadepth_ros.engine_pool import load_engine
    from fadepth_ros.node import run

    arguments = ["--ros-args", "-p", f"lazy:={str(lazy).lower()}"]
    run(PassThroughEngine if engine == "pass-through" else load_engine, args=arguments)


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


def watch(seconds: float, warmup: float, listeners: int, pids: dict[str, int]) -> dict[str, float | list[float]]:
    """Figures of a node without listeners for `seconds`, after `warmup` seconds, and then the times of `listeners` that come
    one after the other.

    Raises:
        RuntimeError: the node does not start, or a listener gets no depth within `_PATIENCE` seconds.
    """
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node("listener")
    statuses: list[str] = []
    node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda m: statuses.extend(s.message for s in m.status if "depth" in s.name), 10
    )

    def spin(condition, what: str) -> float:
        """Milliseconds until `condition()` is true."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() > start + _PATIENCE:
                raise RuntimeError(f"{what} within {_PATIENCE} s; the node's status: {statuses[-1:]}")
            rclpy.spin_once(node, timeout_sec=0.002)
        return 1e3 * (time.monotonic() - start)

    def wait(duration: float) -> None:
        end = time.monotonic() + duration
        spin(lambda: time.monotonic() >= end, "not over")

    spin(lambda: statuses and statuses[-1] not in ("not active", "no images arrive"), "the node is not active")
    wait(warmup)
    before, start = {name: _cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
    received = _loopback_bytes()
    wait(seconds)
    wall, received = time.monotonic() - start, _loopback_bytes() - received
    figures: dict[str, float | list[float]] = {
        f"cpu {name}": 100 * (_cpu_seconds(pid) - before[name]) / wall for name, pid in pids.items()
    }
    subscribed, first = [], []
    for _ in range(listeners):
        depth: list[bytes] = []
        begin = time.monotonic()
        subscription = node.create_subscription(Image, "depth/image", depth.append, QoSProfile(depth=2), raw=True)
        spin(lambda: node.count_subscribers("image") > 0, "not subscribed to the camera")
        subscribed.append(1e3 * (time.monotonic() - begin))
        spin(lambda depth=depth: bool(depth), "no depth")
        first.append(1e3 * (time.monotonic() - begin))
        node.destroy_subscription(subscription)
        wait(IDLE_AFTER)
    rclpy.shutdown()
    return {**figures, "MB/s": 1e-6 * received / wall, "subscribed": subscribed, "first depth": first}


def _loopback_bytes() -> int:
    """Bytes that the loopback interface has received."""
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.split(":")[0].strip() == "lo"]
    return int(line.split(":")[1].split()[0])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(engine: str, size: str, rate: float, seconds: float, domain: int, warmup: float = 2.0) -> dict[str, float]:
    """Start camera and node, run `listen`, and stop them; one row of the table.

    Raises:
        RuntimeError: the listener failed; with the last lines that the three printed.
    """
    transport = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(ROOT / "config" / "fastdds.xml")}
    listener = ["listener", "--seconds", str(seconds), "--warmup", str(warmup)]
    return _run(engine, size, rate, domain, transport, True, listener)


def measure_idle(
    size: str,
    rate: float,
    seconds: float,
    domain: int,
    lazy: bool,
    warmup: float = IDLE_AFTER,
    listeners: int = LISTENERS,
) -> dict[str, float | list[float]]:
    """Start camera and node, run `watch`, and stop them. Raises RuntimeError as `measure`."""
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as profile:
        profile.write(UDP_ALONE)
        profile.flush()
        # The middleware would add shared memory if it had to limit discovery to this machine; the profile does that instead.
        transport = {"FASTRTPS_DEFAULT_PROFILES_FILE": profile.name, "ROS_AUTOMATIC_DISCOVERY_RANGE": "SYSTEM_DEFAULT"}
        watcher = ["watch", "--seconds", str(seconds), "--warmup", str(warmup), "--listeners", str(listeners)]
        return _run("real", size, rate, domain, transport, lazy, watcher)


def _run(
    engine: str, size: str, rate: float, domain: int, transport: dict[str, str], lazy: bool, listener: list[str]
) -> dict:
    """Start camera and node, run the listener with these arguments, and stop them; what the listener printed."""
    environment = {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        **os.environ,
        **transport,
    }
    me = [sys.executable, __file__, "--serve"]
    laziness = ["--lazy"] if lazy else ["--no-lazy"]
    with tempfile.TemporaryFile("w+") as log:
        children = {
            "node": subprocess.Popen([*me, "node", "--engine", engine, *laziness], env=environment, stderr=log),
            "camera": subprocess.Popen(
                [*me, "camera", "--size", size, "--rate", str(rate)], env=environment, stderr=log
            ),
        }
        try:
            pids = json.dumps({name: child.pid for name, child in children.items()})
            ended = subprocess.run(
                [*me, *listener, "--pids", pids],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            if ended.returncode != 0:
                log.seek(0)
                raise RuntimeError(f"{engine}, {size}: the listener failed\n{log.read()[-3000:]}")
            return json.loads(ended.stdout)
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
    from fadepth_core.runtime.cloud import depth_edges, downsample
    from fadepth_core.runtime.engine import DepthEngine, FrameRequest
    from fadepth_core.runtime.temporal import TemporalFilter
    from fadepth_ros.messages import read_image

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    raw = ImageWriter("camera", size, "rgb8").write(Stamp(0, 0), pixels)
    engine = DepthEngine.load(camera_size=size)
    k = np.array([[size[1], 0, size[1] / 2], [0, size[1], size[0] / 2], [0, 0, 1]], float)
    rgb = engine.framing.to_network(pixels)
    depth_only, with_points = FrameRequest(rgb, k, points=False), FrameRequest(rgb, k)
    result = engine.infer(with_points)
    image_writer = ImageWriter("camera", engine.framing.output_size, "32FC1")
    cloud_writer = CloudWriter("camera", engine.framing.output_size, "xyzrgb")
    filters, seconds = {mode: TemporalFilter(mode) for mode in ("scale", "full")}, itertools.count(1.0, 0.05)
    tasks = {
        "read the message": lambda: read_image(raw),
        "crop and resize": lambda: engine.framing.to_network(pixels),
        "network, depth": lambda: engine.infer(depth_only),
        "network, depth and points": lambda: engine.infer(with_points),
        "write depth/image": lambda: image_writer.write(Stamp(0, 0), result.depth),
        "write depth/points": lambda: cloud_writer.write(Stamp(0, 0), result.points, rgb),
        "temporal: scale": lambda: filters["scale"].apply(result, rgb, next(seconds)),
        "temporal: full": lambda: filters["full"].apply(result, rgb, next(seconds)),
        "points.edge_threshold": lambda: depth_edges(result.depth, 0.03),
        "points.voxel_size": lambda: downsample(result.points.reshape(-1, 3), rgb.reshape(-1, 3), 0.1),
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
    parser.add_argument("--idle", action="store_true", help="measure a node without listeners, 720x1280 at 30 Hz")
    parser.add_argument("--serve", choices=("node", "camera", "listener", "watch"), help=argparse.SUPPRESS)
    parser.add_argument("--lazy", action=argparse.BooleanOptionalAction, default=True, help=argparse.SUPPRESS)
    parser.add_argument("--warmup", type=float, default=2.0, help=argparse.SUPPRESS)
    parser.add_argument("--listeners", type=int, default=LISTENERS, help=argparse.SUPPRESS)
    parser.add_argument("--pids", default="{}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve == "node":
        serve_node(args.engine, args.lazy)
    elif args.serve == "camera":
        serve_camera(_size(args.size), args.rate)
    elif args.serve == "listener":
        print(json.dumps(listen(args.seconds, args.warmup, json.loads(args.pids))))
    elif args.serve == "watch":
        print(json.dumps(watch(args.seconds, args.warmup, args.listeners, json.loads(args.pids))))
    elif args.idle:
        report_idle(args)
    else:
        report(args)
    return 0


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def report_idle(args: argparse.Namespace) -> None:
    """Measure a node without listeners, `lazy` off and on in turn, and print the table."""
    results: dict[bool, list[dict]] = {False: [], True: []}
    for turn in range(args.rounds):
        for lazy, runs in results.items():
            runs.append(measure_idle("720x1280", 30.0, args.seconds, domain=100 + 2 * turn + lazy, lazy=lazy))
    print(
        f"720x1280 at 30 Hz by UDP, {args.rounds} rounds of {args.seconds:.0f} s without listeners, medians; then times"
    )
    print(f"of {args.rounds * LISTENERS} listeners, median and longest, ms")
    print(f"{'lazy':<8}{'cpu node %':>12}{'cpu camera %':>14}{'MB/s':>8}{'subscribed':>18}{'first depth':>18}")
    for lazy, runs in results.items():
        cells = [sorted(run[c] for run in runs)[len(runs) // 2] for c in ("cpu node", "cpu camera", "MB/s")]
        times = [sorted(ms for run in runs for ms in run[c]) for c in ("subscribed", "first depth")]
        middle = [f"{values[len(values) // 2]:.0f} / {values[-1]:.0f}" for values in times]
        row = f"{cells[0]:>12.1f}{cells[1]:>14.1f}{cells[2]:>8.1f}{middle[0]:>18}{middle[1]:>18}"
        print(f"{str(lazy).lower():<8}{row}")


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
