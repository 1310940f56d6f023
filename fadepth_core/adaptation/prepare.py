"""From a recording to labelled pictures: extraction, motion, depth labels, and frames held back for judging.

    bag -> clip -> motion -> labels -> teach/NAME, validate/NAME, judge/NAME (folders of `data.pictures`)

A video or a folder of frames (`data.video`) is a clip already. Recordings are prepared independently of each other, so several
can be prepared at a time, on several machines.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from fadepth_core.adaptation.hold_back import Roles, assign_roles
from fadepth_core.adaptation.stages import run_stage
from fadepth_core.common.cpus import usable_cpus
from fadepth_core.common.errors import DataError
from fadepth_core.common.folders import files_below, files_in
from fadepth_core.common.framing import choose_network_size
from fadepth_core.common.sample import Sample, evenly_spread
from fadepth_core.common.version import version
from fadepth_core.data.bag import is_bag
from fadepth_core.data.bag_topics import Choice
from fadepth_core.data.images import read_depth
from fadepth_core.data.pictures import write_pictures
from fadepth_core.data.video import Clip, open_clips
from fadepth_core.evaluation import PROTOCOLS, NetworkPredictor
from fadepth_core.evaluation.protocols import valid_pixels
from fadepth_core.labels.choose import Source, write_labels
from fadepth_core.labels.extract import LONGEST_SIDE, extract
from fadepth_core.labels.motion import Method, Motion, estimate_motion, usable_frames
from fadepth_core.labels.nearest import nearest_depth

#: The extracted clip and its poses, in the folder of a recording.
CLIP, POSES = "clip", "poses.npy"
#: Largest numbers of frames that choose the best network and that judge it.
MOST_VALIDATING, MOST_JUDGING = 24, 60
#: Measured depth, or a stereo pair, teaches if at least this many frames have it.
_ENOUGH = 30
#: What depth comes from, and what a frame needs for it.
SOURCES: dict[Source, str] = {"measured": "measured depth", "pair": "stereo pairs", "stereo": "multi-view stereo"}
_MISSING: dict[Source, str] = {
    "measured": "measured depth",
    "pair": "a right picture",
    "stereo": "enough motion of the camera for multi-view stereo",
}
#: Frames from which the scale of depth is taken if the motion has none.
_SCALE_FRAMES = 12
_LEAST_TEACHING = 20
#: Fewer pixels of a frame are too few to compare a prediction with. Depth beyond the protocol's 80 m does not count.
_LEAST_PIXELS = 50


@dataclass(frozen=True)
class PrepareOptions:
    """How recordings are read and labelled.

    Attributes:
        topics: the topics of a bag; others are chosen.
        longest_side: of the extracted frames, pixels.
        motion: see `labels.motion.estimate_motion`.
        speed: metres per second, for a recording without speeds and odometry.
        camera_height: metres above the ground.
        nearest: depth of the nearest surfaces, metres; None: measured.
        frames: largest number of frames that teach.
        withhold_depth: measured depth judges only.
        judge_last: see `hold_back.assign_roles`.
    """

    topics: Choice = field(default_factory=Choice)
    longest_side: int = LONGEST_SIDE
    motion: Method = "auto"
    speed: float | None = None
    camera_height: float | None = None
    nearest: float | None = None
    frames: int = 600
    withhold_depth: bool = False
    judge_last: float | None = None


@dataclass(frozen=True)
class Prepared:
    """A prepared recording.

    Attributes:
        name: unique among the recordings.
        source: the recording.
        size: (height, width) of the network's input.
        labels: what measured the depth that teaches.
        truth: what the network is judged by: the same, or measured depth.
        measured: whether `truth` was measured by a sensor.
        metric: whether depth is in metres. False: its scale was taken from the network.
        counts: frames by their use.
        judged: numbers of the frames that judge.
        seconds: time of each stage.
        digest: of the recording's files and the options.
        notes: what was found, what is missing and its consequence.
    """

    name: str
    source: str
    size: tuple[int, int]
    labels: str
    truth: str
    measured: bool
    metric: bool
    counts: dict[str, int]
    judged: tuple[int, ...]
    seconds: dict[str, float]
    digest: str
    notes: tuple[str, ...]

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Prepared:
        """From the values of `dataclasses.asdict` after a way through JSON."""
        return cls(
            **{
                **values,
                "size": tuple(values["size"]),
                "notes": tuple(values["notes"]),
                "judged": tuple(values["judged"]),
            }
        )


def prepare(source: Path, name: str, work: Path, options: PrepareOptions, network: NetworkPredictor) -> Prepared:
    """Label the frames of a recording and divide them by their use.

    Args:
        source: a bag, or a clip (`data.video`).
        name: of the recording, unique in `work`.
        work: folder of the adaptation; a finished recording is not prepared again.
        network: the network before the adaptation; gives the scale if nothing else does.

    Raises:
        DataError: the recording cannot be used; the message says why.
    """
    folder = work / "recordings" / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"version": version(), "source": _fingerprint(source), "options": asdict(options)}

    def compute() -> dict[str, Any]:
        return asdict(_Preparation(source, name, work, options, network, settings).run())

    packed = [work / kind / name for kind in ("teach", "validate", "judge")]
    try:
        return Prepared.from_values(run_stage(folder, "prepared", settings, compute, packed).result)
    except DataError as error:
        text, clip = str(error), f"{folder / CLIP}: "
        if text.startswith(clip):  # the user knows the recording, not the clip
            raise DataError(f"{source}: {text.removeprefix(clip)}") from error
        raise


class _Preparation:
    """The stages of one recording, see `prepare`."""

    def __init__(
        self,
        source: Path,
        name: str,
        work: Path,
        options: PrepareOptions,
        network: NetworkPredictor,
        settings: dict[str, Any],
    ):
        self._source, self._name, self._work = source, name, work
        self._folder = work / "recordings" / name
        self._options, self._network, self._settings = options, network, settings
        self._seconds: dict[str, float] = {}
        self._notes: list[str] = []
        self._left_out = 0  # pictures that could not be used

    def run(self) -> Prepared:
        options = self._options
        clip = self._open()
        measured = set(clip.depths or ())
        may_teach = not options.withhold_depth and len(measured) >= _ENOUGH
        roles = assign_roles(clip.times, () if may_teach else measured, options.judge_last)
        if len(roles.teach) < _LEAST_TEACHING or not roles.validate or not roles.judge:
            lost = (
                f"; {self._left_out} more pictures cannot be used, fadepth extract says why" if self._left_out else ""
            )
            raise DataError(
                f"{self._source}: too short: of {clip.count} frames in {clip.times[-1] - clip.times[0]:.1f} s, {len(roles.teach)} "
                f"may teach ({_LEAST_TEACHING} are needed), {len(roles.validate)} choose the best network, "
                f"{len(roles.judge)} judge it{lost}"
            )
        labels, labelled_by, scale = self._label(clip, roles, may_teach)
        judged_by_measured = bool(measured.intersection(roles.judge))
        truth = clip.depths if judged_by_measured and clip.depths else labels
        truth_scale = 1.0 if judged_by_measured else scale
        judged = _thinned(roles.judge, truth, MOST_JUDGING, truth_scale)
        counts = {
            "frames": clip.count,
            "teach": self._pack("teach", clip, labels, _thinned(roles.teach, labels, options.frames, scale), scale),
            "validate": self._pack(
                "validate", clip, labels, _thinned(roles.validate, labels, MOST_VALIDATING, scale), scale
            ),
            "judge": self._pack("judge", clip, truth, judged, truth_scale),
        }
        if counts["teach"] < _LEAST_TEACHING:
            raise DataError(
                f"{self._source}: depth could be measured in {counts['teach']} frames, {_LEAST_TEACHING} are needed"
            )
        if not counts["validate"] or not counts["judge"]:
            raise DataError(
                f"{self._source}: too short: no frame with depth is left to choose the best network, or to judge it by"
            )
        return Prepared(
            self._name,
            str(self._source),
            clip.size,
            labelled_by,
            SOURCES["measured"] if judged_by_measured else labelled_by,
            judged_by_measured,
            scale == 1.0,
            counts,
            tuple(judged),
            self._seconds,
            hashlib.sha256(json.dumps(self._settings, default=str).encode()).hexdigest(),
            tuple(self._notes),
        )

    def _open(self) -> Clip:
        """The recording as a clip at the size of the network's input."""
        path = self._source
        if is_bag(path):
            path = self._folder / CLIP

            def compute() -> dict[str, Any]:
                shutil.rmtree(path, ignore_errors=True)
                found = extract(self._source, path, self._options.topics, self._options.longest_side)
                sources = [f"{what}: {where}" for what, where in found.sources.items()]
                texts = (*sources, *found.missing, *found.notes)
                return {
                    "notes": [f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in texts],
                    "left_out": found.left_out,
                }

            extracted = self._stage("extract", self._settings, compute, path)
            self._notes += extracted["notes"]
            self._left_out = extracted["left_out"]
        return _open_clip(path)

    def _label(self, clip: Clip, roles: Roles, measured: bool) -> tuple[dict[int, Path], str, float]:
        """Measure the depth of frames of all uses.

        Args:
            measured: whether measured depth may teach.

        Returns:
            The depth file of each frame, what measured the depth, and the factor that brings it to metres, or to the network's scale
            if nothing says how long the camera's path is.
        """
        method: Source
        if measured and len(clip.depths or ()) >= _ENOUGH:
            method, available = "measured", set(clip.depths or ())
        elif len(clip.right or ()) >= _ENOUGH:
            method, available = "pair", set(clip.right or ())
        else:
            method, available = "stereo", self._usable_for_stereo(clip)
        most = (self._options.frames, 2 * MOST_VALIDATING, 2 * MOST_JUDGING)  # some frames get too little depth
        numbers = sorted(
            n for role, count in zip(roles, most, strict=True) for n in _spread(sorted(available & set(role)), count)
        )
        if not numbers:
            raise DataError(f"{self._source}: no frame that may teach has {_MISSING[method]}")
        folder, nearest = self._folder / "labels", self._options.nearest

        def compute() -> dict[str, Any]:
            threads = usable_cpus()
            return asdict(write_labels(clip, folder, numbers, method, nearest, threads=threads))

        self._notes += self._stage("labels", {**self._settings, "numbers": numbers}, compute, folder)["notes"]
        labels = {number: path for path in files_in(folder, {".png"}) if (number := int(path.stem)) in set(numbers)}
        scale = 1.0
        if method == "stereo" and self._motion(clip).scale == "unknown":
            scale = self._scale_of_network(clip, labels, roles.validate)
            self._notes.append(
                "The recording does not say how long its path is: depth keeps the scale of the network before, which may be wrong "
                "by a factor. State --constant-speed or --camera-height."
            )
        return labels, SOURCES[method], scale

    def _usable_for_stereo(self, clip: Clip) -> set[int]:
        """Find the motion, and the frames whose depth it lets stereo measure."""
        motion = self._motion(clip)
        clip.poses = motion.poses
        self._notes += motion.notes
        nearest = (
            self._options.nearest
            or self._stage("nearest", self._settings, lambda: {"metres": nearest_depth(clip)})["metres"]
        )
        usable = set(usable_frames(motion, nearest).tolist())
        if left_out := clip.count - len(usable):
            self._notes.append(
                f"In {left_out} of {clip.count} frames the camera stands, only turns, or its pose is unknown; they are not used."
            )
        return usable

    def _motion(self, clip: Clip) -> Motion:
        """Poses by odometry or structure from motion."""
        path = self._folder / POSES
        options = self._options

        def compute() -> dict[str, Any]:
            motion = estimate_motion(
                clip, self._folder / "motion", options.motion, options.speed, options.camera_height
            )
            np.save(path, motion.poses)
            return {"source": motion.source, "scale": motion.scale, "notes": motion.notes, "figures": motion.figures}

        result = self._stage("motion", self._settings, compute, path)
        return Motion(np.load(path), result["source"], result["scale"], tuple(result["notes"]), result["figures"])

    def _scale_of_network(self, clip: Clip, labels: dict[int, Path], numbers: list[int]) -> float:
        """Median ratio of the network's depth to the labels."""
        available = [number for number in numbers if number in labels] or sorted(labels)
        ratios = []
        for number in _spread(available, _SCALE_FRAMES):
            depth = read_depth(labels[number])
            predicted = 1 / self._network(np.ascontiguousarray(clip.source.frame(number)), clip.intrinsics)
            ratios.append(np.median(predicted[depth > 0]) / np.median(depth[depth > 0]))
        return float(np.median(ratios))

    def _pack(self, kind: str, clip: Clip, depths: dict[int, Path], numbers: list[int], scale: float) -> int:
        """Write frames with their depth to `kind`/`name`; returns their number."""
        folder = self._work / kind / self._name
        shutil.rmtree(folder, ignore_errors=True)
        if numbers:
            folder.mkdir(parents=True)
            clip.depths = depths
            write_pictures(_LabelledFrames(clip, scale), folder, tqdm(numbers, f"{kind}: writing", unit="frame"))
        return len(numbers)

    def _stage(
        self, name: str, settings: dict[str, Any], compute: Callable[[], dict[str, Any]], *outputs: Path
    ) -> dict[str, Any]:
        stage = run_stage(self._folder, name, settings, compute, outputs)
        self._seconds[name] = stage.seconds
        return stage.result


def judging_samples(recording: Prepared, work: Path, most: int) -> Iterator[Sample]:
    """Up to `most` samples of three frames around frames that judge, in which the camera moves; none without poses.

    Their poses are those that the labels were made with.
    """
    folder = work / "recordings" / recording.name
    clip = _open_clip(Path(recording.source) if not (folder / CLIP).is_dir() else folder / CLIP)
    if (folder / POSES).is_file():
        clip.poses = np.load(folder / POSES)
    if clip.poses is None:
        return
    inside = [n for n in recording.judged if clip.stride <= n < clip.count - clip.stride]
    moving = [n for n in inside if clip.moves(n, 0.0)]
    for number in _spread(moving, most):
        yield clip.sample(number)


def _open_clip(path: Path) -> Clip:
    size = choose_network_size(open_clips(path, (32, 32))[0].source.stored_size)
    clips = open_clips(path, size)
    if len(clips) > 1:
        raise DataError(f"{path}: {len(clips)} clips; name them one by one")
    return clips[0]


class _LabelledFrames(Dataset[Sample]):
    """Frames of a clip as samples of one frame; the index is the frame's number.

    Args:
        clip: with its depths.
        scale: factor on depth.
    """

    def __init__(self, clip: Clip, scale: float):
        self._clip, self._scale = clip, scale

    def __len__(self) -> int:
        return self._clip.count

    def __getitem__(self, number: int) -> Sample:
        clip = self._clip
        frame = torch.from_numpy(np.ascontiguousarray(clip.source.frame(number))).permute(2, 0, 1)
        return Sample(
            frame[None].float() / 255,
            torch.from_numpy(clip.intrinsics).float(),
            torch.tensor(0.0),
            f"{clip.name}:{number}",
            depth=torch.from_numpy(clip.depth(number) * np.float32(self._scale)),
        )


def _thinned(numbers: list[int], labels: Mapping[int, Path], most: int, scale: float) -> list[int]:
    """Up to `most` of the frames, evenly spread, whose label times `scale` can be compared with a prediction."""
    chosen = _spread([number for number in numbers if number in labels], most)
    protocol = PROTOCOLS["folder"]
    return [n for n in chosen if valid_pixels(read_depth(labels[n]) * scale, protocol).sum() >= _LEAST_PIXELS]


def _spread(numbers: list[int], most: int) -> list[int]:
    """Up to `most` of the numbers, evenly spread."""
    return [numbers[i] for i in evenly_spread(len(numbers), most)] if numbers else []


def _fingerprint(source: Path) -> list[Any]:
    """Path, size and time of a recording's files: it is prepared again when they change."""
    files = files_below(source) if source.is_dir() else [source]
    return [str(source.resolve()), [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]]
