"""Encoders of timm, from random weights or from a local file, behind the normalisation that their ImageNet weights expect."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD

#: Encoders that a decoder can be put on, by timm's name: channels of their maps at 1/2, 1/4, 1/8, 1/16 and 1/32.
ENCODER_WIDTHS = {
    "tf_efficientnetv2_s": (24, 48, 64, 160, 256),
    "tf_efficientnet_lite0": (16, 24, 40, 112, 320),
    "tf_efficientnet_lite1": (16, 24, 40, 112, 320),
    "tf_efficientnet_lite2": (16, 24, 48, 120, 352),
    "resnet18": (64, 64, 128, 256, 512),
    "mobilenetv3_large_100": (16, 24, 40, 112, 160),
}


def encoder_widths(name: str) -> tuple[int, ...]:
    """Channels of the maps of the encoder `name`, finest first.

    Raises:
        ValueError: no encoder in `ENCODER_WIDTHS` has that name.
    """
    if name not in ENCODER_WIDTHS:
        raise ValueError(f"unknown encoder '{name}'; known encoders: {', '.join(ENCODER_WIDTHS)}")
    return ENCODER_WIDTHS[name]


def timm_backbone(name: str, weights: str | Path | None = None, **options) -> nn.Module:
    """Build the timm model `name` for images normalised with `PIXEL_MEAN` and `PIXEL_STD`.

    Args:
        weights: local file of its ImageNet weights in timm's format (.safetensors or .pth); None starts from random ones.
        options: of `timm.create_model`.

    Returns:
        The model itself where its weights expect these statistics, a `RenormalisedBackbone` where they expect others.

    Raises:
        ImportError: timm cannot be imported.
        FileNotFoundError: there is no file `weights`.
    """
    try:
        timm = import_timm()
    except (ImportError, RuntimeError) as error:  # the latter from a torchvision for another torch
        raise ImportError(
            f"{name} comes from timm, which cannot be imported ({error}): pip install 'fadepth_ros[train]'"
        ) from error
    if weights is None:
        model = timm.create_model(name, pretrained=False, **options)
    elif not Path(weights).is_file():
        raise FileNotFoundError(f"no file with weights of {name} at {weights}")
    else:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, **options)
    # Also without weights: a checkpoint of a network is loaded into one that was built without them.
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    if (tuple(mean), tuple(std)) == (PIXEL_MEAN, PIXEL_STD):
        return model
    return RenormalisedBackbone(model, mean, std, images=options.get("in_chans", 3) // 3)


class RenormalisedBackbone(nn.Module):
    """A model behind the change from ImageNet's normalisation to the one it was trained with, one scale and shift a channel.

    Its first filter pads with zeros, which stand for the mean color, so scale and shift cannot be folded into that filter.

    Args:
        model: takes [B, 3·images, H, W].
        mean, std: its normalisation of inputs in [0, 1].
        images: how many are stacked along the channels.

    Shapes: input as the model's, normalised with `PIXEL_MEAN` and `PIXEL_STD` -> the model's output.
    """

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], images: int = 1):
        super().__init__()
        self.model = model
        from_mean, from_std, to_mean, to_std = (
            torch.tensor(values, dtype=torch.float64) for values in (PIXEL_MEAN, PIXEL_STD, mean, std)
        )
        scale, shift = from_std / to_std, (from_mean - to_mean) / to_std
        self.register_buffer("scale", scale.float().repeat(images).view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().repeat(images).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor):
        return self.model(x * self.scale + self.shift)


def without_normalisation(backbone: nn.Module) -> nn.Module:
    """The timm model of what `timm_backbone` built."""
    return backbone.model if isinstance(backbone, RenormalisedBackbone) else backbone


def with_fixed_padding(encoder: nn.Module) -> nn.Module:
    """Replace TensorFlow's "same" padding, worked out from each input's size, by what it is at every even size: a filter of
    stride 2 with k×k elements gets (k - 2) // 2 rows above and columns to the left, the rest below and to the right. The
    exported graph needs no arithmetic on sizes then. Changes `encoder` and returns it.
    """
    from timm.layers import Conv2dSame

    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame):
                conv = nn.Conv2d(
                    child.in_channels, child.out_channels, child.kernel_size, child.stride, groups=child.groups
                )
                conv.weight, conv.bias = child.weight, child.bias
                total = child.kernel_size[0] - 2
                before, after = total // 2, total - total // 2
                setattr(parent, name, nn.Sequential(nn.ZeroPad2d((before, after, before, after)), conv))
    return encoder


def import_timm() -> ModuleType:
    """timm, also beside a torchvision that was built for another torch.

    timm imports torchvision, whose import fails where its compiled operators cannot be loaded (PyPI's torchvision beside the
    CPU build of torch). timm's models use none of them, so it is enough to declare them.
    """
    try:
        import timm
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        _declare_torchvision_operators()
        import timm
    return timm


@cache  # which also keeps the library, and with it the operators, alive
def _declare_torchvision_operators() -> torch.library.Library:
    """Declare, without implementation, the operators that torchvision looks up when it is imported."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
