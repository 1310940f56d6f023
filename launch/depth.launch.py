"""The depth node for one camera.

    ros2 launch fadepth_ros depth.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
    ros2 launch fadepth_ros depth.launch.py namespace:=front params_file:=/path/to/depth.yaml

The arguments are what usually differs from robot to robot; everything else is in the parameter file.
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def _depth_node(context) -> list[Node]:
    # Given on the command line it wins over the parameter file; not given, it must not.
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
    default_parameters = PathJoinSubstitution([FindPackageShare("fadepth_ros"), "config", "depth.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics."),
            DeclareLaunchArgument("image", default_value="image", description="Camera image topic."),
            DeclareLaunchArgument("camera_info", default_value="camera_info", description="Its CameraInfo topic."),
            DeclareLaunchArgument(
                "params_file", default_value=default_parameters, description="Parameters of the node."
            ),
            DeclareLaunchArgument(
                "checkpoint", default_value="", description="Checkpoint; empty for the params_file's."
            ),
            OpaqueFunction(function=_depth_node),
        ]
    )
