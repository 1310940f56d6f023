"""The node's parameters, each declared once: name, type, default, range, description, and whether it may change while the
node is active. If a value is refused, `ros2 param set` prints the reason. `docs/parameters.py` writes the documentation's table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterUninitializedException
from rclpy.node import Node
from rclpy.parameter import Parameter

from fadepth_core.common.framing import STRIDE
from fadepth_core.runtime import backends
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.verification import CHECK_BOUNDS


@dataclass(frozen=True)
class Spec:
    """One parameter.

    Attributes:
        limits: smallest and largest value, for numbers.
        choices: allowed values, for strings.
        check: returns why a value is refused, or None.
        live: may change while the node is active.
    """

    name: str
    default: Any
    description: str
    limits: tuple[float, float] | None = None
    choices: Sequence[str] = ()
    check: Callable[[Any], str | None] | None = None
    live: bool = True

    def descriptor(self) -> ParameterDescriptor:
        """Description and range for `declare_parameter`."""
        descriptor = ParameterDescriptor(name=self.name, description=self.description)
        if self.choices:
            descriptor.additional_constraints = "one of: " + ", ".join(self.choices)
        if not self.live:
            descriptor.additional_constraints += " (not while the node is active)"
        if self.limits and isinstance(self.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=self.limits[0], to_value=self.limits[1])]
        elif self.limits:
            descriptor.integer_range = [IntegerRange(from_value=int(self.limits[0]), to_value=int(self.limits[1]))]
        return descriptor

    def refusal_reason(self, value: Any) -> str | None:
        """Why `value` is refused; None if it is accepted. Type and range are checked by rclpy."""
        if self.choices and value not in self.choices:
            return f"'{value}' is not one of {', '.join(self.choices)}"
        return self.check(value) if self.check else None


def _check_network_size(value: Sequence[int]) -> str | None:
    if len(value) != 2:
        return f"takes two numbers, height and width, got {len(value)}"
    if list(value) != [0, 0] and any(side <= 0 or side % STRIDE or side > 4096 for side in value):
        return f"height and width must be multiples of {STRIDE} up to 4096, or both 0 for automatic, got {list(value)}"
    return None


def _check_checkpoint(value: str) -> str | None:
    try:
        Checkpoint(value or None)
    except CheckpointError as error:
        return str(error)
    return None


#: A relative ROS name: tokens of letters, digits and underscores, no digit first.
_NAMESPACE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")


def _check_cameras(value: Sequence[str]) -> str | None:
    if list(value) == NO_NAMESPACES:
        return None
    for name in value:
        if not _NAMESPACE.fullmatch(name):
            return f"'{name}' is not a relative ROS name (letters, digits, '_', and '/' between them; no digit first)"
    double = next((name for name in value if value.count(name) > 1), None)
    return None if double is None else f"'{double}' is listed twice"


#: One camera without namespace. Not [], because ROS cannot know the type of an empty list.
NO_NAMESPACES = [""]

_METRES = (0.0, 1000.0)

SPECS: tuple[Spec, ...] = (
    Spec(
        "checkpoint",
        "",
        "Checkpoint file (.safetensors), or the name of a shipped one: smalldepth (the default), smalldepth_nc.",
        check=_check_checkpoint,
    ),
    Spec(
        "backend",
        "auto",
        "Backend that runs the network. The named one is tried first; the others are fallbacks.",
        choices=("auto", *backends.NAMES),
    ),
    Spec(
        "precision",
        "auto",
        "Precision of the network; auto is each backend's default.",
        choices=("auto", *CHECK_BOUNDS),
    ),
    Spec("threads", 0, "CPU threads for the network; 0 means up to four.", limits=(0, 256)),
    Spec(
        "network_size",
        [0, 0],
        f"Height and width of the network's input, multiples of {STRIDE}; [0, 0] follows the camera's aspect ratio.",
        check=_check_network_size,
    ),
    Spec("crop_to_aspect", False, "Crop frames to the network's aspect ratio instead of stretching them to it."),
    Spec("full_resolution", False, "Publish depth and points at the camera's size instead of the network's."),
    Spec(
        "cameras",
        NO_NAMESPACES,
        "Namespaces of several cameras, each with its own image, camera_info and outputs; [''] for one camera without namespace.",
        check=_check_cameras,
        live=False,
    ),
    Spec(
        "image_transport",
        "raw",
        "Topic type of the images: raw is Image, compressed is CompressedImage.",
        choices=("raw", "compressed"),
        live=False,
    ),
    Spec("depth_scale", 1.0, "Factor on depth, to correct the scale for a camera.", limits=(1e-3, 1e3)),
    Spec(
        "camera_height",
        0.0,
        "Height of the camera above the ground, metres. Depth is scaled so that the ground is this far below the camera; 0: no "
        "scaling. The camera must look ahead, pitched less than 25 degrees.",
        limits=(0.0, 100.0),
    ),
    Spec("min_depth", 0.1, "Depth below this is published as -Inf (REP-117), metres.", limits=_METRES),
    Spec("max_depth", 100.0, "Depth above this is published as +Inf (REP-117), metres.", limits=_METRES),
    Spec(
        "depth_encoding",
        "32FC1",
        "32FC1 in metres, or 16UC1 in millimetres with 0 for unknown (REP-118).",
        choices=("32FC1", "16UC1"),
    ),
    Spec("points.rgb", True, "Colour the points (16 bytes a point instead of 12)."),
    Spec("points.stride", 1, "Keep every n-th row and column of points.", limits=(1, 64)),
    Spec("points.min_z", 0.0, "Drop points nearer than this, metres.", limits=_METRES),
    Spec("points.max_z", 0.0, "Drop points farther than this, metres; 0 keeps all.", limits=_METRES),
    Spec(
        "points.max_rate",
        0.0,
        "Maximum number of clouds per second; 0: a cloud with every depth image.",
        limits=(0.0, 1000.0),
    ),
    Spec("color.near", 2.0, "Depth drawn in red on depth/color, metres.", limits=(0.01, 1000.0)),
    Spec("color.far", 80.0, "Depth drawn in blue on depth/color, metres.", limits=(0.01, 1000.0)),
    Spec("autostart", True, "Configure and activate the node when it starts.", live=False),
)
_BY_NAME = {spec.name: spec for spec in SPECS}
#: Pairs of which the first must be below the second.
_ORDERED = (("min_depth", "max_depth"), ("color.near", "color.far"))


@dataclass(frozen=True)
class EngineSettings:
    """The settings that an engine is built with. When one changes, another engine is built."""

    checkpoint: str
    backend: str
    precision: str
    threads: int
    network_size: tuple[int, int] | None
    crop_to_aspect: bool
    full_resolution: bool
    batch: int


@dataclass(frozen=True)
class Settings:
    """One consistent set of parameter values, as the pipeline uses them."""

    engine: EngineSettings
    cameras: tuple[str, ...]
    image_transport: str
    depth_scale: float
    camera_height: float
    limits: tuple[float, float]
    depth_encoding: str
    points_rgb: bool
    points_stride: int
    points_z_range: tuple[float, float] | None
    points_period: float
    color_range: tuple[float, float]

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Settings:
        """The settings that the parameter values, by name, stand for."""
        size = tuple(values["network_size"])
        min_z, max_z = values["points.min_z"], values["points.max_z"] or float("inf")
        rate = values["points.max_rate"]
        cameras = tuple(values["cameras"] or NO_NAMESPACES)
        return cls(
            engine=EngineSettings(
                checkpoint=values["checkpoint"],
                backend=values["backend"],
                precision=values["precision"],
                threads=values["threads"],
                network_size=None if size == (0, 0) else size,
                crop_to_aspect=values["crop_to_aspect"],
                full_resolution=values["full_resolution"],
                batch=len(cameras),
            ),
            cameras=cameras,
            image_transport=values["image_transport"],
            depth_scale=values["depth_scale"],
            camera_height=values["camera_height"],
            limits=(values["min_depth"], values["max_depth"]),
            depth_encoding=values["depth_encoding"],
            points_rgb=values["points.rgb"],
            points_stride=values["points.stride"],
            points_z_range=None if (min_z, max_z) == (0.0, float("inf")) else (min_z, max_z),
            points_period=1.0 / rate if rate > 0 else 0.0,
            color_range=(values["color.near"], values["color.far"]),
        )


class Parameters:
    """Declares `SPECS` on a node and keeps a `Settings` up to date.

    Args:
        node: any rclpy node.
        is_active: whether the node is active; parameters that are not live are then locked.
        on_change: called with the new settings after an accepted change.
    """

    def __init__(self, node: Node, is_active: Callable[[], bool], on_change: Callable[[Settings], None]):
        self._node, self._is_active, self._on_change = node, is_active, on_change
        self._values = {spec.name: _declare(node, spec) for spec in SPECS}
        reason = _refusal_reason(self._values, self._values)
        if reason:
            raise ValueError(f"parameter {reason}")
        self.settings = Settings.from_values(self._values)
        node.add_on_set_parameters_callback(self._on_set)

    @property
    def autostart(self) -> bool:
        """The parameter `autostart`."""
        return self._values["autostart"]

    def _on_set(self, changes: list[Parameter]) -> SetParametersResult:
        ours = {p.name: _plain(p.value) for p in changes if p.name in _BY_NAME}
        if self._is_active():
            locked = [name for name, value in ours.items() if not _BY_NAME[name].live and value != self._values[name]]
            if locked:
                return SetParametersResult(
                    successful=False, reason=f"{locked[0]} cannot change while the node is active; deactivate it first"
                )
        values = self._values | ours
        reason = _refusal_reason(ours, values)
        if reason:
            return SetParametersResult(successful=False, reason=reason)
        self._values = values
        self.settings = Settings.from_values(values)
        self._on_change(self.settings)
        return SetParametersResult(successful=True)


def _refusal_reason(changes: dict[str, Any], values: dict[str, Any]) -> str | None:
    """Why `changes` are refused; None if they are accepted. `values`: those of all parameters, changes included."""
    for name, value in changes.items():
        reason = _BY_NAME[name].refusal_reason(value)
        if reason:
            return f"{name}: {reason}"
    for low, high in _ORDERED:
        if not values[low] < values[high]:
            return f"{low} ({values[low]}) must be below {high} ({values[high]})"
    if values["points.max_z"] and not values["points.min_z"] < values["points.max_z"]:
        return f"points.min_z ({values['points.min_z']}) must be below points.max_z ({values['points.max_z']})"
    return None


def _declare(node: Node, spec: Spec) -> Any:
    """Declare a parameter and return its value."""
    try:
        node.declare_parameter(spec.name, spec.default, spec.descriptor())
        return _plain(node.get_parameter(spec.name).value)
    except ParameterUninitializedException:
        # `[]` in a parameter file has no type, and so no value: https://github.com/ros2/rclpy/issues/912
        if spec.default != NO_NAMESPACES:
            raise
        node.set_parameters([Parameter(spec.name, value=spec.default)])
        return spec.default


def _plain(value: Any) -> Any:
    """A list instead of the array that rclpy returns for list parameters."""
    return list(value) if hasattr(value, "tolist") else value
