"""The training loop: batches through the pyramid loss into AdamW, with schedules, checkpoints, logs and measurements.

Devices, precision, processes and gradient accumulation belong to Lightning Fabric. What is here is the order of things, and
that nothing is lost: an interrupted run goes on bit by bit where it stopped, a full disk leaves the previous checkpoint, and
a loss that is not finite stops the run with the batch that made it.
"""

from __future__ import annotations

import copy
import ctypes
import math
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fadepth_core.common.color import normalise
from fadepth_core.common.files import write_atomically
from fadepth_core.common.sample import evenly_spread
from fadepth_core.data import Sample, collate
from fadepth_core.data.augment import cutmix_strip
from fadepth_core.data.focal import at_focal_length
from fadepth_core.geometry import area_average
from fadepth_core.losses import BaseWeights, LevelWeights, PyramidLoss, PyramidReport
from fadepth_core.losses.supervised import depth_loss, shape_loss
from fadepth_core.models import SmallDepth, build_model
from fadepth_core.models.layers.batch_norm import recompute_batch_norm
from fadepth_core.models.layers.drop import set_drop_progress
from fadepth_core.models.layers.etm import ETMConv2d
from fadepth_core.models.posenet import build_pose_net
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError, Description, save_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_core.training.config import DataConfig, TrainConfig, save_config
from fadepth_core.training.pose_checkpoint import save_pose_net
from fadepth_core.training.schedules import BatchesOfOneKind, EndlessSampler, learning_rate_factor
from fadepth_core.training.teacher import Distillation, build_apx, load_teacher
from fadepth_core.training.workers import start_worker

STATE = "state.pt"
CONFIG = "config.yaml"
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
POSE_NET = "pose.safetensors"
#: The measure by which the best checkpoint is chosen; lower is better.
SELECTED_BY = "abs_rel"
#: Pixels per pass when BatchNorm's statistics are recomputed: 32 images of 128x416.
_STATISTICS_PIXELS = 32 * 128 * 416
#: Images from which the BatchNorms of a deployment checkpoint, which has none, are rebuilt.
_START_IMAGES = 128


class TrainingError(RuntimeError):
    """A run that cannot start or go on; the message says why and what is left of it."""


class AugmentedDataset(Dataset):
    """Looks samples up by the sampler's (index, draw) keys and augments each with the generator its draw seeds; then
    brings it to the configured focal length, which augmentation changes. Frames are `factor` times the size of level cr."""

    def __init__(
        self,
        dataset: Dataset,
        augment: Callable[[Sample, torch.Generator], Sample] | None,
        config: DataConfig,
        factor: int,
    ):
        self._dataset, self._augment = dataset, augment
        self._focal, self._cutmix, self._factor = config.focal_length, config.cutmix, factor

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, draw = key
        generator = torch.Generator().manual_seed(draw)
        sample = self._sample(index, generator)
        if self._cutmix and torch.rand((), generator=generator) < self._cutmix:
            other = self._sample(int(torch.randint(len(self._dataset), (), generator=generator)), generator)
            if other.frames.shape == sample.frames.shape:
                sample = cutmix_strip(sample, other, generator)
        return sample

    def _sample(self, index: int, generator: torch.Generator) -> Sample:
        sample = self._dataset[index]
        if self._augment is not None:
            sample = self._augment(sample, generator)
        if self._focal is None:
            return sample
        return at_focal_length(sample, self._focal, sample.frames.shape[-1] // self._factor)


def statistics_images(dataset: Dataset, augment, config: TrainConfig) -> list[Tensor]:
    """Middle frames as training looks at them, spread evenly over the data set: uint8 [N, 3, H, W] for each size that they
    have, the same in every run.

    BatchNorm's statistics are computed over these. They are shuffled: in the data set's own order a batch would hold one data
    set of a mixture, or one clip, and normalise it by its own statistics instead of those of all images.
    """
    indices = evenly_spread(len(dataset), config.data.statistics_images)
    indices = np.random.default_rng(0).permutation(indices).tolist()
    loader = DataLoader(
        AugmentedDataset(dataset, augment, config.data, config.frame_factor),
        batch_size=None,
        sampler=[(index, draw) for draw, index in enumerate(indices)],
        num_workers=config.data.workers,
        collate_fn=_middle_frame,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    by_size: dict[tuple[int, int], list[Tensor]] = {}
    for frame in loader:
        size = tuple(side // config.frame_factor for side in frame.shape[-2:])
        by_size.setdefault(size, []).append(_to_bytes(area_average(frame, size)))
    return [torch.cat(images) for images in by_size.values()]


def _middle_frame(sample: Sample) -> Tensor:
    return sample.middle[None]


def _to_bytes(images: Tensor) -> Tensor:
    """RGB in [0, 1] as uint8, a quarter of the memory."""
    return (images * 255).round().byte()


def step_seed(seed: int, rank: int, iteration: int) -> int:
    """Seed of everything random in one optimiser step of one process: drop masks, ETM's masks, jitter of level color.

    Derived and not stored, so that a resumed run draws what an uninterrupted one does, and no two processes or iterations draw
    the same.
    """
    return int(np.random.SeedSequence((seed, rank, iteration)).generate_state(1)[0])


def batches(dataset: Dataset, augment, config: TrainConfig, start: int, rank: int, world: int) -> Iterator[Sample]:
    """Endless batches from the `start`-th on, in an order that follows from the seed; each of one size."""
    size, sizes = config.data.batch_size, config.data.sizes
    if len(set(sizes)) == 1:
        order = {"batch_size": size, "sampler": EndlessSampler(len(dataset), config.seed, start * size, rank, world)}
    else:
        keys = EndlessSampler(len(dataset), config.seed, 0, rank, world)
        order = {"batch_sampler": BatchesOfOneKind(keys, size, lambda index: sizes[dataset.part(index)], start)}
    return iter(
        DataLoader(
            AugmentedDataset(dataset, augment, config.data, config.frame_factor),
            **order,
            num_workers=config.data.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=config.data.workers > 0,
            worker_init_fn=start_worker,
            # Of its own: a loader draws a seed when it starts, which would shift a resumed run's random numbers.
            generator=torch.Generator(),
        )
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed instead of giving it back to the kernel, which clears every page anew.

    Training on a CPU allocates and frees the same large tensors at every step: level hr at batch 4 and 128×416 takes a
    third of the time (19.8 -> 6.4 s on one thread); so do the sweeps of `labels.stereo`. Other C libraries have no such call,
    and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


@dataclass
class Progress:
    """What callers see after every optimiser step.

    Attributes:
        iteration: how many steps are done.
        loss: of this one.
        seconds: how long it took, and `waited`: how much of that the loader kept it waiting.
    """

    iteration: int
    loss: float
    seconds: float
    waited: float


class Trainer:
    """One run of `config` on `dataset`.

    Args:
        dataset: yields unaugmented `Sample`s by index.
        augment: changes a sample with a generator, or None.
        measure: named figures of the depth network and the pose network (None where motion is known) in evaluation
            mode, e.g. the error against true depth; None measures nothing. Where "abs_rel" is among them, the network with the
            lowest is kept in best.safetensors.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        augment: Callable[[Sample, torch.Generator], Sample] | None = None,
        measure: Callable[[nn.Module, nn.Module | None], dict[str, float]] | None = None,
    ):
        self.config, self.output = config, Path(config.output)
        self._dataset, self._augment, self._measure = dataset, augment, measure
        self.scaler: GradScaler | None = None
        if config.precision == "16-mixed":
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.scaler = GradScaler(device)
            # Fabric's own scaler cannot be reached to unscale gradients before they are clipped module by module, nor be saved.
            precision = {"plugins": MixedPrecision("16-mixed", device, self.scaler)}
        else:
            precision = {"precision": config.precision}
        self.fabric = Fabric(devices=config.devices, accelerator="auto", **precision)
        self.iteration = 0
        self.best: dict[str, float] | None = None
        self._stop = False
        self._settled: tuple[int, nn.Module] | None = None
        self._statistics: list[Tensor] | None = None
        # Read now: the files may be gone or replaced when a checkpoint is saved.
        self._origins = _origins(config)

        torch.manual_seed(config.seed)
        model = config.model
        self.network = build_model(model.name, **model.options).to(memory_format=torch.channels_last)
        if model.start_depth is not None:
            self.network.set_start_depth(model.start_depth)
        if model.start is not None:
            self._load_start(Checkpoint(model.start))
        self.pose_net = None
        if config.pose.network != "known":
            options = {"weights": config.pose.weights} if config.pose.network == "fbnetv3_b" else {}
            self.pose_net = build_pose_net(config.pose.network, **options).to(memory_format=torch.channels_last)

        self.apx = self._teacher = None
        if config.teacher is not None:
            from_disk = config.teacher.cache is not None or config.teacher.source.is_dir()
            self._teacher = None if from_disk else load_teacher(config)
            self.apx = build_apx(config.teacher, self.network, self._teacher)

        groups = parameter_groups(self.network, config.optimizer.lr, config.optimizer.weight_decay)
        if self.pose_net is not None:
            groups += parameter_groups(self.pose_net, config.optimizer.pose_lr, config.optimizer.weight_decay)
        if self.apx is not None and self.apx.projections:
            groups += parameter_groups(self.apx, config.optimizer.lr, config.optimizer.weight_decay)
        for group in groups:
            group["full_lr"] = group["lr"]
        self.optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas)

    def _load_start(self, checkpoint: Checkpoint) -> None:
        """Weights to start from: of a training checkpoint, or of SmallDepth's deployment checkpoint, of the same network."""
        network = self.network
        try:
            if checkpoint.description.form == "training":
                network.load_state_dict({name: torch.from_numpy(value) for name, value in checkpoint.weights.items()})
            elif not isinstance(network, SmallDepth):
                raise ValueError("of a deployment checkpoint only SmallDepth can be trained on")
            else:
                network.load_fused(load_network(checkpoint), next(self._statistics_batches(_START_IMAGES)))
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{checkpoint.path}: not the weights of this network: {error}") from error

    def _statistics_batches(self, size: int) -> Iterator[Tensor]:
        """Batches of normalised images [B, 3, H, W] on the network's device for BatchNorm's statistics."""
        if self._statistics is None:
            self._statistics = statistics_images(self._dataset, self._augment, self.config)
        device = next(self.network.parameters()).device
        for of_one_size in self._statistics:
            # Equal parts: BatchNorm cannot normalise a last batch of a single image.
            for images in of_one_size.tensor_split(math.ceil(len(of_one_size) / size)):
                yield normalise(images.to(device, memory_format=torch.channels_last).float() / 255)

    def settled(self) -> nn.Module:
        """A copy of the depth network in evaluation mode, whose BatchNorm statistics are those with drop off.

        What is measured, saved and exported. The network in training keeps its running statistics.
        """
        if self._settled is None or self._settled[0] != self.iteration:
            network = copy.deepcopy(self.network).eval()
            if self.iteration <= self._frozen_from:  # at that iteration they are recomputed with its step
                self._recompute_statistics(network)
            self._settled = (self.iteration, network)
        return self._settled[1]

    def _recompute_statistics(self, network: nn.Module) -> None:
        """Set the statistics of `network`'s BatchNorms to those over the statistics images; leaves it in evaluation mode."""
        height, width = self.config.data.size
        recompute_batch_norm(network, self._statistics_batches(max(8, _STATISTICS_PIXELS // (height * width))))

    @property
    def _frozen_from(self) -> float:
        """The iteration from which on BatchNorm's statistics stay as they are."""
        share = self.config.model.freeze_statistics
        return math.inf if share is None else round(share * self.config.schedule.iterations)

    def _freeze_statistics(self) -> None:
        """From the configured iteration on, let BatchNorms normalise in training as they will in deployment."""
        if self.iteration < self._frozen_from:
            return
        if self.iteration == self._frozen_from:
            self._recompute_statistics(self.network)
            self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    # --------------------------------------------------------------------------------------------------------- the loop

    def fit(self, resume: bool = False, on_step: Callable[[Progress], None] | None = None) -> Path:
        """Train to the configured number of iterations; returns the path of the finished checkpoint.

        Ctrl-C finishes the step at hand, saves, and raises KeyboardInterrupt.

        Raises:
            TrainingError: nothing to resume, another run in the way, or a loss that is not finite.
        """
        config = self.config
        if not resume and (self.output / STATE).is_file():
            raise TrainingError(
                f"{self.output}: holds a run already; --resume goes on with it, --set output=FOLDER starts another"
            )
        keep_freed_memory()
        self.output.mkdir(parents=True, exist_ok=True)
        self.fabric.launch()
        network, pose_net = self._set_up()
        if resume:
            self._load_state()
        save_config(config, self.output / CONFIG)
        loss_of = self._pyramid_loss(network, pose_net)
        data = batches(
            self._dataset,
            self._augment,
            config,
            self.iteration * config.accumulate,
            self.fabric.global_rank,
            self.fabric.world_size,
        )
        main = self.fabric.is_global_zero
        with (
            SummaryWriter(self.output) if main else nullcontext() as log,
            tqdm(total=config.schedule.iterations, initial=self.iteration, unit="it", disable=not main) as bar,
            self._interruptible(),
        ):
            if self.iteration == 0:
                self._validate(log)  # what is learned shows against what there was
            since, images, waited, steps = time.perf_counter(), 0, 0.0, 0
            while self.iteration < config.schedule.iterations:
                started = time.perf_counter()
                report, waiting = self._step(data, loss_of)
                seconds = time.perf_counter() - started
                waited += waiting
                images += config.data.batch_size * config.accumulate * self.fabric.world_size
                steps += 1
                if main and self.iteration % config.log.every == 0:
                    span = time.perf_counter() - since
                    self._log(log, bar, report, images / span, waited / span, span / steps)
                    since, images, waited, steps = time.perf_counter(), 0, 0.0, 0
                if main and report.views is not None and self.iteration % config.log.images_every == 0:
                    _log_views(log, report, self.iteration)
                bar.update()
                if on_step is not None:
                    on_step(Progress(self.iteration, float(report.total), seconds, waiting))
                last = self.iteration == config.schedule.iterations
                validated = last or self.iteration % config.log.evaluate_every == 0
                if validated:
                    self._validate(log)
                if last:
                    break
                if validated or self._stop:  # so that the best checkpoint and the state agree on which it is
                    self.save()
                elif self.iteration % config.log.save_every == 0:
                    self._save_state()
                if self._stop:
                    raise KeyboardInterrupt
            return self.save()

    def _step(self, data: Iterator[Sample], loss_of: PyramidLoss) -> tuple[PyramidReport, float]:
        """One optimiser step, and how many seconds of it passed waiting for the loader."""
        config, schedule = self.config, self.config.schedule
        torch.manual_seed(step_seed(config.seed, self.fabric.global_rank, self.iteration))
        set_drop_progress(self.network, self.iteration, schedule.iterations)
        self._freeze_statistics()
        factor = learning_rate_factor(self.iteration, schedule.iterations, schedule.warmup, schedule.final)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["full_lr"]
        self.optimizer.zero_grad(set_to_none=True)
        waited = 0.0
        for _ in range(config.accumulate):
            started = time.perf_counter()
            sample = next(data)
            waited += time.perf_counter() - started
            sample = sample.to(self.fabric.device)
            report = loss_of(sample, lambda loss: self.fabric.backward(loss / config.accumulate))
            if not math.isfinite(report.total):
                raise TrainingError(self._keep_bad_batch(sample, report))
        if self.scaler is not None:
            self.scaler.unscale_(self._inner_optimizer)
        for name, module in (("network", self.network), ("pose_net", self.pose_net), ("apx", self.apx)):
            parameters = [] if module is None else list(module.parameters())
            if parameters:
                # Half precision overflows now and then; the scaler skips such a step.
                norm = nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm, error_if_nonfinite=False)
                self._gradient_norms[name] = norm
        self.optimizer.step()
        self.iteration += 1
        return report, waited

    def _set_up(self) -> tuple[nn.Module, nn.Module | None]:
        """The networks as Fabric wraps them, bound to the optimiser."""
        modules = [self.network] + ([self.pose_net] if self.pose_net is not None else [])
        first, *others = modules
        self._inner_optimizer = self.optimizer  # as `GradScaler` knows it
        self._gradient_norms: dict[str, Tensor] = {}
        wrapped_first, self.optimizer = self.fabric.setup(first, self.optimizer)
        wrapped = [wrapped_first, *(self.fabric.setup_module(module) for module in others)]
        self._distillation = self._set_up_distillation()
        return wrapped[0], wrapped[1] if len(wrapped) > 1 else None

    def _pyramid_loss(self, network: nn.Module, pose_net: nn.Module | None) -> PyramidLoss:
        loss = self.config.loss
        network.train()
        if pose_net is not None:
            pose_net.train()
        return PyramidLoss(
            network,
            pose_net,
            self.config.data.size,
            {name: LevelWeights(**level.model_dump()) for name, level in loss.levels.items()},
            BaseWeights(**loss.base.model_dump()),
            depth_weight=loss.depth,
            depth_error=loss.depth_error,
            shape_weight=loss.shape,
            speed_weight=loss.speed or 0.0,
            distillation=self._distillation,
            rescale_to_cr=loss.rescale_to_cr,
            share_masks=loss.share_masks,
            joint=loss.joint,
            other_sizes=self.config.data.sizes,
        )

    def _set_up_distillation(self) -> Distillation | None:
        if self.apx is None:
            return None
        # Without parameters there is nothing for several processes to keep equal.
        apx = self.fabric.setup_module(self.apx) if self.apx.projections else self.fabric.to_device(self.apx)
        teacher = None if self._teacher is None else self.fabric.to_device(self._teacher)
        return Distillation(
            apx,
            (self.network.min_depth, self.network.max_depth),
            teacher,
            self.fabric.autocast,
            self._depth_of_teacher if self.config.teacher.depth else None,
        )

    def _depth_of_teacher(self, disparities: Sequence[Tensor], depth: Tensor) -> Tensor:
        """The losses against true depth, with the teacher's for truth."""
        loss, depth_range = self.config.loss, (self.network.min_depth, self.network.max_depth)
        total = loss.depth * depth_loss(disparities, depth, *depth_range, loss.depth_error)
        if loss.shape:
            total = total + loss.shape * shape_loss(disparities[0], depth, *depth_range)
        return self.config.teacher.depth * total

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C asks the loop to stop behind the step at hand, when everything is consistent; twice means now."""

        def ask(_number, _frame):
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        previous = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    # ------------------------------------------------------------------------------------------------ what is kept of it

    def save(self) -> Path:
        """Write the networks as they are and the state a resumed run needs; returns the depth network's checkpoint."""
        path = self.output / CHECKPOINT
        if self.fabric.is_global_zero:
            self._save_checkpoint(path)
            if self.pose_net is not None:
                data = self.config.data
                save_pose_net(
                    self.output / POSE_NET, self.pose_net, self.config.pose.network, data.size, data.focal_length
                )
        self._save_state()
        return path

    def _save_state(self) -> None:
        """Write what a resumed run needs."""
        if self.fabric.is_global_zero:
            state = {
                "iteration": self.iteration,
                "network": self.network.state_dict(),
                "pose_net": None if self.pose_net is None else self.pose_net.state_dict(),
                "apx": None if self.apx is None else self.apx.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if self.scaler is None else self.scaler.state_dict(),
                "best": self.best,
            }
            write_atomically(self.output / STATE, lambda part: torch.save(state, part))
        self.fabric.barrier()

    def _save_checkpoint(self, path: Path) -> None:
        weights = {name: value.cpu().numpy() for name, value in self.settled().state_dict().items()}
        save_checkpoint(path, weights, self.description())

    def _load_state(self) -> None:
        path = self.output / STATE
        if not path.is_file():
            raise TrainingError(f"{path}: nothing to resume from")
        try:
            # weights_only: tensors and plain containers, no code.
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._check_state(state)
            configured = [group["full_lr"] for group in self.optimizer.param_groups]
            self.network.load_state_dict(state["network"])
            if self.pose_net is not None:
                self.pose_net.load_state_dict(state["pose_net"])
            if self.apx is not None:
                self.apx.load_state_dict(state["apx"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group, full_lr in zip(self.optimizer.param_groups, configured, strict=True):
                group["full_lr"] = full_lr  # the optimiser's state has the one before a change of the configuration
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
            self.iteration, self.best = state["iteration"], state["best"]
        except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError) as error:
            raise TrainingError(f"{path}: not the state of this run: {error}") from error

    def _check_state(self, state: dict) -> None:
        """Raises ValueError where a resumed run would not be the one that was saved."""
        if missing := {"iteration", "network", "pose_net", "apx", "optimizer", "scaler", "best"} - state.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}; an older version wrote it, start a new run")
        for name, own, setting in (
            ("scaler", self.scaler, "precision"),
            ("pose_net", self.pose_net, "pose.network"),
            ("apx", self.apx, "teacher"),
        ):
            if (own is None) != (state[name] is None):
                raise ValueError(f"it was saved with another {setting}")

    def description(self) -> Description:
        """What the checkpoint says of itself."""
        config, network = self.config, self.network
        from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD

        return Description(
            model=config.model.name,
            form="training",
            network_size=tuple(config.data.size),
            depth_range=(network.min_depth, network.max_depth),
            pixel_mean=PIXEL_MEAN,
            pixel_std=PIXEL_STD,
            trained=True,
            focal_length=config.data.focal_length,
            options=_saved_options(config),
            provenance={
                **self._origins,
                "data": ", ".join(dict.fromkeys(source.name for source in config.data.train)),
                **config.provenance,
                "iterations": str(self.iteration),
                "batch": str(config.data.batch_size * config.accumulate * self.fabric.world_size),
                "date": date.today().isoformat(),
            },
        )

    def _keep_bad_batch(self, sample: Sample, report: PyramidReport) -> str:
        path = self.output / f"bad_batch_{self.iteration}.pt"
        tensors = {f.name: getattr(sample, f.name) for f in fields(sample)}
        torch.save(tensors, path)
        parts = {
            f"{level}.{f.name}": float(value)
            for level, values in report.levels.items()
            for f in fields(values)
            if isinstance(value := getattr(values, f.name), Tensor) and not math.isfinite(value)
        }
        return (
            f"the loss is not finite at iteration {self.iteration} ({', '.join(parts)}); the batch that did it "
            f"({', '.join(sample.name)}) is in {path}, the last good state in {self.output / STATE}"
        )

    # -------------------------------------------------------------------------------------------------------------- logs

    def _log(
        self,
        log: SummaryWriter,
        bar: tqdm,
        report: PyramidReport,
        rate: float,
        waited: float,
        seconds_per_iteration: float,
    ) -> None:
        """`rate` in images per second; `waited`: share of the time that the loader kept the networks waiting."""
        best = "" if self.best is None else f", best {SELECTED_BY} {self.best[SELECTED_BY]:.4f}"
        bar.set_postfix_str(f"loss {float(report.total):.4f}, {rate:.1f} images/s{best}")
        log.add_scalar("loss/total", report.total, self.iteration)
        log.add_scalar("speed/images_per_second", rate, self.iteration)
        log.add_scalar("speed/waiting_for_loader", waited, self.iteration)
        left = self.config.schedule.iterations - self.iteration
        log.add_scalar("speed/hours_left", left * seconds_per_iteration / 3600, self.iteration)
        log.add_scalar("optimizer/learning_rate", self.optimizer.param_groups[0]["lr"], self.iteration)
        for name, norm in self._gradient_norms.items():
            log.add_scalar(f"optimizer/gradient_norm_{name}", norm, self.iteration)
        if self.scaler is not None:
            log.add_scalar("optimizer/gradient_scale", self.scaler.get_scale(), self.iteration)
        for name, level in report.levels.items():
            for part, value in asdict(level).items():
                if value is not None:
                    log.add_scalar(f"{name}/{part}", value, self.iteration)

    def _validate(self, log: SummaryWriter | None) -> None:
        """Measure, log, and keep the network if it is the best so far."""
        if self._measure is None or not self.fabric.is_global_zero:
            return
        with nullcontext() if self.pose_net is None else evaluating(self.pose_net):
            measures = self._measure(self.settled(), self.pose_net)
        for name, value in measures.items():
            log.add_scalar(f"validation/{name}", value, self.iteration)
        if measures:
            tqdm.write(f"iteration {self.iteration}: " + ", ".join(f"{k} {v:.4f}" for k, v in measures.items()))
        # An untrained network is never the best, even if training makes it worse.
        trained = self.iteration > 0 or self.config.model.start is not None
        value = measures.get(SELECTED_BY, math.inf)
        if trained and value < (math.inf if self.best is None else self.best[SELECTED_BY]):
            self.best = {"iteration": self.iteration, SELECTED_BY: value}
            self._save_checkpoint(self.output / BEST)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


def _saved_options(config: TrainConfig) -> dict:
    """What the network's constructor takes, without drop rates, which training alone knows, and files."""
    values, options = config.model.model_dump(), config.model.options
    return {key: values[key] for key in ("etm", "encoder") if options.get(key)}


def _origins(config: TrainConfig) -> dict[str, str]:
    """Whom a run learns from and what it starts from, whose licences it inherits."""
    teacher, start = config.teacher, config.model.start
    said, licences = {}, []
    if teacher is not None and teacher.source.is_dir():
        said["teacher"] = teacher.source.name
    for what, path in (("start", start), ("teacher", teacher and teacher.source)):
        if path is None or path.is_dir():
            continue
        origin = Checkpoint(path)
        said[what] = f"{origin.description.model} {origin.weights_sha256[:12]}"
        licences.append(origin.description.provenance.get("licence"))
    licences = list(dict.fromkeys(filter(None, licences)))
    return {**said, "licence": "; ".join(licences)} if licences else said


def parameter_groups(network: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """AdamW's groups: weight decay on kernels, none on biases, BatchNorm and the γ of ETM branches (specification 2.3)."""
    gammas = {id(b.gamma) for m in network.modules() if isinstance(m, ETMConv2d) for b in m.branches}
    decayed = [p for p in network.parameters() if p.dim() > 1 and id(p) not in gammas]
    plain = [p for p in network.parameters() if p.dim() <= 1 or id(p) in gammas]
    return [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": plain, "lr": lr, "weight_decay": 0.0},
    ]


def _log_views(log: SummaryWriter, report: PyramidReport, iteration: int) -> None:
    """Depth (log scale), the frame rebuilt from its neighbour, and the weight of each pixel, of the batch's first sample."""
    views = report.views
    depth = views.depth[0, 1].log()
    depth = (depth - depth.min()) / (depth.max() - depth.min() + 1e-6)
    log.add_image("views/depth", 1 - depth, iteration)
    log.add_image("views/warped", views.warped[0, 0].clamp(0, 1), iteration)
    log.add_image("views/weight", views.weight[0, 0], iteration)
