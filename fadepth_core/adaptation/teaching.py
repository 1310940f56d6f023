"""The training run of an adaptation: the recording's depth labels beside rendered scenes, from the given checkpoint on.

Rendered scenes keep what the network knows of other places. Their depth is exact.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from fadepth_core.common.files import user_cache
from fadepth_core.data.pictures import write_pictures
from fadepth_core.data.registry import build_dataset
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_core.training.config import TrainConfig, validated
from fadepth_core.training.fit import fit
from fadepth_core.training.run_folder import BEST, DEPLOYED, STATE, TrainingError


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes of one kind.

    Attributes:
        preset, size, seed: options of `synthetic.dataset`.
        count: number of pictures.
        share: of the training samples.
    """

    preset: str
    size: tuple[int, int]
    seed: int
    count: int
    share: float


#: The last two are not trained on: they show what the network has forgotten.
TEACHING = (Scenes("driving", (128, 416), 7, 400, 0.2), Scenes("indoor", (192, 256), 3, 300, 0.2))
FORGOTTEN = (Scenes("driving", (128, 416), 107, 16, 0.0), Scenes("indoor", (192, 256), 103, 16, 0.0))


@dataclass(frozen=True)
class Taught:
    """Result of a training run.

    Attributes:
        checkpoint: the best network in validation, deployment form.
        iterations: finished steps when it was saved.
        interrupted: whether the run was stopped before its time.
        curve: minutes and AbsRel of each validation.
    """

    checkpoint: Path
    iterations: int
    interrupted: bool
    curve: tuple[tuple[float, float], ...]


def render_scenes(scenes: Scenes) -> Path:
    """The folder of rendered pictures, in the user's cache; rendered once."""
    height, width = scenes.size
    folder = user_cache() / "scenes" / f"{scenes.preset}-{height}x{width}-{scenes.seed}"
    dataset = build_dataset(
        "synthetic", scenes.size, preset=scenes.preset, length=scenes.count, seed=scenes.seed, static=True
    )
    numbers = range(scenes.count)
    if not (folder / "complete").is_file():
        write_pictures(dataset, folder, tqdm(numbers, f"rendering {scenes.preset} scenes", unit="picture"))
        (folder / "complete").touch()
    return folder


def teach(config: TrainConfig) -> Taught:
    """Train as configured by `teaching_config`; an interrupted run is continued.

    Raises:
        TrainingError: it was interrupted before the first validation, or a file of the run to continue is damaged.
    """
    folder, interrupted = config.output, False
    resume = (folder / STATE).is_file()
    try:
        fit(config, resume)
    except (TrainingError, CheckpointError) as error:
        if not resume:
            raise
        raise TrainingError(f"{error}; remove {folder} to teach from the start again") from error
    except KeyboardInterrupt:
        if not (folder / BEST).is_file():
            raise TrainingError("interrupted before the first validation; the same command continues") from None
        interrupted = True
        best = Checkpoint(folder / BEST)
        export_checkpoint(load_network(best), best.description, folder / DEPLOYED)
    iterations = int(Checkpoint(folder / DEPLOYED).description.provenance["iterations"])
    return Taught(folder / DEPLOYED, iterations, interrupted, validation_curve(folder))


def teaching_config(
    start: Checkpoint,
    recordings: dict[Path, float],
    validation: Path,
    folder: Path,
    sizes: dict[Path, tuple[int, int]],
    minutes: float,
    metric: bool,
    provenance: dict[str, str],
) -> TrainConfig:
    """The configuration of `teach`.

    Args:
        start: the checkpoint to start from.
        recordings: folders of labelled pictures, with their shares.
        validation: folder of labelled pictures (`data.folder`) that choose the best network.
        folder: the run's folder.
        sizes: (height, width) of the network's input for each recording.
        minutes: time of the training.
        metric: whether the labels are in metres.
        provenance: entries of the checkpoint's description.
    """
    rest = 1 - sum(scenes.share for scenes in TEACHING)
    sources: list[dict[str, Any]] = [
        {"name": "pictures", "root": str(root), "share": rest * share, "size": sizes[root]}
        for root, share in recordings.items()
    ]
    sources += [
        {"name": "pictures", "root": str(render_scenes(scenes)), "share": scenes.share, "size": scenes.size}
        for scenes in TEACHING
    ]
    values = {
        "output": folder,
        "data": {
            "train": sources,
            "size": next(iter(sizes.values())),
            "focal_length": start.description.focal_length,
            "batch_size": 8,
            "workers": 1,
            "augment": {"scale": 1.4, "jitter": 0.8},
            "statistics_images": 128,
        },
        "model": {
            "name": start.description.model,
            "start": start.path,
            "etm": start.description.options.get("etm"),
            "residual_drop": 0.0,
            "freeze_statistics": 0.0,
        },
        "pose": {"network": "known"},
        "loss": {
            "base": {"photometric": 0, "structure": 0, "feature": 0, "smoothness": 0},
            "levels": ["cr"],
            "depth": 1.0,
            "depth_error": "log",
        },
        "optimizer": {"lr": 3e-4, "weight_decay": 0.02},
        "schedule": {"minutes": minutes, "warmup": 20},
        "validation": {
            "data": {"name": "folder", "root": str(validation)},
            "scaling": "none" if metric else "median",
        },
        "provenance": provenance,
        "log": {"every": 10, "images_every": 10**6, "save_every": 50, "evaluate_every": 50},
    }
    return validated(TrainConfig, values, "adaptation")


def validation_curve(folder: Path) -> tuple[tuple[float, float], ...]:
    """Minutes since the start and AbsRel of each validation of a run, from its TensorBoard log."""
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it reports the end of each file
    log = EventAccumulator(str(folder))
    log.Reload()
    if "validation/abs_rel" not in log.Tags()["scalars"]:
        return ()
    events = log.Scalars("validation/abs_rel")
    return tuple(((event.wall_time - events[0].wall_time) / 60, event.value) for event in events)
