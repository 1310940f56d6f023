"""Loads the PyTorch network of a checkpoint. A module of its own, because `checkpoint.py` works without torch."""

from __future__ import annotations

import numpy as np
import torch

from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD
from fadepth_core.models import build_model
from fadepth_core.models.depth_network import DeployedNetwork, DepthNetwork
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError


def load_network(checkpoint: Checkpoint) -> DeployedNetwork:
    """The fused, evaluation-mode network of a checkpoint, float32 on the CPU.

    Raises:
        CheckpointError: its weights do not fit the network that its description names, or its normalisation differs
            from that of `DepthGraph`.
    """
    network = _load(checkpoint)
    return network.fuse() if isinstance(network, DepthNetwork) else network


def load_training_network(checkpoint: Checkpoint) -> DepthNetwork:
    """The training form of a checkpoint's network, in evaluation mode, float32 on the CPU.

    Raises:
        CheckpointError: as `load_network`; also for a deployment checkpoint, which lacks the coarser scales.
    """
    if checkpoint.description.form != "training":
        raise CheckpointError(f"{checkpoint.path}: a deployment checkpoint; a training checkpoint is needed here")
    network = _load(checkpoint)
    assert isinstance(network, DepthNetwork)
    return network


def _load(checkpoint: Checkpoint) -> DepthNetwork | DeployedNetwork:
    """The network in the form in which it was saved."""
    description = checkpoint.description
    near, far = description.depth_range
    if not np.allclose((description.pixel_mean, description.pixel_std), (PIXEL_MEAN, PIXEL_STD)):
        raise CheckpointError(
            f"{checkpoint.path}: trained with pixel mean {description.pixel_mean} and std {description.pixel_std}; "
            f"the graph normalises with {PIXEL_MEAN} and {PIXEL_STD}"
        )
    try:
        trained = build_model(description.model, min_depth=near, max_depth=far, **description.options).eval()
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    network = trained.fuse() if description.form == "deploy" else trained
    state = {name: torch.from_numpy(value).float() for name, value in checkpoint.weights.items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path}: not the weights of '{description.model}': {error}") from error
    return network
