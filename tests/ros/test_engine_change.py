"""Engine settings that change while frames arrive: the present engine serves until the new one is ready."""

from __future__ import annotations

import logging
import shutil
import threading
import weakref
from dataclasses import replace

import pytest
import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message

from cards import PATIENCE, SIZE, image_message, noise
from fadepth_core.runtime.checkpoint import DEFAULT_CHECKPOINT, Checkpoint, save_checkpoint
from fadepth_core.runtime.engine import EngineError
from fadepth_ros.diagnostics import status_values, summary
from fadepth_ros.engine_pool import EnginePool
from fadepth_ros.node import DepthNode
from fadepth_ros.pipeline import DEPTH, Pipeline
from fakes import SECOND, FakeEngine, RecordedOutputs, settings

OTHER_SIZE = (90, 200)


class NamedEngine(FakeEngine):
    """Notes its name for each frame."""

    def infer(self, request):
        self.served.append(self.name)
        return super().infer(request)


class Loader:
    """Builds engines. The builds of the checkpoints `held` end in `finish`; those of `broken` fail.

    Attributes:
        begun: the checkpoint of each build, in order.
        served: the checkpoint of the engine of each frame, in order.
    """

    def __init__(self, *held, broken=()):
        self.begun, self.served, self.broken = [], [], set(broken)
        self._gates = {name: threading.Event() for name in held}
        self._engines = []

    def __call__(self, engine_settings, camera_size, logger):
        name = engine_settings.checkpoint
        self.begun.append(name)
        if name in self._gates:
            assert self._gates[name].wait(PATIENCE)
        if name in self.broken:
            raise EngineError(f"no backend can run {name}")
        engine = NamedEngine(engine_settings, camera_size, logger)
        engine.name, engine.served = name, self.served
        self._engines.append((name, weakref.ref(engine)))
        return engine

    def finish(self, *names):
        for name in names:
            self._gates[name].set()
        for thread in threading.enumerate():
            if thread.name == "building an engine":
                thread.join(PATIENCE)

    def alive(self):
        """The checkpoints of the engines that exist."""
        return [name for name, engine in self._engines if engine() is not None]

    def last(self):
        return self._engines[-1][1]()


class Camera:
    """A pipeline that starts with the checkpoint "old"."""

    def __init__(self, loader, pool=None):
        self.loader, self.outputs = loader, RecordedOutputs(DEPTH)
        self.pool = pool or EnginePool(loader, build_wait=0.0, size_period=0.0)
        self.pipeline = Pipeline(
            settings(checkpoint="old"), self.outputs, logging.getLogger("test"), "image", engines=self.pool
        )
        self._second = 0

    def use(self, checkpoint, **changes):
        self.pipeline.configure(settings(checkpoint=checkpoint, **changes))

    def offer(self, size=SIZE):
        """The checkpoint of the engine that serves a frame of this size; None if the frame is dropped."""
        self._second += 1
        published, served = len(self.outputs.published), len(self.loader.served)
        self.pipeline.offer_image(serialize_message(image_message(noise(size), "rgb8", self._second * SECOND)))
        assert len(self.outputs.published) - published == len(self.loader.served) - served
        return self.loader.served[-1] if len(self.loader.served) > served else None

    def dropped(self):
        return self.pipeline.statistics.report().dropped


def test_the_old_engine_serves_every_frame_until_the_new_one_is_ready():
    camera = Camera(loader := Loader("new"))
    assert camera.offer() == "old"
    camera.use("new")
    assert [camera.offer() for _ in range(3)] == ["old"] * 3
    loader.finish("new")
    assert [camera.offer() for _ in range(2)] == ["new"] * 2
    assert loader.begun == ["old", "new"]
    assert loader.alive() == ["new"]
    assert camera.dropped() == {}


def test_an_engine_that_compiles_in_the_background_serves_when_that_is_done():
    camera = Camera(loader := Loader("new"))
    camera.offer()
    camera.use("new")
    camera.offer()
    loader.finish("new")
    new = loader.last()
    new.building = True
    assert [camera.offer() for _ in range(2)] == ["old"] * 2
    new.building = False
    assert camera.offer() == "new"
    assert loader.begun == ["old", "new"]


def test_of_several_changes_the_last_one_counts():
    camera = Camera(loader := Loader("first", "second", "third"))
    camera.offer()
    for name in ("first", "second", "third"):
        camera.use(name)
        assert camera.offer() == "old"
    assert loader.begun == ["old", "first"], "one build at a time"
    loader.finish("first")
    assert camera.offer() == "old"
    assert loader.alive() == ["old"], "an abandoned build is released"
    loader.finish("third")
    assert camera.offer() == "third"
    assert loader.begun == ["old", "first", "third"]


def test_a_change_may_be_taken_back_during_the_build():
    camera = Camera(loader := Loader("new"))
    camera.offer()
    camera.use("new")
    camera.offer()
    camera.use("old")
    assert camera.offer() == "old"
    loader.finish("new")
    assert camera.offer() == "old"
    assert (loader.begun, loader.alive()) == (["old", "new"], ["old"])


def test_cameras_that_share_an_engine_share_the_new_one():
    front = Camera(loader := Loader("new"))
    rear = Camera(loader, front.pool)
    for camera in (front, rear):
        camera.offer()
    for camera in (front, rear):
        camera.use("new")
    assert [camera.offer() for camera in (front, rear)] == ["old"] * 2
    loader.finish("new")
    assert front.offer() == "new"
    assert sorted(loader.alive()) == ["new", "old"], "the other camera still has it"
    assert rear.offer() == "new"
    assert (loader.begun, loader.alive()) == (["old", "new"], ["new"])


def test_frames_that_change_size_during_the_build_get_an_engine_with_the_new_settings():
    camera = Camera(loader := Loader("new"))
    camera.offer()
    camera.use("new")
    assert [camera.offer(size) for size in (SIZE, OTHER_SIZE, SIZE)] == ["old", None, "old"]
    loader.finish("new")
    camera.offer(OTHER_SIZE)  # begins the build for that size
    loader.finish()
    assert [camera.offer(size) for size in (OTHER_SIZE, SIZE, OTHER_SIZE)] == ["new"] * 3
    assert set(camera.dropped()) == {"resize"}
    assert loader.begun == ["old", "new", "new"], "one build for each size"


def test_a_build_that_fails_leaves_the_old_engine_and_is_reported(caplog):
    camera = Camera(loader := Loader(broken=["new"]))
    camera.offer()
    camera.use("new")
    camera.offer()
    loader.finish()
    assert [camera.offer() for _ in range(5)] == ["old"] * 5
    text = "the changed settings are not used: no backend can run new; smalldepth.safetensors goes on serving"
    assert [record.getMessage() for record in caplog.records] == [f"image: {text}"]
    report = camera.pipeline.statistics.report()
    assert status_values(report, camera.pipeline)["settings not used"] == "no backend can run new"
    assert "former settings" in summary(report, False, camera.pipeline.engine.rejection)[1]
    assert report.dropped == {}
    camera.offer(OTHER_SIZE)
    loader.finish()
    assert camera.offer(OTHER_SIZE) == "old", "the former settings hold for other sizes, too"
    assert loader.begun == ["old", "new", "old"]

    loader.broken.clear()
    camera.use("new", depth_scale=2.0)  # any change allows the next attempt
    camera.offer(OTHER_SIZE)
    loader.finish()
    assert camera.offer(OTHER_SIZE) == "new"
    assert "settings not used" not in status_values(report, camera.pipeline)


def test_frames_of_a_new_size_are_served_with_the_former_settings_if_the_changed_ones_fail():
    camera = Camera(loader := Loader(broken=["new"]))
    camera.offer()
    camera.use("new")
    served = []
    for _ in range(4):
        served.append(camera.offer(OTHER_SIZE))
        loader.finish()
    assert served[-1] == "old"


def test_an_unexpected_error_of_a_build_leaves_the_old_engine(caplog):
    class Exhausted(Loader):
        def __call__(self, engine_settings, camera_size, logger):
            if engine_settings.checkpoint == "new":
                raise MemoryError
            return super().__call__(engine_settings, camera_size, logger)

    camera = Camera(loader := Exhausted())
    camera.offer()
    camera.use("new")
    camera.offer()
    loader.finish()
    assert [camera.offer() for _ in range(3)] == ["old"] * 3
    assert "the changed settings are not used: MemoryError" in caplog.text


def test_a_camera_that_is_stopped_during_the_build_leaves_no_engine():
    camera = Camera(loader := Loader("new"))
    camera.offer()
    camera.use("new")
    camera.offer()
    camera.pipeline = camera.pool = None
    assert loader.alive() == []
    loader.finish("new")
    assert loader.alive() == []


# -------------------------------------------------------------------------------------------- the parameter `checkpoint`


class ActiveNode:
    """An active node in this process, its executor, and a client that sets its parameters."""

    def __init__(self, checkpoint):
        values = {"autostart": False, "checkpoint": str(checkpoint)}
        self.node = DepthNode(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])
        self.node.trigger_configure()
        self.node.trigger_activate()
        self._operator = rclpy.create_node("operator")
        self._client = self._operator.create_client(SetParameters, "depth/set_parameters")
        self.executor = SingleThreadedExecutor()
        for node in (self.node, self._operator):
            self.executor.add_node(node)
        assert self._client.wait_for_service(PATIENCE)

    def request(self, **values):
        """A future of the answer to `ros2 param set`."""
        messages = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return self._client.call_async(SetParameters.Request(parameters=messages))

    def set(self, **values):
        """(accepted, reason)"""
        future = self.request(**values)
        self.executor.spin_until_future_complete(future, PATIENCE)
        (result,) = future.result().results
        return result.successful, result.reason

    def close(self):
        self.executor.shutdown()
        for node in (self.node, self._operator):
            node.destroy_node()


@pytest.fixture
def robot(tmp_path, monkeypatch):
    """An active node with a checkpoint file of its own. Engines are not tried."""
    monkeypatch.setattr("fadepth_core.runtime.engine.DepthEngine.check", lambda *arguments: None)
    robot = ActiveNode(shutil.copy(DEFAULT_CHECKPOINT, tmp_path / "robot.safetensors"))
    yield robot
    robot.close()


def test_a_file_that_was_replaced_is_used_when_the_parameter_is_set_again(robot, tmp_path, monkeypatch):
    changes = []
    monkeypatch.setattr("fadepth_ros.pipeline.EngineLease.change", lambda lease, new: changes.append(new.checkpoint))
    path = tmp_path / "robot.safetensors"
    assert robot.set(checkpoint=str(path)) == (True, "")
    assert changes == [], "the file is the same"
    shutil.copy(DEFAULT_CHECKPOINT, tmp_path / "part")
    (tmp_path / "part").replace(path)
    assert robot.set(depth_scale=2.0) == (True, "")
    assert changes == []
    assert robot.set(checkpoint=str(path)) == (True, "")
    assert changes == [str(path)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("missing", "no such file"),
        ("cut", "not a complete safetensors file"),
        ("foreign", "not a complete safetensors file"),
        ("untrained", "is untrained; deactivate the node to use it nevertheless"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason_and_the_present_one_stays(robot, tmp_path, bad, reason):
    path = tmp_path / f"{bad}.safetensors"
    source = Checkpoint()
    if bad == "cut":
        path.write_bytes(DEFAULT_CHECKPOINT.read_bytes()[:100_000])
    elif bad == "foreign":
        path.write_bytes(b"another network" * 1000)
    elif bad == "untrained":
        save_checkpoint(path, source.weights, replace(source.description, trained=False), source.golden)
    accepted, given = robot.set(checkpoint=str(path))
    assert not accepted
    assert reason in given
    assert path.name in given
    assert robot.node.get_parameter("checkpoint").value == str(tmp_path / "robot.safetensors")
    assert robot.set(backend="torch") == (True, ""), "other settings can change with the present file"


def test_the_node_serves_while_a_value_is_checked(robot, monkeypatch):
    gate, ticks = threading.Event(), []
    monkeypatch.setattr("fadepth_core.runtime.engine.DepthEngine.check", lambda *arguments: gate.wait(PATIENCE))
    robot.node.create_timer(0.01, lambda: ticks.append(1))
    answer = robot.request(checkpoint="smalldepth")
    while robot.node.get_parameter("checkpoint").value != "smalldepth" and len(ticks) < 20:
        robot.executor.spin_once(PATIENCE)
    assert not answer.done()
    assert robot.node.trigger_deactivate()
    gate.set()
    robot.executor.spin_until_future_complete(answer, PATIENCE)
    assert answer.result().results[0].successful
    assert robot.node.get_parameter("checkpoint").value == "smalldepth"
