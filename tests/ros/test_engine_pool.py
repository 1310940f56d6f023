"""Engines of changing sizes: built beside the one that serves, kept for a while, and limited in rate."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from rclpy.serialization import serialize_message

from cards import PATIENCE, SIZE, image_message, noise
from fadepth_core.common.framing import FramingError
from fadepth_core.runtime.engine import EngineError
from fadepth_ros import engine_pool
from fadepth_ros.engine_pool import EnginePool
from fadepth_ros.pipeline import DEPTH, Pipeline
from fakes import SECOND, EngineLoader, FakeEngine, RecordedOutputs, settings

OTHER_SIZE, THIRD_SIZE = (90, 200), (64, 64)


@pytest.fixture
def clock(monkeypatch):
    """The pool's clock; `clock.now` may be set."""
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(engine_pool, "time", clock)
    return clock


class SlowLoader(EngineLoader):
    """Builds engines of `slow` sizes only when `gate` is set."""

    def __init__(self, *slow):
        super().__init__()
        self.gate, self.sizes, self._slow = threading.Event(), [], slow

    def __call__(self, engine_settings, camera_size, logger):
        self.sizes.append(camera_size)
        if camera_size in self._slow:
            assert self.gate.wait(PATIENCE)
        return super().__call__(engine_settings, camera_size, logger)


class Camera:
    """A pipeline and its camera."""

    def __init__(self, loader, **options):
        self.pool = EnginePool(loader, **options)
        self.outputs = RecordedOutputs(DEPTH)
        self.pipeline = Pipeline(settings(), self.outputs, logging.getLogger("test"), engines=self.pool)
        self._second = 0

    def offer(self, size=SIZE):
        """The number of depth images that a frame of this size gives."""
        self._second += 1
        before = len(self.outputs.published)
        self.pipeline.offer_image(serialize_message(image_message(noise(size), "rgb8", self._second * SECOND)))
        return len(self.outputs.published) - before

    def dropped(self):
        return self.pipeline.statistics.report().dropped

    def wait_for_builds(self):
        for thread in threading.enumerate():
            if thread.name == "building an engine":
                thread.join(PATIENCE)


def test_frames_of_the_present_size_are_served_while_another_engine_is_built(caplog):
    loader = SlowLoader(OTHER_SIZE)
    camera = Camera(loader, build_wait=0.0)
    assert [camera.offer(size) for size in (SIZE, OTHER_SIZE, SIZE, OTHER_SIZE, SIZE)] == [1, 0, 1, 0, 1]
    assert camera.dropped() == {"resize": 2}
    assert "frames of 200x90 are dropped until their engine is built" in caplog.text
    loader.gate.set()
    camera.wait_for_builds()
    assert [camera.offer(size) for size in (OTHER_SIZE, SIZE, OTHER_SIZE)] == [1, 1, 1]
    assert loader.sizes == [SIZE, OTHER_SIZE], "one build for each size"


def test_builds_for_changing_sizes_are_limited_in_rate(clock, caplog):
    loader = EngineLoader()
    camera = Camera(loader, build_wait=PATIENCE, size_period=5.0)
    sizes = [(64, 64 + 4 * index) for index in range(20)]
    assert camera.offer() == 1
    assert sum(camera.offer(size) for size in sizes) == 1
    assert camera.offer() == 1, "the camera's size is served as before"
    assert len(loader.engines) == 2
    assert "sizes change too often" in caplog.text
    clock.now += 5.0
    assert camera.offer(sizes[5]) == 1


def test_kept_engines_are_few_and_are_released_after_a_while(clock):
    camera = Camera(EngineLoader(), build_wait=PATIENCE, size_period=0.0)
    for size in (SIZE, OTHER_SIZE, THIRD_SIZE, (96, 96), SIZE):
        assert camera.offer(size) == 1
    assert len(camera.pool.kept) == engine_pool.KEPT_ENGINES
    clock.now += engine_pool.KEEP_PERIOD + 1
    camera.offer()
    assert not camera.pool.kept


def test_an_impossible_size_is_remembered_and_harms_nobody():
    attempts = []

    def loader(engine_settings, camera_size, logger):
        attempts.append(camera_size)
        if camera_size == OTHER_SIZE:
            raise FramingError("impossible")
        return FakeEngine(engine_settings, camera_size, logger)

    camera = Camera(loader, build_wait=PATIENCE, size_period=0.0, retry_period=0.0)
    assert [camera.offer(size) for size in (SIZE, OTHER_SIZE, OTHER_SIZE, SIZE)] == [1, 0, 0, 1]
    assert attempts == [SIZE, OTHER_SIZE]
    assert camera.dropped() == {"size": 2}


def test_an_engine_that_cannot_be_built_for_another_size_leaves_the_present_one():
    def loader(engine_settings, camera_size, logger):
        if camera_size == OTHER_SIZE:
            raise EngineError("too large for the device")
        return FakeEngine(engine_settings, camera_size, logger)

    camera = Camera(loader, build_wait=PATIENCE, size_period=0.0)
    assert [camera.offer(size) for size in (SIZE, OTHER_SIZE, SIZE)] == [1, 0, 1]
    assert camera.pipeline.engine.status.description == FakeEngine.description
    assert camera.dropped() == {"engine": 1}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a library's")])
def test_an_unexpected_error_of_a_build_is_not_repeated_with_every_frame(clock, caplog, error):
    sizes = []

    def load(engine_settings, camera_size, logger):
        sizes.append(camera_size)
        raise error

    camera = Camera(load)
    assert [camera.offer() for _ in range(5)] == [0] * 5
    assert sizes == [SIZE]
    assert camera.dropped() == {"internal": 1, "engine": 4}
    assert f"no depth: {str(error) or 'MemoryError'}; next attempt" in caplog.text
    clock.now += 10
    camera.offer()
    assert sizes == [SIZE] * 2


def test_an_unexpected_error_of_a_build_beside_does_not_drop_a_frame_of_the_present_size():
    class FailsForOtherSizes(EngineLoader):
        def __call__(self, engine_settings, camera_size, logger):
            if camera_size == OTHER_SIZE:
                raise MemoryError
            return super().__call__(engine_settings, camera_size, logger)

    camera = Camera(FailsForOtherSizes(), build_wait=0.0)
    camera.offer()
    camera.offer(OTHER_SIZE)
    camera.wait_for_builds()
    assert [camera.offer() for _ in range(3)] == [1] * 3
    assert camera.offer(OTHER_SIZE) == 0


def test_waiting_for_the_first_engine_ends_at_shutdown():
    loader = SlowLoader(SIZE)
    camera = Camera(loader)
    camera.outputs.closed = lambda: True
    assert camera.offer() == 0
    loader.gate.set()


def test_values_are_validated_without_a_change():
    asked = []

    def check(engine_settings, logger):
        asked.append(engine_settings)
        if engine_settings.threads == 7:
            raise EngineError("no backend can run it")

    loader = EngineLoader()
    camera = Camera(loader, check=check)
    camera.offer()
    camera.pipeline.validate(settings(depth_scale=2.0))
    assert asked == [], "the engine is the same"
    camera.pipeline.validate(settings(threads=2))
    with pytest.raises(EngineError, match="no backend can run it"):
        camera.pipeline.validate(settings(threads=7))
    with pytest.raises(EngineError, match=r"leaves .* after the crop"):
        camera.pipeline.validate(settings(network_size=[32, 4096], crop_to_aspect=True))
    assert camera.offer() == 1
    assert len(loader.engines) == 1


def test_one_error_says_why_no_engine_can_be_built(tmp_path):
    bad = settings(checkpoint=str(tmp_path / "bad.safetensors"))
    with pytest.raises(EngineError, match=r"bad\.safetensors: no such file"):
        EnginePool().check(bad.engine, logging.getLogger("test"))


ENDS_DURING_A_BUILD = """
import logging
from fadepth_ros.engine_pool import EnginePool, EngineUnavailableError
from fadepth_ros.parameters import SPECS, Settings
settings = Settings.from_values({spec.name: spec.default for spec in SPECS}).engine
pool = EnginePool(build_wait=0.0)
try:
    pool.share_beside((settings, (480, 640)), logging.getLogger())
except EngineUnavailableError as error:
    print(error)
"""


def test_a_process_may_end_during_a_build():
    """A daemon thread in native code would abort it."""
    ended = subprocess.run([sys.executable, "-c", ENDS_DURING_A_BUILD], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "dropped until their engine is built" in ended.stdout
