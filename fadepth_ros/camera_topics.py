"""The topics of one camera: its subscriptions, its publishers, and the pipeline between them while the node is active.

While no output has subscribers, the node is not subscribed to the camera. The camera then sends nothing over the network, and
lazy drivers and image_proc stop, too. The pipeline with its engine is kept. So is the subscription of camera_info until one has
arrived, because the engine is built for its size before the first image arrives.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rclpy.callback_groups import CallbackGroup, ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import (
        PublisherEventCallbacks,
        SubscriptionEventCallbacks,
        UnsupportedEventTypeError,
    )

from fadepth_ros.engine_pool import EnginePool
from fadepth_ros.parameters import Settings, TopicQos, qos_override_policies
from fadepth_ros.pipeline import COLOR, CONFIDENCE, DEPTH, INFO, POINTS, Pipeline

_OUTPUT_TYPES = {DEPTH: Image, INFO: CameraInfo, POINTS: PointCloud2, COLOR: Image, CONFIDENCE: Image}


#: At most this many messages are taken from a queue before the newest of them is processed: a publisher may fill it as fast.
_MOST_TAKEN = 64
#: Seconds without subscribers after which the camera is unsubscribed. Matching with the camera's publisher takes tens of
#: milliseconds, too long for a subscriber that comes back at once.
LINGER = 1.0
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
        image: the subscription of the images; None while the node is not active or idle.
        reports_subscribers: whether the middleware reports when a subscriber of an output comes. Otherwise `refresh` must be
            called often.
    """

    def __init__(self, node: LifecycleNode, name: str):
        self.name = name
        self.pipeline: Pipeline | None = None
        self.image: Subscription | None = None
        self.reports_subscribers = True
        self._node = node
        self._publishers: dict[str, Any] = {}
        self._polled = _Polled()
        self._infos: list[Subscription] = []
        self._subscribe_image: Callable[[], Subscription] | None = None  # while active
        self._subscribe_infos: Callable[[], None] | None = None
        self._unwanted_since: float | None = None  # monotonic clock; None while the images are needed

    @property
    def idle(self) -> bool:
        """Whether the node is active and not subscribed to the camera, because no output has subscribers."""
        return self.pipeline is not None and self.image is None

    @property
    def active_pipeline(self) -> Pipeline:
        """`pipeline`, while the node is active."""
        assert self.pipeline is not None
        return self.pipeline

    def advertise(self, settings: Settings, on_subscribers: Callable[[], None]) -> None:
        """Create the publishers. `on_subscribers` is called when subscribers of an output come or go, if the middleware
        reports that."""
        for output, kind in _OUTPUT_TYPES.items():
            topic = camera_topic(self.name, output)
            create = functools.partial(
                self._node.create_lifecycle_publisher,
                kind,
                topic,
                _profile(settings.qos[output]),
                qos_overriding_options=_overriding(self._node, self._node.resolve_topic_name(topic), "publisher"),
            )
            try:
                events = PublisherEventCallbacks(matched=lambda status: on_subscribers())
                self._publishers[output] = create(event_callbacks=events)
            except (TypeError, UnsupportedEventTypeError):  # rclpy of Humble, or the middleware, has no such event
                self.reports_subscribers = False
                self._publishers[output] = create()

    def start(self, settings: Settings, engines: EnginePool, logger: logging.Logger, on_image: Callable) -> None:
        """Subscribe; `on_image` is called with this object and the serialized image."""
        image, compressed = self._image_topic(settings.image_transport, logger)
        info = self._node.resolve_topic_name(camera_topic(self.name, "camera_info"))
        transport = "compressed" if compressed else "raw"
        self.pipeline = Pipeline(replace(settings, image_transport=transport), self, logger, image, info, engines)
        on_info = self.pipeline.offer_camera_info

        def subscribe_infos() -> None:
            # Appended one by one, so that `stop` destroys the first one if the other cannot be created.
            self._infos.append(self._subscribe(CameraInfo, info, on_info, settings.qos["camera_info"], self._polled))
            if self._infos[0].qos_profile.durability != DurabilityPolicy.TRANSIENT_LOCAL and self._may_be_latched(info):
                self._infos.append(self._subscribe(CameraInfo, info, on_info, _LATCHED, self._polled, beside=True))

        self._subscribe_infos = subscribe_infos
        self._subscribe_image = functools.partial(
            self._subscribe,
            CompressedImage if compressed else Image,
            image,
            functools.partial(on_image, self),
            settings.qos["image"],
        )
        # Also without subscribers: so a quality of service that cannot be used is refused now.
        self._listen()
        logger.info(f"waiting for images on {image} and intrinsics on {info}")

    def refresh(self, lazy: bool) -> bool:
        """Subscribe to the camera if an output has subscribers or a frame is to be saved, and unsubscribe if that has not been
        so for `LINGER` seconds.

        Args:
            lazy: whether to unsubscribe at all.

        Returns:
            Whether `image` has changed.
        """
        if self.pipeline is None:
            return False
        now, before = time.monotonic(), self.image
        if not lazy or self.subscribed() or self.pipeline.saving:
            self._unwanted_since = None
            if self.image is None:
                self._listen()
                self.pipeline.statistics.resume()
        elif self._unwanted_since is None:
            self._unwanted_since = now
        elif self.image is not None and now - self._unwanted_since >= LINGER:
            self._node.destroy_subscription(self.image)
            self.image = None
        if self.image is None and self._infos:
            self._take_infos()
            if self.pipeline.prepare_engine():
                self._destroy_infos()
        return self.image is not before

    def _may_be_latched(self, topic: str) -> bool:
        """Whether a publisher of the topic latches its messages, or none is known yet.

        A camera that does not latch logs a warning of each subscription that requests it, and the node subscribes often.
        """
        publishers = self._node.get_publishers_info_by_topic(topic)
        latched = (p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers)
        return not publishers or any(latched)

    def _listen(self) -> None:
        """Subscribe to the images, and to camera_info unless this was kept."""
        assert self._subscribe_image is not None  # see `start`
        assert self._subscribe_infos is not None
        self._unwanted_since = None
        self.image = self._subscribe_image()
        if not self._infos:
            self._subscribe_infos()

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
        beside: bool = False,
    ) -> Subscription:
        """Subscribe to a topic.

        Args:
            beside: whether this is a second subscription of the topic. It has no overrides, and no warning of publishers that
                do not fit: they are for the first one.
        """
        return self._node.create_subscription(
            kind,
            topic,
            callback,
            _profile(qos),
            callback_group=group,
            raw=True,
            qos_overriding_options=None if beside else _overriding(self._node, topic, "subscription"),
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=not beside),
        )

    def stop(self) -> None:
        """Unsubscribe and release the pipeline."""
        if self.image is not None:
            self._node.destroy_subscription(self.image)
        self._destroy_infos()
        self.image = self.pipeline = self._subscribe_image = self._subscribe_infos = None

    def _destroy_infos(self) -> None:
        while self._infos:
            self._node.destroy_subscription(self._infos.pop())

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
        if self.image is None:
            return None
        newest, superseded = _take_newest(self.image)
        if newest is None:
            newest = delivered
        elif delivered is not None:
            superseded += 1
        if newest is None:
            return None
        self._take_infos()
        return newest, superseded

    def _take_infos(self) -> None:
        """Pass the newest CameraInfo in the queues to the pipeline."""
        for info in reversed(self._infos):  # the latched one first: what it received may be old
            message, _ = _take_newest(info)
            if message is not None:
                self.active_pipeline.offer_camera_info(message)

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
