"""The command `fadepth`: all offline work, from rendering training data to exporting a checkpoint.

Each command has two functions: one declares its arguments, the next one runs it. `_COMMANDS` lists the commands.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from tqdm import tqdm

from fadepth_core import __version__
from fadepth_core.cli_adapt import adapt_arguments, run_adapt
from fadepth_core.cli_arguments import number, whole
from fadepth_core.cli_bags import (
    add_predict_arguments,
    check_no_bag_options,
    extract,
    extract_arguments,
    predict_bag,
)
from fadepth_core.cli_confidence import confidence_arguments, run_confidence
from fadepth_core.cli_jobs import add_job_arguments, bags_below, expand, run_each
from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD, to_picture
from fadepth_core.common.documents import parse_yaml, shown
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_cache, user_path
from fadepth_core.common.framing import FramingError
from fadepth_core.common.memory import keep_freed_memory
from fadepth_core.common.sample import LabelledImage
from fadepth_core.data.bag import is_bag
from fadepth_core.data.clip_cache import LIMIT, ClipCache, limit_bytes
from fadepth_core.data.frames import Frames
from fadepth_core.data.pictures import write_pictures
from fadepth_core.data.registry import TRAINING_SETS, build_dataset, build_test_set
from fadepth_core.data.shrink import shrink_folders
from fadepth_core.data.video import Clip, VideoDataset, open_clips
from fadepth_core.evaluation import (
    PROTOCOLS,
    EnginePredictor,
    NetworkPredictor,
    Predictor,
    Protocol,
    calibration,
    choose_evenly,
    compare_evenly,
    evaluate_steady_video,
    evaluate_uncertainty,
    evaluate_video,
    flip_difference,
    picture_sheet,
    prediction_sheet,
    print_table,
    print_uncertainty_table,
    print_video_table,
    published_rows,
    uncertainty_values,
    write_json,
    write_predictions,
    write_sheet,
    write_values,
)
from fadepth_core.evaluation import evaluate as run_protocol
from fadepth_core.evaluation import predict as run_prediction
from fadepth_core.evaluation.baselines import ConstantDepth, GroundPlane
from fadepth_core.evaluation.odometry import FORMATS as TRAJECTORY_FORMATS
from fadepth_core.evaluation.odometry import (
    TrajectoryErrors,
    estimate_trajectory,
    trajectory_errors,
    write_trajectory,
)
from fadepth_core.evaluation.predictions import FORMATS, FPS
from fadepth_core.evaluation.uncertainty import Uncertainty
from fadepth_core.geometry import MAX_DEPTH, MIN_DEPTH
from fadepth_core.models import MODELS, DepthNetwork, build_model
from fadepth_core.models.complexity import PRINTED, complexity
from fadepth_core.models.depth_network import DeployedNetwork
from fadepth_core.runtime import backends, temporal
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError, Description
from fadepth_core.runtime.engine import EngineError
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_core.runtime.verification import CHECK_BOUNDS
from fadepth_core.training.ablation import TABLE as ABLATION_TABLE
from fadepth_core.training.ablation import ablate as run_ablation
from fadepth_core.training.config import ConfigError, load_config
from fadepth_core.training.fit import fit as run_fit
from fadepth_core.training.labels import label_pictures
from fadepth_core.training.pose_checkpoint import load_pose_net
from fadepth_core.training.run_folder import TrainingError

#: Height and width of the network's input in the paper's figures on KITTI.
SIZE = (128, 416)
#: The protocol for clips without true depth.
VIDEO = "video"
_SHEET_ROWS = 10

#: The data set of each protocol, with its options.
_TEST_SETS = {
    "kitti_eigen": ("kitti", {}),
    "kitti_eigen_improved": ("kitti", {"ground_truth": "improved"}),
    "kitti_eigen_improved_monodepth2": ("kitti", {"ground_truth": "improved"}),
    "ddad_80": ("ddad", {}),
    "ddad_200": ("ddad", {}),
    "folder": ("folder", {}),
}

#: Errors that a user can correct. They are printed in one line.
_USER_ERRORS = (
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    FramingError,
    TrainingError,
    ImportError,
    OSError,
)


# ------------------------------------------------------------------------------------------------------------- training


def _fit_arguments(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in the configured output folder")


def fit(args: argparse.Namespace) -> None:
    """Train a network as a configuration says; Ctrl-C stops, --resume continues."""
    config = load_config(args.config, args.set)
    try:
        result = run_fit(config, args.resume)
    except KeyboardInterrupt:
        raise TrainingError(f"interrupted; the state is in {config.output}, continue with --resume") from None
    if result is None:  # not the first process of a distributed run
        return
    for name, value in result.metrics.items():
        print(f"{name:<28}{value:.4f}")
    if result.best is not None:
        print(
            f"exported the best network in validation: iteration {result.best['iteration']}, "
            f"AbsRel {result.best['abs_rel']:.4f}"
        )
    else:
        print("exported the network after the last iteration; a configuration with validation exports the best one")
    print(f"wrote {result.checkpoint}; for the depth node: --ros-args -p checkpoint:={result.checkpoint}")


def _distill_arguments(parser: argparse.ArgumentParser) -> None:
    _fit_arguments(parser)
    parser.add_argument(
        "--teacher", type=user_path, required=True, help="training checkpoint, or folder of predicted depth"
    )


def distill(args: argparse.Namespace) -> None:
    """Train a network with a teacher: a larger network, or a folder of predicted depth."""
    args.set = [*args.set, f"teacher.source={json.dumps(str(args.teacher))}"]
    fit(args)


def _ablate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--out", type=user_path, help="folder of all runs; default: a folder in runs/ named after the configuration"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="variants to train and compare; default: all"
    )
    parser.add_argument("--jobs", type=whole(1, 64), default=1, metavar="N", help="number of runs at a time")


def ablate(args: argparse.Namespace) -> None:
    """Train variants of a configuration with several seeds, and compare them."""
    fit_command = [sys.executable, "-m", "fadepth_core", "fit"]
    # Variants of two configurations may have the same name, so each configuration has its own folder.
    out = args.out or Path("runs") / args.config.stem
    print(run_ablation(args.config, args.set, out, fit_command, args.jobs, args.only))
    print(f"all figures: {out / ABLATION_TABLE}")


# ----------------------------------------------------------------------------------------------------------- evaluation


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=user_path)
    parser.add_argument("--protocol", choices=sorted([*PROTOCOLS, VIDEO]), required=True)
    parser.add_argument("--root", type=user_path, required=True, help="folder of the data set")
    parser.add_argument(
        "--improved-root",
        type=user_path,
        help="folder of KITTI's annotated depth, for the kitti_eigen_improved protocols",
    )
    parser.add_argument(
        "--entries",
        type=user_path,
        help='KITTI: file with "drive frame side" in each line, instead of the published list',
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: as trained")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture (the paper's ‡)")
    parser.add_argument(
        "--scaling",
        choices=("median", "none"),
        help="none measures metric depth (of a video only if it has poses); default: the protocol's",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also measure a constant depth: the median of the true depth, if there is any",
    )
    parser.add_argument(
        "--camera-height",
        type=number(0, 1e4),
        metavar="METRES",
        help="also measure a flat ground this far below the camera",
    )
    parser.add_argument("--untrained", action="store_true", help="also measure the same network with random weights")
    parser.add_argument(
        "--confidence",
        action="store_true",
        help="also measure how well confidence ranks the errors (AUSE, AURG), beside the difference to the mirrored picture",
    )
    parser.add_argument(
        "--frames", type=whole(1, 10_000), default=16, metavar="N", help="video: frames of each clip, evenly spread"
    )
    parser.add_argument(
        "--temporal", nargs="+", choices=temporal.MODES, default=["off"], help="video: temporal filters of the node"
    )
    _add_engine(parser, "plain PyTorch; the fastest backend if --precision is given")
    parser.add_argument("--out", type=user_path, default=Path("evaluation"), help="folder for figures and pictures")


def evaluate(args: argparse.Namespace) -> None:
    """Measure a checkpoint by a published protocol beside the paper's figures, or on video without true depth."""
    if args.protocol == VIDEO:
        _evaluate_video(args)
        return
    checkpoint = Checkpoint(args.checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)  # an error here costs least
    protocol = PROTOCOLS[args.protocol]
    if args.scaling:
        protocol = replace(protocol, scaling=args.scaling)
    images = _test_set(args)
    # Pictures of the folder protocol come from several cameras: without --size, each keeps its aspect ratio.
    default_size = None if args.protocol == "folder" else checkpoint.description.network_size
    network_size = tuple(args.size) if args.size else default_size
    constant = ConstantDepth.typical(images, protocol) if args.baselines else None
    predictor = _predictor(args, checkpoint, network_size)
    baselines = {
        label: run_protocol(baseline, images, protocol)
        for label, baseline in _baselines(args, checkpoint, network_size, constant).items()
    }
    result = run_protocol(predictor, tqdm(images, unit="image", total=len(images)), protocol)
    # The figures first: neither a closed terminal nor a failing picture may lose hours of computation.
    write_json(result, args.out / f"{args.protocol}.json")
    published = [] if args.entries else published_rows(protocol, network_size)  # of the published list of frames only
    print_table(result, published, _label(args, checkpoint), getattr(images, "groups", ()), baselines)
    if args.confidence:
        _evaluate_confidence(args, checkpoint, predictor, images, protocol)
    sheet = args.out / f"{args.protocol}.png"
    expected_error = predictor.expected_error if args.confidence and checkpoint.description.has_confidence else None
    write_sheet(sheet, lambda: picture_sheet(compare_evenly(predictor, images, protocol), sheet, expected_error))
    print(f"wrote {args.out / args.protocol}.json and .png")


def _evaluate_confidence(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    predictor: NetworkPredictor | EnginePredictor,
    images: Sequence[LabelledImage],
    protocol: Protocol,
) -> None:
    """Print and write how well uncertainties rank the errors of depth."""
    measures: dict[str, Uncertainty | None] = {"flip difference": flip_difference(predictor), "none (random)": None}
    calibrated = None
    if checkpoint.description.has_confidence:
        measures = {"confidence": predictor.expected_error, **measures}
        calibrated = calibration(predictor, predictor.expected_error, images, protocol)
    figures = evaluate_uncertainty(predictor, measures, tqdm(images, unit="image", total=len(images)), protocol)
    write_values(uncertainty_values(figures, calibrated), args.out / f"{args.protocol}.confidence.json")
    print_uncertainty_table(figures, calibrated)


def _test_set(args: argparse.Namespace) -> Sequence[LabelledImage]:
    """The images of the protocol, from the given folders."""
    name, options = _TEST_SETS[args.protocol]
    given = {"root": args.root, "improved_root": args.improved_root, "entries": args.entries}
    return build_test_set(name, **options, **{key: value for key, value in given.items() if value})


def _evaluate_video(args: argparse.Namespace) -> None:
    # The pictures are small and the steps many: on a busy machine, several threads would mostly wait for each other.
    torch.set_num_threads(1)
    checkpoint = Checkpoint(args.checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    size = tuple(args.size or checkpoint.description.network_size)
    dataset = cast(VideoDataset, build_dataset("video", size, root=args.root))
    chosen = choose_evenly(dataset.clips, args.frames)
    clips = [dataset.clips[index] for index in chosen]
    predictor = _predictor(args, checkpoint, size)
    predictors = _baselines(args, checkpoint, size, ConstantDepth() if args.baselines else None)
    label = _label(args, checkpoint)
    if "off" in args.temporal:
        predictors[label] = predictor
    scaling = args.scaling or "median"
    results = {}
    for name, measured in predictors.items():
        samples = tqdm((dataset[index] for index in chosen), name, len(chosen), unit="frame")
        results[name] = evaluate_video(measured, samples, clips, scaling)
    for mode in dict.fromkeys(args.temporal):
        if mode != "off":
            results[f"{label}, temporal {mode}"] = evaluate_steady_video(predictor, mode, dataset, chosen, scaling)
    write_values({name: result.to_dict() for name, result in results.items()}, args.out / f"{VIDEO}.json")
    print_video_table(results, scaling)
    samples_shown = (dataset[chosen[place]] for place in choose_evenly(["all"] * len(chosen), _SHEET_ROWS))
    images = {str(sample.name): (to_picture(sample.middle), sample.intrinsics.numpy()) for sample in samples_shown}
    sheet = args.out / f"{VIDEO}.png"
    write_sheet(sheet, lambda: prediction_sheet(predictor, images, sheet))
    print(f"wrote {args.out / VIDEO}.json and .png")


def _baselines(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    network_size: tuple[int, int] | None,
    constant: ConstantDepth | None,
) -> dict[str, Predictor]:
    """The requested baselines by label."""
    description = checkpoint.description
    baselines: dict[str, Predictor] = {}
    if constant:
        baselines["constant depth"] = constant
    if args.camera_height:
        baselines[f"ground plane, camera {args.camera_height:g} m above"] = GroundPlane(args.camera_height)
    if args.untrained:
        near, far = description.depth_range
        network = _untrained(description.model, 0, min_depth=near, max_depth=far, **description.options)
        baselines["untrained"] = _network_predictor(args, network, description, network_size)
    return baselines


def _label(args: argparse.Namespace, checkpoint: Checkpoint) -> str:
    engine = " in {} {}".format(*_engine(args)) if args.backend or args.precision else ""
    return f"{checkpoint.path.stem}{'‡' if args.flip else ''}{engine}"


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=user_path, nargs="+", help="picture, folder of pictures, video, or recording (bag)"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        required=True,
        help="folder for depth and coloured pictures; of a recording: .mcap, .db3, or a folder of rosbag2",
    )
    parser.add_argument("--checkpoint", type=user_path, help="default: the shipped one")
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument("--intrinsics", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"), help="pixels")
    camera.add_argument(
        "--camera", type=user_path, help="JSON file with fx, fy, cx, cy; default: the one beside the source"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="png, the default: 16 bits, millimetres, 0 unknown; npy: float32, metres"
    )
    _add_engine(parser, "the fastest")
    add_predict_arguments(parser)
    add_job_arguments(parser)


def predict(args: argparse.Namespace) -> None:
    """Write the depth of a picture, a folder of pictures, a video or a recording."""
    # A folder with recordings in it is not one of pictures.
    sources = [bag for path in expand(args.source) for bag in bags_below(path) or [path]]
    if sources != args.source or len(sources) > 1:
        run_each(_predict_one, args, "source", sources)
        return
    (args.source,) = sources
    _predict_one(args)


def _predict_one(args: argparse.Namespace) -> None:
    intrinsics = None
    if args.intrinsics:
        fx, fy, cx, cy = args.intrinsics
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    if args.source.exists() and is_bag(args.source):
        predict_bag(args, intrinsics, *_engine(args))
        return
    check_no_bag_options(args)
    frames = Frames(args.source)
    place = (frames.path if frames.path.is_dir() or frames.is_video else frames.path.parent).resolve()
    if place in [(args.out / name).resolve() for name in ("depth", "color", "color.mp4")]:
        raise DataError(f"--out {args.out}: the results would replace {args.source}; choose another folder")
    depths = run_prediction(frames, Checkpoint(args.checkpoint), intrinsics, args.camera, *_engine(args))
    fps = (frames.fps or FPS) if frames.is_video else None
    write_predictions(tqdm(depths, unit="frame"), args.out, args.format or FORMATS[0], fps)
    if frames.damage:
        raise DataError(f"{frames.damage}; the depth of these frames is in {args.out / 'depth'}")
    print(f"wrote {args.out / 'depth'} and {args.out / ('color.mp4' if frames.is_video else 'color')}")


def _odometry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "clip", type=user_path, help="video or folder of frames, with a JSON file of its camera beside it"
    )
    parser.add_argument("--pose", type=user_path, required=True, help="pose.safetensors of a run")
    parser.add_argument(
        "--out", type=user_path, required=True, help="file for the camera-to-world poses, one in each line"
    )
    parser.add_argument("--format", choices=TRAJECTORY_FORMATS, default="kitti", help="default: kitti")
    parser.add_argument("--camera", type=user_path, help="JSON file of the camera, if there is none beside the clip")
    parser.add_argument(
        "--stride", type=whole(1, 1000), metavar="N", help="use every N-th frame; default: the clip's own"
    )


def odometry(args: argparse.Namespace) -> None:
    """Write the trajectory of a clip's camera from a trained pose network, and its errors if the clip has poses."""
    pose_net, size, focal_length = load_pose_net(args.pose)
    clip = _one_clip(args.clip, size, args.camera, args.stride)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    trajectory = estimate_trajectory(pose_net, clip, focal_length)
    write_trajectory(trajectory, args.out, args.format)
    print(f"wrote {len(trajectory.poses)} poses to {args.out}")
    if trajectory.true_poses is None:
        return
    errors = trajectory_errors(trajectory)
    _print_trajectory_errors(errors)
    summary = {"poses": len(trajectory.poses), "stride": clip.stride, **asdict(errors)}
    path = args.out.with_suffix(".errors.json")
    write_values(summary, path)
    print(f"wrote {path}")


def _print_trajectory_errors(errors: TrajectoryErrors) -> None:
    for name, value, unit in (
        ("ATE rmse, Sim(3)-aligned", errors.ate_sim3, "m"),
        ("ATE rmse, SE(3)-aligned", errors.ate_se3, "m"),
        ("translation error per step", errors.translation, "%"),
        ("rotation error per step", errors.rotation, "deg"),
        ("true length / estimated", errors.scale, ""),
    ):
        # A straight line can be rotated about itself, so it cannot be aligned.
        print(f"{name:<28}" + ("- (a straight line)" if value is None else f"{value:.4f} {unit}".rstrip()))


# -------------------------------------------------------------------------------------------------------- training data


def _pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=sorted(TRAINING_SETS), help="data set")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the data set, e.g. root=clips; repeatable",
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=SIZE, metavar=("HEIGHT", "WIDTH"), help="size of the pictures"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first sample")
    parser.add_argument("--count", type=int, help="number of samples; default: to the end")
    parser.add_argument(
        "--quality", type=whole(1, 100), default=95, metavar="Q", help="quality of the JPEG files, 1 to 100"
    )
    parser.add_argument("--out", type=user_path, required=True, help="folder for the data set 'pictures'")


def pack(args: argparse.Namespace) -> None:
    """Write the pictures of a training set and their depth to files. Useful for data that is slow to render."""
    options = dict(_option(text) for text in args.option)
    dataset = build_dataset(args.name, tuple(args.size), **options)
    last = len(dataset) if args.count is None else min(len(dataset), args.first + args.count)
    numbers = tqdm(range(args.first, last), unit="picture")
    count = write_pictures(dataset, args.out, numbers, args.quality)
    print(f"wrote {count} pictures; in a configuration: {{name: pictures, root: {args.out}}}")


def _option(text: str) -> tuple[str, object]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--option {text}: expected key=value")
    try:
        return key, parse_yaml(value, f"--option {shown(text)}")
    except DataError as error:
        raise ConfigError(str(error)) from None


def _shrink_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=user_path, help="folder of folders of pictures, each with or without an index.json"
    )
    parser.add_argument(
        "--mebibytes", type=number(0, 2**40), required=True, metavar="M", help="largest size of the whole copy"
    )
    parser.add_argument("--skip", nargs="*", default=[], metavar="PATH", help="subfolders that are left out")
    parser.add_argument(
        "--quality", type=whole(1, 100), default=80, metavar="Q", help="quality of the JPEG files, 1 to 100"
    )
    parser.add_argument("--out", type=user_path, required=True, help="folder for the copy")


def shrink(args: argparse.Namespace) -> None:
    """Copy folders of pictures with their depth in a given size, to train on another machine."""
    limit = round(args.mebibytes * 2**20)
    for folder, count in shrink_folders(args.folder, args.out, limit, quality=args.quality, skip=args.skip).items():
        print(f"{count:7d}  {folder}")


def _label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", type=user_path, help="folder of pictures, with or without an index.json")
    parser.add_argument("--teacher", type=user_path, required=True, help="checkpoint of the large network")
    parser.add_argument("--out", type=user_path, required=True, help="folder for the index and the depth pictures")
    parser.add_argument("--every", type=whole(1, 1000), default=1, metavar="N", help="use every N-th picture")
    parser.add_argument(
        "--aspect",
        type=number(0, 100),
        help="least width / height of the input; of a taller picture only the middle rows are used",
    )
    parser.add_argument(
        "--flip", action="store_true", help="average with the mirrored picture: more accurate, twice the time"
    )
    _add_engine(parser, "plain PyTorch; the fastest backend if --precision is given")


def label(args: argparse.Namespace) -> None:
    """Write the depth that a large network predicts for pictures. A small network can then be trained with it."""
    checkpoint = Checkpoint(args.teacher)
    height, width = checkpoint.description.network_size
    predictor = _predictor(args, checkpoint)
    count = label_pictures(args.pictures, predictor, args.out, args.every, height * width, args.aspect)
    print(
        f"wrote {count} entries to {args.out / 'index.json'}; in a configuration: {{name: pictures, root: {args.out}}}"
    )


def _stereo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "clip",
        type=user_path,
        nargs="+",
        help="video or folder of frames, with a JSON file of its camera and poses beside it",
    )
    parser.add_argument("--out", type=user_path, required=True, help="folder for depth pictures")
    parser.add_argument("--camera", type=user_path, help="JSON file of the camera, if there is none beside the clip")
    parser.add_argument(
        "--size", type=int, nargs=2, default=SIZE, metavar=("HEIGHT", "WIDTH"), help="data.size of the training"
    )
    parser.add_argument(
        "--nearest",
        type=number(0, 1e4),
        help="least depth in metres; the largest is 30 times that; by default it follows from points that are tracked",
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first frame that is used")
    parser.add_argument("--every", type=int, default=1, help="measure every N-th frame")
    parser.add_argument("--threads", type=int, default=1, help="number of frames that are measured at the same time")
    add_job_arguments(parser)


def stereo(args: argparse.Namespace) -> None:
    """Measure the depth of a video with known poses by multi-view stereo. A network can then be trained with it."""
    clips: list[tuple[Path, Path | None]] = []  # with the camera's file
    for path in expand(args.clip):
        try:
            clips += [(clip.path, clip.camera) for clip in open_clips(path, args.size, args.camera)]
        except DataError:
            clips.append((path, args.camera))  # fails below, where it does not end the others
    if len(clips) > 1:
        run_each(_stereo_one, args, "clip", [path for path, _ in clips], [{"camera": camera} for _, camera in clips])
        return
    args.clip, args.camera = clips[0]
    _stereo_one(args)


def _stereo_one(args: argparse.Namespace) -> None:
    # Imported here, because it needs numba, which the other commands do without.
    from fadepth_core.labels.nearest import nearest_depth
    from fadepth_core.labels.stereo import write_stereo

    keep_freed_memory()
    clip = _one_clip(args.clip, args.size, args.camera)
    nearest = args.nearest
    if nearest is None:
        nearest = nearest_depth(clip)
        print(f"least depth: {nearest:.2g} m")
    count = write_stereo(clip, args.out, nearest, args.first, args.every, threads=args.threads)
    print(f'{count} pictures are in {args.out}; to use them, set "depth" in {clip.camera}')


# ---------------------------------------------------------------------------------------------- networks and checkpoints


def _models_arguments(_parser: argparse.ArgumentParser) -> None:
    pass


def models(_args: argparse.Namespace) -> None:
    """List the networks with their cost, beside the paper's figures."""
    sizes = (SIZE, (192, 640))
    units = [f"G {height}x{width}" for height, width in sizes]
    _print_row("", "", "parameters", "operations", "MAC(M)", "parameters", "multiply-", "accumulates", "checkpoint")
    _print_row("", "N", "M, enc/dec", "G, enc/dec", "MB, enc/dec", "M", *units, "MB")
    for name in MODELS:
        try:
            network = build_model(name)
        except ImportError as error:
            print(f"{name:<15}{error}")
            continue
        _print_row(name, *_cost(network, sizes))
        if name in PRINTED:
            _print_row("  paper", *_printed_cost(name))
    print(
        "N: residual blocks of the encoder. Operations and MAC(M), memory access, at 128x416, counted as in the paper's"
        "\nTable IV (fadepth_core.models.complexity). Checkpoint: deployment form, half precision."
    )


def _cost(network: DepthNetwork, sizes: Sequence[tuple[int, int]]) -> list[str | int]:
    """The columns of a network; multiply-accumulates at each of `sizes`."""
    parts = (network.encoder_modules(), network.decoder_modules())
    encoder, decoder = (complexity(network, (1, 3, *SIZE), part) for part in parts)
    totals = [complexity(network, (1, 3, *size)) for size in sizes]
    stored = 2 * sum(value.numel() for value in network.eval().fuse().state_dict().values())
    return [
        network.encoder_blocks(),
        f"{encoder.parameters / 1e6:.2f} / {decoder.parameters / 1e6:.2f}",
        f"{encoder.operations / 1e9:.2f} / {decoder.operations / 1e9:.2f}",
        f"{encoder.memory_access / 1e6:.3f} / {decoder.memory_access / 1e6:.3f}",
        f"{totals[0].parameters / 1e6:.3f}",
        *(f"{total.multiply_accumulates / 1e9:.3f}" for total in totals),
        f"{stored / 1e6:.1f}",
    ]


def _printed_cost(name: str) -> list[str | int]:
    """The columns that the paper prints for a network."""
    paper = PRINTED[name]
    pairs = (paper.parameters, paper.operations, paper.memory_access)
    columns = (" / ".join(filter(None, pair)) for pair in pairs)
    return [paper.blocks, *columns, paper.total_parameters, paper.total_operations, "", ""]


def _print_row(*cells: str | int) -> None:
    print("{:<15}{:>3}{:>15}{:>15}{:>19}{:>12}{:>11}{:>11}{:>12}".format(*cells).rstrip())


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("out", type=user_path, help="file, .safetensors")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0)


def init(args: argparse.Namespace) -> None:
    """Write a deployment checkpoint with random weights."""
    _check_suffix(args.out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    network = _untrained(args.model, args.seed)
    description = Description(
        args.model,
        "deploy",
        SIZE,
        (MIN_DEPTH, MAX_DEPTH),
        PIXEL_MEAN,
        PIXEL_STD,
        trained=False,
        provenance={"method": f"random weights, seed {args.seed}", "licence": "Apache-2.0"},
    )
    export_checkpoint(network.fuse(), description, args.out)
    print(f"wrote {args.out} and {args.out.with_suffix('.onnx')}")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=user_path)
    parser.add_argument("--out", type=user_path, help="deployment checkpoint to write; default: the input is replaced")
    parser.add_argument(
        "--int8",
        type=user_path,
        metavar="FRAMES",
        help="also write an int8 graph, calibrated with this video or folder of pictures",
    )


def export(args: argparse.Namespace) -> None:
    """Write the files that a robot needs, from any checkpoint: deployment form and ONNX graph."""
    checkpoint = Checkpoint(args.checkpoint)
    if args.out is None and checkpoint.description.form == "training":
        raise CheckpointError(f"{checkpoint.path}: a training checkpoint; name another file with --out, to keep it")
    out = args.out or checkpoint.path
    _check_suffix(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.int8:
        from fadepth_core.runtime.quantize import FRAMES, MIN_FRAMES, quantize_checkpoint

        images = Frames(args.int8).evenly(FRAMES)
        if len(images) < MIN_FRAMES:  # checked first, because the export makes an existing int8 graph unusable
            raise DataError(f"{args.int8}: {len(images)} frames; an int8 graph needs at least {MIN_FRAMES}")
    export_checkpoint(load_network(checkpoint), checkpoint.description, out)
    print(f"wrote {out} and {out.with_suffix('.onnx')}")
    if args.int8:
        median, tail = quantize_checkpoint(out, images)
        print(
            f"wrote {Checkpoint(out).int8_path}: on these frames its depth differs from float32 by {100 * median:.1f} % in "
            f"the median, {100 * tail:.0f} % in the 99th percentile"
        )


def _cache_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clear", action="store_true", help="remove decoded videos, engines and graphs")


def cache(args: argparse.Namespace) -> None:
    """Show how large the cache of decoded videos and compiled engines is, or remove it."""
    clips = ClipCache()
    folder = user_cache()
    decoded = clips.decoded()
    others = [path for path in folder.rglob("*") if path.is_file() and clips.folder not in path.parents]
    print(f"{folder}: everything in it can be generated again")
    size = sum(clip.size for clip in decoded.values())
    print(
        f"{len(decoded):6d} decoded videos    {size / 2**20:10.1f} MiB, at most {limit_bytes() / 2**20:.0f} MiB ({LIMIT})"
    )
    print(f"{len(others):6d} engines and graphs {sum(path.stat().st_size for path in others) / 2**20:9.1f} MiB")
    if args.clear:
        clips.clear()
        for path in others:
            path.unlink(missing_ok=True)
        print("removed all of them")


# ------------------------------------------------------------------------------------------------ shared by the commands


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=user_path, required=True, help="YAML file, see config/training")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. optimizer.lr=1e-4; repeatable"
    )


def _add_engine(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--backend", choices=backends.NAMES, help=f"default: {default}")
    parser.add_argument("--precision", choices=tuple(CHECK_BOUNDS), help="default: the backend's own")


def _engine(args: argparse.Namespace) -> tuple[str, str]:
    """The requested backend and precision."""
    return args.backend or "auto", args.precision or "auto"


def _predictor(
    args: argparse.Namespace, checkpoint: Checkpoint, network_size: tuple[int, int] | None = None
) -> NetworkPredictor | EnginePredictor:
    """The checkpoint's network in the requested engine; in PyTorch if none was requested."""
    if args.backend or args.precision:
        return EnginePredictor(checkpoint, network_size, args.flip, *_engine(args))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _network_predictor(args, load_network(checkpoint).to(device), checkpoint.description, network_size)


def _network_predictor(
    args: argparse.Namespace,
    network: DepthNetwork | DeployedNetwork,
    description: Description,
    network_size: tuple[int, int] | None,
) -> NetworkPredictor:
    height, width = description.network_size
    return NetworkPredictor(network, network_size, height * width, args.flip, description.focal_length)


def _untrained(model: str, seed: int, **options: Any) -> DepthNetwork:
    """A network with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    network = build_model(model, **options)
    # BatchNorm statistics of noise: without them, activations of random weights grow with every layer.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(2, 3, *SIZE))
    return network.eval()


def _one_clip(path: Path, size: tuple[int, int], camera: Path | None, stride: int | None = None) -> Clip:
    clips = open_clips(path, size, camera, stride)
    if len(clips) > 1:
        raise DataError(f"{path}: {len(clips)} clips; name one of them, because each needs its own output file")
    return clips[0]


def _check_suffix(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a checkpoint's name ends in .safetensors; its graph is written beside it")


# ----------------------------------------------------------------------------------------------------------- the command


class _Command(NamedTuple):
    run: Callable[[argparse.Namespace], None]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    example: str


_COMMANDS = {
    "adapt": _Command(run_adapt, adapt_arguments, "drive.mcap --out robot.safetensors --minutes 30"),
    "fit": _Command(fit, _fit_arguments, "--config config/training/synthetic.yaml"),
    "distill": _Command(
        distill,
        _distill_arguments,
        "--config config/training/distill.yaml --teacher runs/hqdecv2/best.safetensors",
    ),
    "confidence": _Command(
        run_confidence, confidence_arguments, "runs/kitti/depth.safetensors --data labels/drive --out robot.safetensors"
    ),
    "ablate": _Command(ablate, _ablate_arguments, "--config config/training/ablation.yaml --jobs 2"),
    "evaluate": _Command(
        evaluate, _evaluate_arguments, "runs/kitti/depth.safetensors --protocol kitti_eigen --root /data/kitti"
    ),
    "predict": _Command(predict, _predict_arguments, "drive.mp4 --out depth --camera camera.json"),
    "odometry": _Command(
        odometry, _odometry_arguments, "drive.mp4 --pose runs/video/pose.safetensors --out trajectory.txt"
    ),
    "extract": _Command(extract, extract_arguments, "drive.mcap --out my_clips/drive"),
    "pack": _Command(
        pack, _pack_arguments, "synthetic --option preset=indoor --count 800 --size 216 288 --out data/rooms"
    ),
    "shrink": _Command(shrink, _shrink_arguments, "data/shipped --mebibytes 20 --out small"),
    "label": _Command(label, _label_arguments, "photos --teacher runs/teacher/depth.safetensors --out labels"),
    "stereo": _Command(stereo, _stereo_arguments, "my_clips/hall --out my_clips/hall/depth"),
    "models": _Command(models, _models_arguments, ""),
    "init": _Command(init, _init_arguments, "smalldepth untrained.safetensors"),
    "cache": _Command(cache, _cache_arguments, "--clear"),
    "export": _Command(
        export, _export_arguments, "runs/kitti/best.safetensors --out robot.safetensors --int8 drive.mp4"
    ),
}


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fadepth",
        description="Train, measure and use depth networks. 'fadepth COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        text = command.run.__doc__
        example = f"example: fadepth {name} {command.example}".rstrip()
        subparser = commands.add_parser(name, help=text, description=text, epilog=example)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    _make_output_safe()
    args = _build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        args.run(args)
        sys.stdout.flush()  # here, where a closed pipe can be handled
    except _USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 128 + signal.SIGPIPE  # as other programs whose reader has ended, e.g. `head`
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _make_output_safe() -> None:
    """No character may end a command: not every terminal and pipe is UTF-8, and not every file name is valid text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process (`>&-`)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _output_is_closed() -> bool:
    """Whether the reader of standard output has ended; then the rest of the output is discarded."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again at exit, and would report an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
