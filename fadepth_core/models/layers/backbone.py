"""Encoders of timm, from random weights or from a local file."""

from __future__ import annotations

from pathlib import Path

from torch import nn


def timm_backbone(name: str, weights: str | Path | None = None, **options) -> nn.Module:
    """Build the timm model `name`.

    Args:
        weights: local file of its ImageNet weights in timm's format (.safetensors or .pth); None starts from random ones.
        options: of `timm.create_model`.

    Raises:
        ImportError: timm cannot be imported.
        FileNotFoundError: there is no file `weights`.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # the latter from a torchvision for another torch
        raise ImportError(
            f"{name} comes from timm, which cannot be imported ({error}): pip install 'fadepth_ros[train]'"
        ) from error
    if weights is None:
        return timm.create_model(name, pretrained=False, **options)
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no file with weights of {name} at {weights}")
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, **options)
