"""The depth node and Nav2, with a layer of obstacles from the depth node's cloud in the local costmap.

ros2 launch fadepth_ros nav2.launch.py layer:=voxel_layer camera_height:=0.45 image:=/camera/image_raw \
    camera_info:=/camera/camera_info nav2_params_file:=/path/to/nav2_params.yaml

The layer is described in nav2_voxel_layer.yaml and nav2_stvl.yaml. It is added to the parameters of Nav2, whose other layers
stay. `merged_file` keeps the result, for robots that start Nav2 in another way (`nav2:=false`). All arguments of
depth.launch.py are taken. Needs nav2_bringup, and spatio_temporal_voxel_layer for layer:=stvl.
"""

import tempfile
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, LogInfo, OpaqueFunction
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from fadepth_ros.nav2_parameters import add_layer_to_file
from launch import LaunchDescription


def _nav2(context) -> list:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context).strip()

    recipe = Path(value("recipe")).expanduser()
    source = value("nav2_params_file")
    path = (
        Path(source).expanduser()
        if source
        else Path(get_package_share_directory("nav2_bringup"), "params", "nav2_params.yaml")
    )
    merged = value("merged_file")
    target = Path(merged).expanduser() if merged else Path(tempfile.mkdtemp(prefix="fadepth_nav2_"), "nav2_params.yaml")
    add_layer_to_file(path, recipe, target)
    navigation = PathJoinSubstitution([FindPackageShare("nav2_bringup"), "launch", "navigation_launch.py"])
    return [
        LogInfo(msg=f"{path} with the layer of {recipe.name} is written to {target}"),
        # Without forwarding: Nav2 has arguments of the same names as the depth node, such as params_file.
        GroupAction(
            [IncludeLaunchDescription(PythonLaunchDescriptionSource(navigation))],
            condition=IfCondition(LaunchConfiguration("nav2")),
            forwarding=False,
            launch_configurations={
                "params_file": str(target),
                "use_sim_time": LaunchConfiguration("use_sim_time"),
                "namespace": LaunchConfiguration("namespace"),
            },
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare("fadepth_ros")
    recipe = [PathJoinSubstitution([share, "config", "recipes", "nav2_"]), LaunchConfiguration("layer"), ".yaml"]
    depth = PathJoinSubstitution([share, "launch", "depth.launch.py"])
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "layer",
                default_value="voxel_layer",
                choices=["voxel_layer", "stvl"],
                description="Nav2's voxel layer, or the spatio-temporal one.",
            ),
            DeclareLaunchArgument("recipe", default_value=recipe, description="File of the layer."),
            DeclareLaunchArgument(
                "params_file",
                default_value=LaunchConfiguration("recipe"),
                description="Parameters of the depth node.",
            ),
            DeclareLaunchArgument(
                "nav2_params_file", default_value="", description="Parameters of Nav2; empty: those of nav2_bringup."
            ),
            DeclareLaunchArgument(
                "merged_file", default_value="", description="File to write Nav2's parameters with the layer to."
            ),
            DeclareLaunchArgument(
                "nav2", default_value="true", description="Start Nav2's navigation (navigation_launch.py)."
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(depth)),
            OpaqueFunction(function=_nav2),
        ]
    )
