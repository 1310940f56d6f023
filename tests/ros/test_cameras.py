"""Several cameras in one node: each gets its own depth, they share what they can, and none costs another its frames."""

from __future__ import annotations

import functools
import logging
import weakref

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image
from test_pipeline import FlatRoad, Recorder, settings

from cards import SIZE, image_message, info_message, noise, run_node
from fadepth_core.runtime.engine import EngineError
from fadepth_ros import pipeline as pipeline_module
from fadepth_ros.node import DepthNode
from fadepth_ros.pipeline import DEPTH, INFO, Engines, Pipeline, load_engine, offer_images

SECOND = 10**9
OTHER_SIZE = (90, 200)


compiled = functools.cache(load_engine)  # once for all tests


class Batching:
    """The real engine, in the dress of one whose backend batches; tells what it was asked."""

    batches = True

    def __init__(self, *arguments, load=compiled):
        self._engine = load(*arguments)
        self.asked: list = []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def infer(self, *arguments, **options):
        self.asked.append("infer")
        return self._engine.infer(*arguments, **options)

    def infer_batch(self, requests):
        self.asked.append(len(requests))
        return self._engine.infer_batch(requests)


class Rig:
    """Cameras that share their engines, without ROS around them."""

    def __init__(self, *names, loader=Batching, keep=True, **changes):
        self.made: list = []  # engines, in their order, where they are to be kept
        engines = Engines(
            (lambda *arguments: self.made.append(loader(*arguments)) or self.made[-1]) if keep else loader
        )
        self.outputs = {name: Recorder(DEPTH) for name in names}
        self.pipelines = {
            name: Pipeline(settings(**changes), self.outputs[name], logging.getLogger("test"), name, name, engines)
            for name in names
        }
        self._second = 0

    def offer(self, sizes=None, **raw):
        """A frame for each camera at once; `raw` replaces one's message."""
        self._second += 1
        images = []
        for index, (name, pipeline) in enumerate(self.pipelines.items()):
            pixels = noise((sizes or {}).get(name, SIZE), seed=index)
            message = serialize_message(image_message(pixels, "rgb8", self._second * SECOND, frame_id=name))
            images.append((pipeline, raw.get(name, message), 0))
        offer_images(images)

    def depth(self, name):
        message = deserialize_message(self.outputs[name].last[DEPTH], Image)
        return np.frombuffer(message.data, np.float32).reshape(message.height, message.width)

    def dropped(self, name):
        return self.pipelines[name].statistics.report().dropped


@pytest.fixture
def rig():
    return Rig("front", "rear")


@pytest.mark.parametrize("backend", ["openvino", "torch"])  # torch's really batches
def test_cameras_of_one_size_share_one_engine_and_one_batch(backend):
    rig = Rig("front", "rear", backend=backend, cameras=["front", "rear"])
    rig.offer()
    assert [engine.asked for engine in rig.made] == [[2]]
    assert rig.pipelines["front"].batches_with(rig.pipelines["rear"])
    together = {name: rig.depth(name) for name in rig.outputs}
    for name in rig.outputs:  # what each gets by itself
        alone = Rig(*rig.outputs)
        alone.offer(**{other: b"" for other in rig.outputs if other != name})
        np.testing.assert_allclose(together[name], alone.depth(name), rtol=1e-5)
    assert not np.array_equal(*together.values())


def test_cameras_of_different_sizes_have_an_engine_each(rig):
    rig.offer(sizes={"rear": OTHER_SIZE})
    assert [engine.asked for engine in rig.made] == [["infer"], ["infer"]]
    assert not rig.pipelines["front"].batches_with(rig.pipelines["rear"])
    assert rig.depth("front").shape != rig.depth("rear").shape


def test_an_engine_is_kept_while_one_camera_uses_it(rig):
    rig.offer()
    rig.offer(sizes={"rear": OTHER_SIZE})  # rear leaves the engine to front
    rig.offer()  # and comes back to it; its own of the other size is gone
    rig.offer(sizes={"rear": OTHER_SIZE})
    assert len(rig.made) == 3
    assert rig.made[0].asked == [2, "infer", 2, "infer"]


def test_other_engine_settings_free_the_old_engine_before_the_new_one_is_made():
    alive = []

    class Counted(Batching):
        def __init__(self, *arguments):
            alive.append(weakref.ref(self))
            assert sum(engine() is not None for engine in alive) == 1
            super().__init__(*arguments)

    rig = Rig("front", "rear", loader=Counted, keep=False)
    rig.offer()
    for pipeline in rig.pipelines.values():
        pipeline.configure(settings(full_resolution=True))
    rig.offer()
    assert len(alive) == 2
    assert rig.depth("front").shape == rig.depth("rear").shape == SIZE


def test_without_a_batching_backend_a_frame_is_out_before_the_next_is_begun():
    events = []

    class OneByOne(Batching):
        batches = False

        def infer(self, *arguments, **options):
            events.append("infer")
            return super().infer(*arguments, **options)

    rig = Rig("front", "rear", loader=OneByOne)
    for name, outputs in rig.outputs.items():
        outputs.publish = lambda output, message, name=name: events.append(name)
    rig.offer()
    assert events == ["infer", "front", "infer", "rear"]
    assert len(rig.made) == 1


@pytest.mark.parametrize("bad", [b"\0\1\0\0garbage", serialize_message(image_message(noise((5, 5)), "rgb8", SECOND))])
def test_a_bad_image_costs_no_other_camera_its_frame(rig, bad):
    rig.offer(front=bad)
    assert rig.outputs["front"].published == []
    assert rig.outputs["rear"].published == [DEPTH]
    assert sum(rig.dropped("front").values()) == 1
    assert rig.dropped("rear") == {}


def test_a_batch_that_cannot_be_run_is_run_one_by_one(caplog):
    class Picky(Batching):
        def infer_batch(self, requests):
            raise ZeroDivisionError("a bug")

        def infer(self, *arguments, **options):
            super().infer(*arguments, **options)
            if len(self.asked) == 1:
                raise ZeroDivisionError("a bug")
            return super().infer(*arguments, **options)

    rig = Rig("front", "rear", loader=Picky)
    rig.offer()
    assert "a batch failed, its frames are run one by one: a bug" in caplog.text
    reports = [pipeline.statistics.report() for pipeline in rig.pipelines.values()]
    assert [report.dropped for report in reports] == [{"internal": 1}, {}]
    assert [report.published for report in reports] == [{}, {DEPTH: 1}]
    assert [report.problems["batch"] for report in reports] == [1, 1]


def test_what_one_camera_cannot_publish_another_can(rig):
    def publish(output, message):
        raise RuntimeError("no such publisher")

    rig.outputs["front"].publish = publish
    rig.offer()
    assert rig.dropped("front") == {"internal": 1}
    assert rig.outputs["rear"].published == [DEPTH]


@pytest.mark.parametrize("when", ["at start", "while running"])
def test_an_engine_that_fails_is_made_anew_once_for_all(monkeypatch, caplog, when):
    attempts = []

    class Failing(Batching):
        def __init__(self, *arguments):
            attempts.append(1)
            if when == "at start" and len(attempts) == 1:
                raise EngineError("no backend can run it")
            super().__init__(*arguments)

        def infer_batch(self, requests):
            if when == "while running" and len(attempts) == 1:
                raise EngineError("no backend can run it")
            return super().infer_batch(requests)

    monkeypatch.setattr(pipeline_module, "RETRY_PERIOD", 1000.0)
    rig = Rig("front", "rear", loader=Failing)
    rig.offer()
    rig.offer()
    assert len(attempts) == 1, "nobody tries before it is time"
    for name, pipeline in rig.pipelines.items():
        report = pipeline.statistics.report()
        assert report.dropped == {"engine": 2}
        assert pipeline.engine_description == "no engine"
        assert f"{name}: no depth: no backend can run it; next attempt in" in caplog.text
    rig.pipelines["front"].configure(settings())  # a new value may be what was missing
    rig.offer()
    assert len(attempts) == 2
    assert [outputs.published for outputs in rig.outputs.values()] == [[DEPTH], [DEPTH]]


def test_an_engine_of_one_size_that_fails_leaves_the_others(monkeypatch):
    monkeypatch.setattr(pipeline_module, "RETRY_PERIOD", 1000.0)

    class OnlyOneSize(Batching):
        def __init__(self, engine_settings, camera_size, logger):
            if camera_size == OTHER_SIZE:
                raise EngineError("too large for the device")
            super().__init__(engine_settings, camera_size, logger)

    rig = Rig("front", "rear", "left", loader=OnlyOneSize)
    for _ in range(2):
        rig.offer(sizes={"front": OTHER_SIZE})
    assert rig.dropped("front") == {"engine": 2}
    assert rig.outputs["rear"].published == rig.outputs["left"].published == [DEPTH, DEPTH]


def test_a_fallback_is_told_of_on_every_camera():
    rig = Rig("front", "rear", loader=functools.partial(Batching, load=load_engine))
    rig.offer()
    (engine,) = rig.made
    engine._engine._fall_back(RuntimeError("device lost"))
    rig.offer()
    for pipeline in rig.pipelines.values():
        assert pipeline.engine_description.startswith("torch")
        assert pipeline.degraded


def test_every_camera_finds_its_own_ground(monkeypatch):
    """Two cameras at one height over one road, whose networks' scales differ."""
    monkeypatch.setattr(pipeline_module, "GROUND_PERIOD", 0.0)

    class Roads(FlatRoad):
        batches = True

        def infer_batch(self, requests):
            factors = (1.0, 2.0)
            return [
                self.infer(r.image, r.intrinsics, points=r.points, scale=factor * r.scale, limits=r.limits)
                for r, factor in zip(requests, factors, strict=True)
            ]

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
    """Cameras and listeners around a node with `cameras`."""

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

    def show(self, name, message, info):
        self._infos[name].publish(info)
        self._images[name].publish(message)

    def value(self, name, key):
        status = self.statuses.get(f"{self._node.get_namespace()}/depth: {name}/depth")
        return None if status is None else {v.key: v.value for v in status.values}.get(key)


def test_each_camera_gets_its_own_depth_through_one_engine(start_robot):
    robot = start_robot("-p", "cameras:=[front, side/left, broken]")
    cameras = Cameras(robot, "front", "side/left", "broken")
    focals = {"front": 140.0, "side/left": 90.0}
    seconds = iter(range(1, 10_000))

    def answered():
        stamp = next(seconds) * SECOND
        cameras.show("broken", image_message(noise(), "rgb9", stamp), info_message())
        for seed, (name, focal) in enumerate(focals.items()):
            pixels = noise(seed=seed)
            cameras.show(name, image_message(pixels, "rgb8", stamp, name), info_message(SIZE, name, focal))
        return (
            all(cameras.received[name, output] for name in focals for output in (DEPTH, INFO))
            and cameras.value("broken", "dropped: encoding")
            and all(cameras.value(name, "engine") not in (None, "no engine yet") for name in focals)
        )

    robot.wait_for(answered, 40)
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
    robot.camera_is_heard()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[front, rear, front]", "parameter cameras: 'front' is there twice"),
        ("['front camera']", "parameter cameras: 'front camera' is not a relative ROS name"),
        ("[/front]", "parameter cameras: '/front' is not a relative ROS name"),
        ("[front/]", "parameter cameras: 'front/' is not a relative ROS name"),
        ("[front, '']", "parameter cameras: '' is not a relative ROS name"),
        ("['2nd']", "parameter cameras: '2nd' is not a relative ROS name"),
        ("front", "'cameras'"),
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
    made = DepthNode(
        namespace="/several",
        parameter_overrides=[Parameter("autostart", value=False), Parameter("cameras", value=["front", "rear"])],
    )
    yield made
    made.destroy_node()


def topics(node):
    return {topic for topic, _ in node.get_publisher_names_and_types_by_node("depth", "/several")}


def test_cameras_change_while_the_node_is_inactive(node):
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
    rig_engines = []
    node = DepthNode(
        lambda *arguments: rig_engines.append(Batching(*arguments)) or rig_engines[-1],
        namespace="/together",
        parameter_overrides=[Parameter("cameras", value=["front", "rear"])],
    )
    robot = rclpy.create_node("cameras", namespace="/together")
    executor = rclpy.executors.SingleThreadedExecutor()
    executor.add_node(node)
    try:
        node.autostart()
        images = [robot.create_publisher(Image, f"{name}/image", 5) for name in ("front", "rear")]
        answers = []
        for name in ("front", "rear"):
            robot.create_subscription(Image, f"{name}/depth/image", answers.append, 5)
        for second in range(1, 200):
            for image in images:
                image.publish(image_message(noise(), "rgb8", second * SECOND))
            for _ in range(5):
                executor.spin_once(0.02)
            rclpy.spin_once(robot, timeout_sec=0.01)
            if answers and 2 in rig_engines[0].asked:
                break
        (engine,) = rig_engines
        assert 2 in engine.asked
    finally:
        executor.shutdown()
        node.destroy_node()
        robot.destroy_node()
