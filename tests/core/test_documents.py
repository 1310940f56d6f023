"""Files that people write: text, JSON, YAML and tables are read, or refused in one line that names file and key."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fadepth_core.common.camera import PinholeCamera, check_rotations, read_fps
from fadepth_core.common.documents import (
    number,
    parse_yaml,
    read_json,
    read_numbers,
    read_text,
    read_yaml,
    whole_number,
)
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_cache, user_path, write_atomically

HUGE = "1" + "0" * 400


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_files_of_every_editor_are_read(tmp_path, encoding, line_end):
    path = tmp_path / "file"
    path.write_bytes(f'{{"fx":{line_end}1.5, "name": "Flur ä"}}{line_end}'.encode(encoding))
    assert read_json(path) == {"fx": 1.5, "name": "Flur ä"}
    assert read_yaml(path) == {"fx": 1.5, "name": "Flur ä"}
    path.write_bytes(line_end.join(["1 2 # first", "", "3, 4", "5;6", ""]).encode(encoding))
    np.testing.assert_array_equal(read_numbers(path), [[1, 2], [3, 4], [5, 6]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON: "),
        (b"", "not JSON: "),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b"[" * 500 + b"]" * 500, "not JSON: nested too deeply"),
        (b'{"a":' * 100_000, "not JSON: nested too deeply"),
        (b'{"fx": 1, "fx": 2}', "key 'fx' occurs twice with two values"),
        (b'{"name": "\xff\xfe"}', "not text in UTF-8: byte 10 is invalid"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"\x00\x01", "not JSON: "),
    ],
)
def test_invalid_json_is_refused_in_one_line(tmp_path, data, message):
    path = tmp_path / "camera.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_key_that_occurs_twice_with_one_value_is_harmless(tmp_path):
    path = tmp_path / "camera.json"
    path.write_text('{"fx": 1, "fx": 1}')
    assert read_json(path) == {"fx": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "while parsing"),
        ("[" * 5000, "nested too deeply"),
        ("- " * 500 + "1", "nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        (
            "\n".join(["a0: &a0 [0]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))]),
            "values",
        ),
        ("lr: 1\nlr: 2", "key 'lr' occurs twice"),
        ("date: 2024-13-45", "month must be in"),
        ("a: !!int ''", "not YAML"),
        ("a: !!bool maybe", "not YAML"),
        ("a: !!timestamp no", "not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_invalid_yaml_is_refused_in_one_line(text, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_yaml(text, "run.yaml")
    assert str(caught.value).startswith("run.yaml: not YAML: ")
    assert "\n" not in str(caught.value)


def test_merged_yaml_may_replace_a_key():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "run.yaml")["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("value", ["1.5", True, None, [1], {}, float("nan"), float("inf"), 10**400])
def test_a_number_is_a_finite_number(value):
    with pytest.raises(DataError, match=r"camera\.json: fx must be a (finite )?number, got "):
        number({"fx": value}, "fx", "camera.json")


@pytest.mark.parametrize("text", [HUGE, "-" + HUGE, "1e999", "NaN", "-Infinity", "9" * 5000])
def test_numbers_that_json_allows_but_float_does_not_are_refused_where_they_are_used(tmp_path, text):
    path = tmp_path / "camera.json"
    path.write_text(f'{{"fx": {text}, "comment": {text}}}')
    values = read_json(path)
    with pytest.raises(DataError, match="fx must be a finite number"):
        number(values, "fx", path)
    assert not np.isfinite(
        parse_yaml(text.replace("1e999", ".inf").replace("NaN", ".nan").replace("Infinity", ".inf"), "x")
    )


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", float("nan"), float("inf"), 10**400, [2]])
def test_a_whole_number_is_at_least_one(value):
    with pytest.raises(DataError, match="stride must be a whole number of at least 1"):
        whole_number(value, "stride", "camera.json")
    assert whole_number(640.0, "width", "camera.json") == 640


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n3\n", r"line 2: not a table of numbers: 1 columns, the first line has 2"),
        ("time speed\n1 2\n", "line 1: not a table of numbers: could not convert"),
        ("1\nnan\n", "line 2: a value is not a finite number"),
        ("1e999\n", "line 1: a value is not a finite number"),
    ],
)
def test_invalid_tables_name_the_line(tmp_path, text, message):
    path = tmp_path / "poses.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_numbers(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    for path, message in ((tmp_path / "none", "no such file"), (tmp_path, "Is a directory"), (Path("a\0b"), "null")):
        with pytest.raises(DataError, match=message):
            read_text(path)


# ------------------------------------------------------------------------------------------------------------- cameras


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fx": 0}, "fx must be positive, got 0"),
        ({"fy": -525}, "fy must be positive"),
        ({"fx": float("nan")}, "fx must be a finite number"),
        ({"cy": float("inf")}, "cy must be a finite number"),
        ({"fx": 0.58, "fy": 1.92, "cx": 0.5, "cy": 0.5}, "fx 0.58 is no focal length in pixels; multiply .*normalised"),
        ({"cx": 0.5, "cy": 0.5}, r"cx 0\.5 and cy 0\.5 are not in pixels"),
        ({"fx": 3.6, "fy": 3.6}, "fx 3.6 is too small for pictures of 640x480 pixels; .*millimetres"),
        ({"fx": 1e8}, "too large"),
        ({"cx": 1920, "cy": 1080}, r"principal point \(1920, 1080\) is far outside pictures of 640x480"),
        ({"cy": -5000}, "far outside"),
    ],
)
def test_intrinsics_that_no_camera_has_are_refused_with_a_hint(change, message):
    values = {"fx": 525.0, "fy": 525.0, "cx": 319.5, "cy": 239.5} | change
    with pytest.raises(DataError, match=message):
        PinholeCamera(**values, width=640, height=480)


@pytest.mark.parametrize(
    "values",
    [(525, 525, 319.5, 239.5), (60, 50, 320, 240), (60_000, 60_000, 320, 240), (525, 480, -100, 700), (525, 525, 0, 0)],
)
def test_wide_and_narrow_and_cropped_cameras_are_accepted(values):
    assert PinholeCamera(*values, width=640, height=480).matrix[0, 2] == values[2]


def test_intrinsics_of_the_stored_size_of_a_rotated_picture_are_refused_with_a_hint():
    values = {"fx": 525, "fy": 525, "cx": 319.5, "cy": 239.5, "width": 640, "height": 480}
    with pytest.raises(DataError, match=r"for 640x480 pixels, but its picture has 480x640; .* as it is shown"):
        PinholeCamera.from_values(values, "camera.json", (640, 480))


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf"), 1e-300, 1e300, "25", True, None])
def test_a_frame_rate_is_positive_and_finite(fps):
    with pytest.raises(DataError, match="fps"):
        read_fps(fps, "camera.json")


@pytest.mark.parametrize(
    "wrong", [np.eye(3) * 2, np.diag([1.0, 1, -1]), np.zeros((3, 3)), np.full((3, 3), np.nan), np.full((3, 3), 1e300)]
)
def test_a_matrix_that_is_no_rotation_is_refused_with_its_number(wrong):
    with pytest.raises(DataError, match=r"poses\.txt: the left 3x3 part of pose 2 is not a rotation"):
        check_rotations(np.stack([np.eye(3), wrong]), "poses.txt")
    turn = np.array([[0.707, 0, 0.707], [0, 1, 0], [-0.707, 0, 0.707]])  # three decimals
    check_rotations(turn[None], "poses.txt")


# --------------------------------------------------------------------------------------------------------------- files


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_has_the_users(tmp_path):
    private = tmp_path / "private.json"
    private.write_text("old")
    private.chmod(0o600)
    before = os.umask(0o027)
    try:
        for path in (private, tmp_path / "new.json"):
            write_atomically(path, lambda part: Path(part).write_text("new"))
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (private, tmp_path / "new.json")]
    assert modes == [0o600, 0o640]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json", "private.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / ("n" * 250)
    path.write_text("old")

    def fail(part):
        Path(part).write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(path.name, "old")]
    write_atomically(path, lambda part: Path(part).write_text(json.dumps(1)))
    assert path.read_text() == "1"


def test_paths_of_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/clips") == tmp_path / "clips"
    assert user_path(".").name == tmp_path.name
    assert user_path("clips/..") == tmp_path
    assert user_path("clips/hall") == Path("clips/hall")
    assert user_path("~no_such_user_here/x") == Path("~no_such_user_here/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == tmp_path / ".cache" / "fadepth"
