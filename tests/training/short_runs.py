"""Helpers for the tests of training: a tiny data set, configurations of short runs, and the command `fadepth`."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch.utils.data import Dataset

from fadepth_core import cli
from fadepth_core.data import Sample
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.training.config import TrainConfig, load_config
from fadepth_core.training.log import Progress
from fadepth_core.training.run_folder import CHECKPOINT

ROOT = Path(__file__).resolve().parents[2]
#: The command in a process of its own, from a clone.
COMMAND = (sys.executable, str(ROOT / "training" / "run.py"))
SIZE = (32, 64)
#: No losses that compare frames.
NO_BASE_LOSS = "loss.base={photometric: 0, structure: 0, feature: 0, smoothness: 0}"


class Waves(Dataset):
    """Smooth pictures with the same motion everywhere. Frames are twice `SIZE`, for level hr.

    Args:
        spoil: index of a sample whose frames are NaN.
    """

    def __init__(self, spoil: int | None = None):
        self._spoil = spoil

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        h, w = 2 * SIZE[0], 2 * SIZE[1]
        v, u = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
        shift = torch.arange(3).view(3, 1, 1) * 0.02
        rgb = [0.5 + 0.4 * torch.sin(9 * (u + shift) + c + index) * torch.cos(7 * v + c) for c in range(3)]
        frames = torch.stack(rgb, dim=1)
        if index == self._spoil:
            frames = frames * float("nan")
        k = torch.tensor([[150.0, 0, w / 2], [0, 150.0, h / 2], [0, 0, 1]])
        poses = torch.eye(4).repeat(3, 1, 1)
        poses[:, 0, 3] = torch.arange(3) * 0.1
        depth = torch.full((16, 24), 5.0)
        return Sample(frames, k, torch.tensor(0.1), f"waves {index}", torch.tensor(1.0), poses, depth)


def jitter(sample: Sample, generator: torch.Generator) -> Sample:
    """An augmentation: random brightness."""
    sample.frames = sample.frames * (0.9 + 0.1 * torch.rand(1, generator=generator))
    return sample


def short_run(output: Path, *overrides: str) -> TrainConfig:
    """A run of six iterations on `Waves`, with the paper's five levels."""
    options = [
        f"output={output}",
        f"data.size={list(SIZE)}",
        "data.batch_size=2",
        "data.workers=0",
        "data.statistics_images=4",
        "pose.network=small",
        "schedule.iterations=6",
        "schedule.warmup=2",
        "log.every=1",
        "log.images_every=2",
        "log.save_every=100",
        "model.residual_drop=0.5",
    ]
    return load_config(None, [*options, *overrides])


def interrupt_after(iteration: int) -> Callable[[Progress], None]:
    """For `Trainer.fit`: Ctrl-C after that step."""

    def on_step(progress: Progress) -> None:
        if progress.iteration == iteration:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


def same_weights(a: Path, b: Path) -> bool:
    """Whether the last checkpoints of two runs are equal bit for bit."""
    first, second = (Checkpoint(folder / CHECKPOINT).weights for folder in (a, b))
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def fadepth(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves the time of starting Python and importing torch."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        status = cli.main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())
