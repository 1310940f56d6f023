"""The depth node and depthimage_to_laserscan, which publishes `scan`; parameters in laserscan.yaml.

ros2 launch fadepth_ros laserscan.launch.py camera_height:=0.45 image:=/camera/image_raw camera_info:=/camera/camera_info

All arguments of depth.launch.py are taken. Needs the package depthimage_to_laserscan.
"""

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare("fadepth_ros")
    recipe = PathJoinSubstitution([share, "config", "recipes", "laserscan.yaml"])
    depth = PathJoinSubstitution([share, "launch", "depth.launch.py"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("params_file", default_value=recipe, description="Parameters of both nodes."),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(depth)),
            Node(
                package="depthimage_to_laserscan",
                executable="depthimage_to_laserscan_node",
                name="depthimage_to_laserscan",
                namespace=LaunchConfiguration("namespace"),
                parameters=[
                    ParameterFile(LaunchConfiguration("params_file")),
                    {"use_sim_time": LaunchConfiguration("use_sim_time")},
                ],
                remappings=[("depth", "depth/image"), ("depth_camera_info", "depth/camera_info")],
                output="screen",
            ),
        ]
    )
