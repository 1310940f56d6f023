"""How every process here ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.executors import ExternalShutdownException


@contextmanager
def orderly_exit() -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the block; what follows it is not interrupted.

    A terminal and `ros2 launch` both send SIGINT, so a second one regularly arrives during clean-up.
    """
    try:
        yield
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
