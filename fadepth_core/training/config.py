"""What a training run is: every setting with its default, read from YAML, overridden by `--set key=value`, refused with the
name of the key when wrong, and written beside each checkpoint.

Defaults are the paper's where it states them (specification 8).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fadepth_core.evaluation.protocols import PROTOCOLS
from fadepth_core.losses.pyramid import METRICS, PAPER_LEVELS
from fadepth_core.models import MODELS
from fadepth_core.models.layers.etm import ETM_VARIANTS, ETMConfig

_Model = TypeVar("_Model", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be used; one line a problem, each with the key."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _network_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Two multiples of what the networks reduce pictures by."""
    if size is not None and any(side <= 0 or side % 32 for side in size):
        raise ValueError(f"size must be two positive multiples of 32, got {list(size)}")
    return size


class SourceConfig(BaseModel):
    """A data set by its name in `data.registry`, with the options of its class beside it."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra)


class TrainingSourceConfig(SourceConfig):
    share: float = Field(1.0, gt=0, description="of the samples, relative to the other data sets")
    size: tuple[int, int] | None = Field(
        None,
        description="height and width of level cr for this data set, where it is not `data.size`; a batch has one size",
    )

    _check_size = field_validator("size")(_network_size)


class AugmentationConfig(_Strict):
    """See `data.augment.Augmentation`."""

    scale: float = Field(1.15, ge=1)
    stretch: float | None = Field(None, ge=1)
    roll: float = Field(0.0, ge=0, description="degrees, standard deviation")
    pitch: float = Field(0.0, ge=0, description="degrees, standard deviation")
    flip: float = Field(0.5, ge=0, le=1)
    jitter: float = Field(0.5, ge=0, le=1)
    camera: float = Field(0.0, ge=0, le=1)


class DataConfig(_Strict):
    train: list[TrainingSourceConfig] = Field([TrainingSourceConfig(name="synthetic")], min_length=1)
    size: tuple[int, int] = Field((128, 416), description="height and width of level cr, multiples of 32")
    focal_length: float | None = Field(
        None,
        gt=0,
        description="pixels at level cr; scenes are scaled to it, so that one network answers in metres for any camera "
        "(`data.focal`); null leaves them as they are",
    )
    batch_size: int = Field(8, ge=1)
    workers: int = Field(2, ge=0, description="loader processes per training process; 0 loads in the process itself")
    cache: bool = Field(False, description="each loader process keeps what it has loaded, before augmentation")
    augment: AugmentationConfig = AugmentationConfig()
    cutmix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a strip of a sample is another one's (CutMix, Yun et al. 2019), so that the left of a "
        "street does not tell its right; for training against true depth alone",
    )
    statistics_images: int = Field(
        256,
        ge=1,
        description="training images over which BatchNorm's statistics are recomputed, with drop off, before the network is "
        "measured, saved or exported",
    )

    _check_size = field_validator("size")(_network_size)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of level cr for each of the data sets."""
        return [source.size or self.size for source in self.train]


class ETMSettings(_Strict):
    """Hyper-parameters of the ETM (Table VII), see `models.layers.etm.ETMConfig`; the defaults are its best row."""

    branch_drop: float = Field(0.1, ge=0, lt=1, description="p_b")
    element_drop: float = Field(0.1, ge=0, lt=1, description="p_e")
    dropconv: bool = Field(True, description="false: the paper's ETM*")
    dropconv_scale: float = Field(1.0, description="α")
    init_from_largest: bool = Field(False, description="true: the paper's ETM#")
    all_shapes: bool = Field(False, description="branches of every odd shape up to K×K instead of K×1 and 1×K")
    variance: Literal["weight", "none"] = "weight"
    constant_rate: bool = False


#: Options of each network; every other one is refused.
_OPTIONS = {
    "smalldepth": ("residual_drop", "downsample_drop", "constant_drop", "etm"),
    "hqdecv2": ("weights", "encoder"),
    "resnet18": ("weights", "etm"),
    "mobilenetv3": ("weights", "etm"),
    "unet": ("weights", "encoder"),
}


class ModelConfig(_Strict):
    """The network; options that it does not have are refused."""

    name: Literal[tuple(MODELS)] = "smalldepth"
    start_depth: float | None = Field(
        8.0, gt=0, description="metres that untrained heads answer; null for the middle of the disparity range"
    )
    start: Path | None = Field(None, description="checkpoint whose weights to start from, the shipped one included")
    encoder: str | None = Field(
        None, description="timm's name of the encoder, where there is a choice; null: the default"
    )
    weights: Path | None = Field(None, description="ImageNet weights of a timm encoder, a local file")
    freeze_statistics: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the iterations after which BatchNorm's statistics are recomputed over the statistics images and "
        "then stay as they are: the network trains on as it will be deployed. With small batches of several data sets the "
        "statistics of a batch are far from those of all. null: never",
    )
    residual_drop: float = Field(0.9, ge=0, lt=1, description="P_A of Table V")
    downsample_drop: float = Field(0.0, ge=0, lt=1, description="P_B of Table V")
    constant_drop: bool = False
    etm: Literal[tuple(ETM_VARIANTS)] | ETMSettings | None = Field(
        "etm#", description="for every network that takes it; null for the paper's plain ResNet-18 and MobileNetV3"
    )

    @property
    def options(self) -> dict[str, Any]:
        """What `build_model` takes for this network."""
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
            # A run's saved configuration names every key, so only values that differ from the default count as set.
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{self.name} has no {key}")
        return self


class PoseConfig(_Strict):
    network: Literal["fbnetv3_b", "small", "known"] = Field(
        "fbnetv3_b", description="'known' takes the camera motion from the data instead of learning it"
    )
    weights: Path | None = Field(None, description="ImageNet weights for fbnetv3_b, a local file")

    @model_validator(mode="after")
    def _check_weights(self) -> PoseConfig:
        if self.weights is not None and self.network != "fbnetv3_b":
            raise ValueError(f"weights are for fbnetv3_b, not for {self.network}")
        return self


class LevelConfig(_Strict):
    """Weights of one pyramid level, see `losses.pyramid.LevelWeights`; what is left out is the paper's for that level."""

    loss: float = Field(1.0, ge=0)
    feature: float = Field(0.0, ge=0)
    disparity: float = Field(0.0, ge=0)
    feature_metric: Literal[METRICS] = "l1"
    disparity_metric: Literal[METRICS] = "l1"


class BaseLossConfig(_Strict):
    """λ1 .. λ4, see `losses.base.BaseWeights`."""

    photometric: float = Field(1.0, ge=0)
    structure: float = Field(0.1, ge=0)
    feature: float = Field(0.1, ge=0)
    smoothness: float = Field(0.001, ge=0)


class TeacherConfig(_Strict):
    """Whom to learn from, and how (APX, see `losses.apx` for what the words mean)."""

    source: Path = Field(description="a training checkpoint, or a folder of predicted depth (`training.teacher`)")
    cache: Path | None = Field(
        None, description="folder to keep a network's answers in; it then sees pictures before augmentation"
    )
    encoder: float | None = Field(None, ge=0, description="μ_e; null: 0.01 where the teacher is a network, else 0")
    decoder: float | None = Field(None, ge=0, description="μ_d, likewise")
    disparity: float = Field(1.0, ge=0, description="μ_x")
    depth: float = Field(
        0.0,
        ge=0,
        description="weight of the losses against true depth (`loss.depth`, `loss.shape`) with the teacher's depth for truth; "
        "the teacher is a network for the same focal length",
    )
    channels: Literal["mean", "projection"] = "mean"
    distribution: Literal["ratio", "softmax"] = "ratio"
    distance: Literal["kl", "l1"] = "kl"
    mask: float | None = Field(0.2, gt=0, description="κ; null: no mask")
    renormalise: bool = Field(True, description="form distributions inside the mask only")

    @model_validator(mode="after")
    def _check_source(self) -> TeacherConfig:
        if self.source.is_dir():
            for key in ("encoder", "decoder", "cache", "depth"):
                if getattr(self, key):
                    raise ValueError(
                        f"{key}: a folder of predicted depth has no feature maps, no metres, and needs no cache"
                    )
            if self.channels == "projection":
                raise ValueError("channels: a folder of predicted depth has none to project")
        if self.cache is not None and self.channels == "projection":
            raise ValueError("cache: keeps the mean over channels; a projection needs them all")
        return self


class LossConfig(_Strict):
    base: BaseLossConfig = BaseLossConfig()
    levels: dict[Literal["cr", "lr", "hr", "flip", "color"], LevelConfig] = {
        name: LevelConfig(**vars(weights)) for name, weights in PAPER_LEVELS.items()
    }
    depth: float = Field(0.0, ge=0, description="weight of the loss against true depth")
    shape: float = Field(
        0.0,
        ge=0,
        description="weight of the loss against the shape of true depth, edges above all (`losses.supervised`)",
    )
    depth_error: Literal["relative", "log"] = Field(
        "relative", description="what it counts: in doubt nearer, or the middle (`losses.supervised`)"
    )
    speed: float | None = Field(
        None,
        ge=0,
        description="weight of the loss against measured speed, which makes depth metric; null: 0.1 for the user's own "
        "video where it carries speed and motion is learned, else 0",
    )
    rescale_to_cr: bool = Field(
        False, description="outputs of levels lr and hr are brought to the size of cr before their losses (Table VIII)"
    )
    share_masks: bool = Field(
        False, description="one draw of the drop masks for all levels of a batch instead of one for each level"
    )
    joint: bool = Field(False, description="one backward pass over all levels instead of one after each")

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
        """`[cr, flip]` and `{cr: {}, flip: {feature: 0}}` are both short forms."""
        if isinstance(levels, list):
            levels = dict.fromkeys(levels)
        if not isinstance(levels, dict):
            return levels  # pydantic says what is wrong with it
        paper = {name: vars(weights) for name, weights in PAPER_LEVELS.items()}
        return {
            name: {**paper.get(name, {}), **(given or {})} if given is None or isinstance(given, dict) else given
            for name, given in levels.items()
        }


class OptimizerConfig(_Strict):
    """AdamW."""

    lr: float = Field(5e-4, gt=0)
    pose_lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-2, ge=0)
    clip_norm: float = Field(1.0, gt=0)


class ScheduleConfig(_Strict):
    """Linear warm-up, then a cosine to `final` of the learning rate; N of the drop schedule is `iterations`."""

    iterations: int = Field(200_000, ge=1)
    warmup: int = Field(1000, ge=0)
    final: float = Field(0.01, ge=0, le=1)


class EvaluationConfig(_Strict):
    """What a finished run is measured on, if anything."""

    data: SourceConfig | None = Field(None, description="a test set with depth")
    protocol: str = Field("folder", description="see `evaluation.protocols`")
    scaling: Literal["median", "none"] | None = Field(None, description="null: as the protocol says")
    motion: SourceConfig | None = Field(
        None, description="a training set with camera poses, to measure learned motion on"
    )
    motion_samples: int = Field(100, ge=1, description="how many of it, evenly spread")

    @field_validator("protocol")
    @classmethod
    def _check_protocol(cls, protocol: str) -> str:
        if protocol not in PROTOCOLS:
            raise ValueError(f"no protocol '{protocol}'; there are {', '.join(PROTOCOLS)}")
        return protocol


class ValidationConfig(EvaluationConfig):
    """What a run is measured on while it trains, if anything; the checkpoint with the lowest AbsRel is kept as the best."""

    frames: int | None = Field(None, ge=1, description="at most that many of `data`, evenly spread; null: all")


class LogConfig(_Strict):
    every: int = Field(50, ge=1, description="iterations between two points of a curve")
    images_every: int = Field(1000, ge=1)
    save_every: int = Field(1000, ge=1, description="iterations between two states to resume from")
    evaluate_every: int = Field(
        5000, ge=1, description="iterations between two validations, each followed by saving the checkpoint"
    )


class TrainConfig(_Strict):
    """A run."""

    output: Path = Path("runs/fadepth")
    seed: int = Field(0, ge=0)
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field("32-true", description="of the networks")
    devices: int = Field(1, ge=1, description="processes, one GPU each where there are GPUs")
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pose: PoseConfig = PoseConfig()
    loss: LossConfig = LossConfig()
    teacher: TeacherConfig | None = Field(None, description="for distillation")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    validation: ValidationConfig = ValidationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log: LogConfig = LogConfig()
    provenance: dict[str, str] = Field({}, description="said in the checkpoint, e.g. the licence its data asks for")

    @property
    def compares_frames(self) -> bool:
        """Whether a loss looks at more than the middle frame of a sample."""
        return any(self.loss.base.model_dump().values()) or bool(self.loss.speed)

    @property
    def frame_factor(self) -> int:
        """How many times the size of level cr the data sets' frames have: level hr needs twice."""
        return 2 if "hr" in self.loss.levels else 1

    @model_validator(mode="after")
    def _check_data_against_loss(self) -> TrainConfig:
        alone = not self.compares_frames and self.loss.levels.keys() == {"cr"} and not self.teacher
        if self.data.cutmix and not alone:
            raise ValueError(
                "data.cutmix: the strip of another picture has no neighbouring frames; it goes with loss.depth alone"
            )
        if self.loss.speed and self.pose.network == "known":
            raise ValueError("loss.speed: with known poses there is no motion to correct")
        resized = sorted({"lr", "hr"} & self.loss.levels.keys())
        if self.loss.rescale_to_cr and not resized:
            raise ValueError("loss.rescale_to_cr: there is neither level lr nor level hr")
        if self.data.focal_length is not None and resized:
            # They teach that depth does not depend on the picture's size in pixels; one focal length in pixels, that it does.
            raise ValueError(f"data.focal_length does not go with levels of another size: {', '.join(resized)}")
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
    """A YAML file of keys and values; ConfigError where it is not one."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values")
    return values


def validated(kind: type[_Model], values: dict, where: Path | str) -> _Model:
    """`values` as a configuration of that kind; ConfigError with one line for each wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def save_config(config: TrainConfig, path: Path) -> None:
    """Write every value, so that the run can be repeated whatever the defaults become."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _override(values: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected key=value")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = _item(node, parent, override) if isinstance(node, list) else node.get(parent)
        if child is None and isinstance(node, dict):  # a saved configuration says null where it has none
            child = node[parent] = {}
        if not isinstance(child, (dict, list)):
            raise ConfigError(f"--set {override}: '{parent}' holds {child!r}, it has no keys below it")
        node = child
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from error
    if isinstance(value, str):
        value = _number(value)
    if isinstance(node, list):
        _item(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _item(values: list, key: str, override: str) -> Any:
    if not key.isdigit() or int(key) >= len(values):
        raise ConfigError(f"--set {override}: '{key}' is not the number of an item of a list of {len(values)}")
    return values[int(key)]


def _number(text: str) -> str | float:
    """YAML takes 1e-4 for text (it wants 1.0e-4); everybody else does not."""
    try:
        return float(text)
    except ValueError:
        return text
