"""Launch the depth node for one camera.

    ros2 launch fadepth_ros depth.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
    ros2 launch fadepth_ros depth.launch.py namespace:=front params_file:=/path/to/depth.yaml rviz:=true

The arguments are the settings that usually differ between robots; all other parameters are in the parameter file.
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def _depth_node(context) -> list[Node]:
    # A parameter given here overrides the parameter file. So the checkpoint is given only if the argument is set.
    checkpoint = LaunchConfiguration("checkpoint").perform(context)
    return [
        Node(
            package="fadepth_ros",
            executable="depth_node",
            name="depth",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), *([{"checkpoint": checkpoint}] if checkpoint else [])],
            remappings=[
                ("image", LaunchConfiguration("image")),
                ("camera_info", LaunchConfiguration("camera_info")),
            ],
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    config = PathJoinSubstitution([FindPackageShare("fadepth_ros"), "config"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics."),
            DeclareLaunchArgument("image", default_value="image", description="Image topic of the camera."),
            DeclareLaunchArgument(
                "camera_info", default_value="camera_info", description="CameraInfo topic of the camera."
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value=PathJoinSubstitution([config, "depth.yaml"]),
                description="Parameter file of the node.",
            ),
            DeclareLaunchArgument(
                "checkpoint", default_value="", description="Checkpoint; empty: the one in params_file."
            ),
            DeclareLaunchArgument(
                "rviz",
                default_value="false",
                description="Show image, depth and points in RViz (package rviz2). Its fixed frame is "
                "camera_optical_frame; choose another one in RViz if the camera's images have another frame_id.",
            ),
            OpaqueFunction(function=_depth_node),
            Node(
                package="rviz2",
                executable="rviz2",
                namespace=LaunchConfiguration("namespace"),
                arguments=["-d", PathJoinSubstitution([config, "depth.rviz"])],
                # The RViz configuration has absolute topic names; they are remapped to the node's topics.
                remappings=[
                    ("/image", LaunchConfiguration("image")),
                    ("/depth/color", "depth/color"),
                    ("/depth/points", "depth/points"),
                ],
                condition=IfCondition(LaunchConfiguration("rviz")),
            ),
        ]
    )
