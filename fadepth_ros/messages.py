"""Reads messages with ROS's types.

Images are read by `fadepth_core.messages`, and those of other encodings by cv_bridge, if it is installed.
"""

from __future__ import annotations

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image, PointCloud2, PointField

from fadepth_core.messages import images
from fadepth_core.messages.cdr import MessageError
from fadepth_core.messages.encodings import ENCODINGS, BitDepth
from fadepth_core.messages.images import Frame


def read_image(raw: bytes, depth: BitDepth | None = None) -> Frame:
    """Read a serialized sensor_msgs/Image, see `fadepth_core.messages.images.read_image`."""
    return images.read_image(raw, depth, _read_by_cv_bridge)


def _read_by_cv_bridge(raw: bytes, name: str) -> np.ndarray:
    """Convert an image to [H, W, 3] uint8 RGB. Raises MessageError."""
    try:
        from cv_bridge import CvBridge
    except ImportError:
        known = ", ".join(ENCODINGS)
        raise MessageError(
            "encoding", f"unknown encoding '{name}' (known: {known}; others where cv_bridge is installed)"
        ) from None
    try:
        return CvBridge().imgmsg_to_cv2(deserialize_message(raw, Image), "rgb8")
    except Exception as error:  # CvBridgeError, or numpy's errors for data that does not fit
        raise MessageError("encoding", f"encoding '{name}': {error}") from error


def read_cloud(cloud: PointCloud2) -> dict[str, np.ndarray]:
    """The fields of a cloud of h x w points as `CloudWriter` writes them.

    Returns:
        "points" [h, w, 3] float32; "colors" [h, w, 3] uint8 RGB if the cloud has a field rgb; "intensity" [h, w] float32 if
        it has one.
    """
    offsets = {field.name: field.offset for field in cloud.fields if field.datatype == PointField.FLOAT32}
    dtype = np.dtype(
        {
            "names": list(offsets),
            "formats": ["<f4"] * len(offsets),
            "offsets": list(offsets.values()),
            "itemsize": cloud.point_step,
        }
    )
    values = np.frombuffer(cloud.data, dtype).reshape(cloud.height, cloud.width)
    arrays = {"points": np.stack([values[axis] for axis in "xyz"], -1)}
    if "rgb" in offsets:
        arrays["colors"] = np.ascontiguousarray(values["rgb"])[..., None].view(np.uint8)[..., 2::-1]
    if "intensity" in offsets:
        arrays["intensity"] = values["intensity"]
    return arrays
