"""Checkpoints: a safetensors file with a JSON description in its header and, for backends that run without torch, the
exported ONNX graph beside it. Reading one never unpickles anything. A checkpoint is untrusted: sizes are bounded before
memory is taken, every key of its header is checked, and no file is read that the header or a graph names by a path.

    smalldepth.safetensors   weights of the deployed network (or of a training run), golden input and output, description
    smalldepth.onnx          the network as `ShapeCarriedGraph`; its weights are ONNX external data that refers to the
                             safetensors file
    smalldepth.int8.onnx     optional: the graph with 8-bit weights and activations

The description contains the SHA-256 of both graphs.

This module needs numpy and safetensors only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fadepth_core.common.documents import one_line, parse_object, shown
from fadepth_core.common.files import write_atomically
from fadepth_core.common.framing import STRIDE
from fadepth_core.runtime.model_options import check_model_options, is_number
from fadepth_core.runtime.onnx_file import external_files

FORMAT = 1
#: Folder of the shipped checkpoints.
ASSETS = Path(__file__).resolve().parent.parent / "assets"
#: Used when no checkpoint is named.
DEFAULT_CHECKPOINT = ASSETS / "smalldepth.safetensors"
_HEADER_KEY = "fadepth"
_PADDING_KEY = "padding"
#: The size of the header is rounded up to a multiple of this, bytes.
_HEADER_STEP = 4096
_GOLDEN = "golden."
#: Largest header, bytes: HQDecv2, the network with the most tensors, needs about 0.2 MB.
MAX_HEADER = 4 << 20
#: Largest file, bytes: the training form of HQDecv2 needs 0.1 GB, an int8 graph far less.
MAX_FILE = 1 << 30
#: Largest side of the network's input and of the golden image, pixels.
MAX_NETWORK_SIDE = 4096
#: Largest depth of `depth_range`, metres.
_MAX_DEPTH = 1e6
_Parsed = TypeVar("_Parsed")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Description:
    """The header of a checkpoint.

    Attributes:
        model: name of the network, a key of `fadepth_core.models.MODELS`; implies its table of widths.
        form: "deploy" (BatchNorm folded, ETM merged) or "training".
        network_size: (height, width) of the training images, pixels.
        depth_range: smallest and largest depth of the network's output, metres.
        pixel_mean, pixel_std: normalisation of inputs in [0, 1].
        trained: False for random weights.
        focal_length: of the camera for which the network's depth is in metres, pixels at the network's input; depth for
            another camera is scaled by the ratio of focal lengths. None: depth is not scaled.
        options: further arguments of the network's constructor (training form).
        provenance: free text by key: data, method, iterations, date, licence ...
        onnx_sha256: digest of the ONNX file, "" if none was exported.
        onnx_weights: name of the file with the weights of the ONNX file, which is the checkpoint's name at its export;
            "" if they are in the ONNX file itself.
        int8_sha256: digest of the int8 graph, "" if none was made.
    """

    model: str
    form: str
    network_size: tuple[int, int]
    depth_range: tuple[float, float]
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    trained: bool
    focal_length: float | None = None
    options: dict = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    onnx_sha256: str = ""
    onnx_weights: str = ""
    int8_sha256: str = ""

    @property
    def licence(self) -> str:
        """`provenance["licence"]` in one line of printable characters, "" if there is none."""
        text = " ".join(self.provenance.get("licence", "").split())
        return "".join(character for character in text if character.isprintable())

    @property
    def has_confidence(self) -> bool:
        """Whether the network has a confidence head."""
        return self.options.get("confidence", False)

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Parse and check. Raises ValueError with the reason."""
        values = parse_object(text, _HEADER_KEY)
        version = values.pop("format", None)
        if version != FORMAT or isinstance(version, bool):
            raise ValueError(f"its format is {shown(version)}, this program reads format {FORMAT}")
        known = {entry.name: entry.default is MISSING and entry.default_factory is MISSING for entry in fields(cls)}
        if unknown := [key for key in values if key not in known]:
            raise ValueError(f"its key {shown(unknown[0])} is unknown")
        if missing := [key for key, required in known.items() if required and key not in values]:
            raise ValueError(f"it lacks {missing[0]}")
        if values["form"] not in ("deploy", "training"):
            raise ValueError(f"its form is {shown(values['form'])}, not 'deploy' or 'training'")
        for key, length in (("network_size", 2), ("depth_range", 2), ("pixel_mean", 3), ("pixel_std", 3)):
            values[key] = _numbers(values[key], key, length)
        check_network_size(list(values["network_size"]), "network_size")
        if min(values["pixel_std"]) <= 0:
            raise ValueError(f"its pixel_std {list(values['pixel_std'])} is not positive")
        if not isinstance(values["trained"], bool):
            raise ValueError(f"its trained is {shown(values['trained'])}, not true or false")
        check_focal_length(values.get("focal_length"))
        near, far = values["depth_range"]
        if not 0 < near < far:
            raise ValueError(f"its depth_range {near} to {far} m is empty")
        if far > _MAX_DEPTH:
            raise ValueError(f"its depth_range ends at {far:g} m; the largest is {_MAX_DEPTH:g} m")
        provenance = values.get("provenance", {})
        if not isinstance(provenance, dict) or not all(isinstance(entry, str) for entry in provenance.values()):
            raise ValueError(f"its provenance is {shown(provenance)}, not texts by key")
        for key in ("onnx_sha256", "int8_sha256"):
            if not (isinstance(values.get(key, ""), str) and re.fullmatch("|[0-9a-f]{64}", values.get(key, ""))):
                raise ValueError(f"its {key} is {shown(values[key])}, not a SHA-256 digest")
        weights = values.get("onnx_weights", "")
        if not (isinstance(weights, str) and _is_plain_name(weights)):
            raise ValueError(f"its onnx_weights is {shown(weights)}, not the name of a file without folder")
        check_model_options(values["model"], values.get("options", {}))
        return cls(**values)

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)


def check_network_size(size: Any, key: str) -> None:
    """Raises ValueError unless `size`, the value of `key` in a header, is a possible (height, width) of a network's input."""
    sides = size if isinstance(size, (list, tuple)) else ()
    if len(sides) != 2 or not all(type(x) is int and 0 < x <= MAX_NETWORK_SIDE and x % STRIDE == 0 for x in sides):
        raise ValueError(f"its {key} {shown(size)} is not two positive multiples of {STRIDE} up to {MAX_NETWORK_SIDE}")


def check_focal_length(value: Any) -> None:
    """Raises ValueError unless `value`, the focal_length of a header, is None or a positive number of pixels."""
    if value is not None and not (is_number(value) and value > 0):
        raise ValueError(f"its focal_length is {shown(value)}, not a positive number")


def _numbers(value: Any, key: str, length: int) -> tuple:
    if not (isinstance(value, list) and len(value) == length and all(map(is_number, value))):
        raise ValueError(f"its {key} is {shown(value)}, not {length} numbers")
    return tuple(value)


def _is_plain_name(name: str) -> bool:
    """Whether `name` is "" or names a file in the same folder, on any operating system."""
    return len(name) <= 255 and name not in (".", "..") and not re.search(r"[/\\:\x00-\x1f]", name)


def read_described(
    path: Path, key: str, parse: Callable[[str], _Parsed], foreign: str
) -> tuple[_Parsed, dict[str, np.ndarray]]:
    """Read the description in the header of a safetensors file, and all tensors.

    Args:
        key: the description's key in the header.
        parse: makes the description from its text; raises ValueError with the reason.
        foreign: says in the error message what a file without that key is.

    Raises:
        CheckpointError: the file is missing, truncated, too large or foreign, or its description or a tensor cannot be
            used. Tensors are read after the description has been parsed.
    """
    try:
        # Before anything is opened: a named pipe would wait for ever, and a device has no end.
        if problem := file_problem(path):
            raise CheckpointError(problem)
        metadata = _read_header(path).get("__metadata__") or {}
        if not isinstance(metadata, dict) or not isinstance(metadata.get(key, ""), str):
            raise CheckpointError(f"{path}: {foreign} ('__metadata__' does not hold texts by key)")
        if key not in metadata:
            raise CheckpointError(f"{path}: {foreign} (no '{key}' header)")
        try:
            description = parse(metadata[key])
        except ValueError as error:
            raise CheckpointError(f"{path}: its description cannot be used: {error}") from error
        return description, _read_tensors(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def file_problem(path: Path) -> str | None:
    """Why `path` is not a file that may be read as a checkpoint or a graph; None if it is one."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return f"{path}: no such file"
    except (OSError, ValueError) as error:  # ValueError: a null character
        return f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(status.st_mode):
        return f"{path}: a directory, not a file"
    if not stat.S_ISREG(status.st_mode):
        return f"{path}: a device or pipe, not a file"
    if status.st_size > MAX_FILE:
        return f"{path}: {status.st_size >> 20} MiB, more than the {MAX_FILE >> 20} MiB of the largest network"
    return None


def _read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, with at most `MAX_HEADER` bytes read."""
    with path.open("rb") as file:
        length, size = int.from_bytes(prefix := file.read(8), "little"), path.stat().st_size
        if len(prefix) < 8:
            raise CheckpointError(f"{path}: not a complete safetensors file (it has {len(prefix)} bytes)")
        if length > size - 8:
            raise CheckpointError(f"{path}: not a complete safetensors file (its header is longer than the file)")
        if length > MAX_HEADER:
            raise CheckpointError(f"{path}: its header of {length} bytes is longer than {MAX_HEADER} bytes")
        data = file.read(length)
    try:
        return parse_object(data.decode(), "header")
    except ValueError as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from error


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file. The library checks that shapes, types and offsets fit the file and that no tensor
    overlaps another one."""
    name = ""
    try:
        with safe_open(path, framework="np") as file:
            tensors = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensors[name] = file.get_tensor(name)
            return tensors
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({one_line(error)})") from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:  # a type or a shape that numpy lacks
        raise CheckpointError(f"{path}: tensor {shown(name)} cannot be read: {one_line(error)}") from error


def find_checkpoint(path: str | os.PathLike | None = None) -> Path:
    """The checkpoint's file: `path`, in which ~ is the home folder; the default one for None and ""; a shipped one for its
    name without suffix, e.g. "smalldepth_nc", unless the working directory has a file of that name."""
    if not path:
        return DEFAULT_CHECKPOINT
    path = Path(os.path.expanduser(path))
    shipped = ASSETS / f"{path.name}.safetensors"
    return shipped if path.name == str(path) and not os.path.lexists(path) and os.path.isfile(shipped) else path


class Checkpoint:
    """An opened checkpoint: its description, weights and golden frame as numpy arrays, and the paths of its graphs.

    Args:
        path: see `find_checkpoint`.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, or inconsistent.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = find_checkpoint(path)
        self.description, tensors = read_described(
            self.path, _HEADER_KEY, Description.from_json, "a safetensors file, but not one of fadepth's"
        )
        self.weights = {name: value for name, value in tensors.items() if not name.startswith(_GOLDEN)}
        self.golden = {name.removeprefix(_GOLDEN): v for name, v in tensors.items() if name.startswith(_GOLDEN)}
        if self.description.form == "deploy" and not {"image", "depth"} <= set(self.golden):
            raise CheckpointError(f"{self.path}: a deployment checkpoint without its golden image and depth")
        if self.golden:
            self._check_golden()
        for name, value in self.weights.items():
            if value.dtype.kind not in "fiu" or value.dtype.itemsize > 8:
                raise CheckpointError(f"{self.path}: tensor {shown(name)} is of type {value.dtype}")
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise CheckpointError(f"{self.path}: tensor {shown(name)} has values that are not finite")

    def _check_golden(self) -> None:
        """Raises CheckpointError unless the golden frame is an image and its depth and, if the network has a confidence
        head, its confidence."""
        image, depth, confidence = (self.golden.get(name) for name in ("image", "depth", "confidence"))
        if set(self.golden) - {"image", "depth", "confidence"} or image is None or depth is None:
            raise CheckpointError(f"{self.path}: its golden frame is not an image and a depth")
        if (confidence is not None) != self.description.has_confidence:
            raise CheckpointError(f"{self.path}: its golden frame does not fit its option 'confidence'")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise CheckpointError(f"{self.path}: its golden image is {image.dtype} {list(image.shape)}")
        try:
            check_network_size(list(image.shape[:2]), "golden image of")
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        if depth.dtype != np.float32 or depth.shape != image.shape[:2]:
            raise CheckpointError(f"{self.path}: its golden depth is {depth.dtype} {list(depth.shape)}")
        if not (np.isfinite(depth) & (depth > 0)).all():
            raise CheckpointError(f"{self.path}: its golden depth has values that are not positive and finite")
        if confidence is not None:
            if confidence.dtype != np.float32 or confidence.shape != depth.shape:
                raise CheckpointError(
                    f"{self.path}: its golden confidence is {confidence.dtype} {list(confidence.shape)}"
                )
            if not ((confidence >= 0) & (confidence <= 1)).all():  # NaN, too
                raise CheckpointError(f"{self.path}: its golden confidence has values outside 0 to 1")

    @property
    def onnx_path(self) -> Path:
        """Path of the ONNX file, whether it exists or not."""
        return self.path.with_suffix(".onnx")

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of names, types, shapes and values of the weights."""
        return _digest(self.weights)

    @cached_property
    def golden_sha256(self) -> str:
        """The same of the golden frame."""
        return _digest(self.golden)

    @property
    def int8_path(self) -> Path:
        """Path of the int8 graph, whether it exists or not."""
        return self.path.with_suffix(".int8.onnx")

    def onnx_problem(self) -> str | None:
        """Why the ONNX file of this checkpoint cannot be used; None when it can."""
        needed = self.description.onnx_weights
        problem = self._file_problem(
            self.onnx_path, self.description.onnx_sha256, "an exported graph", {needed} if needed else set()
        )
        if problem is None and needed and needed != self.path.name:
            return f"{self.onnx_path}: reads its weights from '{needed}', but the checkpoint is now called '{self.path.name}'"
        return problem

    def int8_problem(self) -> str | None:
        """Why the int8 graph of this checkpoint cannot be used; None when it can."""
        return self._file_problem(self.int8_path, self.description.int8_sha256, "an int8 graph", set())

    def _file_problem(self, path: Path, sha256: str, what: str, allowed: set[str]) -> str | None:
        """`allowed`: names of the files that the graph may read its weights from."""
        if not sha256:
            return f"{self.path} was saved without {what}"
        if problem := file_problem(path):
            return problem
        try:
            data = path.read_bytes()
        except OSError as error:
            return f"{path}: cannot be read: {error.strerror or error}"
        if hashlib.sha256(data).hexdigest() != sha256:
            return f"{path}: damaged, or of another checkpoint (SHA-256 differs from the one in {self.path.name})"
        # The digest comes from the same untrusted source as the graph. A graph may read no file but the checkpoint.
        try:
            foreign = external_files(data) - allowed
        except ValueError as error:
            return f"{path}: not an ONNX graph ({error})"
        if foreign:
            return f"{path}: reads weights from {shown(min(foreign))}, which is not its checkpoint"
        return None


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def save_checkpoint(
    path: str | os.PathLike,
    weights: dict[str, np.ndarray],
    description: Description,
    golden: dict[str, np.ndarray] | None = None,
) -> None:
    """Write a checkpoint. A previous file of that name is replaced only once the new one is complete on disk."""
    data = checkpoint_bytes(weights, description, golden)
    write_atomically(path, lambda part: Path(part).write_bytes(data))


def checkpoint_bytes(
    weights: dict[str, np.ndarray], description: Description, golden: dict[str, np.ndarray] | None = None
) -> bytes:
    """Content of the file that `save_checkpoint` writes.

    The ONNX file refers to the offsets of the tensors, and its digest becomes part of the header afterwards. So the header is
    padded: the offsets are the same with and without the digests.
    """
    tensors = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    tensors |= {_GOLDEN + name: np.ascontiguousarray(value) for name, value in (golden or {}).items()}
    metadata = {_HEADER_KEY: description.to_json()}
    # Padding of the length of the digests that are still missing.
    missing = 2 * 64 - len(description.onnx_sha256) - len(description.int8_sha256)
    start = _data_start(save(tensors, {**metadata, _PADDING_KEY: " " * missing}))
    return save(tensors, {**metadata, _PADDING_KEY: " " * (missing + -start % _HEADER_STEP)})


def tensor_places(data: bytes) -> dict[str, tuple[int, int]]:
    """(offset, length) in bytes of every tensor in a serialised safetensors file."""
    start = _data_start(data)
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (start + first, last - first) for name, (first, last) in spans.items()}


def _data_start(data: bytes) -> int:
    """Offset of the tensors: after eight bytes with the header's length, and the header."""
    return 8 + int.from_bytes(data[:8], "little")
