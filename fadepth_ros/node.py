"""The lifecycle node: wires topics, parameters and diagnostics to the pipeline.

Subscribes to `image` (or `image/compressed`) and `camera_info`, publishes `depth/image`, `depth/camera_info`,
`depth/points`, `depth/color` and `/diagnostics`. All names are relative: remap them, or give the node a namespace. With
the parameter `cameras` it does so once in each of these namespaces.
"""

from __future__ import annotations

import functools
import gc
import logging
import sys
import traceback
from collections.abc import Callable, Sequence

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_ros.parameters import Parameters, Settings
from fadepth_ros.pipeline import COLOR, DEPTH, INFO, POINTS, Engines, Pipeline, load_engine, offer_images
from fadepth_ros.shutdown import ros_context, until_shutdown
from fadepth_ros.statistics import Report

# Functions, since rclpy writes overrides into the profile it is given: a shared one would spread them to every topic.


def _output_qos() -> QoSProfile:
    """Whoever needs every depth image needs it reliably; two deep, so that a slow reader is not served old depth."""
    return QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)


def _input_qos() -> QoSProfile:
    """Sensor data: best effort hears reliable cameras and best-effort ones."""
    return QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


_OUTPUT_TYPES = {DEPTH: Image, INFO: CameraInfo, POINTS: PointCloud2, COLOR: Image}


def _transition(callback: Callable) -> Callable:
    """Log what a transition raises: rclpy turns it into an ERROR without a word."""

    @functools.wraps(callback)
    def logged(self, state):
        try:
            return callback(self, state)
        except Exception:
            self.get_logger().error(f"{callback.__name__} failed:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR

    return logged


class CameraTopics:
    """The topics of one camera, and the pipeline between them while the node is active; the pipeline's `Outputs`.

    Args:
        name: the camera's namespace below the node's; empty for none.
    """

    def __init__(self, node: LifecycleNode, name: str):
        self.name = name
        self.pipeline: Pipeline | None = None
        self._node = node
        self._publishers: dict = {}
        self._inputs: list = []

    def advertise(self) -> None:
        """Make the publishers."""
        for output, kind in _OUTPUT_TYPES.items():
            self._publishers[output] = self._node.create_lifecycle_publisher(
                kind,
                _topic(self.name, output),
                _output_qos(),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )

    def start(self, settings: Settings, engines: Engines, logger: logging.Logger, on_image: Callable) -> None:
        """Subscribe; `on_image` is called with this object and the serialized image."""
        compressed = settings.image_transport == "compressed"
        resolve = self._node.resolve_topic_name
        # A transport is a suffix of the image's name, after remapping: image:=/cam/image_raw gives ../image_raw/compressed.
        image = resolve(_topic(self.name, "image")) + ("/compressed" if compressed else "")
        info = resolve(_topic(self.name, "camera_info"))
        self.pipeline = Pipeline(settings, self, logger, image, info, engines)
        for kind, topic, callback in (
            (CompressedImage if compressed else Image, image, functools.partial(on_image, self)),
            (CameraInfo, info, self.pipeline.offer_camera_info),
        ):
            # One by one, so that what exists is taken down again if the next one fails.
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
        for subscription in self._inputs:
            self._node.destroy_subscription(subscription)
        self._inputs = []
        self.pipeline = None

    def destroy(self) -> None:
        self.stop()
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)

    def newest(self, images: list[bytes]) -> tuple[bytes, int] | None:
        """The newest of `images` and those that wait in the middleware's queue, and how many it replaces; None without
        any. The intrinsics that came with it, which may stand behind it in the executor's order, are taken too."""
        image, info = self._inputs
        images += _take_waiting(image)
        if not images:
            return None
        for message in _take_waiting(info)[-1:]:
            self.pipeline.offer_camera_info(message)
        return images[-1], len(images) - 1

    # ------------------------------------------------------------------------------------------- the pipeline's Outputs

    def wanted(self) -> set[str]:
        return {name for name, publisher in self._publishers.items() if publisher.get_subscription_count()}

    def publish(self, output: str, message: bytes) -> None:
        self._publishers[output].publish(message)

    def closed(self) -> bool:
        return not self._node.context.ok()

    def now(self) -> int:
        return self._node.get_clock().now().nanoseconds


class DepthNode(LifecycleNode):
    """Answers camera images with depth.

    Args:
        engine_loader: see `Engines`.
        options: passed on to `rclpy.node.Node`.
    """

    def __init__(self, engine_loader: Callable = load_engine, **options):
        super().__init__("depth", **options)
        self._engine_loader = engine_loader
        self._cameras: list[CameraTopics] = []
        self._active = False
        self._logging = _forward_logging(self)
        self._declared = Parameters(self, lambda: self._active, self._on_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = self.create_timer(1.0, self._publish_diagnostics)

    def autostart(self) -> None:
        """Configure and activate, unless the parameter `autostart` says otherwise; a failure stays logged."""
        if not self._declared.autostart:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # ------------------------------------------------------------------------------------------------------ transitions

    @_transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        settings = self._declared.settings
        try:
            description = Checkpoint(settings.engine.checkpoint or None).description
        except CheckpointError as error:
            self.get_logger().error(f"cannot configure: {error}")
            return TransitionCallbackReturn.FAILURE
        if not description.trained:
            self.get_logger().warning(
                "THE CHECKPOINT IS UNTRAINED: what is published has the form of depth but means nothing. "
                "Set the parameter 'checkpoint' to a trained one."
            )
        if licence := description.provenance.get("licence"):
            self.get_logger().info(f"licence of the network's weights: {licence}")
        self._make_topics(settings.cameras)
        return TransitionCallbackReturn.SUCCESS

    @_transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        settings = self._declared.settings
        if settings.cameras != tuple(camera.name for camera in self._cameras):  # changed since on_configure
            self._make_topics(settings.cameras)
        engines = Engines(self._engine_loader)
        for camera in self._cameras:
            camera.start(settings, engines, self._logging, self._on_image)
        self._active = True
        return super().on_activate(state)

    @_transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return super().on_deactivate(state)

    @_transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._active = False
        self._make_topics(())
        return TransitionCallbackReturn.SUCCESS

    @_transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    @_transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    def destroy_node(self) -> None:
        self._stop()
        super().destroy_node()

    def _make_topics(self, cameras: Sequence[str]) -> None:
        """Publishers for these cameras, instead of those there are."""
        while self._cameras:
            self._cameras.pop().destroy()
        for name in cameras:
            camera = CameraTopics(self, name)
            self._cameras.append(camera)  # before it is complete, so that what exists is taken down if the rest fails
            camera.advertise()

    def _stop(self) -> None:
        self._active = False
        for camera in self._cameras:
            camera.stop()

    def _on_image(self, camera: CameraTopics, raw: bytes) -> None:
        """Only the newest frame is worth depth. Those of other cameras are taken too where they go into one batch with it;
        else they had better wait, and be replaced by newer ones."""
        raw, superseded = camera.newest([raw])
        images = [(camera.pipeline, raw, superseded)]
        for other in self._cameras:
            if other is not camera and camera.pipeline.batches_with(other.pipeline):
                waiting = other.newest([])
                if waiting is not None:
                    images.append((other.pipeline, *waiting))
        if len(images) > 1:
            offer_images(images)
        else:
            camera.pipeline.offer_image(raw, superseded)

    # ---------------------------------------------------------------------------------------- parameters, diagnostics

    def _on_parameters(self, settings: Settings) -> None:
        if self._active:
            for camera in self._cameras:
                camera.pipeline.configure(settings)

    def _publish_diagnostics(self) -> None:
        node = self.get_fully_qualified_name()
        pipelines = {name: None for name in self._declared.settings.cameras}
        pipelines |= {camera.name: camera.pipeline for camera in self._cameras if self._active}
        message = DiagnosticArray(
            status=[_status(f"{node}: {_topic(name, 'depth')}", pipeline) for name, pipeline in pipelines.items()]
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def _topic(camera: str, name: str) -> str:
    return f"{camera}/{name}" if camera else name


def _status(name: str, pipeline: Pipeline | None) -> DiagnosticStatus:
    """One camera's part of /diagnostics."""
    if pipeline is None:
        return DiagnosticStatus(name=name, level=DiagnosticStatus.OK, message="not active")
    report = pipeline.statistics.report()
    level, text = _judge(report, pipeline.degraded)
    values = [KeyValue(key=k, value=v) for k, v in _values(report, pipeline).items()]
    return DiagnosticStatus(
        name=name, level=level, message=text, hardware_id=pipeline.engine_description, values=values
    )


def _take_waiting(subscription) -> list[bytes]:
    """The serialized messages that a raw subscription has received and not yet delivered, oldest first."""
    waiting = []
    with subscription.handle:
        while (taken := subscription.handle.take_message(subscription.msg_type, True)) is not None:
            waiting.append(taken[0])
    return waiting


def _judge(report: Report, degraded: bool) -> tuple[bytes, str]:
    """The level and one line for /diagnostics: of the most frequent thing that is wrong now."""
    wrong = {**report.problems, **report.dropped}
    wrong = {cause: n for cause, n in wrong.items() if cause in report.errors}
    if wrong:
        serious = [cause for cause in ("engine", "internal") if cause in wrong]
        cause = serious[0] if serious else max(wrong, key=wrong.get)
        return DiagnosticStatus.ERROR if serious else DiagnosticStatus.WARN, report.errors[cause]
    if report.received == 0:
        return DiagnosticStatus.STALE, "no images arrive"
    if degraded:
        return DiagnosticStatus.WARN, "running on a fallback, see 'passed over'"
    if report.dropped.get("no_subscriber"):
        return DiagnosticStatus.OK, "resting, nobody subscribes"
    return DiagnosticStatus.OK, f"{report.published.get(DEPTH, 0) / report.seconds:.1f} depth images per second"


def _values(report: Report, pipeline: Pipeline) -> dict[str, str]:
    values = {"images received per second": f"{report.received / report.seconds:.1f}"}
    values |= {f"{name} per second": f"{n / report.seconds:.1f}" for name, n in sorted(report.published.items())}
    if report.latency is not None:
        values["latency p50 (ms)"] = f"{report.latency[0]:.2f}"
        values["latency p99 (ms)"] = f"{report.latency[1]:.2f}"
        values["age of stamp p50 (ms)"] = f"{report.age:.2f}"
    values |= {cause: str(n) for cause, n in sorted(report.totals.items())}
    values["engine"] = pipeline.engine_description
    values["checkpoint"] = pipeline.checkpoint_description
    if pipeline.ground is not None:
        seen = "" if pipeline.ground.seen else ", no ground in view"
        values["scale from camera height"] = f"{pipeline.ground.factor:.3f}{seen}"
    values |= {f"passed over {i}": text for i, text in enumerate(pipeline.engine_failures, 1)}
    if report.last_error is not None:
        values["last error"] = f"{report.last_error[0]} ({report.last_error[1]:.0f} s ago)"
    return values


def _forward_logging(node: LifecycleNode) -> logging.Logger:
    """A Python logger, for the code that knows no ROS, whose records come out of the node's own."""
    logger = logging.Logger(node.get_fully_qualified_name(), logging.INFO)

    class ToRos(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.exc_info and record.exc_info[0]:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
            ros = node.get_logger()
            # One call site per level: rclpy remembers the level of each place that logs.
            if record.levelno >= logging.ERROR:
                ros.error(text)
            elif record.levelno >= logging.WARNING:
                ros.warning(text)
            else:
                ros.info(text)

    logger.addHandler(ToRos())
    return logger


def run(engine_loader: Callable = load_engine, args: list[str] | None = None) -> int:
    """Start the node and serve until it is told to stop; the exit status."""
    with ros_context(args):
        try:
            node = DepthNode(engine_loader)
        except (ValueError, ParameterException) as error:
            print(f"depth_node: {error}", file=sys.stderr)
            return 1
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        node.autostart()
        # The executor makes short-lived objects at every turn; without this, a fifth of the node's time at hundreds of
        # frames per second goes into collections that walk everything imported, again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        while rclpy.ok():
            try:
                with until_shutdown():
                    executor.spin()
            except Exception:
                # rclpy lets some errors of its own services out of spin(), a transition that does not fit the state among
                # them; whoever asks for one must not be able to end the robot's depth.
                node.get_logger().error(f"while serving a request:\n{traceback.format_exc()}")
        with until_shutdown():
            executor.shutdown()
            node.destroy_node()
    return 0


def main() -> int:
    return run()


if __name__ == "__main__":
    sys.exit(main())
