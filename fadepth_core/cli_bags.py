"""Commands of `fadepth` that read and write recordings (bags)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fadepth_core.cli_arguments import whole
from fadepth_core.cli_jobs import add_job_arguments, find_bags, run_each
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import errors_name, user_path
from fadepth_core.data.bag import Recording
from fadepth_core.data.bag_topics import Choice, find_camera
from fadepth_core.data.bag_writer import STORAGES, RecordingWriter
from fadepth_core.evaluation.bag_predictions import BagPrediction, BagReport, predict_recording
from fadepth_core.labels.extract import LONGEST_SIDE, Extraction
from fadepth_core.labels.extract import extract as run_extraction
from fadepth_core.runtime import rectifier, temporal
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import EngineError

_SOURCES = {
    "image": "topic of the pictures, raw or compressed; default: the camera with the most pictures",
    "camera-info": "topic of its camera_info, or a JSON file with fx, fy, cx, cy of rectified pictures",
    "odometry": "topic of Odometry, PoseStamped or PoseWithCovarianceStamped, or /tf",
    "speed": "topic of TwistStamped, Odometry or NavSatFix",
    "depth": "topic of depth images",
    "lidar": "topic of PointCloud2",
    "right": "topic of the right camera of a stereo pair",
}
#: Options of `predict` that only recordings have, with their defaults.
_PREDICT_DEFAULTS: dict[str, Any] = {
    "image": None,
    "camera_info": None,
    "points": None,
    "depth_encoding": None,
    "full_resolution": False,
    "copy": False,
    "rectify": "auto",
    "temporal": "off",
    "storage": None,
    "overwrite": False,
}


def add_topic_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name topics of a recording; `topic_choice` reads them."""
    for name, text in _SOURCES.items():
        optional = "" if name in ("image", "camera-info") else "; 'none' uses none"
        parser.add_argument(f"--{name}", metavar="TOPIC", help=text + optional)


def topic_choice(args: argparse.Namespace) -> Choice:
    """The topics that the options of `add_topic_arguments` name."""
    return Choice(**{key: getattr(args, key) for key in (name.replace("-", "_") for name in _SOURCES)})


def extract_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=user_path, nargs="+", help="folder of rosbag2, or file: .mcap, .db3, .bag (ROS 1)")
    parser.add_argument("--out", type=user_path, required=True, help="folder for the clip")
    add_topic_arguments(parser)
    parser.add_argument(
        "--longest-side",
        type=int,
        default=LONGEST_SIDE,
        metavar="PIXELS",
        help="reduce larger frames; default: %(default)s",
    )
    parser.add_argument("--every", type=whole(1, 1_000_000), default=1, metavar="N", help="take every N-th picture")
    parser.add_argument("--overwrite", action="store_true", help="replace a clip that was extracted before")
    add_job_arguments(parser)


def extract(args: argparse.Namespace) -> None:
    """Write recordings (rosbag2, ROS 1) as clips: rectified pictures, camera, poses, speed, measured depth."""
    bags = find_bags(args.bag)
    if bags != args.bag or len(bags) > 1:
        run_each(_extract_one, args, "bag", bags)
        return
    (args.bag,) = bags
    _extract_one(args)


def _extract_one(args: argparse.Namespace) -> None:
    with errors_name(args.out):
        result = run_extraction(args.bag, args.out, topic_choice(args), args.longest_side, args.every, args.overwrite)
    print_extraction(result)


def print_extraction(result: Extraction) -> None:
    """Print what was found and used, what is missing and what was left out."""
    counts = {"poses": result.poses, "speed": result.speeds, "depth": result.measured, "right": result.right}
    print(f"{result.recording}: {result.frames} frames in {result.seconds:.1f} s")
    for name in ("image", "camera", *counts):
        source = result.sources.get(name, "-")
        known = f"{counts[name]} of {result.frames} frames" if counts.get(name) else ""
        print(f"  {name:<8}{known:<24}{source}".rstrip())
    for text in (*result.missing, *result.notes):
        print(f"- {text}")
    print(f"wrote {result.folder}")


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `predict` for recordings."""
    group = parser.add_argument_group("for a recording (bag)")
    group.add_argument("--image", metavar="TOPIC", help=_SOURCES["image"])
    group.add_argument(
        "--camera-info", metavar="TOPIC", help="topic of its camera_info; default: the one beside the pictures"
    )
    group.add_argument(
        "--rectify",
        choices=rectifier.MODES,
        default="auto",
        help="auto, the default: rectify if D of camera_info is not 0 and the topic is not named image_rect",
    )
    group.add_argument(
        "--temporal", choices=temporal.MODES, default="off", help="remove jitter of depth between frames; default: off"
    )
    group.add_argument("--points", action=argparse.BooleanOptionalAction, help="write clouds; default: yes")
    group.add_argument(
        "--depth-encoding", choices=("32FC1", "16UC1"), help="32FC1: metres, the default; 16UC1: millimetres"
    )
    group.add_argument(
        "--full-resolution", action="store_true", help="depth at the images' size; default: at the network's"
    )
    group.add_argument(
        "--copy", action="store_true", help="also copy all other messages, so that one file has everything"
    )
    group.add_argument("--storage", choices=tuple(STORAGES), help="of a folder; default: mcap")
    group.add_argument("--overwrite", action="store_true", help="replace a recording")


def check_no_bag_options(args: argparse.Namespace) -> None:
    """Raise DataError if an option is given that only recordings have."""
    for name, default in _PREDICT_DEFAULTS.items():
        if getattr(args, name) != default:
            raise DataError(f"--{name.replace('_', '-')} is for recordings; {args.source} is none")


def predict_bag(args: argparse.Namespace, intrinsics: np.ndarray | None, backend: str, precision: str) -> None:
    """Write the depth of a recording to a recording.

    Args:
        args: those of `predict`.
        intrinsics: K [3, 3], if it was given.

    Raises:
        DataError: the recording or an option cannot be used, or no image could be.
    """
    if args.format is not None:
        raise DataError("--format is for pictures and videos; a recording's depth is written as --depth-encoding")
    if args.out.resolve() == args.source.resolve():
        raise DataError(f"--out {args.out}: the result would replace the recording; choose another name")
    target = RecordingWriter(args.out, args.storage, args.overwrite)  # an error here costs least
    recording = Recording(args.source)
    topics = find_camera(recording, args.image, args.camera_info)
    points = True if args.points is None else args.points
    options = BagPrediction(
        Checkpoint(args.checkpoint),
        intrinsics,
        args.camera,
        points,
        args.depth_encoding or "32FC1",
        args.full_resolution,
        args.copy,
        backend,
        precision,
        args.rectify,
        args.temporal,
    )
    report = BagReport()
    failure: EngineError | DataError | None = None
    with errors_name(args.out), target as writer:
        steps = predict_recording(recording, topics, writer, options, report)
        try:
            for _ in tqdm(steps, total=topics.image.messages, unit="frame"):
                pass
        except (EngineError, DataError) as error:
            if not report.frames:
                raise
            failure = error  # the depth before is kept
        if not report.frames:
            raise DataError(
                f"{args.source}: no depth: {_dropped(report) or f'{topics.image.name} has no images to read'}"
            )
    _print_report(args.out, report, [*topics.notes, *recording.notes], points)
    if failure is not None:
        raise DataError(f"stopped at image {report.images} of {topics.image.messages}: {failure}") from failure


def _print_report(out: Path, report: BagReport, notes: list[str], points: bool) -> None:
    for text in [*notes, *report.notes]:
        print(f"note: {text}", file=sys.stderr)
    if report.dropped:
        print(f"warning: {_dropped(report)}", file=sys.stderr)
    clouds = f" and {report.with_camera} clouds" if points else ""
    print(f"wrote {report.frames} depth images{clouds} to {out}")


def _dropped(report: BagReport) -> str:
    """Which images have no depth; empty if all have."""
    if not report.dropped:
        return ""
    causes = ", ".join(f"{cause} {count}" for cause, count in report.dropped.most_common())
    return f"{report.dropped.total()} of {report.images} images have no depth ({causes}); {report.first_dropped}"
