"""Reads the node's images: by `fadepth_core.messages`, and images of other encodings by cv_bridge, if it is installed."""

from __future__ import annotations

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image

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
