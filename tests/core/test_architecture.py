"""Which package may import which (docs/architecture.md), and who may use private names.

Reads the source files only, imports nothing of the project.
"""

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
    "messages": {"common"},
    "models": {"common", "geometry"},
    "losses": {"common", "geometry", "models"},
    "rendering": {"common"},
    "synthetic": {"common", "rendering"},
    "data": {"common", "geometry", "synthetic"},
    "labels": {"common", "data", "messages"},
    "runtime": {"common", "geometry", "messages", "models"},
    "evaluation": {"common", "data", "geometry", "losses", "messages", "models", "runtime"},
    "training": {"common", "data", "evaluation", "geometry", "losses", "models", "runtime"},
    "adaptation": {"common", "data", "evaluation", "labels", "runtime", "training"},
    "cli": {
        "adaptation",
        "common",
        "core",
        "data",
        "evaluation",
        "geometry",
        "labels",
        "models",
        "runtime",
        "training",
    },
    "core": {"common", "runtime"},
    "fadepth_ros": {"common", "core", "messages", "runtime"},
}
#: A module named in a string, for `importlib.import_module`: "fadepth_core.data.kitti:KittiDataset".
MODULE_IN_STRING = re.compile(r"(fadepth_core|fadepth_ros)(\.\w+)+(:\w+)?")

#: Replaces parts of Torch-TensorRT that have no public name.
REPLACES_PRIVATE = [ROOT / "tests/core/tensorrt_without_gpu.py"]
#: Public in spite of the underscore.
NAMED_TUPLE = ("_replace", "_asdict", "_fields", "_make")


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def files() -> Iterator[Path]:
    return python_files("fadepth_core", "fadepth_ros")


OUR_MODULES = {"fadepth_core", "fadepth_ros", *(file.stem for file in python_files("tests", "benchmarks"))}


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
    name = rest.partition(".")[0]
    return {"": "core", "__main__": "cli"}.get(name, "cli" if name.startswith("cli_") else name)


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


def test_private_names_stay_in_their_module():
    """No file imports a name that starts with "_", and tests and scripts use none in other ways: what they need is
    public."""
    scripts = [file for file in python_files("tests", "benchmarks", "training") if file not in REPLACES_PRIVATE]
    wrong = [use for file in files() for use in private_uses(file, imports_only=True)]
    wrong += [use for file in scripts for use in private_uses(file)]
    assert not wrong, "\n".join(["private names of other modules or objects:", *wrong])


def private_uses(file: Path, imports_only: bool = False) -> Iterator[str]:
    """Imports, attributes, and names given to `setattr` and the like that are private to another module or object."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in OUR_MODULES:
            names = [alias.name for alias in node.names]
        elif imports_only:
            continue
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            names = [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("getattr", "setattr"):
            # setattr(object, "name", value), and pytest's setattr("module.name", value)
            strings = (arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant))
            names = [text.rpartition(".")[2] for text in strings if isinstance(text, str)]
        else:
            continue
        for name in names:
            if re.match("_[^_]", name) and name not in NAMED_TUPLE:
                yield f"{file.relative_to(ROOT)}:{node.lineno}: {name}"


def assert_no_circle(arrows: Iterable[tuple[str, str]]) -> None:
    graph = defaultdict(set)
    for source, target in arrows:
        if source != target:
            graph[source].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")
