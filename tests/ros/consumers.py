"""What programs of other packages do with the depth node's messages, written from their documented contracts and sources.

The programs themselves are C++ packages that the tests cannot install. Versions read: Nav2 Humble and Jazzy (nav2_costmap_2d),
spatio_temporal_voxel_layer 2.2, depthimage_to_laserscan 2.5, rtabmap_ros 0.22, image_pipeline 5.0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rclpy.qos import QoSPresetProfiles, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

#: Quality of service of each consumer's subscription.
SUBSCRIPTIONS = {
    "nav2": QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT),
    "stvl": QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT),
    "laserscan": QoSPresetProfiles.SYSTEM_DEFAULT.value,
    "rtabmap": QoSPresetProfiles.SYSTEM_DEFAULT.value,
    "image_pipeline": QoSPresetProfiles.SYSTEM_DEFAULT.value,
    "viewers": qos_profile_sensor_data,
}

#: Parameters of nav2_costmap_2d::VoxelLayer and of each of its sources, in Humble and in Jazzy, with their types.
VOXEL_LAYER = {
    **dict.fromkeys(("enabled", "footprint_clearing_enabled", "publish_voxel_map"), bool),
    **dict.fromkeys(("max_obstacle_height", "origin_z", "z_resolution"), float),
    **dict.fromkeys(("z_voxels", "unknown_threshold", "mark_threshold", "combination_method"), int),
    **dict.fromkeys(("plugin", "observation_sources"), str),
}
VOXEL_SOURCE = {
    **dict.fromkeys(("topic", "sensor_frame", "data_type"), str),
    **dict.fromkeys(("inf_is_valid", "marking", "clearing"), bool),
    **dict.fromkeys(
        (
            "observation_persistence",
            "expected_update_rate",
            "min_obstacle_height",
            "max_obstacle_height",
            "obstacle_max_range",
            "obstacle_min_range",
            "raytrace_max_range",
            "raytrace_min_range",
        ),
        float,
    ),
}
#: The same of spatio_temporal_voxel_layer/SpatioTemporalVoxelLayer.
STVL = {
    **dict.fromkeys(
        ("enabled", "publish_voxel_map", "update_footprint_enabled", "track_unknown_space", "mapping_mode"), bool
    ),
    **dict.fromkeys(("transform_tolerance", "voxel_size", "voxel_decay", "map_save_duration"), float),
    **dict.fromkeys(("combination_method", "mark_threshold", "decay_model"), int),
    **dict.fromkeys(("plugin", "observation_sources"), str),
}
STVL_SOURCE = {
    **dict.fromkeys(("topic", "sensor_frame", "data_type", "filter"), str),
    **dict.fromkeys(("inf_is_valid", "marking", "clearing", "clear_after_reading", "enabled"), bool),
    **dict.fromkeys(("voxel_min_points", "model_type"), int),
    **dict.fromkeys(
        (
            "observation_persistence",
            "expected_update_rate",
            "min_obstacle_height",
            "max_obstacle_height",
            "obstacle_range",
            "min_z",
            "max_z",
            "vertical_fov_angle",
            "vertical_fov_padding",
            "horizontal_fov_angle",
            "decay_acceleration",
        ),
        float,
    ),
}
#: Of depthimage_to_laserscan.
LASERSCAN = {"scan_time": float, "range_min": float, "range_max": float, "scan_height": int, "output_frame": str}


def xyz(cloud: PointCloud2) -> np.ndarray:
    """[N, 3] float32, read as PointCloud2ConstIterator<float> does: by the names of the fields."""
    offsets = {f.name: f.offset for f in cloud.fields if f.datatype == PointField.FLOAT32 and f.count == 1}
    data = np.frombuffer(cloud.data, np.uint8).reshape(cloud.height * cloud.width, cloud.point_step)
    return np.concatenate([data[:, offsets[n] : offsets[n] + 4].copy().view(np.float32) for n in "xyz"], 1)


@dataclass
class CostmapLayer:
    """The marking and the clearing of a voxel layer, for one cloud.

    Args:
        parameters: of the layer, with its sources.
        height: of the camera above the origin of the costmap's frame, metres. It looks along x, level.
    """

    parameters: dict
    height: float

    def _observed(self, points: np.ndarray, purpose: str) -> tuple[np.ndarray, dict]:
        """The points [N, 3] (x forward, z up) that the source for `purpose` keeps, and its parameters."""
        names = self.parameters["observation_sources"].split()
        (source,) = (self.parameters[name] for name in names if self.parameters[name][purpose])
        base = np.stack([points[:, 2], -points[:, 0], self.height - points[:, 1]], 1)
        low, high = source["min_obstacle_height"], source["max_obstacle_height"]
        with np.errstate(invalid="ignore"):  # comparisons with NaN are false, as in C++
            return base[(base[:, 2] >= low) & (base[:, 2] <= high)], source

    def _distance(self, base: np.ndarray) -> np.ndarray:
        return np.linalg.norm(base - (0.0, 0.0, self.height), axis=1)

    def marked(self, points: np.ndarray) -> np.ndarray:
        """[N, 3] the points that become obstacles."""
        base, source = self._observed(points, "marking")
        distance = self._distance(base)
        farthest = source.get("obstacle_max_range", source.get("obstacle_range"))
        return base[(distance < farthest) & (distance >= source.get("obstacle_min_range", 0.01))]

    def clears(self, points: np.ndarray, place: np.ndarray, size: float) -> bool:
        """Whether a ray to one of the points passes through the cube of this size at `place` [3]."""
        base, source = self._observed(points, "clearing")
        rays = base - (0.0, 0.0, self.height)
        length = np.linalg.norm(rays, axis=1, keepdims=True)
        # A ray ends two cells before its point, or at the greatest range.
        ends = np.minimum(length - 0.1, source["raytrace_max_range"]) / length
        along = (place[0] / rays[:, :1]).clip(0, None)
        reached = (along < ends)[:, 0]
        at = (0.0, 0.0, self.height) + along * rays
        return bool((reached & (np.abs(at - place) <= size / 2).all(1)).any())


def laser_scan(depth: Image, info: CameraInfo, parameters: dict) -> np.ndarray:
    """[width] ranges in metres of depthimage_to_laserscan, right to left as in the image; NaN unknown, +Inf free.

    Raises:
        ValueError: it would refuse the image.
    """
    kinds = {"32FC1": (np.float32, 1.0), "16UC1": (np.uint16, 0.001)}
    if depth.encoding not in kinds:
        raise ValueError(f"unsupported encoding {depth.encoding}")
    kind, unit = kinds[depth.encoding]
    p, rows = np.array(info.p).reshape(3, 4), parameters["scan_height"]
    if rows / 2 > min(p[1, 2], depth.height - p[1, 2]):
        raise ValueError("scan_height is too large for the image height")
    top = int(p[1, 2] - rows / 2)
    band = np.frombuffer(depth.data, kind).reshape(depth.height, depth.width)[top : top + rows].astype(float) * unit
    if kind is np.uint16:
        band[band == 0] = np.nan
    ranges = band * np.hypot(1.0, (np.arange(depth.width) - p[0, 2]) / p[0, 0])
    with np.errstate(invalid="ignore"):
        ranges[np.isfinite(ranges) & ~((ranges >= parameters["range_min"]) & (ranges <= parameters["range_max"]))] = (
            np.nan
        )
    finite = np.where(np.isfinite(ranges), ranges, np.inf).min(0)
    unknown = np.isnan(ranges).all(0)
    return np.where(unknown, np.nan, finite)


def rtabmap_refusal(image: Image, depth: Image) -> str | None:
    """Why RTAB-Map cannot use this pair with exact synchronisation; None if it can."""
    if depth.header.stamp != image.header.stamp or depth.header.frame_id != image.header.frame_id:
        return "stamp or frame differ"
    if depth.encoding not in ("16UC1", "32FC1", "mono16"):
        return f"depth is {depth.encoding}"
    if image.width % depth.width or image.height % depth.height:
        return "the image's size is not a multiple of depth's"
    return None


def points_of_depth_image_proc(depth: Image, info: CameraInfo) -> np.ndarray:
    """[h, w, 3] metres, the cloud of depth_image_proc::PointCloudXyzNode."""
    p = np.array(info.p).reshape(3, 4)
    z = np.frombuffer(depth.data, np.float32).reshape(depth.height, depth.width).astype(float)
    z = np.where(np.isfinite(z), z, np.nan)
    u, v = np.meshgrid(np.arange(depth.width), np.arange(depth.height))
    return np.stack([(u - p[0, 2]) * z / p[0, 0], (v - p[1, 2]) * z / p[1, 1], z], -1)
