"""Commands of `fadepth` that read and write recordings (bags)."""

from __future__ import annotations

import argparse

from fadepth_core.cli_arguments import whole
from fadepth_core.common.files import user_path
from fadepth_core.data.bag_topics import Choice
from fadepth_core.labels.extract import LONGEST_SIDE, Extraction
from fadepth_core.labels.extract import extract as run_extraction

_SOURCES = {
    "image": "topic of the pictures, raw or compressed; default: the camera with the most pictures",
    "camera-info": "topic of its camera_info, or a JSON file with fx, fy, cx, cy of rectified pictures",
    "odometry": "topic of Odometry, PoseStamped or PoseWithCovarianceStamped, or /tf",
    "speed": "topic of TwistStamped, Odometry or NavSatFix",
    "depth": "topic of depth images",
    "lidar": "topic of PointCloud2",
    "right": "topic of the right camera of a stereo pair",
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
    parser.add_argument("bag", type=user_path, help="folder of rosbag2, or file: .mcap, .db3, .bag (ROS 1)")
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


def extract(args: argparse.Namespace) -> None:
    """Write a recording (rosbag2, ROS 1) as a clip: rectified pictures, camera, poses, speed, measured depth."""
    print_extraction(
        run_extraction(args.bag, args.out, topic_choice(args), args.longest_side, args.every, args.overwrite)
    )


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
