"""The topics of one camera: its subscriptions, its publishers, and the pipeline between them while the node is active."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rclpy.callback_groups import CallbackGroup, ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from fadepth_ros.engine_pool import EnginePool
from fadepth_ros.parameters import Settings, TopicQos, qos_override_policies
from fadepth_ros.pipeline import COLOR, DEPTH, INFO, POINTS, Pipeline

_OUTPUT_TYPES = {DEPTH: Image, INFO: CameraInfo, POINTS: PointCloud2, COLOR: Image}


#: At most this many messages are taken from a queue before the newest of them is processed: a publisher may fill it as fast.
_MOST_TAKEN = 64
#: Transports of image_transport that the node cannot decode.
_OTHER_TRANSPORTS = ("compressedDepth", "theora", "ffmpeg", "zstd")
#: A subscription that receives what a latching publisher (transient local) has published before. One that does so does not
#: receive from other publishers, so it stands beside the usual one.
_LATCHED = TopicQos("reliable", "transient_local", 1)


def _profile(qos: TopicQos) -> QoSProfile:
    """A new object for each topic: rclpy writes overrides into the profile it is given."""
    return QoSProfile(
        depth=qos.depth,
        reliability=ReliabilityPolicy[qos.reliability.upper()],
        durability=DurabilityPolicy[qos.durability.upper()],
    )


def _overriding(node: LifecycleNode, topic: str, entity: str) -> QoSOverridingOptions | None:
    """Which policies ROS's parameters `qos_overrides` may change: those that are given.

    Parameters of policies that are not given would be declared and read-only, and keep the values of the first profile.
    """
    kinds = {
        kind.name.lower(): kind
        for kind in QoSPolicyKind
        if kind.name in ("HISTORY", "DEPTH", "RELIABILITY", "DURABILITY")
    }
    given = [kinds[policy] for policy in qos_override_policies(node, topic, entity) if policy in kinds]
    return QoSOverridingOptions(given) if given else None


def camera_topic(camera: str, name: str) -> str:
    """A topic's relative name in the namespace of a camera; "" for no namespace."""
    return f"{camera}/{name}" if camera else name


class _Polled(ReentrantCallbackGroup):
    """The callback group of subscriptions that `take_newest` polls. The executor waits for their events alone: waking it for
    every CameraInfo doubled its work."""

    def can_execute(self, entity: Any) -> bool:
        return not isinstance(entity, Subscription) and super().can_execute(entity)


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
        self._polled = _Polled()
        self._inputs: list[Subscription] = []

    @property
    def image(self) -> Subscription:
        """The subscription of the images, while the node is active."""
        return self._inputs[0]

    @property
    def active_pipeline(self) -> Pipeline:
        """`pipeline`, while the node is active."""
        assert self.pipeline is not None
        return self.pipeline

    def advertise(self, settings: Settings) -> None:
        """Create the publishers."""
        for output, kind in _OUTPUT_TYPES.items():
            topic = camera_topic(self.name, output)
            self._publishers[output] = self._node.create_lifecycle_publisher(
                kind,
                topic,
                _profile(settings.qos[output]),
                qos_overriding_options=_overriding(self._node, self._node.resolve_topic_name(topic), "publisher"),
            )

    def start(self, settings: Settings, engines: EnginePool, logger: logging.Logger, on_image: Callable) -> None:
        """Subscribe; `on_image` is called with this object and the serialized image."""
        image, compressed = self._image_topic(settings.image_transport, logger)
        info = self._node.resolve_topic_name(camera_topic(self.name, "camera_info"))
        transport = "compressed" if compressed else "raw"
        self.pipeline = Pipeline(replace(settings, image_transport=transport), self, logger, image, info, engines)
        self._subscribe(
            CompressedImage if compressed else Image, image, functools.partial(on_image, self), settings.qos["image"]
        )
        on_info = self.pipeline.offer_camera_info
        self._subscribe(CameraInfo, info, on_info, settings.qos["camera_info"], self._polled)
        if self._inputs[-1].qos_profile.durability != DurabilityPolicy.TRANSIENT_LOCAL:
            self._subscribe(CameraInfo, info, on_info, _LATCHED, self._polled, overridable=False)
        logger.info(f"waiting for images on {image} and intrinsics on {info}")

    def _image_topic(self, transport: str, logger: logging.Logger) -> tuple[str, bool]:
        """The resolved name of the image topic, and whether it carries CompressedImage."""
        topic = self._node.resolve_topic_name(camera_topic(self.name, "image"))
        base, _, suffix = topic.rpartition("/")
        if suffix == "compressed":
            # Transports are suffixes of the image's name. Many people remap `image` to the name with the suffix.
            logger.warning(
                f"{topic} is taken as a CompressedImage because of its name. Better remap image to {base} and set "
                "image_transport to compressed"
            )
            return topic, True
        if suffix in _OTHER_TRANSPORTS:
            logger.warning(
                f"{topic}: the image transport '{suffix}' is not supported; remap image to {base}, and set image_transport to "
                "raw or compressed"
            )
        # After remapping: image:=/cam/image_raw gives /cam/image_raw/compressed.
        return (f"{topic}/compressed", True) if transport == "compressed" else (topic, False)

    def _subscribe(
        self,
        kind: type,
        topic: str,
        callback: Callable,
        qos: TopicQos,
        group: CallbackGroup | None = None,
        overridable: bool = True,
    ) -> None:
        # Appended one by one, so that `stop` destroys the first ones if a later one cannot be created.
        self._inputs.append(
            self._node.create_subscription(
                kind,
                topic,
                callback,
                _profile(qos),
                callback_group=group,
                raw=True,
                qos_overriding_options=_overriding(self._node, topic, "subscription") if overridable else None,
            )
        )

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

    def take_newest(self, delivered: bytes | None = None) -> tuple[bytes, int] | None:
        """The newest of the image `delivered` by the executor and of those in the middleware's queue, and how many older ones
        it replaces; None if there are none.

        Before, passes the newest CameraInfo in the queue to the pipeline: it may belong to this image.
        """
        image, *infos = self._inputs
        newest, superseded = _take_newest(image)
        if newest is None:
            newest = delivered
        elif delivered is not None:
            superseded += 1
        if newest is None:
            return None
        for info in reversed(infos):  # the latched one first: what it received may be old
            message, _ = _take_newest(info)
            if message is not None:
                self.active_pipeline.offer_camera_info(message)
        return newest, superseded

    # ------------------------------------------------------------------------------------------- the pipeline's Outputs

    def subscribed(self) -> set[str]:
        return {name for name, publisher in self._publishers.items() if publisher.get_subscription_count()}

    def publish(self, output: str, message: bytes) -> None:
        self._publishers[output].publish(message)

    def closed(self) -> bool:
        return not self._node.context.ok()

    def now(self) -> int:
        return self._node.get_clock().now().nanoseconds


def _take_newest(subscription: Subscription) -> tuple[bytes | None, int]:
    """The newest serialized message in the queue of a raw subscription, None if there is none; and how many older ones were
    taken with it."""
    newest, count = None, 0
    with subscription.handle:
        while count < _MOST_TAKEN:
            message = subscription.handle.take_message(subscription.msg_type, True)
            if message is None:
                break
            newest, count = message[0], count + 1
    return newest, max(count - 1, 0)
