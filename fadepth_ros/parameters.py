"""The node's parameters, each declared once: name, type, default, range, description, and whether it may change while the
node is active. If a value is refused, `ros2 param set` prints the reason. `docs/parameters.py` writes the documentation's table.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.exceptions import ParameterUninitializedException
from rclpy.node import Node
from rclpy.parameter import Parameter

from fadepth_core.common.framing import MAX_SIDE, MIN_SIDE, STRIDE
from fadepth_core.messages.outgoing import CLOUD_FIELDS
from fadepth_core.runtime import backends, temporal
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError, find_checkpoint
from fadepth_core.runtime.cloud import CloudOptions
from fadepth_core.runtime.pictures import COLOR_RANGE
from fadepth_core.runtime.rectifier import MODES as RECTIFY_MODES
from fadepth_core.runtime.verification import CHECK_BOUNDS
from fadepth_ros.awaiting import InThread


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
            descriptor.dynamic_typing = "off" in self.choices  # see `plain`
        if not self.live:
            descriptor.additional_constraints += " (not while the node is active)"
        if self.limits and isinstance(self.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=self.limits[0], to_value=self.limits[1])]
        elif self.limits:
            descriptor.integer_range = [IntegerRange(from_value=int(self.limits[0]), to_value=int(self.limits[1]))]
        return descriptor

    def plain(self, value: Any) -> Any:
        """A value from rclpy as Python's: a list instead of an array; "on" and "off" instead of true and false, because in YAML,
        which parameter files and `ros2 param set` are read as, these words without quotes are booleans."""
        if isinstance(value, bool) and "off" in self.choices:
            return "on" if value else "off"
        return list(value) if hasattr(value, "tolist") else value

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


def _check_camera_size(value: Sequence[int]) -> str | None:
    if len(value) != 2:
        return f"takes two numbers, height and width, got {len(value)}"
    if list(value) != [0, 0] and not all(MIN_SIDE <= side <= MAX_SIDE for side in value):
        return f"height and width must be {MIN_SIDE} to {MAX_SIDE}, or both 0 if unknown, got {list(value)}"
    return None


def _check_zero_or_hundredth(value: float) -> str | None:
    return f"must be 0 or at least 0.01, got {value:g}" if 0 < value < 0.01 else None


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


@dataclass(frozen=True)
class TopicQos:
    """Quality of service of one topic: "best_effort" or "reliable", "volatile" or "transient_local", length of the queue."""

    reliability: str
    durability: str
    depth: int


#: Default quality of service of each topic. A best-effort subscription also receives from reliable publishers. Outputs are
#: reliable, for subscribers that need every depth image; their depth is 2, so that a slow subscriber gets no old images.
QOS: dict[str, TopicQos] = {
    "image": TopicQos("best_effort", "volatile", 5),
    "camera_info": TopicQos("best_effort", "volatile", 5),
    "depth/image": TopicQos("reliable", "volatile", 2),
    "depth/camera_info": TopicQos("reliable", "volatile", 2),
    "depth/points": TopicQos("reliable", "volatile", 2),
    "depth/color": TopicQos("reliable", "volatile", 2),
    "depth/confidence": TopicQos("reliable", "volatile", 2),
}


def _qos_specs(topic: str, qos: TopicQos) -> tuple[Spec, ...]:
    """The parameters for a topic's quality of service. They keep their names when the topic is remapped."""
    name, role = f"qos.{topic}", "subscription of" if topic in ("image", "camera_info") else "publisher of"
    return (
        Spec(
            f"{name}.reliability",
            qos.reliability,
            f"Reliability of the {role} `{topic}`.",
            choices=("best_effort", "reliable"),
            live=False,
        ),
        Spec(
            f"{name}.durability",
            qos.durability,
            f"Durability of the {role} `{topic}`.",
            choices=("volatile", "transient_local"),
            live=False,
        ),
        Spec(f"{name}.depth", qos.depth, f"Queue length of the {role} `{topic}`.", limits=(1, 1000), live=False),
    )


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
    Spec(
        "rectify",
        "auto",
        "Rectify images of a lens with distortion, by D, R and P of `camera_info`. auto: if D is not 0, unless the topic's name "
        "says that the images are rectified (image_rect); on: whatever the name, also if only P or R differ; off: never.",
        choices=RECTIFY_MODES,
    ),
    Spec("depth_scale", 1.0, "Factor on depth, to correct the scale for a camera.", limits=(1e-3, 1e3)),
    Spec(
        "camera_height",
        0.0,
        "Height of the camera above the ground, metres. Depth is scaled so that the ground is this far below the camera; 0: no "
        "scaling. The camera must look ahead, pitched less than 25 degrees.",
        limits=(0.0, 100.0),
    ),
    Spec(
        "temporal",
        "off",
        "Removes jitter of depth between frames: scale corrects each frame by one factor, full also parts of the picture.",
        choices=temporal.MODES,
    ),
    Spec("min_depth", 0.1, "Depth below this is published as -Inf (REP-117), metres.", limits=_METRES),
    Spec("max_depth", 100.0, "Depth above this is published as +Inf (REP-117), metres.", limits=_METRES),
    Spec(
        "min_confidence",
        0.0,
        "Depth and points of pixels with less confidence are NaN; 0 keeps all. Confidence is 1 / (1 + u), where u is the "
        "expected relative error: 0.8 removes pixels that are expected to be off by more than 25 %. Needs a checkpoint with a "
        "confidence head.",
        limits=(0.0, 1.0),
    ),
    Spec(
        "depth_encoding",
        "32FC1",
        "32FC1 in metres, or 16UC1 in millimetres with 0 for unknown (REP-118).",
        choices=("32FC1", "16UC1"),
    ),
    Spec(
        "points.fields",
        "xyzrgb",
        "Fields of a point: xyz (12 bytes), xyzrgb with the image's colour, or xyzi with its brightness from 0 to 255 (16 bytes).",
        choices=tuple(CLOUD_FIELDS),
    ),
    Spec("points.stride", 1, "Keep every n-th row and column of points.", limits=(1, 64)),
    Spec("points.min_z", 0.0, "Drop points nearer than this, metres.", limits=_METRES),
    Spec("points.max_z", 0.0, "Drop points farther than this, metres; 0 keeps all.", limits=_METRES),
    Spec(
        "points.max_range", 0.0, "Drop points farther from the camera than this, metres; 0 keeps all.", limits=_METRES
    ),
    Spec(
        "points.edge_threshold",
        0.0,
        "Drop points that float between a near and a far surface: where depth changes by more than this share from one pixel of "
        "the network to the next, more steeply than around it. 0.02 to 0.05 are useful values; 0 keeps all.",
        limits=(0.0, 10.0),
    ),
    Spec(
        "points.voxel_size",
        0.0,
        "Keep one point, the mean, in each cube of this side, metres, from 0.01. The cloud is then not organised; 0 keeps all.",
        limits=(0.0, 100.0),
        check=_check_zero_or_hundredth,
    ),
    Spec(
        "points.max_rate",
        0.0,
        "Maximum number of clouds per second; 0: a cloud with every depth image.",
        limits=(0.0, 1000.0),
    ),
    Spec("color.near", COLOR_RANGE[0], "Depth drawn in red on depth/color, metres.", limits=(0.01, 1000.0)),
    Spec("color.far", COLOR_RANGE[1], "Depth drawn in blue on depth/color, metres.", limits=(0.01, 1000.0)),
    Spec(
        "lazy",
        True,
        "Unsubscribe from the camera while no output has subscribers; false: stay subscribed.",
    ),
    Spec("save_folder", "~/fadepth", "Folder for the files of the service `~/save`."),
    Spec("autostart", True, "Configure and activate the node when it starts.", live=False),
    Spec(
        "camera_size",
        [0, 0],
        "Height and width of the images, if known: the engine is then loaded when the node is configured; [0, 0]: when their "
        "size is known.",
        check=_check_camera_size,
        live=False,
    ),
    Spec(
        "bond_heartbeat_period",
        0.0,
        "Seconds between two heartbeats for Nav2's lifecycle manager while the node is active (its nodes have 0.1), from 0.01; "
        "0: none.",
        limits=(0.0, 2.0),
        check=_check_zero_or_hundredth,
        live=False,
    ),
    *(spec for topic, qos in QOS.items() for spec in _qos_specs(topic, qos)),
)
_BY_NAME = {spec.name: spec for spec in SPECS}
#: Pairs of which the first must be below the second.
_ORDERED = (("min_depth", "max_depth"), ("color.near", "color.far"))


def _file_state(checkpoint: str) -> tuple[int, ...]:
    """Differs after the checkpoint's file has been written or replaced; () if it cannot be looked at."""
    try:
        status = os.stat(find_checkpoint(checkpoint))
    except (OSError, ValueError):  # ValueError: a null character
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True)
class EngineSettings:
    """The settings that an engine is built with. When one changes, another engine is built.

    Attributes:
        file_state: of the checkpoint's file when the parameter was set. Setting the parameter again to the same value thus
            builds another engine if the file has been replaced.
    """

    checkpoint: str
    file_state: tuple[int, ...]
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
    rectify: str
    depth_scale: float
    camera_height: float
    temporal: str
    limits: tuple[float, float]
    min_confidence: float
    depth_encoding: str
    cloud: CloudOptions
    points_period: float
    lazy: bool
    save_folder: str
    camera_size: tuple[int, int] | None
    bond_heartbeat_period: float
    color_range: tuple[float, float]
    qos: dict[str, TopicQos]

    @classmethod
    def from_values(cls, values: dict[str, Any], file_state: tuple[int, ...] = ()) -> Settings:
        """The settings that the parameter values, by name, stand for; `file_state` is that of `EngineSettings`."""
        size, camera_size = tuple(values["network_size"]), tuple(values["camera_size"])
        rate = values["points.max_rate"]
        cameras = tuple(values["cameras"] or NO_NAMESPACES)
        return cls(
            engine=EngineSettings(
                checkpoint=values["checkpoint"],
                file_state=file_state,
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
            rectify=values["rectify"],
            depth_scale=values["depth_scale"],
            camera_height=values["camera_height"],
            temporal=values["temporal"],
            limits=(values["min_depth"], values["max_depth"]),
            min_confidence=values["min_confidence"],
            depth_encoding=values["depth_encoding"],
            cloud=CloudOptions(
                fields=values["points.fields"],
                stride=values["points.stride"],
                z_range=(values["points.min_z"], values["points.max_z"] or float("inf")),
                max_range=values["points.max_range"] or float("inf"),
                edge_threshold=values["points.edge_threshold"],
                voxel_size=values["points.voxel_size"],
            ),
            points_period=1.0 / rate if rate > 0 else 0.0,
            lazy=values["lazy"],
            save_folder=values["save_folder"],
            camera_size=None if camera_size == (0, 0) else camera_size,
            bond_heartbeat_period=values["bond_heartbeat_period"],
            color_range=(values["color.near"], values["color.far"]),
            qos={
                topic: TopicQos(*(values[f"qos.{topic}.{policy}"] for policy in ("reliability", "durability", "depth")))
                for topic in QOS
            },
        )


@dataclass(frozen=True)
class _Checked:
    """Parameter values, and why they are refused; None if they are accepted."""

    values: dict[str, Any]
    reason: str | None


class Parameters:
    """Declares `SPECS` on a node and keeps a `Settings` up to date.

    Values that come from a service are checked in a thread, because opening a checkpoint and running it takes seconds. The
    executor delivers images meanwhile.

    Args:
        node: any rclpy node.
        is_active: whether the node is active; parameters that are not live are then locked.
        refusal: returns why new settings cannot be used, or None. Called in a thread, or in that of `set_parameters`.
        on_change: called with the new settings after an accepted change.
    """

    def __init__(
        self,
        node: Node,
        is_active: Callable[[], bool],
        refusal: Callable[[Settings], str | None],
        on_change: Callable[[Settings], None],
    ):
        self._node, self._is_active, self._refusal, self._on_change = node, is_active, refusal, on_change
        self._values = declare(node, SPECS)
        reason = _pairs_refusal_reason(self._values)
        if reason:
            raise ValueError(f"parameter {reason}")
        self.settings = Settings.from_values(self._values, _file_state(self._values["checkpoint"]))
        self._checked: _Checked | None = None  # by the service call that is being answered
        self._check_done = node.create_guard_condition(lambda: None)  # wakes the executor
        node.add_on_set_parameters_callback(self._validate)
        # A change is applied after all callbacks have accepted it.
        if hasattr(node, "add_post_set_parameters_callback"):
            node.add_post_set_parameters_callback(self._apply)
        else:
            # Humble has no callback for that moment. It calls the last added callback first, so one that is added in the usual
            # way would apply values before they are checked. The end of the list comes after all checks, before the values are
            # stored: https://github.com/ros2/rclpy/blob/humble/rclpy/rclpy/node.py, _set_parameters_atomically
            node._parameters_callbacks.append(self._apply)  # type: ignore[attr-defined]
        # A group of their own: requests are answered one after the other, and all else is served while one waits for a check.
        group = MutuallyExclusiveCallbackGroup()
        for service in node.services:
            if service.srv_type in (SetParameters, SetParametersAtomically):
                service.callback_group = group
                group.add_entity(service)
            if service.srv_type is SetParameters:
                service.callback = self._set_together(service.callback)
            elif service.srv_type is SetParametersAtomically:
                service.callback = self._set_checked(service.callback)

    @property
    def autostart(self) -> bool:
        """The parameter `autostart`."""
        return self._values["autostart"]

    def _set_together(self, set_each: Callable) -> Callable:
        """The service `set_parameters` with this node's parameters set together, all or none; `set_each` sets the others.

        rclpy sets them one after the other. `ros2 param load` sends a file in one request, and a pair such as color.near and
        color.far can then be refused in one order although both values fit each other.
        """

        async def answer(request: SetParameters.Request, response: SetParameters.Response) -> SetParameters.Response:
            ours = [p for p in request.parameters if p.name in _BY_NAME]
            others = SetParameters.Request(parameters=[p for p in request.parameters if p.name not in _BY_NAME])
            results = iter(set_each(others, SetParameters.Response()).results)
            together = SetParametersResult(successful=True)
            if ours:
                try:
                    await self._check_in_thread(ours)
                    together = self._node.set_parameters_atomically([Parameter.from_parameter_msg(p) for p in ours])
                except Exception as error:  # whatever it is, the caller waits for an answer
                    together = SetParametersResult(successful=False, reason=str(error))
            response.results = [together if p.name in _BY_NAME else next(results) for p in request.parameters]
            for parameter, result in zip(request.parameters, response.results, strict=True):
                if not result.successful and not self._node.has_parameter(parameter.name):
                    result.reason = _unknown(self._node, parameter.name)  # rclpy names none
            return response

        return answer

    def _set_checked(self, set_atomically: Callable) -> Callable:
        """The service `set_parameters_atomically`, with a check in a thread before it sets the parameters."""

        async def answer(
            request: SetParametersAtomically.Request, response: SetParametersAtomically.Response
        ) -> SetParametersAtomically.Response:
            await self._check_in_thread(request.parameters)
            return set_atomically(request, response)

        return answer

    async def _check_in_thread(self, messages: Sequence[ParameterMessage]) -> None:
        """Check values in a thread if an engine has to be tried for them. `_validate` then uses the result."""
        ours = _ours([Parameter.from_parameter_msg(message) for message in messages])
        # The types are checked by rclpy, after this.
        if any(type(value) is not type(self._values[name]) for name, value in ours.items()):
            return
        if "checkpoint" in ours or self._changed(ours).engine != self.settings.engine:
            self._checked = await InThread(lambda: self._check(ours), self._check_done.trigger, "checking parameters")

    def _check(self, ours: dict[str, Any]) -> _Checked:
        """Whether these changes are accepted, whatever the state of the node."""
        values = self._values | ours
        reason = _refusal_reason(ours, SPECS) or _pairs_refusal_reason(values)
        if ours and not reason:
            reason = self._refusal(self._changed(ours))
        return _Checked(values, reason)

    def _changed(self, ours: dict[str, Any]) -> Settings:
        """The settings after these changes. The state of the checkpoint's file is that of the last time it was set."""
        values = self._values | ours
        state = _file_state(values["checkpoint"]) if "checkpoint" in ours else self.settings.engine.file_state
        return Settings.from_values(values, state)

    def _validate(self, changes: list[Parameter]) -> SetParametersResult:
        ours = _ours(changes)
        checked, self._checked = self._checked, None
        if self._is_active():
            locked = [name for name, value in ours.items() if not _BY_NAME[name].live and value != self._values[name]]
            if locked:
                return SetParametersResult(
                    successful=False, reason=f"{locked[0]} cannot change while the node is active; deactivate it first"
                )
        if checked is None or checked.values != self._values | ours:
            checked = self._check(ours)
        return SetParametersResult(successful=not checked.reason, reason=checked.reason or "")

    def _apply(self, changes: list[Parameter]) -> SetParametersResult:
        ours = _ours(changes)
        if ours:
            self.settings = self._changed(ours)
            self._values = self._values | ours
            self._on_change(self.settings)
        return SetParametersResult(successful=True)


def _ours(changes: list[Parameter]) -> dict[str, Any]:
    return {p.name: _BY_NAME[p.name].plain(p.value) for p in changes if p.name in _BY_NAME}


def declare(node: Node, specs: Iterable[Spec]) -> dict[str, Any]:
    """Declare parameters on a node; their values, by name.

    Raises:
        ParameterException: a value has another type, or is out of range.
        ValueError: a value is refused by its `Spec`.
    """
    values = {spec.name: _declare(node, spec) for spec in specs}
    reason = _refusal_reason(values, specs)
    if reason:
        raise ValueError(f"parameter {reason}")
    return values


def _given(node: Node) -> dict[str, Any]:
    """The parameters given to the node by parameter files and arguments. rclpy has no public list of them."""
    return node._parameter_overrides


def qos_override_policies(node: Node, topic: str, entity: str) -> list[str]:
    """The policies that the user overrides for a topic (resolved name) by ROS's parameters `qos_overrides.TOPIC.ENTITY.POLICY`.

    Args:
        entity: "subscription" or "publisher".
    """
    prefix = f"qos_overrides.{topic}.{entity}."
    return [name[len(prefix) :] for name in _given(node) if name.startswith(prefix)]


def warn_of_unknown_parameters(node: Node) -> None:
    """Log a warning for each given parameter that the node does not have, and for parameter files that hold none for it.

    Call it after all parameters are declared.
    """
    given = _given(node)
    if not given and "--params-file" in sys.argv:
        name = node.get_fully_qualified_name()
        node.get_logger().warning(
            f"the parameter file has no parameters for this node: its first line must be '{name}:' or '/**:'"
        )
    for name in given:
        if not node.has_parameter(name) and not name.startswith("qos_overrides."):
            node.get_logger().warning(f"{_unknown(node, name)}; its value is not used")


def _unknown(node: Node, name: str) -> str:
    """Says that there is no such parameter, and which name is the nearest."""
    near = get_close_matches(name, node.list_parameters([], 0).names, 1)
    return f"there is no parameter '{name}'" + (f", did you mean '{near[0]}'" if near else "")


def warn_of_unused_qos_overrides(node: Node) -> None:
    """Log a warning for each `qos_overrides` that no topic of the node has used. Call it after all topics are created."""
    for name in _given(node):
        if name.startswith("qos_overrides.") and not node.has_parameter(name):
            node.get_logger().warning(
                f"the parameter '{name}' is not used: no such topic (the name after remapping) or policy here. "
                "qos.image.reliability and the like keep their names when a topic is remapped"
            )


def _refusal_reason(values: dict[str, Any], specs: Iterable[Spec]) -> str | None:
    """Why a value, each looked at alone, is refused; None if all are accepted."""
    for spec in specs:
        reason = spec.refusal_reason(values[spec.name]) if spec.name in values else None
        if reason:
            return f"{spec.name}: {reason}"
    return None


def _pairs_refusal_reason(values: dict[str, Any]) -> str | None:
    """Why values that depend on each other are refused; None if they are accepted."""
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
        return spec.plain(node.get_parameter(spec.name).value)
    except ParameterUninitializedException:
        # `[]` in a parameter file has no type, and so no value: https://github.com/ros2/rclpy/issues/912
        if spec.default != NO_NAMESPACES:
            raise
        node.set_parameters([Parameter(spec.name, value=spec.default)])
        return spec.default
