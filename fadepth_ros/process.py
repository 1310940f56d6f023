"""Starts and ends the ROS programs of this package: the node, the clip publisher and the viewer.

`program` encloses all of a program's run: rclpy.init, construction, serving and clean-up. In it, an error of the user's (an
argument, a parameter, a file) ends the process with one line and status 1; SIGINT and SIGTERM end it with status 0.

Imports only the standard library, so that signals are handled before rclpy and OpenCV are imported.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rclpy.executors import Executor
    from rclpy.node import Node

#: Seconds that a program may go on after a signal before it is ended at once. A backend that compiles a network does not
#: return for many seconds, and `ros2 launch` repeats the signal after five.
REACTION = 0.6
#: Seconds for the clean-up after that.
CLEANUP = 1.0
#: Longest time (s) that a program goes on after a signal, if rclpy has not woken it; less than `REACTION`.
_WAKE_PERIOD = 0.25
#: Longest pause of `serve` after an exception, seconds.
_LONGEST_PAUSE = 1.0


class Shutdown:
    """SIGINT and SIGTERM as a flag.

    Python runs signal handlers in the main thread, between two of its own instructions, so not while native code runs there.
    A thread therefore reads the signals' numbers from a pipe. If the main thread does not `acknowledge` the signal within
    `reaction` seconds, or does not end `cleanup` seconds later, the thread ends the process.
    """

    def __init__(self) -> None:
        self.reaction, self.cleanup = REACTION, CLEANUP
        self._requested, self._acknowledged = threading.Event(), threading.Event()
        self._signalled = False  # set in the main thread, which may be faster than the other one
        self._pipe: tuple[int, int] | None = None

    def handle_signals(self) -> None:
        """Handle SIGINT and SIGTERM from now on. Call it in the main thread, before `rclpy.init`: rclpy's own handler, which
        shuts the context down, then calls this one."""
        if self._pipe is not None:
            return
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True).start()

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._signalled or self._requested.is_set()

    def wait(self, seconds: float) -> None:
        """Wait for this time, or until a signal arrives."""
        self._requested.wait(seconds)

    def acknowledge(self) -> None:
        """The program has stopped serving and cleans up."""
        self._acknowledged.set()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # Not the event: its lock may be held by the code that the signal interrupts.
        self._signalled = True

    def _watch(self, pipe: int) -> None:
        while os.read(pipe, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        self._requested.set()
        if self._acknowledged.wait(self.reaction):
            time.sleep(self.cleanup)
        os._exit(0)


#: Of this process, which has one set of signal handlers.
SHUTDOWN = Shutdown()


@contextmanager
def program(name: str, args: list[str] | None = None) -> Iterator[Shutdown]:
    """The run of a ROS program, rclpy.init included.

    Args:
        name: of the program, for error messages.
        args: ROS arguments; None for those of the process.

    Raises:
        SystemExit: with "name: reason", for an error that the user can mend. Other errors are passed on.
    """
    SHUTDOWN.handle_signals()
    print_any_character()
    rclpy: ModuleType | None = None
    initialised = False
    try:
        rclpy = import_module("rclpy")
        if args is None:
            _refuse_other_arguments()
        _find_log_folder(name)
        rclpy.init(args=args)
        initialised = True
        _silence_destructors()
        if SHUTDOWN.requested:  # before rclpy had its handlers
            rclpy.try_shutdown()
        yield SHUTDOWN
    except Exception as error:
        # After a signal, calls in progress raise different errors.
        interrupted = SHUTDOWN.requested or (initialised and rclpy is not None and not rclpy.ok())
        if not interrupted:
            if isinstance(error, _user_errors()):
                sys.exit(f"{name}: {one_line(error)}")
            raise
    finally:
        SHUTDOWN.acknowledge()
        if rclpy is not None:
            with suppress(RuntimeError):  # the signal's handler is shutting it down at the same time
                rclpy.try_shutdown()


def serve(executor: Executor, node: Node, shutdown: Shutdown) -> None:
    """Spin a node until the context is shut down. An exception of a callback is logged and does not end the program.

    If exceptions repeat, for example because the middleware has failed, there is a growing pause after each.
    """
    import rclpy
    from rclpy.executors import ExternalShutdownException

    executor.add_node(node)
    wake_regularly(node)
    pause, last = 0.0, 0.0
    while rclpy.ok() and not shutdown.requested:
        try:
            executor.spin()
        except ExternalShutdownException:
            break
        except Exception:
            if not rclpy.ok():
                break
            node.get_logger().error(f"while serving a request:\n{traceback.format_exc()}")
            now = time.monotonic()
            pause = min(2 * pause + 0.01, _LONGEST_PAUSE) if now - last < 2 * _LONGEST_PAUSE else 0.0
            last = now
            shutdown.wait(pause)
    shutdown.acknowledge()


def wake_regularly(node: Node) -> None:
    """Let the thread that spins `node` notice a signal, even if no message arrives any more.

    rclpy's signal handler first wakes the executor and then shuts the context down. If the executor is fast, it finds the
    context still valid and waits again, without end. This timer wakes it once more; its clock does not stop with simulated
    time.
    """
    from rclpy.clock import Clock, ClockType

    node.create_timer(_WAKE_PERIOD, lambda: None, clock=Clock(clock_type=ClockType.STEADY_TIME))


def print_any_character() -> None:
    """Print characters that the terminal's encoding lacks as escapes, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, end: str = "\n") -> None:
    """Print to stdout. If nobody reads it any more (`| head`), the text is lost; that must not end a recording."""
    try:
        print(text, end=end, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the end of the process, which flushes stdout)


def one_line(error: BaseException) -> str:
    """The message of an error on one line, without the places in rcl's C code."""
    words = " ".join(str(error).split()) or type(error).__name__
    if type(error).__name__ == "UnknownROSArgsError":  # rclpy's message is the list of them
        words = f"unknown ROS arguments {words}"
    return words.split(", at /")[0].split(", at ./")[0]


def has_screen() -> bool:
    """Whether a window could be opened (X11 or Wayland)."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


# ------------------------------------------------------------------------------------------------------------ entry points


def depth_node() -> None:
    """The command `depth_node`."""
    _start("fadepth_ros.node")


def clip_publisher() -> None:
    """The command `clip_publisher`."""
    _start("fadepth_ros.clip_publisher")


def viewer() -> None:
    """The command `viewer`."""
    _start("fadepth_ros.viewer")


def _start(module: str) -> None:
    """Run a module's `main`. Signals are handled from the first of its imports on, which take seconds on a small computer."""
    SHUTDOWN.handle_signals()
    import_module(module).main()


# ----------------------------------------------------------------------------------------------------------------- checks


def _silence_destructors() -> None:
    """Print nothing about exceptions in destructors after a signal: objects that rclpy could not complete raise them."""
    import rclpy

    report = sys.unraisablehook
    sys.unraisablehook = lambda event: report(event) if rclpy.ok() and not SHUTDOWN.requested else None


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors about arguments, parameters, names, files, addresses and missing packages. rclpy's are RuntimeErrors."""
    from rclpy.exceptions import NameValidationException, ParameterException

    return OSError, ValueError, ImportError, RuntimeError, ParameterException, NameValidationException


def _refuse_other_arguments() -> None:
    """Raise ValueError for arguments that ROS ignores, for example remappings without `--ros-args`."""
    from rclpy.utilities import remove_ros_args

    others = remove_ros_args(sys.argv)[1:]
    if others:
        raise ValueError(
            f"unknown argument '{others[0]}'; usage: --ros-args [-r FROM:=TO] [-p NAME:=VALUE] [--params-file FILE]"
        )


def _find_log_folder(name: str) -> None:
    """Let ROS log to a temporary folder if its own cannot be written, as in a service without a home."""
    environment = os.environ
    home = environment.get("HOME")
    folder = environment.get("ROS_LOG_DIR") or (
        os.path.join(environment.get("ROS_HOME") or os.path.join(home, ".ros"), "log") if home else ""
    )
    try:
        if not folder:
            raise OSError("HOME is not set")
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:
        environment["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="ros_log_")
        print(f"{name}: logs are written to {environment['ROS_LOG_DIR']}: {one_line(error)}", file=sys.stderr)
