"""How the node waits for images: without the executor between two of them, and without keeping requests waiting."""

from __future__ import annotations

import itertools
import time

import pytest
import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from cards import PATIENCE, image_message, info_message, noise
from fadepth_ros.image_waiter import ImageWaiter
from fadepth_ros.node import DepthNode
from fadepth_ros.pipeline import Pipeline
from fakes import SECOND, EngineLoader

LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


def wait_until(condition, step=lambda: time.sleep(0.02)):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        step()


def test_the_subscriptions_that_have_an_image_are_returned():
    node = rclpy.create_node("waiting", namespace="/waiter")
    try:
        inputs = [node.create_subscription(Image, name, lambda m: None, 2, raw=True) for name in "abc"]
        waiter = ImageWaiter(node.context, inputs)
        assert waiter.wait(0.01) == []
        publishers = [node.create_publisher(Image, name, 2) for name in "bc"]
        wait_until(lambda: all(publisher.get_subscription_count() for publisher in publishers))
        for publisher in publishers:
            publisher.publish(image_message(noise(), "rgb8", SECOND))
        wait_until(lambda: waiter.wait(1.0) == [1, 2])
        for subscription in inputs:
            subscription.handle.take_message(Image, True)
        assert waiter.wait(0.01) == []
    finally:
        node.destroy_node()


class Setup:
    """A node in this process, its camera, and a listener to its clouds.

    Attributes:
        executor: of the node.
        infos: publisher of camera_info, latched.
        clouds: those that arrived.
    """

    def __init__(self, namespace):
        overrides = [Parameter("autostart", value=False)]
        self.node = DepthNode(EngineLoader(), namespace=namespace, parameter_overrides=overrides)
        self.robot = rclpy.create_node("robot", namespace=namespace)
        self.executor, self._others = SingleThreadedExecutor(), SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self._others.add_node(self.robot)
        self.clouds = []
        self._stamps = itertools.count(SECOND)
        self.robot.create_subscription(PointCloud2, "depth/points", self.clouds.append, 5)
        self._images = self.robot.create_publisher(Image, "image", 5)
        self.infos = self.robot.create_publisher(CameraInfo, "camera_info", LATCHED)

    def activate(self):
        self.node.trigger_configure()
        self.node.trigger_activate()
        wait_until(self._images.get_subscription_count)

    def publish(self):
        self._images.publish(image_message(noise(), "rgb8", next(self._stamps)))

    def step(self):
        """Publish an image and let both nodes run."""
        self.publish()
        self.executor.spin_once(0.02)
        self._others.spin_once(0.0)

    def close(self):
        for executor in (self.executor, self._others):
            executor.shutdown()
        self.node.destroy_node()
        self.robot.destroy_node()


@pytest.fixture
def setup(request):
    made = Setup(f"/{request.node.name}")
    yield made
    made.close()


def test_a_camera_info_that_was_latched_before_the_node_was_activated_is_used_for_all_images(setup):
    setup.infos.publish(info_message())
    setup.activate()
    wait_until(lambda: len(setup.clouds) >= 3, setup.step)


def test_images_are_processed_without_the_executor_between_them(setup, monkeypatch):
    class Enough(Exception):
        pass

    monkeypatch.setattr("fadepth_ros.node.IMAGES_ONLY", PATIENCE)
    setup.activate()
    frames = []
    offer_image = Pipeline.offer_image

    def counted(*arguments):
        offer_image(*arguments)
        frames.append(arguments)
        if len(frames) == 4:
            raise Enough
        setup.publish()

    monkeypatch.setattr(Pipeline, "offer_image", counted)
    setup.publish()

    def step():
        setup.executor.spin_once(0.02)
        assert not frames, "returned to the executor after an image"

    with pytest.raises(Enough):
        wait_until(lambda: False, step)


def test_requests_are_answered_while_images_arrive_without_a_pause(setup, monkeypatch):
    setup.activate()
    client = setup.robot.create_client(GetParameters, "depth/get_parameters")
    assert client.wait_for_service(PATIENCE)
    offer_image = Pipeline.offer_image

    def endless(*arguments):
        offer_image(*arguments)
        setup.publish()

    monkeypatch.setattr(
        Pipeline, "offer_image", endless
    )  # whenever the node has processed an image, the next one is there
    future = client.call_async(GetParameters.Request(names=["max_depth"]))
    setup.publish()
    wait_until(future.done, setup.step)
    assert future.result().values[0].double_value == 100.0


def test_the_executor_is_not_left_out_with_a_simulated_clock(setup, monkeypatch):
    setup.node.set_parameters([Parameter("use_sim_time", value=True)])
    setup.activate()
    monkeypatch.setattr(ImageWaiter, "wait", lambda *arguments: pytest.fail("waited for images only"))
    setup.infos.publish(info_message())
    wait_until(lambda: setup.clouds, setup.step)
