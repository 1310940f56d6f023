"""The node through real topics: geometry, stamps, sizes and conventions of its outputs, and its parameters."""

from __future__ import annotations

import itertools
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from cards import FRAME_ID, PATIENCE, SIZE, image_message, info_message, noise, run_node
from fadepth_core.common.framing import Framing
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_ros.clip_publisher import DEMO_CLIP, read_camera_info, read_frames
from fadepth_ros.parameters import SPECS

SECOND = 10**9
ALL = ("depth/image", "depth/camera_info", "depth/points", "depth/color")
SHIPPED_PARAMETERS = Path(__file__).resolve().parents[2] / "config" / "depth.yaml"


def stamp_of(message) -> int:
    return message.header.stamp.sec * SECOND + message.header.stamp.nanosec


def depth_of(message) -> np.ndarray:
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width)


def points_of(message) -> np.ndarray:
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width, -1)


def set_parameter(robot, name, value):
    """`ros2 param set`; (accepted, reason)."""
    client = robot.node.create_client(SetParameters, "depth/set_parameters")
    assert client.wait_for_service(PATIENCE)
    future = client.call_async(SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()]))
    robot.wait_for(future.done)
    robot.node.destroy_client(client)
    result = future.result().results[0]
    return result.successful, result.reason


def show(robot, stamp_ns, pixels=None, encoding="rgb8", outputs=ALL):
    """Publish a frame until all `outputs` with its stamp have arrived; the messages by output.

    Several times, since the first may be lost while connections form.
    """
    pixels = noise() if pixels is None else pixels
    tries = 0

    def answered():
        nonlocal tries
        if tries % 20 == 0:
            robot.publish_image(image_message(pixels, encoding, stamp_ns))
        tries += 1
        return all(any(stamp_of(m) == stamp_ns for m in robot.received[name]) for name in outputs)

    robot.wait_for(answered)
    return {name: next(m for m in robot.received[name] if stamp_of(m) == stamp_ns) for name in outputs}


def show_until(robot, stamp_ns, accepted):
    """Publish frames until `accepted` holds for the outputs of one: the former engine serves until the new one is ready."""
    while not accepted(answer := show(robot, stamp_ns)):
        stamp_ns += SECOND // 1000
    return answer


@pytest.fixture(scope="module")
def clip_robot(start_robot, tmp_path_factory):
    """A node that got twelve frames of the demo clip, one after the other, and its outputs for each.

    It has the shipped parameter file, and cannot import torch.
    """
    no_torch = tmp_path_factory.mktemp("no_torch")
    (no_torch / "torch.py").write_text("raise ImportError('this robot has no torch')\n")
    info, _ = read_camera_info(DEMO_CLIP)
    info.header.frame_id = FRAME_ID
    frames = list(islice(read_frames(DEMO_CLIP), 12))
    # Limits for which some depth is too near and some too far with any checkpoint.
    request = FrameRequest(frames[0], info.k.reshape(3, 3))
    depth = DepthEngine.load(camera_size=frames[0].shape[:2]).infer(request).depth
    near, far = (round(float(limit), 3) for limit in np.quantile(depth, (0.2, 0.8)))
    robot = start_robot(
        "--params-file", str(SHIPPED_PARAMETERS), "-p", f"min_depth:={near}", "-p", f"max_depth:={far}",
        environment={"PYTHONPATH": str(no_torch)},
    )  # fmt: skip
    robot.limits = near, far
    robot.subscribe(*ALL)
    robot.wait_for_node()
    robot.info = info
    answers = [show(robot, (100 + i) * SECOND + 7, frame) for i, frame in enumerate(frames)]
    return robot, frames, info, answers


def test_every_output_has_the_header_of_its_image(clip_robot):
    for index, answer in enumerate(clip_robot[3]):
        for message in answer.values():
            assert stamp_of(message) == (100 + index) * SECOND + 7
            assert message.header.frame_id == FRAME_ID


def test_sizes_and_encodings(clip_robot):
    answer = clip_robot[3][-1]
    depth, info, points, color = (answer[name] for name in ALL)
    assert (depth.height, depth.width) == (128, 416)
    assert (depth.encoding, depth.step, depth.is_bigendian, len(depth.data)) == ("32FC1", 4 * 416, 0, 4 * 416 * 128)
    assert (info.height, info.width) == (128, 416)
    assert (points.height, points.width, points.point_step, points.row_step) == (128, 416, 16, 16 * 416)
    assert not points.is_dense
    assert (color.encoding, color.height, color.width) == ("rgb8", 128, 416)


def test_camera_info_is_that_of_the_depth_image(clip_robot):
    _, _, source, answers = clip_robot
    info = answers[-1]["depth/camera_info"]
    framing = Framing.plan((192, 640))
    np.testing.assert_allclose(info.k.reshape(3, 3), framing.output_intrinsics(source.k.reshape(3, 3)))
    np.testing.assert_allclose(info.p.reshape(3, 4), framing.output_intrinsics(source.p.reshape(3, 4)))


def test_points_are_the_unprojected_depth_image(clip_robot):
    answer = clip_robot[3][-1]
    depth, xyz = depth_of(answer["depth/image"]), points_of(answer["depth/points"])[..., :3]
    k = answer["depth/camera_info"].k.reshape(3, 3)
    v, u = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]]
    finite = np.isfinite(depth)
    assert 0.05 < finite.mean() < 0.95, "the limits leave finite and infinite depth"
    expected = np.stack([(u - k[0, 2]) / k[0, 0] * depth, (v - k[1, 2]) / k[1, 1] * depth, depth], -1)
    np.testing.assert_allclose(xyz[finite], expected[finite], rtol=1e-4, atol=1e-5)
    assert np.isnan(xyz[~finite]).all()


def test_out_of_range_follows_rep_117(clip_robot):
    depth = np.stack([depth_of(answer["depth/image"]) for answer in clip_robot[3]])
    assert np.isneginf(depth).any()
    assert np.isposinf(depth).any()
    assert not np.isnan(depth).any()
    finite = depth[np.isfinite(depth)]
    near, far = np.float32(clip_robot[0].limits)
    assert near <= finite.min() <= finite.max() <= far


def test_points_have_the_colours_of_the_camera(clip_robot):
    _, frames, _, answers = clip_robot
    packed = points_of(answers[-1]["depth/points"])[..., 3].copy().view(np.uint32)
    rgb = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], -1)
    np.testing.assert_array_equal(rgb, Framing.plan((192, 640)).to_network(frames[-1]))


def test_depth_changes_with_the_frame(clip_robot):
    first, last = (depth_of(clip_robot[3][i]["depth/image"]) for i in (0, -1))
    assert not np.array_equal(first, last)


def test_runs_where_torch_cannot_be_imported(clip_robot):
    robot = clip_robot[0]
    assert "this robot has no torch" not in robot.process.log
    robot.wait_for(lambda: robot.diagnostics.get("engine", "").startswith("openvino"))


def flatten(values, prefix=""):
    """Names and values of nested parameters."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_the_shipped_parameter_file_holds_the_defaults(clip_robot):
    """And the node of `clip_robot` takes it."""
    values = yaml.safe_load(SHIPPED_PARAMETERS.read_text())["/**"]["ros__parameters"]
    assert dict(flatten(values)) == {spec.name: spec.default for spec in SPECS}


def assert_checkpoint_is_reported(robot, name, licence):
    robot.wait_for(lambda: robot.diagnostics.get("checkpoint"))  # the first status may be older than the engine
    assert robot.diagnostics["checkpoint"] == name
    assert robot.process.log.count(f"licence of the network's weights: {licence}") == 1


def test_the_checkpoint_and_its_licence_are_reported(clip_robot):
    robot, shipped = clip_robot[0], Checkpoint()
    assert_checkpoint_is_reported(robot, shipped.path.name, shipped.description.provenance["licence"])
    assert "UNTRAINED" not in robot.process.log


def test_an_untrained_checkpoint_is_reported(start_robot, tmp_path):
    shipped = Checkpoint()
    path = tmp_path / "net.safetensors"
    description = replace(shipped.description, trained=False, provenance={"licence": "CC BY-NC-SA 3.0"})
    export_checkpoint(load_network(shipped), description, path)
    robot = start_robot("-p", f"checkpoint:={path}")
    robot.subscribe("depth/image")
    robot.wait_for_node()
    robot.info = info_message()
    show(robot, SECOND, outputs=("depth/image",))
    assert_checkpoint_is_reported(robot, "net.safetensors (untrained)", "CC BY-NC-SA 3.0")
    assert "UNTRAINED" in robot.process.log


@pytest.fixture(scope="module")
def robot(start_robot):
    """A node whose parameters tests change; each test sets them back."""
    robot = start_robot()
    robot.subscribe(*ALL)
    robot.wait_for_node()
    robot.info = info_message()
    show(robot, SECOND)
    return robot


def test_parameters_change_outputs_while_running(robot):
    changes = {"depth_encoding": "16UC1", "points.fields": "xyz", "points.stride": 2, "depth_scale": 2.0}
    before = show(robot, 10 * SECOND)
    for name, value in changes.items():
        assert set_parameter(robot, name, value) == (True, "")
    after = show(robot, 11 * SECOND)
    depth = after["depth/image"]
    assert (depth.encoding, depth.step) == ("16UC1", 2 * depth.width)
    doubled = np.clip(2 * depth_of(before["depth/image"]), 0, 65.535)
    millimetres = np.frombuffer(depth.data, np.uint16).reshape(doubled.shape)
    inside = np.isfinite(doubled) & (doubled < 65)
    np.testing.assert_allclose(millimetres[inside], 1000 * doubled[inside], atol=1.0, rtol=1e-4)
    points = after["depth/points"]
    assert points.point_step == 12
    assert (points.height, points.width) == (-(-depth.height // 2), -(-depth.width // 2))
    for name in changes:
        default = {"depth_encoding": "32FC1", "points.fields": "xyzrgb", "points.stride": 1, "depth_scale": 1.0}[name]
        assert set_parameter(robot, name, default)[0]


def test_depth_and_intrinsics_at_the_cameras_size(robot):
    assert set_parameter(robot, "full_resolution", True)[0]
    answer = show_until(robot, 20 * SECOND, lambda answer: {(m.height, m.width) for m in answer.values()} == {SIZE})
    np.testing.assert_allclose(answer["depth/camera_info"].k, info_message().k)
    assert set_parameter(robot, "full_resolution", False)[0]


def test_network_size_and_crop(robot):
    assert set_parameter(robot, "network_size", [64, 128])[0]
    assert set_parameter(robot, "crop_to_aspect", True)[0]
    source = info_message().k.reshape(3, 3)

    def cropped(answer):
        k, depth = answer["depth/camera_info"].k.reshape(3, 3), answer["depth/image"]
        # A stretched image has another ratio of focal lengths.
        return (depth.height, depth.width) == (64, 128) and k[1, 1] / k[0, 0] == pytest.approx(
            source[1, 1] / source[0, 0]
        )

    show_until(robot, 30 * SECOND, cropped)
    assert set_parameter(robot, "network_size", [0, 0])[0]
    assert set_parameter(robot, "crop_to_aspect", False)[0]


def test_backend_changes_while_running(robot):
    by_default = show_until(robot, 40 * SECOND, lambda answer: answer["depth/image"].height == 192)
    before = depth_of(by_default["depth/image"])
    assert set_parameter(robot, "backend", "torch")[0]

    def served_by_torch(answer):
        robot.spin(1.0)  # a new status
        return robot.diagnostics["engine"].startswith("torch fp32")

    show_until(robot, 41 * SECOND, served_by_torch)
    after = depth_of(show(robot, 42 * SECOND)["depth/image"])
    np.testing.assert_allclose(after, before, rtol=2e-3)
    assert set_parameter(robot, "backend", "auto")[0]
    show(robot, 43 * SECOND)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("backend", "tpu", "backend: 'tpu' is not one of auto, tensorrt, inductor, openvino, torch"),
        ("network_size", [100, 416], "multiples of 32"),
        ("network_size", [128], "takes two numbers, height and width, got 1"),
        ("checkpoint", "/no/such/file", "/no/such/file: no such file"),
        ("min_depth", 200.0, "min_depth (200.0) must be below max_depth (100.0)"),
        ("points.min_z", 5.0, None),
        ("points.stride", 0, ""),
        ("points.voxel_size", 0.001, "points.voxel_size: must be 0 or at least 0.01, got 0.001"),
        ("depth_scale", -1.0, ""),
        ("depth_scale", "big", ""),
        ("image_transport", "compressed", "image_transport cannot change while the node is active"),
        ("color.near", 90.0, "color.near (90.0) must be below color.far (80.0)"),
    ],
)
def test_bad_parameters_are_refused_with_a_reason(robot, name, value, reason):
    accepted, given = set_parameter(robot, name, value)
    if reason is None:
        assert accepted
        assert set_parameter(robot, name, 0.0)[0]
        return
    assert not accepted
    assert given
    assert reason in given


def test_clouds_have_a_maximum_rate(robot):
    """At one cloud in 1000 s, at most two of ten frames have a cloud: the first, and the second if the first was overdue."""
    assert set_parameter(robot, "points.max_rate", 0.001)[0]
    stamps = [50 * SECOND + i for i in range(10)]
    for stamp in stamps:
        show(robot, stamp, outputs=("depth/image",))
    assert len({stamp_of(cloud) for cloud in robot.received["depth/points"]} & set(stamps)) <= 2
    assert set_parameter(robot, "points.max_rate", 0.0)[0]
    show(robot, 51 * SECOND)


@pytest.mark.parametrize("transition", [1, 3, 99])
def test_an_invalid_transition_does_not_affect_the_node(robot, transition):
    """A lifecycle manager may send one to a node that has activated itself."""
    client = robot.node.create_client(ChangeState, "depth/change_state")
    assert client.wait_for_service(PATIENCE)
    errors = robot.process.log.count("while serving a request")
    future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
    # rclpy answers some of them and raises for others.
    robot.wait_for(lambda: future.done() or robot.process.log.count("while serving a request") > errors)
    robot.node.destroy_client(client)
    assert robot.process.alive
    show(robot, (52 + transition) * SECOND)


def test_without_subscribers_nothing_is_computed(robot):
    assert set_parameter(robot, "lazy", False)[0]
    robot.unsubscribe()
    before = robot.dropped("no_subscriber")

    def counted():
        robot.publish_image(image_message(noise(), "rgb8", 400 * SECOND))
        return robot.dropped("no_subscriber") > before + 3

    robot.wait_for(counted)
    robot.subscribe(*ALL)
    show(robot, 401 * SECOND)
    assert set_parameter(robot, "lazy", True)[0]


def test_only_subscribed_outputs_are_published(robot):
    """A status of a period in which depth images were published, and nothing else."""
    robot.unsubscribe()
    robot.subscribe("depth/image")
    stamps = itertools.count(410 * SECOND)

    def reported():
        robot.publish_image(image_message(noise(), "rgb8", next(stamps)))
        return [key for key in robot.diagnostics if key.endswith(" per second") and key.startswith("depth/")] == [
            "depth/image per second"
        ]

    robot.wait_for(reported)
    robot.unsubscribe()
    robot.subscribe(*ALL)
    show(robot, 420 * SECOND)


def test_compressed_transport(start_robot):
    robot = start_robot("-p", "image_transport:=compressed")
    robot.subscribe("depth/image")
    robot.wait_for_node(compressed=True)
    message = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", noise())[1].tobytes())
    message.header.frame_id, message.header.stamp.sec = FRAME_ID, 5

    def answered():
        robot.publish_compressed(message)
        return robot.received["depth/image"]

    robot.wait_for(answered)
    assert stamp_of(robot.received["depth/image"][0]) == 5 * SECOND


def test_quality_of_service_can_be_overridden(start_robot):
    robot = start_robot(
        "-p", "lazy:=false",
        "-p", "qos_overrides.NS/image.subscription.reliability:=reliable",
        "-p", "qos_overrides.NS/depth/image.publisher.reliability:=best_effort",
    )  # fmt: skip
    names = {name: robot.node.resolve_topic_name(name) for name in ("image", "depth/image", "depth/points")}
    robot.wait_for(lambda: robot.node.get_subscriptions_info_by_topic(names["image"]))
    robot.wait_for(lambda: robot.node.get_publishers_info_by_topic(names["depth/points"]))
    (camera,) = robot.node.get_subscriptions_info_by_topic(names["image"])
    (depth,) = robot.node.get_publishers_info_by_topic(names["depth/image"])
    (points,) = robot.node.get_publishers_info_by_topic(names["depth/points"])
    assert camera.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    assert depth.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    assert points.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_the_image_subscription_is_best_effort_by_default(robot):
    (camera,) = robot.node.get_subscriptions_info_by_topic(robot.node.resolve_topic_name("image"))
    assert camera.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def test_remapping_and_parameter_file(start_robot, tmp_path):
    parameters = tmp_path / "depth.yaml"
    parameters.write_text("/**:\n  ros__parameters:\n    depth_encoding: 16UC1\n    network_size: [64, 96]\n")
    robot = start_robot(
        "--params-file", str(parameters), "-r", "image:=front/image_raw", "-r", "depth/image:=front/depth"
    )
    received = []
    camera = robot.node.create_publisher(Image, "front/image_raw", 1)
    robot.node.create_subscription(Image, "front/depth", received.append, 2)

    def answered():
        camera.publish(image_message(noise(), "rgb8", SECOND))
        return received

    robot.wait_for(answered)
    assert (received[0].encoding, received[0].height, received[0].width) == ("16UC1", 64, 96)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("backend:=tpu", "parameter backend: 'tpu' is not one of auto, tensorrt, inductor, openvino, torch"),
        ("depth_scale:=2", "depth_scale"),
        ("points.stride:=0", "points.stride"),
        ("bond_heartbeat_period:=0.001", "bond_heartbeat_period: must be 0 or at least 0.01, got 0.001"),
    ],
)
def test_bad_parameters_at_start_end_the_node_with_a_reason(value, reason):
    status, error = run_node("-p", value)
    assert status == 1
    assert "depth_node: " in error
    assert reason in error
    assert "Traceback" not in error


def test_a_node_with_a_bad_quality_of_service_is_not_half_active(start_robot):
    robot = start_robot("-p", "qos_overrides.NS/camera_info.subscription.reliability:=bogus")
    robot.wait_for(lambda: "on_activate failed" in robot.process.log)
    for _ in range(10):
        robot.publish_image(image_message(noise(), "rgb8", SECOND))
        robot.spin(0.05)
    assert robot.process.alive
    assert not robot.node.get_subscriptions_info_by_topic(robot.node.resolve_topic_name("image"))
