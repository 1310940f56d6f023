#!/usr/bin/env python3
"""Write the tables in settings.md from the classes in fadepth_core/training/config.py. `make docs` runs this first.

    python docs/settings.py

The source is parsed, not imported, so that building the documentation needs neither torch nor pydantic.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sections import replace_section

PAGE = Path(__file__).with_name("settings.md")
SOURCE = PAGE.resolve().parents[1] / "fadepth_core" / "training" / "config.py"
BEGIN, END = "<!-- tables: written by docs/settings.py -->", "<!-- end of tables -->"

#: Prefix of the keys -> classes with the settings, of which the first one describes the section.
SECTIONS = {
    "": ("TrainConfig",),
    "data": ("DataConfig",),
    "data.train.N": ("TrainingSourceConfig",),
    "data.augment": ("AugmentationConfig",),
    "model": ("ModelConfig",),
    "model.etm": ("ETMSettings",),
    "pose": ("PoseConfig",),
    "loss": ("LossConfig",),
    "loss.base": ("BaseLossConfig",),
    "loss.levels.NAME": ("LevelConfig",),
    "teacher": ("TeacherConfig", "_FeatureTeacherConfig", "CachedTeacherConfig"),
    "optimizer": ("OptimizerConfig",),
    "schedule": ("ScheduleConfig",),
    "validation": ("ValidationConfig", "EvaluationConfig"),
    "evaluation": ("EvaluationConfig",),
    "log": ("LogConfig",),
}
_LIMITS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def fields(section: ast.ClassDef) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    """Name, annotation and value of each setting; constants of the class and sections of their own are left out."""
    for node in section.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        annotation = ast.unparse(node.annotation)
        own_section = isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("Config")
        if not own_section and not annotation.startswith("ClassVar"):
            yield node.target.id, node.annotation, node.value


def row(key: str, annotation: ast.expr, value: ast.expr | None, without: str) -> str:
    """One line of a table; `without` is shown for a setting that has no default."""
    arguments: dict[str, str] = {}
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        arguments = {word.arg: ast.unparse(word.value) for word in value.keywords}
        value = value.args[0] if value.args else None
    default = without if value is None else f"`{_yaml(value)}`"
    choices = [ast.unparse(item) for item in _literals(annotation)]
    allowed = [f"`{choice.strip(chr(39))}`" for choice in choices]
    allowed += [text.format(arguments[name]) for name, text in _LIMITS.items() if name in arguments]
    meaning = ast.literal_eval(arguments["description"]) if "description" in arguments else ""
    return "| " + " | ".join((f"`{key}`", default, ", ".join(allowed), meaning.replace("|", "\\|"))) + " |"


def _literals(annotation: ast.expr) -> list[ast.expr]:
    """The values of `Literal[...]`; none if they are computed."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return [value for value in values if isinstance(value, ast.Constant)]
    return []


def _yaml(value: ast.expr) -> str:
    """A default as it is written in a configuration."""
    if isinstance(value, ast.Constant):
        if value.value is None:
            return "null"
        return str(value.value).lower() if isinstance(value.value, bool) else str(value.value)
    if isinstance(value, ast.Tuple):
        return f"[{', '.join(map(_yaml, value.elts))}]"
    if isinstance(value, ast.Call):  # a path
        return ast.literal_eval(value.args[0])
    if isinstance(value, ast.List):
        return "[{name: synthetic}]"
    return "the paper's" if isinstance(value, ast.DictComp) else ast.unparse(value)


def tables(source: str) -> str:
    """All sections in Markdown."""
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    parts = []
    for prefix, names in SECTIONS.items():
        docstring = ast.get_docstring(classes[names[0]]).split("\n\n")[0].replace("\n", " ")
        parts += [f"## {prefix or 'The run'}", "", docstring, ""]
        parts += ["| setting | default | values | meaning |", "|---|---|---|---|"]
        for name in names:
            # Only some kinds of this section have the settings of the further classes.
            without = "required" if name == names[0] else "not set"
            for field, annotation, value in fields(classes[name]):
                parts.append(row(f"{prefix}.{field}".lstrip("."), annotation, value, without))
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    replace_section(PAGE, BEGIN, END, tables(SOURCE.read_text(encoding="utf-8")))
