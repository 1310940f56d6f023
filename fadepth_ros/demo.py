"""The demo without `ros2 launch`: camera (a clip), depth node and viewer as three processes that use real topics.

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
from types import FrameType

from fadepth_ros.process import has_screen, print_any_character

#: Seconds that a process has to end after SIGTERM; then it is killed. The viewer may take them to finish its files.
_GRACE = 30.0


class _Demo:
    """The processes of the demo, by name, in the order in which they were started."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen] = {}
        self._environment = _environment()
        self._told_to_end = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # Only sets a flag: an exception while a process is started could leave that process out of the list.
        self._told_to_end = True

    def start(self, name: str, module: str, **parameters: object) -> None:
        """Start a ROS program of this package with these parameters."""
        values = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
        command = [sys.executable, "-m", module, "--ros-args", *values]
        # Ignore SIGINT during imports, because it would print a traceback. `ros_context` sets a handler afterwards.
        self._processes[name] = subprocess.Popen(command, env=self._environment, preexec_fn=_ignore_sigint)

    def wait(self) -> int:
        """Wait until the first process ends or a signal arrives; the demo's exit status."""
        while not self._told_to_end and all(process.poll() is None for process in self._processes.values()):
            time.sleep(0.1)
        if self._told_to_end:
            return 0
        name, status = next((n, p.returncode) for n, p in self._processes.items() if p.poll() is not None)
        if (name, status) == ("camera", 0):  # the end of the clip
            return 0
        print(f"demo: the {name} ended with status {status}", file=sys.stderr)
        return 1

    def end(self) -> None:
        """End all processes, the camera first, so that the node and the viewer can finish the frames it has sent."""
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.terminate()
        for name, process in self._processes.items():
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                print(f"demo: the {name} did not end within {_GRACE:.0f} s and is killed", file=sys.stderr)
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    """Environment of the processes: discovery on this machine only, and shared memory for images where it is configured."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    profile = Path(__file__).resolve().parent.parent / "config" / "fastdds.xml"
    if profile.is_file():
        environment.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(profile))
    return environment


def _ignore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", help="video file with a JSON of intrinsics beside it; default: the bundled clip")
    parser.add_argument("--checkpoint", help="checkpoint to run; default: the shipped one")
    parser.add_argument(
        "--view",
        choices=("auto", "page", "foxglove", "files"),
        default="auto",
        help="auto: page if there is a screen, else files",
    )
    parser.add_argument(
        "--record", help="with --view foxglove: MCAP file to write what is shown to; plays the clip once"
    )
    parser.add_argument(
        "--host", default="localhost", help="address that page or Foxglove's connection is served on; 0.0.0.0: all"
    )
    parser.add_argument("--port", type=int, default=0, help="its port; default: 8080 for the page, 8765 for Foxglove")
    parser.add_argument(
        "--once", action="store_true", help="play the clip once; the default with --view files and --record"
    )
    return parser.parse_args()


def main() -> int:
    print_any_character()
    args = _arguments()
    view = ("page" if has_screen() else "files") if args.view == "auto" else args.view
    loop = not (args.once or args.record or view == "files")
    demo = _Demo()
    try:
        record = {"record": args.record} if args.record else {}
        demo.start("viewer", "fadepth_ros.viewer", mode=view, host=args.host, port=args.port, **record)
        demo.start("depth node", "fadepth_ros.node", **({"checkpoint": args.checkpoint} if args.checkpoint else {}))
        demo.start(
            "camera",
            "fadepth_ros.clip_publisher",
            loop=str(loop).lower(),
            **({"clip": args.clip} if args.clip else {}),
        )
        return demo.wait()
    finally:
        demo.end()


if __name__ == "__main__":
    sys.exit(main())
