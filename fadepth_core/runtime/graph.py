"""`DepthGraph`: from a camera frame to metric depth and points, as one module to export.

uint8 frame -> crop, resize -> normalise -> fused network -> disparity -> (resize) -> depth in metres -> points.
A network with a confidence head also gives the confidence of each pixel, at the same size as depth.
Every backend compiles this graph. So data is copied to the device and back only once, and one comparison with plain PyTorch
verifies preprocessing, network and unprojection together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD
from fadepth_core.common.framing import Framing, box_factors
from fadepth_core.geometry import disparity_to_depth, pixel_directions
from fadepth_core.models.depth_network import DeployedNetwork


class DepthGraph(nn.Module):
    """The deployment graph for one camera size.

    Args:
        network: fused network, [B, 3, h, w] normalised image -> x in (0, 1) [B, 1, h, w], with `min_depth` and
            `max_depth` in metres; it is converted to `dtype` in place.
        framing: sizes and crop; None: frames have the network's size already.
        dtype: type the network computes in. The rest is float32: half precision has 11 bits, which suffice for the
            normalised image (8 bits), but not for depth in metres or the columns of a wide image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: DeployedNetwork, framing: Framing | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.network = network.to(dtype)
        self.framing = framing
        self.dtype = dtype
        self.register_buffer("mean", 255.0 * torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, intrinsics: Tensor, scale: Tensor, limits: Tensor) -> tuple[Tensor, ...]:
        """Estimate depth of one frame or, if every argument has a leading dimension B, of a batch.

        Args:
            image: [H, W, 3] uint8 RGB, at the camera's size or already at the network's.
            intrinsics: [3, 3] float32, K of the *published* depth image (`Framing.output_intrinsics`), pixels.
            scale: [1] float32, factor on depth.
            limits: [2] float32, nearest and farthest depth that count as measured, metres.

        Returns:
            depth [h, w] float32 in metres along the optical axis, -inf nearer and +inf farther than `limits` (REP-117);
            points [h, w, 3] float32, x right, y down, z forward in metres (REP-103 optical), NaN where depth is not
            finite;
            confidence [h, w] float32 in (0, 1), only if the network has a confidence head: 1 / (1 + expected relative
            error of depth).
        """
        x = self.channels_first(image)
        if self.framing is not None:
            x = resize_to_network(x, self.framing)
        disparity, *confidence = self.network_maps(((x - self.mean) / self.std).to(self.dtype))
        size = self.output_size(disparity)
        if size != tuple(disparity.shape[-2:]):
            # Disparity, not depth, is interpolated, as in the published evaluation protocols.
            disparity, *confidence = (_interpolated(x, size) for x in (disparity, *confidence))
        if image.dim() != 4:
            disparity, *confidence = (x[0] for x in (disparity, *confidence))
        depth, points = self.depth_and_points(disparity, intrinsics, scale, limits)
        return (depth, points, *(c.squeeze(-3) for c in confidence))

    def example_inputs(self, camera_size: tuple[int, int], batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Arguments of `forward` for a batch of frames of `camera_size` (height, width), to export or compile the graph with."""
        device = self.mean.device
        return (
            torch.zeros(batch, *camera_size, 3, dtype=torch.uint8, device=device),
            torch.eye(3, device=device).repeat(batch, 1, 1),
            torch.ones(batch, 1, device=device),
            torch.ones(batch, 2, device=device),
        )

    def channels_first(self, image: Tensor) -> Tensor:
        """uint8 [H, W, 3] or [B, H, W, 3] -> float32 [B, 3, H, W]."""
        # Converted first, because TensorRT supports uint8 only as the type of an input.
        x = image.to(self.mean.dtype)
        return x.permute(0, 3, 1, 2) if image.dim() == 4 else x.permute(2, 0, 1).unsqueeze(0)

    def network_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Disparity and, if the network has a confidence head, confidence, float32 [B, 1, h, w], of a normalised image."""
        if self.network.confidence is None:
            return (self.network(x).float(),)
        disparity, confidence = self.network(x, True)
        return disparity.float(), confidence.float()

    def depth_and_points(
        self, disparity: Tensor, intrinsics: Tensor, scale: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The outputs of `forward` from the network's disparity, [1, h, w] or [B, 1, h, w]."""
        depth = disparity_to_depth(disparity.squeeze(-3), self.network.min_depth, self.network.max_depth)
        depth = scale[..., None] * depth
        return limit_depth(depth, limits), limited_points(depth, intrinsics, limits)

    def output_size(self, disparity: Tensor) -> tuple[int, int]:
        """(height, width) of the published depth: that of `framing`, or without a framing that of the disparity."""
        if self.framing is not None:
            return self.framing.output_size
        height, width = disparity.shape[-2:]
        return height, width


class ShapeCarriedGraph(DepthGraph):
    """`DepthGraph` for one ONNX file that serves every size: frames come at the network's size, and the published size
    is the shape of a dummy input.

    It is exported with dynamic axes. A backend that fixes the shapes of the inputs gets a fully static graph.
    """

    def forward(  # type: ignore[override]  # one input more
        self, image: Tensor, intrinsics: Tensor, scale: Tensor, limits: Tensor, output_grid: Tensor
    ) -> tuple[Tensor, ...]:
        """Estimate depth of one frame, see `DepthGraph.forward`.

        Args:
            image: [h, w, 3] uint8 RGB at the network's size.
            output_grid: [H, W] uint8, of which only the shape is used: the size of the published depth.
        """
        maps = self.network_maps((self.channels_first(image) - self.mean) / self.std)
        disparity, *confidence = (_interpolated(x, output_grid.shape)[0] for x in maps)
        depth, points = self.depth_and_points(disparity, intrinsics, scale, limits)
        return (depth, points, *(c.squeeze(-3) for c in confidence))


def _interpolated(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def resize_to_network(x: Tensor, framing: Framing) -> Tensor:
    """`Framing.to_network` as tensor operations: [B, C, H, W] -> [B, C, h, w]; frames of that size are unchanged."""
    h, w = framing.network_size
    if tuple(x.shape[-2:]) == (h, w):
        return x
    top, left, height, width = framing.crop
    x = x[..., top : top + height, left : left + width]
    if (height, width) == (h, w):
        return x
    fy, fx = box_factors((height, width), (h, w))
    x = F.interpolate(x, size=(h * fy, w * fx), mode="bilinear", align_corners=False)
    return F.avg_pool2d(x, (fy, fx)) if fy > 1 or fx > 1 else x


def limit_depth(depth: Tensor, limits: Tensor) -> Tensor:
    """Replace depths outside `limits` as in REP-117: -inf too close, +inf too far. Shapes: [(B,) h, w], [(B,) 2] ->
    [(B,) h, w]."""
    near, far = limits[..., :1, None], limits[..., 1:, None]
    infinity = torch.full_like(depth, torch.inf)
    return torch.where(depth > far, infinity, torch.where(depth < near, -infinity, depth))


def limited_points(depth: Tensor, intrinsics: Tensor, limits: Tensor) -> Tensor:
    """Points in the optical frame, NaN outside the limits. Shapes: depth [(B,) h, w], K [(B,) 3, 3], limits [(B,) 2] ->
    [(B,) h, w, 3]."""
    x, y = pixel_directions(intrinsics, *depth.shape[-2:])
    inside = (depth >= limits[..., :1, None]) & (depth <= limits[..., 1:, None])
    z = torch.where(inside, depth, torch.full_like(depth, torch.nan))
    return torch.stack([z * x, z * y, z], dim=-1)
