"""The heartbeat that Nav2's lifecycle manager expects of an active node: messages bond/msg/Status on the topic `bond`.

The manager regards a node as failed if none arrives for `bond_timeout` seconds (4 by default), and brings all nodes down. As
Nav2's own nodes, this one does not watch the manager's heartbeat.

The messages are sent by a thread: the executor waits while an engine is built, which takes seconds and is no failure.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from importlib import import_module

from rclpy.node import Node
from rclpy.qos import QoSProfile

from fadepth_core.messages.cdr import CdrWriter, Stamp

#: Seconds for which the node may be busy with one thing, e.g. with building an engine, before its heartbeat stops.
LONGEST_STALL = 60.0
#: The manager's default for `bond_timeout`, seconds. It stands in the messages for people who look at them.
_TIMEOUT = 4.0


class BondMissingError(Exception):
    """The package of the message type is not installed."""


def status_type() -> type:
    """The message type bond/msg/Status.

    Raises:
        BondMissingError: it is not installed; the message says what to do.
    """
    try:
        return import_module("bond.msg").Status
    except ImportError as error:
        package = f"ros-{os.environ.get('ROS_DISTRO', 'DISTRO')}-bond"
        raise BondMissingError(
            f"bond_heartbeat_period needs the ROS package bond, which comes with Nav2 ({error}): install {package}, or set "
            "bond_heartbeat_period to 0 and the manager's bond_timeout to 0.0"
        ) from error


class Heartbeat:
    """Sends a heartbeat from `start` to `stop`. Create it long before `start`, so that the manager receives the first message.

    Args:
        node: the heartbeat has its name and is published in its namespace, as the manager expects it.
        period: seconds between two messages.
        last_action: when the node's executor last did something, seconds of the monotonic clock.

    Attributes:
        period: the argument.

    Raises:
        BondMissingError: see `status_type`.
    """

    def __init__(self, node: Node, period: float, last_action: Callable[[], float]):
        self._node, self.period, self._last_action = node, period, last_action
        self._instance = ""  # of this heartbeat; another one after each `start`
        self._publisher = node.create_publisher(status_type(), "bond", QoSProfile(depth=5))
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Send heartbeats from now on."""
        self._instance = str(uuid.uuid4())
        self._stopped.clear()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell the manager that no heartbeats follow, and send no more."""
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._thread = None
        self._publish(active=False)

    def destroy(self) -> None:
        """Stop and remove the publisher."""
        self.stop()
        self._node.destroy_publisher(self._publisher)

    def _beat(self) -> None:
        while not self._stopped.is_set() and self._node.context.ok():
            if time.monotonic() - self._last_action() < LONGEST_STALL:
                self._publish(active=True)
            self._stopped.wait(self.period)

    def _publish(self, active: bool) -> None:
        seconds, nanoseconds = divmod(self._node.get_clock().now().nanoseconds, 10**9)
        writer = CdrWriter()
        writer.header(Stamp(seconds, nanoseconds), "")
        writer.string(self._node.get_name())
        writer.string(self._instance)
        writer.uint8(active)
        writer.floats(_TIMEOUT, self.period)
        try:
            self._publisher.publish(bytes(writer.raw))
        except Exception:
            if self._node.context.ok():  # else a signal has shut it down meanwhile
                raise
