"""How every process here starts and ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.executors import ExternalShutdownException


@contextmanager
def ros_context(args: list[str] | None = None) -> Iterator[None]:
    """`rclpy.init` around the block; Ctrl-C, SIGTERM and `ros2 launch` end the spinning in it, and nothing else.

    rclpy's own handler shuts the context down, which ends every wait with ExternalShutdownException. Python's handler
    would raise KeyboardInterrupt on top, anywhere, and a terminal together with `ros2 launch` sends two of them: the
    second would cut the clean-up short. It is silenced before rclpy puts its own in front of it.
    """
    signal.signal(signal.SIGINT, lambda number, frame: None)
    rclpy.init(args=args)
    try:
        yield
    finally:
        rclpy.try_shutdown()


@contextmanager
def until_shutdown() -> Iterator[None]:
    """Ends quietly when the context is shut down, also where that pulled the ground from under a call in progress."""
    try:
        yield
    except ExternalShutdownException:
        pass
    except Exception:
        if rclpy.ok():
            raise
