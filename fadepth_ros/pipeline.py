"""The way of a frame: newest image -> engine -> outputs. No ROS types besides bytes and stamps.

Everything happens in the thread that delivers the image. A worker thread behind a mailbox cost twice the processor time
(0.72 against 1.45 ms a frame through real topics, pass-through engine): handing over the interpreter lock is dearer than
everything else a frame needs. The mailbox is the middleware's own short queue, of which `node.py` takes the newest.

A node may have several cameras, a `Pipeline` each. They share their `Engines`, and frames that have come together are
answered together (`offer_images`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np

from fadepth_core.common.framing import FramingError
from fadepth_core.runtime.checkpoint import CheckpointError
from fadepth_core.runtime.engine import DepthEngine, DepthResult, EngineError, FrameRequest
from fadepth_core.runtime.ground import GroundScale
from fadepth_core.runtime.pictures import depth_to_color, depth_to_millimetres
from fadepth_ros import messages
from fadepth_ros.messages import Camera, CameraInfoWriter, CloudWriter, Frame, ImageWriter, MessageError, Stamp
from fadepth_ros.parameters import EngineSettings, Settings
from fadepth_ros.statistics import Statistics

DEPTH, INFO, POINTS, COLOR = "depth/image", "depth/camera_info", "depth/points", "depth/color"
OUTPUTS = (DEPTH, INFO, POINTS, COLOR)

#: Seconds between two warnings of one kind, and between two attempts to start an engine that will not.
WARN_PERIOD, RETRY_PERIOD = 5.0, 5.0
#: Seconds between two looks at the ground.
GROUND_PERIOD = 0.1
#: A stamp this much older than the last one (ns) is a clock that was set back or a bag that began anew; less is a frame
#: that was superseded on its way.
CLOCK_RESET = 1_000_000_000


class Outputs(Protocol):
    """Where results go."""

    def wanted(self) -> set[str]:
        """The outputs somebody subscribes to."""

    def publish(self, output: str, message: bytes) -> None: ...

    def closed(self) -> bool:
        """Whether the middleware has been shut down; publishing then fails."""

    def now(self) -> int:
        """The ROS clock, nanoseconds."""


def load_engine(settings: EngineSettings, camera_size: tuple[int, int], logger: logging.Logger) -> DepthEngine:
    """The engine that `settings` describe, for frames of `camera_size` (height, width)."""
    return DepthEngine.load(
        settings.checkpoint or None,
        settings.network_size,
        camera_size,
        settings.backend,
        settings.precision,
        crop_to_aspect=settings.crop_to_aspect,
        full_resolution=settings.full_resolution,
        threads=settings.threads,
        logger=logger,
        batch=settings.batch,
        background=True,
    )


@dataclass(eq=False)
class SharedEngine:
    """An engine in the hands of the cameras that use it.

    Attributes:
        key: its settings and camera size.
        engine: None once it has failed.
    """

    key: tuple[EngineSettings, tuple[int, int]]
    engine: DepthEngine | None


class Engines:
    """The engines of a node's cameras: one for all whose settings and size are the same, gone with the last of them.

    Args:
        load: makes an engine, see `load_engine`.
    """

    def __init__(self, load: Callable[..., DepthEngine] = load_engine):
        self._load = load
        self._shared: WeakValueDictionary[tuple, SharedEngine] = WeakValueDictionary()
        self._failed: dict[tuple, tuple[float, str]] = {}  # when to try again, and why not now

    def share(self, settings: EngineSettings, camera_size: tuple[int, int], logger: logging.Logger) -> SharedEngine:
        """The engine for frames of `camera_size` (height, width), made where no camera has it yet.

        Raises:
            EngineError, CheckpointError: it cannot be made, or could not `RETRY_PERIOD` ago.
            FramingError: see `load_engine`.
        """
        key = (settings, camera_size)
        shared = self._shared.get(key)
        if shared is None:
            retry, reason = self._failed.get(key, (0.0, ""))
            if time.monotonic() < retry:
                raise EngineError(reason)
            try:
                shared = SharedEngine(key, self._load(settings, camera_size, logger))
            except (EngineError, CheckpointError) as error:
                self._note_failure(key, error)
                raise
            self._shared[key] = shared
        return shared

    def give_up(self, shared: SharedEngine, error: Exception) -> None:
        """It has failed while running: no camera is to use it any more."""
        if shared.engine is not None:
            shared.engine = None
            del self._shared[shared.key]
            self._note_failure(shared.key, error)

    def retry(self) -> None:
        """Try again at once what has failed."""
        self._failed.clear()

    def _note_failure(self, key: tuple, error: Exception) -> None:
        now = time.monotonic()
        self._failed = {known: failure for known, failure in self._failed.items() if failure[0] > now}
        self._failed[key] = (now + RETRY_PERIOD, str(error))


@dataclass(slots=True)
class Prepared:
    """A frame between what is asked of the engine and what goes out.

    Attributes:
        camera: what is published with it; None where that is not known or not wanted.
        ground: follows the scale; None without `camera_height`.
        image: RGB for the engine; None when nobody wants what it computes. Then come the other arguments of its `infer`.
        look: whether the ground is to be measured on it.
    """

    arrival: float
    settings: Settings
    wanted: set[str]
    frame: Frame
    engine: DepthEngine
    camera: Camera | None
    ground: GroundScale | None
    image: np.ndarray | None
    intrinsics: np.ndarray | None
    points: bool
    scale: float
    limits: tuple[float, float]
    look: bool


class Pipeline:
    """Turns serialized images of one camera into serialized depth.

    Args:
        settings: the current parameter values; replaced by `configure`.
        outputs: where results go.
        logger: gets warnings, at most one of a kind every `WARN_PERIOD` seconds.
        image_topic, info_topic: resolved names, for warnings.
        engines: shared with the other cameras of the node.
    """

    def __init__(
        self,
        settings: Settings,
        outputs: Outputs,
        logger: logging.Logger,
        image_topic: str = "image",
        info_topic: str = "camera_info",
        engines: Engines | None = None,
    ):
        self.statistics = Statistics()
        self.engine_description = "no engine yet"
        self.engine_failures: list[str] = []
        self.degraded = False
        self.checkpoint_description = ""
        self._settings = settings
        self._outputs, self._log, self._engines = outputs, logger, engines or Engines()
        self._image_topic, self._info_topic = image_topic, info_topic
        self._read = messages.read_compressed if settings.image_transport == "compressed" else messages.read_image
        self._warned: dict[str, float] = {}

        self._camera: Camera | None = None
        self._camera_problem: MessageError | None = MessageError("no_camera_info", "no camera_info has arrived")
        self._camera_raw = b""
        self._camera_warned = ""
        self._metric_camera: Camera | None = None  # the last that could be used

        self._shared: SharedEngine | None = None
        self._last_stamp: int | None = None
        self._cloud_due = 0.0
        self.ground: GroundScale | None = None
        self._ground_key: tuple | None = None
        self._ground_due = 0.0
        self._writers: dict[str, tuple[tuple, object]] = {}

    def configure(self, settings: Settings) -> None:
        """Use other parameter values from the next frame on."""
        if settings.engine != self._settings.engine:
            self._shared = None  # now, not with the next frame: another camera may be about to make the new one
        self._settings = settings
        self._engines.retry()  # the change may be what an engine was waiting for

    def batches_with(self, other: Pipeline) -> bool:
        """Whether frames of both cameras go into one batch, as far as the last ones tell."""
        shared = self._shared
        return shared is not None and shared is other._shared and shared.engine is not None and shared.engine.batches

    def offer_image(self, raw: bytes, superseded: int = 0) -> None:
        """A serialized image has arrived, and `superseded` older ones with it that it replaces.

        Never raises for what a camera or an engine does: the frame is lost, counted and warned of.
        """
        self.count(superseded)
        self.attempt(self.process, raw, time.monotonic())

    def count(self, superseded: int) -> None:
        """A frame has arrived, and `superseded` older ones."""
        self.statistics.received(1 + superseded)
        if superseded:
            self.statistics.dropped("superseded", superseded)

    def attempt(self, step: Callable, *arguments):
        """What `step` of this pipeline returns; when it raises, None, and the frame is lost, counted and warned of."""
        try:
            return step(*arguments)
        except Exception as error:
            self.lose(error)
            return None

    def lose(self, error: Exception) -> None:
        """A frame has come to nothing; called while `error` is handled."""
        if isinstance(error, (MessageError, FramingError)):
            cause = error.cause if isinstance(error, MessageError) else "size"
            self.statistics.dropped(cause)
            self._warn(f"{self._image_topic}: {error}; frame dropped", cause)
        elif isinstance(error, (EngineError, CheckpointError)):
            if self._shared is not None:
                self._engines.give_up(self._shared, error)
                self._shared = None
            self.engine_description = "no engine"
            self.statistics.dropped("engine")
            self._warn(
                f"{self._image_topic}: no depth: {error}; next attempt in {RETRY_PERIOD:.0f} s or less", "engine"
            )
        elif not self._outputs.closed():
            # A robot keeps its depth node, whatever this is; the traceback is logged.
            self.statistics.dropped("internal")
            self._warn(f"internal error on a frame from {self._image_topic}: {error}", "internal", exc_info=True)

    def offer_camera_info(self, raw: bytes) -> None:
        """A serialized CameraInfo has arrived. One that differs from the last in its stamp only is not read again."""
        if self._camera_raw[12:] == raw[12:] and self._camera_raw:
            return
        self._camera_raw = raw
        try:
            self._camera, self._camera_problem = messages.read_camera_info(raw), None
        except MessageError as error:
            self._camera, self._camera_problem = None, error

    def process(self, raw: bytes, arrival: float) -> None:
        """Bring one serialized image all the way to the outputs.

        Raises:
            MessageError: the message cannot be used.
            EngineError, CheckpointError, FramingError: no engine can be had.
        """
        job = self.prepare(raw, arrival)
        if job is not None:
            self.answer(job)

    def prepare(self, raw: bytes, arrival: float) -> Prepared | None:
        """Read a serialized image and decide what to do with it; None when nobody listens. Raises as `process` does."""
        wanted = self._outputs.wanted()
        if not wanted:
            self.statistics.dropped("no_subscriber")
            return None
        settings = self._settings
        frame = self._read(raw)
        self._check_stamp(frame.stamp)
        engine = self._engine_for(settings.engine, frame.size)
        follows_camera = engine.follows_camera or settings.camera_height > 0
        camera = self._camera_for(frame, follows_camera) if follows_camera or wanted & {POINTS, INFO} else None
        ground = self._ground_for(settings)
        if camera is not None:
            self._metric_camera = camera
        # One CameraInfo that cannot be used withholds the cloud, but must not make depth jump.
        metric = self._metric_camera if follows_camera and self._metric_camera_fits(frame) else camera

        cloud = POINTS in wanted and camera is not None and self._cloud_is_due(settings, arrival)
        look = ground is not None and metric is not None and arrival >= self._ground_due
        return Prepared(
            arrival,
            settings,
            wanted,
            frame,
            engine,
            camera,
            ground,
            image=_rgb_for(engine, frame) if cloud or wanted & {DEPTH, COLOR} else None,
            intrinsics=None if metric is None else metric.matrix,
            points=cloud,
            scale=settings.depth_scale * (1.0 if ground is None else ground.factor),
            # Where the scale is not right yet, the limits may hide the ground.
            limits=(0.0, np.inf) if look else settings.limits,
            look=look,
        )

    def answer(self, job: Prepared) -> None:
        """Run a frame by itself and publish what comes out. Raises EngineError."""
        result = None
        if job.image is not None:
            result = job.engine.infer(job.image, job.intrinsics, points=job.points, scale=job.scale, limits=job.limits)
        self.finish(job, result)

    def finish(self, job: Prepared, result: DepthResult | None) -> None:
        """Publish what the engine answered; `result` is None when it was not asked."""
        settings, wanted, frame, engine, camera = job.settings, job.wanted, job.frame, job.engine, job.camera
        published = []

        def publish(output: str, message: bytes) -> None:
            self._outputs.publish(output, message)
            published.append(output)

        if result is not None:
            if job.look:
                self._ground_due = job.arrival + GROUND_PERIOD
                job.ground.update(result.depth / np.float32(job.ground.factor), result.intrinsics)
                result = result.limited(settings.limits)
            if engine.description != self.engine_description:  # it has fallen back
                self._note_engine(engine)
            if DEPTH in wanted:
                publish(DEPTH, self._depth_message(settings, frame, result))
            if COLOR in wanted:
                size = result.depth.shape
                writer = self._writer(COLOR, (frame.frame_id, size), lambda: ImageWriter(frame.frame_id, size, "rgb8"))
                publish(COLOR, writer.write(frame.stamp, depth_to_color(result.depth, *settings.color_range)))
            if job.points:
                publish(POINTS, self._cloud_message(settings, frame, engine, job.image, result))
        if INFO in wanted and camera is not None:
            framing = engine.framing
            writer = self._writer(
                INFO,
                (frame.frame_id, camera, framing),
                lambda: CameraInfoWriter(frame.frame_id, framing.output_size, camera, framing.output_intrinsics),
            )
            publish(INFO, writer.write(frame.stamp))
        if published:
            self.statistics.finished(
                published, time.monotonic() - job.arrival, 1e-9 * (self._outputs.now() - frame.stamp.nanoseconds)
            )

    def _check_stamp(self, stamp: Stamp) -> None:
        now, last = stamp.nanoseconds, self._last_stamp
        if last is not None and now < last:
            if last - now < CLOCK_RESET:
                raise MessageError(
                    "stamp", f"stamp {1e-9 * (last - now):.3f} s before the last frame's; it was superseded"
                )
            self.note_problem(
                f"{self._image_topic}: stamps jumped back by {1e-9 * (last - now):.1f} s; going on from there",
                "clock_reset",
            )
        self._last_stamp = now

    def _engine_for(self, settings: EngineSettings, camera_size: tuple[int, int]) -> DepthEngine:
        shared = self._shared
        if shared is None or shared.engine is None or shared.key != (settings, camera_size):
            if shared is not None and shared.key[1] != camera_size:
                (h0, w0), (h, w) = shared.key[1], camera_size
                self._warn(
                    f"{self._image_topic}: frames changed from {w0}x{h0} to {w}x{h}; making an engine for them",
                    "resize",
                )
            self._shared = shared = None  # the old one goes before the new one takes memory
            self._shared = shared = self._engines.share(settings, camera_size, self._log)
            self._note_engine(shared.engine)
        return shared.engine

    def _note_engine(self, engine: DepthEngine) -> None:
        self.engine_description, self.engine_failures = engine.description, list(engine.failures)
        self.degraded = engine.degraded
        checkpoint = engine.checkpoint
        self.checkpoint_description = checkpoint.path.name + ("" if checkpoint.description.trained else " (untrained)")

    def _metric_camera_fits(self, frame: Frame) -> bool:
        known = self._metric_camera
        return known is not None and (known.frame_id, known.size) == (frame.frame_id, frame.size)

    def _ground_for(self, settings: Settings) -> GroundScale | None:
        """What follows the scale, where the camera's height is known; a new one for another network or setting."""
        if not settings.camera_height:
            self.ground = None
            return None
        key = (settings.camera_height, settings.depth_scale, self._shared.key)
        if self.ground is None or self._ground_key != key:
            self.ground, self._ground_key, self._ground_due = GroundScale(settings.camera_height), key, 0.0
        return self.ground

    def _camera_for(self, frame: Frame, for_metres: bool) -> Camera | None:
        """The camera of this frame; None, with a warning, when what is known of it cannot be used."""
        camera, problem = self._camera, self._camera_problem
        if problem is None and camera.frame_id != frame.frame_id:
            problem = MessageError(
                "camera_info_frame", f"it is of frame '{camera.frame_id}', the image of '{frame.frame_id}'"
            )
        if problem is None and camera.size != frame.size:
            (h, w), (fh, fw) = camera.size, frame.size
            problem = MessageError("camera_info_size", f"it is of {w}x{h}, the image {fw}x{fh}")
        if problem is None:
            self._camera_warned = ""
            return camera
        cause = problem.cause if problem.cause.startswith(("no_", "camera_info")) else f"camera_info_{problem.cause}"
        self.statistics.problem(cause)
        if cause != self._camera_warned:  # once, until it changes: an uncalibrated camera stays one
            self._camera_warned = cause
            metres = "; depth is not in metres of this camera" if for_metres else ""
            self._warn(f"{self._info_topic}: {problem}; depth/points and depth/camera_info are withheld{metres}", cause)
        return None

    def _cloud_is_due(self, settings: Settings, arrival: float) -> bool:
        if arrival < self._cloud_due:
            return False
        # Kept from the time it was due, not from now: frames fall between, and 10 Hz of a 25 Hz camera must be 10, not 8.
        self._cloud_due = max(self._cloud_due + settings.points_period, arrival)
        return True

    def _depth_message(self, settings: Settings, frame: Frame, result: DepthResult) -> bytes:
        encoding, size = settings.depth_encoding, result.depth.shape
        pixels = result.depth if encoding == "32FC1" else depth_to_millimetres(result.depth)
        key = (frame.frame_id, size, encoding)
        return self._writer(DEPTH, key, lambda: ImageWriter(frame.frame_id, size, encoding)).write(frame.stamp, pixels)

    def _cloud_message(self, settings: Settings, frame: Frame, engine: DepthEngine, rgb, result: DepthResult) -> bytes:
        every = slice(None, None, settings.points_stride)
        points = result.points[every, every]
        color = None
        if settings.points_rgb:
            framing = engine.framing
            if rgb.shape[:2] != framing.output_size:
                rgb = framing.output_pixels(frame.encoding.to_rgb(frame.pixels))
            color = rgb[every, every]
        key = (frame.frame_id, points.shape, settings.points_rgb)
        writer = self._writer(
            POINTS, key, lambda: CloudWriter(frame.frame_id, points.shape[:2], coloured=settings.points_rgb)
        )
        return writer.write(frame.stamp, points, color, settings.points_z_range)

    def _writer(self, output: str, key: tuple, make: Callable[[], object]):
        """The writer of an output, made anew when what it was made for has changed."""
        known = self._writers.get(output)
        if known is None or known[0] != key:
            known = (key, make())
            self._writers[output] = known
        return known[1]

    def note_problem(self, text: str, cause: str, exc_info: bool = False) -> None:
        """Something is wrong with a frame of which depth is published all the same."""
        self.statistics.problem(cause)
        self._warn(text, cause, exc_info)

    def _warn(self, text: str, kind: str, exc_info: bool = False) -> None:
        self.statistics.error(text, kind)
        now = time.monotonic()
        if now >= self._warned.get(kind, 0.0):
            self._warned[kind] = now + WARN_PERIOD
            self._log.warning(text, exc_info=exc_info)


def offer_images(images: Sequence[tuple[Pipeline, bytes, int]]) -> None:
    """Serialized images of several cameras have arrived together, each with how many older ones it replaces.

    Those that share an engine are run in one batch where it batches; else each is out before the next is begun. Never
    raises, as `Pipeline.offer_image`; what goes wrong with one camera costs no other its frame.
    """
    arrival = time.monotonic()
    batches: dict[DepthEngine, list[tuple[Pipeline, Prepared]]] = {}
    for pipeline, raw, superseded in images:
        pipeline.count(superseded)
        job = pipeline.attempt(pipeline.prepare, raw, arrival)
        if job is None:
            continue
        if job.image is not None and job.engine.batches:
            batches.setdefault(job.engine, []).append((pipeline, job))
        else:
            pipeline.attempt(pipeline.answer, job)
    for batch in batches.values():
        if len(batch) > 1:
            _answer_together(batch)
        else:
            ((pipeline, job),) = batch
            pipeline.attempt(pipeline.answer, job)


def _answer_together(batch: list[tuple[Pipeline, Prepared]]) -> None:
    """Run frames of several cameras, all of one engine, in one batch, and publish what comes out."""
    engine = batch[0][1].engine
    requests = [FrameRequest(job.image, job.intrinsics, job.points, job.scale, job.limits) for _, job in batch]
    try:
        results = engine.infer_batch(requests)
    except EngineError as error:
        for pipeline, _ in batch:
            pipeline.lose(error)
        return
    except Exception as error:
        # Whosever frame it is, the others' are to come out.
        for pipeline, job in batch:
            pipeline.note_problem(f"a batch failed, its frames are run one by one: {error}", "batch", exc_info=True)
            pipeline.attempt(pipeline.answer, job)
        return
    for (pipeline, job), result in zip(batch, results, strict=True):
        pipeline.attempt(pipeline.finish, job, result)


def _rgb_for(engine: DepthEngine, frame: Frame) -> np.ndarray:
    """The frame as the engine likes it: RGB, already small where that is cheaper."""
    to_rgb = frame.encoding.to_rgb
    if not engine.takes_network_size:
        return to_rgb(frame.pixels)
    if frame.encoding.resizable:
        return to_rgb(engine.framing.to_network(frame.pixels))
    return engine.framing.to_network(to_rgb(frame.pixels))
