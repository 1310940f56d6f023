"""Damaged checkpoints and graphs for `fuzz.py`."""

from __future__ import annotations

import functools
import json
import math
import struct
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fadepth_core.runtime.checkpoint import DEFAULT_CHECKPOINT, Checkpoint, CheckpointError, read_described
from fadepth_core.runtime.onnx_file import external_files
from fadepth_core.training.pose_checkpoint import read_description as read_pose_description
from fuzz import Target, damage

#: Values that no key expects, as JSON.
ODD_VALUES = (
    *("null", "true", "0", "-1", "1", "NaN", "Infinity", "-Infinity", "1e999", "1" + 400 * "0", "5e-324", "0.5", '""'),
    *("[]", "{}", "[1, 2]", '["a", "b"]', "[NaN, NaN]", "[64, 96.0]", "[1e300, 1e301]", 1000 * "[" + 1000 * "]"),
    *('"/etc/passwd"', '"../x.onnx"', '"a\\u0000b"', '"https://example.org/x"', '"' + 5000 * "x" + '"', '"\\ud800"'),
    *(
        '{"weights": "/tmp/x.pth"}',
        '{"pretrained": true}',
        '{"encoder": "hf_hub:someone/something"}',
        '{"encoder": []}',
    ),
    *('{"etm": {"variance": "weight"}}', '{"etm": {"branch_drop": 1e999}}', '{"etm": {"etm": {}}}', '{"etm": "etm#"}'),
    *('"unet"', '"hqdecv2"', '"training"', '"deploy"'),
)
KEYS = (
    *("format", "model", "form", "network_size", "depth_range", "pixel_mean", "pixel_std", "trained", "focal_length"),
    *("options", "provenance", "onnx_sha256", "onnx_weights", "int8_sha256", "start", "weights"),
)
DTYPES = ("F16", "F32", "F64", "BF16", "F8_E4M3", "I64", "U8", "U16", "BOOL", "C64", "F4", "")
SHAPES = ([], [0], [1], [64, 96, 3], [-1], [2**62, 2**62], [0, 2**62], [1] * 70, [1.5], "x", None)


@functools.cache
def _base() -> tuple[dict[str, str], dict, bytes]:
    """Of a small checkpoint: the description (key -> JSON), the entries of the tensors, and their bytes."""
    tensors = {
        "golden.image": np.zeros((32, 64, 3), np.uint8),
        "golden.depth": np.ones((32, 64), np.float32),
        "golden.confidence": np.ones((32, 64), np.float32),
        "downs.0.0.weight": np.ones((4, 3, 3, 3), np.float16),
        "downs.0.0.bias": np.zeros(4, np.float16),
    }
    data = save(tensors, {"fadepth": "{}"})
    header, body = _split(data)
    shipped, _ = _split(DEFAULT_CHECKPOINT.read_bytes())
    description = json.loads(shipped.pop("__metadata__")["fadepth"])
    header.pop("__metadata__")
    return {key: json.dumps(value) for key, value in description.items()}, header, body


def _split(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _text(description: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{key}": {value}' for key, value in description.items()) + "}"


def _file(text: str, entries: dict, body: bytes, key: str = "fadepth") -> bytes:
    header = json.dumps({"__metadata__": {key: text}, **entries}).encode()
    return struct.pack("<Q", len(header)) + header + body


def _odd_description(description: dict[str, str], keys: tuple[str, ...], rng: np.random.Generator) -> str:
    kind = rng.integers(0, 8)
    if kind == 0:
        return str(rng.choice(ODD_VALUES))
    if kind == 1:
        return damage(_text(description).encode(), rng, 2000).decode(errors="replace")
    for _ in range(rng.integers(1, 3)):
        key = str(rng.choice(keys))
        if rng.integers(0, 6):
            description[key] = str(rng.choice(ODD_VALUES))
        else:
            description.pop(key, None)
    text = _text(description)
    return text[:-1] + ', "model": "other"}' if rng.integers(0, 20) == 0 else text


def _make_checkpoint(rng: np.random.Generator) -> bytes:
    description, entries, body = _base()
    description, entries = dict(description), {name: dict(entry) for name, entry in entries.items()}
    kind = rng.integers(0, 10)
    if kind < 5:
        return _file(_odd_description(description, KEYS, rng), entries, body)
    if kind < 8:
        entry = entries[str(rng.choice(list(entries)))]
        change = rng.integers(0, 5)
        if change == 0:
            entry["dtype"] = str(rng.choice(DTYPES))
        elif change == 1:
            entry["shape"] = SHAPES[rng.integers(0, len(SHAPES))]
        elif change == 2:
            entry["data_offsets"] = [int(x) for x in rng.integers(-8, len(body) + 8, 2)]
        elif change == 3:  # two tensors at one place
            entry["data_offsets"] = entries["downs.0.0.bias"]["data_offsets"]
        else:
            entries.pop(str(rng.choice(list(entries))))
        return _file(_text(description), entries, body)
    whole = _file(_text(description), entries, body)
    if kind == 8:
        lengths = (0, 1, 2**20, 2**31, 2**32, 2**63, 2**64 - 1)
        length = lengths[rng.integers(0, len(lengths))]
        return struct.pack("<Q", length) + whole[8:]
    return damage(whole, rng, 1500)


_folder = tempfile.TemporaryDirectory(prefix="fuzz-checkpoints-")
_path = Path(_folder.name) / "net.safetensors"


def _checked(error: Exception, name: str) -> str:
    text = str(error)
    assert name in text
    assert "\n" not in text
    assert len(text) < 1000
    return "refused"


def _read_checkpoint(data: bytes) -> str:
    _path.write_bytes(data)
    try:
        checkpoint = Checkpoint(_path)
    except CheckpointError as error:
        return _checked(error, "net.safetensors")
    description = checkpoint.description
    assert not {"weights", "pretrained", "start"} & description.options.keys()
    assert "/" not in description.onnx_weights
    assert all(math.isfinite(x) for x in (*description.depth_range, *description.pixel_mean, *description.pixel_std))
    assert "\n" not in description.licence
    assert checkpoint.onnx_problem()  # there is no such file
    assert checkpoint.weights_sha256
    return "accepted"


def _read_good_checkpoint() -> None:
    description, entries, body = _base()
    _path.write_bytes(_file(_text(description), entries, body))
    assert Checkpoint(_path).weights["downs.0.0.weight"].shape == (4, 3, 3, 3)


# --------------------------------------------------------------------------------------------------- pose network's header

_POSE = {"format": "1", "network": '"small"', "size": "[64, 96]", "focal_length": "null"}


def _make_pose(rng: np.random.Generator) -> bytes:
    return _file(_odd_description(dict(_POSE), tuple(_POSE), rng), {}, b"", "fadepth_pose")


def _read_pose(data: bytes) -> str:
    _path.write_bytes(data)
    try:
        (name, size, _), _ = read_described(_path, "fadepth_pose", read_pose_description, "not a pose network")
    except CheckpointError as error:
        return _checked(error, "net.safetensors")
    assert isinstance(name, str)
    assert all(0 < side <= 4096 for side in size)
    return "accepted"


def _read_good_pose() -> None:
    assert _read_pose(_file(_text(_POSE), {}, b"", "fadepth_pose")) == "accepted"


# ------------------------------------------------------------------------------------------------------------------ graphs


@functools.cache
def _graph() -> bytes:
    return DEFAULT_CHECKPOINT.with_suffix(".onnx").read_bytes()[-20_000:]


@functools.cache
def _small_graph() -> bytes:
    import onnx

    value = onnx.numpy_helper.from_array(np.ones((4, 4), np.float16), "w")
    onnx.external_data_helper.set_external_data(value, "net.safetensors", 0, 32)
    value.ClearField("raw_data")
    node = onnx.helper.make_node("Constant", [], ["c"], value=value)
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [value])).SerializeToString()


def _make_graph(rng: np.random.Generator) -> bytes:
    return damage(_small_graph() if rng.integers(0, 4) else _graph(), rng, 200)


def _read_graph(data: bytes) -> str:
    try:
        files = external_files(data)
    except ValueError as error:
        return "refused" if len(str(error)) < 200 else "too long a text"
    return "accepted" if files else "without files"


def _read_good_graph() -> None:
    assert external_files(_small_graph()) == {"net.safetensors"}


TARGETS = (
    Target("checkpoint", _make_checkpoint, _read_checkpoint, _read_good_checkpoint),
    Target("pose_network", _make_pose, _read_pose, _read_good_pose),
    Target("graph", _make_graph, _read_graph, _read_good_graph),
)
