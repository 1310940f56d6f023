"""Adds a layer of obstacles to the parameters of Nav2's local costmap. Part of `config/recipes/nav2.launch.py`.

Nav2 reads one parameter file. A second file would replace the costmap's list of layers, and with it the robot's other layers.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from fadepth_core.common.documents import as_object, read_yaml
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import write_atomically

#: Where the local costmap's parameters are.
_COSTMAP = ("local_costmap", "local_costmap", "ros__parameters")
#: Layers that must follow all layers of obstacles, because they use what those have marked.
_LAST = "inflation_layer"


def add_layer(nav2: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Nav2's parameters with the layers of a recipe added to the local costmap, before its inflation layer.

    Args:
        nav2: a parameter file of Nav2.
        recipe: a file with the same structure, whose `plugins` names the layers to add.

    Raises:
        DataError: one of them has no parameters of the local costmap, or Nav2's have other parameters for a layer of that name.
    """
    merged = deepcopy(nav2)
    costmap, added = _costmap(merged, "Nav2's parameters"), _costmap(recipe, "the recipe")
    plugins = list(costmap.get("plugins", []))
    for name in added["plugins"]:
        if name == _LAST:
            continue  # the recipe lists it to show the order
        if costmap.get(name, added[name]) != added[name]:
            raise DataError(f"{'.'.join(_COSTMAP)}.{name}: the local costmap has another layer of this name; rename it")
        costmap[name] = deepcopy(added[name])
        if name not in plugins:
            plugins.insert(plugins.index(_LAST) if _LAST in plugins else len(plugins), name)
    costmap["plugins"] = plugins
    return merged


def add_layer_to_file(nav2: Path, recipe: Path, target: Path) -> None:
    """Write the parameters of file `nav2` with the layers of file `recipe` to `target`.

    Raises:
        DataError: as `add_layer`, or a file cannot be read.
    """
    text = yaml.safe_dump(add_layer(*(as_object(read_yaml(path), path) for path in (nav2, recipe))), sort_keys=False)
    write_atomically(target, lambda path: Path(path).write_text(text))


def _costmap(parameters: dict[str, Any], name: str) -> dict[str, Any]:
    found: Any = parameters
    for key in _COSTMAP:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise DataError(f"{name}: {'.'.join(_COSTMAP)} is missing")
    return found
