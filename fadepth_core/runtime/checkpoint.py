"""Checkpoints: a safetensors file with a JSON description in its header and, for backends that run without torch, the
exported ONNX graph beside it. Reading one never unpickles anything.

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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fadepth_core.common.files import write_atomically
from fadepth_core.common.framing import STRIDE

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

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Parse and check. Raises ValueError, TypeError or KeyError with the reason."""
        values = json.loads(text)
        version = values.pop("format", None)
        if version != FORMAT:
            raise ValueError(f"its format is {version!r}, this program reads format {FORMAT}")
        if values["form"] not in ("deploy", "training"):
            raise ValueError(f"its form is {values['form']!r}, not 'deploy' or 'training'")
        for key, length in (("network_size", 2), ("depth_range", 2), ("pixel_mean", 3), ("pixel_std", 3)):
            values[key] = tuple(values[key])
            if len(values[key]) != length or not all(isinstance(x, (int, float)) for x in values[key]):
                raise ValueError(f"its {key} is {list(values[key])}, not {length} numbers")
        if any(side <= 0 or side % STRIDE for side in values["network_size"]):
            raise ValueError(f"its network_size {list(values['network_size'])} is not two multiples of {STRIDE}")
        if min(values["pixel_std"]) <= 0:
            raise ValueError(f"its pixel_std {list(values['pixel_std'])} is not positive")
        for key, kind in (
            ("model", str),
            ("trained", bool),
            ("options", dict),
            ("provenance", dict),
            ("onnx_weights", str),
        ):
            if not isinstance(values.get(key, kind()), kind):
                raise TypeError(f"its {key} is {values[key]!r}, not a {kind.__name__}")
        focal = values.get("focal_length")
        if focal is not None and not (isinstance(focal, (int, float)) and 0 < focal < float("inf")):
            raise ValueError(f"its focal_length is {focal!r}, not a positive number")
        near, far = values["depth_range"]
        if not 0 < near < far:
            raise ValueError(f"its depth_range {near} to {far} m is empty")
        return cls(**values)

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)


def read_described(
    path: Path, key: str, parse: Callable[[str], _Parsed], foreign: str
) -> tuple[_Parsed, dict[str, np.ndarray]]:
    """Read the description in the header of a safetensors file, and all tensors.

    Args:
        key: the description's key in the header.
        parse: makes the description from its text; raises ValueError, TypeError or KeyError with the reason.
        foreign: says in the error message what a file without that key is.

    Raises:
        CheckpointError: the file is missing, truncated or foreign, or its description or a tensor cannot be used.
            Tensors are read after the description has been parsed.
    """
    try:
        path.open("rb").close()  # to tell a directory from a missing file: safetensors raises the same error for both
        with safe_open(path, framework="np") as file:
            header = (file.metadata() or {}).get(key)
            if header is None:
                raise CheckpointError(f"{path}: {foreign} (no '{key}' header)")
            try:
                description = parse(header)
            except (ValueError, TypeError, KeyError) as error:
                raise CheckpointError(f"{path}: its description cannot be used: {error}") from error
            try:
                return description, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            except TypeError as error:  # a data type that numpy lacks, e.g. bfloat16
                raise CheckpointError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: a directory, not a file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from error


def find_checkpoint(path: str | os.PathLike | None = None) -> Path:
    """The checkpoint's file: `path`; the default one for None and ""; a shipped one for its name without suffix, e.g.
    "smalldepth_nc", unless the working directory has a file of that name."""
    if not path:
        return DEFAULT_CHECKPOINT
    path = Path(path)
    shipped = ASSETS / f"{path.name}.safetensors"
    return shipped if path.name == str(path) and not path.exists() and shipped.is_file() else path


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
        if self.description.form == "deploy" and set(self.golden) != {"image", "depth"}:
            raise CheckpointError(f"{self.path}: a deployment checkpoint without its golden image and depth")

    @property
    def onnx_path(self) -> Path:
        """Path of the ONNX file, whether it exists or not."""
        return self.path.with_suffix(".onnx")

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of names, types, shapes and values of the weights."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            value = self.weights[name]
            digest.update(f"{name}{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()

    @property
    def int8_path(self) -> Path:
        """Path of the int8 graph, whether it exists or not."""
        return self.path.with_suffix(".int8.onnx")

    def onnx_problem(self) -> str | None:
        """Why the ONNX file of this checkpoint cannot be used; None when it can."""
        problem = self._file_problem(self.onnx_path, self.description.onnx_sha256, "an exported graph")
        needed = self.description.onnx_weights
        if problem is None and needed and needed != self.path.name:
            return f"{self.onnx_path}: reads its weights from '{needed}', but the checkpoint is now called '{self.path.name}'"
        return problem

    def int8_problem(self) -> str | None:
        """Why the int8 graph of this checkpoint cannot be used; None when it can."""
        return self._file_problem(self.int8_path, self.description.int8_sha256, "an int8 graph")

    def _file_problem(self, path: Path, sha256: str, what: str) -> str | None:
        if not sha256:
            return f"{self.path} was saved without {what}"
        if not path.is_file():
            return f"{path}: no such file"
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return f"{path}: damaged, or of another checkpoint (SHA-256 differs from the one in {self.path.name})"
        return None


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
