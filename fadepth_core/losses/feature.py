"""Feature perception loss L_bfp (specification 4.3): views are compared in the depth network's own features, which still
tell places apart where the image has no texture.
"""

from __future__ import annotations

from torch import Tensor

from fadepth_core.geometry import pixel_grid, sample
from fadepth_core.losses.geometric import weighted_mean

# Shorter feature vectors count as having no direction; bounds the gradient of the cosine.
_SHORTEST = 1e-3


def feature_loss(features_a: Tensor, features_b: Tensor, flow: Tensor, weight: Tensor, offset: int = 0) -> Tensor:
    """Weighted mean of 1 - cos(F_a, F_b⟨q⟩); gradients reach both feature maps and the flow.

    Flow and weight are taken at the pixels that the strided filters of the encoder are centred on (feature i at stride s
    is centred on pixel s·i + offset), so neither has to be interpolated.

    Args:
        features_a, features_b: encoder maps of the two views [B, C, ceil(H / s), ceil(W / s)], s a power of two.
        flow: F_{a→b} [B, 2, H, W], pixels of the image.
        weight: w [B, 1, H, W].
        offset: pixel that the first feature is centred on, `feature_offset` of the network.

    Raises:
        ValueError: the feature maps are not on a grid of whole stride.
    """
    height, width = features_a.shape[-2:]
    stride = round(flow.shape[-1] / width)
    flow, weight = (x[..., offset::stride, offset::stride] for x in (flow / stride, weight))
    if flow.shape[-2:] != (height, width):
        raise ValueError(f"features of {height}x{width} do not fit an image of which every {stride}th pixel is taken")
    seen = sample(features_b, pixel_grid(height, width, device=flow.device, dtype=flow.dtype) + flow)
    # Not torch's cosine_similarity, which divides whole feature maps by their lengths and takes twice the time.
    product = (features_a * seen).sum(1, keepdim=True)
    return weighted_mean(1 - product / (_length(features_a) * _length(seen)), weight)


def _length(features: Tensor) -> Tensor:
    """Length of every feature vector, [B, C, h, w] -> [B, 1, h, w]."""
    return features.square().sum(1, keepdim=True).clamp(min=_SHORTEST**2).sqrt()
