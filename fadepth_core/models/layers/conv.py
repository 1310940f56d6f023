"""Convolution + BatchNorm + activation, the unit everything here is made of, and its folding for deployment.

`conv2d` is the one place that decides whether a spatial filter is a plain convolution or an ETM; `folded` turns either,
with the BatchNorm behind it, into one plain convolution, and `load_folded` goes the way back, so that training can go on
from a network that was made for deployment.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fadepth_core.models.layers.etm import ETMConfig, ETMConv2d


def conv2d(cin, cout, kernel, stride=1, dilation=1, groups=1, bias=False, etm: ETMConfig | None = None) -> nn.Module:
    """A "same"-padded convolution; with `etm` set and a kernel larger than 1×1, its ETM form."""
    if etm is not None and kernel > 1:
        return ETMConv2d(cin, cout, kernel, stride, dilation, groups, bias, etm)
    conv = nn.Conv2d(cin, cout, kernel, stride, dilation * (kernel - 1) // 2, dilation, groups, bias=bias)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear" if bias else "relu")  # with a bias, no ReLU follows
    if bias:
        nn.init.zeros_(conv.bias)
    return conv


class ConvBN(nn.Module):
    """Convolution (no bias) -> BatchNorm -> optional ReLU: `CBA` and `CB` of the specification.

    Shapes: [B, Ci, H, W] -> [B, Co, ceil(H / s), ceil(W / s)].
    """

    def __init__(self, cin, cout, kernel=1, stride=1, dilation=1, groups=1, relu=True, etm: ETMConfig | None = None):
        super().__init__()
        self.conv = conv2d(cin, cout, kernel, stride, dilation, groups, etm=etm)
        self.bn = nn.BatchNorm2d(cout)
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def folded(self) -> nn.Conv2d:
        """The plain convolution with bias that equals convolution and BatchNorm in evaluation; activation left out."""
        return fold(self.conv, self.bn)

    def load_folded(self, conv: nn.Conv2d) -> None:
        """Compute in evaluation what the plain convolution `conv` does: the inverse of `folded`."""
        load_kernel(self.conv, conv.weight)
        pass_through(self.bn, conv.bias)


@torch.no_grad()
def load_kernel(conv: nn.Module, kernel: Tensor, bias: Tensor | None = None) -> None:
    """Give a plain convolution or an ETM this kernel [Co, Ci/g, Kh, Kw], and this bias [Co] if it has one."""
    if isinstance(conv, ETMConv2d):
        conv.load_kernel(kernel)
    else:
        conv.weight.copy_(kernel)
    if bias is not None:
        conv.bias.copy_(bias)


@torch.no_grad()
def pass_through(bn: nn.BatchNorm2d, shift: Tensor) -> None:
    """A BatchNorm that in evaluation adds `shift` [C] and does nothing else."""
    bn.running_mean.zero_()
    bn.running_var.fill_(1.0)
    bn.weight.fill_((1.0 + bn.eps) ** 0.5)
    bn.bias.copy_(shift)


@torch.no_grad()
def settle_batch_norm(network: nn.Module, images: Tensor) -> None:
    """Give every BatchNorm the statistics of `images` [B, 3, H, W] without changing what the network answers.

    A network put together by `load_folded` has BatchNorms that know nothing of the data. In training they would normalise
    by the batch, and change its answer altogether; with scale and shift set against the statistics they do not.
    """

    def settle(bn: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        shift = bn.bias - bn.running_mean * scale
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(var)
        bn.weight.copy_(scale * (var + bn.eps).sqrt())
        bn.bias.copy_(shift + mean * scale)

    hooks = [m.register_forward_pre_hook(settle) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    was_training = network.training
    try:
        network.eval()(images)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()


def fold(conv: nn.Module, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Merge an ETM if there is one, then fold the BatchNorm's running statistics into the kernel and a bias.

    Computed in double precision, so that the only rounding is that of the result. The arguments are left unchanged.
    """
    dtype = next(conv.parameters()).dtype
    # fuse_conv_bn_eval insists on evaluation mode, which copies have without a trace left in the training net.
    conv, bn = copy.deepcopy(conv).double().eval(), copy.deepcopy(bn).double().eval()
    plain = conv.reparameterize().eval() if isinstance(conv, ETMConv2d) else conv
    return fuse_conv_bn_eval(plain, bn).to(dtype)
