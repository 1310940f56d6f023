"""Camera motion between two frames (specification 4.5): needed while training, discarded afterwards.

`PoseNet` is the paper's choice, FBNetV3 of timm; `SmallPoseNet` stands in for it where that is too slow.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from fadepth_core.models.layers.backbone import timm_backbone
from fadepth_core.models.layers.conv import ConvBN

# Keeps the first motions near zero, so that training starts from frames that still overlap.
_OUTPUT_SCALE = 0.01


class PoseNet(nn.Module):
    """FBNetV3-b on two stacked frames: 6.6 M parameters, ending in a linear map of its 1984 pooled features.

    Args:
        weights: local file of ImageNet weights in timm's format for this backbone (.safetensors or .pth); its filters for
            one RGB picture are spread over both. None starts from random weights.

    Shapes: two normalised frames in temporal order, stacked along the channels [B, 6, H, W] -> [B, 6]: axis-angle
    (radians) and translation (metres up to scale) of T_{first→second}.

    Raises:
        ImportError: timm cannot be imported.
        FileNotFoundError: there is no file `weights`.
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
    """Six strided 3×3 convolutions, 0.76 M parameters, no dependency: for tests, demonstrations and training on a CPU,
    where the small pictures leave `PoseNet` little to look at and its many layers most of the time. Not the paper's.

    Shapes: as `PoseNet`.
    """

    WIDTHS = (16, 32, 64, 128, 192, 256)

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(*(ConvBN(cin, cout, 3, stride=2) for cin, cout in pairwise((6, *self.WIDTHS))))
        self.head = nn.Linear(self.WIDTHS[-1], 6)

    def forward(self, pair: Tensor) -> Tensor:
        return _OUTPUT_SCALE * self.head(self.encoder(pair).mean((2, 3)))


POSE_NETS: dict[str, Callable[..., nn.Module]] = {"fbnetv3_b": PoseNet, "small": SmallPoseNet}


def build_pose_net(name: str, **options) -> nn.Module:
    """Build the pose network called `name`.

    Raises:
        ValueError: no pose network has that name.
    """
    if name not in POSE_NETS:
        raise ValueError(f"unknown pose network '{name}'; known: {', '.join(POSE_NETS)}")
    return POSE_NETS[name](**options)
