"""The lifecycle node: connects topics, parameters and /diagnostics with a pipeline for each camera.

Subscribes to `image` (or `image/compressed`) and `camera_info`, publishes `depth/image`, `depth/camera_info`,
`depth/points`, `depth/color`, `depth/confidence` and `/diagnostics`. All names are relative: remap them, or give the node
a namespace. The parameter `cameras` lists namespaces, each with these topics.
"""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType, ROSClock
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.timer import Timer

from fadepth_core.common.framing import FramingError
from fadepth_core.common.memory import keep_freed_memory
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.engine import DepthEngine, EngineError
from fadepth_ros.camera_topics import CameraTopics, camera_topic
from fadepth_ros.diagnostics import camera_status
from fadepth_ros.engine_pool import EnginePool, SharedEngine, check_engine, load_engine
from fadepth_ros.heartbeat import BondMissingError, Heartbeat
from fadepth_ros.image_waiter import ImageWaiter
from fadepth_ros.parameters import Parameters, Settings, warn_of_unknown_parameters, warn_of_unused_qos_overrides
from fadepth_ros.pipeline import Pipeline, offer_images
from fadepth_ros.process import one_line, program, serve
from fadepth_ros.saving import SaveService

#: After an image the node waits for nothing but images for this time, seconds. Requests and timers may have to wait twice as
#: long: when both are ready, the executor delivers the next image first.
IMAGES_ONLY = 0.1
#: The same while another camera is idle: a subscriber of its outputs is noticed by the executor, and is to wait for less than
#: 0.1 s.
IMAGES_ONLY_BESIDE_IDLE = 0.04
#: Why the node cannot be configured or activated.
_UNUSABLE = (CheckpointError, EngineError, FramingError, BondMissingError)
#: Seconds between two counts of subscribers if the middleware does not report them.
POLL_PERIOD = 0.05


def _log_exceptions(transition: Callable) -> Callable:
    """Log what a transition callback raises: rclpy returns ERROR without a message."""

    @functools.wraps(transition)
    def logged(self: DepthNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception:
            if self.context.ok():  # else a signal has shut it down meanwhile
                self.get_logger().error(f"{transition.__name__} failed:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR

    return logged


class DepthNode(LifecycleNode):
    """Publishes depth of camera images.

    Args:
        engine_loader: see `EnginePool`.
        options: for `rclpy.node.Node`.
    """

    def __init__(self, engine_loader: Callable[..., DepthEngine] = load_engine, **options: Any):
        super().__init__("depth", **options)
        self._engine_loader = engine_loader
        self._engines = EnginePool(engine_loader)
        self._held_engines: list[SharedEngine] = []  # for cameras that have none yet
        self._heartbeat: Heartbeat | None = None  # while configured, if it is wanted
        self._last_action = 0.0  # of the executor, monotonic clock
        self._cameras: list[CameraTopics] = []
        self._advertised: Settings | None = None  # what the publishers were created with
        self._active = False
        self._listening: list[CameraTopics] = []  # the active cameras that are subscribed to
        self._images: ImageWaiter | None = None  # waits for their images
        self._polling: Timer | None = None  # while active, if the middleware does not report subscribers
        self._logging = _ros_logger(self)
        self._declared = Parameters(self, lambda: self._active, self._refusal, self._on_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock: diagnostics are needed most while a simulated clock stands still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(1.0, self._every_second, clock=self._steady)
        self._saving = SaveService(
            self,
            lambda: self._cameras if self._active else [],
            self._refresh_inputs,
            lambda: self._declared.settings.save_folder,
        )
        _answer_all_requests(self)
        warn_of_unknown_parameters(self)

    def autostart(self) -> None:
        """Configure and activate, unless the parameter `autostart` is false. A failure is logged."""
        if not self._declared.autostart:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # ------------------------------------------------------------------------------------------------------ transitions

    @_log_exceptions
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Create the publishers, and load the engine if `camera_size` is given. FAILURE if the checkpoint cannot be used, no
        engine can be built, or a heartbeat is wanted and cannot be sent."""
        settings = self._declared.settings
        try:
            description = Checkpoint(settings.engine.checkpoint or None).description
            self._prepare(settings)
        except _UNUSABLE as error:
            return self._failure(f"cannot configure: {error}")
        if not description.trained:
            self.get_logger().warning(
                "THE CHECKPOINT IS UNTRAINED: the published depth is meaningless. "
                "Set the parameter 'checkpoint' to a trained one."
            )
        if licence := description.licence:
            self.get_logger().info(f"licence of the network's weights: {licence}")
        self._make_topics(settings)
        return TransitionCallbackReturn.SUCCESS

    @_log_exceptions
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras. Engines that are not loaded are built when the size of the images is known. FAILURE as in
        `on_configure`."""
        settings = self._declared.settings
        try:
            self._prepare(settings)  # settings and files may have changed since on_configure
        except _UNUSABLE as error:
            return self._failure(f"cannot activate: {error}")
        made = self._advertised
        if made is None or (made.cameras, made.qos) != (settings.cameras, settings.qos):  # changed since on_configure
            self._make_topics(settings)
        for camera in self._cameras:
            camera.start(settings, self._engines, self._logging, self._on_image)
        self._wait_for_images()
        if not all(camera.reports_subscribers for camera in self._cameras):
            self._polling = self.create_timer(POLL_PERIOD, self._refresh_inputs, clock=self._steady)
        warn_of_unused_qos_overrides(self)
        self._last_action = time.monotonic()
        if self._heartbeat is not None:
            self._heartbeat.start()
        self._active = True
        return super().on_activate(state)

    @_log_exceptions
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe. The engines stay loaded."""
        self._held_engines += [shared for camera in self._cameras if (shared := camera.active_pipeline.engine.shared)]
        self._stop()
        return super().on_deactivate(state)

    @_log_exceptions
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Remove the publishers and release the engines."""
        self._stop()
        self._make_topics(None)
        self._make_heartbeat(0.0)
        self._held_engines, self._engines = [], EnginePool(self._engine_loader)
        return TransitionCallbackReturn.SUCCESS

    @_log_exceptions
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    @_log_exceptions
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    def destroy_node(self) -> None:
        self._stop()
        super().destroy_node()

    def _failure(self, reason: str) -> TransitionCallbackReturn:
        self.get_logger().error(reason)
        return TransitionCallbackReturn.FAILURE

    def _prepare(self, settings: Settings) -> None:
        """Load the engine if the size of the images is known; if not, find out whether one can be built.

        Raises:
            EngineError, FramingError: there is no engine for these settings; the message is the reason.
            BondMissingError: see `Heartbeat`.
        """
        self._make_heartbeat(settings.bond_heartbeat_period)
        size = settings.camera_size
        for held in self._held_engines:
            if held.engine is not None and held.key[0] == settings.engine and size in (None, held.key[1]):
                return
        self._held_engines = []
        self._engines.retry()
        if size is None:
            check_engine(settings.engine, self._logging)
        else:
            self._held_engines = [self._engines.share((settings.engine, size), self._logging, self._is_shut_down)]

    def _make_heartbeat(self, period: float) -> None:
        """Replace the heartbeat by one with this period, seconds; 0 for none. Raises BondMissingError."""
        if self._heartbeat is not None:
            if self._heartbeat.period == period:
                return
            self._heartbeat.destroy()
            self._heartbeat = None
        if period:
            self._heartbeat = Heartbeat(self, period, lambda: self._last_action)

    def _is_shut_down(self) -> bool:
        return not self.context.ok()

    def _make_topics(self, settings: Settings | None) -> None:
        """Replace the publishers by those of `settings`; None for none."""
        while self._cameras:
            self._cameras.pop().destroy()
        self._advertised = settings
        if settings is None:
            return
        for name in settings.cameras:
            camera = CameraTopics(self, name)
            self._cameras.append(camera)  # before `advertise`, so that its publishers are destroyed if that fails
            camera.advertise(settings, self._refresh_inputs)

    def _stop(self) -> None:
        self._active = False
        self._listening, self._images = [], None
        if self._polling is not None:
            self.destroy_timer(self._polling)
            self._polling = None
        if self._heartbeat is not None:
            self._heartbeat.stop()
        for camera in self._cameras:
            camera.stop()

    # ----------------------------------------------------------------------------------- images, parameters, diagnostics

    def _on_image(self, camera: CameraTopics, raw: bytes) -> None:
        """Process an image from the executor, and images that arrive within `IMAGES_ONLY` seconds: waiting for them in
        `ImageWaiter` takes much less processor time than in the executor."""
        end = time.monotonic() + (
            IMAGES_ONLY if len(self._listening) == len(self._cameras) else IMAGES_ONLY_BESIDE_IDLE
        )
        self._process_newest(camera, raw)
        # The executor must take every message of /clock, or a simulated clock would be late.
        clock = self.get_clock()
        if self._images is None or (isinstance(clock, ROSClock) and clock.ros_time_is_active):
            return
        while (left := end - time.monotonic()) > 0 and self.context.ok():
            for index in self._images.wait(left):
                self._process_newest(self._listening[index])

    def _process_newest(self, camera: CameraTopics, raw: bytes | None = None) -> None:
        """Process only the newest frame of `camera`: `raw`, or one in its queue. Waiting frames of other cameras run in one
        batch with it if their engine can do that; otherwise they stay in the queue, where newer ones may replace them."""
        newest = camera.take_newest(raw)
        if newest is None:  # it was in the batch of another camera
            return
        images = [(camera.active_pipeline, *newest)]
        for other in self._listening:
            if other is not camera and camera.active_pipeline.batches_with(other.active_pipeline):
                newest = other.take_newest()
                if newest is not None:
                    images.append((other.active_pipeline, *newest))
        if len(images) > 1:
            offer_images(images)
        else:
            pipeline, raw, superseded = images[0]
            pipeline.offer_image(raw, superseded)

    def _refusal(self, settings: Settings) -> str | None:
        """Why the cameras cannot use other settings; None if they can. Also called in a thread, so a camera may be deactivated
        meanwhile."""
        try:
            for camera in tuple(self._cameras):
                if (pipeline := camera.pipeline) is not None:
                    pipeline.validate(settings)
        except EngineError as error:
            return str(error)
        return None

    def _on_parameters(self, settings: Settings) -> None:
        if self._active:
            for camera in self._cameras:
                camera.active_pipeline.configure(settings)
            self._refresh_inputs()

    def _refresh_inputs(self) -> None:
        """Subscribe to cameras whose outputs have subscribers, and unsubscribe from the others."""
        if self._active:
            lazy = self._declared.settings.lazy
            if any([camera.refresh(lazy) for camera in self._cameras]):
                self._wait_for_images()

    def _wait_for_images(self) -> None:
        self._listening = [camera for camera in self._cameras if camera.image is not None]
        images = [camera.image for camera in self._listening if camera.image is not None]
        self._images = ImageWaiter(self.context, images) if images else None

    def _every_second(self) -> None:
        self._last_action = time.monotonic()
        if self._active and all(camera.active_pipeline.engine.key for camera in self._cameras):
            self._held_engines = []
        self._refresh_inputs()
        self._publish_diagnostics()

    def _publish_diagnostics(self) -> None:
        node = self.get_fully_qualified_name()
        cameras: dict[str, tuple[Pipeline | None, bool]] = {
            name: (None, False) for name in self._declared.settings.cameras
        }
        cameras |= {camera.name: (camera.pipeline, camera.idle) for camera in self._cameras if self._active}
        message = DiagnosticArray(
            status=[camera_status(f"{node}: {camera_topic(name, 'depth')}", *state) for name, state in cameras.items()]
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def _ros_logger(node: LifecycleNode) -> logging.Logger:
    """A Python logger that writes to the node's ROS logger, for code without ROS."""
    logger = logging.Logger(node.get_fully_qualified_name(), logging.INFO)

    class ToRos(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.exc_info and record.exc_info[0]:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
            ros = node.get_logger()
            # One call for each level: rclpy raises an error if the same line of code logs at different levels.
            if record.levelno >= logging.ERROR:
                ros.error(text)
            elif record.levelno >= logging.WARNING:
                ros.warning(text)
            else:
                ros.info(text)

    logger.addHandler(ToRos())
    return logger


def _answer_all_requests(node: LifecycleNode) -> None:
    """Answer service requests that raise an error, with the response's defaults. rclpy would send no answer, and the caller
    would wait for ever: for example for a lifecycle transition that is not allowed in the present state."""

    def answering(service: Any, callback: Callable) -> Callable:
        async def answer(request: Any, response: Any) -> Any:
            try:
                answered = callback(request, response)
                return await answered if inspect.isawaitable(answered) else answered
            except Exception as error:
                node.get_logger().error(f"{service.srv_name}: {one_line(error)}")
                return response

        return answer

    for service in node.services:
        service.callback = answering(service, service.callback)


def run(engine_loader: Callable = load_engine, args: list[str] | None = None) -> None:
    """Start the node and serve until SIGINT or SIGTERM. Raises SystemExit if the arguments or parameters cannot be used."""
    keep_freed_memory(bounded=True)
    with program("depth_node", args) as shutdown:
        node = DepthNode(engine_loader)
        node.autostart()
        # The executor creates short-lived objects in every iteration. With the default thresholds, the garbage collector then
        # scans the objects of all imported modules very often: it took a fifth of the node's time at hundreds of frames/s.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        executor = SingleThreadedExecutor()
        serve(executor, node, shutdown)
        executor.shutdown()
        node.destroy_node()


def main() -> None:
    run()


if __name__ == "__main__":
    main()
