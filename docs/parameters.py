#!/usr/bin/env python3
"""Write the table in parameters.md from the declarations in fadepth_ros/parameters.py. `make docs` runs this first.

    python docs/parameters.py

Needs rclpy, which the package's extra `ros` brings.
"""

# ruff: noqa: E402 (runs from a clone that was never installed)

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).with_name("parameters.md")
sys.path.insert(0, str(PAGE.resolve().parents[1]))

from fadepth_ros.parameters import SPECS, Spec
from sections import replace_section

BEGIN, END = "<!-- table: written by docs/parameters.py -->", "<!-- end of table -->"
_TYPES = {bool: "bool", int: "integer", float: "double", str: "string"}


def row(spec: Spec) -> str:
    """One line of the table."""
    default = spec.default
    kind = f"{_TYPES[type(default[0])]} list" if isinstance(default, list) else _TYPES[type(default)]
    shown = str(default).lower() if isinstance(default, bool) else str(default).replace("'", '"')
    allowed = ""
    if spec.choices:
        allowed = ", ".join(f"`{choice}`" for choice in spec.choices)
    elif spec.limits:
        allowed = "{:g} to {:g}".format(*spec.limits)
    cells = (f"`{spec.name}`", kind, f"`{shown}`" if shown else "empty", allowed, "yes" if spec.live else "no")
    return " | ".join(("", *cells, spec.description.replace("|", "\\|"), "")).strip()


def table() -> str:
    """The table of all parameters in Markdown."""
    head = ["| parameter | type | default | values | while active | meaning |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *(row(spec) for spec in SPECS)])


if __name__ == "__main__":
    replace_section(PAGE, BEGIN, END, table())
