"""The launch files, where `ros2 launch` is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="ros2 launch is not installed")
ROOT = Path(__file__).resolve().parents[2]
LAUNCH, RECIPES = ROOT / "launch", ROOT / "config" / "recipes"


def description_of(name, folder=LAUNCH):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.launch.py")
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
                "camera_height",
                "use_sim_time",
                "rviz",
            },
        ),
        ("demo", {"loop", "view"}),
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, []),
        ({"use_sim_time": "true", "camera_height": "0.4"}, [{"use_sim_time": True, "camera_height": 0.4}]),
        ({"use_sim_time": "false", "checkpoint": "smalldepth_nc"}, [{"checkpoint": "smalldepth_nc"}]),
    ],
)
def test_only_arguments_that_are_given_override_the_parameter_file(arguments, expected, monkeypatch):
    import launch_ros.actions
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    from launch import LaunchContext

    started = []
    monkeypatch.setattr(launch_ros.actions, "Node", lambda **options: started.append(options))
    context = LaunchContext()
    params_file = str(ROOT / "config" / "depth.yaml")
    context.launch_configurations.update(params_file=params_file, **arguments)
    entities = [e for e in description_of("depth").entities if e is not None]
    for argument in entities:
        if isinstance(argument, DeclareLaunchArgument) and argument.name != "params_file":
            argument.visit(context)
    started.clear()  # RViz
    (function,) = (e for e in entities if isinstance(e, OpaqueFunction))
    function.execute(context)
    ((_, *given),) = (options["parameters"] for options in started)
    assert given == expected


@pytest.mark.parametrize("name", ["nav2", "laserscan", "rtabmap", "image_pipeline"])
def test_the_launch_files_of_the_recipes_can_be_read(name):
    from launch.actions import DeclareLaunchArgument

    entities = description_of(name, RECIPES).entities
    assert "params_file" in {e.name for e in entities if isinstance(e, DeclareLaunchArgument)}
