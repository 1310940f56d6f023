"""The demo without `ros2 launch`: camera (a clip), depth node and viewer as three processes over real topics.

`launch/demo.launch.py` does the same on a machine that has ROS 2 installed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fadepth_ros.viewer import has_screen

_GRACE = 10.0  # seconds a process gets to end by itself


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", help="video file with a JSON of intrinsics beside it; default: the bundled one")
    parser.add_argument("--checkpoint", default="", help="checkpoint to run; default: the shipped one")
    parser.add_argument(
        "--view", choices=("auto", "page", "files"), default="auto", help="auto: a page if there is a screen"
    )
    parser.add_argument(
        "--host", default="localhost", help="address the page is served on; 0.0.0.0 for the whole network"
    )
    parser.add_argument("--port", type=int, default=8080, help="of the page")
    parser.add_argument("--once", action="store_true", help="end with the clip; the default without a screen")
    args = parser.parse_args()
    once = args.once or args.view == "files" or (args.view == "auto" and not has_screen())

    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    profile = Path(__file__).resolve().parent.parent / "config" / "fastdds.xml"
    if profile.is_file():
        environment.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(profile))

    def start(module: str, **parameters) -> subprocess.Popen:
        values = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", module, "--ros-args", *values]
        # Deaf to the terminal's Ctrl-C until rclpy listens: in the middle of its imports it would end in a traceback.
        return subprocess.Popen(command, env=environment, preexec_fn=_ignore_interrupts)

    camera_parameters = {"loop": str(not once).lower()} | ({"clip": args.clip} if args.clip else {})
    processes: dict[str, subprocess.Popen] = {}
    status = 0
    told_to_end = False

    def end(_number, _frame) -> None:
        # Noted, not raised: an exception between a fork and its return would leave a process that nobody knows of.
        nonlocal told_to_end
        told_to_end = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        processes["viewer"] = start("fadepth_ros.viewer", mode=args.view, host=args.host, port=args.port)
        node_parameters = {"checkpoint": args.checkpoint} if args.checkpoint else {}
        processes["depth node"] = start("fadepth_ros.node", **node_parameters)
        processes["camera"] = start("fadepth_ros.clip_publisher", **camera_parameters)
        while not told_to_end and all(process.poll() is None for process in processes.values()):
            time.sleep(0.1)
        ended = next(((n, p.returncode) for n, p in processes.items() if p.poll() is not None), None)
        if not told_to_end and ended != ("camera", 0):
            print("demo: the {} ended with status {}".format(*ended), file=sys.stderr)
            status = 1
    finally:
        _end(processes)
    return status


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(processes: dict[str, subprocess.Popen]) -> None:
    """Ask every process to end, camera first so that nothing is cut in the middle, and make sure that it does."""
    for process in reversed(processes.values()):
        if process.poll() is None:
            process.terminate()
    for name, process in processes.items():
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            print(f"demo: the {name} did not end within {_GRACE:.0f} s and is killed", file=sys.stderr)
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
