"""Loads the PyTorch network of a checkpoint. A module of its own, because `checkpoint.py` works without torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD
from fadepth_core.common.documents import shown
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
        # The description has been read by `Description.from_json`, which admits no option that names a file.
        trained = build_model(description.model, min_depth=near, max_depth=far, **description.options).eval()
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    network = trained.fuse() if description.form == "deploy" else trained
    load_weights(network, checkpoint.weights, f"{checkpoint.path}: not the weights of '{description.model}'")
    return network


def load_weights(network: nn.Module, weights: dict[str, np.ndarray], problem: str) -> None:
    """Load the weights of a file into a network, as float32.

    Raises:
        CheckpointError: a tensor is missing, has no place in the network, or has another shape. Its message is one line
            that begins with `problem` and names the first such tensor.
    """
    state = network.state_dict()
    for kind, names in (("lacks", state.keys() - weights.keys()), ("has the unknown", weights.keys() - state.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{problem}: the file {kind} tensor {shown(min(names))}{more}")
    for name, value in weights.items():
        # numpy's writer stores a number without dimensions as an array of one.
        if value.shape != tuple(state[name].shape) and (value.shape, state[name].shape) != ((1,), ()):
            raise CheckpointError(
                f"{problem}: tensor {shown(name)} has the shape {list(value.shape)}, not {list(state[name].shape)}"
            )
    # torch lacks most operations on unsigned numbers of more than 8 bits.
    tensors = {name: value.astype(np.float32) if value.dtype.kind == "u" else value for name, value in weights.items()}
    network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
