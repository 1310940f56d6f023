"""The depth networks. `MODELS` maps the names used in configurations and checkpoint metadata to their constructors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fadepth_core.models.baselines import PAPER_BASELINES, BaselineDepth
from fadepth_core.models.depth_network import DepthFeatures, DepthNetwork, add_confidence
from fadepth_core.models.hqdec import HQDecv2
from fadepth_core.models.smalldepth import LAYOUTS, SmallDepth

MODELS: dict[str, Callable[..., DepthNetwork]] = {
    **{name: partial(SmallDepth, name) for name in LAYOUTS},
    "hqdecv2": HQDecv2,
    **{name: partial(BaselineDepth, encoder) for name, encoder in PAPER_BASELINES.items()},
    "unet": BaselineDepth,
}


def build_model(name: str, confidence: bool = False, **options: Any) -> DepthNetwork:
    """Build the training form of the depth network `name`. Weights are random unless an option names a weights file.

    Args:
        name: a name in `MODELS`.
        confidence: with a confidence head.
        options: arguments of the network's class.

    Raises:
        ValueError: no network has that name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}'; known models: {', '.join(sorted(MODELS))}")
    network = MODELS[name](**options)
    if confidence:
        add_confidence(network)
    return network


__all__ = [
    "LAYOUTS",
    "MODELS",
    "BaselineDepth",
    "DepthFeatures",
    "DepthNetwork",
    "HQDecv2",
    "SmallDepth",
    "add_confidence",
    "build_model",
]
