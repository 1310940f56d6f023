"""Launch the depth node for one camera.

    ros2 launch fadepth_ros depth.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
    ros2 launch fadepth_ros depth.launch.py namespace:=front params_file:=/path/to/depth.yaml rviz:=true

The arguments are the settings that usually differ between robots; all other parameters are in the parameter file.
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def _depth_node(context) -> list[Node]:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context).strip()

    params_file = Path(value("params_file")).expanduser()
    if not params_file.is_file():
        # launch_ros only warns, and the node would run with its defaults.
        raise FileNotFoundError(f"params_file: {params_file} is not a file")
    # A parameter given here overrides the parameter file. So only arguments that are set are given.
    given: dict[str, object] = {name: value(name) for name in ("checkpoint", "image_transport") if value(name)}
    if value("camera_height"):
        given["camera_height"] = float(value("camera_height"))
    if value("use_sim_time").lower() in ("true", "1"):
        given["use_sim_time"] = True
    cameras = [name.strip(" '\"") for name in value("cameras").strip("[]").split(",")]
    if cameras != [""]:
        given["cameras"] = cameras
    return [
        Node(
            package="fadepth_ros",
            executable="depth_node",
            name="depth",
            namespace=LaunchConfiguration("namespace"),
            parameters=[str(params_file), *([given] if given else [])],
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
                "image_transport", default_value="", description="raw or compressed; empty: as in params_file."
            ),
            DeclareLaunchArgument(
                "cameras",
                default_value="",
                description="Namespaces of several cameras, for example front,rear; empty: as in params_file.",
            ),
            DeclareLaunchArgument(
                "camera_height",
                default_value="",
                description="Metres of the camera above the ground, for the scale of depth; empty: as in params_file.",
            ),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="false",
                description="true: the clock is the topic /clock (simulation, ros2 bag play --clock).",
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
                parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
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
