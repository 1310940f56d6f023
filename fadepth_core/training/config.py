"""Configuration of a training run: every setting with its default.

It is read from YAML, changed by `--set key=value`, and saved in the run's folder. A wrong value is rejected with the name of
its key. Defaults are the paper's where it states them (docs/method.md, section 8).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fadepth_core.common import documents
from fadepth_core.common.documents import shown
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.evaluation.protocols import PROTOCOLS
from fadepth_core.losses.pyramid import METRICS, PAPER_LEVELS
from fadepth_core.models import MODELS
from fadepth_core.models.layers.etm import ETM_VARIANTS, ETMConfig

_Model = TypeVar("_Model", bound=BaseModel)
#: Longer overrides are shortened in error messages.
_SHOWN = 120


class ConfigError(ValueError):
    """A configuration that cannot be used. The message has one line for each problem, with the key."""


class _Checked(BaseModel):
    """Refuses numbers that pydantic accepts: true and false, not finite, too large. Expands ~ in paths."""

    @field_validator("*", mode="before")
    @classmethod
    def _check_numbers(cls, given: Any, info: ValidationInfo) -> Any:
        hint = cls.model_fields[str(info.field_name)].annotation
        for value in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
                raise ValueError(f"got {str(value).lower()}, which is for switches only")
            # Text is converted by pydantic: YAML reads 1e-4 as text.
            if isinstance(value, (int, float)) and not abs(value) < 2**63:
                raise ValueError(f"must be a finite number that a computer can count to, got {shown(value)}")
        return given

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):  # from text
            raise ValueError(f"must be a finite number, got {value}")
        return user_path(value) if isinstance(value, Path) else value


class _Strict(_Checked):
    model_config = ConfigDict(extra="forbid")


def _network_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Check that height and width are multiples of 32, the factor between the networks' input and their coarsest map."""
    if size is not None and any(side <= 0 or side % 32 for side in size):
        raise ValueError(f"size must be two positive multiples of 32, got {list(size)}")
    return size


class SourceConfig(_Checked):
    """A data set: its name in `data.registry`, and the options of its class as further keys."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TrainingSourceConfig(SourceConfig):
    """A training data set: besides these settings, its name (`fadepth pack --help` lists them) and the options of its class."""

    share: float = Field(1.0, gt=0, description="share of the samples, relative to the other data sets")
    size: tuple[int, int] | None = Field(
        None,
        description="height and width of level cr for this data set; null: `data.size`. All samples of a batch have one size",
    )

    _check_size = field_validator("size")(_network_size)


class AugmentationConfig(_Strict):
    """Random changes of a sample, see `data.augment.Augmentation`."""

    scale: float = Field(1.15, ge=1, description="largest magnification of each axis before the crop")
    stretch: float | None = Field(
        None, ge=1, description="largest ratio between the magnifications of the two axes; null: no limit"
    )
    roll: float = Field(0.0, ge=0, description="rotation about the optical axis, standard deviation in degrees")
    pitch: float = Field(0.0, ge=0, description="rotation about the horizontal axis, standard deviation in degrees")
    flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring left and right")
    jitter: float = Field(0.5, ge=0, le=1, description="probability of a colour change")
    camera: float = Field(0.0, ge=0, le=1, description="probability of each of gamma, blur, noise and JPEG compression")


class DataConfig(_Strict):
    """The training data, and how batches are made of it."""

    train: list[TrainingSourceConfig] = Field(
        [TrainingSourceConfig(name="synthetic")], min_length=1, description="the data sets; their samples are mixed"
    )
    size: tuple[int, int] = Field((128, 416), description="height and width of level cr, multiples of 32")
    focal_length: float | None = Field(
        None,
        gt=0,
        description="canonical focal length, pixels at level cr: scenes are scaled to it, so that one network predicts metres "
        "for any camera (`data.focal`); null: scenes are not scaled",
    )
    batch_size: int = Field(8, ge=1, description="samples in a batch, per process")
    workers: int = Field(2, ge=0, description="loader processes per training process; 0: load in the training process")
    cache: bool = Field(
        False, description="each loader process keeps its loaded samples in memory, before augmentation"
    )
    augment: AugmentationConfig = AugmentationConfig()
    cutmix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a strip of a sample is replaced by one of another sample (CutMix, Yun et al. 2019), so "
        "that depth of one side of a street cannot be guessed from the other side; only for training on true depth alone",
    )
    statistics_images: int = Field(
        256,
        ge=1,
        description="number of training images over which BatchNorm's statistics are recomputed, with drop off, before the "
        "network is measured, saved or exported",
    )

    _check_size = field_validator("size")(_network_size)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of level cr for each data set of `train`."""
        return [source.size or self.size for source in self.train]


class ETMSettings(_Strict):
    """Hyper-parameters of the ETM, see `models.layers.etm.ETMConfig`; the defaults are the best row of Table VII."""

    branch_drop: float = Field(0.1, ge=0, lt=1, description="p_b, probability that a branch is dropped")
    element_drop: float = Field(
        0.1, ge=0, lt=1, description="p_e, probability that a weight of the dropconv is dropped"
    )
    dropconv: bool = Field(True, description="false: no dropconv branch, the paper's ETM*")
    dropconv_scale: float = Field(1.0, description="α, coefficient of the dropconv branch")
    init_from_largest: bool = Field(False, description="true: the paper's ETM#")
    all_shapes: bool = Field(False, description="branches of every odd shape up to K×K instead of K×1 and 1×K")
    variance: Literal["weight", "none"] = Field(
        "weight",
        description="weight: a branch's scale is divided by the standard deviation of its weights; none: it is not",
    )
    constant_rate: bool = Field(False, description="p_b from the first iteration on, instead of growing linearly")


#: Options of each network; all others are rejected.
_OPTIONS = {
    "smalldepth": ("residual_drop", "downsample_drop", "constant_drop", "etm"),
    "hqdecv2": ("weights", "encoder"),
    "resnet18": ("weights", "etm"),
    "mobilenetv3": ("weights", "etm"),
    "unet": ("weights", "encoder"),
}


class ModelConfig(_Strict):
    """The depth network; options that it does not have are rejected."""

    # mypy does not accept names of a table in a Literal, pydantic does.
    name: Literal[tuple(MODELS)] = Field(  # type: ignore[valid-type]
        "smalldepth", description="a network that `fadepth models` lists"
    )
    start_depth: float | None = Field(
        8.0,
        gt=0,
        description="depth that the network predicts before training, metres; null: the middle of the disparity range",
    )
    start: Path | None = Field(
        None, description="checkpoint whose weights training starts from: a file, or the name of a shipped one"
    )
    encoder: str | None = Field(
        None,
        description="timm's name of the encoder, a key of `models.layers.backbone.ENCODER_WIDTHS`; null: the default",
    )
    weights: Path | None = Field(None, description="ImageNet weights of a timm encoder, a local file")
    freeze_statistics: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the iterations after which BatchNorm's statistics are recomputed over the statistics images and "
        "then kept, so that the rest of the training normalises as deployment does; null: never. Use it for small "
        "batches of several data sets, where the statistics of a batch are far from those of all images. 0 with `start`: "
        "the statistics of that checkpoint are kept, so that training starts from exactly its network",
    )
    residual_drop: float = Field(0.9, ge=0, lt=1, description="P_A of Table V")
    downsample_drop: float = Field(0.0, ge=0, lt=1, description="P_B of Table V")
    constant_drop: bool = Field(False, description="both rates from the first iteration on (sch4 of Table V)")
    etm: Literal[tuple(ETM_VARIANTS)] | ETMSettings | None = Field(  # type: ignore[valid-type]
        "etm#",
        description="variant of the ETM: etm, etm* or etm#, or its hyper-parameters; null: no ETM, as in the paper's plain "
        "ResNet-18 and MobileNetV3",
    )

    @property
    def options(self) -> dict[str, Any]:
        """Options of `build_model` for this network."""
        values = {key: getattr(self, key) for key in self._own_options}
        if values.get("encoder", "") is None:
            del values["encoder"]
        if isinstance(self.etm, ETMSettings) and "etm" in values:
            values["etm"] = ETMConfig(**self.etm.model_dump())
        return values

    @property
    def _own_options(self) -> tuple[str, ...]:
        return _OPTIONS.get(self.name, _OPTIONS["smalldepth"])

    @model_validator(mode="after")
    def _check_options(self) -> ModelConfig:
        if self.weights is not None and self.start is not None:
            raise ValueError("weights: start replaces all weights; give one of the two")
        for key in {key for keys in _OPTIONS.values() for key in keys} - set(self._own_options):
            # A run's saved configuration contains every key. So a key counts as set only if its value differs from the default.
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{self.name} has no {key}")
        return self


class PoseConfig(_Strict):
    """The source of camera motion."""

    network: Literal["fbnetv3_b", "small", "known"] = Field(
        "fbnetv3_b", description="pose network that learns the motion; 'known': motion is taken from the data"
    )
    weights: Path | None = Field(None, description="ImageNet weights for fbnetv3_b, a local file")

    @model_validator(mode="after")
    def _check_weights(self) -> PoseConfig:
        if self.weights is not None and self.network != "fbnetv3_b":
            raise ValueError(f"weights are for fbnetv3_b, not for {self.network}")
        return self


class LevelConfig(_Strict):
    """Weights of one pyramid level, see `losses.pyramid.LevelWeights`; keys left out have the paper's value for that level."""

    loss: float = Field(1.0, ge=0, description="w_k, the level's own loss")
    feature: float = Field(0.0, ge=0, description="w^f_k, consistency of its features with level cr")
    disparity: float = Field(0.0, ge=0, description="w^d_k, consistency of its disparity with level cr")
    feature_metric: Literal[METRICS] = Field(  # type: ignore[valid-type]
        "l1", description="how features are compared: a name in `losses.pyramid.METRICS`"
    )
    disparity_metric: Literal[METRICS] = Field(  # type: ignore[valid-type]
        "l1", description="how disparities are compared, like feature_metric"
    )


class BaseLossConfig(_Strict):
    """Weights of the terms of the base loss, see `losses.base.BaseWeights`. A term of weight 0 is not computed."""

    photometric: float = Field(1.0, ge=0, description="λ1, weighted photometric loss")
    structure: float = Field(0.1, ge=0, description="λ2, consistency of the depth structure")
    feature: float = Field(0.1, ge=0, description="λ3, feature perception loss")
    smoothness: float = Field(0.001, ge=0, description="λ4, smoothness of the disparity")


#: Keys of a teacher that may be null, for the default.
_NULLABLE = ("encoder", "decoder", "cache")


class TeacherConfig(_Strict):
    """Settings of all three kinds of teachers: the source, and how maps are compared (APX, see `losses.apx`).

    `_teacher_kind` decides on the kind when the configuration is read.
    """

    kind: ClassVar[str]

    source: Path = Field(description="a training checkpoint, or a folder of predicted depth (`training.teacher`)")
    disparity: float = Field(1.0, ge=0, description="μ_x, weight of the disparity maps")
    channels: Literal["mean", "projection"] = Field(
        "mean",
        description="how feature maps of different widths are compared: by the mean over channels, or by a learned 1×1 "
        "projection of the student's channels to the teacher's",
    )
    distribution: Literal["ratio", "softmax"] = Field(
        "ratio",
        description="distribution of inverse depth along a line: x / Σx, which ignores a common factor, or the softmax, which "
        "ignores a common offset",
    )
    distance: Literal["kl", "l1"] = Field(
        "kl", description="distance of two distributions: Kullback-Leibler divergence from teacher to student, or L1"
    )
    mask: float | None = Field(
        0.2, gt=0, description="κ: only pixels with an inverse depth above κ times the median count; null: no mask"
    )
    renormalise: bool = Field(True, description="form distributions inside the mask only")

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, given: Any) -> Any:
        """Take null for the default: saved configurations of earlier versions have these keys for every kind."""
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None or key not in _NULLABLE}


class _FeatureTeacherConfig(TeacherConfig):
    """Settings of the two kinds of teachers that have feature maps and metric depth."""

    encoder: float = Field(0.01, ge=0, description="μ_e, weight of the encoder maps (Table XI)")
    decoder: float = Field(0.01, ge=0, description="μ_d, weight of the decoder maps (Table XI)")
    depth: float = Field(
        0.0,
        ge=0,
        description="weight of the losses against true depth (`loss.depth`, `loss.shape`) with the teacher's depth in place of "
        "the true one; the teacher must be trained for the same focal length",
    )


class NetworkTeacherConfig(_FeatureTeacherConfig):
    """A network that runs beside the student and sees the same augmented pictures."""

    kind: ClassVar[str] = "a network"


class CachedTeacherConfig(_FeatureTeacherConfig):
    """A network whose maps are computed once, from the pictures before augmentation, and kept in a folder."""

    kind: ClassVar[str] = "a cached network"

    cache: Path = Field(description="folder in which the network's maps are kept, so that they are computed only once")

    @field_validator("channels")
    @classmethod
    def _check_channels(cls, channels: str) -> str:
        if channels == "projection":
            raise ValueError("the cache keeps the mean over channels; a projection needs all channels")
        return channels


class PredictionsConfig(TeacherConfig):
    """A folder of depth that any other model predicted: no feature maps, no metric scale."""

    kind: ClassVar[str] = "a folder of predictions"

    encoder: ClassVar[float] = 0.0
    decoder: ClassVar[float] = 0.0
    depth: ClassVar[float] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _reject_keys_of_a_network(cls, given: Any) -> Any:
        """Keys of the other kinds may be null or 0."""
        if not isinstance(given, dict):
            return given
        foreign = ("encoder", "decoder", "depth", "cache")
        for key in foreign:
            if given.get(key):
                raise ValueError(
                    f"{key}: a folder of predicted depth has no feature maps, no metres, and needs no cache"
                )
        return {key: value for key, value in given.items() if key not in foreign}

    @field_validator("channels")
    @classmethod
    def _check_channels(cls, channels: str) -> str:
        if channels == "projection":
            raise ValueError("a folder of predicted depth has no channels to project")
        return channels


def _teacher_kind(given: Any) -> str:
    """Kind of teacher that is configured, by its keys or by what `source` names."""
    if isinstance(given, TeacherConfig):
        return given.kind
    values = given if isinstance(given, dict) else {}
    source = values.get("source")
    if isinstance(source, (str, Path)) and os.path.isdir(user_path(source)):
        return PredictionsConfig.kind
    return NetworkTeacherConfig.kind if values.get("cache") is None else CachedTeacherConfig.kind


_TEACHER_KINDS = (NetworkTeacherConfig, CachedTeacherConfig, PredictionsConfig)
_AnyTeacher = Annotated[
    Annotated[NetworkTeacherConfig, Tag(NetworkTeacherConfig.kind)]
    | Annotated[CachedTeacherConfig, Tag(CachedTeacherConfig.kind)]
    | Annotated[PredictionsConfig, Tag(PredictionsConfig.kind)],
    Discriminator(_teacher_kind),
]


class LossConfig(_Strict):
    """The losses besides the teacher's."""

    base: BaseLossConfig = BaseLossConfig()
    levels: dict[Literal["cr", "lr", "hr", "flip", "color"], LevelConfig] = Field(
        {cast(Any, name): LevelConfig(**vars(weights)) for name, weights in PAPER_LEVELS.items()},
        description="the pyramid levels that are trained, with their weights; the default is all five",
    )
    depth: float = Field(0.0, ge=0, description="weight of the loss against true depth")
    shape: float = Field(
        0.0,
        ge=0,
        description="weight of the loss against the shape of true depth, mainly its edges (`losses.supervised`)",
    )
    depth_error: Literal["relative", "log"] = Field(
        "relative",
        description="error of a pixel in the loss against true depth: 'relative' prefers the nearer of two likely depths, 'log' their middle "
        "(`losses.supervised`)",
    )
    speed: float | None = Field(
        None,
        ge=0,
        description="weight of the loss against measured speed, which makes depth metric; null: 0.1 if the only data set is "
        "'video', its clips have speed and motion is learned; else 0",
    )
    rescale_to_cr: bool = Field(
        False, description="resize outputs of levels lr and hr to the size of cr before their losses (Table VIII)"
    )
    share_masks: bool = Field(
        False, description="draw the drop masks once for all levels of a batch, instead of once for each level"
    )
    joint: bool = Field(False, description="one backward pass over all levels, instead of one after each level")

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: dict) -> dict:
        if "cr" not in levels:
            raise ValueError("levels must contain cr, with which the others are compared")
        if levels["cr"].feature or levels["cr"].disparity:
            raise ValueError("level cr has no consistency terms: it would be compared with itself")
        return levels

    @field_validator("levels", mode="before")
    @classmethod
    def _fill_in_the_papers_weights(cls, levels: Any) -> Any:
        """Expand the short forms `[cr, flip]` and `{cr: {}, flip: {feature: 0}}` with the paper's weights."""
        if isinstance(levels, list) and all(isinstance(name, str) for name in levels):
            levels = dict.fromkeys(levels)
        if not isinstance(levels, dict):
            return levels  # pydantic reports the wrong type
        paper = {name: vars(weights) for name, weights in PAPER_LEVELS.items()}
        return {
            name: {**paper.get(name, {}), **(given or {})} if given is None or isinstance(given, dict) else given
            for name, given in levels.items()
        }


class OptimizerConfig(_Strict):
    """The optimiser, AdamW."""

    lr: float = Field(5e-4, gt=0, description="full learning rate of the depth network")
    pose_lr: float = Field(1e-4, gt=0, description="full learning rate of the pose network")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay rates of the two moving averages")
    weight_decay: float = Field(1e-2, ge=0, description="weight decay of kernels; other parameters have none")
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm of each network")


class ScheduleConfig(_Strict):
    """Learning rate: linear warm-up, then a cosine to `final` of the full rate. Drop rates grow over all iterations (eq. 5)."""

    iterations: int = Field(200_000, ge=1, description="number of optimiser steps")
    minutes: float | None = Field(
        None,
        gt=0,
        description="length of the training in minutes, in place of `iterations`; the learning rate then follows the time. "
        "Two such runs are not equal, because the number of steps depends on the computer",
    )
    warmup: int = Field(1000, ge=0, description="number of optimiser steps in which the learning rate grows")
    final: float = Field(0.01, ge=0, le=1, description="last learning rate, as a share of the full one")


class EvaluationConfig(_Strict):
    """Test data of the finished network; none by default."""

    data: SourceConfig | None = Field(None, description="a test set with depth")
    protocol: str = Field("folder", description="see `evaluation.protocols`")
    scaling: Literal["median", "none"] | None = Field(
        None, description="median: scale each prediction; none: measure metres; null: the protocol's default"
    )
    motion: SourceConfig | None = Field(
        None, description="a training set with camera poses, on which learned motion is measured"
    )
    motion_samples: int = Field(100, ge=1, description="number of samples of `motion` that are used, evenly spread")

    @field_validator("protocol")
    @classmethod
    def _check_protocol(cls, protocol: str) -> str:
        if protocol not in PROTOCOLS:
            raise ValueError(f"no protocol '{protocol}'; there are {', '.join(PROTOCOLS)}")
        return protocol


class ValidationConfig(EvaluationConfig):
    """Validation data during training; none by default. The checkpoint with the lowest AbsRel is kept as the best."""

    frames: int | None = Field(None, ge=1, description="largest number of images of `data`, evenly spread; null: all")


class LogConfig(_Strict):
    """Iterations between two log entries, saved states and validations."""

    every: int = Field(50, ge=1, description="iterations between two points of a curve")
    images_every: int = Field(1000, ge=1, description="iterations between two sets of pictures")
    save_every: int = Field(1000, ge=1, description="iterations between two states to resume from")
    evaluate_every: int = Field(
        5000, ge=1, description="iterations between two validations, each followed by saving the checkpoint"
    )


class TrainConfig(_Strict):
    """A training run."""

    output: Path = Field(Path("runs/fadepth"), description="the run's folder (`training.run_folder`)")
    seed: int = Field(
        0, ge=0, description="random seed of the initial weights, the order of the data, augmentation and drop masks"
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="precision of the networks; the losses are computed in 32 bits"
    )
    devices: int = Field(1, ge=1, description="training processes, each with its own GPU if there are GPUs")
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pose: PoseConfig = PoseConfig()
    loss: LossConfig = LossConfig()
    teacher: _AnyTeacher | None = Field(None, description="the teacher of a distillation; null: no teacher")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    validation: ValidationConfig = ValidationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log: LogConfig = LogConfig()
    provenance: dict[str, str] = Field(
        {}, description="entries of the checkpoint's description, e.g. the licence that the training data requires"
    )

    @property
    def compares_frames(self) -> bool:
        """Whether a loss needs more than the middle frame of a sample."""
        return any(self.loss.base.model_dump().values()) or bool(self.loss.speed)

    @property
    def frame_factor(self) -> int:
        """Size of the data sets' frames as a multiple of level cr's; level hr needs 2."""
        return 2 if "hr" in self.loss.levels else 1

    @model_validator(mode="after")
    def _check_data_against_loss(self) -> TrainConfig:
        alone = not self.compares_frames and self.loss.levels.keys() == {"cr"} and not self.teacher
        if self.data.cutmix and not alone:
            raise ValueError(
                "data.cutmix: the strip of another picture has no neighbouring frames; use it with loss.depth alone"
            )
        if self.loss.speed and self.pose.network == "known":
            raise ValueError("loss.speed: it trains the pose network, but pose.network is 'known'")
        resized = sorted({"lr", "hr"} & self.loss.levels.keys())
        if self.loss.rescale_to_cr and not resized:
            raise ValueError("loss.rescale_to_cr: there is neither level lr nor level hr")
        if self.data.focal_length is not None and resized:
            # With these levels the network learns that depth does not depend on the focal length in pixels; with a canonical
            # focal length it does depend on it.
            raise ValueError(f"data.focal_length cannot be used with levels of another size: {', '.join(resized)}")
        return self


def load_config(path: Path | None, overrides: list[str]) -> TrainConfig:
    """Read a configuration.

    Args:
        path: YAML file; None for the defaults.
        overrides: "dotted.key=value" with the value in YAML, e.g. "optimizer.lr=1e-4"; applied in order.

    Raises:
        ConfigError: the file or an override cannot be used.
    """
    values = {} if path is None else read_yaml(path)
    for override in overrides:
        _override(values, override)
    return validated(TrainConfig, values, path or "configuration")


def read_yaml(path: Path) -> dict:
    """Read a YAML file of keys and values.

    Raises:
        ConfigError: the file is missing, not YAML, or has no keys.
    """
    try:
        values = documents.read_yaml(user_path(path))
    except DataError as error:
        raise ConfigError(str(error)) from None
    if values is None:  # an empty file
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values")
    return values


def validated(kind: type[_Model], values: dict, where: Path | str) -> _Model:
    """Build a configuration of class `kind`.

    Args:
        where: source of the values, for error messages.

    Raises:
        ConfigError: has one line for each wrong key.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"{_key(e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _key(location: tuple[int | str, ...]) -> str:
    """Dotted key of a pydantic error. The kind of teacher, which pydantic adds, is no key and is left out."""
    tags = [kind.kind for kind in _TEACHER_KINDS]
    return ".".join(str(part) for part in location if part not in tags) or "configuration"


def save_config(config: TrainConfig, path: Path) -> None:
    """Write all values, not only changed ones: the run can then be repeated after a default has changed."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _override(values: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    override = override if len(override) <= _SHOWN else f"{override[:_SHOWN]}..."  # for error messages
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected key=value")
    *parents, last = key.split(".")
    node: dict[str, Any] | list[Any] = values
    for parent in parents:
        child = _item(node, parent, override) if isinstance(node, list) else node.get(parent)
        if child is None and isinstance(node, dict):  # a saved configuration has null for a section left out
            child = node[parent] = {}
        if not isinstance(child, (dict, list)):
            raise ConfigError(f"--set {override}: '{parent}' is {shown(child)} and has no keys below it")
        node = child
    try:
        value = documents.parse_yaml(text, f"--set {override}")
    except DataError as error:
        raise ConfigError(str(error)) from None
    if isinstance(value, str):
        value = _number(value)
    if isinstance(node, list):
        _item(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _item(values: list, key: str, override: str) -> Any:
    if not key.isdecimal() or len(key) > 9 or int(key) >= len(values):
        raise ConfigError(f"--set {override}: '{key}' is not the number of an item of a list of {len(values)}")
    return values[int(key)]


def _number(text: str) -> str | float:
    """The number that `text` stands for, if it is a finite one. YAML 1.1 reads 1e-4 as text and only 1.0e-4 as a number."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
