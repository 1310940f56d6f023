"""Start and end of the ROS programs."""

import ctypes
import io
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy")
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor  # noqa: E402

from cards import PATIENCE, run_program  # noqa: E402
from fadepth_ros.process import print_any_character, say, serve, wake_regularly  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def test_a_shutdown_that_does_not_wake_the_executor_ends_spinning():
    """rclpy's signal handler wakes the executor before it shuts the context down, so the executor may miss the shutdown."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("idle", context=context)
    wake_regularly(node)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    ended = threading.Event()

    def spin() -> None:
        with suppress(ExternalShutdownException):
            executor.spin()
        ended.set()

    threading.Thread(target=spin, daemon=True).start()
    time.sleep(0.2)  # the executor should be waiting; if it is not yet, the test is easier to pass, not harder
    with context.handle:
        context.handle.shutdown()
    assert ended.wait(120)
    rclpy.try_shutdown(context=context)


@pytest.mark.parametrize(
    ("module", "arguments", "reason"),
    [
        (
            "node",
            ["--ros-args", "--params-file", "/missing.yaml"],
            "Couldn't parse params file: '--params-file /missing",
        ),
        ("node", ["--ros-args", "-r", "image=/cam"], "Couldn't parse remap rule: '-r image=/cam'"),
        ("node", ["--ros-args", "--bogus"], "unknown ROS arguments ['--bogus']"),
        ("node", ["--checkpoint", "x"], "unknown argument '--checkpoint'; usage: --ros-args"),
        ("clip_publisher", ["--ros-args", "-p", "rate:=30"], "'rate'"),
        ("clip_publisher", ["--ros-args", "-p", "rate:=-5.0"], "rate out of range"),
        ("viewer", ["--ros-args", "-p", "mode:=files", "-p", "fps:=30"], "'fps'"),
        ("viewer", ["--ros-args", "-p", "mode:=video"], "'video' is not one of auto, page, foxglove, files"),
        (
            "viewer",
            ["--ros-args", "-p", "mode:=page", "-p", "host:=192.0.2.1"],
            "cannot serve a page on 192.0.2.1:8080",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(module, arguments, reason):
    if "host:=192.0.2.1" in arguments:
        pytest.importorskip("viser")
    status, error = run_program(module, *arguments)
    program = "depth_node" if module == "node" else module
    (line,) = [line for line in error.splitlines() if not line.startswith("[")]  # without rcl's own log
    assert status == 1
    assert line.startswith(f"{program}: ")
    assert reason in line


#: A program whose main thread never returns, as while a network is compiled, with the signal at different moments.
STUCK = """
import os, signal, sys, time
from fadepth_ros.process import SHUTDOWN, program
number = signal.Signals[sys.argv[1]]
SHUTDOWN.handle_signals()
if sys.argv[2] == "importing":
    os.kill(os.getpid(), number)
with program("stuck", []):
    if sys.argv[2] == "starting":
        os.kill(os.getpid(), number)
        raise RuntimeError("the context is invalid")
    os.kill(os.getpid(), number)
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("moment", ["importing", "starting", "stuck"])
def test_a_signal_ends_a_program_quietly_at_any_moment(number, moment):
    result = subprocess.run(
        [sys.executable, "-c", STUCK, number, moment], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("home", [{"HOME": "/proc/missing"}, {"HOME": ""}, {"ROS_LOG_DIR": "/proc/missing"}])
def test_without_a_folder_for_logs_a_temporary_one_is_used(home):
    environment = {**os.environ, **home}
    code = "from fadepth_ros.process import program\nwith program('p', []): print('runs')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, env=environment
    )
    assert (result.returncode, result.stdout) == (0, "runs\n")
    assert result.stderr.startswith("p: logs are written to ")


def test_repeated_errors_of_the_executor_slow_it_down_and_do_not_end_it():
    class Failing:
        """An executor, a node, its logger and the shutdown in one."""

        def __init__(self):
            self.pauses, self.logged = [], []

        requested = property(lambda self: len(self.pauses) > 20)

        def spin(self):
            raise RuntimeError("the middleware failed")

        def get_logger(self):
            return self

        def error(self, text):
            self.logged.append(text)

        def wait(self, seconds):
            self.pauses.append(seconds)

        def ignore(self, *arguments, **options):
            pass

        add_node = create_timer = acknowledge = ignore

    failing = Failing()
    serve(failing, failing, failing)
    assert failing.pauses[0] == 0.0
    assert failing.pauses == sorted(failing.pauses)
    assert failing.pauses[-1] == 1.0
    assert all("the middleware failed" in text for text in failing.logged)


def test_any_character_can_be_printed(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_any_character()
    say("Größe \N{GREEK SMALL LETTER ALPHA}")
    assert stream.buffer.getvalue() == b"Gr\\xf6\\xdfe \\u03b1\n"


def test_printing_to_nobody_is_no_error(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(write, "w"))
        say("lost")
        say("lost, too")


#: Prints the page faults of 20 blocks of 8 MB that are written and freed.
BLOCKS = """
import resource, sys
from fadepth_core.common.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory(bounded=True)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytes(bytearray(8_000_000))
before = faults()
for _ in range(20):
    first = bytes(bytearray(8_000_000))
    del first
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_freed_memory_is_used_again_without_page_faults():
    usual, kept = (
        int(subprocess.run([sys.executable, "-c", BLOCKS, mode], capture_output=True, check=True, cwd=ROOT).stdout)
        for mode in ("return", "keep")
    )
    assert kept < 100 < usual
