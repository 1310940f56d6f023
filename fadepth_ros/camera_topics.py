"""The topics of one camera: its subscriptions, its publishers, and the pipeline between them while the node is active."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from fadepth_ros.engine_pool import EnginePool
from fadepth_ros.parameters import Settings
from fadepth_ros.pipeline import COLOR, DEPTH, INFO, POINTS, Pipeline

_OUTPUT_TYPES = {DEPTH: Image, INFO: CameraInfo, POINTS: PointCloud2, COLOR: Image}


# Functions, not constants: rclpy writes overrides into the profile it is given, and a shared one would change all topics.


def _output_qos() -> QoSProfile:
    """Reliable, for subscribers that need every depth image. Depth 2, so that a slow subscriber does not get old images."""
    return QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)


def _input_qos() -> QoSProfile:
    """Best effort, which receives from reliable and best-effort publishers."""
    return QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


def camera_topic(camera: str, name: str) -> str:
    """A topic's relative name in the namespace of a camera; "" for no namespace."""
    return f"{camera}/{name}" if camera else name


class CameraTopics:
    """The topics of one camera. It is the `Outputs` of the camera's pipeline.

    Args:
        name: the camera's namespace below the node's; "" for none.

    Attributes:
        pipeline: None while the node is not active.
    """

    def __init__(self, node: LifecycleNode, name: str):
        self.name = name
        self.pipeline: Pipeline | None = None
        self._node = node
        self._publishers: dict[str, Any] = {}
        self._inputs: list[Subscription] = []

    @property
    def active_pipeline(self) -> Pipeline:
        """`pipeline`, while the node is active."""
        assert self.pipeline is not None
        return self.pipeline

    def advertise(self) -> None:
        """Create the publishers."""
        for output, kind in _OUTPUT_TYPES.items():
            self._publishers[output] = self._node.create_lifecycle_publisher(
                kind,
                camera_topic(self.name, output),
                _output_qos(),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )

    def start(self, settings: Settings, engines: EnginePool, logger: logging.Logger, on_image: Callable) -> None:
        """Subscribe; `on_image` is called with this object and the serialized image."""
        compressed = settings.image_transport == "compressed"
        resolve = self._node.resolve_topic_name
        # A transport is a suffix of the image's name after remapping: image:=/cam/image_raw gives ../image_raw/compressed.
        image = resolve(camera_topic(self.name, "image")) + ("/compressed" if compressed else "")
        info = resolve(camera_topic(self.name, "camera_info"))
        self.pipeline = Pipeline(settings, self, logger, image, info, engines)
        for kind, topic, callback in (
            (CompressedImage if compressed else Image, image, functools.partial(on_image, self)),
            (CameraInfo, info, self.pipeline.offer_camera_info),
        ):
            # Appended one by one, so that `stop` destroys the first if the second cannot be created.
            self._inputs.append(
                self._node.create_subscription(
                    kind,
                    topic,
                    callback,
                    _input_qos(),
                    raw=True,
                    qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                )
            )
        logger.info(f"waiting for images on {image} and intrinsics on {info}")

    def stop(self) -> None:
        """Unsubscribe and release the pipeline."""
        for subscription in self._inputs:
            self._node.destroy_subscription(subscription)
        self._inputs = []
        self.pipeline = None

    def destroy(self) -> None:
        """Remove subscriptions and publishers."""
        self.stop()
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)

    def take_newest(self, images: list[bytes]) -> tuple[bytes, int] | None:
        """The newest of `images` and of those in the middleware's queue, and how many older ones it replaces; None if there are
        none.

        Before, passes the newest CameraInfo in the queue to the pipeline: it may belong to this image, and the executor would
        deliver it later.
        """
        image, info = self._inputs
        images += _take_all(image)
        if not images:
            return None
        for message in _take_all(info)[-1:]:
            self.active_pipeline.offer_camera_info(message)
        return images[-1], len(images) - 1

    # ------------------------------------------------------------------------------------------- the pipeline's Outputs

    def subscribed(self) -> set[str]:
        return {name for name, publisher in self._publishers.items() if publisher.get_subscription_count()}

    def publish(self, output: str, message: bytes) -> None:
        self._publishers[output].publish(message)

    def closed(self) -> bool:
        return not self._node.context.ok()

    def now(self) -> int:
        return self._node.get_clock().now().nanoseconds


def _take_all(subscription: Subscription) -> list[bytes]:
    """Take the serialized messages from the queue of a raw subscription, oldest first."""
    taken = []
    with subscription.handle:
        while (message := subscription.handle.take_message(subscription.msg_type, True)) is not None:
            taken.append(message[0])
    return taken
