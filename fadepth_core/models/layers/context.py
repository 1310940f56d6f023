"""Global path of HQDecv2's refinement and heads (FA-Depth eq. 25): self-attention on a coarse grid of tokens.

HQDec (version 1) computes tokens from patches that do not overlap and returns to the map by a transposed convolution.
Patch borders are then visible in the depth map. Here tokens are computed by strided 3×3 filters, which overlap, and the
map is recovered by interpolation and a local filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.models.layers.channels import conv_bn_elu
from fadepth_core.models.layers.conv import conv2d
from fadepth_core.models.layers.sparse import upsample_to

#: Token grid (rows, columns) of a 128×416 image, one token per 32×32 pixels. The learned positions have this size.
POSITION_GRID = (4, 13)
_MLP_RATIO = 3


@dataclass(frozen=True)
class TokenConfig:
    """Size of the tokens of one global path.

    Attributes:
        width: channels of a token.
        heads: attention heads.
        halvings: number of stride-2 filters between the map and the token grid.
    """

    width: int
    heads: int
    halvings: int


class GlobalContext(nn.Module):
    """Adds global context to a map, by self-attention between its tokens. Shapes: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, tokens: TokenConfig):
        super().__init__()
        self.sample = nn.Sequential(
            *(conv_bn_elu(channels, channels, 3, stride=2, groups=channels) for _ in range(tokens.halvings))
        )
        self.embed = conv_bn_elu(channels, tokens.width)
        self.position = nn.Parameter(torch.empty(1, tokens.width, *POSITION_GRID))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.block = TransformerBlock(tokens.width, tokens.heads)
        self.norm = nn.LayerNorm(tokens.width)
        self.project = conv2d(tokens.width, channels, 1, bias=True)
        self.recover = conv_bn_elu(channels, channels, 3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.embed(self.sample(x))
        grid = grid + upsample_to(self.position, grid.shape[-2:])
        tokens = self.norm(self.block(grid.flatten(2).transpose(1, 2)))
        grid = tokens.transpose(1, 2).reshape_as(grid)
        return x + self.recover(upsample_to(self.project(grid), x.shape[-2:]))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron. Shapes: [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, _MLP_RATIO * width), nn.GELU(), nn.Linear(_MLP_RATIO * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class _TokenFilter(nn.Linear):
    """nn.Linear computed as a 1-D convolution with kernel size 1, channels first: [B, N, D] -> [B, D', N].

    TensorRT-RTX 1.7 fails on an nn.Linear whose output is split into heads ("logical memory size should be equal to
    non-opaque payload size").
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x.transpose(1, 2), self.weight.unsqueeze(-1), self.bias)


class SelfAttention(nn.Module):
    """Multi-head self-attention. Shapes: [B, N, D] -> [B, N, D], D a multiple of the number of heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = _TokenFilter(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(1, (self.heads, -1)).transpose(2, 3) for part in self.qkv(x).chunk(3, dim=1))
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
