"""The depth node and RTAB-Map, which takes the camera as an RGB-D camera; the depth node's parameters are in rtabmap.yaml.

ros2 launch fadepth_ros rtabmap.launch.py image:=/camera/image_rect camera_info:=/camera/camera_info

All arguments of depth.launch.py are taken. Needs the package rtabmap_launch.
"""

from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, PythonExpression
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

#: Arguments of rtabmap_launch that are arguments of this file, too: their defaults here, and what they are.
FORWARDED = {
    "frame_id": ("base_link", "Base frame of the robot; camera_link or the optical frame for a camera alone."),
    "visual_odometry": ("true", "Compute odometry from the images; false with odom_topic."),
    "odom_topic": ("odom", "Odometry of the robot, with visual_odometry:=false."),
    "qos": (
        "0",
        "Of RTAB-Map's subscriptions: 0 system default, 1 reliable, 2 best effort (for a best-effort camera).",
    ),
    "rtabmap_viz": ("true", "Show RTAB-Map's window."),
}


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare("fadepth_ros")
    recipe = PathJoinSubstitution([share, "config", "recipes", "rtabmap.yaml"])
    depth = PathJoinSubstitution([share, "launch", "depth.launch.py"])
    rtabmap = PathJoinSubstitution([FindPackageShare("rtabmap_launch"), "launch", "rtabmap.launch.py"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("params_file", default_value=recipe, description="Parameters of the depth node."),
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the depth node."),
            DeclareLaunchArgument(
                "depth_topic",
                # Absolute, because RTAB-Map's nodes have a namespace of their own.
                default_value=PythonExpression(
                    ["'/'.join(['', *'", LaunchConfiguration("namespace"), "'.strip('/').split(), 'depth/image'])"]
                ),
                description="The depth node's depth image.",
            ),
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in FORWARDED.items()
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(depth)),
            # Without forwarding: the depth node's `namespace` and `rviz` are arguments of rtabmap_launch, too.
            GroupAction(
                [IncludeLaunchDescription(PythonLaunchDescriptionSource(rtabmap))],
                forwarding=False,
                launch_configurations={
                    "rgb_topic": LaunchConfiguration("image"),
                    "camera_info_topic": LaunchConfiguration("camera_info"),
                    "depth_topic": LaunchConfiguration("depth_topic"),
                    "approx_sync": "false",  # depth has exactly the stamp of its image
                    "use_sim_time": LaunchConfiguration("use_sim_time"),
                    **{name: LaunchConfiguration(name) for name in FORWARDED},
                },
            ),
        ]
    )
