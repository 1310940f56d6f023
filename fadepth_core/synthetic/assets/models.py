"""Load the models of a folder and assign each to a role in a scene, e.g. vehicle or furniture, by its name and size."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.synthetic.assets.meshes import Part, bounds
from fadepth_core.synthetic.assets.sdf import Library, read_sdf
from fadepth_core.synthetic.assets.stage import Atlas, Placements, Stage, build_stage

Random = np.random.Generator
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Role:
    """Conditions that a model must meet to have a role in a scene.

    Attributes:
        names: regular expression that must match a part of the model's name, ignoring case.
        size: smallest and largest allowed size, metres.
        upright: true: `size` limits the height. False: it limits the longest horizontal side.
    """

    names: str
    size: tuple[float, float]
    upright: bool = False


def _word(names: str) -> str:
    """Regular expression for whole words, i.e. without letters before and after."""
    return rf"(?<![a-z])({names})(?![a-z])"


#: Roles in a street. A model gets the first role whose name and size match.
STREET = {
    "clutter": Role(
        r"barrel|jersey|dumpster|mail_?box|post_?box|hydrant|trash|bollard|cinder_block|cardboard_box|fountain|pallet|crate|"
        r"bus_?stop|brick_box|utility_cart|planter|" + _word(r"\w*cone|bench"),
        (0.25, 6),
    ),
    "person": Role(r"person|pedestrian|people|woman|walking|" + _word("man"), (1.2, 2.3), True),
    "tree": Role(r"tree|birch|palm|bush|" + _word("oak|pine"), (1.5, 25), True),
    "pole": Role(
        r"lamp_?post|street_?l(amp|ight)|sign|stop_light_post|(telephone|power)_pole|traffic_?light", (1.2, 14), True
    ),
    "vehicle": Role(
        r"hatchback|pickup|sedan|prius|ambulance|truck|lorry|" + _word("car|suv|bus|van|taxi|jeep"), (2.6, 14)
    ),
    "building": Role(
        r"^(?!.*collapsed).*(house|apartment|office|building|school|shop|store|salon|station|restaurant|fast_?food|hotel|"
        r"church|cafe|bank|hospital|villa|cottage|barn)",
        (4.5, 36),
    ),
}
#: Role in a room: furniture that stands on the floor.
ROOM = {
    "furniture": Role(
        r"sofa|couch|chair|stool|table(?!t|ware)|desk(?!portrait)|cabinet|wardrobe|shelf|rack|refrigerator|fridge|oven|"
        r"cooking|night_?stand|trash|plant(?![a-z])|vase|bucket|clutter|cardboard|pallet|trolley|_cart|fitness|dumbbell|"
        r"bicycle|toilet|drawer|" + _word("bed|bin|ball|bench|sink"),
        (0.15, 3.2),
    ),
}


@dataclass
class Model:
    """A model in the scenes' axes, with the centre of its base at the origin.

    Attributes:
        name: name of its folder or file.
        stage: its geometry and materials.
        extent: size along x, y, z, metres.
    """

    name: str
    stage: Stage
    extent: np.ndarray

    def place(
        self, rng: Random, placements: Placements, position: Sequence[float], yaw: float,
        scale: float | Sequence[float] = 1.0, *, chroma: float = 0.04, paint: bool = False, glossy: bool = True, mover:
            int = 0,
    ) -> None:  # fmt: skip
        """Add the model to a scene with random brightness, hue and gloss.

        Args:
            rng: draws them.
            placements: the models of the scene.
            position, yaw, scale, mover: see `Placements.add`.
            chroma: standard deviation of the change of hue.
            paint: whether the areas that the model's pictures mark as painted get a random car colour.
            glossy: whether the model may be slightly reflective.
        """
        count = len(self.stage.painted)
        tints = np.exp(rng.normal(0, chroma, 3) + rng.normal(-0.1, 0.25)) * np.ones((count, 3))
        if paint and self.stage.painted.any():
            tints[self.stage.painted] = np.array(_PAINTS[rng.choice(len(_PAINTS), p=_PAINT_SHARES)]) * rng.uniform(
                0.7, 1.2
            )
        placements.add(self.stage, position, yaw, scale, tints, rng.uniform(0, 0.05) * glossy, mover)


#: Linear colours of vehicles and their shares: white, silver, grey, black, blue, red, brown, green, yellow.
_PAINTS = (
    (0.8, 0.8, 0.78), (0.42, 0.43, 0.44), (0.14, 0.145, 0.15), (0.02, 0.02, 0.022), (0.03, 0.08, 0.3), (0.4, 0.02, 0.02),
    (0.2, 0.14, 0.09), (0.04, 0.15, 0.07), (0.7, 0.45, 0.04),
)  # fmt: skip
_PAINT_SHARES = (0.25, 0.16, 0.18, 0.17, 0.09, 0.08, 0.03, 0.02, 0.02)


def load_models(library: Library, roles: Mapping[str, Role], atlas: Atlas) -> dict[str, list[Model]]:
    """Load the models of a folder that have one of the roles.

    A model is a folder with an SDF file, or a model file outside such folders. Models that cannot be loaded, or whose
    size fits no role, are left out with a warning.

    Args:
        library: the folder.
        roles: roles by name.
        atlas: the pictures of the models are added to it.

    Returns:
        The models of each role, by the role's name.

    Raises:
        ImportError: trimesh, or a package it needs for a format, is missing.
        DataError: no model could be loaded, or none has a role.
    """
    patterns = {name: re.compile(role.names, re.IGNORECASE) for name, role in roles.items()}
    files = {name: library.model_file(folder) for name, folder in library.folders.items()}
    for path in library.files:
        files.setdefault(path.stem, path)
    models: dict[str, list[Model]] = {role: [] for role in roles}
    failed = 0
    for name, file in sorted(files.items()):
        matching = [role for role in roles if patterns[role].search(name)]
        if not matching or file is None:
            continue
        try:
            parts = read_sdf(file, library) if file.suffix == ".sdf" else z_up(library.model(file), file)
        except DataError as error:
            failed += 1
            _log.warning("%s, left out", error)
            continue
        size = np.ptp(bounds(parts), axis=0)
        role = next((role for role in matching if _has_size(roles[role], size)), None)
        if role is None:
            sizes = size.round(2).tolist()
            _log.warning("%s: a size of %s m does not fit role %s, left out", file, sizes, " or ".join(matching))
        else:
            models[role].append(_build_model(name, parts, atlas))
    if not any(models.values()):
        why = f"{failed} could not be loaded" if failed else "none has a name and size of a role"
        raise DataError(f"{library.root}: of its {len(files)} models, {why}; roles are {', '.join(roles)}")
    return models


def z_up(parts: list[Part], path: Path) -> list[Part]:
    """Rotate the parts of the model file `path` to Gazebo's axes, with z up.

    glTF and OBJ have y up. COLLADA states its up axis. In other formats z is taken as up.
    """
    kind = path.suffix.lower()
    if kind == ".dae":
        found = re.search(rb"<up_axis>\s*([XYZ])_UP", path.read_bytes())
        y_up = found is None or found[1] == b"Y"
    else:
        y_up = kind in (".gltf", ".glb", ".obj")
    if not y_up:
        return parts
    turn = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    return [part.moved(turn) for part in parts]


def _has_size(role: Role, size: np.ndarray) -> bool:
    """Whether a model of that size [3], in Gazebo's axes, meets the role's limits."""
    low, high = role.size
    return low <= (size[2] if role.upright else max(size[:2])) <= high


def _build_model(name: str, parts: list[Part], atlas: Atlas) -> Model:
    """Build a model of parts in Gazebo's axes. The centre of its base is moved to the origin."""
    low, high = bounds(parts)
    shift = np.eye(4)
    shift[:2, 3] = -(low + high)[:2] / 2
    # A small part below z = 0 stays there: it is a foundation or roots in the ground.
    if abs(low[2]) > 0.02 + 0.05 * (high - low)[2]:
        shift[2, 3] = -low[2]
    stage = build_stage([part.moved(shift) for part in parts], atlas)
    return Model(name, stage, (high - low)[[1, 2, 0]])
