"""Structure from motion by pycolmap (Schönberger and Frahm 2016), in a process of its own.

    python -m fadepth_core.labels.structure FOLDER      # reads FOLDER/tracks.npz, writes FOLDER/models.npz

The process imports neither OpenCV nor torch: pycolmap 4.2 and OpenCV 5 in one process abort in the allocator. It maps
the keyframes of one piece of a recording from point tracks; the intrinsics are known and fixed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fadepth_core.common.cpus import usable_cpus
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import write_atomically

TRACKS, MODELS, _LOG = "tracks.npz", "models.npz", "log.txt"
#: Part of the name of folders with results; changes when the same input gives other results.
VERSION = 1
#: Number of following keyframes with which each keyframe is matched.
_OVERLAP = 8
#: Smallest number of common points of a pair, and of keyframes of a model.
_MIN_MATCHES, _MIN_MODEL = 20, 5
#: Points that register a keyframe, and their smallest angle of triangulation in degrees. With COLMAP's 30 and 1.5 degrees,
#: which are for photographs, a HoloLens recording (4 degrees of rotation per frame) fell into 12 parts, with these into 5.
_MIN_REGISTERED, _MIN_ANGLE = 12, 0.7
#: Largest reprojection error in pixels at a width of 416; the defaults of COLMAP are for images of 3000 pixels.
_MAX_ERROR = 2.0


@dataclass(frozen=True)
class Model:
    """Keyframes and points of one reconstruction, in an arbitrary world frame and unit.

    Attributes:
        frames: [K] frame numbers, ascending.
        poses: camera-to-world [K, 4, 4].
        tracks: [P] numbers of the points.
        points: [P, 3] their coordinates.
        error: mean reprojection error, pixels.
    """

    frames: np.ndarray
    poses: np.ndarray
    tracks: np.ndarray
    points: np.ndarray
    error: float


def available() -> bool:
    """Whether pycolmap is installed."""
    return find_spec("pycolmap") is not None


def write_tracks(
    folder: Path,
    frames: np.ndarray,
    tracks: np.ndarray,
    pixels: np.ndarray,
    intrinsics: np.ndarray,
    size: Sequence[int],
) -> None:
    """Write the input of the process: M observations of points in keyframes, see `labels.keyframes.Observations`."""
    _save(
        folder / TRACKS,
        frames=frames, tracks=tracks, pixels=pixels.astype(np.float32), intrinsics=intrinsics, size=np.array(size),
    )  # fmt: skip


def reconstruct(folders: Sequence[Path], name: str) -> dict[Path, list[Model] | str]:
    """Reconstruct pieces, several at a time; those with a result from an earlier run are read.

    Args:
        folders: with `write_tracks`' file each.
        name: of the clip, for the progress bar.

    Returns:
        For each folder its models, which may be none, or the last line of the process if it failed.

    Raises:
        DataError: pycolmap is not installed.
    """
    missing = [folder for folder in folders if not (folder / MODELS).is_file()]
    if missing and not available():
        raise DataError("structure from motion needs pycolmap: pip install 'fadepth_ros[adapt]'")
    failed: dict[Path, str] = {}
    # Each process has one thread: bundle adjustment of a piece is too small for more.
    with (
        ThreadPoolExecutor(max(1, usable_cpus())) as pool,
        tqdm(total=len(folders), initial=len(folders) - len(missing), desc=f"mapping {name}", unit="piece") as bar,
    ):
        processes = {folder: _start(folder) for folder in missing[: usable_cpus()]}
        running = {pool.submit(process.wait): folder for folder, process in processes.items()}
        following = iter(missing[len(running) :])
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    folder = running.pop(future)
                    bar.update()
                    if future.result() != 0 or not (folder / MODELS).is_file():
                        failed[folder] = _last_line(folder, future.result())
                    if (after := next(following, None)) is not None:
                        processes[after] = _start(after)
                        running[pool.submit(processes[after].wait)] = after
        except BaseException:  # e.g. Ctrl-C: finished pieces stay for the next run
            for process in processes.values():
                process.kill()
            raise
    return {folder: failed[folder] if folder in failed else _read(folder / MODELS) for folder in folders}


def _start(folder: Path) -> subprocess.Popen:
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
    }
    with open(folder / _LOG, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fadepth_core.labels.structure", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _last_line(folder: Path, status: int) -> str:
    lines = [line.strip() for line in (folder / _LOG).read_text(errors="replace").splitlines()]
    # pycolmap prints a stack of machine addresses when it crashes.
    said = next((line for line in reversed(lines) if line and not line.startswith(("@", "***", "PC:"))), "no message")
    return f"{said} (signal {-status})" if status < 0 else said


def _read(path: Path) -> list[Model]:
    with np.load(path) as file:
        return [
            Model(file[f"frames{i}"], file[f"poses{i}"], file[f"tracks{i}"], file[f"points{i}"], float(error))
            for i, error in enumerate(file["errors"])
        ]


def _save(path: Path, **arrays: Any) -> None:
    def write(part: str) -> None:
        with open(part, "wb") as stream:  # given a path, numpy would append a suffix
            np.savez(stream, **arrays)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


# The following functions run in the process of its own.


def map_keyframes(folder: Path) -> None:
    """Read `TRACKS` and write `MODELS`, in this process."""
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    with np.load(folder / TRACKS) as file:
        values = dict(file)
    database = folder / "database.db"
    database.unlink(missing_ok=True)
    frames = np.unique(values["frames"])
    largest_error = _MAX_ERROR * max(1.0, values["size"][1] / 416)
    names = _write_database(pycolmap, database, frames, values, largest_error)
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = 1
    options.random_seed = 0
    options.extract_colors = False
    options.min_model_size = _MIN_MODEL
    options.min_num_matches = _MIN_MATCHES
    options.ba_refine_focal_length = options.ba_refine_extra_params = False
    options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = False
    options.mapper.init_min_num_inliers = 50
    options.mapper.init_min_tri_angle = 4.0
    options.mapper.abs_pose_max_error = 2 * largest_error
    options.mapper.filter_max_reproj_error = largest_error
    options.triangulation.complete_max_reproj_error = options.triangulation.merge_max_reproj_error = largest_error
    options.mapper.abs_pose_min_num_inliers = _MIN_REGISTERED
    options.mapper.filter_min_tri_angle = options.triangulation.min_angle = _MIN_ANGLE
    (folder / "models").mkdir(exist_ok=True)
    models = pycolmap.incremental_mapping(database, folder, folder / "models", options)
    found = [_model(model, frames, names) for model in models.values()]
    found.sort(key=lambda model: -len(model.frames))
    arrays = {
        f"{key}{i}": getattr(model, key)
        for i, model in enumerate(found)
        for key in ("frames", "poses", "tracks", "points")
    }
    _save(folder / MODELS, errors=np.array([model.error for model in found]), **arrays)
    database.unlink()


def _write_database(
    pycolmap: Any, path: Path, frames: np.ndarray, values: dict[str, np.ndarray], largest_error: float
) -> list[np.ndarray]:
    """Write camera, keypoints and verified pairs; returns the names of the points of each keyframe."""
    intrinsics, (height, width) = values["intrinsics"], (int(side) for side in values["size"])
    parameters = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    camera = pycolmap.Camera(model="PINHOLE", width=width, height=height, params=parameters, camera_id=1)
    camera.has_prior_focal_length = True
    ends = np.searchsorted(values["frames"], [*frames, frames[-1] + 1])
    names = [values["tracks"][a:b] for a, b in pairwise(ends)]
    pixels = [values["pixels"][a:b] for a, b in pairwise(ends)]
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.max_error = largest_error
    options.ransac.random_seed = 0
    # Few tracks are wrong, so few trials are enough.
    options.ransac.max_num_trials = 500
    options.min_num_inliers = _MIN_MATCHES
    options.compute_relative_pose = True
    options.detect_watermark = False
    with pycolmap.Database.open(path) as database:
        database.write_camera(camera, use_camera_id=True)
        rig = pycolmap.Rig(rig_id=1)
        rig.add_ref_sensor(camera.sensor_id)
        database.write_rig(rig, use_rig_id=True)
        for i, frame in enumerate(frames):
            image = pycolmap.Image(name=f"{frame:06d}", camera_id=1, image_id=i + 1)
            database.write_image(image, use_image_id=True)
            entry = pycolmap.Frame(rig_id=1, frame_id=i + 1)
            entry.add_data_id(image.data_id)
            database.write_frame(entry, use_frame_id=True)
            database.write_keypoints(i + 1, pixels[i])
        for i in range(len(frames)):
            for j in range(i + 1, min(len(frames), i + 1 + _OVERLAP)):
                _, first, second = np.intersect1d(names[i], names[j], assume_unique=True, return_indices=True)
                if len(first) < _MIN_MATCHES:
                    break  # later keyframes have fewer points in common
                pairs = np.column_stack([first, second]).astype(np.uint32)
                geometry = pycolmap.estimate_calibrated_two_view_geometry(
                    camera, pixels[i].astype(float), camera, pixels[j].astype(float), pairs, options
                )
                if len(geometry.inlier_matches) >= _MIN_MATCHES:
                    database.write_matches(i + 1, j + 1, pairs)
                    database.write_two_view_geometry(i + 1, j + 1, geometry)
    return names


def _model(model: Any, frames: np.ndarray, names: list[np.ndarray]) -> Model:
    """The results of pycolmap as arrays."""
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.image_id)
    poses = np.tile(np.eye(4), (len(images), 1, 1))
    for pose, image in zip(poses, images, strict=True):
        pose[:3] = image.cam_from_world().inverse().matrix()
    tracks, points = [], []
    for point in model.points3D.values():
        # A point may join two tracks of the same corner, e.g. one that was lost and found again.
        seen = {names[element.image_id - 1][element.point2D_idx] for element in point.track.elements}
        for name in seen:
            tracks.append(name)
            points.append(point.xyz)
    return Model(
        np.array([frames[image.image_id - 1] for image in images]),
        poses,
        np.array(tracks, int),
        np.array(points, float).reshape(-1, 3),
        float(model.compute_mean_reprojection_error()),
    )


def main(arguments: Sequence[str]) -> int:
    map_keyframes(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
