"""What SmallDepth is compared with: a ResNet-18 depth net of the Monodepth2 kind, with random weights.

Encoder: ResNet-18 without its classifier. Decoder: five stages of 3×3 convolution, nearest-neighbour upsampling,
concatenated skip and another 3×3 convolution, reflection-padded, with ELU; a 3×3 head and a sigmoid at full resolution.
Built from the description in the papers; its counts are those of the FA-Depth paper's Table IV.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Residual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride, 1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU(),
            nn.Conv2d(cout, cout, 3, 1, 1, bias=False),
            nn.BatchNorm2d(cout),
        )
        change = stride > 1 or cin != cout
        self.skip = (
            nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
            if change
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class _ReflectConv(nn.Sequential):
    def __init__(self, cin: int, cout: int):
        super().__init__(nn.ReflectionPad2d(1), nn.Conv2d(cin, cout, 3))


class ResNet18Depth(nn.Module):
    """[1, 3, H, W] normalised image -> x in (0, 1) [1, 1, H, W]; H and W multiples of 32."""

    min_depth, max_depth = 0.1, 100.0

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        widths = (64, 64, 128, 256, 512)
        self.stages = nn.ModuleList(
            nn.Sequential(_Residual(cin, cout, 1 if index == 0 else 2), _Residual(cout, cout, 1))
            for index, (cin, cout) in enumerate(pairwise(widths))
        )
        decoder = (256, 128, 64, 32, 16)
        skips = (256, 128, 64, 64, 0)
        inputs = (512, *decoder)
        self.before = nn.ModuleList(_ReflectConv(inputs[i], decoder[i]) for i in range(5))
        self.after = nn.ModuleList(_ReflectConv(decoder[i] + skips[i], decoder[i]) for i in range(5))
        self.head = _ReflectConv(16, 1)

    def encoder_modules(self) -> list[nn.Module]:
        return [self.stem, self.stages]

    def decoder_modules(self) -> list[nn.Module]:
        return [self.before, self.after, self.head]

    def forward(self, image: Tensor) -> Tensor:
        features = [self.stem(image)]
        x = F.max_pool2d(features[0], 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        skips = [*reversed(features[:-1]), None]
        for before, after, skip in zip(self.before, self.after, skips, strict=True):
            x = F.interpolate(F.elu(before(x)), scale_factor=2, mode="nearest")
            x = F.elu(after(x if skip is None else torch.cat([x, skip], 1)))
        return torch.sigmoid(self.head(x))
