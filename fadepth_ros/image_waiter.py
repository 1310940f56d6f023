"""Waits for the next image of some subscriptions, without rclpy's executor.

For each message the executor collects all entities of the node, builds a wait set of them, and asks each whether it is ready. The
node has about fifty: services of parameters and of the lifecycle, timers, events of publishers. This took a quarter of the
processor time of a frame (measured at 400 frames/s, pass-through engine). Here the wait set has the images alone and is kept.

rclpy's EventsExecutor (Jazzy) has no wait set either, but it clears the callbacks of an event handler after the publisher
or subscription of the handler has been destroyed (ros2/rclpy#1644): deactivating a lifecycle node can crash it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from rclpy.context import Context
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.subscription import Subscription


class ImageWaiter:
    """A wait set of `subscriptions`. Use it in the thread that may take their messages."""

    def __init__(self, context: Context, subscriptions: Sequence[Subscription]):
        self._subscriptions = subscriptions
        handle = context.handle
        assert handle is not None  # the context of a node that exists
        with handle:
            # As in rclpy.wait_for_message; rclpy has no public class for it.
            self._wait_set = rclpy_implementation.WaitSet(len(subscriptions), 0, 0, 0, 0, 0, handle)

    def wait(self, seconds: float) -> list[int]:
        """Wait until images have arrived, at most `seconds`; the indices of their subscriptions."""
        wait_set = self._wait_set
        with ExitStack() as in_use:
            in_use.enter_context(wait_set)
            wait_set.clear_entities()
            for subscription in self._subscriptions:
                in_use.enter_context(subscription.handle)
                wait_set.add_subscription(subscription.handle)
            wait_set.wait(int(1e9 * seconds))
            return [i for i in range(len(self._subscriptions)) if wait_set.is_ready("subscription", i)]
