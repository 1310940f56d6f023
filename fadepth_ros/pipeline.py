"""Processes the frames of one camera: decode -> check -> infer -> publish. No ROS types besides bytes and stamps.

All steps run in the thread that delivers the image. With a worker thread behind a queue, a frame needed twice the processor
time (measured: 1.45 instead of 0.72 ms a frame, real topics, pass-through engine), because the threads exchange the
interpreter lock. The only queue is the middleware's, from which `camera_topics.py` takes the newest image.

A node with several cameras has a `Pipeline` for each. They share an `EnginePool`, and `offer_images` runs frames that arrived
together in one batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fadepth_core.common.framing import FramingError
from fadepth_core.common.rectification import RectifiedFraming
from fadepth_core.messages.camera_info import Camera
from fadepth_core.messages.camera_tracker import CameraTracker, unusual
from fadepth_core.messages.cdr import MessageError, Stamp
from fadepth_core.messages.encodings import BitDepth
from fadepth_core.messages.images import Frame, read_compressed
from fadepth_core.runtime.camera_messages import OutputWriters, rgb_for
from fadepth_core.runtime.engine import DepthEngine, DepthResult, EngineError, FrameRequest
from fadepth_core.runtime.rectifier import RectifiedCamera, Rectifier
from fadepth_core.runtime.temporal import TemporalFilter
from fadepth_ros.confidence_filter import ConfidenceFilter
from fadepth_ros.engine_pool import EngineLease, EnginePool, EngineUnavailableError, check_trained
from fadepth_ros.ground_correction import GroundCorrection
from fadepth_ros.messages import read_image
from fadepth_ros.parameters import Settings
from fadepth_ros.statistics import Statistics

DEPTH, INFO, POINTS, COLOR = "depth/image", "depth/camera_info", "depth/points", "depth/color"
CONFIDENCE = "depth/confidence"

#: A stamp at least this much older than the last one (ns) means that the clock was set back or a bag started again. A
#: smaller step back may also mean that a newer frame has arrived before this one; then only one frame is late.
CLOCK_RESET = 1_000_000_000


class Outputs(Protocol):
    """Where a pipeline publishes."""

    def subscribed(self) -> set[str]:
        """The outputs that have subscribers."""

    def publish(self, output: str, message: bytes) -> None: ...

    def closed(self) -> bool:
        """Whether the middleware has been shut down; publishing then fails."""

    def now(self) -> int:
        """The ROS clock, nanoseconds."""


@dataclass(slots=True)
class FrameJob:
    """A decoded frame with its inference request and publishing options.

    Attributes:
        arrival: monotonic clock, seconds.
        settings: the parameter values when it arrived.
        outputs: what to publish, in this order.
        camera: the intrinsics of the (rectified) frame; None if unknown or not needed.
        rectified: how the frame is rectified; None if it is not.
        request: for `engine`; None if no output needs depth.
        measure_ground: whether to measure the ground in the frame's depth.
    """

    frame: Frame
    arrival: float
    settings: Settings
    outputs: tuple[str, ...]
    camera: Camera | None
    rectified: RectifiedFraming | None
    engine: DepthEngine
    request: FrameRequest | None
    measure_ground: bool


@dataclass(frozen=True)
class SavedFrame:
    """What `~/save` saves of a frame.

    Attributes:
        picture: [H, W, 3] uint8 RGB at the camera's size, rectified if the depth is.
        depth: [h, w] float32, metres.
        cloud: serialized PointCloud2; None without a usable CameraInfo.
    """

    stamp: Stamp
    picture: np.ndarray
    depth: np.ndarray
    cloud: bytes | None


class Pipeline:
    """Turns serialized images of one camera into serialized depth.

    Args:
        settings: the present parameter values; replaced by `configure`.
        outputs: where to publish.
        logger: gets warnings, at most one of each cause in `WARN_PERIOD` seconds.
        image_topic, info_topic: resolved names, for warnings.
        engines: shared with the other cameras of the node.

    Attributes:
        statistics, engine, ground, rectifier, confidence: for /diagnostics.
    """

    def __init__(
        self,
        settings: Settings,
        outputs: Outputs,
        logger: logging.Logger,
        image_topic: str = "image",
        info_topic: str = "camera_info",
        engines: EnginePool | None = None,
    ):
        self.statistics = Statistics(logger)
        self.engine = EngineLease(engines or EnginePool(), logger)
        self.ground = GroundCorrection()
        self.confidence = ConfidenceFilter()
        self._settings, self._outputs = settings, outputs
        self._image_topic, self._info_topic = image_topic, info_topic
        self.rectifier = Rectifier(settings.rectify, image_topic, info_topic)
        self._compressed = settings.image_transport == "compressed"
        self._bit_depth = BitDepth()
        self._cameras = CameraTracker()
        self._unusual: tuple[str, ...] = ()  # what was logged of the camera
        self._writers = OutputWriters()
        self._last_stamp: int | None = None
        self._late_stamp: int | None = None  # of the last frame, if it was dropped because it was late
        self._cloud_due = 0.0
        self._saves: list[Future[SavedFrame]] = []
        self._temporal = TemporalFilter()

    # --------------------------------------------------------------------------------------------------------- one frame

    def offer_image(self, raw: bytes, superseded: int = 0) -> None:
        """Process a serialized image, which replaces `superseded` older ones.

        Never raises: if the image or the engine fails, the frame is dropped, counted and logged.
        """
        self.count(superseded)
        try:
            self.process(raw, time.monotonic())
        except Exception as error:
            self._drop_frame(error)

    def process(self, raw: bytes, arrival: float) -> None:
        """Process a serialized image that arrived at `arrival` (monotonic clock, seconds).

        Raises:
            MessageError: the message cannot be used.
            EngineError, FramingError: there is no engine for it.
        """
        job = self.prepare(raw, arrival)
        if job is not None:
            self.publish(job, infer(job))

    def prepare(self, raw: bytes, arrival: float) -> FrameJob | None:
        """Decode and check a serialized image; None if no output has subscribers. Raises as `process`."""
        subscribed = self._outputs.subscribed()
        if self._saves:
            subscribed = subscribed | {DEPTH, POINTS}
        if not subscribed:
            self.statistics.dropped("no_subscriber")
            return None
        frame = self._decode(raw)
        self._check_stamp(frame.stamp)
        if frame.damage:
            self.report_problem(f"{self._image_topic}: a compressed image is damaged: {frame.damage}", "damaged")
        engine = self._engine_for(frame)
        return self._plan(frame, engine, subscribed, arrival)

    def publish(self, job: FrameJob, result: DepthResult | None) -> None:
        """Publish the outputs of a job; `result` is None if it has no request."""
        if result is not None:
            self.engine.refresh_status(job.engine)
            if job.rectified is not None and job.rectified.outside is not None:
                result = result.unseen(job.rectified.outside)
            if job.measure_ground:
                self.ground.measure(result, job.arrival)
            assert job.request is not None  # see `infer`
            image, seconds = job.engine.framing.cropped(job.request.image), 1e-9 * job.frame.stamp.nanoseconds
            result = self._temporal.apply(result, image, seconds, job.request.scale)
            if job.request.limits != job.settings.limits:
                result = result.limited(job.settings.limits)
            result = self.confidence.apply(result, job.settings.min_confidence)
        cloud = None
        for output in job.outputs:
            message = self._message(output, job, result)
            self._outputs.publish(output, message)
            if output == POINTS:
                cloud = message
        if job.outputs:
            now = time.monotonic()
            age = 1e-9 * (self._outputs.now() - job.frame.stamp.nanoseconds)
            self.statistics.finished(job.outputs, now - job.arrival, age)
        if self._saves and result is not None:
            self._save(job, result.depth, cloud)

    # --------------------------------------------------------------------------------------------------- other input

    def validate(self, settings: Settings) -> None:
        """Find out whether other parameter values can be used. Changes nothing: the present engine goes on serving.

        Raises:
            EngineError: no engine can be built for them, or the checkpoint is another one and untrained; the message is the
                reason.
        """
        new, present = settings.engine, self._settings.engine
        if (new.checkpoint, new.file_state) != (present.checkpoint, present.file_state):
            check_trained(new.checkpoint)
        if new != present:
            self.engine.check(new)

    def configure(self, settings: Settings) -> None:
        """Use other parameter values from the next frame on, those of the engine once it is built. `validate` has accepted
        them."""
        if settings.engine != self._settings.engine:
            self.engine.change(settings.engine)
        if settings.points_period != self._settings.points_period:
            self._cloud_due = 0.0
        if settings.rectify != self._settings.rectify:
            self.rectifier = Rectifier(settings.rectify, self._image_topic, self._info_topic)
        self._settings = settings
        self.engine.retry()  # the change may have removed the cause of a failure

    def offer_camera_info(self, raw: bytes) -> None:
        """Use a serialized CameraInfo for the next frames."""
        self._cameras.update(raw)

    @property
    def saving(self) -> bool:
        """Whether the next frame is to be saved."""
        return bool(self._saves)

    def save_next(self) -> Future[SavedFrame]:
        """The next frame that has depth. Its depth and cloud are computed even if they have no subscribers."""
        self._saves.append(Future())
        return self._saves[-1]

    def cancel_save(self, frame: Future[SavedFrame]) -> None:
        """Withdraw a request of `save_next`; no effect if its frame has arrived."""
        if frame in self._saves:
            self._saves.remove(frame)

    def prepare_engine(self) -> bool:
        """Begin to build the engine for the size in camera_info, if there is none, without waiting for it: the first image
        then finds it. False as long as the size is not known."""
        if self.engine.key is None:
            if (size := self._cameras.size) is None:
                return False
            self.engine.prepare(self._settings.engine, size)
        return True

    def batches_with(self, other: Pipeline) -> bool:
        """Whether frames of both cameras can run in one batch: whether their last frames used one engine that batches."""
        return self.engine.batches_with(other.engine)

    def count(self, superseded: int) -> None:
        """Count a frame that arrived, and `superseded` older ones that it replaces."""
        self.statistics.received(1 + superseded)
        if superseded:
            self.statistics.dropped("superseded", superseded)

    # --------------------------------------------------------------------------------------------------------------- steps

    def _decode(self, raw: bytes) -> Frame:
        if self._compressed:
            return read_compressed(raw, self._bit_depth, self._cameras.max_pixels)
        return read_image(raw, self._bit_depth)

    def _check_stamp(self, stamp: Stamp) -> None:
        now, last = stamp.nanoseconds, self._last_stamp
        if last is not None and now < last:
            late, self._late_stamp = self._late_stamp, now
            if last - now < CLOCK_RESET and (late is None or now <= late):
                raise MessageError(
                    "stamp", f"stamp {1e-9 * (last - now):.3f} s before the last frame's; it was superseded"
                )
            text = (
                f"{self._image_topic}: stamps jumped back by {1e-9 * (last - now):.3g} s; continuing with the new time"
            )
            self.report_problem(text, "clock_reset")
        self._last_stamp, self._late_stamp = now, None

    def _engine_for(self, frame: Frame) -> DepthEngine:
        key = self.engine.key
        if key is not None and key[1] != frame.size:
            (h0, w0), (h, w) = key[1], frame.size
            self.statistics.warning(f"{self._image_topic}: frames changed from {w0}x{h0} to {w}x{h}", "resize")
        rejection = self.engine.rejection
        engine = self.engine.acquire(self._settings.engine, frame.size, self._outputs.closed)
        status = self.engine.status
        if self.engine.rejection and not rejection:
            text = f"the changed settings are not used: {self.engine.rejection}; {status.checkpoint} goes on serving"
            self.statistics.warning(f"{self._image_topic}: {text}", "settings")
        elif key is not None and self.engine.key is not None and self.engine.key[0] != key[0]:
            text = f"depth comes from {status.checkpoint} on {status.description} from now on"
            self.statistics.note(f"{self._image_topic}: {text}", "settings")
        return engine

    def _plan(self, frame: Frame, engine: DepthEngine, subscribed: set[str], arrival: float) -> FrameJob:
        """Decide what to compute from a frame and what to publish."""
        settings = self._settings
        needs_camera = engine.follows_camera or settings.camera_height > 0
        camera = self._match_camera(frame, needs_camera) if needs_camera or subscribed & {POINTS, INFO} else None
        # Without a usable CameraInfo there is no cloud, but depth keeps the scale of the last usable one.
        rectify = settings.rectify != "off"
        scale_camera = camera
        if camera is None and (needs_camera or rectify):
            scale_camera = self._cameras.match(frame)[0] or self._cameras.last_match(frame)
        rectified = None
        if scale_camera is not None and rectify:
            prepared = self._rectified(scale_camera, engine)
            camera = None if camera is None else prepared.camera
            scale_camera, rectified = prepared.camera, prepared.framing

        self.ground.configure(settings.camera_height, settings.depth_scale, self.engine.key)
        measure_ground = scale_camera is not None and self.ground.is_due(arrival)
        self._temporal.configure(settings.temporal, self.engine.key)

        outputs = [output for output in (DEPTH, COLOR) if output in subscribed]
        confidence = self._needs_confidence(engine, subscribed)
        if confidence and CONFIDENCE in subscribed:
            outputs.append(CONFIDENCE)
        points = POINTS in subscribed and camera is not None and (self._cloud_is_due(arrival) or self.saving)
        if points:
            outputs.append(POINTS)
        request = None
        if outputs:
            request = FrameRequest(
                rgb_for(engine, frame, rectified),
                None if scale_camera is None else scale_camera.matrix,
                points,
                scale=settings.depth_scale * self.ground.factor,
                # Limits could remove the ground, in which the scale is measured, and what the temporal filter compares. They are
                # then applied later, in `publish`.
                limits=(0.0, np.inf) if measure_ground or settings.temporal != "off" else settings.limits,
                confidence=confidence,
            )
        if INFO in subscribed and camera is not None:
            outputs.append(INFO)
        return FrameJob(frame, arrival, settings, tuple(outputs), camera, rectified, engine, request, measure_ground)

    def _needs_confidence(self, engine: DepthEngine, subscribed: set[str]) -> bool:
        """Whether to compute confidence. If the checkpoint has none, that is logged; with `min_confidence` it is a problem."""
        filters = self._settings.min_confidence > 0
        if not filters and CONFIDENCE not in subscribed:
            return False
        if not engine.has_confidence:
            reason = "the checkpoint has no confidence head"
            if filters:
                self.report_problem(f"{reason}; min_confidence has no effect", "confidence")
            else:  # often a recorder of all topics
                self.statistics.note(f"{reason}; {CONFIDENCE} is not published", "confidence")
        return engine.has_confidence

    def _rectified(self, camera: Camera, engine: DepthEngine) -> RectifiedCamera:
        """The camera as the engine sees it. Logs what is new: it may be wrong for a driver that rectifies its images."""
        before = self.rectifier.status
        prepared = self.rectifier.prepare(camera, engine.framing)
        if prepared.problem is not None:
            self.report_problem(f"{prepared.problem}; straight lines are bent in the cloud", "rectification")
        elif prepared.framing is not None and prepared.status != before:
            text = (
                f"{self._image_topic}: images are rectified ({prepared.status}); set rectify to off if they already are"
            )
            self.statistics.note(text, "rectification")
        return prepared

    def _match_camera(self, frame: Frame, scales_depth: bool) -> Camera | None:
        """The camera of this frame; None, with a warning, if there is none.

        Args:
            scales_depth: whether the scale of depth depends on the camera.
        """
        camera, problem = self._cameras.match(frame)
        if camera is not None:
            notes = unusual(camera, frame)
            if notes and notes != self._unusual:
                self.statistics.note(f"{self._info_topic}: {'; '.join(notes)}", "camera_info")
            self._unusual = notes
            return camera
        assert problem is not None  # see `CameraTracker.match`
        metres = "; depth is not in metres of this camera" if scales_depth else ""
        text = f"{self._info_topic}: {problem}; depth/points and depth/camera_info are withheld{metres}"
        self.report_problem(text, problem.cause)
        return None

    def _cloud_is_due(self, arrival: float) -> bool:
        if arrival < self._cloud_due:
            return False
        # Counted from the time the cloud was due, not from the frame's arrival: 10 Hz of a 25 Hz camera would become 8 Hz.
        self._cloud_due = max(self._cloud_due + self._settings.points_period, arrival)
        return True

    def _save(self, job: FrameJob, depth: np.ndarray, cloud: bytes | None) -> None:
        """Hand the frame over to those who wait for it."""
        picture = job.frame.encoding.to_rgb(job.frame.pixels)
        if job.rectified is not None:
            picture = job.rectified.to_camera(picture)
        # Copies: the engine may use the memory of its results again.
        saved = SavedFrame(job.frame.stamp, picture.copy(), depth.copy(), cloud)
        while self._saves:
            self._saves.pop().set_result(saved)

    def _message(self, output: str, job: FrameJob, result: DepthResult | None) -> bytes:
        settings, frame = job.settings, job.frame
        if output == INFO:
            assert job.camera is not None  # see `_plan`
            return self._writers.camera_info(frame, job.camera, job.engine.framing)
        assert job.request is not None  # see `_plan`
        assert result is not None
        if output == DEPTH:
            return self._writers.depth(frame, result.depth, settings.depth_encoding)
        if output == CONFIDENCE:
            assert result.confidence is not None  # see `_plan`
            return self._writers.confidence(frame, result.confidence)
        if output == COLOR:
            return self._writers.color(frame, result.depth, settings.color_range)
        assert result.points is not None
        return self._writers.points(
            frame,
            result.points,
            job.request.image,
            job.engine.framing,
            settings.cloud,
            job.rectified,
        )

    # ------------------------------------------------------------------------------------------------------------ problems

    def report_problem(self, text: str, cause: str, error: Exception | None = None) -> None:
        """Count and log a problem with a frame whose depth is published nevertheless."""
        self.statistics.problem(cause)
        self.statistics.warning(text, cause, error)

    def _drop_frame(self, error: Exception) -> None:
        """Count and log a dropped frame."""
        if isinstance(error, (MessageError, FramingError)):
            cause = error.cause if isinstance(error, MessageError) else "size"
            self.statistics.dropped(cause)
            self.statistics.warning(f"{self._image_topic}: {error}; frame dropped", cause)
        elif isinstance(error, EngineUnavailableError) and error.cause == "resize":
            self.statistics.dropped("resize")
            self.statistics.warning(f"{self._image_topic}: {error}", "resize_dropped")
        elif isinstance(error, EngineError):
            if not isinstance(error, EngineUnavailableError):
                self.engine.fail(error)
            self.statistics.dropped("engine")
            retry = f"next attempt in {self.engine.retry_period:.0f} s or less"
            self.statistics.warning(f"{self._image_topic}: no depth: {error}; {retry}", "engine")
        elif not self._outputs.closed():
            # No error may end the node; the traceback is logged.
            self.statistics.dropped("internal")
            text = f"internal error on a frame from {self._image_topic}: {error}"
            self.statistics.warning(text, "internal", error)


def infer(job: FrameJob) -> DepthResult | None:
    """Depth of a frame; None if no output needs it. Raises EngineError."""
    return None if job.request is None else job.engine.infer(job.request)


def offer_images(images: Sequence[tuple[Pipeline, bytes, int]]) -> None:
    """Process serialized images of several cameras that arrived together, each with the number of older ones it replaces.

    Frames of one engine run in one batch if it batches; otherwise each is published before the next one is inferred. Never
    raises, see `Pipeline.offer_image`; an error of one camera does not affect the others.
    """
    arrival = time.monotonic()
    batches: dict[DepthEngine, list[tuple[Pipeline, FrameJob]]] = {}
    for pipeline, raw, superseded in images:
        pipeline.count(superseded)
        try:
            job = pipeline.prepare(raw, arrival)
        except Exception as error:
            pipeline._drop_frame(error)
            continue
        if job is None:
            continue
        if job.request is not None and job.engine.batches:
            batches.setdefault(job.engine, []).append((pipeline, job))
        else:
            _process_alone(pipeline, job)
    for engine, batch in batches.items():
        if len(batch) > 1:
            _process_batch(engine, batch)
        else:
            _process_alone(*batch[0])


def _process_alone(pipeline: Pipeline, job: FrameJob) -> None:
    """Infer and publish one frame; if that fails, drop it."""
    try:
        pipeline.publish(job, infer(job))
    except Exception as error:
        pipeline._drop_frame(error)


def _process_batch(engine: DepthEngine, batch: list[tuple[Pipeline, FrameJob]]) -> None:
    """Infer frames of several cameras, all of one engine, in one batch and publish them; drop those that fail."""
    try:
        results = engine.infer_batch([job.request for _, job in batch if job.request is not None])  # all have one
    except EngineError as error:
        for pipeline, _ in batch:
            pipeline._drop_frame(error)
        return
    except Exception as error:
        # The cause may be the frame of one camera only.
        for pipeline, job in batch:
            pipeline.report_problem(f"a batch failed, its frames are run one by one: {error}", "batch", error)
            _process_alone(pipeline, job)
        return
    for (pipeline, job), result in zip(batch, results, strict=True):
        try:
            pipeline.publish(job, result)
        except Exception as error:
            pipeline._drop_frame(error)
