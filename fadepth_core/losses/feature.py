"""Feature perception loss L_bfp (docs/method.md, section 4.3): compares two views by features of the depth network.

Unlike colours, these features also differ from pixel to pixel where the image has no texture.
"""

from __future__ import annotations

from torch import Tensor

from fadepth_core.geometry import pixel_grid, sample
from fadepth_core.losses.geometric import weighted_mean

# Lower bound on the length of a feature vector in the cosine. Without it, the gradient would be unbounded near zero.
_MIN_LENGTH = 1e-3


def feature_loss(features_a: Tensor, features_b: Tensor, flow: Tensor, weight: Tensor, offset: int = 0) -> Tensor:
    """Weighted mean of 1 - cos(F_a, F_b⟨q⟩), []. Gradients reach both feature maps and the flow.

    Flow and weight have the image's size. They are read without interpolation at the pixels on which the encoder's
    strided filters are centred: pixel s·i + offset for feature i at stride s.

    Args:
        features_a, features_b: encoder maps of the two views [B, C, ceil(H / s), ceil(W / s)], s a power of two.
        flow: F_{a→b} [B, 2, H, W], pixels of the image.
        weight: w [B, 1, H, W].
        offset: pixel on which the first feature is centred, `feature_offset` of the network.

    Raises:
        ValueError: the size of the feature maps does not match the image at a whole stride.
    """
    height, width = features_a.shape[-2:]
    stride = round(flow.shape[-1] / width)
    flow, weight = (x[..., offset::stride, offset::stride] for x in (flow / stride, weight))
    if flow.shape[-2:] != (height, width):
        raise ValueError(f"features of {height}x{width} do not fit the image at a stride of {stride} pixels")
    warped = sample(features_b, pixel_grid(height, width, device=flow.device, dtype=flow.dtype) + flow)
    # `F.cosine_similarity` takes twice as long, because it divides whole feature maps by their lengths.
    product = (features_a * warped).sum(1, keepdim=True)
    return weighted_mean(1 - product / (_length(features_a) * _length(warped)), weight)


def _length(features: Tensor) -> Tensor:
    """Length of every feature vector, [B, C, h, w] -> [B, 1, h, w]."""
    return features.square().sum(1, keepdim=True).clamp(min=_MIN_LENGTH**2).sqrt()
