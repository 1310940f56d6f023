"""The launch files, where `ros2 launch` is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="ros2 launch is not installed")
LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def description_of(name):
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "depth",
            {
                "namespace",
                "image",
                "camera_info",
                "params_file",
                "checkpoint",
                "image_transport",
                "cameras",
                "rviz",
            },
        ),
        ("demo", {"loop"}),
    ],
)
def test_launch_files_declare_their_arguments(name, expected):
    from launch.actions import DeclareLaunchArgument

    entities = description_of(name).entities
    assert {e.name for e in entities if isinstance(e, DeclareLaunchArgument)} == expected


@pytest.mark.parametrize(("rviz", "started"), [("false", False), ("true", True)])
def test_rviz_is_started_only_if_asked_for(rviz, started):
    from launch_ros.actions import Node

    from launch import LaunchContext

    (node,) = (e for e in description_of("depth").entities if isinstance(e, Node))
    context = LaunchContext()
    context.launch_configurations["rviz"] = rviz
    assert node.node_package == "rviz2"
    assert node.condition.evaluate(context) is started


def test_a_parameter_file_that_does_not_exist_is_an_error(tmp_path):
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    from launch import LaunchContext

    context = LaunchContext()
    context.launch_configurations["params_file"] = str(tmp_path / "missing.yaml")
    (node,) = (e for e in description_of("depth").entities if isinstance(e, OpaqueFunction))
    for argument in description_of("depth").entities:
        if isinstance(argument, DeclareLaunchArgument) and argument.name != "params_file":
            argument.visit(context)
    with pytest.raises(FileNotFoundError, match=r"params_file: .*missing\.yaml is not a file"):
        node.execute(context)
