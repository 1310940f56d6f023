"""Starts and ends the ROS programs of this package: the node, the clip publisher and the viewer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

#: Longest time (s) that a program goes on after a signal, if rclpy has not woken it.
_WAKE_PERIOD = 0.5


@contextmanager
def ros_context(args: list[str] | None = None) -> Iterator[None]:
    """Initialise rclpy for the block. SIGINT and SIGTERM only end the spinning in it.

    rclpy's own signal handler shuts the context down, which ends every wait with ExternalShutdownException. Python's handler
    for SIGINT would also raise KeyboardInterrupt, at any line. With `ros2 launch` in a terminal, Ctrl-C sends two signals, and
    the second one would interrupt the clean-up. So Python's handler is replaced by one that does nothing. This must happen
    before `rclpy.init`, because rclpy's handler calls the earlier one.
    """
    signal.signal(signal.SIGINT, lambda number, frame: None)
    rclpy.init(args=args)
    try:
        yield
    finally:
        rclpy.try_shutdown()


@contextmanager
def exit_on(program: str, *errors: type[Exception]) -> Iterator[None]:
    """End the process with status 1 and "program: reason" on stderr when the block raises one of `errors`."""
    try:
        yield
    except errors as error:
        sys.exit(f"{program}: {error}")


@contextmanager
def until_shutdown() -> Iterator[None]:
    """Ignore an exception of the block if the context is shut down: calls in progress then raise different errors."""
    try:
        yield
    except ExternalShutdownException:
        pass
    except Exception:
        if rclpy.ok():
            raise


def wake_regularly(node: Node) -> None:
    """Let the thread that spins `node` notice a signal, even if no message arrives any more.

    rclpy's signal handler first wakes the executor and then shuts the context down. If the executor is fast, it finds the
    context still valid and waits again, without end. This timer wakes it once more; its clock does not stop with simulated
    time.
    """
    node.create_timer(_WAKE_PERIOD, lambda: None, clock=Clock(clock_type=ClockType.STEADY_TIME))
