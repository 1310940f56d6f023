"""Progress of a run: TensorBoard curves and pictures in its folder, and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fadepth_core.losses import PyramidReport
from fadepth_core.losses.base import Views
from fadepth_core.training.config import TrainConfig
from fadepth_core.training.run_folder import SELECTED_BY


@dataclass
class Progress:
    """Result of one optimiser step.

    Attributes:
        iteration: number of finished steps.
        report: the losses.
        seconds: duration of the step.
        waited: seconds of it in which the step waited for the loader.
        learning_rate: of the depth network.
        gradient_norms: by module, before clipping.
        gradient_scale: of mixed precision with float16; None otherwise.
    """

    iteration: int
    report: PyramidReport
    seconds: float
    waited: float
    learning_rate: float
    gradient_norms: dict[str, Tensor] = field(default_factory=dict)
    gradient_scale: float | None = None

    @property
    def loss(self) -> float:
        """The sum of all weighted losses."""
        return float(self.report.total)


class TrainingLog:
    """Log of one training process, as a context manager. Only the first process of a run logs; in others it does nothing.

    Args:
        iteration: number of finished steps; not 0 in a resumed run.
        batch_size: samples per optimiser step, of all processes together.
    """

    def __init__(self, config: TrainConfig, folder: Path, iteration: int, batch_size: int, enabled: bool):
        self._config, self._batch_size = config.log, batch_size
        self._writer = SummaryWriter(folder) if enabled else None
        total = None if config.schedule.minutes is not None else config.schedule.iterations  # None: known after a step
        self._bar = tqdm(total=total, initial=iteration, unit="it", disable=not enabled)
        self.start_clock()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def start_clock(self) -> None:
        """Start to measure the speed for the next point of the curves."""
        self._since, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def step(self, progress: Progress, iterations: int, best: Mapping[str, float] | None) -> None:
        """Log a step of `iterations` planned ones; `best` is the best validation so far."""
        if self._writer is None:
            return
        self._steps += 1
        self._waited += progress.waited
        if progress.iteration % self._config.every == 0:
            self._log_curves(self._writer, progress, iterations, best)
            self.start_clock()
        views = progress.report.views
        if views is not None and progress.iteration % self._config.images_every == 0:
            self._log_views(self._writer, views, progress.iteration)
        self._bar.total = iterations
        self._bar.update()

    def validation(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Log the figures of a validation."""
        if self._writer is None:
            return
        for name, value in figures.items():
            self._writer.add_scalar(f"validation/{name}", value, iteration)
        if figures:
            tqdm.write(f"iteration {iteration}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    def _log_curves(
        self, writer: SummaryWriter, progress: Progress, iterations: int, best: Mapping[str, float] | None
    ) -> None:
        seconds = time.perf_counter() - self._since
        rate = self._steps * self._batch_size / seconds
        shown = "" if best is None else f", best {SELECTED_BY} {best[SELECTED_BY]:.4f}"
        self._bar.set_postfix_str(f"loss {progress.loss:.4f}, {rate:.1f} images/s{shown}")
        remaining = iterations - progress.iteration
        scalars = {
            "loss/total": progress.report.total,
            "speed/images_per_second": rate,
            "speed/waiting_for_loader": self._waited / seconds,
            "speed/hours_left": remaining * seconds / self._steps / 3600,
            "optimizer/learning_rate": progress.learning_rate,
        }
        for name, norm in progress.gradient_norms.items():
            scalars[f"optimizer/gradient_norm_{name}"] = norm
        if progress.gradient_scale is not None:
            scalars["optimizer/gradient_scale"] = progress.gradient_scale
        for name, level in progress.report.levels.items():
            scalars |= {f"{name}/{part}": value for part, value in asdict(level).items() if value is not None}
        for name, value in scalars.items():
            writer.add_scalar(name, value, progress.iteration)

    def _log_views(self, writer: SummaryWriter, views: Views, iteration: int) -> None:
        """Of the batch's first sample: depth (log scale), the frame warped from its neighbour, the weight of each pixel."""
        depth = views.depth[0, 1].log()
        depth = (depth - depth.min()) / (depth.max() - depth.min() + 1e-6)
        writer.add_image("views/depth", 1 - depth, iteration)
        writer.add_image("views/warped", views.warped[0, 0].clamp(0, 1), iteration)
        writer.add_image("views/weight", views.weight[0, 0], iteration)
