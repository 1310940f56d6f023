"""Read 3D model files as textured triangles: COLLADA, Wavefront OBJ, glTF, STL and other formats of trimesh.

No other module imports trimesh. Vertices are in the axes of the file, and in metres if the file states its unit. Every
triangle has its own vertices, because at hard edges a vertex has several normals.
"""

from __future__ import annotations

import io
import logging
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.folders import visible

_log = logging.getLogger(__name__)

#: Suffixes of model files.
SUFFIXES = (".dae", ".obj", ".glb", ".gltf", ".stl", ".ply", ".off", ".3mf")
#: Largest side of an image texture, texels. Larger ones are reduced, because the renderer's textures have at most this
#: side.
PICTURE_SIDE = 1024

#: Materials with at most this opacity count as glass. They are left out, so that depth is that of the objects behind.
_GLASS_OPACITY = 0.5
#: The corner of a triangle takes the normal of its vertex if the cosine of the angle between this normal and that of
#: the triangle is larger than this. Otherwise the edge is hard, and it takes the normal of the triangle.
_SMOOTH = 0.7
#: Finds the declaration in COLLADA or OBJ files that the alpha of textures is coverage.
_CUTOUTS = re.compile(rb"<transparent[^>]*>\s*<texture|^\s*map_d\s", re.MULTILINE)
_METRES = {"meters": 1.0, "millimeters": 1e-3, "centimeters": 1e-2, "inches": 0.0254, "feet": 0.3048}


@dataclass(frozen=True)
class Surface:
    """Appearance of a part.

    Attributes:
        colour: linear RGB in 0..1, multiplied with the picture.
        picture: image texture, sRGB and alpha, uint8 [H, W, 4], row 0 at v = 0; None for a plain colour.
        cutout: whether alpha is coverage, as in leaves and fences.
        incomplete: whether the file names a picture that cannot be read.
    """

    colour: tuple[float, float, float] = (0.6, 0.6, 0.6)
    picture: np.ndarray | None = None
    cutout: bool = False
    incomplete: bool = False


@dataclass(frozen=True)
class Part:
    """Triangles of one material.

    Attributes:
        corners: [F, 3, 3] float32 metres.
        normals: [F, 3, 3] float32 unit vectors.
        uv: [F, 3, 2] float32 texture tiles, v down.
        surface: its appearance.
        name: name of the geometry; `sdf` puts the names of the enclosing models before it.
    """

    corners: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    surface: Surface
    name: str = ""

    def moved(self, matrix: np.ndarray) -> Part:
        """The part transformed by an affine matrix [4, 4], which may scale."""
        linear = matrix[:3, :3].astype(np.float32)
        normals = self.normals @ np.linalg.inv(linear)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9
        return replace(self, corners=self.corners @ linear.T + matrix[:3, 3].astype(np.float32), normals=normals)


def bounds(parts: Iterable[Part]) -> np.ndarray:
    """Bounding box of the parts: smallest and largest coordinates [2, 3]."""
    extents = [(part.corners.min((0, 1)), part.corners.max((0, 1))) for part in parts]
    low, high = zip(*extents, strict=True)
    return np.stack([np.min(low, axis=0), np.max(high, axis=0)])


def metric_uv(corners: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Texture coordinates [F, 3, 2] in metres, v down, of triangles in axes with z up.

    Each triangle is projected along the axis that is nearest to its normal.

    Args:
        corners: [F, 3, 3] metres.
        normals: [F, 3, 3].
    """
    axis = np.abs(normals.sum(1)).argmax(-1)
    across = np.array([[1, 2], [0, 2], [0, 1]])[axis]
    uv = np.take_along_axis(corners, np.repeat(across[:, None], 3, axis=1), axis=2)
    return (uv * (1, -1)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- pictures


def find_file(name: str, folders: Sequence[Path]) -> Path | None:
    """Find a file that a model file names, in one of the folders; None if it is not found.

    `name` is first taken as a path relative to a folder, or, after "model://", to one of its parent folders, because
    "model://" stands for the folder of all models. If there is no such file, only the last component of `name` is
    compared with the files in the folders, ignoring case. This finds pictures that a model names by a path on the
    author's machine.
    """
    name = name.replace("\\", "/").removeprefix("file://")
    model = name.startswith("model://")
    name = name.removeprefix("model://")
    for folder in folders:
        for base in list(folder.parents)[:4] if model else [folder]:
            if name and (base / name).is_file():
                return base / name
    last = name.rsplit("/", 1)[-1].lower()
    for folder in folders:
        if folder.is_dir():
            found = next((path for path in visible(folder) if path.name.lower() == last), None)
            if found is not None and found.is_file():
                return found
    return None


def read_picture(path: Path) -> np.ndarray | None:
    """Read an image as sRGB and alpha, uint8 [H, W, 4] with sides up to `PICTURE_SIDE`; None if it cannot be read.

    OpenCV reads most formats. Pillow, if installed, reads some others.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is not None:
        if picture.dtype == np.uint16:
            picture = (picture >> 8).astype(np.uint8)
        if picture.ndim == 2:
            picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGBA)
        else:
            picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGBA if picture.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
        return _limit_size(picture)
    try:
        from PIL import Image

        with Image.open(path) as image:
            return _limit_size(np.array(image.convert("RGBA")))
    except (ImportError, OSError, ValueError):
        return None


def has_binary_alpha(picture: np.ndarray) -> bool:
    """Whether the alpha of a picture [H, W, 4] is nearly everywhere 0 or 1, and both occur.

    Such alpha has a meaning: it is coverage, or it marks painted areas.
    """
    clear, solid = np.mean(picture[..., 3] < 40), np.mean(picture[..., 3] > 215)
    return bool(clear > 0.02 and solid > 0.02 and clear + solid > 0.75)


def _limit_size(picture: np.ndarray) -> np.ndarray:
    """The picture, reduced if a side is longer than `PICTURE_SIDE`."""
    height, width = picture.shape[:2]
    if max(height, width) <= PICTURE_SIDE:
        return picture
    size = (min(width, PICTURE_SIDE), min(height, PICTURE_SIDE))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


# --------------------------------------------------------------------------------------------------------------- models


def require_trimesh():
    """Import and return the module trimesh.

    Raises:
        ImportError: it is missing; the message names the extra to install.
    """
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("scenes made of 3D models need trimesh: pip install 'fadepth_ros[assets]'") from error
    return trimesh


def read_model(path: Path) -> list[Part]:
    """Read the parts of a model file, except glass.

    Raises:
        ImportError: trimesh, or a package it needs for this format, is missing.
        DataError: the file cannot be read or holds no triangles.
    """
    trimesh = require_trimesh()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    kind = path.suffix[1:].lower()
    if kind == "dae":
        try:
            import collada  # noqa: F401 - trimesh needs it
        except ImportError as error:
            raise ImportError("COLLADA models need pycollada: pip install 'fadepth_ros[assets]'") from error
        data = re.sub(rb"<!--.*?-->", b"", data, flags=re.DOTALL)  # pycollada fails on comments
    files = _file_resolver(path, trimesh)
    options = {"split_groups": True} if kind == "obj" else {}
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type=kind, resolver=files, process=False, **options)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # trimesh does not document the errors of its readers
        raise DataError(f"{path}: {error}") from error
    cutouts = files.cutouts or (kind == "dae" and _CUTOUTS.search(data) is not None)
    parts = []
    for node in scene.graph.nodes_geometry:
        matrix, key = scene.graph[node]
        mesh = scene.geometry[key]
        if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
            continue
        surface = _surface(mesh.visual, files.incomplete, cutouts)
        if surface is not None:
            material = getattr(getattr(mesh.visual, "material", None), "name", None)
            name = str(key).removesuffix(f"_{material}")  # trimesh appends the material to the names of OBJ groups
            scale = np.diag([*3 * [_unit_length(mesh.units or scene.units)], 1.0])
            parts.append(_part(mesh, surface, name).moved(scale @ matrix))
    if not parts:
        raise DataError(f"{path}: no triangles")
    return parts


def submesh_of(parts: Sequence[Part], path: Path, name: str) -> list[Part]:
    """Select the parts that belong to one node or geometry of a model file.

    Args:
        parts: all parts of the file.
        path: the file.
        name: name of the node or geometry.

    Raises:
        DataError: no part has that name.
    """
    names = [name, *_geometries_of_node(path, name)] if path.suffix.lower() == ".dae" else [name]
    # trimesh appends numbers to make names unique, exporters append "-mesh" or "-lib".
    pattern = re.compile("(" + "|".join(map(re.escape, names)) + r")(-mesh|-lib)?(_\d+)?")
    chosen = [part for part in parts if pattern.fullmatch(part.name)]
    if not chosen:
        raise DataError(f"{path}: no part '{name}'; there are {', '.join(part.name for part in parts)}")
    return chosen


def _file_resolver(path: Path, trimesh):
    """A resolver, by which trimesh opens the pictures and material files of the model `path`.

    Its attribute `incomplete` says whether a file is missing, `cutouts` whether a material file declares that alpha is
    coverage.
    """
    base = path.parent
    folders = [base, base / "textures", base.parent / "materials" / "textures", base.parent / "textures", base.parent]

    class Files(trimesh.resolvers.Resolver):
        def __init__(self):
            self.incomplete = self.cutouts = False

        def get(self, name):
            found = find_file(str(name), folders)
            if found is None:
                self.incomplete = True
                _log.warning("%s: no file '%s'", path, name)
                raise FileNotFoundError(name)
            content = found.read_bytes()
            if found.suffix.lower() == ".mtl":
                self.cutouts = _CUTOUTS.search(content) is not None
            return content

        def write(self, name, data):
            raise NotImplementedError

        def namespaced(self, namespace):
            return self

        def keys(self):
            return []

    return Files()


def _unit_length(units: str | None) -> float:
    """Metres of a unit as trimesh names it, e.g. "0.01 * meters" or "inches"; 1 if it names none."""
    number, _, unit = (units or "").rpartition("*")
    return float(number or 1) * _METRES.get(unit.strip(), 1.0)


def _part(mesh, surface: Surface, name: str) -> Part:
    """Convert a mesh of trimesh to a part, without degenerate triangles."""
    corners = np.asarray(mesh.triangles, np.float32)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1)
    solid = length > 1e-12
    corners, faces = corners[solid], mesh.faces[solid]
    flat = (normal[solid] / length[solid, None])[:, None]
    normals = np.asarray(mesh.vertex_normals, np.float32)[faces]
    cosine = (normals * flat).sum(-1, keepdims=True)
    # In some files vertex normals point to the other side than the triangle's normal. The renderer turns the three
    # normals of a triangle together, so they must point to the same side.
    normals = np.where(np.abs(cosine) > _SMOOTH, normals * np.sign(cosine), flat).astype(np.float32)
    uv = getattr(mesh.visual, "uv", None)
    if uv is None or len(uv) != len(mesh.vertices):
        uv = metric_uv(corners, normals)
    else:
        uv = np.nan_to_num(np.asarray(uv, np.float32)[faces]) * np.float32([1, -1]) + np.float32([0, 1])
    return Part(corners, normals, uv - np.floor(uv.min(1, keepdims=True)), surface, name)


def _surface(visual, incomplete: bool, cutouts: bool) -> Surface | None:
    """The surface of a visual of trimesh; None for glass.

    Args:
        visual: appearance of a mesh.
        incomplete: whether one of the file's pictures is missing.
        cutouts: whether the file declares that alpha is coverage. Otherwise the alpha of a picture may mean something
            else, or nothing.
    """
    material = getattr(visual, "material", None)
    if material is None:
        return Surface(_linear(np.asarray(getattr(visual, "main_color", (204, 204, 204)), float) / 255))
    picture = getattr(material, "baseColorTexture", None)
    if picture is None:
        picture = getattr(material, "image", None)
    factor = getattr(material, "baseColorFactor", None)
    if factor is None and picture is None:
        factor = getattr(material, "diffuse", None)
    colour = np.ones(4) if factor is None else np.asarray(factor, float)
    colour = colour / 255 if colour.max() > 1 else colour
    if len(colour) > 3 and colour[3] <= _GLASS_OPACITY:
        return None
    if picture is None:
        return Surface(_linear(colour), incomplete=incomplete and colour[:3].min() > 0.99)
    picture = _limit_size(np.array(picture.convert("RGBA")))
    cutouts = cutouts or getattr(material, "alphaMode", None) in ("MASK", "BLEND")
    return Surface(_linear(colour), picture, cutouts and has_binary_alpha(picture))


def _linear(colour: np.ndarray) -> tuple[float, float, float]:
    """sRGB in 0..1 -> linear RGB, by a gamma of 2.2."""
    return tuple(float(c) for c in np.clip(colour[:3], 0, 1) ** 2.2)


def _geometries_of_node(path: Path, name: str) -> list[str]:
    """Identifiers of the geometries below the nodes of that name in a COLLADA file."""
    found = []
    for node in ElementTree.parse(path).iter():
        if node.tag.rpartition("}")[2] == "node" and name in (node.get("name"), node.get("id")):
            inner = (element for element in node.iter() if element.tag.rpartition("}")[2] == "instance_geometry")
            found += [element.get("url", "").lstrip("#") for element in inner]
    return found
