"""Finds the files that an ONNX graph reads, without the package onnx, which a robot need not have.

An ONNX file is a protobuf message. A tensor of it can be "external": it then names a file by a path that the runtime opens.
The path is the graph's, so a graph of unknown origin could make the runtime read any file. This module walks through the
messages that can contain tensors and collects these paths.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Fields that can contain tensors, by message: field number -> message in it (onnx.proto3).
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
#: Deepest nesting of messages; graphs of this project need 5.
_MAX_NESTING = 32
#: Most fields of a graph, which bounds the time of the walk to a few seconds; the int8 graph of SmallDepth has 20 000.
_MAX_FIELDS = 2_000_000


def external_files(model: bytes) -> set[str]:
    """The paths of all files that the tensors of a serialized ONNX model refer to.

    Raises:
        ValueError: it is not a protobuf message, is nested too deeply, or has too many fields.
    """
    found: set[str] = set()
    budget = iter(range(_MAX_FIELDS))
    pending = [("Model", memoryview(model), 0)]
    while pending:
        kind, message, nesting = pending.pop()
        if nesting > _MAX_NESTING:
            raise ValueError("nested too deeply")
        if kind == "Entry":
            texts = {number: bytes(value) for number, value in _fields(message, budget)}
            if texts.get(1) == b"location":
                found.add(texts.get(2, b"").decode(errors="replace"))
            continue
        inner = _MESSAGES[kind]
        for number, value in _fields(message, budget):
            if number in inner:
                pending.append((inner[number], value, nesting + 1))
    return found


def _fields(message: memoryview, budget: Iterator[int]) -> Iterator[tuple[int, memoryview]]:
    """Number and content of the fields that hold bytes, texts or messages. Raises ValueError if they do not fit.

    Args:
        budget: has an item for each field that may still be read.
    """
    position, end = 0, len(message)
    while position < end:
        if next(budget, None) is None:
            raise ValueError("it has too many fields")
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _, position = _varint(message, position)
            continue
        if wire_type == 2:
            length, position = _varint(message, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"field {number} has the unknown type {wire_type}")
        if length > end - position:
            raise ValueError(f"field {number} is longer than its message")
        if wire_type == 2:
            yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number does not end")
