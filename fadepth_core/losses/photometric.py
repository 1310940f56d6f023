"""Weighted photometric loss L_bwp (specification 4.3): a frame against its reconstruction from another frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.losses.geometric import weighted_mean

_C1, _C2 = 0.01**2, 0.03**2  # SSIM's constants for a value range of 1
_SSIM_SHARE = 0.85


@dataclass
class ImageStatistics:
    """An image and the 3×3 moments SSIM needs of it, computed once however often it is compared.

    Attributes:
        image, mean, variance: each [B, 3, H, W].
    """

    image: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, image: Tensor) -> ImageStatistics:
        mean = _local_mean(image)
        return cls(image, mean, _local_mean(image.square()) - mean.square())

    def map(self, function: Callable[[Tensor], Tensor]) -> ImageStatistics:
        """The statistics of rearranged pictures, [B, ...] -> [B', ...]."""
        return ImageStatistics(function(self.image), function(self.mean), function(self.variance))


@dataclass
class ImagePairs:
    """Frames a beside frames b of the same cameras.

    Attributes:
        target: a with its statistics, [P, 3, H, W], RGB in [0, 1].
        source: b [P, 3, H, W].
        unmoved_error: pe(a, b) [P, 1, H, W].
        intrinsics: [P, 3, 3], pixels.
    """

    target: ImageStatistics
    source: Tensor
    unmoved_error: Tensor
    intrinsics: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor, intrinsics: Tensor) -> ImagePairs:
        """Shapes: two [P, 3, H, W], K [P, 3, 3]."""
        target = ImageStatistics.of(a)
        return cls(target, b, photometric_error(target, ImageStatistics.of(b)), intrinsics)


def ssim(a: ImageStatistics, b: ImageStatistics) -> Tensor:
    """Structural similarity per pixel and channel, [B, 3, H, W] in [-1, 1]: 3×3 mean window, reflected borders.

    Own code: kornia's window is Gaussian, and it would compute the moments of an image anew for every comparison.
    """
    covariance = _local_mean(a.image * b.image) - a.mean * b.mean
    similarity = (2 * a.mean * b.mean + _C1) * (2 * covariance + _C2)
    return similarity / ((a.mean.square() + b.mean.square() + _C1) * (a.variance + b.variance + _C2))


def photometric_error(a: ImageStatistics, b: ImageStatistics) -> Tensor:
    """pe = 0.85·(1 - SSIM)/2 + 0.15·|I_a - I_b|, mean over RGB, [B, 1, H, W]; symmetric in a and b."""
    dissimilarity = ((1 - ssim(a, b)) / 2).clamp(0, 1)
    difference = (a.image - b.image).abs()
    return torch.lerp(difference, dissimilarity, _SSIM_SHARE).mean(dim=1, keepdim=True)


def photometric_loss(error: Tensor, unmoved_error: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """L_bwp: weighted mean of `error` over the pixels that tell something about motion.

    Args:
        error: pe(I_a, Î_a) [B, 1, H, W].
        unmoved_error: pe(I_a, I_b) [B, 1, H, W]. Where it is the smaller one, the pixel looks as if nothing moved (a
            standing camera, or a car ahead at our own speed) and does not count.
        weight: w of specification 4.2 [B, 1, H, W].
        valid: V [B, 1, H, W] bool. One pixel is taken off its rim, because an SSIM window there contains the black
            that lies outside the other frame.
    """
    moving = unmoved_error >= error.detach()
    return weighted_mean(error, weight * off_rim(valid, error.dtype) * moving)


def off_rim(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """`valid` [B, 1, H, W] bool without the pixels beside one that is not, as 0 and 1 of `dtype`."""
    return -F.max_pool2d(-valid.to(dtype), 3, stride=1, padding=1)


def _local_mean(x: Tensor) -> Tensor:
    """Mean of each 3×3 neighbourhood, borders reflected: [B, C, H, W] -> [B, C, H, W]."""
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    if x.is_cuda:
        # A convolution may run in TF32 there, too coarse for the difference of two means that makes a variance.
        return F.avg_pool2d(x, 3, stride=1)
    # On a CPU, in channels_last, this takes a third of avg_pool2d's time.
    channels = x.shape[1]
    return F.conv2d(x, x.new_full((channels, 1, 3, 3), 1 / 9), groups=channels)
