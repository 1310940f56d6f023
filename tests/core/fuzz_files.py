"""Damaged files for `fuzz.py`: camera.json, index.json, tables of numbers, YAML configurations and `--set`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import yaml

from fadepth_core.common.documents import read_numbers
from fadepth_core.common.errors import DataError
from fadepth_core.data.folder import read_index
from fadepth_core.data.video import read_camera
from fadepth_core.training.config import ConfigError, TrainConfig, load_config
from fuzz import Target, damage

_FOLDER = Path(tempfile.mkdtemp(prefix="fadepth-fuzz-"))
CAMERA = {
    "fx": 100.0,
    "fy": 102.0,
    "cx": 60.0,
    "cy": 44.0,
    "fps": 10,
    "width": 128,
    "height": 96,
    "stride": 1,
    "speed": [1.0],
}
INDEX = [{"id": "a", "rgb": "a.png", "depth": "d.png", "fx": 100.0, "fy": 102.0, "cx": 60.0, "cy": 44.0, "group": "x"}]
CONFIG = TrainConfig().model_dump(mode="json", include={"seed", "output", "data", "optimizer", "teacher", "provenance"})
#: Values that a file may have in place of any other.
VALUES = (
    *(
        '"1.5"',
        "true",
        "null",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "1" + "0" * 400,
        "9" * 5000,
        "-1",
        "0",
        "0.5",
        "1e-320",
    ),
    *(
        "[]",
        "{}",
        "[[1, 2]]",
        '{"fx": 1, "fx": 2}',
        "[" * 3000,
        "[" * 70 + "]" * 70,
        '"\\ud800"',
        '"a\\u0000b"',
        "1e308",
        "",
        ",",
    ),
)
#: The same for YAML.
YAML_VALUES = (
    *(value for value in VALUES if len(value) < 2000),
    *("[" * 300, "9" * 5000),
    *(
        "!!int ''",
        "!!bool x",
        "!!float x",
        "!!timestamp x",
        "!!binary x",
        "!!python/name:os.system",
        "2024-13-45",
        "1_0",
        "0x1f",
    ),
    *(
        "&a [*a]",
        "*b",
        "{<<: 1}",
        "? [1]",
        "1:60:60",
        ".inf",
        ".NaN",
        "- - -",
        "~",
        "=",
        "|",
        "'",
        "%YAML 9",
        "\t",
        "\x07",
    ),
)
PREFIXES = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0", b"\r\n", b"")


def _replace_value(values, rng, choices):
    """JSON text of `values` with one value, anywhere in it, replaced."""
    text, mark = None, "\N{SNOWMAN}"
    copy = json.loads(json.dumps(values))
    node, key = copy, None
    while isinstance(node, (dict, list)) and len(node):
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key, parent = keys[int(rng.integers(0, len(keys)))], node
        node = node[key]
        if rng.integers(0, 3) == 0:
            break
    parent[key] = mark
    text = json.dumps(copy, ensure_ascii=False)
    return text.replace(f'"{mark}"', str(rng.choice(choices))).encode("utf-8", "surrogatepass")


def _make_file(values, choices):
    text = json.dumps(values).encode()

    def make(rng):
        kind = rng.integers(0, 8)
        if kind < 3:
            return damage(text, rng, header=len(text))
        if kind < 7:
            return _replace_value(values, rng, choices)
        return PREFIXES[rng.integers(0, len(PREFIXES))] + text

    return make


def _refusal(read):
    """How `read` ended."""
    try:
        read()
    except (DataError, ConfigError) as error:
        message = str(error)
    else:
        return "accepted"
    assert 0 < len(message) < 20_000
    return "refused"


def _write(name, data):
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _read_camera(data):
    def read():
        matrix, _ = read_camera(_write("camera.json", data), (96, 128), Path("clip"))
        assert np.isfinite(matrix).all()
        assert (matrix[[0, 1], [0, 1]] >= 2).all()

    return _refusal(read)


def _read_index(data):
    _write("index.json", data)
    return _refusal(lambda: [entry.camera.matrix for entry in read_index(_FOLDER)])


def _read_table(data):
    path = _write("poses.txt", data)
    return _refusal(lambda: np.testing.assert_array_equal(np.isfinite(read_numbers(path)), True))


def _make_table(rng):
    return damage(b"1.0 0 0 -2e-3\n0.5 1 2 3 # a comment\r\n0 0 1 1\n", rng)


def _check_config(read):
    """Accepted numbers are finite: a run with NaN as learning rate would be lost."""

    def checked():
        yaml.safe_dump(read().model_dump(mode="json"))

    return _refusal(checked)


def _read_config(data):
    path = _write("run.yaml", data)
    return _check_config(lambda: load_config(path, []))


_KEYS = (
    "optimizer.lr",
    "seed",
    "data.size",
    "data.train.0.root",
    "data.train",
    "output",
    "loss.levels",
    "model.etm",
    "teacher",
    "x.y",
)


def _make_override(rng):
    key = str(rng.choice(_KEYS)).encode()
    value = str(rng.choice(YAML_VALUES)).encode("utf-8", "surrogatepass")
    text = key + b"=" + value
    return (damage(text, rng) if rng.integers(0, 3) == 0 else text).decode("utf-8", "surrogateescape")


def _read_override(text):
    return _check_config(lambda: load_config(None, [text]))


def _good(read, data):
    def check():
        assert read(data) == "accepted"

    return check


TARGETS = (
    Target("camera_json", _make_file(CAMERA, VALUES), _read_camera, _good(_read_camera, json.dumps(CAMERA).encode())),
    Target("index_json", _make_file(INDEX, VALUES), _read_index, _good(_read_index, json.dumps(INDEX).encode())),
    Target("table", _make_table, _read_table, _good(_read_table, b"1 2\n3 4\n")),
    Target("yaml", _make_file(CONFIG, YAML_VALUES), _read_config, _good(_read_config, json.dumps(CONFIG).encode())),
    Target("set", _make_override, _read_override, _good(_read_override, "optimizer.lr=1e-4")),
)
