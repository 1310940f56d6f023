"""Convolution + BatchNorm + activation, the basic unit of the networks, and its folding for deployment.

`conv2d` is the only place where a spatial filter becomes a plain convolution or an ETM. `ConvBN.folded` merges the
filter and its BatchNorm into one plain convolution. `ConvBN.load_folded` is the inverse: it allows training to continue
from a deployed network.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fadepth_core.models.layers.etm import ETMConfig, ETMConv2d


def conv2d(
    cin: int,
    cout: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    etm: ETMConfig | None = None,
) -> nn.Conv2d | ETMConv2d:
    """A convolution that keeps the size at stride 1. It is an ETM if `etm` is given and the kernel is larger than 1×1.

    Shapes: [B, Ci, H, W] -> [B, Co, ceil(H / s), ceil(W / s)] for odd kernels.
    """
    if etm is not None and kernel > 1:
        return ETMConv2d(cin, cout, kernel, stride, dilation, groups, bias, etm)
    conv = nn.Conv2d(cin, cout, kernel, stride, dilation * (kernel - 1) // 2, dilation, groups, bias=bias)
    # Convolutions with a bias have no BatchNorm and no ReLU after them.
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear" if bias else "relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ConvBN(nn.Module):
    """Convolution (no bias) -> BatchNorm -> optional ReLU: `CBA` and `CB` in docs/method.md.

    Shapes: [B, Ci, H, W] -> [B, Co, ceil(H / s), ceil(W / s)].
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        relu: bool = True,
        etm: ETMConfig | None = None,
    ):
        super().__init__()
        self.conv = conv2d(cin, cout, kernel, stride, dilation, groups, etm=etm)
        self.bn = nn.BatchNorm2d(cout)
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def folded(self) -> nn.Conv2d:
        """One convolution with bias that equals convolution and BatchNorm in evaluation mode. Has no activation."""
        return fold(self.conv, self.bn)

    def load_folded(self, conv: nn.Conv2d) -> None:
        """Load the plain convolution `conv`, so that both give the same in evaluation mode: the inverse of `folded`."""
        load_kernel(self.conv, conv.weight)
        assert conv.bias is not None
        set_shift_only(self.bn, conv.bias)


@torch.no_grad()
def load_kernel(conv: nn.Conv2d | ETMConv2d, kernel: Tensor, bias: Tensor | None = None) -> None:
    """Set the kernel [Co, Ci/g, Kh, Kw] of a plain convolution or an ETM, and its bias [Co] if `bias` is given."""
    if isinstance(conv, ETMConv2d):
        conv.load_kernel(kernel)
    else:
        conv.weight.copy_(kernel)
    if bias is not None:
        assert conv.bias is not None
        conv.bias.copy_(bias)


@torch.no_grad()
def set_shift_only(bn: nn.BatchNorm2d, shift: Tensor) -> None:
    """Set a BatchNorm so that in evaluation mode it only adds `shift` [C]."""
    mean, var = running_statistics(bn)
    mean.zero_()
    var.fill_(1.0)
    bn.weight.fill_((1.0 + bn.eps) ** 0.5)
    bn.bias.copy_(shift)


@torch.no_grad()
def calibrate_batch_norm(network: nn.Module, images: Tensor) -> None:
    """Set every BatchNorm's running statistics to those of `images` [B, 3, H, W]; the network's output does not change.

    After `load_folded` the BatchNorms do not hold the statistics of the data. In training mode they would normalise by
    the statistics of the batch, and the output would change completely. The scale and shift of each BatchNorm are
    therefore changed too: they undo the normalisation by the new statistics.
    """

    def calibrate(bn: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)
        running_mean, running_var = running_statistics(bn)
        scale = bn.weight / (running_var + bn.eps).sqrt()
        shift = bn.bias - running_mean * scale
        running_mean.copy_(mean)
        running_var.copy_(var)
        bn.weight.copy_(scale * (var + bn.eps).sqrt())
        bn.bias.copy_(shift + mean * scale)

    hooks = [m.register_forward_pre_hook(calibrate) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    was_training = network.training
    try:
        network.eval()(images)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()


def running_statistics(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Running mean and variance [C] of a BatchNorm that tracks them, as all do here."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return bn.running_mean, bn.running_var


def fold(conv: nn.Conv2d | ETMConv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """One plain convolution with bias that equals `conv` (plain or ETM) followed by `bn` in evaluation mode.

    Computed in double precision, so that only the result is rounded. The arguments are not changed.
    """
    dtype = next(conv.parameters()).dtype
    # Copies, because fuse_conv_bn_eval needs evaluation mode and the arguments may be in training mode.
    conv, bn = copy.deepcopy(conv).double().eval(), copy.deepcopy(bn).double().eval()
    plain = conv.reparameterize().eval() if isinstance(conv, ETMConv2d) else conv
    return fuse_conv_bn_eval(plain, bn).to(dtype)
