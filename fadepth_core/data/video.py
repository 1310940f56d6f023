"""Clips of the user's own camera as data set: videos or folders of frames, with a JSON file that describes the camera.

    clips/front.mp4      clips/front.json
    clips/hall/0001.png  clips/hall/camera.json

A clip without its own JSON uses the `camera.json` of the nearest folder above it. Keys:

    fx, fy, cx, cy   intrinsics in pixels of the frames as they are shown, pixel centres at whole numbers (required)
    width, height    size of the stored frames, checked against them
    fps              frames per second; default for a video file: the rate that the file states
    times            file with the time of each frame in seconds, one per line; replaces fps
    stride           distance between the frames of a sample, in stored frames (also: recommended_stride)
    speed            metres per second: a number, a list with one value per frame, or a file with one line per frame;
                     a line `nan` is a speed that is not known
    poses            file with one line per frame: camera-to-world pose, 3x4, row by row, metres (KITTI odometry format);
                     a line of twelve `nan` is a pose that is not known
    depth            folder of 16-bit PNGs, metres * 256, 0 where unknown, named by frame number (from 000000.png), at
                     the size of the stored frames or of training (as `labels.stereo` writes them); the depth of a
                     frame without a file is unknown
    right            folder of rectified frames of the right camera of a stereo pair, named by frame number like the
                     depth, with the same intrinsics
    baseline         metres from the left to the right camera (required by right)

Files are searched in the folder of the JSON, in the folder of the clip, then inside the clip if it is a folder. Other
keys are ignored.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from fadepth_core.common.camera import PinholeCamera, check_rotations, read_fps
from fadepth_core.common.documents import as_number, as_object, read_json, read_numbers, shown, whole_number
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path, write_atomically
from fadepth_core.common.folders import files_in, folders_below, visible
from fadepth_core.common.framing import Framing
from fadepth_core.common.sample import Sample
from fadepth_core.common.video import VideoFile
from fadepth_core.data.clip_cache import ClipCache
from fadepth_core.data.images import PICTURES, is_depth, read_depth, read_depth_at, read_rgb

log = logging.getLogger(__name__)

VIDEOS = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v"}
CAMERA = "camera.json"
EXAMPLE = '{"fx": 578.0, "fy": 575.3, "cx": 335.9, "cy": 75.6, "fps": 25, "stride": 2}'

#: Below this speed the camera counts as standing still, metres per second.
_MIN_SPEED = 0.3
#: Larger speeds are not in metres per second.
_MAX_SPEED = 1000.0


class VideoDataset(Dataset[Sample]):
    """Samples of three frames each from all clips below a folder.

    Args:
        root: folder that is searched for clips, or one clip: a video file or a folder of frames.
        size: height and width of the frames, pixels; clips of another aspect ratio are cropped at the centre.
        camera: JSON file for clips without their own.
        stride: replaces the stride of the clips' JSON files. Without either, the stride is 1.
        first: number of the first frame that is used, in every clip.
        split: "val" is the last part of every clip, "train" the rest, "all" the whole clip.
        validation: the validation part as a share of the clip.
        min_flow: for clips without poses and speed: a sample is left out as static if the median optical flow between
            two of its neighbouring frames is below this, pixels at `size`.
        cache: folder for decoded videos, because seeking in a video is slow and inexact; default: the user's cache.

    Attributes:
        clips: the name of each sample's clip.

    Raises:
        DataError: no clip, an invalid clip or JSON, or only static frames.
    """

    def __init__(
        self,
        root: Path,
        size: tuple[int, int] = (128, 416),
        camera: Path | None = None,
        stride: int | None = None,
        first: int = 0,
        split: Literal["train", "val", "all"] = "all",
        validation: float = 0.1,
        min_flow: float = 0.5,
        cache: Path | None = None,
    ):
        if split not in ("train", "val", "all"):
            raise DataError(f"split must be train, val or all, got '{split}'")
        if not 0 < validation < 1:
            raise DataError(f"validation must be a share between 0 and 1, got {validation}")
        if stride is not None and stride < 1:
            raise DataError(f"stride must be at least 1, got {stride}")
        if first < 0:
            raise DataError(f"first must not be negative, got {first}")
        self._clips = open_clips(root, size, camera, stride, cache)
        self._entries: list[tuple[int, int]] = []
        found = 0
        for number, clip in enumerate(self._clips):
            centres = clip.centres(first, split, validation)
            kept = [centre for centre in centres if clip.moves(centre, min_flow)]
            found += len(centres)
            self._entries += [(number, centre) for centre in kept]
        if not found:
            raise DataError(f"{root}: no clip has a sample of split '{split}' from frame {first} on")
        if not self._entries:
            raise DataError(f"{root}: the camera stands still in all {found} samples of split '{split}'")
        # All samples of a batch must have the same fields.
        if any(clip.speeds is not None for clip in self._clips):
            for clip in self._clips:
                clip.mark_speed_as_unknown()
        if any(clip.depths is not None for clip in self._clips):
            for clip in self._clips:
                clip.depths = clip.depths or {}
        log.info(
            "%s: %d clips, %d samples, %d static ones left out", root, len(self._clips), len(self), found - len(self)
        )

    @property
    def clips(self) -> list[str]:
        return [self._clips[number].name for number, _ in self._entries]

    def place(self, index: int) -> tuple[Clip, int]:
        """The clip of a sample, and the number of its middle frame there."""
        number, centre = self._entries[index]
        return self._clips[number], centre

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        clip, centre = self.place(index)
        return clip.sample(centre)


def open_clips(
    root: Path, size: tuple[int, int], camera: Path | None = None, stride: int | None = None, cache: Path | None = None
) -> list[Clip]:
    """All clips at or below `root`; arguments and errors are those of `VideoDataset`."""
    root = user_path(root)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    places = _find_clips(root)
    if not places:
        raise DataError(f"{root}: no video ({', '.join(sorted(VIDEOS))}) and no folder of frames in it")
    clip_cache = ClipCache(cache and user_path(cache))
    sides = (size[0], size[1])
    clips = [Clip(place, root, sides, camera and user_path(camera), stride, clip_cache) for place in places]
    clip_cache.trim()
    return clips


class Clip:
    """One clip with the data of its JSON.

    Args:
        place: the video file or the folder of frames.
        root: root of the data set.
        size: (height, width) of the frames for training.
        camera: JSON file for a clip without its own.
        stride: replaces the stride of the JSON.
        cache: decoded videos.

    Attributes:
        path, name: the video file or the folder of frames, and its path below the data set's root.
        camera: the JSON file.
        count, size: number of frames, and their (height, width) for training.
        source: `frame(number)` reads a frame as RGB uint8 at that size.
        intrinsics: K [3, 3] at that size.
        stored_intrinsics: K [3, 3] of the stored frames, see `stored_frames`.
        times: seconds [N].
        speeds: metres per second [N], NaN where unknown, or None.
        poses: camera-to-world [N, 4, 4], metres, NaN where unknown, or None.
        depths: the depth file of each frame that has one, or None.
        right: the picture of the right camera of each frame that has one, or None.
        baseline: metres between the cameras of a stereo pair, or None.

    Raises:
        DataError: the clip or its JSON is invalid, or has too few frames.
    """

    def __init__(
        self, place: Path, root: Path, size: tuple[int, int], camera: Path | None, stride: int | None, cache: ClipCache
    ):
        self.path = place
        self.name = place.relative_to(root).as_posix() if place != root else place.name
        self.source = _Video(place, size, cache) if place.is_file() else _Folder(place, size)
        self.camera = camera = _camera_of(place, root, camera)
        matrix, values = read_camera(camera, self.source.stored_size, place)
        self.stride = stride or whole_number(
            values.get("stride", values.get("recommended_stride", 1)), "stride", camera
        )
        self.size = size
        self.count = count = self.source.count
        if count < 2 * self.stride + 1:
            raise DataError(f"{place}: {count} frames; a sample at stride {self.stride} needs {2 * self.stride + 1}")
        self.stored_intrinsics = np.asarray(matrix, np.float64)
        self.intrinsics = self.source.framing.output_intrinsics(matrix)
        self.times = self._times(values)
        self.speeds = self._speeds(values)
        self.poses = self._poses(values)
        self.depths = self._numbered_files(values, "depth", {".png"})
        self.right = self._numbered_files(values, "right", PICTURES)
        self.baseline = self._baseline(values)

    def centres(self, first: int, split: str, validation: float) -> range:
        """Numbers of the middle frames of a split's samples; see `VideoDataset` for the arguments.

        The samples of "train" and "val" have no frame in common.
        """
        first, last = first + self.stride, self.source.count - self.stride
        if first >= last:
            return range(0)
        cut = last - max(1, round(validation * (last - first)))
        if split == "train":
            return range(first, max(first, cut - 2 * self.stride))
        return range(cut, last) if split == "val" else range(first, last)

    def moves(self, centre: int, min_flow: float) -> bool:
        """Whether the camera moves in the sample around frame `centre`.

        Decided by the poses if known, else by the speeds if known, else by the optical flow (`min_flow`). False if one
        of the three poses or the speed is NaN.
        """
        before, after = centre - self.stride, centre + self.stride
        seconds = self.times[after] - self.times[before]
        if self.poses is not None:
            # Comparisons with NaN are false.
            return (
                np.isfinite(self.poses[centre]).all()
                and np.linalg.norm(self.poses[after, :3, 3] - self.poses[before, :3, 3]) >= _MIN_SPEED * seconds
            )
        if self.speeds is not None:
            return self.speeds[centre] >= _MIN_SPEED
        flow = self.source.flow(self.stride)
        return min(flow[centre], flow[after]) >= min_flow

    def stored_frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Frames as they are stored, RGB uint8 [H, W, 3], without the crop and the resize for training.

        Args:
            numbers: frame numbers, ascending, because a video is decoded from its start.

        Raises:
            DataError: a frame cannot be read.
        """
        return self.source.stored_frames(numbers)

    def mark_speed_as_unknown(self) -> None:
        """Set missing speeds to NaN, for a data set in which other clips have speeds."""
        if self.speeds is None:
            self.speeds = np.full(self.source.count, np.nan)

    def numbers(self, centre: int) -> list[int]:
        """Numbers of the three frames of the sample whose middle frame is `centre`."""
        return [centre - self.stride, centre, centre + self.stride]

    def sample(self, centre: int) -> Sample:
        """The sample whose middle frame is `centre`.

        Raises:
            DataError: a frame or depth file is invalid.
        """
        numbers = self.numbers(centre)
        frames = torch.from_numpy(np.stack([self.source.frame(n) for n in numbers])).permute(0, 3, 1, 2)
        poses = None
        if self.poses is not None:
            # Relative to the middle camera, coordinates are small enough for float32.
            poses = torch.from_numpy(np.linalg.inv(self.poses[centre]) @ self.poses[numbers]).float()
        return Sample(
            frames.float() / 255,
            torch.from_numpy(self.intrinsics).float(),
            torch.tensor((self.times[numbers[2]] - self.times[numbers[0]]) / 2, dtype=torch.float32),
            f"{self.name}:{centre}",
            None if self.speeds is None else torch.tensor(self.speeds[centre], dtype=torch.float32),
            poses,
            None if self.depths is None else torch.from_numpy(self.depth(centre)),
        )

    def depth(self, number: int) -> np.ndarray:
        """Depth of a frame at the size for training, [h, w] float32 metres, 0 where unknown.

        Raises:
            DataError: its file cannot be read or has another size.
        """
        framing = self.source.framing
        path = None if self.depths is None else self.depths.get(number)
        if path is None:
            return np.zeros(framing.network_size, np.float32)
        depth = read_depth(path)
        if depth.shape == framing.network_size:
            return depth
        if depth.shape != self.source.stored_size:
            (h, w), (height, width) = depth.shape, self.source.stored_size
            raise DataError(f"{path}: {w}x{h} pixels, the clip's frames have {width}x{height}")
        return read_depth_at(framing, path)

    # The following methods read one key of the JSON each; `values` are all its keys.

    def _times(self, values: dict) -> np.ndarray:
        if "times" in values:
            times = self._read_column(values["times"], "times")
            if not (np.diff(times) > 0).all():
                raise DataError(f"{self.camera}: times do not increase from frame to frame")
            return times
        fps = values.get("fps", self.source.fps)
        if fps is None:
            raise DataError(f"{self.camera}: needs fps, frames per second, as a positive number, or times")
        return np.arange(self.source.count) / read_fps(fps, self.camera)

    def _speeds(self, values: dict) -> np.ndarray | None:
        speed = values.get("speed")
        if speed is None:
            return None
        where: Path = self.camera
        if isinstance(speed, str):
            where = self._find(speed, "speed")
            speeds = self._read_column(speed, "speed")
        elif isinstance(speed, list):
            speeds = np.array([as_number(value, f"speed of frame {i}", where) for i, value in enumerate(speed)])
            self._check_count(speeds, "speed", where)
        else:
            speeds = np.full(self.source.count, as_number(speed, "speed", where))
        speeds = np.abs(speeds)  # a vehicle that reverses may state a negative speed
        if (speeds > _MAX_SPEED).any():
            raise DataError(f"{where}: speed must be in metres per second, got {np.nanmax(speeds):g}")
        return None if np.isnan(speeds).all() else speeds

    def _poses(self, values: dict) -> np.ndarray | None:
        if "poses" not in values:
            return None
        path = self._find(values["poses"], "poses")
        rows = read_numbers(path, unknown=True)
        self._check_count(rows, "poses", path)
        if rows.shape[1] != 12:
            raise DataError(f"{path}: each line must have the twelve numbers of a 3x4 pose")
        known = np.isfinite(rows).all(1)
        if not known.any():
            return None
        poses = np.tile(np.eye(4), (len(rows), 1, 1))
        check_rotations(np.where(known[:, None, None], rows.reshape(-1, 3, 4), poses[:, :3])[:, :, :3], path)
        poses[:, :3] = rows.reshape(-1, 3, 4)
        return poses

    def _baseline(self, values: dict) -> float | None:
        if self.right is None:
            return None
        if "baseline" not in values:
            raise DataError(f"{self.camera}: right needs baseline, the metres between the two cameras")
        baseline = as_number(values["baseline"], "baseline", self.camera)
        if not baseline > 0:
            raise DataError(f"{self.camera}: baseline must be positive, metres, got {baseline:g}")
        return baseline

    def _numbered_files(self, values: dict, key: str, suffixes: set[str]) -> dict[int, Path] | None:
        if key not in values:
            return None
        folder = self._find(values[key], key, Path.is_dir)
        files: dict[int, Path] = {}
        for path in files_in(folder, suffixes):
            number = int(path.stem) if path.stem.isdecimal() else -1
            if not 0 <= number < self.source.count:
                raise DataError(f"{path}: its name is not a frame number from 0 to {self.source.count - 1}")
            if number in files:
                raise DataError(f"{folder}: {files[number].name} and {path.name} are {key} of the same frame")
            files[number] = path
        if not files:
            raise DataError(f"{folder}: no {key} ({', '.join(sorted(suffixes))}) in it")
        return files

    def _read_column(self, name: str, what: str) -> np.ndarray:
        """Read a file with one number per frame; `what` names its contents in error messages."""
        path = self._find(name, what)
        table = read_numbers(path, unknown=what == "speed")
        if table.shape[0] == 1:  # all in one line
            table = table.T
        self._check_count(table, what, path)
        if table.shape[1] != 1:
            raise DataError(f"{path}: each line must have one number, the {what} of a frame; found {table.shape[1]}")
        return table[:, 0]

    def _check_count(self, values: np.ndarray, what: str, where: Path) -> None:
        """Check that there is a value or a row for every frame."""
        if len(values) != self.source.count:
            raise DataError(f"{where}: {what} of {len(values)} frames, but {self.path} has {self.source.count}")

    def _find(self, name: object, what: str, is_there: Callable[[Path], bool] = Path.is_file) -> Path:
        """Path of a file or folder that the JSON names."""
        if not isinstance(name, str):
            raise DataError(f"{self.camera}: {what} must be the name of a file or folder, got {shown(name)}")
        for folder in (self.camera.parent, self.path.parent, self.path):
            try:
                if is_there(folder / user_path(name)):
                    return folder / user_path(name)
            except (OSError, ValueError) as error:  # a name that is too long, a null character
                raise DataError(f"{self.camera}: {what} {shown(name)} cannot be read: {error}") from None
        raise DataError(f"{self.camera}: {what} '{name}' is neither beside it nor beside {self.path}")


class _Folder:
    """A folder of frames, read on demand. It has the same methods and attributes as `_Video`."""

    fps = None

    def __init__(self, path: Path, size: tuple[int, int]):
        self._files = files_in(path, PICTURES)
        self._flows: dict[int, np.ndarray] = {}
        self.count = len(self._files)
        self.stored_size = read_rgb(self._files[0]).shape[:2]
        self.framing = Framing.plan(self.stored_size, size, crop_to_aspect=True)

    def frame(self, number: int) -> np.ndarray:
        return self.framing.to_network(self.stored_frame(number))

    def stored_frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        return ((number, self.stored_frame(number)) for number in numbers)

    def stored_frame(self, number: int) -> np.ndarray:
        """RGB uint8 [H, W, 3] as it is stored."""
        image = read_rgb(self._files[number])
        if image.shape[:2] != self.stored_size:
            (h, w), (height, width) = image.shape[:2], self.stored_size
            raise DataError(f"{self._files[number]}: {w}x{h} pixels, the clip's first frame has {width}x{height}")
        return image

    def flow(self, stride: int) -> np.ndarray:
        if stride not in self._flows:
            self._flows[stride] = _median_flow(self, stride)
        return self._flows[stride]


class _Video:
    """A video file, decoded once into an .npy file that every loader process maps into memory.

    Args:
        path: the video file.
        size: (height, width) of the frames for training.
        cache: where the .npy file is kept.

    Attributes:
        count: number of frames.
        fps: frames per second that the file states, or None.
        stored_size: (height, width) of the frames in the file.
        framing: from the stored frames to `size`.

    If fewer frames can be decoded than the file states, a warning is logged.
    """

    def __init__(self, path: Path, size: tuple[int, int], cache: ClipCache):
        self._path = path
        video = VideoFile(path)
        self.fps, self.stored_size = video.fps, video.size
        self.framing = Framing.plan(self.stored_size, size, crop_to_aspect=True)
        stat = path.stat()
        # os.fsencode: the name need not be valid text.
        key = os.fsencode(path.resolve()) + f" {stat.st_size} {stat.st_mtime_ns} {size}".encode()
        self._cached = cache.path(f"{path.stem}-{hashlib.sha256(key).hexdigest()[:16]}")
        self.count = len(self._frames)
        if damage := video.damage(self.count):
            log.warning("%s", damage)

    @cached_property
    def _frames(self) -> np.ndarray:
        # Decoded here and not in `__init__`: another run may have removed the file to make room.
        if not self._cached.is_file():
            images = (self.framing.to_network(image) for image in VideoFile(self._path))
            progress = tqdm(images, desc=f"decoding {self._path.name}", unit="frame")
            _write(self._cached, lambda part: save_frames(part, progress, self.framing.network_size))
        return np.load(self._cached, mmap_mode="r")

    def __getstate__(self) -> dict:
        # Pickling a memory map would copy its data. Each loader process maps the file again instead.
        return {key: value for key, value in self.__dict__.items() if key != "_frames"}

    def frame(self, number: int) -> np.ndarray:
        """RGB uint8 [h, w, 3] at the size for training."""
        return self._frames[number]

    def stored_frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        wanted = iter(numbers)
        number = next(wanted, None)
        for position, image in enumerate(VideoFile(self._path)):
            if number is None:
                return
            if position == number:
                yield number, image
                number = next(wanted, None)

    def flow(self, stride: int) -> np.ndarray:
        """`_median_flow` of all frames, with a cache on disk."""
        path = self._cached.with_suffix(f".flow{stride}.npy")
        if not path.is_file():
            _write(path, lambda part: _save(part, _median_flow(self, stride)))
        return np.load(path)


def save_frames(part: str, frames: Iterable[np.ndarray], size: tuple[int, int]) -> None:
    """Write RGB uint8 frames [h, w, 3] of `size` (h, w) to an .npy file one by one, so that only one is in memory."""
    with open(part, "wb") as stream:
        count = 0
        start = _write_header(stream, (0, *size, 3))
        for frame in frames:
            stream.write(np.ascontiguousarray(frame).data)
            count += 1
        stream.seek(0)
        # numpy reserves room in the header for the first dimension to grow.
        if _write_header(stream, (count, *size, 3)) != start:
            raise RuntimeError("the header of an .npy file has no room for the number of frames")


def _write_header(stream: BinaryIO, shape: tuple[int, ...]) -> int:
    """Write the header of an .npy file of bytes; returns its length."""
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.tell()


def _write(path: Path, write: Callable[[str], None]) -> None:
    """Write a file of the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        raise DataError(f"{path}: cannot write the decoded video: {error}; set `cache` to another folder") from error


def _save(part: str, values: np.ndarray) -> None:
    with open(part, "wb") as stream:  # given a path, np.save would append a suffix
        np.save(stream, values)


def _median_flow(source: _Folder | _Video, stride: int) -> np.ndarray:
    """Median length of the optical flow between each frame and the frame `stride` before it, [N] pixels.

    The first `stride` values are 0. Frames are reduced to a third, which is enough to detect that the camera moves.
    """
    height, width = source.framing.network_size
    small = (max(32, width // 3), max(32, height // 3))
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    greys = [
        cv2.resize(cv2.cvtColor(source.frame(n), cv2.COLOR_RGB2GRAY), small, interpolation=cv2.INTER_AREA)
        for n in range(source.count)
    ]
    flows = np.zeros(source.count)
    for number in range(stride, source.count):
        flow = finder.calc(greys[number - stride], greys[number], None)  # type: ignore[call-overload]  # None: no array to reuse
        flow = flow * (width / small[0], height / small[1])
        flows[number] = np.median(np.linalg.norm(flow, axis=-1))
    return flows


def _find_clips(root: Path) -> list[Path]:
    """Videos and folders of frames at or below `root`, sorted; `common.folders` says what is left out."""
    if root.is_file():
        return [root] if root.suffix.lower() in VIDEOS else []
    clips = []
    for folder in folders_below(root):
        clips += [path for path in visible(folder) if path.suffix.lower() in VIDEOS and path.is_file()]
        if _has_frames(folder) and not _is_right_of_pair(folder):
            clips.append(folder)
    return sorted(clips)


def _is_right_of_pair(folder: Path) -> bool:
    """Whether the clip above the folder names it as the frames of its right camera."""
    camera = folder.parent / CAMERA
    return camera.is_file() and as_object(read_json(camera), camera).get("right") == folder.name


def _has_frames(folder: Path) -> bool:
    """Whether the folder has images and its first image is not depth (one channel of 16 bits)."""
    first = next(iter(files_in(folder, PICTURES)), None)
    return first is not None and not is_depth(first)


def own_cameras(clip: Path) -> list[Path]:
    """Possible paths of the JSON of a video file or a folder of frames. The first that exists is used."""
    return [clip.with_suffix(".json")] if clip.is_file() else [clip / CAMERA, clip.parent / f"{clip.name}.json"]


def read_camera(path: Path, size: tuple[int, int], frames: Path) -> tuple[np.ndarray, dict]:
    """Read the JSON of a camera.

    Args:
        path: the JSON file.
        size: (height, width) of the stored frames.
        frames: where the frames are, for error messages.

    Returns:
        K [3, 3] in pixels, and all keys of the file with their values.

    Raises:
        DataError: the file is invalid, states another size of the frames, or no camera has its intrinsics.
    """
    values = as_object(read_json(path), path, f"; an example: {EXAMPLE}")
    try:
        camera = PinholeCamera.from_values(values, path, size, frames)
    except KeyError as error:
        raise DataError(f"{path}: has no {error}; an example: {EXAMPLE}") from None
    return camera.matrix, values


def _camera_of(clip: Path, root: Path, default: Path | None) -> Path:
    """The JSON of a clip: its own, else `default`, else the nearest camera.json in the folders above, up to `root`."""
    own = own_cameras(clip)
    top = root if root.is_dir() else root.parent
    above = [folder / CAMERA for folder in clip.parents if folder == top or top in folder.parents]
    for path in [*own, *([default] if default else []), *above]:
        if path.is_file():
            return path
    if default is not None:
        raise DataError(f"{default}: no such file")
    raise DataError(f"{clip}: no {own[0].name} beside it and no {CAMERA} above it; an example: {EXAMPLE}")
