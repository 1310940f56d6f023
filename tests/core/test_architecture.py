"""Which package may import which (docs/architecture.md). Reads the source files only, imports nothing of the project."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

#: What each package imports. "core" is `fadepth_core/__init__.py`, which imports what is asked for.
ALLOWED = {
    "common": set(),
    "geometry": set(),
    "models": {"common", "geometry"},
    "losses": {"common", "geometry", "models"},
    "synthetic": {"common"},
    "data": {"common", "geometry", "synthetic"},
    "labels": {"common", "data", "geometry"},
    "runtime": {"common", "geometry", "models"},
    "evaluation": {"common", "data", "geometry", "losses", "runtime"},
    "training": {"common", "data", "evaluation", "geometry", "losses", "models", "runtime"},
    "cli": {"common", "core", "data", "evaluation", "geometry", "labels", "models", "runtime", "training"},
    "core": {"common", "runtime"},
    "fadepth_ros": {"common", "core", "runtime"},
}
#: A module named in a string, for `importlib.import_module`: "fadepth_core.data.kitti:KittiDataset".
MODULE_IN_STRING = re.compile(r"(fadepth_core|fadepth_ros)(\.\w+)+(:\w+)?")


def files() -> Iterator[Path]:
    for package in ("fadepth_core", "fadepth_ros"):
        yield from sorted((ROOT / package).rglob("*.py"))


def module_of(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


class Import(NamedTuple):
    """An import of one of the project's modules. `in_string`: by its name in a string, when it is needed."""

    file: Path
    line: int
    target: str
    in_string: bool

    @property
    def source(self) -> str:
        return module_of(self.file)

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


@cache
def imports() -> list[Import]:
    """All imports of the project's own modules, also those inside functions."""
    known = {module_of(file) for file in files()}
    found = []
    for file in files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno}: relative import; write the module's whole name"
                # `from package import x`: x may be a module or a name in the package.
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = [node.value.partition(":")[0]] if MODULE_IN_STRING.fullmatch(node.value) else []
            else:
                continue
            for name in names:
                target = name if name in known else name.rpartition(".")[0]
                if target in known:
                    found.append(Import(file, node.lineno, target, in_string=isinstance(node, ast.Constant)))
    return found


def package_of(module: str) -> str:
    top, _, rest = module.partition(".")
    if top == "fadepth_ros":
        return top
    return {"": "core", "__main__": "cli"}.get(rest, rest.partition(".")[0])


def test_packages_import_only_what_they_may():
    wrong = []
    for found in imports():
        source, target = package_of(found.source), package_of(found.target)
        assert source in ALLOWED, f"{found}: package {source} is new; add what it may import to ALLOWED"
        if target != source and target not in ALLOWED[source]:
            wrong.append(f"{found}: {source} must not import {target} ({found.target})")
    assert not wrong, "\n".join(["imports against docs/architecture.md, section 'Imports and sizes':", *wrong])


def test_every_allowed_import_is_used():
    """So that an import that was removed does not come back unnoticed."""
    used = defaultdict(set)
    for found in imports():
        used[package_of(found.source)].add(package_of(found.target))
    unused = {package: allowed - used[package] for package, allowed in ALLOWED.items() if allowed - used[package]}
    assert not unused, f"remove from ALLOWED: {unused}"


def test_packages_have_no_circles():
    assert_no_circle((package_of(found.source), package_of(found.target)) for found in imports())


def test_modules_have_no_circles():
    """A registry names its modules in strings, and they may import the registry's package."""
    assert_no_circle((found.source, found.target) for found in imports() if not found.in_string)


def assert_no_circle(arrows: Iterable[tuple[str, str]]) -> None:
    graph = defaultdict(set)
    for source, target in arrows:
        if source != target:
            graph[source].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")
