"""Whom a student learns from: a trained network at work beside it, the same network's answers kept on disk, or a folder of
depth that any other model predicted.

A network beside the student sees the pictures as the student does, augmented. What is on disk was made of the pictures as
the data set has them, and is augmented with them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fadepth_core.common.color import normalise
from fadepth_core.common.files import write_atomically
from fadepth_core.data import DataError, Sample
from fadepth_core.data.images import read_depth
from fadepth_core.geometry import area_average
from fadepth_core.losses import ApxLoss, ApxReading, ApxWeights, Signals
from fadepth_core.models.smalldepth import DepthFeatures
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.network import load_training_network
from fadepth_core.training.config import TeacherConfig, TrainConfig
from fadepth_core.training.workers import start_worker

#: μ_e and μ_d where the teacher has feature maps (Table XI).
FEATURE_WEIGHT = 0.01
_HEADER_KEY = "fadepth_teacher"
_KINDS = {"disparity": "disparities", "encoder": "encoder", "decoder": "decoder"}


class Distillation:
    """L_apx of a batch, for `PyramidLoss`.

    Args:
        apx: the loss, on the student's device.
        student_range: metres the student's answers span.
        teacher: frozen training form with its `min_depth` and `max_depth`; None takes the samples' `teacher` maps.
        autocast: context the teacher runs in.
        depth_loss: of the student's disparities x [B, 1, h, w] against the teacher's depth [B, H, W], in metres; None: none.
    """

    def __init__(
        self,
        apx: ApxLoss,
        student_range: tuple[float, float],
        teacher: nn.Module | None,
        autocast=nullcontext,
        depth_loss: Callable[[Sequence[Tensor], Tensor], Tensor] | None = None,
    ):
        self.apx, self._range, self._teacher, self._autocast = apx, student_range, teacher, autocast
        self._depth_loss = depth_loss

    def __call__(self, frames: Tensor, outputs: DepthFeatures, sample: Sample) -> Tensor:
        """Shapes: normalised middle frames [B, 3, H, W], the student's outputs for them -> [].

        Raises:
            ValueError: without a network the sample must carry a teacher's maps.
        """
        student = Signals.of(outputs, *self._range)
        if self._teacher is not None:
            with torch.no_grad(), self._autocast():
                answers = self._teacher(frames)
            teacher = Signals.of(answers, self._teacher.min_depth, self._teacher.max_depth)
        elif sample.teacher is not None:
            teacher = _signals(sample.teacher, student)
        else:
            raise ValueError("without a teacher network the samples must carry a teacher's maps")
        loss = self.apx(student, teacher)
        if self._depth_loss is not None:
            loss = loss + self._depth_loss(outputs.disparities, 1 / teacher.disparities[0][:, 0].float())
        return loss


def build_apx(config: TeacherConfig, student: nn.Module, teacher: nn.Module | None) -> ApxLoss:
    """The configured loss between two networks; `teacher` None where its maps come from disk."""
    feature_weight = 0.0 if config.source.is_dir() else FEATURE_WEIGHT
    encoder, decoder = (feature_weight if weight is None else weight for weight in (config.encoder, config.decoder))
    reading = ApxReading(config.channels, config.distribution, config.distance, config.mask, config.renormalise)
    widths = {}
    if config.channels == "projection":
        pairs = zip(_widths(student).items(), _widths(teacher).values(), strict=True)
        widths = {kind: list(zip(own, theirs, strict=True)) for (kind, own), theirs in pairs}
    return ApxLoss(ApxWeights(encoder, decoder, config.disparity), reading, widths)


def load_teacher(config: TrainConfig) -> nn.Module:
    """The configured teacher network, frozen.

    Raises:
        CheckpointError: the file is missing or unusable, has no feature maps, or was trained at another size.
    """
    checkpoint = Checkpoint(config.teacher.source)
    description = checkpoint.description
    if tuple(description.network_size) != tuple(config.data.size):
        trained, wanted = ("x".join(map(str, size)) for size in (description.network_size, config.data.size))
        raise CheckpointError(f"{checkpoint.path}: a teacher trained at {trained} pixels, the student's are {wanted}")
    return load_training_network(checkpoint).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def with_teacher(config: TrainConfig, datasets: Sequence[Dataset]) -> list[Dataset]:
    """The data sets with the teacher's maps in their samples, where they come from disk.

    A cache is filled first, by runs on one device; runs on several find it filled.

    Raises:
        CheckpointError: the teacher cannot be used.
        DataError: an entry of the cache is damaged.
    """
    if config.teacher is None:
        return list(datasets)
    if config.teacher.source.is_dir():
        source = Predictions(config.teacher.source)
    elif config.teacher.cache is None:
        return list(datasets)
    else:
        source = TeacherCache(config.teacher.cache, Checkpoint(config.teacher.source))
        if config.devices == 1:  # several processes would all do it
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            teacher, data = load_teacher(config).to(device), config.data
            for dataset in datasets:
                source.fill(teacher, dataset, config.frame_factor, data.batch_size, data.workers)
    return [WithTeacher(dataset, source) for dataset in datasets]


class WithTeacher(Dataset):
    """A data set whose samples carry a teacher's maps: `source.maps(sample)`."""

    def __init__(self, dataset: Dataset, source: Predictions | TeacherCache):
        self._dataset, self._source = dataset, source

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        sample.teacher = self._source.maps(sample)
        return sample


class Predictions:
    """A folder of depth, one file for each sample: its name, with every character but letters, digits and `_./-` as `_`,
    and .npy (float metres [h, w]) or .png (16 bits, metres * 256).

    Any size will do; and any unit, where distributions are ratios. Every pixel must have a depth.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def path(self, name: str) -> Path:
        """Where the prediction for a sample is looked for, without suffix."""
        return self._folder / re.sub(r"[^\w./-]", "_", name).replace("..", "_").lstrip("/.")

    def maps(self, sample: Sample) -> dict[str, Tensor]:
        """Its inverse depth [1, H, W], at the size of the sample's frames.

        Raises:
            DataError: no file for this sample, or one that is not depth everywhere.
        """
        path = self.path(sample.name)
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
    """A network's answers to a data set's middle frames, one file each, named by what it follows from: the teacher's
    weights and the picture's pixels. So an entry of another teacher or of changed data is never found.

    Maps are kept in half precision, of feature maps the mean over channels; each file carries a checksum.
    """

    def __init__(self, folder: Path, teacher: Checkpoint):
        self._folder = folder
        self._teacher = f"{teacher.weights_sha256} {teacher.description.to_json()}"

    def path(self, sample: Sample) -> Path:
        """The entry of a sample."""
        digest = hashlib.blake2b(self._teacher.encode(), digest_size=16)
        digest.update(sample.middle.contiguous().numpy().data)
        name = digest.hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def maps(self, sample: Sample) -> dict[str, Tensor]:
        """What the teacher answered to a sample's middle frame, each [1, h, w].

        Raises:
            DataError: there is no such entry, or it is damaged.
        """
        path = self.path(sample)
        if not path.is_file():
            raise DataError(
                f"{path}: the teacher's cache has no entry for '{sample.name}'; starting on one device makes it"
            )
        return {name: torch.from_numpy(value.astype(np.float32)) for name, value in _read_entry(path).items()}

    @torch.inference_mode()
    def fill(self, teacher: nn.Module, dataset: Dataset, factor: int, batch_size: int, workers: int) -> None:
        """Ask the teacher what is not there yet, and check what is.

        Args:
            factor: how many times the size of level cr the frames have.

        Raises:
            DataError: an entry is damaged.
        """
        device = next(teacher.parameters()).device
        loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=list, worker_init_fn=start_worker)
        for samples in tqdm(loader, desc=f"teacher's answers in {self._folder}", unit="batch"):
            asked = []
            for sample in samples:
                if self.path(sample).is_file():
                    _read_entry(self.path(sample))
                else:
                    asked.append(sample)
            if not asked:
                continue
            frames = torch.stack([sample.middle for sample in asked]).to(device)
            size = [side // factor for side in frames.shape[-2:]]
            maps = _maps(teacher(normalise(area_average(frames, size))), teacher)
            for i, sample in enumerate(asked):
                _write_entry(self.path(sample), {name: values[i].cpu().numpy() for name, values in maps.items()})


def _maps(outputs: DepthFeatures, teacher: nn.Module) -> dict[str, Tensor]:
    """Half-precision maps [B, 1, h, w] by name."""
    signals = Signals.of(outputs, teacher.min_depth, teacher.max_depth)
    return {
        f"{kind}.{i}": values.float().mean(dim=1, keepdim=True).half()
        for kind, attribute in _KINDS.items()
        for i, values in enumerate(getattr(signals, attribute))
    }


def _signals(maps: Mapping[str, Tensor], student: Signals) -> Signals:
    """Maps by name, [B, 1, h, w], as signals. Scales of depth that nobody kept are made of the finest."""
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
            header = json.loads((file.metadata() or {})[_HEADER_KEY])
            maps = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if header["sha256"] != _checksum(maps):
            raise ValueError("its checksum is another")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: a damaged entry of the teacher's cache ({error}); delete it, and it is made anew"
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
    """Channels of every encoder and every decoder map."""
    was_training = network.training
    parameter = next(network.parameters())
    outputs = network.eval()(torch.zeros(1, 3, 64, 64, device=parameter.device, dtype=parameter.dtype))
    network.train(was_training)
    return {kind: [x.shape[1] for x in getattr(outputs, kind)] for kind in ("encoder", "decoder")}
