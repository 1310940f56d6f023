"""Engines shared by the cameras of a node.

Cameras with the same engine settings and the same frame size use one engine, which runs their frames in batches where its
backend can. An engine is released when no camera uses it any more. An engine that failed is built again after
`RETRY_PERIOD` seconds at the earliest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from fadepth_core.runtime.checkpoint import CheckpointError
from fadepth_core.runtime.engine import DepthEngine, EngineError
from fadepth_ros.parameters import EngineSettings

#: Seconds between two attempts to build an engine that fails.
RETRY_PERIOD = 5.0

#: What an engine is built for: its settings and the (height, width) of the frames.
EngineKey = tuple[EngineSettings, tuple[int, int]]


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


@dataclass(eq=False)
class SharedEngine:
    """An engine and its key. All cameras that use it hold this object; `engine` is None once the engine has failed."""

    key: EngineKey
    engine: DepthEngine | None


class EnginePool:
    """Builds engines and shares them between cameras.

    Args:
        load: builds an engine, see `load_engine`.
        retry_period: seconds between two attempts to build an engine that fails.
    """

    def __init__(self, load: Callable[..., DepthEngine] = load_engine, retry_period: float = RETRY_PERIOD):
        self.retry_period = retry_period
        self._load = load
        self._shared: WeakValueDictionary[EngineKey, SharedEngine] = WeakValueDictionary()
        self._failed: dict[EngineKey, tuple[float, str]] = {}  # time of the next attempt, reason of the last failure

    def share(self, key: EngineKey, logger: logging.Logger) -> SharedEngine:
        """The engine for `key`; built if no camera holds it yet.

        Raises:
            EngineError, CheckpointError: it cannot be built, or an attempt failed less than `retry_period` seconds ago.
            FramingError: see `load_engine`.
        """
        shared = self._shared.get(key)
        if shared is not None:
            return shared
        next_attempt, reason = self._failed.get(key, (0.0, ""))
        if time.monotonic() < next_attempt:
            raise EngineError(reason)
        try:
            shared = SharedEngine(key, self._load(*key, logger))
        except (EngineError, CheckpointError) as error:
            self._note_failure(key, error)
            raise
        self._shared[key] = shared
        return shared

    def discard(self, shared: SharedEngine, error: Exception) -> None:
        """Remove an engine that failed while running; no camera uses it any more."""
        if shared.engine is not None:
            shared.engine = None
            del self._shared[shared.key]
            self._note_failure(shared.key, error)

    def retry(self) -> None:
        """Allow the next attempt to build any engine at once."""
        self._failed.clear()

    def _note_failure(self, key: EngineKey, error: Exception) -> None:
        now = time.monotonic()
        self._failed = {known: failure for known, failure in self._failed.items() if failure[0] > now}
        self._failed[key] = (now + self.retry_period, str(error))


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
    """

    def __init__(self, pool: EnginePool, logger: logging.Logger):
        self.status = EngineStatus("no engine yet")
        self._pool, self._logger = pool, logger
        self._shared: SharedEngine | None = None

    @property
    def key(self) -> EngineKey | None:
        """What the present engine was built for; None without one."""
        return None if self._shared is None else self._shared.key

    @property
    def retry_period(self) -> float:
        """Seconds between two attempts to build an engine that fails."""
        return self._pool.retry_period

    def acquire(self, settings: EngineSettings, camera_size: tuple[int, int]) -> DepthEngine:
        """The engine for these settings and frames of `camera_size` (height, width). Raises as `EnginePool.share`."""
        key = (settings, camera_size)
        engine = None if self._shared is None or self._shared.key != key else self._shared.engine
        if engine is None:
            self._shared = None  # releases the old engine, whose memory the new one may need
            self._shared = self._pool.share(key, self._logger)
            engine = self._shared.engine
            assert engine is not None  # the pool holds no discarded engines
            self.status = EngineStatus.of(engine)
        return engine

    def refresh_status(self, engine: DepthEngine) -> None:
        """Update `status` if the engine has changed to another backend."""
        if engine.description != self.status.description:
            self.status = EngineStatus.of(engine)

    def release(self) -> None:
        """Stop using the engine. It is deleted if no other camera uses it."""
        self._shared = None

    def retry(self) -> None:
        """Allow the next attempt to build an engine at once."""
        self._pool.retry()

    def fail(self, error: Exception) -> None:
        """Report that the engine failed, or could not be built: no camera uses it any longer."""
        if self._shared is not None:
            self._pool.discard(self._shared, error)
            self._shared = None
        self.status = replace(self.status, description="no engine")

    def batches_with(self, other: EngineLease) -> bool:
        """Whether both cameras use the same engine and it runs frames in batches."""
        shared = self._shared
        return shared is not None and shared is other._shared and shared.engine is not None and shared.engine.batches
