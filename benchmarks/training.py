#!/usr/bin/env python3
"""Measures the speed of training, and the shares of the loader, the networks and the losses.

Trains with a configuration. After every step it runs the networks alone, forward and backward, at the sizes of the same
pyramid levels, so that both are timed under the same load of the machine. The rest of a step, without the time spent waiting
for the loader, belongs to the losses (warping, SSIM, masks, consistency) and the optimiser.

    python benchmarks/training.py
    python benchmarks/training.py --config config/training/kitti.yaml --steps 200 --set data.workers=8
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fadepth_core.data.augment import Augmentation
from fadepth_core.training.config import TrainConfig, load_config
from fadepth_core.training.fit import training_set, with_speed_weight
from fadepth_core.training.loader import Augment, batches
from fadepth_core.training.log import Progress
from fadepth_core.training.trainer import Trainer

#: Size of each level relative to cr.
_SCALES = {"cr": 1.0, "lr": 0.5, "hr": 2.0, "flip": 1.0, "color": 1.0}


def networks_alone(trainer: Trainer, config: TrainConfig) -> float:
    """Seconds for forward and backward of the networks on noise at every pyramid level. Gradients are discarded."""
    batch, (height, width), device = config.data.batch_size, config.data.size, trainer.fabric.device
    pictures = [
        torch.randn(3 * batch, 3, int(_SCALES[name] * height), int(_SCALES[name] * width), device=device)
        for name in config.loss.levels
    ]
    pictures = [x.contiguous(memory_format=torch.channels_last) for x in pictures]
    _synchronise()
    started = time.perf_counter()
    for _ in range(config.accumulate):
        for x in pictures:
            disparities = trainer.network(x).disparities
            loss = sum(d.mean() for d in disparities)
            if trainer.pose_net is not None:
                loss = loss + trainer.pose_net(torch.cat([x[: 2 * batch], x[batch:]], dim=1)).mean()
            trainer.fabric.backward(loss)
    _synchronise()
    seconds = time.perf_counter() - started
    trainer.optimizer.zero_grad(set_to_none=True)
    return seconds


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def loader_alone(config: TrainConfig, dataset: Dataset, augment: Augment, steps: int) -> float:
    """Images per second of the loader without training; its start is not timed."""
    data = batches(dataset, augment, config, 0, 0, 1)
    for _ in range(max(2, 2 * config.data.workers)):
        next(data)
    started = time.perf_counter()
    for _ in range(steps):
        next(data)
    return steps * config.data.batch_size / (time.perf_counter() - started)


@dataclass(frozen=True)
class Speed:
    """Median seconds of a step, of its waiting for the loader, and of `networks_alone`.

    Attributes:
        images: samples per step.
        loader_images_per_second: of the loader without training.
    """

    config: TrainConfig
    device: torch.device
    images: int
    step: float
    waited: float
    networks: float
    loader_images_per_second: float


def measure(path: Path, settings: list[str], steps: int) -> Speed:
    """Train `steps` steps with a configuration file and settings "KEY=VALUE"."""
    warm_up = 3
    with tempfile.TemporaryDirectory() as output:
        own = [f"output={output}", f"schedule.iterations={steps + warm_up}", "schedule.warmup=1"]
        config = load_config(path, [*settings, *own])
        dataset = training_set(config)
        config, augment = with_speed_weight(config, dataset), Augmentation(**config.data.augment.model_dump())
        delivered = loader_alone(config, dataset, augment, max(2, steps // 4))
        trainer, times = Trainer(config, dataset, augment), []

        def after_step(progress: Progress) -> None:
            _synchronise()
            times.append((progress.seconds, progress.waited, networks_alone(trainer, config)))

        trainer.fit(on_step=after_step)
    step, waited, networks = (statistics.median(column) for column in zip(*times[warm_up:], strict=True))
    images = config.data.batch_size * config.accumulate
    return Speed(config, trainer.fabric.device, images, step, waited, networks, delivered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--config", type=Path, default=root / "config/training/synthetic.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    speed = measure(args.config, args.set, args.steps)
    config, step = speed.config, speed.step
    print(
        f"\n{args.config.name}: {'x'.join(map(str, config.data.size))}, batch {speed.images}, "
        f"levels {', '.join(config.loss.levels)},"
    )
    print(f"pose network {config.pose.network}, {torch.get_num_threads()} threads, device {speed.device}")
    print(f"training      {speed.images / step:8.1f} images/s   ({1e3 * step:.0f} ms a step, median of {args.steps})")
    print(f"loader alone  {speed.loader_images_per_second:8.1f} images/s   ({config.data.workers} workers)")
    print("share of a step:")
    print(f"  waiting for the loader   {speed.waited / step:6.1%}")
    print(f"  networks                 {speed.networks / step:6.1%}")
    print(f"  losses and optimiser     {(step - speed.waited - speed.networks) / step:6.1%}")


if __name__ == "__main__":
    main()
