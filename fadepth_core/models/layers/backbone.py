"""Encoders of timm, with random weights or weights from a file, and the input normalisation these weights expect."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD

#: Encoders for which decoders exist, by timm's name: channels of their maps at 1/2, 1/4, 1/8, 1/16 and 1/32.
ENCODER_WIDTHS = {
    "tf_efficientnetv2_s": (24, 48, 64, 160, 256),
    "tf_efficientnet_lite0": (16, 24, 40, 112, 320),
    "tf_efficientnet_lite1": (16, 24, 40, 112, 320),
    "tf_efficientnet_lite2": (16, 24, 48, 120, 352),
    "resnet18": (64, 64, 128, 256, 512),
    "mobilenetv3_large_100": (16, 24, 40, 112, 160),
}


def encoder_widths(name: str) -> tuple[int, ...]:
    """Channels of the maps of encoder `name`, finest first.

    Raises:
        ValueError: `name` is not in `ENCODER_WIDTHS`.
    """
    if name not in ENCODER_WIDTHS:
        raise ValueError(f"unknown encoder '{name}'; known encoders: {', '.join(ENCODER_WIDTHS)}")
    return ENCODER_WIDTHS[name]


def timm_backbone(name: str, weights: str | Path | None = None, **options: Any) -> nn.Module:
    """Build the timm model `name` for images normalised with `PIXEL_MEAN` and `PIXEL_STD`.

    Args:
        name: timm's name of the model.
        weights: local file of its ImageNet weights in timm's format (.safetensors or .pth); None starts from random
            weights.
        options: passed to `timm.create_model`.

    Returns:
        The model itself if its weights expect this normalisation, otherwise a `RenormalisedBackbone`.

    Raises:
        ImportError: timm cannot be imported.
        FileNotFoundError: the file `weights` does not exist.
    """
    try:
        timm = import_timm()
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
        raise ImportError(
            f"{name} comes from timm, which cannot be imported ({error}): pip install 'fadepth_ros[train]'"
        ) from error
    if weights is None:
        model = timm.create_model(name, pretrained=False, **options)
    elif not Path(weights).is_file():
        raise FileNotFoundError(f"no file with weights of {name} at {weights}")
    else:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, **options)
    # Renormalise also without `weights`: a trained checkpoint may be loaded into the model later.
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    if (tuple(mean), tuple(std)) == (PIXEL_MEAN, PIXEL_STD):
        return model
    return RenormalisedBackbone(model, mean, std, images=options.get("in_chans", 3) // 3)


class RenormalisedBackbone(nn.Module):
    """A model whose input is first changed from ImageNet's normalisation to the one that the model's weights expect.

    The change is one scale and one shift per channel. The shift cannot be folded into the model's first filter, because
    that filter pads with zeros, which stand for the mean colour of the model's own normalisation.

    Args:
        model: takes [B, 3·images, H, W].
        mean, std: normalisation the model expects, for inputs in [0, 1].
        images: number of images stacked along the channels.

    Shapes: [B, 3·images, H, W] normalised with `PIXEL_MEAN` and `PIXEL_STD` -> the model's output.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], images: int = 1):
        super().__init__()
        self.model = model
        from_mean, from_std, to_mean, to_std = (
            torch.tensor(values, dtype=torch.float64) for values in (PIXEL_MEAN, PIXEL_STD, mean, std)
        )
        scale, shift = from_std / to_std, (from_mean - to_mean) / to_std
        self.register_buffer("scale", scale.float().repeat(images).view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().repeat(images).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.model(x * self.scale + self.shift)


def without_normalisation(backbone: nn.Module) -> nn.Module:
    """The timm model inside the result of `timm_backbone`."""
    return backbone.model if isinstance(backbone, RenormalisedBackbone) else backbone


def with_fixed_padding(encoder: nn.Module) -> nn.Module:
    """Replace TensorFlow's "same" padding by fixed padding, in place; return `encoder`.

    "Same" padding depends on the input's size, so the exported graph would contain arithmetic on sizes. The fixed
    padding equals it for inputs with even sides. A k×k filter of stride 2 gets k - 2 rows: (k - 2) // 2 above, the rest
    below, and as many columns on the left and on the right.
    """
    from timm.layers import Conv2dSame

    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame):
                (height, width), stride = child.kernel_size, child.stride[0]
                conv = nn.Conv2d(child.in_channels, child.out_channels, (height, width), stride, groups=child.groups)
                conv.weight, conv.bias = child.weight, child.bias
                total = child.kernel_size[0] - 2
                before, after = total // 2, total - total // 2
                setattr(parent, name, nn.Sequential(nn.ZeroPad2d((before, after, before, after)), conv))
    return encoder


def import_timm() -> ModuleType:
    """Import timm, even if the installed torchvision was built for another torch.

    timm imports torchvision, whose import fails if its compiled operators cannot be loaded (PyPI's torchvision with the
    CPU build of torch). timm's models do not use these operators, so declaring them is enough.
    """
    try:
        import timm
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        _declare_torchvision_operators()
        import timm
    return timm


@cache  # also keeps a reference to the library: its operators exist as long as it does
def _declare_torchvision_operators() -> torch.library.Library:
    """Declare the operators that torchvision looks up on import, without implementing them."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
