"""For timm beside a torch for which there is no torchvision: the operators that torchvision looks up on import."""

import torch


def define_torchvision_operators() -> torch.library.Library:
    """Declare them; they exist as long as the returned object lives."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
