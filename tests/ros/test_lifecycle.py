"""Transitions of the lifecycle node, called in this process."""

from __future__ import annotations

import pytest
import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage

from fadepth_core.runtime.checkpoint import DEFAULT_CHECKPOINT
from fadepth_core.runtime.engine import EngineError
from fadepth_ros.node import DepthNode
from fadepth_ros.parameters import Parameters

SUCCESS = TransitionCallbackReturn.SUCCESS


@pytest.fixture
def node():
    node = DepthNode(parameter_overrides=[Parameter("autostart", value=False)])
    yield node
    node.destroy_node()


@pytest.fixture
def make_node():
    """Makes nodes with these ROS arguments, which do not configure themselves."""
    nodes = []

    def make(*arguments):
        nodes.append(DepthNode(cli_args=["--ros-args", "-p", "autostart:=false", *arguments]))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def call(node, kind, **request):
    """What the node's service of this type answers."""
    (service,) = [service for service in node.services if service.srv_type is kind]
    answer = service.callback(kind.Request(**request), kind.Response())
    while True:
        try:
            answer.send(None)
        except StopIteration as end:
            return end.value


def load_parameters(node, **values):
    """As `ros2 param load`: (accepted, reason) of each."""
    messages = [Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()]
    results = call(node, SetParameters, parameters=messages).results
    return [(result.successful, result.reason) for result in results]


def subscriptions(node):
    """(topic, reliability, durability) of the node's subscriptions to its camera."""
    profiles = [(s.topic_name, s.qos_profile) for s in node.subscriptions]
    return {
        (topic, qos.reliability, qos.durability) for topic, qos in profiles if "image" in topic or "camera" in topic
    }


def test_the_node_can_go_through_all_states_again(node):
    node.autostart()  # does nothing, the parameter is false
    for _ in range(2):
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        topics = {topic for topic, _ in node.get_topic_names_and_types()}
        assert topics >= {"/depth/image", "/depth/points", "/depth/camera_info"}
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS
    assert node.trigger_shutdown() == SUCCESS


def test_locked_parameters_may_change_while_inactive(node):
    node.trigger_configure()
    node.trigger_activate()
    compressed = Parameter("image_transport", value="compressed")
    assert not node.set_parameters([compressed])[0].successful
    node.trigger_deactivate()
    assert node.set_parameters([compressed])[0].successful
    assert node.trigger_activate() == SUCCESS
    assert "/image/compressed" in [subscription.topic_name for subscription in node.subscriptions]


def test_a_checkpoint_that_was_removed_fails_to_configure_until_it_is_back(node, tmp_path):
    for suffix in (".safetensors", ".onnx"):
        source = DEFAULT_CHECKPOINT.with_suffix(suffix)
        (tmp_path / source.name).write_bytes(source.read_bytes())
    path = tmp_path / DEFAULT_CHECKPOINT.name
    assert node.set_parameters([Parameter("checkpoint", value=str(path))])[0].successful
    content = path.read_bytes()
    path.unlink()
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    path.write_bytes(content)
    assert node.trigger_configure() == SUCCESS


def test_an_unexpected_error_in_a_transition_is_logged(node, monkeypatch, capfd):
    monkeypatch.setattr("fadepth_ros.camera_topics.Pipeline", lambda *arguments: 1 / 0)
    node.trigger_configure()
    assert node.trigger_activate() == TransitionCallbackReturn.ERROR
    assert "on_activate failed" in capfd.readouterr().err


def test_a_transition_that_does_not_fit_is_answered(node, capfd):
    for label in ("activate", "no such transition"):
        request = ChangeState.Request()
        request.transition.label = label
        assert not call(node, ChangeState, transition=request.transition).success
    request.transition.label, request.transition.id = "", 99
    assert not call(node, ChangeState, transition=request.transition).success
    assert "change_state" in capfd.readouterr().err
    assert node.trigger_configure() == SUCCESS


def test_parameters_of_one_request_are_checked_together_and_set_all_or_none(node):
    assert load_parameters(node, color__far=1.5, color__near=0.3) == [(True, ""), (True, "")]
    assert load_parameters(node, min_depth=200.0, max_depth=300.0) == [(True, ""), (True, "")]
    answers = load_parameters(node, max_depth=400.0, min_depth=500.0)
    assert answers == [(False, "min_depth (500.0) must be below max_depth (400.0)")] * 2
    assert node.get_parameter("max_depth").value == 300.0


def test_parameters_that_are_not_the_nodes_are_set_one_by_one(node):
    answers = load_parameters(node, max_dept=1.0, max_depth=50.0, use_sim_time=True)
    assert answers == [(False, "there is no parameter 'max_dept', did you mean 'max_depth'"), (True, ""), (True, "")]


def test_a_refusal_by_another_callback_changes_nothing(node):
    """The settings are those of the parameters, whoever refuses a change."""
    refusal = SetParametersResult(successful=False, reason="not today")
    node.add_on_set_parameters_callback(lambda parameters: refusal)
    assert load_parameters(node, cameras=["front"]) == [(False, "not today")]
    assert node.trigger_configure() == SUCCESS
    assert "/depth/image" in [topic for topic, _ in node.get_topic_names_and_types()]


class HumbleNode(Node):
    """Sets parameters as rclpy of Humble: the last added callback is called first, and none after the values are stored."""

    def __init__(self, name):
        self._parameters_callbacks = []
        super().__init__(name)

    @property
    def add_post_set_parameters_callback(self):
        raise AttributeError

    def add_on_set_parameters_callback(self, callback):
        self._parameters_callbacks.insert(0, callback)

    def set_parameters_atomically(self, parameter_list):
        for callback in self._parameters_callbacks:
            result = callback(parameter_list)
            if not result.successful:
                return result
        return super().set_parameters_atomically(parameter_list)


def test_humble_applies_parameters_after_all_checks():
    node, applied = HumbleNode("humble"), []
    parameters = Parameters(node, lambda: False, lambda settings: None, applied.append)
    before = parameters.settings
    for changes, reason in (
        ([Parameter("depth_scale", value=2.0), Parameter("min_depth", value=500.0)], "must be below max_depth"),
        ([Parameter("depth_scale", value=2.0), Parameter("backend", value="abacus")], "'abacus' is not one of"),
        ([Parameter("depth_scale", value=2.0), Parameter("use_sim_time", value=3)], "use_sim_time"),  # checked by rclpy
    ):
        assert reason in node.set_parameters_atomically(changes).reason
        assert (applied, parameters.settings) == ([], before)
        assert node.get_parameter("depth_scale").value == 1.0
    assert node.set_parameters_atomically([Parameter("depth_scale", value=2.0)]).successful
    assert [settings.depth_scale for settings in applied] == [2.0]
    assert node.get_parameter("depth_scale").value == 2.0
    node.destroy_node()


def test_unknown_parameters_are_warned_of_with_the_nearest_name(make_node, capfd):
    make_node("-p", "max_dept:=3.0", "-p", "points_stride:=2", "-p", "depth_scale:=2.0")
    warnings = capfd.readouterr().err
    assert "there is no parameter 'max_dept', did you mean 'max_depth'" in warnings
    assert "there is no parameter 'points_stride', did you mean 'points.stride'" in warnings
    assert "depth_scale" not in warnings


BEST_EFFORT, RELIABLE = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
VOLATILE, LATCHED = DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL


def test_quality_of_service_follows_remaps_and_may_change_while_inactive(make_node, capfd):
    """By default a latched camera_info is heard beside a usual one."""
    node = make_node(
        "-r", "image:=/cam/image_raw",
        "-p", "qos.image.reliability:=reliable",
        "-p", "qos_overrides./image.subscription.reliability:=reliable",  # the name before the remap has no effect
    )  # fmt: skip
    node.trigger_configure()
    assert node.trigger_activate() == SUCCESS
    infos = {("/camera_info", BEST_EFFORT, VOLATILE), ("/camera_info", RELIABLE, LATCHED)}
    assert subscriptions(node) == {("/cam/image_raw", RELIABLE, VOLATILE)} | infos
    assert "'qos_overrides./image.subscription.reliability' is not used" in capfd.readouterr().err
    node.trigger_deactivate()
    changes = {"qos.image.reliability": "best_effort", "qos.camera_info.durability": "transient_local"}
    assert all(r.successful for r in node.set_parameters([Parameter(k, value=v) for k, v in changes.items()]))
    assert node.trigger_activate() == SUCCESS
    assert subscriptions(node) == {
        ("/cam/image_raw", BEST_EFFORT, VOLATILE),
        ("/camera_info", BEST_EFFORT, LATCHED),
    }


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_an_image_topic_that_ends_in_compressed_is_taken_as_such(make_node, capfd, transport):
    node = make_node("-r", "image:=/cam/image_raw/compressed", "-p", f"image_transport:={transport}")
    node.trigger_configure()
    assert node.trigger_activate() == SUCCESS
    assert {(s.topic_name, s.msg_type) for s in node.subscriptions if "image" in s.topic_name} == {
        ("/cam/image_raw/compressed", CompressedImage)
    }
    assert "remap image to /cam/image_raw and set image_transport to compressed" in capfd.readouterr().err


def test_without_an_engine_configure_and_activate_fail_with_the_reason(node, monkeypatch, capfd):
    def unavailable(engine_settings, logger):
        raise EngineError("no backend works")

    with monkeypatch.context() as patch:
        patch.setattr("fadepth_ros.node.check_engine", unavailable)
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert node.trigger_configure() == SUCCESS
    with monkeypatch.context() as patch:
        patch.setattr("fadepth_ros.node.check_engine", unavailable)
        assert node.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert node.trigger_activate() == SUCCESS
    log = capfd.readouterr().err
    assert "cannot configure: no backend works" in log
    assert "cannot activate: no backend works" in log


def test_a_parameter_without_which_no_engine_can_be_built_is_refused_while_active(node, monkeypatch):
    def unavailable(pipeline, settings):
        raise EngineError("no backend works")

    monkeypatch.setattr("fadepth_ros.pipeline.Pipeline.validate", unavailable)
    node.trigger_configure()
    node.trigger_activate()
    assert load_parameters(node, precision="fp16") == [(False, "no backend works")]
    assert node.get_parameter("precision").value == "auto"


@pytest.mark.parametrize(
    ("name", "value", "used", "reason"),
    [
        ("rectify", False, "off", ""),
        ("rectify", True, "on", ""),
        ("rectify", "off", "off", ""),
        ("rectify", 3, "auto", "rectify: '3' is not one of auto, on, off"),
        ("temporal", False, "off", ""),
        ("temporal", True, "off", "temporal: 'on' is not one of off, scale, full"),
    ],
)
def test_on_and_off_without_quotes_are_the_words(name, value, used, reason):
    """In YAML they are booleans, also in `ros2 param set /depth rectify off`."""
    node = rclpy.create_node("words")
    parameters = Parameters(node, lambda: False, lambda settings: None, lambda settings: None)
    assert node.set_parameters([Parameter(name, value=value)])[0].reason == reason
    assert getattr(parameters.settings, name) == used
    node.destroy_node()
