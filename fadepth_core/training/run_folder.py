"""The folder of a training run: file names, writing, reading and checking.

config.yaml                all settings
state.pt                   networks, optimiser and counters, for --resume
checkpoint.safetensors     the depth network after the last iteration, training form
best.safetensors           the depth network with the lowest AbsRel in validation, training form
pose.safetensors           the pose network after the last iteration, if one was trained
depth.safetensors, .onnx   the best depth network, or without validation the last one, fused: what a robot needs
metrics.json, pictures.png the evaluation
events.out.*               TensorBoard
bad_batch_N.pt             the batch whose loss was not finite, if there was one
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD
from fadepth_core.common.documents import one_line
from fadepth_core.common.files import write_atomically
from fadepth_core.common.sample import Sample
from fadepth_core.models import DepthNetwork
from fadepth_core.runtime.checkpoint import Checkpoint, Description, save_checkpoint
from fadepth_core.training.config import PredictionsConfig, TrainConfig, save_config
from fadepth_core.training.pose_checkpoint import save_pose_net

CONFIG = "config.yaml"
STATE = "state.pt"
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
POSE_NET = "pose.safetensors"
DEPLOYED = "depth.safetensors"
METRICS = "metrics.json"
PICTURES = "pictures.png"
#: The figure of a validation by which `BEST` is selected: the lowest is the best.
SELECTED_BY = "abs_rel"

#: Entries of a state besides its parts: finished steps, their time in seconds, whether BatchNorm's statistics are kept, and the
#: best validation.
PROGRESS = ("iteration", "seconds", "frozen", "best")
#: Parts of a state that some runs do not have -> the setting that decides whether a run has the part.
_OPTIONAL_PARTS = {"pose_net": "pose.network", "apx": "teacher", "scaler": "precision"}
#: What reading and restoring a damaged or foreign state raises.
_STATE_ERRORS = (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError)


class TrainingError(RuntimeError):
    """A run that cannot start or continue."""


class RunFolder:
    """The files of the run that `config` describes.

    Raises:
        CheckpointError: a parent checkpoint cannot be read.
    """

    def __init__(self, config: TrainConfig):
        self.path = Path(config.output)
        self._config = config
        # Read at the start, because the parents' files may be deleted or replaced before a checkpoint is saved.
        self._parents = _provenance(config)

    def create(self, resume: bool) -> None:
        """Make the folder.

        Raises:
            TrainingError: it holds a run, and `resume` is false.
        """
        if not resume and (self.path / STATE).is_file():
            raise TrainingError(
                f"{self.path}: holds a run already; --resume continues it, --set output=FOLDER starts another one"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def save_config(self) -> None:
        """Write all settings of the run."""
        save_config(self._config, self.path / CONFIG)

    def save_state(self, parts: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write what a resumed run needs; see `load_state`."""
        states = {name: None if part is None else part.state_dict() for name, part in parts.items()}
        state = {**states, **progress}
        write_atomically(self.path / STATE, lambda part: torch.save(state, part))

    def load_state(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Restore `parts` from the saved state; returns the values of `PROGRESS`.

        Args:
            parts: objects with `state_dict` and `load_state_dict`, by name; None where the run has no such part.

        Raises:
            TrainingError: there is no state, or it is of another run.
        """
        path = self.path / STATE
        if not path.is_file():
            raise TrainingError(f"{path}: nothing to resume from")
        try:
            # weights_only: tensors and plain containers, no code.
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise TypeError(f"it holds a {type(state).__name__}")
            _check_state(state, parts)
            for name, part in parts.items():
                if part is not None:
                    part.load_state_dict(state[name])
            return {name: state[name] for name in PROGRESS}
        except (*_STATE_ERRORS, OSError) as error:
            raise TrainingError(f"{path}: not the state of this run: {one_line(error)}") from error

    def save_checkpoint(self, name: str, network: DepthNetwork, iteration: int, batch_size: int) -> Path:
        """Write a depth network as checkpoint `name`; returns its path.

        Args:
            network: training form in evaluation mode.
            batch_size: samples per optimiser step, for the description.
        """
        path = self.path / name
        weights = {key: value.cpu().numpy() for key, value in network.state_dict().items()}
        save_checkpoint(path, weights, self._description(network, iteration, batch_size))
        return path

    def save_pose_net(self, pose_net: nn.Module) -> None:
        """Write the pose network, see `training.pose_checkpoint`."""
        data = self._config.data
        save_pose_net(self.path / POSE_NET, pose_net, self._config.pose.network, data.size, data.focal_length)

    def save_bad_batch(self, iteration: int, sample: Sample) -> Path:
        """Write the batch of step `iteration`, to find out why its loss is not finite."""
        path = self.path / f"bad_batch_{iteration}.pt"
        torch.save({field.name: getattr(sample, field.name) for field in fields(sample)}, path)
        return path

    def _description(self, network: DepthNetwork, iteration: int, batch_size: int) -> Description:
        config = self._config
        return Description(
            model=config.model.name,
            form="training",
            network_size=config.data.size,
            depth_range=(network.min_depth, network.max_depth),
            pixel_mean=PIXEL_MEAN,
            pixel_std=PIXEL_STD,
            trained=True,
            focal_length=config.data.focal_length,
            options=_saved_options(config),
            provenance={
                **self._parents,
                "data": ", ".join(dict.fromkeys(source.name for source in config.data.train)),
                **config.provenance,
                "iterations": str(iteration),
                "batch": str(batch_size),
                "date": date.today().isoformat(),
            },
        )


def _check_state(state: dict[str, Any], parts: Mapping[str, Any]) -> None:
    """Raises ValueError if resuming with `parts` would not continue the run that was saved."""
    if missing := {*PROGRESS, *parts} - state.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}; an older version wrote it, start a new run")
    for name, setting in _OPTIONAL_PARTS.items():
        if (parts[name] is None) != (state[name] is None):
            raise ValueError(f"it was saved with another {setting}")


def _saved_options(config: TrainConfig) -> dict[str, Any]:
    """Options needed to build the network again. Drop rates, used only in training, and file names are left out."""
    values, options = config.model.model_dump(), config.model.options
    return {key: values[key] for key in ("etm", "encoder") if options.get(key)}


def _provenance(config: TrainConfig) -> dict[str, str]:
    """Parent checkpoints and their licences: the checkpoint that training starts from, and the teacher."""
    entries: dict[str, str] = {}
    parents: dict[str, Path] = {}
    if config.model.start is not None:
        parents["start"] = config.model.start
    if isinstance(config.teacher, PredictionsConfig):
        entries["teacher"] = config.teacher.source.name
    elif config.teacher is not None:
        parents["teacher"] = config.teacher.source
    licences = []
    for role, path in parents.items():
        parent = Checkpoint(path)
        entries[role] = f"{parent.description.model} {parent.weights_sha256[:12]}"
        licences.append(parent.description.provenance.get("licence"))
    known = list(dict.fromkeys(licence for licence in licences if licence))
    return {**entries, "licence": "; ".join(known)} if known else entries
