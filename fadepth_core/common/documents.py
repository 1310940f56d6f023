"""Read text, JSON, YAML and tables of numbers that people write or programs generate.

Every failure is a `DataError` of one line that names the file, and the key where there is one. Files of Windows are read:
a byte order mark (UTF-8 or UTF-16) and line ends of carriage return and line feed.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fadepth_core.common.errors import DataError

#: Deepest nesting of lists and objects. No file of this project needs more than ten levels, and code that walks through
#: values recursively (`repr`, pydantic) fails at some hundreds.
_MAX_DEPTH = 64
#: Largest number of values of a YAML file. Aliases can stand for millions of values in a file of a few lines.
_MAX_YAML_VALUES = 1_000_000
#: Longer values are shortened in error messages.
_SHOWN = 60
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without byte order mark, or in UTF-16 with byte order mark.

    Raises:
        DataError: no such file, or the file cannot be read or is not text.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    try:
        return data.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8: byte {error.start} is invalid; save it as UTF-8") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Numbers too large for float64 are returned as infinity, and NaN is returned as NaN, because a key that nobody reads
    may have such a value. `number` refuses them.

    Raises:
        DataError: as `read_text`, or the file is not JSON, is nested too deeply, or states a key twice with two values.
    """
    return parse_json(read_text(path), path)


def parse_json(text: str, where: object) -> Any:
    """The value of a JSON text, see `read_json`; `where` names its source in error messages."""
    try:
        value = json.loads(text, parse_int=_whole_number, object_pairs_hook=_object)
    except RecursionError:
        raise DataError(f"{where}: not JSON: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {one_line(error)}") from None
    return _checked(value, where, "JSON")


def parse_object(text: str, where: object) -> dict[str, Any]:
    """The value of a JSON text that must be an object, see `parse_json`.

    Raises:
        DataError: as `read_json`, or it is not an object.
    """
    return as_object(parse_json(text, where), where)


def as_object(value: Any, where: object, hint: str = "") -> dict[str, Any]:
    """`value` as a JSON object; `where` names it in error messages, which end with `hint`.

    Raises:
        DataError: it is anything else.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be an object with keys, got {shown(value)}{hint}")
    return value


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; None if it is empty.

    Raises:
        DataError: as `read_text`, or the file is not YAML, is nested too deeply, has too many values, or states a key
            twice with two values.
    """
    return parse_yaml(read_text(path), path)


def parse_yaml(text: str, where: object) -> Any:
    """The value of a YAML text, see `read_yaml`; `where` names its source in error messages."""
    import yaml

    try:
        value = yaml.load(text, Loader=_yaml_loader())
    except RecursionError:
        raise DataError(f"{where}: not YAML: nested too deeply") from None
    # Besides YAMLError, the constructors of PyYAML raise these for values that do not fit their type: 2024-13-01, !!int ''.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise DataError(f"{where}: not YAML: {one_line(error)}") from None
    return _checked(value, where, "YAML", _MAX_YAML_VALUES)


def read_numbers(path: Path, unknown: bool = False) -> np.ndarray:
    """A table of finite numbers, float64 [rows, columns], from a text file with one row in each line.

    Columns are separated by white space, commas or semicolons. Text after # and empty lines are ignored.

    Args:
        unknown: a row may also consist of `nan` only, for values that are not known.

    Raises:
        DataError: as `read_text`, the file is not a table of numbers, or a number is not finite; the message names the line.
    """
    rows: list[list[float]] = []
    for line_number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").replace(";", " ").split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError as error:
            raise DataError(f"{path}, line {line_number}: not a table of numbers: {one_line(error)}") from None
        if not all(map(math.isfinite, row)) and not (unknown and all(map(math.isnan, row))):
            raise DataError(f"{path}, line {line_number}: a value is not a finite number")
        if rows and len(row) != len(rows[0]):
            raise DataError(
                f"{path}, line {line_number}: not a table of numbers: {len(row)} columns, the first line has {len(rows[0])}"
            )
        rows.append(row)
    return np.array(rows, np.float64).reshape(len(rows), -1) if rows else np.empty((0, 0))


def number(values: Mapping[str, Any], key: str, where: object) -> float:
    """The finite number that `values` has for `key`.

    Raises:
        KeyError: there is no such key.
        DataError: the value is text, true or false, not finite or no number at all.
    """
    return as_number(values[key], key, where)


def as_number(value: Any, key: str, where: object) -> float:
    """`value` as a finite number; `key` and `where` name it in error messages.

    Raises:
        DataError: it is text, true or false, not finite or no number at all.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{where}: {key} must be a number, got {shown(value)}")
    try:
        converted = float(value)
    except OverflowError:
        converted = math.inf
    if not math.isfinite(converted):
        raise DataError(f"{where}: {key} must be a finite number, got {shown(value)}")
    return converted


def whole_number(value: Any, key: str, where: object) -> int:
    """`value` as a whole number of at least 1; `key` and `where` name it in error messages.

    Raises:
        DataError: it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value < 2**53 or value != int(value):
        raise DataError(f"{where}: {key} must be a whole number of at least 1, got {shown(value)}")
    return int(value)


def shown(value: Any) -> str:
    """`repr(value)` in one line and shortened, for error messages."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more than 4300 digits, a nested value
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _whole_number(text: str) -> int | float:
    """A whole number of a JSON text; infinity if it does not fit in float64."""
    if len(text) > 310:  # more digits than the largest float64
        return math.copysign(math.inf, -1 if text[0] == "-" else 1)
    return _limited(int(text))


def _limited(value: int) -> int | float:
    try:
        float(value)
    except OverflowError:
        return math.copysign(math.inf, value)
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        for key, value in pairs:
            if values[key] != value:
                raise ValueError(f"key {shown(key)} occurs twice with two values")
    return values


def _yaml_loader() -> type:
    """The class that reads YAML. PyYAML is imported when needed, because the node runs without it."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            found: dict[Hashable, yaml.Node] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                before = found.setdefault((key.tag, key.value), value)
                if before is not value and not (isinstance(value, yaml.ScalarNode) and before.value == value.value):
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {shown(key.value)} occurs twice", key.start_mark
                    )
            return node

        def construct_yaml_int(self, node: yaml.ScalarNode) -> int | float:
            if len(node.value) > 310:
                return math.copysign(math.inf, -1 if node.value.startswith("-") else 1)
            return _limited(super().construct_yaml_int(node))

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    return Loader


def _checked(value: Any, where: object, kind: str, most: float = math.inf) -> Any:
    """`value`, after a check of its nesting and of the number of its values."""
    level, depth, count = [value], 0, 0
    while level:
        depth += 1
        count += len(level)
        if depth > _MAX_DEPTH:
            raise DataError(f"{where}: not {kind}: nested too deeply")
        if count > most:
            raise DataError(f"{where}: not {kind}: more than {most} values")
        containers = [item for item in level if isinstance(item, (dict, list, tuple, set))]
        if sum(map(len, containers)) > most:
            raise DataError(f"{where}: not {kind}: more than {most} values")
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return value


def one_line(error: Exception) -> str:
    """The message of an error in one line and shortened; the name of its type if it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 4 * _SHOWN else f"{text[: 4 * _SHOWN]}..."
