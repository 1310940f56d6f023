"""Launch the demo: a clip as the camera, the depth node, and a viewer (a page in the browser; without a screen a video).

ros2 launch fadepth_ros demo.launch.py loop:=false
ros2 launch fadepth_ros demo.launch.py rviz:=true checkpoint:=smalldepth_nc     (arguments of depth.launch.py)
"""

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    depth = PathJoinSubstitution([FindPackageShare("fadepth_ros"), "launch", "depth.launch.py"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("loop", default_value="true", description="Play the clip again when it ends."),
            DeclareLaunchArgument(
                "view",
                default_value="auto",
                choices=["auto", "page", "foxglove", "files"],
                description="How it is shown; auto: page if there is a screen, else files.",
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(depth)),
            Node(
                package="fadepth_ros",
                executable="clip_publisher",
                parameters=[{"loop": LaunchConfiguration("loop")}],
                on_exit=Shutdown(),
            ),
            Node(
                package="fadepth_ros",
                executable="viewer",
                parameters=[{"mode": LaunchConfiguration("view")}],
                output="screen",
                on_exit=Shutdown(),
            ),
        ]
    )
