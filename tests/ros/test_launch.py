"""The launch files, where `ros2 launch` is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.mark.parametrize("name", ["depth", "demo"])
def test_launch_files_describe_what_they_start(name):
    pytest.importorskip("launch_ros", reason="ros2 launch is not installed")
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from launch.actions import DeclareLaunchArgument

    entities = module.generate_launch_description().entities
    arguments = {e.name for e in entities if isinstance(e, DeclareLaunchArgument)}
    expected = {"depth": {"namespace", "image", "camera_info", "params_file", "checkpoint"}, "demo": {"loop"}}
    assert arguments == expected[name]
