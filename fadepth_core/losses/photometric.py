"""Weighted photometric loss L_bwp (docs/method.md, section 4.3): a frame against its reconstruction from another."""

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
    """An image with the 3×3 moments that SSIM needs, computed once for several comparisons.

    Attributes:
        image, mean, variance: each [B, 3, H, W].
    """

    image: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, image: Tensor) -> ImageStatistics:
        """The statistics of images [B, 3, H, W], RGB in [0, 1]."""
        mean = _local_mean(image)
        return cls(image, mean, _local_mean(image.square()) - mean.square())

    def map(self, function: Callable[[Tensor], Tensor]) -> ImageStatistics:
        """The statistics of rearranged images; `function` maps [B, ...] -> [B', ...]."""
        return ImageStatistics(function(self.image), function(self.mean), function(self.variance))


@dataclass
class ImagePairs:
    """Pairs of frames a and b of the same camera.

    Attributes:
        target: a with its statistics, [P, 3, H, W], RGB in [0, 1].
        source: b [P, 3, H, W].
        unmoved_error: pe(a, b) [P, 1, H, W], the error without warping (monodepth2's identity reprojection error).
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

    kornia's SSIM is not used: its window is Gaussian, and it computes the moments of an image again for every
    comparison.
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
    """L_bwp: weighted mean of `error`, [], with monodepth2's auto-mask.

    Args:
        error: pe(I_a, Î_a) [B, 1, H, W].
        unmoved_error: pe(I_a, I_b) [B, 1, H, W]. A pixel where it is smaller than `error` does not count, because it
            looks as if nothing moved: the camera stands, or a car ahead has the camera's speed.
        weight: w of docs/method.md, section 4.2 [B, 1, H, W].
        valid: V [B, 1, H, W] bool. It is eroded by one pixel here, because an SSIM window at its border contains black
            pixels, which stand for the area outside frame b.
    """
    moving = unmoved_error >= error.detach()
    return weighted_mean(error, weight * eroded(valid, error.dtype) * moving)


def eroded(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """`valid` [B, 1, H, W] bool eroded by one pixel, as 0 and 1 of `dtype`."""
    return -F.max_pool2d(-valid.to(dtype), 3, stride=1, padding=1)


def _local_mean(x: Tensor) -> Tensor:
    """Mean of each 3×3 window, borders reflected: [B, C, H, W] -> [B, C, H, W]."""
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    if x.is_cuda:
        # On a GPU a convolution may run in TF32, which is too inaccurate for a variance (a difference of two means).
        return F.avg_pool2d(x, 3, stride=1)
    # On a CPU, with channels_last memory, a convolution takes a third of the time of avg_pool2d.
    channels = x.shape[1]
    return F.conv2d(x, x.new_full((channels, 1, 3, 3), 1 / 9), groups=channels)
