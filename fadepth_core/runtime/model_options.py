"""The networks and constructor options that a checkpoint may name.

A checkpoint's header is untrusted: everything in it that reaches a constructor is checked against this table. No option
here names a file, a folder, an address, or pretrained weights. The encoder is one of a fixed list, because timm takes
names that make it download and run files. Torch is not imported, because a node without it reads checkpoints, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fadepth_core.common.documents import shown

#: Encoders of timm, those of `models.layers.backbone.ENCODER_WIDTHS`.
ENCODERS = (
    "tf_efficientnetv2_s",
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite2",
    "resnet18",
    "mobilenetv3_large_100",
)
#: Variants of the ETM, those of `models.layers.etm.ETM_VARIANTS`.
ETM_NAMES = ("etm", "etm*", "etm#")

#: Says why a value is refused; None if it is accepted.
_Check = Callable[[Any], str | None]


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _number(value: Any) -> str | None:
    return None if is_number(value) else "must be a finite number"


def _rate(value: Any) -> str | None:
    return None if is_number(value) and 0 <= value < 1 else "must be a number in [0, 1)"


def _one_of(*names: str) -> _Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and value in names else f"must be one of {', '.join(names)}"

    return check


#: Fields of `models.layers.etm.ETMConfig`.
ETM_FIELDS: dict[str, _Check] = {
    "branch_drop": _rate,
    "element_drop": _rate,
    "dropconv": _flag,
    "dropconv_scale": _number,
    "init_from_largest": _flag,
    "all_shapes": _flag,
    "variance": _one_of("weight", "none"),
    "constant_rate": _flag,
}


def _etm(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return _refusal(value, ETM_FIELDS)
    if value is None or (isinstance(value, str) and value in ETM_NAMES):
        return None
    return f"must be one of {', '.join(ETM_NAMES)}, or an object with its settings"


#: Of every network: whether it has a confidence head.
_HEAD: dict[str, _Check] = {"confidence": _flag}
_SMALLDEPTH: dict[str, _Check] = {
    **_HEAD,
    "residual_drop": _rate,
    "downsample_drop": _rate,
    "constant_drop": _flag,
    "etm": _etm,
}
#: Name of each network of `models.MODELS` -> its options.
MODEL_OPTIONS: dict[str, dict[str, _Check]] = {
    "smalldepth": _SMALLDEPTH,
    "smalldepth_k5": _SMALLDEPTH,
    "hqdecv2": {"encoder": _one_of(*(name for name in ENCODERS if name.startswith("tf_efficientnet"))), **_HEAD},
    "resnet18": {"etm": _etm, **_HEAD},
    "mobilenetv3": {"etm": _etm, **_HEAD},
    "unet": {"encoder": _one_of(*ENCODERS), "etm": _etm, **_HEAD},
}


def check_model_options(model: Any, options: Any) -> None:
    """Check the network that a checkpoint names, and the options of its constructor.

    Raises:
        ValueError: there is no such network, it has no such option, or an option has another type or range.
    """
    if not isinstance(model, str) or model not in MODEL_OPTIONS:
        raise ValueError(f"unknown model {shown(model)}; known models: {', '.join(sorted(MODEL_OPTIONS))}")
    if not isinstance(options, Mapping):
        raise ValueError(f"options must be an object, got {shown(options)}")
    if reason := _refusal(options, MODEL_OPTIONS[model]):
        raise ValueError(f"options.{reason}")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number. True and false are not numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _refusal(values: Mapping[str, Any], checks: Mapping[str, _Check]) -> str | None:
    for name, value in values.items():
        if name not in checks:
            return f"{shown(name)[1:-1]} is not an option; known: {', '.join(checks)}"
        if reason := checks[name](value):
            return f"{name} {reason}" + ("" if isinstance(value, Mapping) else f", got {shown(value)}")
    return None
