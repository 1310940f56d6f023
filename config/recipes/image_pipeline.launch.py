"""image_proc rectifies, the depth node computes depth, depth_image_proc the cloud `depth/points_xyz`; see image_pipeline.yaml.

ros2 launch fadepth_ros image_pipeline.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info \
    image_rect:=/camera/image_rect

The depth node is a Python program, so it is a process beside the container. All arguments of depth.launch.py are taken.
"""

from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import ComposableNodeContainer
from launch_ros.descriptions import ComposableNode
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    share = FindPackageShare("fadepth_ros")
    recipe = PathJoinSubstitution([share, "config", "recipes", "image_pipeline.yaml"])
    depth = PathJoinSubstitution([share, "launch", "depth.launch.py"])
    namespace, sim_time = LaunchConfiguration("namespace"), {"use_sim_time": LaunchConfiguration("use_sim_time")}
    return LaunchDescription(
        [
            DeclareLaunchArgument("params_file", default_value=recipe, description="Parameters of the depth node."),
            DeclareLaunchArgument("image", default_value="image_raw", description="Image topic of the camera."),
            DeclareLaunchArgument(
                "image_rect",
                default_value="image_rect",
                description="Topic of the rectified images, in the namespace of `image`; its name contains image_rect.",
            ),
            GroupAction(  # `image` is another topic in it
                [
                    IncludeLaunchDescription(
                        PythonLaunchDescriptionSource(depth),
                        launch_arguments={"image": LaunchConfiguration("image_rect")}.items(),
                    )
                ]
            ),
            DeclareLaunchArgument("namespace", default_value=""),
            DeclareLaunchArgument("use_sim_time", default_value="false"),
            DeclareLaunchArgument("camera_info", default_value="camera_info"),
            ComposableNodeContainer(
                name="image_pipeline_container",
                namespace=namespace,
                package="rclcpp_components",
                executable="component_container_mt",
                composable_node_descriptions=[
                    ComposableNode(
                        package="image_proc",
                        plugin="image_proc::RectifyNode",
                        name="rectify",
                        namespace=namespace,
                        parameters=[sim_time],
                        remappings=[
                            ("image", LaunchConfiguration("image")),
                            ("camera_info", LaunchConfiguration("camera_info")),
                            ("image_rect", LaunchConfiguration("image_rect")),
                        ],
                    ),
                    ComposableNode(
                        package="depth_image_proc",
                        plugin="depth_image_proc::PointCloudXyzNode",
                        name="point_cloud_xyz",
                        namespace=namespace,
                        parameters=[sim_time],
                        remappings=[
                            ("image_rect", "depth/image"),
                            ("camera_info", "depth/camera_info"),
                            ("points", "depth/points_xyz"),
                        ],
                    ),
                ],
                output="screen",
            ),
        ]
    )
