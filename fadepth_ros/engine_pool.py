"""Engines shared by the cameras of a node.

Cameras with the same engine settings and the same frame size use one engine, which runs their frames in batches where its
backend can. An engine that no camera uses any more is kept for a while, since the size may come back. Engines are built in
threads. A camera that has no engine waits for its build. A camera whose frames change size does not: other frames of the
thread that serves it would wait, too, and one odd frame is no reason for that. An engine that failed is built again after
`RETRY_PERIOD` seconds at the earliest.

When engine settings change, e.g. the checkpoint, the present engine serves until the new one is ready. If the new one cannot
be built, the former settings stay in use.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakValueDictionary

from fadepth_core.common.framing import Framing, FramingError
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.engine import DepthEngine, EngineError
from fadepth_ros.parameters import EngineSettings

#: Seconds between two attempts to build an engine that fails.
RETRY_PERIOD = 5.0
#: Seconds that the first frame of another size waits for its engine while the camera has an engine of another size.
BUILD_WAIT = 0.1
#: Seconds between the starts of two builds for changed sizes: cameras with sizes in turn may not use up the processors.
SIZE_PERIOD = 5.0
#: How many engines are kept that no camera uses, and for how many seconds.
KEPT_ENGINES, KEEP_PERIOD = 2, 60.0
#: Seconds between two looks whether the node has been shut down, while a camera waits for its first engine.
_POLL_PERIOD = 0.1
#: Most failures that are remembered; a broken camera can send any number of sizes.
_MOST_FAILURES = 64

#: What an engine is built for: its settings and the (height, width) of the frames.
EngineKey = tuple[EngineSettings, tuple[int, int]]


class EngineUnavailableError(EngineError):
    """There is no engine for a frame; the engine that the camera has, if any, is not at fault.

    Attributes:
        cause: "engine" if it cannot be built, "resize" if it is not built yet.
    """

    def __init__(self, text: str, cause: str = "engine"):
        super().__init__(text)
        self.cause = cause


def load_engine(settings: EngineSettings, camera_size: tuple[int, int], logger: logging.Logger) -> DepthEngine:
    """Load the engine that `settings` describe, for frames of `camera_size` (height, width).

    Raises:
        EngineError, CheckpointError, FramingError: see `DepthEngine.load`.
    """
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


def check_engine(settings: EngineSettings, logger: logging.Logger) -> None:
    """Find out whether an engine can be built for `settings`, see `DepthEngine.check`.

    Raises:
        EngineError: none can be built; the message is the reason.
    """
    try:
        DepthEngine.check(settings.checkpoint or None, settings.backend, settings.precision, settings.threads, logger)
    except CheckpointError as error:
        raise EngineError(str(error)) from error


def check_trained(checkpoint: str) -> None:
    """Find out whether a checkpoint, by its path or name, may replace one that serves.

    Raises:
        EngineError: it cannot be used, or it is untrained.
    """
    try:
        opened = Checkpoint(checkpoint or None)
    except CheckpointError as error:
        raise EngineError(str(error)) from error
    if not opened.description.trained:
        raise EngineError(f"{opened.path} is untrained; deactivate the node to use it nevertheless")


@dataclass(eq=False)
class SharedEngine:
    """An engine and its key. All cameras that use it hold this object; `engine` is None once the engine has failed."""

    key: EngineKey
    engine: DepthEngine | None


class _Failure(NamedTuple):
    """Why an engine could not be built, and the time (monotonic clock) of the next attempt.

    The error itself is not stored: its traceback would keep the failed backends, and grow each time it is raised.
    """

    kind: type[EngineError | FramingError]
    reason: str
    next_attempt: float


class EnginePool:
    """Builds engines and shares them between cameras. To be used in one thread.

    Args:
        load: builds an engine, see `load_engine`; called in other threads.
        retry_period: seconds between two attempts to build an engine that fails.
        build_wait: see `BUILD_WAIT`.
        size_period: see `SIZE_PERIOD`.
        change_wait: seconds that the first frame after a change of settings waits for the new engine.
        check: see `check_engine`. It changes nothing that serves.

    Attributes:
        check: the argument.
        kept: former engines that are kept for a while, with the time of their release (monotonic clock), oldest first.
    """

    def __init__(
        self,
        load: Callable[..., DepthEngine] = load_engine,
        retry_period: float = RETRY_PERIOD,
        build_wait: float = BUILD_WAIT,
        size_period: float = SIZE_PERIOD,
        change_wait: float = 0.0,
        check: Callable[[EngineSettings, logging.Logger], None] = check_engine,
    ):
        self.retry_period = retry_period
        self.check = check
        self._load = load
        self._build_wait, self._size_period, self._change_wait = build_wait, size_period, change_wait
        self._shared: WeakValueDictionary[EngineKey, SharedEngine] = WeakValueDictionary()
        self.kept: dict[EngineKey, tuple[SharedEngine, float]] = {}
        self._builds: dict[EngineKey, Future[DepthEngine]] = {}
        self._abandoned: list[Future[DepthEngine]] = []  # still running, but their settings have changed
        self._failed: dict[EngineKey, _Failure] = {}
        self._next_size = 0.0  # time of the next build for a changed size

    def share(self, key: EngineKey, logger: logging.Logger, closed: Callable[[], bool]) -> SharedEngine:
        """The engine for `key`. Waits for its build, but not longer than until `closed` is true.

        Raises:
            EngineUnavailableError: it cannot be built, or an attempt failed less than `retry_period` seconds ago.
            FramingError: see `load_engine`. It is remembered until `retry` or `change`.
        """
        if (shared := self._known(key)) is not None:
            return shared
        build = self._builds.get(key) or self._start(key, logger)
        while not wait([build], _POLL_PERIOD).done:
            if closed():
                raise EngineUnavailableError("shut down while its engine is being built")
        return self._finish(key)

    def prepare(self, key: EngineKey, logger: logging.Logger) -> None:
        """Begin to build the engine for `key`, unless there is one or an attempt has just failed. Does not wait for it."""
        failure = self._failed.get(key)
        if key in self._shared or key in self._builds or (failure and time.monotonic() < failure.next_attempt):
            return
        self._start(key, logger)

    def share_beside(self, key: EngineKey, logger: logging.Logger) -> SharedEngine:
        """The engine for `key`, for a camera that has an engine of another size. Its build is started and not waited for.

        Raises:
            EngineUnavailableError: as `share`; it is being built; or its build is postponed.
            FramingError: see `share`.
        """
        if (shared := self._known(key)) is not None:
            return shared
        height, width = key[1]
        build, patience = self._builds.get(key), 0.0
        if build is None:
            now, busy = time.monotonic(), self._is_building()
            if busy or now < self._next_size:
                cause = "another engine is being built" if busy else "sizes change too often"
                text = f"{cause}; frames of {width}x{height} are dropped until there is time for their engine"
                raise EngineUnavailableError(text, "resize")
            self._next_size = now + self._size_period
            build, patience = self._start(key, logger), self._build_wait
        if not wait([build], patience).done:
            raise EngineUnavailableError(
                f"frames of {width}x{height} are dropped until their engine is built", "resize"
            )
        return self._finish(key)

    def share_when_built(self, key: EngineKey, logger: logging.Logger) -> SharedEngine | None:
        """The engine for `key`, for a camera that has an engine with other settings; None until it is built.

        One engine at a time is built in this way: a build takes processor time from the engines that serve.

        Raises:
            EngineUnavailableError, FramingError: see `share`.
        """
        if (shared := self._known(key)) is not None:
            return shared
        build, patience = self._builds.get(key), 0.0
        if build is None:
            if self._is_building():
                return None
            build, patience = self._start(key, logger), self._change_wait
        if not wait([build], patience).done:
            return None
        try:
            return self._finish(key)
        except (EngineUnavailableError, FramingError):
            raise
        except Exception as error:  # not expected, e.g. MemoryError
            logger.warning("an engine cannot be built", exc_info=error)
            raise EngineUnavailableError(str(error) or type(error).__name__) from error

    def keep(self, shared: SharedEngine) -> None:
        """Keep an engine that a camera has stopped using, until it is old or others are kept."""
        if shared.engine is not None:
            self.kept.pop(shared.key, None)
            self.kept[shared.key] = (shared, time.monotonic())
            while len(self.kept) > KEPT_ENGINES:
                del self.kept[next(iter(self.kept))]

    def release_old(self) -> None:
        """Release kept engines that nobody has used for `KEEP_PERIOD`, and take over finished builds."""
        self._abandoned = [build for build in self._abandoned if not build.done()]
        if not self.kept and not self._builds:
            return
        now = time.monotonic()
        for key in [key for key, (_, since) in self.kept.items() if now - since > KEEP_PERIOD]:
            del self.kept[key]
        for key in [key for key, build in self._builds.items() if build.done()]:
            # Nobody has asked for it yet: the frames of that size may be over.
            try:
                self.keep(self._finish(key))
            except Exception:
                continue  # `_finish` has noted the failure, for the next frame of that size

    def change(self, settings: EngineSettings) -> None:
        """Release engines that no camera uses, and abandon builds for other settings than `settings`.

        A build that has begun goes on until its engine is loaded. The engine is then released at once, which cancels what
        it compiles in the background.
        """
        self.kept.clear()
        self._failed.clear()
        self._next_size = 0.0
        for key in [key for key in self._builds if key[0] != settings]:
            self._abandoned.append(self._builds.pop(key))

    def discard(self, shared: SharedEngine, error: Exception) -> None:
        """Remove an engine that failed while running; no camera uses it any more."""
        if shared.engine is not None:
            shared.engine = None
            self._shared.pop(shared.key, None)
            self.kept.clear()  # the failed one, and memory that the next one may need
            self._note_failure(shared.key, EngineUnavailableError, error)

    def retry(self) -> None:
        """Allow the next attempt to build any engine at once."""
        self._failed.clear()

    def _is_building(self) -> bool:
        return any(not build.done() for build in (*self._builds.values(), *self._abandoned))

    def _known(self, key: EngineKey) -> SharedEngine | None:
        """The engine for `key` if there is one. Raises the error of the last attempt if it may not be repeated yet."""
        shared = self._shared.get(key)
        if shared is not None:
            return shared
        failure = self._failed.get(key)
        if failure is not None and time.monotonic() < failure.next_attempt:
            raise failure.kind(failure.reason)
        return None

    def _start(self, key: EngineKey, logger: logging.Logger) -> Future[DepthEngine]:
        build: Future[DepthEngine] = Future()
        # Not a daemon thread: a process that ends while such a thread is in native code is aborted. The programs of this package
        # end during a build nevertheless (process.py). The thread has no reference to the pool.
        threading.Thread(target=_build, args=(build, self._load, *key, logger), name="building an engine").start()
        self._builds[key] = build
        return build

    def _finish(self, key: EngineKey) -> SharedEngine:
        """The engine of a build that is done. Raises as `share`."""
        try:
            shared = self._shared[key] = SharedEngine(key, self._builds.pop(key).result())
        except (EngineError, CheckpointError) as error:
            self._note_failure(key, EngineUnavailableError, error)
            raise EngineUnavailableError(str(error)) from error
        except FramingError as error:
            self._note_failure(key, FramingError, error)
            raise
        except Exception as error:
            # Not expected, e.g. MemoryError. The traceback is logged once, and not every frame starts another build.
            self._note_failure(key, EngineUnavailableError, error)
            raise
        return shared

    def _note_failure(self, key: EngineKey, kind: type[EngineError | FramingError], error: Exception) -> None:
        now = time.monotonic()
        period = float("inf") if kind is FramingError else self.retry_period  # an impossible size stays impossible
        self._failed = {known: failure for known, failure in self._failed.items() if failure.next_attempt > now}
        while len(self._failed) >= _MOST_FAILURES:
            del self._failed[next(iter(self._failed))]
        self._failed[key] = _Failure(kind, str(error) or type(error).__name__, now + period)


def _build(
    build: Future[DepthEngine],
    load: Callable[..., DepthEngine],
    settings: EngineSettings,
    camera_size: tuple[int, int],
    logger: logging.Logger,
) -> None:
    try:
        build.set_result(load(settings, camera_size, logger))
    except BaseException as error:
        build.set_exception(error)


@dataclass(frozen=True)
class EngineStatus:
    """An engine as /diagnostics reports it.

    Attributes:
        description: backend, precision and device.
        checkpoint: file name of the checkpoint.
        failures: why backends before it in the order are not used.
        degraded: whether one of these backends was tried and failed.
    """

    description: str
    checkpoint: str = ""
    failures: tuple[str, ...] = ()
    degraded: bool = False

    @classmethod
    def of(cls, engine: DepthEngine) -> EngineStatus:
        """The present status of an engine."""
        checkpoint = engine.checkpoint
        name = checkpoint.path.name + ("" if checkpoint.description.trained else " (untrained)")
        return cls(engine.description, name, tuple(engine.failures), engine.degraded)


class EngineLease:
    """The engine that one camera uses at present.

    Attributes:
        status: for /diagnostics.
        rejection: why the present settings are not used, but those of the engine that serves; "" if they are.
    """

    def __init__(self, pool: EnginePool, logger: logging.Logger):
        self.status = EngineStatus("no engine yet")
        self.rejection = ""
        self._pool, self._logger = pool, logger
        self._shared: SharedEngine | None = None
        self._next: SharedEngine | None = None  # has the present settings, but still compiles its preferred backend
        self._replaced: dict[EngineSettings, EngineSettings] = {}  # by rejected settings: those used instead

    @property
    def shared(self) -> SharedEngine | None:
        """The present engine; None without one."""
        return self._shared

    @property
    def key(self) -> EngineKey | None:
        """What the present engine was built for; None without one."""
        return None if self._shared is None else self._shared.key

    @property
    def retry_period(self) -> float:
        """Seconds between two attempts to build an engine that fails."""
        return self._pool.retry_period

    def check(self, settings: EngineSettings) -> None:
        """Find out whether an engine can be built for `settings` and frames of the present size. Changes nothing.

        Raises:
            EngineError: none can be built; the message is the reason.
        """
        if self._shared is not None:
            try:
                Framing.plan(
                    self._shared.key[1], settings.network_size, settings.crop_to_aspect, settings.full_resolution
                )
            except FramingError as error:
                raise EngineError(str(error)) from error
        self._pool.check(settings, self._logger)

    def acquire(
        self, settings: EngineSettings, camera_size: tuple[int, int], closed: Callable[[], bool] = lambda: False
    ) -> DepthEngine:
        """The engine for these settings and frames of `camera_size` (height, width).

        Args:
            closed: ends the wait for the camera's first engine when it returns true.

        Raises:
            EngineUnavailableError: there is none, or none yet. An engine of another size stays the camera's.
            FramingError: the size is impossible.
        """
        self._pool.release_old()
        key, held = (self._replaced.get(settings, settings), camera_size), self._shared
        if held is None or held.engine is None:
            try:
                return self._use(self._pool.share(key, self._logger, closed))
            except EngineUnavailableError:
                self.status = replace(self.status, description="no engine")
                raise
        if held.key == key:
            return held.engine
        if held.key[1] == camera_size:
            return self._change_settings(held, key)
        return self._change_size(held, key)

    def prepare(self, settings: EngineSettings, camera_size: tuple[int, int]) -> None:
        """Begin to build the engine that `acquire` with these arguments returns, without waiting for it."""
        self._pool.prepare((self._replaced.get(settings, settings), camera_size), self._logger)

    def _change_settings(self, held: SharedEngine, key: EngineKey) -> DepthEngine:
        """The engine for `key` if it is ready, otherwise the one that is held, of the same size."""
        assert held.engine is not None
        try:
            if self._next is None or self._next.key != key:
                self._next = self._pool.share_when_built(key, self._logger)
        except (EngineUnavailableError, FramingError) as error:
            self.rejection = str(error)
            self._replaced = {key[0]: held.key[0]}
            return held.engine
        if self._next is None or self._next.engine is None or self._next.engine.building:
            return held.engine
        return self._use(self._next)

    def _change_size(self, held: SharedEngine, key: EngineKey) -> DepthEngine:
        """The engine for `key`; with the settings of the engine that is held, of another size, if only that can be built."""
        try:
            shared = self._pool.share_beside(key, self._logger)
        except EngineUnavailableError as error:
            if error.cause != "engine" or held.key[0] == key[0]:
                raise
            shared = self._pool.share_beside((held.key[0], key[1]), self._logger)
        if shared.key[0] == held.key[0]:
            self._pool.keep(held)
        return self._use(shared)

    def _use(self, shared: SharedEngine) -> DepthEngine:
        engine = shared.engine
        assert engine is not None  # the pool holds no discarded engines
        self._shared, self._next = shared, None
        self.status = EngineStatus.of(engine)
        return engine

    def refresh_status(self, engine: DepthEngine) -> None:
        """Update `status` if the engine has changed to another backend."""
        if engine.description != self.status.description:
            self.status = EngineStatus.of(engine)

    def change(self, settings: EngineSettings) -> None:
        """Use other settings. The present engine serves until one with these settings is ready."""
        self._next = None
        self._pool.change(settings)

    def retry(self) -> None:
        """Allow the next attempt to build an engine at once, also with settings that were rejected."""
        self.rejection, self._replaced = "", {}
        self._pool.retry()

    def fail(self, error: Exception) -> None:
        """Report that the engine failed while running: no camera uses it any longer."""
        if self._shared is not None:
            self._pool.discard(self._shared, error)
            self._shared = None
        self.status = replace(self.status, description="no engine")

    def batches_with(self, other: EngineLease) -> bool:
        """Whether both cameras use the same engine and it runs frames in batches."""
        shared = self._shared
        return shared is not None and shared is other._shared and shared.engine is not None and shared.engine.batches
