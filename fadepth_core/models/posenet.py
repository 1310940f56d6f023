"""Pose networks: the camera motion between two frames, needed for training only (docs/method.md, section 4.5).

`PoseNet` is the paper's choice, timm's FBNetV3. `SmallPoseNet` is a faster replacement for tests and CPU training.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fadepth_core.models.layers.backbone import timm_backbone
from fadepth_core.models.layers.conv import ConvBN

# Keeps the motions near zero at the start of training, so that the reprojected frames overlap.
_OUTPUT_SCALE = 0.01


class PoseNet(nn.Module):
    """FBNetV3-b on two stacked frames, with a linear layer on its 1984 pooled features: 6.6 M parameters.

    Args:
        weights: local file of ImageNet weights in timm's format for this backbone (.safetensors or .pth). Its first
            filters are for one RGB image; they are repeated for both frames and halved. None starts from random
            weights.

    Shapes: two normalised frames in temporal order, stacked along the channels [B, 6, H, W] -> [B, 6]: axis-angle
    (radians) and translation (metres up to scale) of T_{first→second}.

    Raises:
        ImportError: timm cannot be imported.
        FileNotFoundError: the file `weights` does not exist.
    """

    BACKBONE = "fbnetv3_b"
    FEATURES = 1984

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        self.encoder = timm_backbone(self.BACKBONE, weights, in_chans=6, num_classes=0)
        self.head = nn.Linear(self.FEATURES, 6)

    def forward(self, pair: Tensor) -> Tensor:
        return _OUTPUT_SCALE * self.head(self.encoder(pair))


class SmallPoseNet(nn.Module):
    """Six strided 3×3 convolutions, 0.76 M parameters, no dependency on timm. Not in the paper.

    For tests, demonstrations and CPU training, which use small images. On these, the last maps of `PoseNet` have only a
    few pixels, and its many layers take most of the training time.

    Shapes: as `PoseNet`.
    """

    WIDTHS = (16, 32, 64, 128, 192, 256)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*(ConvBN(cin, cout, 3, stride=2) for cin, cout in pairwise((6, *self.WIDTHS))))
        self.head = nn.Linear(self.WIDTHS[-1], 6)

    def forward(self, pair: Tensor) -> Tensor:
        return _OUTPUT_SCALE * self.head(self.encoder(pair).mean((2, 3)))


POSE_NETS: dict[str, Callable[..., nn.Module]] = {"fbnetv3_b": PoseNet, "small": SmallPoseNet}


def build_pose_net(name: str, **options: Any) -> nn.Module:
    """Build a pose network.

    Args:
        name: a name in `POSE_NETS`.
        options: arguments of its class.

    Raises:
        ValueError: no pose network has that name.
    """
    if name not in POSE_NETS:
        raise ValueError(f"unknown pose network '{name}'; known: {', '.join(POSE_NETS)}")
    return POSE_NETS[name](**options)
