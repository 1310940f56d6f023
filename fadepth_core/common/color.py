"""Colour of images: conversion to bytes, normalisation for the networks, and random colour jitter for training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: ImageNet mean and standard deviation of RGB in [0, 1]; every network input is normalised with them.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


def normalise(frames: Tensor) -> Tensor:
    """The networks' input, (frames - mean) / std. Shapes: RGB in [0, 1] [..., 3, H, W] -> [..., 3, H, W]."""
    mean, std = (frames.new_tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (frames - mean) / std


def to_bytes(images: Tensor) -> Tensor:
    """RGB in [0, 1] as uint8 of the same shape, rounded."""
    return (images * 255).round().byte()


def to_picture(frame: Tensor) -> np.ndarray:
    """A frame [3, H, W] of a sample, RGB in [0, 1], as an image: RGB uint8 [H, W, 3]."""
    return to_bytes(frame.permute(1, 2, 0)).numpy()


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue: one draw per sample, shared by all its frames.

    Each change is linear in RGB (hue is a rotation of the YIQ chroma plane). One 3×3 matrix and one offset per sample
    therefore apply all four changes, without a conversion to HSV and back.

    Args:
        brightness, contrast, saturation: limit b of a factor drawn from [1 - b, 1 + b].
        hue: largest shift, as a fraction of the full circle.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1

    def __call__(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Change the colours of a batch of samples with N frames each.

        Args:
            frames: RGB in [0, 1] [B, N, 3, H, W].
            generator: source of the random numbers; None: torch's default generator.

        Returns:
            RGB in [0, 1] [B, N, 3, H, W].
        """
        draw = frames.new_empty(4, len(frames)).uniform_(-1, 1, generator=generator)
        brightness, contrast, saturation = (
            1 + limit * x for limit, x in zip((self.brightness, self.contrast, self.saturation), draw[:3], strict=True)
        )
        chroma = self._chroma_matrix(saturation, 2 * torch.pi * self.hue * draw[3])
        # Contrast scales the distance to the mean grey level of the brightened sample. The chroma matrix does not
        # change grey, so the mean can be taken before it.
        grey = frames.mean((1, 3, 4)) @ _RGB_TO_YIQ.to(frames)[0]
        offset = (1 - contrast) * brightness * grey
        matrix = (contrast * brightness)[:, None, None] * chroma
        pixels = frames.permute(0, 1, 3, 4, 2)
        mixed = torch.baddbmm(offset[:, None, None], pixels.flatten(1, 3), matrix.transpose(1, 2))
        return mixed.clamp(0, 1).view(pixels.shape).permute(0, 1, 4, 2, 3)

    @staticmethod
    def _chroma_matrix(saturation: Tensor, angle: Tensor) -> Tensor:
        """RGB -> RGB [B, 3, 3] that scales and rotates the chroma plane."""
        cosine, sine, zero = saturation * angle.cos(), saturation * angle.sin(), torch.zeros_like(angle)
        rows = [torch.ones_like(angle), zero, zero, zero, cosine, -sine, zero, sine, cosine]
        to_yiq = _RGB_TO_YIQ.to(saturation)
        return torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=-1).unflatten(-1, (3, 3)) @ to_yiq


# NTSC's definition of YIQ. The two chroma rows sum to zero, so grey pixels have no chroma.
_RGB_TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64
)
