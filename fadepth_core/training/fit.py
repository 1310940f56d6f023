"""From a configuration to a finished run: build the data, train, export and evaluate (`fadepth fit`).

`training.run_folder` lists the files of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.utils.data import Subset

from fadepth_core.common.color import to_picture
from fadepth_core.common.sample import LabelledImage, SampleDataset, evenly_spread
from fadepth_core.data.augment import Augmentation
from fadepth_core.data.focal import AtFocalLength
from fadepth_core.data.registry import InMemory, MiddleFrames, Mixture, WithPlaceholders, build_dataset, build_test_set
from fadepth_core.evaluation import (
    PROTOCOLS,
    Evaluation,
    NetworkPredictor,
    Protocol,
    compare_evenly,
    evaluate,
    picture_sheet,
    prediction_sheet,
    write_sheet,
    write_values,
)
from fadepth_core.evaluation.motion import motion_errors
from fadepth_core.models.depth_network import DeployedNetwork, DepthNetwork
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_core.training.config import ConfigError, EvaluationConfig, TrainConfig, ValidationConfig
from fadepth_core.training.log import Progress
from fadepth_core.training.run_folder import BEST, DEPLOYED, METRICS, PICTURES
from fadepth_core.training.teacher import with_teacher
from fadepth_core.training.trainer import Trainer

#: Weight of the speed loss if `loss.speed` is null and the data set is a video with speed.
SPEED_WEIGHT = 0.1


@dataclass
class FitResult:
    """Result of a finished run.

    Attributes:
        checkpoint: path of the deployment checkpoint.
        metrics: the figures of metrics.json.
        best: iteration and AbsRel of the best validation, whose network was exported; None without validation.
    """

    checkpoint: Path
    metrics: dict[str, float]
    best: dict[str, float] | None = None


def fit(
    config: TrainConfig, resume: bool = False, on_step: Callable[[Progress], None] | None = None
) -> FitResult | None:
    """Train as configured, then export, evaluate and draw.

    Returns:
        None in every process of a distributed run except the first.

    Raises:
        ConfigError, DataError, CheckpointError: a data set or checkpoint of the configuration cannot be used.
        TrainingError: the run cannot start or continue.
        KeyboardInterrupt: Ctrl-C, after the state has been saved.
    """
    dataset = training_set(config)
    config = with_speed_weight(config, dataset)
    # Both are built before training, so that a wrong test set is reported at once.
    validation, test = Evaluator(config, config.validation), Evaluator(config, config.evaluation)
    augment = Augmentation(**config.data.augment.model_dump())
    trainer = Trainer(config, dataset, augment, validation if validation.measures_anything else None)
    path = trainer.fit(resume, on_step)
    if not trainer.fabric.is_global_zero:
        return None
    output = trainer.folder.path
    checkpoint = Checkpoint(path if trainer.best is None else output / BEST)
    network = load_network(checkpoint)
    deployed = output / DEPLOYED
    export_checkpoint(network, checkpoint.description, deployed)
    if trainer.pose_net is not None:
        trainer.pose_net.eval()
    metrics = test.finish(network, trainer.pose_net, dataset, output, trainer.iteration, trainer.best)
    return FitResult(deployed, metrics, trainer.best)


def training_set(config: TrainConfig) -> SampleDataset:
    """The configured data sets as one, with the teacher's maps in the samples if they are stored (`with_teacher`).

    Raises:
        ConfigError: no data set has what a loss needs.
        DataError, CheckpointError: a data set or the teacher cannot be used.
    """
    data, factor = config.data, config.frame_factor
    datasets = [
        build_dataset(source.name, (factor * height, factor * width), **source.options)
        for source, (height, width) in zip(data.train, data.sizes, strict=True)
    ]
    if len(datasets) > 1:
        for name, weight in (("depth", config.loss.depth), ("speed", config.loss.speed)):
            if weight and not config.teacher and all(getattr(dataset[0], name) is None for dataset in datasets):
                raise ConfigError(f"loss.{name}: none of the data sets has {name}")
    if len(datasets) > 1 or config.teacher:
        datasets = [WithPlaceholders(dataset) for dataset in datasets]
    if not config.compares_frames:
        datasets = [MiddleFrames(dataset) for dataset in datasets]
    datasets = with_teacher(config, datasets)
    if data.cache:
        datasets = [InMemory(dataset) for dataset in datasets]
    return Mixture(datasets, [source.share for source in data.train])


def test_set(config: TrainConfig, chosen: EvaluationConfig) -> Sequence[LabelledImage]:
    """The test set `chosen.data`; rendered pictures have the size of the training pictures."""
    source = chosen.data
    assert source is not None
    size = {"size": config.data.size} if source.name == "synthetic" else {}
    images = build_test_set(source.name, **{**size, **source.options})
    if isinstance(chosen, ValidationConfig) and chosen.frames is not None:
        images = cast(Any, Subset(cast(Any, images), evenly_spread(len(images), chosen.frames)))
    return [images[index] for index in range(len(images))] if config.data.cache else images


def with_speed_weight(config: TrainConfig, dataset: SampleDataset) -> TrainConfig:
    """The configuration with a value for `loss.speed`: `SPEED_WEIGHT` for a video with speed if motion is learned, else 0."""
    if config.loss.speed is not None:
        return config
    own_video = [source.name for source in config.data.train] == ["video"]
    learned = config.pose.network != "known"
    weight = SPEED_WEIGHT if own_video and learned and dataset[0].speed is not None else 0.0
    return config.model_copy(update={"loss": config.loss.model_copy(update={"speed": weight})})


def choose_protocol(config: EvaluationConfig) -> Protocol:
    """The named protocol, with the configured scaling."""
    protocol = PROTOCOLS[config.protocol]
    return protocol if config.scaling is None else replace(protocol, scaling=config.scaling)


class Evaluator:
    """Measures the networks of a run on test data. The trainer calls it as `measure`.

    Args:
        chosen: the test data: the run's `validation` or its `evaluation`.

    Raises:
        DataError: the test data cannot be used.
    """

    def __init__(self, config: TrainConfig, chosen: EvaluationConfig):
        self._config, self._chosen = config, chosen
        self._protocol = choose_protocol(chosen)
        self._images: Sequence[LabelledImage] | None = None
        self._motion_set: SampleDataset | None = None
        if chosen.data is not None:
            self._images = test_set(config, chosen)
        if chosen.motion is not None and config.pose.network != "known":
            self._motion_set = build_dataset(chosen.motion.name, config.data.size, **chosen.motion.options)
            if config.data.focal_length is not None:
                self._motion_set = AtFocalLength(self._motion_set, config.data.focal_length, config.data.size[1])

    @property
    def measures_anything(self) -> bool:
        """Whether there is test data for depth or for motion."""
        return self._images is not None or self._motion_set is not None

    def __call__(self, network: DepthNetwork | DeployedNetwork, pose_net: nn.Module | None) -> dict[str, float]:
        """Mean figures by name, of networks in evaluation mode."""
        return self._figures(None if self._images is None else self._evaluate(network), pose_net)

    def finish(
        self,
        network: DepthNetwork | DeployedNetwork,
        pose_net: nn.Module | None,
        dataset: SampleDataset,
        folder: Path,
        iterations: int,
        best: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Write metrics.json (with every image's figures) and pictures.png; returns the mean figures.

        Args:
            iterations: number of finished steps.
            best: iteration and AbsRel of the best validation, if `network` is the best one.

        Without a test set the pictures are of the training data.
        """
        evaluation = None if self._images is None else self._evaluate(network)
        figures = self._figures(evaluation, pose_net)
        summary = {
            "iterations": iterations if best is None else best["iteration"],
            "best_validation": best,
            "figures": figures,
        }
        if evaluation is not None:
            summary |= evaluation.to_dict()
        write_values(summary, folder / METRICS)
        write_sheet(folder / PICTURES, lambda: self._write_pictures(network, dataset, folder / PICTURES))
        return figures

    def _write_pictures(self, network: DepthNetwork | DeployedNetwork, dataset: SampleDataset, path: Path) -> None:
        predictor = self._predictor(network)
        if self._images is not None:
            picture_sheet(compare_evenly(predictor, self._images, self._protocol), path)
            return
        samples = (dataset[index] for index in evenly_spread(len(dataset), 8))
        images = {str(sample.name): (to_picture(sample.middle), sample.intrinsics.numpy()) for sample in samples}
        prediction_sheet(predictor, images, path)

    def _figures(self, evaluation: Evaluation | None, pose_net: nn.Module | None) -> dict[str, float]:
        figures: dict[str, float] = {}
        if evaluation is not None:
            figures |= asdict(evaluation.metrics)
            figures |= {"ratio_median": evaluation.ratio_median, "ratio_spread": evaluation.ratio_spread}
        if self._motion_set is not None:
            assert pose_net is not None
            size, count = self._config.data.size, self._chosen.motion_samples
            errors = motion_errors(pose_net, self._motion_set, size, count)
            figures |= {f"motion_{name}": value for name, value in asdict(errors).items()}
        return figures

    def _predictor(self, network: DepthNetwork | DeployedNetwork) -> NetworkPredictor:
        # Pictures of a folder come from several cameras and keep their aspect ratios; others have the size of training.
        several = self._chosen.data is not None and self._chosen.data.name == "folder"
        data = self._config.data
        height, width = data.size
        return NetworkPredictor(network, None if several else data.size, pixels=height * width, focal=data.focal_length)

    def _evaluate(self, network: DepthNetwork | DeployedNetwork) -> Evaluation:
        assert self._images is not None
        return evaluate(self._predictor(network), self._images, self._protocol)
