"""Two-view geometry: pinhole cameras, disparity, rigid motion and warping (docs/method.md, sections 1.6 and 4.1)."""

from fadepth_core.geometry.camera import (
    area_average,
    crop_intrinsics,
    flip_intrinsics,
    pixel_directions,
    pixel_grid,
    project,
    scale_intrinsics,
    unproject,
    viewing_rays,
)
from fadepth_core.geometry.disparity import MAX_DEPTH, MIN_DEPTH, depth_to_disparity, disparity_to_depth
from fadepth_core.geometry.motion import (
    invert_motion,
    mirror_motion,
    motion_from_vector,
    relative_motion,
    rotation_error,
    transform_points,
    translation_direction_error,
)
from fadepth_core.geometry.warp import Reprojection, reproject, sample

__all__ = [
    "MAX_DEPTH",
    "MIN_DEPTH",
    "Reprojection",
    "area_average",
    "crop_intrinsics",
    "depth_to_disparity",
    "disparity_to_depth",
    "flip_intrinsics",
    "invert_motion",
    "mirror_motion",
    "motion_from_vector",
    "pixel_directions",
    "pixel_grid",
    "project",
    "relative_motion",
    "reproject",
    "rotation_error",
    "sample",
    "scale_intrinsics",
    "transform_points",
    "translation_direction_error",
    "unproject",
    "viewing_rays",
]
