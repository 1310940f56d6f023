"""Start and end of the ROS programs: the node, the clip publisher and the viewer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.executors import ExternalShutdownException


@contextmanager
def ros_context(args: list[str] | None = None) -> Iterator[None]:
    """`rclpy.init` around the block. SIGINT and SIGTERM end the spinning in it, nothing else.

    rclpy's own signal handler shuts the context down, which ends every wait with ExternalShutdownException. Python's handler
    for SIGINT would raise KeyboardInterrupt as well, at any line. A terminal together with `ros2 launch` sends two signals,
    so the second one would interrupt the clean-up. Python's handler is therefore replaced by one that does nothing, before
    rclpy installs its own in front of it.
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
    """End the block quietly when the context is shut down, whatever the call in progress then raises."""
    try:
        yield
    except ExternalShutdownException:
        pass
    except Exception:
        if rclpy.ok():
            raise
