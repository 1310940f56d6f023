"""Transitions of the lifecycle node, called in this process."""

from __future__ import annotations

import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from fadepth_core.runtime.checkpoint import DEFAULT_CHECKPOINT
from fadepth_ros.node import DepthNode

SUCCESS = TransitionCallbackReturn.SUCCESS


@pytest.fixture
def node():
    node = DepthNode(parameter_overrides=[Parameter("autostart", value=False)])
    yield node
    node.destroy_node()


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
