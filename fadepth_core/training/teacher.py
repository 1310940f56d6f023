"""Distillation: the three kinds of teacher, and the loss between a student and its teacher (APX, FA-Depth section III-E).

A network runs beside the student on the same augmented pictures. The other two kinds add their maps to the samples before
augmentation. The augmentation then changes the maps together with the pictures.

    configuration          class            maps
    NetworkTeacherConfig   NetworkTeacher   depth and features, computed for every batch
    CachedTeacherConfig    TeacherCache     depth and features of a network, computed once and read from a folder
    PredictionsConfig      Predictions      depth that any other model predicted, read from a folder
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fadepth_core.common.color import normalise
from fadepth_core.common.documents import parse_json
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import write_atomically
from fadepth_core.common.memory import training_format
from fadepth_core.common.sample import Sample, SampleDataset
from fadepth_core.data.images import read_depth
from fadepth_core.geometry import area_average
from fadepth_core.losses import ApxLoss, ApxOptions, ApxWeights, Signals
from fadepth_core.losses.supervised import depth_loss, shape_loss
from fadepth_core.models import DepthFeatures, DepthNetwork
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.network import load_training_network
from fadepth_core.training.config import (
    CachedTeacherConfig,
    LossConfig,
    NetworkTeacherConfig,
    PredictionsConfig,
    TrainConfig,
)
from fadepth_core.training.loader import start_worker

_HEADER_KEY = "fadepth_teacher"
#: Names of maps in samples and files -> attributes of `Signals` and `DepthFeatures`.
_KINDS = {"disparity": "disparities", "encoder": "encoder", "decoder": "decoder"}


# ------------------------------------------------------------------------------------------------------------- the loss


class Distillation:
    """L_apx of a batch, for `PyramidLoss`.

    Args:
        apx: the loss between the student's and the teacher's maps.
        student_range: nearest and farthest depth that the student can predict, metres.
        teacher: None: the samples carry the teacher's maps (`with_teacher`).
        depth_weight: weight of the losses against true depth, with the teacher's depth in place of the true one.
        loss: weights of these losses relative to each other.
    """

    def __init__(
        self,
        apx: ApxLoss,
        student_range: tuple[float, float],
        teacher: NetworkTeacher | None = None,
        depth_weight: float = 0.0,
        loss: LossConfig | None = None,
    ):
        self.apx, self.teacher = apx, teacher
        self._range, self._depth_weight, self._loss = student_range, depth_weight, loss or LossConfig()
        self._compare: nn.Module = apx

    def set_up(self, fabric: Fabric) -> None:
        """Move the loss and the teacher to the device of this process."""
        # Only projections have gradients, which several processes must average.
        self._compare = fabric.setup_module(self.apx) if self.apx.projections else fabric.to_device(self.apx)
        if self.teacher is not None:
            self.teacher.set_up(fabric)

    def __call__(self, frames: Tensor, outputs: DepthFeatures, sample: Sample) -> Tensor:
        """The loss, [], of the student's `outputs` for the normalised middle frames [B, 3, H, W] of `sample`.

        Raises:
            ValueError: there is neither a network nor maps in the samples.
        """
        student = Signals.of(outputs, *self._range)
        if self.teacher is not None:
            teacher = self.teacher.signals(frames)
        elif sample.teacher is not None:
            teacher = _stored_signals(sample.teacher, student)
        else:
            raise ValueError("without a teacher network the samples must carry a teacher's maps")
        loss = self._compare(student, teacher)
        if self._depth_weight:
            depth = 1 / teacher.disparities[0][:, 0].float()
            loss = loss + self._depth_weight * self._depth_loss(outputs.disparities, depth)
        return loss

    def _depth_loss(self, disparities: Sequence[Tensor], depth: Tensor) -> Tensor:
        """The losses against true depth, for the teacher's depth [B, H, W] in metres."""
        weights = self._loss
        total = weights.depth * depth_loss(disparities, depth, *self._range, weights.depth_error)
        if weights.shape:
            total = total + weights.shape * shape_loss(disparities[0], depth, *self._range)
        return total


def build_distillation(config: TrainConfig, student: DepthNetwork) -> Distillation | None:
    """The configured distillation; None without a teacher.

    Raises:
        CheckpointError: the teacher cannot be used, see `load_teacher`.
    """
    if config.teacher is None:
        return None
    running = isinstance(config.teacher, NetworkTeacherConfig)
    teacher = NetworkTeacher(load_teacher(config)) if running else None
    apx = build_apx(config.teacher, student, None if teacher is None else teacher.network)
    return Distillation(apx, (student.min_depth, student.max_depth), teacher, config.teacher.depth, config.loss)


def build_apx(
    config: NetworkTeacherConfig | CachedTeacherConfig | PredictionsConfig,
    student: DepthNetwork,
    teacher: DepthNetwork | None,
) -> ApxLoss:
    """The configured loss between two networks; `teacher` is needed for projections of its channels only."""
    weights = ApxWeights(config.encoder, config.decoder, config.disparity)
    options = ApxOptions(config.channels, config.distribution, config.distance, config.mask, config.renormalise)
    widths = {}
    if config.channels == "projection":
        assert teacher is not None
        pairs = zip(_widths(student).items(), _widths(teacher).values(), strict=True)
        widths = {kind: list(zip(own, theirs, strict=True)) for (kind, own), theirs in pairs}
    return ApxLoss(weights, options, widths)


# --------------------------------------------------------------------------------------------------- the kinds of teacher


class NetworkTeacher:
    """A frozen network that runs beside the student.

    Args:
        network: training form in evaluation mode, with `min_depth` and `max_depth`.
    """

    def __init__(self, network: DepthNetwork):
        self.network = network
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def set_up(self, fabric: Fabric) -> None:
        """Move the network to the device of this process, and run it in the configured precision."""
        self.network, self._autocast = cast(DepthNetwork, fabric.to_device(self.network)), fabric.autocast

    @torch.no_grad()
    def signals(self, frames: Tensor) -> Signals:
        """Maps of normalised images [B, 3, H, W]."""
        with self._autocast():
            outputs = self.network(frames)
        return Signals.of(outputs, self.network.min_depth, self.network.max_depth)


def load_teacher(config: TrainConfig) -> DepthNetwork:
    """The configured teacher network, frozen.

    Raises:
        CheckpointError: the file is missing or unusable, has no feature maps, or was trained at another size.
    """
    assert config.teacher is not None
    checkpoint = Checkpoint(config.teacher.source)
    description = checkpoint.description
    if tuple(description.network_size) != tuple(config.data.size):
        trained, wanted = ("x".join(map(str, size)) for size in (description.network_size, config.data.size))
        raise CheckpointError(f"{checkpoint.path}: a teacher trained at {trained} pixels, the student's are {wanted}")
    network = load_training_network(checkpoint).eval().requires_grad_(False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # torch's declaration of `to` lacks this form.
    return network.to(memory_format=training_format(device))  # type: ignore[call-overload]


def with_teacher(config: TrainConfig, datasets: Sequence[SampleDataset]) -> list[SampleDataset]:
    """The data sets, with the teacher's maps in their samples if the teacher is not a running network.

    A cache is filled first.

    Raises:
        CheckpointError: the teacher cannot be used.
        DataError: an entry of the cache is damaged.
    """
    if isinstance(config.teacher, PredictionsConfig):
        source: Predictions | TeacherCache = Predictions(config.teacher.source)
    elif isinstance(config.teacher, CachedTeacherConfig):
        source = _filled_cache(config, datasets)
    else:
        return list(datasets)
    return [WithTeacher(dataset, source) for dataset in datasets]


def _filled_cache(config: TrainConfig, datasets: Sequence[SampleDataset]) -> TeacherCache:
    assert isinstance(config.teacher, CachedTeacherConfig)
    cache = TeacherCache(config.teacher.cache, Checkpoint(config.teacher.source))
    if config.devices == 1:  # several processes would fill it several times; a run on one device must fill it first
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = load_teacher(config).to(device)
        for dataset in datasets:
            cache.fill(network, dataset, config.frame_factor, config.data.batch_size, config.data.workers)
    return cache


class WithTeacher(Dataset):
    """A data set whose samples carry the teacher's maps, `source.maps(sample)`."""

    def __init__(self, dataset: SampleDataset, source: Predictions | TeacherCache):
        self._dataset, self._source = dataset, source

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        sample.teacher = self._source.maps(sample)
        return sample


class Predictions:
    """A folder with a depth map of any size for each sample. Every pixel must have a depth; its unit does not matter if
    distributions are ratios.

    File names are the samples' names, with `_` in place of every character but letters, digits and `_./-`, and .npy (float
    metres [h, w]) or .png (16 bits, metres * 256).
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def path(self, name: str) -> Path:
        """Path of the prediction for the sample `name`, without suffix."""
        return self._folder / re.sub(r"[^\w./-]", "_", name).replace("..", "_").lstrip("/.")

    def maps(self, sample: Sample) -> dict[str, Tensor]:
        """Inverse depth [1, H, W] of a sample, resized to its frames.

        Raises:
            DataError: there is no file for this sample, or it is not a depth map.
        """
        path = self.path(str(sample.name))
        array, picture = (path.with_name(path.name + suffix) for suffix in (".npy", ".png"))
        if array.is_file():
            try:
                path, depth = array, np.load(array, allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise DataError(f"{array}: not a numpy array: {error}") from error
        elif picture.is_file():
            path, depth = picture, read_depth(picture)
        else:
            raise DataError(f"no prediction for '{sample.name}': neither {array} nor {picture.name}")
        if depth.ndim != 2 or depth.dtype.kind != "f" or not (np.isfinite(depth) & (depth > 0)).all():
            raise DataError(f"{path}: not a map of positive, finite depths, but {depth.dtype} {list(depth.shape)}")
        disparity = torch.from_numpy(1 / depth.astype(np.float32))[None]
        return {"disparity.0": _resized(disparity[None], sample.frames.shape[-2:])[0]}


class TeacherCache:
    """A network's maps of a data set's middle frames, one file for each frame.

    A file's name is a digest of the teacher's weights and the frame's pixels, so an entry of another teacher or of other data
    is never read. Maps are kept in half precision; of feature maps, only the mean over channels. Each file has a checksum.
    """

    def __init__(self, folder: Path, teacher: Checkpoint):
        self._folder = folder
        self._teacher = f"{teacher.weights_sha256} {teacher.description.to_json()}"

    def path(self, sample: Sample) -> Path:
        """File of a sample's maps."""
        digest = hashlib.blake2b(self._teacher.encode(), digest_size=16)
        digest.update(sample.middle.contiguous().numpy().data)
        name = digest.hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def maps(self, sample: Sample) -> dict[str, Tensor]:
        """The teacher's maps of a sample's middle frame, each [1, h, w].

        Raises:
            DataError: there is no such entry, or it is damaged.
        """
        path = self.path(sample)
        if not path.is_file():
            raise DataError(
                f"{path}: the teacher's cache has no entry for '{sample.name}'; a run on one device creates it"
            )
        return {name: torch.from_numpy(value.astype(np.float32)) for name, value in _read_entry(path).items()}

    @torch.inference_mode()
    def fill(self, teacher: DepthNetwork, dataset: SampleDataset, factor: int, batch_size: int, workers: int) -> None:
        """Compute the missing entries of a data set, and check the others.

        Args:
            factor: size of the frames as a multiple of level cr's.

        Raises:
            DataError: an entry is damaged.
        """
        device = next(teacher.parameters()).device
        loader: DataLoader[Any] = DataLoader(
            cast(Dataset[Any], dataset), batch_size, num_workers=workers, collate_fn=list, worker_init_fn=start_worker
        )
        for samples in tqdm(loader, desc=f"teacher's maps in {self._folder}", unit="batch"):
            missing = []
            for sample in samples:
                if self.path(sample).is_file():
                    _read_entry(self.path(sample))
                else:
                    missing.append(sample)
            if not missing:
                continue
            frames = torch.stack([sample.middle for sample in missing]).to(device)
            height, width = frames.shape[-2:]
            size = (height // factor, width // factor)
            maps = _reduced_maps(teacher(normalise(area_average(frames, size))), teacher)
            for i, sample in enumerate(missing):
                _write_entry(self.path(sample), {name: values[i].cpu().numpy() for name, values in maps.items()})


# -------------------------------------------------------------------------------------------------------------- the maps


def _reduced_maps(outputs: DepthFeatures, teacher: DepthNetwork) -> dict[str, Tensor]:
    """A network's maps by name, [B, 1, h, w] in half precision: the mean over channels."""
    signals = Signals.of(outputs, teacher.min_depth, teacher.max_depth)
    return {
        f"{kind}.{i}": values.float().mean(dim=1, keepdim=True).half()
        for kind, attribute in _KINDS.items()
        for i, values in enumerate(getattr(signals, attribute))
    }


def _stored_signals(maps: Mapping[str, Tensor], student: Signals) -> Signals:
    """Maps by name, [B, 1, h, w], as signals. If there is one disparity map only, it is resized to the student's scales."""
    found = {
        attribute: [maps[f"{kind}.{i}"] for i in range(len(maps)) if f"{kind}.{i}" in maps]
        for kind, attribute in _KINDS.items()
    }
    finest, *kept = found["disparities"]
    sizes = [x.shape[-2:] for x in student.disparities]
    found["disparities"] = [
        _resized(x, size) for x, size in zip([finest, *kept] if kept else [finest] * len(sizes), sizes, strict=True)
    ]
    return Signals(**{attribute: tuple(values) for attribute, values in found.items()})


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, h, w] at another size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", antialias=True, align_corners=False)


def _read_entry(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np") as file:
            header = parse_json((file.metadata() or {})[_HEADER_KEY], _HEADER_KEY)
            maps = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if header["sha256"] != _checksum(maps):
            raise ValueError("wrong checksum")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: a damaged entry of the teacher's cache ({error}); delete it, and the next run creates it again"
        ) from error
    return maps


def _write_entry(path: Path, maps: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {_HEADER_KEY: json.dumps({"sha256": _checksum(maps)})}
    write_atomically(path, lambda part: save_file(maps, part, header))


def _checksum(maps: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(maps):
        digest.update(f"{name}{maps[name].dtype}{maps[name].shape}".encode())
        digest.update(np.ascontiguousarray(maps[name]).data)
    return digest.hexdigest()


@torch.no_grad()
def _widths(network: nn.Module) -> dict[str, list[int]]:
    """Number of channels of every encoder map and every decoder map."""
    was_training = network.training
    parameter = next(network.parameters())
    outputs = network.eval()(torch.zeros(1, 3, 64, 64, device=parameter.device, dtype=parameter.dtype))
    network.train(was_training)
    return {kind: [x.shape[1] for x in getattr(outputs, kind)] for kind in ("encoder", "decoder")}
