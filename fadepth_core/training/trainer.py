"""The training loop: batches through the pyramid loss into AdamW (FA-Depth section IV; docs/method.md, section 8).

Lightning Fabric handles devices, precision and processes. A resumed run gives the same result, bit for bit, as an
uninterrupted one. A loss that is not finite stops the run.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler

from fadepth_core.common.memory import keep_freed_memory, training_format
from fadepth_core.common.sample import Sample, SampleDataset
from fadepth_core.losses import BaseWeights, LevelWeights, PyramidLoss, PyramidReport
from fadepth_core.models import DepthNetwork, SmallDepth, build_model
from fadepth_core.models.layers.drop import set_drop_progress
from fadepth_core.models.layers.etm import ETMConv2d
from fadepth_core.models.posenet import build_pose_net
from fadepth_core.models.smalldepth import FusedSmallDepth
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.network import load_network
from fadepth_core.training.batch_norm import BatchNormStatistics
from fadepth_core.training.config import TrainConfig
from fadepth_core.training.loader import Augment, batches
from fadepth_core.training.log import Progress, TrainingLog
from fadepth_core.training.run_folder import BEST, CHECKPOINT, SELECTED_BY, STATE, RunFolder, TrainingError
from fadepth_core.training.schedules import Schedule, learning_rate_factor, step_seed
from fadepth_core.training.teacher import build_distillation

#: Number of images from which BatchNorms are rebuilt when training starts from a deployment checkpoint, which has none.
_START_IMAGES = 128


class Trainer:
    """One run of `config` on `dataset`.

    Args:
        dataset: unaugmented `Sample`s by index.
        augment: changes a sample with random numbers of a generator; None: samples are not augmented.
        measure: named figures of the depth network and the pose network (None if motion is known), both in evaluation mode,
            e.g. the error against true depth. If "abs_rel" is among them, the depth network with the lowest one is saved in
            best.safetensors. None: no validation.

    Raises:
        CheckpointError: the teacher or the checkpoint to start from cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: SampleDataset,
        augment: Augment | None = None,
        measure: Callable[[DepthNetwork, nn.Module | None], dict[str, float]] | None = None,
    ):
        self.config, self.folder = config, RunFolder(config)
        self._dataset, self._augment, self._measure = dataset, augment, measure
        self.fabric, self.scaler = _build_fabric(config)
        self.iteration, self.schedule = 0, Schedule(config.schedule)
        self.best: dict[str, float] | None = None

        torch.manual_seed(config.seed)
        self.statistics = BatchNormStatistics(config, dataset, augment)
        self.network = self._build_network()
        self.pose_net = _build_pose_net(config, self.fabric.device)
        self.distillation = build_distillation(config, self.network)
        self.apx = None if self.distillation is None else self.distillation.apx
        self.optimizer = _build_optimizer(config, self.network, self.pose_net, self.apx)

    def evaluation_copy(self) -> DepthNetwork:
        """A copy of the depth network to measure, save and export: evaluation mode, BatchNorm statistics with drop off."""
        return self.statistics.evaluation_copy(self.network, self.iteration)

    # --------------------------------------------------------------------------------------------------------- the loop

    def fit(self, resume: bool = False, on_step: Callable[[Progress], None] | None = None) -> Path:
        """Train for the configured number of iterations or minutes; returns the path of the last checkpoint.

        Ctrl-C finishes the current step, saves, and raises KeyboardInterrupt; a second one raises it at once.

        Raises:
            TrainingError: nothing to resume, a run already in the folder, or a loss that is not finite.
        """
        pyramid_loss, data = self._start(resume)
        config, schedule = self.config, self.schedule
        log = TrainingLog(
            config, self.folder.path, self.iteration, self._batch_size, enabled=self.fabric.is_global_zero
        )
        with log, _DeferredInterrupt() as interrupt:
            if self.iteration == 0:
                self._validate(log)  # the untrained network, for comparison
                log.start_clock()
            started = time.monotonic() - schedule.seconds
            while not schedule.finished(self.iteration):
                progress = self._step(data, pyramid_loss)
                self._update_schedule(time.monotonic() - started)
                log.step(progress, schedule.iterations, self.best)
                if on_step is not None:
                    on_step(progress)
                finished = schedule.finished(self.iteration)
                validate = finished or self.iteration % config.log.evaluate_every == 0
                if validate:
                    self._validate(log)
                if finished:
                    break
                if validate or interrupt.requested:  # after a validation, so that state and best checkpoint agree
                    self.save()
                elif self.iteration % config.log.save_every == 0:
                    self._save_state()
                if interrupt.requested:
                    raise KeyboardInterrupt
            return self.save()

    def _step(self, data: Iterator[Sample], pyramid_loss: PyramidLoss) -> Progress:
        """One optimiser step, from the batch to the optimiser."""
        config, started, waited = self.config, time.perf_counter(), 0.0
        torch.manual_seed(step_seed(config.seed, self.fabric.global_rank, self.iteration))
        set_drop_progress(self.network, self.iteration, self.schedule.iterations)
        self.statistics.freeze(self.network, self.iteration, self.schedule.iterations)
        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(config.accumulate):
            requested = time.perf_counter()
            sample = next(data)
            waited += time.perf_counter() - requested
            sample = sample.to(self.fabric.device)
            report = pyramid_loss(sample, lambda loss: self.fabric.backward(loss / config.accumulate))
            if not math.isfinite(report.total):
                raise TrainingError(self._save_bad_batch(sample, report))
        norms = self._clip_gradients()
        self.optimizer.step()
        self.iteration += 1
        return Progress(
            iteration=self.iteration,
            report=report,
            seconds=time.perf_counter() - started,
            waited=waited,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            gradient_norms=norms,
            gradient_scale=None if self.scaler is None else self.scaler.get_scale(),
        )

    def _update_schedule(self, seconds: float) -> None:
        if self.schedule.follows_time:  # all processes must take the same number of steps
            seconds = self.fabric.broadcast(seconds)
        self.schedule.update(self.iteration, seconds)

    def _set_learning_rate(self) -> None:
        warmup, final = self.config.schedule.warmup, self.config.schedule.final
        factor = learning_rate_factor(self.iteration, self.schedule.iterations, warmup, final)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["full_lr"]

    def _clip_gradients(self) -> dict[str, Tensor]:
        """Limit the gradient norm of each network; returns the norms before."""
        if self.scaler is not None:
            # Otherwise the limit would apply to scaled gradients, and AdamW would see gradients of the size of its ε.
            self.scaler.unscale_(self._unwrapped_optimizer)
        norms = {}
        for name, module in (("network", self.network), ("pose_net", self.pose_net), ("apx", self.apx)):
            parameters = [] if module is None else list(module.parameters())
            if parameters:
                # Not an error: float16 sometimes overflows, and the scaler skips such a step.
                limit = self.config.optimizer.clip_norm
                norms[name] = nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=False)
        return norms

    def _validate(self, log: TrainingLog) -> None:
        """Measure, log, and save the network if it is the best so far."""
        if self._measure is None or not self.fabric.is_global_zero:
            return
        with nullcontext() if self.pose_net is None else _evaluating(self.pose_net):
            figures = self._measure(self.evaluation_copy(), self.pose_net)
        log.validation(self.iteration, figures)
        # An untrained network is never the best, even if training makes it worse.
        trained = self.iteration > 0 or self.config.model.start is not None
        value = figures.get(SELECTED_BY, math.inf)
        if trained and value < (math.inf if self.best is None else self.best[SELECTED_BY]):
            self.best = {"iteration": self.iteration, SELECTED_BY: value}
            self.folder.save_checkpoint(BEST, self.evaluation_copy(), self.iteration, self._batch_size)

    # ------------------------------------------------------------------------------------------------- saving, resuming

    def save(self) -> Path:
        """Write both networks, and the state for a resumed run; returns the path of the depth network's checkpoint."""
        if self.fabric.is_global_zero:
            self.folder.save_checkpoint(CHECKPOINT, self.evaluation_copy(), self.iteration, self._batch_size)
            if self.pose_net is not None:
                self.folder.save_pose_net(self.pose_net)
        self._save_state()
        return self.folder.path / CHECKPOINT

    def _save_state(self) -> None:
        if self.fabric.is_global_zero:
            progress = {
                "iteration": self.iteration,
                "seconds": self.schedule.seconds,
                "frozen": self.statistics.frozen,
                "best": self.best,
            }
            self.folder.save_state(self._parts(), progress)
        self.fabric.barrier()

    def _resume(self) -> None:
        configured = [group["full_lr"] for group in self.optimizer.param_groups]
        progress = self.folder.load_state(self._parts())
        self.iteration, self.best = progress["iteration"], progress["best"]
        self.statistics.frozen = progress["frozen"]
        self.schedule.update(self.iteration, progress["seconds"])
        for group, full_lr in zip(self.optimizer.param_groups, configured, strict=True):
            group["full_lr"] = full_lr  # the configuration may have another one than the saved state

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer | GradScaler | None]:
        """Everything with a state; None where the run has no such part."""
        return {
            "network": self.network,
            "pose_net": self.pose_net,
            "apx": self.apx,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
        }

    def _save_bad_batch(self, sample: Sample, report: PyramidReport) -> str:
        """Save the batch whose loss is not finite; returns the error message."""
        path = self.folder.save_bad_batch(self.iteration, sample)
        parts = {
            f"{level}.{field.name}": float(value)
            for level, values in report.levels.items()
            for field in fields(values)
            if isinstance(value := getattr(values, field.name), Tensor) and not math.isfinite(value)
        }
        return (
            f"the loss is not finite at iteration {self.iteration} ({', '.join(parts)}); the batch "
            f"({', '.join(sample.name)}) is in {path}, the last saved state in {self.folder.path / STATE}"
        )

    # ----------------------------------------------------------------------------------------------------------- set-up

    @property
    def _batch_size(self) -> int:
        """Samples per optimiser step, of all processes together."""
        return self.config.data.batch_size * self.config.accumulate * self.fabric.world_size

    def _start(self, resume: bool) -> tuple[PyramidLoss, Iterator[Sample]]:
        """Prepare the folder, the processes and the networks; returns the loss and the batches of this process."""
        keep_freed_memory()
        self.folder.create(resume)
        # `fabric run` has started all processes, and says so in this variable. Fabric then refuses to start them.
        if os.environ.get("LT_CLI_USED") != "1":
            self.fabric.launch()
        network, pose_net = self._set_up()
        if resume:
            self._resume()
        self.folder.save_config()
        rank, world = self.fabric.global_rank, self.fabric.world_size
        start = self.iteration * self.config.accumulate
        data = batches(self._dataset, self._augment, self.config, start, rank, world)
        return self._build_loss(network, pose_net), data

    def _set_up(self) -> tuple[nn.Module, nn.Module | None]:
        """Depth network and pose network as Fabric wraps them, in training mode."""
        self._unwrapped_optimizer = self.optimizer  # the one that `GradScaler` knows
        network, self.optimizer = self.fabric.setup(self.network, self.optimizer)
        pose_net = None if self.pose_net is None else self.fabric.setup_module(self.pose_net)
        if self.distillation is not None:
            self.distillation.set_up(self.fabric)
        network.train()
        if pose_net is not None:
            pose_net.train()
        return network, pose_net

    def _build_loss(self, network: nn.Module, pose_net: nn.Module | None) -> PyramidLoss:
        data, loss = self.config.data, self.config.loss
        return PyramidLoss(
            cast(DepthNetwork, network),
            pose_net,
            data.size,
            {name: LevelWeights(**level.model_dump()) for name, level in loss.levels.items()},
            BaseWeights(**loss.base.model_dump()),
            depth_weight=loss.depth,
            depth_error=loss.depth_error,
            shape_weight=loss.shape,
            speed_weight=loss.speed or 0.0,
            distillation=self.distillation,
            rescale_to_cr=loss.rescale_to_cr,
            share_masks=loss.share_masks,
            joint=loss.joint,
            other_sizes=data.sizes,
        )

    def _build_network(self) -> DepthNetwork:
        model = self.config.model
        # torch's declaration of `to` lacks this form.
        network = build_model(model.name, **model.options).to(memory_format=training_format(self.fabric.device))  # type: ignore[call-overload]
        if model.start_depth is not None:
            network.set_start_depth(model.start_depth)
        if model.start is not None:
            self._load_start(network, Checkpoint(model.start))
            self.statistics.frozen = model.freeze_statistics == 0
        return network

    def _load_start(self, network: DepthNetwork, checkpoint: Checkpoint) -> None:
        """Load the weights of a training checkpoint, or of a deployment checkpoint of SmallDepth."""
        try:
            if checkpoint.description.form == "training":
                network.load_state_dict({name: torch.from_numpy(value) for name, value in checkpoint.weights.items()})
            elif isinstance(network, SmallDepth):
                images = next(self.statistics.batches(_START_IMAGES, torch.device("cpu")))
                deployed = load_network(checkpoint)
                if not isinstance(deployed, FusedSmallDepth):
                    raise ValueError("it is not a SmallDepth")
                network.load_fused(deployed, images)
            else:
                raise ValueError("only SmallDepth can start from a deployment checkpoint")
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{checkpoint.path}: not the weights of this network: {error}") from error


class _DeferredInterrupt:
    """Inside this context, Ctrl-C only sets `requested`, so that the loop can finish its step. A second Ctrl-C raises
    KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> _DeferredInterrupt:
        self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_error: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def _build_fabric(config: TrainConfig) -> tuple[Fabric, GradScaler | None]:
    """Fabric, and the gradient scaler of its precision."""
    if config.precision != "16-mixed":
        return Fabric(devices=config.devices, accelerator="auto", precision=config.precision), None
    # Fabric's own scaler is not accessible, neither to unscale gradients before they are clipped nor to be saved.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scaler = GradScaler(device)
    plugin = MixedPrecision("16-mixed", device, scaler)
    return Fabric(devices=config.devices, accelerator="auto", plugins=plugin), scaler


def _build_pose_net(config: TrainConfig, device: torch.device) -> nn.Module | None:
    pose = config.pose
    if pose.network == "known":
        return None
    options = {"weights": pose.weights} if pose.network == "fbnetv3_b" else {}
    # torch's declaration of `to` lacks this form.
    return build_pose_net(pose.network, **options).to(memory_format=training_format(device))  # type: ignore[call-overload]


def _build_optimizer(
    config: TrainConfig, network: nn.Module, pose_net: nn.Module | None, apx: nn.Module | None
) -> torch.optim.AdamW:
    """AdamW; each group keeps its full learning rate as "full_lr"."""
    settings = config.optimizer
    groups = parameter_groups(network, settings.lr, settings.weight_decay)
    if pose_net is not None:
        groups += parameter_groups(pose_net, settings.pose_lr, settings.weight_decay)
    if apx is not None and apx.projections:
        groups += parameter_groups(apx, settings.lr, settings.weight_decay)
    for group in groups:
        group["full_lr"] = group["lr"]
    return torch.optim.AdamW(groups, betas=settings.betas)


def parameter_groups(network: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """AdamW's groups: weight decay on kernels; none on biases, BatchNorm and the γ of ETM branches.

    See docs/method.md, section 2.3.
    """
    gammas = {id(b.gamma) for m in network.modules() if isinstance(m, ETMConv2d) for b in m.branches}
    decayed = [p for p in network.parameters() if p.dim() > 1 and id(p) not in gammas]
    plain = [p for p in network.parameters() if p.dim() <= 1 or id(p) in gammas]
    return [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": plain, "lr": lr, "weight_decay": 0.0},
    ]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)
