import functools

import pytest
import torch


@functools.cache
def _define_torchvision_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")  # defined as long as this object lives
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@pytest.fixture(scope="session")
def timm():
    """timm; a torchvision built for another torch lacks operators it looks up on import, so they are declared here."""
    try:
        import timm
    except ImportError as error:
        pytest.skip(f"timm cannot be imported: {error}")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _define_torchvision_operators()
        import timm
    return timm
