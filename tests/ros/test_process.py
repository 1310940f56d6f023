"""Start and end of the ROS programs."""

import threading
import time
from contextlib import suppress

import pytest

rclpy = pytest.importorskip("rclpy")
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor  # noqa: E402

from fadepth_ros.process import wake_regularly  # noqa: E402


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
