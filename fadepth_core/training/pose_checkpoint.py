"""File format of a run's pose network, for `fadepth odometry`: safetensors with a JSON description in its header.

The depth node does not need the pose network, so it is not part of the depth network's checkpoint. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from fadepth_core.common.documents import parse_object, shown
from fadepth_core.common.files import write_atomically
from fadepth_core.models.posenet import POSE_NETS, build_pose_net
from fadepth_core.runtime.checkpoint import (
    CheckpointError,
    check_focal_length,
    check_network_size,
    read_described,
)
from fadepth_core.runtime.network import load_weights

FORMAT = 1
_HEADER_KEY = "fadepth_pose"


def save_pose_net(
    path: str | os.PathLike, pose_net: nn.Module, name: str, size: tuple[int, int], focal_length: float | None
) -> None:
    """Write a pose network. The previous file is replaced only when the new one is complete on disk.

    Args:
        pose_net: built by `build_pose_net(name)`, in any mode and on any device.
        name: "fbnetv3_b" or "small".
        size: height and width of the frames it was trained on, pixels.
        focal_length: `data.focal_length` of the run; None if scenes were not scaled.
    """
    description = {"format": FORMAT, "network": name, "size": list(size), "focal_length": focal_length}
    weights = {key: value.detach().cpu().contiguous() for key, value in pose_net.state_dict().items()}
    write_atomically(path, lambda part: save_file(weights, part, {_HEADER_KEY: json.dumps(description)}))


def load_pose_net(path: str | os.PathLike) -> tuple[nn.Module, tuple[int, int], float | None]:
    """The pose network in evaluation mode on the CPU, and `size` and `focal_length` as given to `save_pose_net`.

    Raises:
        CheckpointError: the file is missing, truncated, not a pose network's, or its weights do not fit the network.
        ImportError: the network needs a package that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    (name, size, focal_length), weights = read_described(
        path, _HEADER_KEY, read_description, "not a pose network of fadepth"
    )
    pose_net = build_pose_net(name)  # without options: nothing that the file names reaches a constructor
    load_weights(pose_net, weights, f"{path}: its weights do not fit pose network '{name}'")
    return pose_net.eval(), size, focal_length


def read_description(header: str) -> tuple[str, tuple[int, int], float | None]:
    """Network, size and focal length. Raises ValueError with the reason."""
    values = parse_object(header, _HEADER_KEY)
    if missing := {"format", "network", "size", "focal_length"} - values.keys():
        raise ValueError(f"it lacks {min(missing)}")
    if values["format"] != FORMAT or isinstance(values["format"], bool):
        raise ValueError(f"its format is {shown(values['format'])}, this program reads format {FORMAT}")
    name, size, focal_length = values["network"], values["size"], values["focal_length"]
    if not isinstance(name, str) or name not in POSE_NETS:
        raise ValueError(f"unknown pose network {shown(name)}; known: {', '.join(POSE_NETS)}")
    check_network_size(size, "size")
    check_focal_length(focal_length)
    return name, tuple(size), focal_length
