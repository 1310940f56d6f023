"""The paper's figures (Tables II and III), for comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fadepth_core.evaluation.metrics import DepthMetrics
from fadepth_core.evaluation.protocols import PROTOCOLS, Protocol


@dataclass(frozen=True)
class PublishedRow:
    """One row of the paper's tables.

    Attributes:
        method: name in the paper.
        size: (height, width) of the network's input, pixels.
        flip: whether it is a ‡ row, taken as flip post-processing.
        metrics: NaN where the paper prints none.
    """

    method: str
    size: tuple[int, int]
    flip: bool
    metrics: DepthMetrics

    @property
    def label(self) -> str:
        """The method with the paper's mark for flip post-processing."""
        return self.method + ("‡" if self.flip else "")


# method, ‡; AbsRel, SqRel, RMSE, RMSElog, δ1, δ2, δ3
_TABLES = {
    # Table II, ground truth from LiDAR.
    ("kitti_eigen", (128, 416)): (
        ("HQDec", False, 0.103, 0.706, 4.569, 0.176, 0.882, 0.962, 0.985),
        ("HQDec", True, 0.099, 0.693, 4.494, 0.173, 0.887, 0.963, 0.985),
        ("SmallDepth", False, 0.097, 0.674, 4.554, 0.177, 0.888, 0.961, 0.983),
        ("SmallDepth", True, 0.094, 0.662, 4.494, 0.174, 0.893, 0.962, 0.983),
        ("HQDecv2", False, 0.098, 0.695, 4.472, 0.179, 0.893, 0.963, 0.983),
        ("HQDecv2", True, 0.095, 0.682, 4.400, 0.176, 0.899, 0.964, 0.983),
    ),
    ("kitti_eigen", (192, 640)): (
        ("HQDec", False, 0.096, 0.654, 4.281, 0.169, 0.896, 0.965, 0.985),
        ("HQDec", True, 0.092, 0.642, 4.233, 0.167, 0.899, 0.966, 0.985),
        ("SmallDepth", False, 0.097, 0.670, 4.550, 0.178, 0.890, 0.961, 0.983),
        ("SmallDepth", True, 0.094, 0.660, 4.497, 0.175, 0.895, 0.961, 0.982),
        ("HQDecv2", False, 0.092, 0.680, 4.198, 0.169, 0.909, 0.967, 0.984),
        ("HQDecv2", True, 0.087, 0.664, 4.140, 0.167, 0.912, 0.967, 0.984),
    ),
    # Table II, improved ground truth. The paper does not state the protocol. It prints monodepth2's own figures
    # (Monodepth2: 0.090 / 0.545 / 3.942) beside its rows, so its rows are assigned to monodepth2's protocol, without
    # crop or cap on the ground truth. kitti_eigen_improved, with both, has no published rows.
    ("kitti_eigen_improved_monodepth2", (128, 416)): (
        ("HQDec", False, 0.074, 0.403, 3.746, 0.121, 0.930, 0.986, 0.997),
        ("HQDec", True, 0.071, 0.384, 3.632, 0.117, 0.935, 0.987, 0.997),
        ("SmallDepth", False, 0.069, 0.372, 3.685, 0.116, 0.935, 0.986, 0.996),
        ("SmallDepth", True, 0.066, 0.359, 3.617, 0.113, 0.939, 0.987, 0.996),
        ("HQDecv2", False, 0.067, 0.355, 3.536, 0.113, 0.941, 0.988, 0.997),
        ("HQDecv2", True, 0.065, 0.339, 3.440, 0.109, 0.946, 0.989, 0.997),
    ),
    ("kitti_eigen_improved_monodepth2", (192, 640)): (
        ("HQDec", False, 0.065, 0.328, 3.289, 0.107, 0.945, 0.990, 0.997),
        ("HQDec", True, 0.062, 0.318, 3.231, 0.105, 0.948, 0.990, 0.997),
        ("SmallDepth", False, 0.067, 0.362, 3.667, 0.114, 0.937, 0.986, 0.996),
        ("SmallDepth", True, 0.065, 0.350, 3.603, 0.112, 0.940, 0.987, 0.996),
        ("HQDecv2", False, 0.059, 0.283, 3.004, 0.097, 0.958, 0.992, 0.998),
        ("HQDecv2", True, 0.057, 0.274, 2.952, 0.095, 0.961, 0.992, 0.998),
    ),
    # Table III states no cap. The RMSE of its rows is either 6 to 7 m (cap of 80 m) or 13 m (cap of 200 m).
    ("ddad_80", (384, 640)): (
        ("CbwLoss", False, 0.121, 1.229, 6.721, 0.187, 0.853, 0.958, 0.985),
        ("HQDec", False, 0.113, 1.214, 6.286, 0.176, 0.876, 0.963, 0.985),
        ("HQDec", True, 0.107, 1.173, 6.109, 0.171, 0.885, 0.964, 0.985),
        ("SmallDepth", False, 0.118, 1.229, 6.745, 0.188, 0.860, 0.957, 0.983),
        ("SmallDepth", True, 0.112, 1.177, 6.547, 0.182, 0.867, 0.959, 0.984),
        ("HQDecv2", False, 0.108, 1.279, 6.345, 0.176, 0.884, 0.963, 0.983),
        ("HQDecv2", True, 0.103, 1.246, 6.210, 0.172, 0.894, 0.964, 0.984),
    ),
    ("ddad_200", (384, 640)): (("PackNet", False, 0.162, 3.917, 13.452, 0.269, 0.823, math.nan, math.nan),),
}


def published_rows(protocol: Protocol, size: tuple[int, int] | None = None) -> list[PublishedRow]:
    """The paper's rows that are comparable with an evaluation by `protocol`.

    Args:
        protocol: a modified one, e.g. with another scaling, has no published rows; neither have "folder" and
            "kitti_eigen_improved".
        size: (height, width) of the network's input; None: all sizes.
    """
    if protocol != PROTOCOLS.get(protocol.name):
        return []
    return [
        PublishedRow(method, row_size, flip, DepthMetrics(*values))
        for (name, row_size), rows in _TABLES.items()
        if name == protocol.name and size in (None, row_size)
        for method, flip, *values in rows
    ]
