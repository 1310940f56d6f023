"""Read Gazebo worlds and models (SDF) as placed parts, with includes, nested models, poses, scales and materials.

Coordinates are Gazebo's (REP-103): x forward, y left, z up, metres. Only visuals are read: sensors, lights, plugins,
actors, physics and models on servers are ignored. OGRE material scripts give the first texture and the diffuse colour
of a material. Format: http://sdformat.org/spec.
"""

from __future__ import annotations

import logging
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.folders import files_below, visible
from fadepth_core.synthetic.assets.meshes import (
    SUFFIXES,
    Part,
    Surface,
    bounds,
    find_file,
    has_binary_alpha,
    read_model,
    read_picture,
    submesh_of,
)

_log = logging.getLogger(__name__)

#: Gazebo's built-in materials, sRGB.
_COLOURS = {
    "White": (1, 1, 1), "Grey": (0.5, 0.5, 0.5), "Gray": (0.5, 0.5, 0.5), "DarkGrey": (0.18, 0.18, 0.18),
    "LightGrey": (0.75, 0.75, 0.75), "Black": (0.05, 0.05, 0.05), "FlatBlack": (0.05, 0.05, 0.05), "Red": (0.8, 0, 0),
    "Green": (0, 0.6, 0), "Blue": (0, 0, 0.8), "Yellow": (0.8, 0.8, 0), "Orange": (0.9, 0.45, 0.05),
    "Wood": (0.55, 0.38, 0.22), "Bricks": (0.55, 0.3, 0.24), "Road": (0.25, 0.25, 0.25), "Asphalt": (0.25, 0.25, 0.25),
}  # fmt: skip
#: Models without visuals. If they are not installed, there is no warning.
_EMPTY = ("model://sun",)


class Library:
    """The models below a folder, with a cache of the files that were read.

    Args:
        root: the folder.

    Raises:
        DataError: the folder, or one below it, cannot be read.

    Attributes:
        root: the folder.
        folders: folders with a model.config or an .sdf file, by name. Of several with the same name, the first is used.
        files: model files outside these folders.
    """

    def __init__(self, root: Path):
        self.root = root
        self.folders: dict[str, Path] = {}
        files = files_below(root)
        described = {path.parent for path in files if path.name == "model.config" or path.suffix == ".sdf"}
        for folder in sorted(described):
            self.folders.setdefault(folder.name, folder)
        self.files = [
            path for path in files if path.suffix.lower() in SUFFIXES and not described.intersection(path.parents)
        ]
        self._models: dict[Path, list[Part] | DataError] = {}
        self._pictures: dict[Path, np.ndarray | None] = {}
        self._surfaces: dict[tuple, Surface | None] = {}
        self._warned: set[str] = set()

    def resolve(self, uri: str, near: Path) -> Path | None:
        """The folder or file that a URI names; None if it does not exist or is on a server.

        `near` is the folder of the file that contains the URI.
        """
        scheme, found, rest = uri.strip().partition("://")
        if not found:
            scheme, rest = "", uri.strip()
        if scheme in ("http", "https", "fuel"):
            return None
        if scheme == "model":
            name, _, inner = rest.partition("/")
            if name not in self.folders:
                return None
            path = self.folders[name] / inner
        else:
            # Paths in worlds are relative to the world's folder, or to one of its parents on Gazebo's resource path.
            bases = [near, *(base for base in near.parents if base.is_relative_to(self.root))]
            path = next((base / rest for base in bases if (base / rest).parent.exists()), near / rest)
        return path if path.exists() else find_file(path.name, [path.parent])

    def model_file(self, folder: Path) -> Path | None:
        """The SDF file of a model's folder: model.sdf, else the last by name; None if there is none."""
        files = [path for path in visible(folder) if path.suffix == ".sdf"]
        return next((file for file in files if file.name == "model.sdf"), files[-1] if files else None)

    def model(self, path: Path, submesh: str | None = None) -> list[Part]:
        """`meshes.read_model` with a cache. If `submesh` is given, only its parts are returned.

        Raises:
            ImportError, DataError: see `meshes.read_model` and `meshes.submesh_of`.
        """
        if path not in self._models:
            try:
                self._models[path] = read_model(path)
            except DataError as error:
                self._models[path] = error
        parts = self._models[path]
        if isinstance(parts, DataError):
            raise parts
        return parts if submesh is None else submesh_of(parts, path, submesh.strip())

    def picture(self, path: Path) -> np.ndarray | None:
        """`meshes.read_picture` with a cache."""
        if path not in self._pictures:
            self._pictures[path] = read_picture(path)
        return self._pictures[path]

    def script_surface(self, name: str, places: Sequence[Path]) -> Surface | None:
        """The material `name` in the OGRE scripts among these files and folders, with a cache; None if not found."""
        key = (name, tuple(places))
        if key not in self._surfaces:
            self._surfaces[key] = self._read_script(name, places)
        return self._surfaces[key]

    def warn(self, message: str) -> None:
        """Log a warning once, because worlds include the same model many times."""
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message)

    def _read_script(self, name: str, places: Sequence[Path]) -> Surface | None:
        """`script_surface` without the cache."""
        files = [
            file
            for place in places
            for file in ([place] if place.is_file() else visible(place))
            if file == place or file.suffix == ".material"
        ]
        folders = [place if place.is_dir() else place.parent for place in places]
        folders += [folder.parent / "textures" for folder in folders]
        for file in files:
            try:
                script = file.read_text(errors="replace")
            except OSError as error:
                self.warn(f"{file}: cannot be read: {error.strerror}, left out")
                continue
            text = re.sub(r"//[^\n]*", "", script)
            found = re.search(rf"^\s*material\s+{re.escape(name)}\s*(:\s*(\S+))?\s*\{{", text, re.MULTILINE)
            if not found:
                continue
            body = re.split(r"^\s*material\s", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]
            texture = re.search(r"^\s*texture\s+(\S+)", body, re.MULTILINE)
            diffuse = re.search(r"^\s*diffuse\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)", body, re.MULTILINE)
            if texture:
                path = find_file(texture[1], folders)
                picture = None if path is None else self.picture(path)
                if picture is None:
                    self.warn(f"{file}: no picture '{texture[1]}'")
                    return Surface(incomplete=True)
                declared = "alpha_rejection" in body or "scene_blend" in body
                return Surface((1.0, 1.0, 1.0), picture, declared and has_binary_alpha(picture))
            if diffuse:
                return Surface(_linear(diffuse.groups()))
            if found[2]:  # the material has a parent
                return self.script_surface(found[2], places)
        return None


def read_sdf(path: Path, library: Library) -> list[Part]:
    """Read the visible parts of a .world or .sdf file. Parts that cannot be loaded are left out with a warning.

    Args:
        path: the file.
        library: the models that the file may include.

    Raises:
        ImportError: trimesh, or a package it needs for a format, is missing.
        DataError: no such file, not SDF, or nothing in it could be loaded.
    """
    parts = []
    for top in _parse(path):
        if top.tag == "world":
            parts += _Reader(library, path.parent).children(top, np.eye(4), "")
        elif top.tag == "model":
            parts += _Reader(library, path.parent).model(top, np.eye(4), "")
    if not parts:
        raise DataError(f"{path}: nothing in it could be loaded")
    return parts


def pose_matrix(text: str | None, degrees: bool = False) -> np.ndarray:
    """Pose [4, 4] from SDF's "x y z roll pitch yaw": metres, radians, about the fixed axes x, y, z in this order."""
    x, y, z, roll, pitch, yaw = np.pad(np.array([float(v) for v in (text or "").split()]), (0, 6))[:6]
    if degrees:
        roll, pitch, yaw = np.deg2rad([roll, pitch, yaw])
    cr, sr, cp, sp, cy, sy = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = about_z @ about_y @ about_x, (x, y, z)
    return matrix


class _Reader:
    """Collects the visuals of one SDF file as parts.

    In the methods, `at` is the world pose [4, 4] of the frame that an element's pose refers to, and `name` is the path
    of names of the enclosing models.

    Args:
        library: the models that the file may include.
        near: folder of the file.
    """

    def __init__(self, library: Library, near: Path):
        self._library, self._near = library, near

    def children(self, element: Element, at: np.ndarray, name: str) -> list[Part]:
        """The parts of all links, models and includes in `element`."""
        parts = []
        for child in element:
            if child.tag == "include":
                parts += self._include(child, at, name)
            elif child.tag == "model":
                parts += self.model(child, at, name)
            elif child.tag == "link":
                for visual in child.iter("visual"):
                    parts += self._visual(visual, at @ _pose(child), name)
        return parts

    def model(self, element: Element, at: np.ndarray, name: str) -> list[Part]:
        """The parts of a model."""
        return self.children(element, at @ _pose(element), f"{name}/{element.get('name', '')}".strip("/"))

    def _include(self, element: Element, at: np.ndarray, name: str) -> list[Part]:
        uri = element.findtext("uri", "").strip()
        try:
            found = self._library.resolve(uri, self._near)
            file = self._library.model_file(found) if found is not None and found.is_dir() else found
            if file is None:
                if uri not in _EMPTY:
                    self._library.warn(f"{self._library.root}: no model '{uri}', left out")
                return []
            inner = next((top for top in _parse(file) if top.tag == "model"), None)
        except DataError as error:
            self._library.warn(f"{error}, left out")
            return []
        if inner is None:
            return []
        # The pose of an include replaces the pose of the included model.
        place = at @ _pose(element if element.find("pose") is not None else inner)
        name = f"{name}/{element.findtext('name') or inner.get('name', '')}/{file.parent.name}".strip("/")
        return _Reader(self._library, file.parent).children(inner, place, name)

    def _visual(self, element: Element, at: np.ndarray, name: str) -> list[Part]:
        geometry = element.find("geometry")
        if geometry is None or float(element.findtext("transparency") or 0) > 0.5:
            return []
        try:
            parts = self._shape(geometry)
            surface = self._surface(element.find("material"))
        except DataError as error:
            self._library.warn(f"{error}, left out")
            return []
        if surface is not None:
            parts = [replace(part, surface=surface) for part in parts]
        place = at @ _pose(element)
        name = f"{name}/{element.get('name', '')}"
        return [replace(part.moved(place), name=f"{name}/{part.name}") for part in parts]

    def _shape(self, geometry: Element) -> list[Part]:
        for shape in geometry:
            if shape.tag == "mesh":
                return self._mesh(shape)
            if shape.tag == "box":
                return [_box(_numbers(shape.findtext("size"), (1, 1, 1)))]
            if shape.tag == "plane":
                return [_box((*_numbers(shape.findtext("size"), (1, 1)), 0.0))]
            if shape.tag == "cylinder":
                return [_cylinder(float(shape.findtext("radius", "1")), float(shape.findtext("length", "1")))]
            if shape.tag == "sphere":
                return [_sphere(float(shape.findtext("radius", "1")))]
        return []

    def _mesh(self, shape: Element) -> list[Part]:
        uri = shape.findtext("uri", "").strip()
        path = self._library.resolve(uri, self._near)
        if path is None or not path.is_file():
            raise DataError(f"{self._near}: no mesh '{uri}'")
        parts = self._library.model(path, shape.findtext("submesh/name"))
        matrix = np.diag([*_numbers(shape.findtext("scale"), (1, 1, 1)), 1.0])
        if (shape.findtext("submesh/center") or "").strip().lower() in ("1", "true"):
            shift = np.eye(4)
            shift[:3, 3] = -bounds(parts).mean(0)
            matrix = matrix @ shift
        return [part.moved(matrix) for part in parts]

    def _surface(self, material: Element | None) -> Surface | None:
        """The surface that a visual's material gives to its parts; None: the parts keep the materials of the mesh."""
        if material is None:
            return None
        albedo = material.findtext("pbr/metal/albedo_map") or material.findtext("pbr/specular/albedo_map")
        path = self._library.resolve(albedo, self._near) if albedo else None
        picture = self._library.picture(path) if path is not None and path.is_file() else None
        if picture is not None:
            return Surface((1.0, 1.0, 1.0), picture, has_binary_alpha(picture))
        name = (material.findtext("script/name") or "").strip()
        if name.startswith("Gazebo/"):
            return Surface(_linear(_COLOURS.get(name.removeprefix("Gazebo/"), (0.6, 0.6, 0.6))))
        if name:
            uris = [uri.text or "" for uri in material.findall("script/uri")]
            places = [path for uri in uris if (path := self._library.resolve(uri, self._near)) is not None]
            return self._library.script_surface(name, places)
        diffuse = material.findtext("diffuse")
        return None if diffuse is None else Surface(_linear(_numbers(diffuse, (0.7, 0.7, 0.7))))


def _parse(path: Path) -> Element:
    try:
        return ElementTree.parse(path).getroot()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not SDF: {error}") from error


def _pose(element: Element) -> np.ndarray:
    pose = element.find("pose")
    if pose is None:
        return np.eye(4)
    return pose_matrix(pose.text, pose.get("degrees", "").lower() in ("true", "1"))


def _numbers(text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(v) for v in text.split()) if text and text.strip() else default


def _linear(colour: Sequence[float | str]) -> tuple[float, float, float]:
    """sRGB in 0..1 -> linear RGB, by a gamma of 2.2."""
    return tuple(min(1.0, max(0.0, float(c))) ** 2.2 for c in colour[:3])


# --------------------------------------------------------------------------------------------------------------- shapes


def _from_quads(quads: np.ndarray, normals: np.ndarray) -> Part:
    """A part with two triangles for each quad [N, 4, 3], with corner normals [N, 4, 3].

    The texture coordinates show a picture once on each quad.
    """
    uv = np.broadcast_to(np.array([[0, 1], [1, 1], [1, 0], [0, 0]], float), (len(quads), 4, 2))
    triangles = [a[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3, a.shape[-1]).astype(np.float32) for a in (quads, normals, uv)]
    return Part(*triangles, Surface())


def _box(size: Sequence[float]) -> Part:
    """A box around the origin; a two-sided rectangle if the third size is 0."""
    quads, normals = [], []
    for axis in range(3):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        if size[a] == 0 or size[b] == 0:
            continue
        for sign in (1.0,) if size[axis] == 0 else (-1.0, 1.0):
            quad = np.zeros((4, 3))
            quad[:, axis] = sign
            quad[:, a], quad[:, b] = [-1, 1, 1, -1], [-1, -1, 1, 1]
            quads.append(quad * np.array(size) / 2)
            normals.append(np.tile(sign * np.eye(3)[axis], (4, 1)))
    return _from_quads(np.array(quads), np.array(normals))


def _cylinder(radius: float, length: float, sides: int = 24) -> Part:
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    low, top = radius * ring - (0, 0, length / 2), radius * ring + (0, 0, length / 2)
    quads = [np.stack([low[:-1], low[1:], top[1:], top[:-1]], 1)]
    normals = [np.stack([ring[:-1], ring[1:], ring[1:], ring[:-1]], 1)]
    for end, z in ((low, -1.0), (top, 1.0)):
        centre = np.broadcast_to((0, 0, z * length / 2), (sides, 3))
        quads.append(np.stack([centre, end[:-1], end[1:], centre], 1))
        normals.append(np.broadcast_to((0.0, 0.0, z), (sides, 4, 3)))
    return _from_quads(np.concatenate(quads), np.concatenate(normals))


def _sphere(radius: float, sides: int = 24) -> Part:
    around, up = np.meshgrid(np.linspace(0, 2 * np.pi, sides + 1), np.linspace(-np.pi / 2, np.pi / 2, sides // 2 + 1))
    ball = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], -1)
    quads = np.stack([ball[:-1, :-1], ball[:-1, 1:], ball[1:, 1:], ball[1:, :-1]], 2).reshape(-1, 4, 3)
    return _from_quads(radius * quads, quads)
