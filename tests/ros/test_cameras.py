"""Several cameras in one node: each gets its own depth, they share engines, and an error of one does not affect the others."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import replace

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image

from cards import PATIENCE, SIZE, image_message, info_message, noise, run_node
from fadepth_core.runtime.engine import EngineError
from fadepth_ros import ground_correction
from fadepth_ros.engine_pool import load_engine
from fadepth_ros.node import DepthNode
from fadepth_ros.pipeline import DEPTH, INFO, Pipeline, offer_images
from fakes import SECOND, EngineLoader, FakeEngine, FlatRoad, RecordedOutputs, patient_pool, settings

OTHER_SIZE = (90, 200)


class BatchingEngine(FakeEngine):
    batches = True


class RealBatchingEngine:
    """The real engine; batches with any backend. Records the number of frames of each call."""

    batches = True

    def __init__(self, *arguments):
        self._engine = load_engine(*arguments)
        self.calls = []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def infer(self, request):
        self.calls.append(1)
        return self._engine.infer(request)

    def infer_batch(self, requests):
        self.calls.append(len(requests))
        return self._engine.infer_batch(requests)


class Rig:
    """Pipelines of several cameras with one pool of engines, without ROS."""

    def __init__(self, *names, loader, **changes):
        self.outputs = {name: RecordedOutputs(DEPTH) for name in names}
        pool = patient_pool(loader)
        self.pipelines = {
            name: Pipeline(settings(**changes), self.outputs[name], logging.getLogger("test"), name, name, pool)
            for name in names
        }
        self._second = 0

    def offer(self, sizes=None, **raw):
        """A frame of each camera at once; `raw` replaces the message of one."""
        self._second += 1
        images = []
        for index, (name, pipeline) in enumerate(self.pipelines.items()):
            pixels = noise((sizes or {}).get(name, SIZE), seed=index)
            message = serialize_message(image_message(pixels, "rgb8", self._second * SECOND, frame_id=name))
            images.append((pipeline, raw.get(name, message), 0))
        offer_images(images)

    def depth(self, name):
        return self.outputs[name].depth

    def dropped(self, name):
        return self.pipelines[name].statistics.report().dropped


@pytest.fixture
def loader():
    return EngineLoader(BatchingEngine)


@pytest.fixture
def rig(loader):
    return Rig("front", "rear", loader=loader)


@pytest.mark.parametrize("backend", ["openvino", "torch"])  # only torch's really batches
def test_cameras_of_one_size_share_one_engine_and_one_batch(backend):
    loader = EngineLoader(RealBatchingEngine)
    rig = Rig("front", "rear", loader=loader, backend=backend, cameras=["front", "rear"])
    rig.offer()
    assert [engine.calls for engine in loader.engines] == [[2]]
    assert rig.pipelines["front"].batches_with(rig.pipelines["rear"])
    together = {name: rig.depth(name) for name in rig.outputs}
    assert not np.array_equal(*together.values())
    for name in rig.outputs:
        rig.offer(**{other: b"" for other in rig.outputs if other != name})
        np.testing.assert_allclose(together[name], rig.depth(name), rtol=1e-5)
    assert [engine.calls for engine in loader.engines] == [[2, 1, 1]]


def test_cameras_of_different_sizes_have_an_engine_each(rig, loader):
    rig.offer(sizes={"rear": OTHER_SIZE})
    assert [engine.calls for engine in loader.engines] == [[1], [1]]
    assert not rig.pipelines["front"].batches_with(rig.pipelines["rear"])
    assert rig.depth("front").shape != rig.depth("rear").shape


def test_an_engine_is_kept_while_one_camera_uses_it(rig, loader):
    rig.offer()
    rig.offer(sizes={"rear": OTHER_SIZE})  # only front still uses the first engine
    rig.offer()  # rear uses it again; its own of the other size is kept for a while
    rig.offer(sizes={"rear": OTHER_SIZE})
    assert [engine.calls for engine in loader.engines] == [[2, 1, 2, 1], [1, 1]]


def test_without_batches_a_frame_is_published_before_the_next_is_inferred():
    events = []

    class OneByOne(FakeEngine):
        def infer(self, request):
            events.append("infer")
            return super().infer(request)

    loader = EngineLoader(OneByOne)
    rig = Rig("front", "rear", loader=loader)
    for name, outputs in rig.outputs.items():
        outputs.publish = lambda output, message, name=name: events.append(name)
    rig.offer()
    assert events == ["infer", "front", "infer", "rear"]
    assert len(loader.engines) == 1


@pytest.mark.parametrize(
    "bad",
    [b"\0\1\0\0garbage", serialize_message(image_message(noise((5, 5)), "rgb8", SECOND))],
    ids=["malformed", "too small"],
)
def test_a_bad_image_drops_no_frame_of_another_camera(rig, bad):
    rig.offer(front=bad)
    assert rig.outputs["front"].published == []
    assert rig.outputs["rear"].published == [DEPTH]
    assert sum(rig.dropped("front").values()) == 1
    assert rig.dropped("rear") == {}


def test_the_frames_of_a_failed_batch_are_run_one_by_one(caplog):
    class FirstFrameFails(BatchingEngine):
        def infer_batch(self, requests):
            raise ZeroDivisionError("a bug")

        def infer(self, request):
            result = super().infer(request)
            if len(self.calls) == 1:
                raise ZeroDivisionError("a bug")
            return result

    rig = Rig("front", "rear", loader=FirstFrameFails)
    rig.offer()
    assert "a batch failed, its frames are run one by one: a bug" in caplog.text
    reports = [pipeline.statistics.report() for pipeline in rig.pipelines.values()]
    assert [report.dropped for report in reports] == [{"internal": 1}, {}]
    assert [report.published for report in reports] == [{}, {DEPTH: 1}]
    assert [report.problems["batch"] for report in reports] == [1, 1]


def test_an_error_while_publishing_drops_the_frame_of_one_camera_only(rig):
    def publish(output, message):
        raise RuntimeError("no such publisher")

    rig.outputs["front"].publish = publish
    rig.offer()
    assert rig.dropped("front") == {"internal": 1}
    assert rig.outputs["rear"].published == [DEPTH]


@pytest.mark.parametrize("when", ["at start", "while running"])
def test_an_engine_that_fails_is_built_again_once_for_all_cameras(caplog, when):
    attempts = []

    class Failing(BatchingEngine):
        def __init__(self, *arguments):
            attempts.append(1)
            if when == "at start" and len(attempts) == 1:
                raise EngineError("no backend can run it")
            super().__init__(*arguments)

        def infer_batch(self, requests):
            if when == "while running" and len(attempts) == 1:
                raise EngineError("no backend can run it")
            return super().infer_batch(requests)

    rig = Rig("front", "rear", loader=Failing)
    rig.offer()
    rig.offer()
    assert len(attempts) == 1, "no attempt before the retry period has passed"
    for name, pipeline in rig.pipelines.items():
        assert pipeline.statistics.report().dropped == {"engine": 2}
        assert pipeline.engine.status.description == "no engine"
        assert f"{name}: no depth: no backend can run it; next attempt in" in caplog.text
    rig.pipelines["front"].configure(settings())  # any parameter change allows the next attempt
    rig.offer()
    assert len(attempts) == 2
    assert [outputs.published for outputs in rig.outputs.values()] == [[DEPTH], [DEPTH]]


def test_an_engine_that_fails_for_one_size_does_not_affect_others():
    class OneSizeOnly(BatchingEngine):
        def __init__(self, engine_settings, camera_size, logger):
            if camera_size == OTHER_SIZE:
                raise EngineError("too large for the device")
            super().__init__(engine_settings, camera_size, logger)

    rig = Rig("front", "rear", "left", loader=OneSizeOnly)
    for _ in range(2):
        rig.offer(sizes={"front": OTHER_SIZE})
    assert rig.dropped("front") == {"engine": 2}
    assert rig.outputs["rear"].published == rig.outputs["left"].published == [DEPTH, DEPTH]


def test_every_camera_reports_a_fallback(rig, loader):
    rig.offer()
    (engine,) = loader.engines
    engine.description, engine.degraded, engine.failures = "torch fp32 on CPU", True, ["openvino: device lost"]
    rig.offer()
    for pipeline in rig.pipelines.values():
        status = pipeline.engine.status
        assert (status.description, status.degraded) == ("torch fp32 on CPU", True)
        assert status.failures == ("openvino: device lost",)


def test_every_camera_has_its_own_ground_scale(monkeypatch):
    """Two cameras at the same height above one road, whose depth differs in scale."""
    monkeypatch.setattr(ground_correction, "GROUND_PERIOD", 0.0)

    class Roads(FlatRoad):
        batches = True

        def infer_batch(self, requests):
            return super().infer_batch(
                [
                    replace(request, scale=factor * request.scale)
                    for request, factor in zip(requests, (1, 2), strict=True)
                ]
            )

    rig = Rig("front", "rear", loader=Roads, camera_height=1.5)
    for name, pipeline in rig.pipelines.items():
        pipeline.offer_camera_info(serialize_message(info_message(frame_id=name)))
    rig.offer()
    rig.offer()
    factors = {name: pipeline.ground.factor for name, pipeline in rig.pipelines.items()}
    assert factors == pytest.approx({"front": 1.5, "rear": 0.75}, rel=0.01)
    np.testing.assert_allclose(rig.depth("front"), rig.depth("rear"), rtol=0.01)


# ------------------------------------------------------------------------------------------------- through real topics


class Cameras:
    """Publishers of several cameras, and subscribers of their depth, around a node with the parameter `cameras`."""

    def __init__(self, robot, *names):
        self.robot, self._node = robot, robot.node
        self.received = {(name, output): [] for name in names for output in (DEPTH, INFO)}
        self._images, self._infos = {}, {}
        for name in names:
            self._images[name] = self._node.create_publisher(Image, f"{name}/image", qos_profile_sensor_data)
            self._infos[name] = self._node.create_publisher(CameraInfo, f"{name}/camera_info", qos_profile_sensor_data)
            for output, kind in ((DEPTH, Image), (INFO, CameraInfo)):
                self._node.create_subscription(
                    kind, f"{name}/{output}", self.received[name, output].append, QoSProfile(depth=10)
                )
        self.statuses = {}
        self._node.create_subscription(
            DiagnosticArray, "/diagnostics", lambda m: self.statuses.update({s.name: s for s in m.status}), 10
        )
        publishers = (*self._images.values(), *self._infos.values())
        robot.wait_for(lambda: all(publisher.get_subscription_count() for publisher in publishers))

    def publish(self, name, message, info):
        self._infos[name].publish(info)
        self._images[name].publish(message)

    def value(self, name, key):
        status = self.statuses.get(f"{self._node.get_namespace()}/depth: {name}/depth")
        return None if status is None else {v.key: v.value for v in status.values}.get(key)


def test_each_camera_gets_its_own_depth_through_one_engine(start_robot):
    robot = start_robot("-p", "cameras:=[front, side/left, broken]")
    cameras = Cameras(robot, "front", "side/left", "broken")
    focals = {"front": 140.0, "side/left": 90.0}
    stamps = itertools.count(SECOND, SECOND)

    def answered():
        stamp = next(stamps)
        cameras.publish("broken", image_message(noise(), "rgb9", stamp), info_message())
        for seed, (name, focal) in enumerate(focals.items()):
            pixels = noise(seed=seed)
            cameras.publish(name, image_message(pixels, "rgb8", stamp, name), info_message(SIZE, name, focal))
        return (
            all(cameras.received[name, output] for name in focals for output in (DEPTH, INFO))
            and cameras.value("broken", "dropped: encoding")
            and all(cameras.value(name, "engine") not in (None, "no engine yet") for name in focals)
        )

    robot.wait_for(answered)
    for name, focal in focals.items():
        depth, info = cameras.received[name, DEPTH][-1], cameras.received[name, INFO][-1]
        assert depth.header.frame_id == info.header.frame_id == name
        assert info.k[0] == pytest.approx(focal * info.width / SIZE[1])
        assert cameras.value(name, "dropped: encoding") is None
    assert cameras.received["front", DEPTH][-1].data != cameras.received["side/left", DEPTH][-1].data
    assert not cameras.received["broken", DEPTH]
    assert robot.process.log.count("depth runs on") == 1
    assert f"{robot.node.get_namespace()}/broken/image: unknown encoding 'rgb9'" in robot.process.log
    assert not robot.node.get_subscriptions_info_by_topic(robot.node.resolve_topic_name("image"))


def test_an_empty_list_of_cameras_in_a_file_is_one_camera_without_namespace(start_robot, tmp_path):
    parameters = tmp_path / "depth.yaml"
    parameters.write_text("/**:\n  ros__parameters:\n    cameras: []\n")
    robot = start_robot("--params-file", str(parameters))
    robot.subscribe("depth/image")
    robot.wait_for_node()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[front, rear, front]", "parameter cameras: 'front' is listed twice"),
        ("[1, 2]", "'cameras'"),
    ],
)
def test_bad_lists_of_cameras_end_the_node_with_the_reason(value, reason):
    status, error = run_node("-p", f"cameras:={value}")
    assert status == 1
    assert reason in error
    assert "Traceback" not in error


@pytest.fixture
def node():
    node = DepthNode(
        namespace="/several",
        parameter_overrides=[Parameter("autostart", value=False), Parameter("cameras", value=["front", "rear"])],
    )
    yield node
    node.destroy_node()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["front", "rear", "front"], "'front' is listed twice"),
        (["front camera"], "'front camera' is not a relative ROS name"),
        (["/front"], "'/front' is not a relative ROS name"),
        (["front/"], "'front/' is not a relative ROS name"),
        (["front", ""], "'' is not a relative ROS name"),
        (["2nd"], "'2nd' is not a relative ROS name"),
    ],
)
def test_bad_lists_of_cameras_are_refused_with_the_reason(node, names, reason):
    result = node.set_parameters([Parameter("cameras", value=names)])[0]
    assert not result.successful
    assert result.reason.startswith(f"cameras: {reason}")


def topics(node):
    return {topic for topic, _ in node.get_publisher_names_and_types_by_node("depth", "/several")}


def test_cameras_may_change_while_the_node_is_inactive(node):
    done = TransitionCallbackReturn.SUCCESS
    assert node.trigger_configure() == done
    assert node.trigger_activate() == done
    assert topics(node) >= {"/several/front/depth/image", "/several/rear/depth/points"}
    other = [Parameter("cameras", value=["rear", "roof"])]
    refused = node.set_parameters(other)[0]
    assert not refused.successful
    assert "cameras cannot change while the node is active" in refused.reason
    assert node.trigger_deactivate() == done
    assert node.set_parameters(other)[0].successful
    assert node.trigger_activate() == done
    assert topics(node) >= {"/several/rear/depth/image", "/several/roof/depth/image"}
    assert "/several/front/depth/image" not in topics(node)
    assert node.trigger_deactivate() == done
    assert node.trigger_cleanup() == done
    assert "/several/roof/depth/image" not in topics(node)


def test_frames_that_wait_in_the_middleware_together_are_one_batch():
    loader = EngineLoader(BatchingEngine)
    node = DepthNode(loader, namespace="/together", parameter_overrides=[Parameter("cameras", value=["front", "rear"])])
    robot = rclpy.create_node("cameras", namespace="/together")
    executor = rclpy.executors.SingleThreadedExecutor()
    executor.add_node(node)
    try:
        node.autostart()
        images = [robot.create_publisher(Image, f"{name}/image", 5) for name in ("front", "rear")]
        for name in ("front", "rear"):
            robot.create_subscription(Image, f"{name}/depth/image", lambda message: None, 5)
        stamps = itertools.count(SECOND, SECOND)
        end = time.monotonic() + PATIENCE
        # The engine is built with the first frame, so a batch takes a few rounds.
        while not any(2 in engine.calls for engine in loader.engines):
            assert time.monotonic() < end, f"no batch; calls: {[engine.calls for engine in loader.engines]}"
            stamp = next(stamps)
            for image in images:
                image.publish(image_message(noise(), "rgb8", stamp))
            for _ in range(5):
                executor.spin_once(0.02)
        assert len(loader.engines) == 1
    finally:
        executor.shutdown()
        node.destroy_node()
        robot.destroy_node()
