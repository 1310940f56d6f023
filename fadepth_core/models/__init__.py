"""The networks. Every name in `MODELS` can stand in a checkpoint's metadata and be built by `build_model`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from fadepth_core.models.hqdec import HQDecv2
from fadepth_core.models.smalldepth import LAYOUTS, SmallDepth

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(SmallDepth, name) for name in LAYOUTS},
    "hqdecv2": HQDecv2,
}


def build_model(name: str, **options) -> nn.Module:
    """Build the training form of the network called `name`, with random weights.

    Raises:
        ValueError: no network has that name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}'; known models: {', '.join(sorted(MODELS))}")
    return MODELS[name](**options)


__all__ = ["LAYOUTS", "MODELS", "HQDecv2", "SmallDepth", "build_model"]
