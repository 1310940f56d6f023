"""The offline commands.

fadepth fit --config config/training/synthetic.yaml
    train; Ctrl-C stops, --resume goes on
fadepth distill --config config/training/distill.yaml --teacher runs/hqdecv2/best.safetensors
    train a small network to answer as a large one does
fadepth evaluate checkpoint.safetensors --protocol kitti_eigen --root /data/kitti
    measure against true depth, beside the paper's figures; --protocol video needs none
fadepth predict drive.mp4 --out depth
    depth of a picture, a folder of pictures or a video, as files
fadepth pack synthetic --option preset=indoor --count 800 --size 216 288 --out rooms
    pictures of a data set, with their depth, as files: for what is slow to render
fadepth shrink data/shipped --mebibytes 20 --out small
    a smaller copy of folders of pictures, to train on another machine
fadepth label pictures --teacher runs/teacher/depth.safetensors --out labels
    depth that a large network predicts for pictures, for a small one to learn from
fadepth stereo drive.mp4 --out drive_depth
    depth of a video with known poses, measured in it, for training to learn from
fadepth odometry drive.mp4 --pose runs/video/pose.safetensors --out trajectory.txt
    where the camera of a video was, by the motion a training run has learned
fadepth ablate --config config/training/ablation.yaml
    train variants with several seeds, and compare them
fadepth models
    what can be built, and what it costs
fadepth init smalldepth out.safetensors
    an untrained deployment checkpoint
fadepth export checkpoint.safetensors --out robot.safetensors [--int8 drive.mp4]
    what a robot needs, from any checkpoint
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm

from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD
from fadepth_core.common.framing import FramingError
from fadepth_core.data import DataError
from fadepth_core.data.frames import Frames
from fadepth_core.data.pictures import write_pictures
from fadepth_core.data.registry import TRAINING_SETS, build_dataset, build_test_set
from fadepth_core.data.shrink import shrink_folders
from fadepth_core.data.video import Clip, open_clips
from fadepth_core.evaluation import (
    PROTOCOLS,
    EnginePredictor,
    NetworkPredictor,
    Predictor,
    choose_evenly,
    compare_evenly,
    evaluate_video,
    picture_sheet,
    prediction_sheet,
    print_table,
    print_video_table,
    published_rows,
    write_json,
    write_predictions,
)
from fadepth_core.evaluation import evaluate as run_protocol
from fadepth_core.evaluation import predict as run_prediction
from fadepth_core.evaluation.baselines import ConstantDepth, GroundPlane
from fadepth_core.evaluation.odometry import FORMATS as TRAJECTORY_FORMATS
from fadepth_core.evaluation.odometry import estimate_trajectory, trajectory_errors, write_trajectory
from fadepth_core.evaluation.predictions import FORMATS, FPS
from fadepth_core.evaluation.video import rgb
from fadepth_core.labels.stereo import write_stereo
from fadepth_core.models import MODELS, build_model
from fadepth_core.models.complexity import PRINTED, complexity
from fadepth_core.models.layers.head import MAX_DEPTH, MIN_DEPTH
from fadepth_core.runtime import backends
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError, Description
from fadepth_core.runtime.engine import CHECK_BOUNDS, EngineError
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_core.training.ablation import TABLE as ABLATION_TABLE
from fadepth_core.training.ablation import ablate as run_ablation
from fadepth_core.training.config import ConfigError, load_config
from fadepth_core.training.fit import fit as run_fit
from fadepth_core.training.labels import label_pictures
from fadepth_core.training.pose_checkpoint import load_pose_net
from fadepth_core.training.trainer import TrainingError, keep_freed_memory

SIZE = (128, 416)
#: The protocol for clips without true depth.
VIDEO = "video"
_SHEET_ROWS = 10

#: The data set of each protocol, and the options it needs.
_TEST_SETS = {
    "kitti_eigen": ("kitti", {}),
    "kitti_eigen_improved": ("kitti", {"ground_truth": "improved"}),
    "kitti_eigen_improved_monodepth2": ("kitti", {"ground_truth": "improved"}),
    "ddad_80": ("ddad", {}),
    "ddad_200": ("ddad", {}),
    "folder": ("folder", {}),
}


def fit(args: argparse.Namespace) -> None:
    """Train a network as a configuration says."""
    config = load_config(args.config, args.set)
    try:
        result = run_fit(config, args.resume)
    except KeyboardInterrupt:
        raise TrainingError(f"interrupted; the state is in {config.output}, go on with --resume") from None
    if result is None:  # a further process of a distributed run
        return
    for name, value in result.metrics.items():
        print(f"{name:<28}{value:.4f}")
    if result.best is not None:
        print(
            f"exported the best in validation: iteration {result.best['iteration']}, AbsRel {result.best['abs_rel']:.4f}"
        )
    else:
        print("exported the network after the last iteration: without validation there is no best one")
    print(f"{result.checkpoint} is what the depth node takes: --ros-args -p checkpoint:={result.checkpoint}")


def distill(args: argparse.Namespace) -> None:
    """Train a network with the help of a teacher: a training checkpoint, or a folder of predicted depth."""
    args.set = [*args.set, f"teacher.source={json.dumps(str(args.teacher))}"]
    fit(args)


def evaluate(args: argparse.Namespace) -> None:
    """Measure a checkpoint by a published protocol, or on video without true depth."""
    if args.protocol == VIDEO:
        _evaluate_video(args)
        return
    checkpoint = Checkpoint(args.checkpoint)
    protocol = PROTOCOLS[args.protocol]
    if args.scaling:
        protocol = replace(protocol, scaling=args.scaling)
    name, options = _TEST_SETS[args.protocol]
    options = {**options, "root": args.root}
    if args.improved_root:
        options["improved_root"] = args.improved_root
    if args.entries:
        options["entries"] = args.entries
    images = build_test_set(name, **options)
    size = checkpoint.description.network_size
    # The folder protocol's pictures are of many cameras: each keeps its aspect ratio.
    network_size = (tuple(args.size) if args.size else None) if name == "folder" else tuple(args.size or size)
    constant = ConstantDepth.typical(images, protocol) if args.baselines else None
    predict, guesses = _predictors(args, checkpoint, network_size, constant)
    baselines = {label: run_protocol(guess, images, protocol) for label, guess in guesses.items()}
    result = run_protocol(predict, tqdm(images, unit="image", total=len(images)), protocol)
    label = _label(args, checkpoint)
    published = [] if args.entries else published_rows(protocol, network_size)  # other frames, other figures
    print_table(result, published, label, getattr(images, "groups", ()), baselines)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(result, args.out / f"{args.protocol}.json")
    picture_sheet(compare_evenly(predict, images, protocol), args.out / f"{args.protocol}.png")
    print(f"wrote {args.out / args.protocol}.json and .png")


def _evaluate_video(args: argparse.Namespace) -> None:
    # Small pictures and many steps: on a busy machine, threads would mostly wait for each other.
    torch.set_num_threads(1)
    checkpoint = Checkpoint(args.checkpoint)
    size = tuple(args.size or checkpoint.description.network_size)
    dataset = build_dataset("video", size, root=args.root)
    chosen = choose_evenly(dataset.clips, args.frames)
    clips = [dataset.clips[index] for index in chosen]
    predict, predictors = _predictors(args, checkpoint, size, ConstantDepth() if args.baselines else None)
    predictors[_label(args, checkpoint)] = predict
    scaling = args.scaling or "median"
    results = {}
    for label, predictor in predictors.items():
        samples = tqdm((dataset[index] for index in chosen), label, len(chosen), unit="frame")
        results[label] = evaluate_video(predictor, samples, clips, scaling)
    print_video_table(results, scaling)
    args.out.mkdir(parents=True, exist_ok=True)
    figures = {label: result.to_dict() for label, result in results.items()}
    (args.out / f"{VIDEO}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    shown = (dataset[chosen[place]] for place in choose_evenly(["all"] * len(chosen), _SHEET_ROWS))
    images = {three.name: (rgb(three.middle), three.intrinsics.numpy()) for three in shown}
    prediction_sheet(predict, images, args.out / f"{VIDEO}.png")
    print(f"wrote {args.out / VIDEO}.json and .png")


def _predictors(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    network_size: tuple[int, int] | None,
    constant: ConstantDepth | None,
) -> tuple[Predictor, dict[str, Predictor]]:
    """The checkpoint's network, see `_predictor`, and by name what it is to be compared with."""
    description = checkpoint.description
    guesses: dict[str, Predictor] = {}
    if constant:
        guesses["constant depth"] = constant
    if args.camera_height:
        guesses[f"ground plane, camera {args.camera_height:g} m above"] = GroundPlane(args.camera_height)
    if args.untrained:
        near, far = description.depth_range
        network = _untrained(description.model, 0, min_depth=near, max_depth=far, **description.options)
        guesses["untrained"] = _network_predictor(args, network, description, network_size)
    return _predictor(args, checkpoint, network_size), guesses


def _predictor(
    args: argparse.Namespace, checkpoint: Checkpoint, network_size: tuple[int, int] | None = None
) -> Predictor:
    """The checkpoint's network, in the engine that was asked for."""
    if args.backend or args.precision:
        return EnginePredictor(checkpoint, network_size, args.flip, *_engine(args))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _network_predictor(args, load_network(checkpoint).to(device), checkpoint.description, network_size)


def _network_predictor(
    args: argparse.Namespace, network: torch.nn.Module, description: Description, network_size: tuple[int, int] | None
) -> NetworkPredictor:
    height, width = description.network_size
    return NetworkPredictor(network, network_size, height * width, args.flip, description.focal_length)


def _engine(args: argparse.Namespace) -> tuple[str, str]:
    """Backend and precision as asked for."""
    return args.backend or "auto", args.precision or "auto"


def _label(args: argparse.Namespace, checkpoint: Checkpoint) -> str:
    engine = " in {} {}".format(*_engine(args)) if args.backend or args.precision else ""
    return f"{checkpoint.path.stem}{'‡' if args.flip else ''}{engine}"


def predict(args: argparse.Namespace) -> None:
    """Write the depth of a picture, a folder of pictures or a video."""
    frames = Frames(args.source)
    intrinsics = None
    if args.intrinsics:
        fx, fy, cx, cy = args.intrinsics
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    depths = run_prediction(frames, Checkpoint(args.checkpoint), intrinsics, args.camera, *_engine(args))
    fps = (frames.fps or FPS) if frames.is_video else None
    write_predictions(tqdm(depths, unit="frame"), args.out, args.format, fps)
    print(f"wrote {args.out / 'depth'} and {args.out / ('color.mp4' if frames.is_video else 'color')}")


def pack(args: argparse.Namespace) -> None:
    """Write the pictures of a training set, with their depth, as a folder for the data set "pictures"."""
    options = dict(_option(text) for text in args.option)
    dataset = build_dataset(args.name, tuple(args.size), **options)
    last = len(dataset) if args.count is None else min(len(dataset), args.first + args.count)
    numbers = tqdm(range(args.first, last), unit="picture")
    count = write_pictures(dataset, args.out, numbers, args.quality)
    print(f"wrote {count} pictures to {args.out}: {{name: pictures, root: {args.out}}} in a configuration")


def _option(text: str) -> tuple[str, object]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--option {text}: expected key=value")
    return key, yaml.safe_load(value)


def shrink(args: argparse.Namespace) -> None:
    """Copy folders of pictures with their depth in few bytes, to train on another machine."""
    limit = round(args.mebibytes * 2**20)
    for folder, count in shrink_folders(args.folder, args.out, limit, quality=args.quality, skip=args.skip).items():
        print(f"{count:7d}  {folder}")


def label(args: argparse.Namespace) -> None:
    """Predict the depth of pictures with a large network, for a small one to learn from."""
    checkpoint = Checkpoint(args.teacher)
    height, width = checkpoint.description.network_size
    count = label_pictures(
        args.pictures, _predictor(args, checkpoint), args.out, args.every, height * width, args.aspect
    )
    print(
        f"wrote {count} entries to {args.out / 'index.json'}: {{name: pictures, root: {args.out}}} in a configuration"
    )


def stereo(args: argparse.Namespace) -> None:
    """Measure the depth of a clip whose poses are known, by multi-view stereo, for training to learn from."""
    keep_freed_memory()
    clip = _one_clip(args.clip, args.size, args.camera)
    count = write_stereo(clip, args.out, args.nearest, args.first, args.every)
    print(f'wrote {count} pictures to {args.out}; name it as "depth" in {clip.camera}')


def _one_clip(path: Path, size: tuple[int, int], camera: Path | None, stride: int | None = None) -> Clip:
    clips = open_clips(path, size, camera, stride)
    if len(clips) > 1:
        raise DataError(f"{path}: {len(clips)} clips; each needs a folder of its own, give one")
    return clips[0]


def odometry(args: argparse.Namespace) -> None:
    """Write the camera's trajectory in a clip, by a trained pose network; with its errors where the clip has poses."""
    pose_net, size, focal_length = load_pose_net(args.pose)
    clip = _one_clip(args.clip, size, args.camera, args.stride)
    trajectory = estimate_trajectory(pose_net, clip, focal_length)
    write_trajectory(trajectory, args.out, args.format)
    print(f"wrote {len(trajectory.poses)} poses to {args.out}")
    if trajectory.true_poses is None:
        return
    errors = trajectory_errors(trajectory)
    for text, value, unit in (
        ("ATE rmse, Sim(3)-aligned", errors.ate_sim3, "m"),
        ("ATE rmse, SE(3)-aligned", errors.ate_se3, "m"),
        ("translation error per step", errors.translation, "%"),
        ("rotation error per step", errors.rotation, "deg"),
        ("true length / estimated", errors.scale, ""),
    ):
        print(f"{text:<28}" + ("- (a straight line)" if value is None else f"{value:.4f} {unit}".rstrip()))
    summary = {"poses": len(trajectory.poses), "stride": clip.stride, **asdict(errors)}
    path = args.out.with_suffix(".errors.json")
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def ablate(args: argparse.Namespace) -> None:
    """Train variants of a run with several seeds and compare them."""
    fit_command = [sys.executable, str(Path(__file__).resolve()), "fit"]
    # A folder for each configuration: variants of two tables may have the same name.
    out = args.out or Path("runs") / args.config.stem
    print(run_ablation(args.config, args.set, out, fit_command, args.jobs, args.only))
    print(f"all figures: {out / ABLATION_TABLE}")


def models(_args: argparse.Namespace) -> None:
    """Print what every network costs, and what the paper prints of it."""
    sizes = (SIZE, (192, 640))

    def print_row(*cells: str | int) -> None:
        print("{:<15}{:>3}{:>15}{:>15}{:>19}{:>12}{:>11}{:>11}{:>12}".format(*cells).rstrip())

    print_row("", "", "parameters", "operations", "MAC(M)", "parameters", "multiply-", "accumulates", "checkpoint")
    units = [f"G {height}x{width}" for height, width in sizes]
    print_row("", "N", "M, enc/dec", "G, enc/dec", "MB, enc/dec", "M", *units, "MB")
    for name in MODELS:
        try:
            network = build_model(name)
        except ImportError as error:
            print(f"{name:<15}{error}")
            continue
        parts = (network.encoder_modules(), network.decoder_modules())
        encoder, decoder = (complexity(network, (1, 3, *SIZE), part) for part in parts)
        totals = [complexity(network, (1, 3, *size)) for size in sizes]
        stored = 2 * sum(value.numel() for value in network.eval().fuse().state_dict().values())
        print_row(
            name,
            network.encoder_blocks(),
            f"{encoder.parameters / 1e6:.2f} / {decoder.parameters / 1e6:.2f}",
            f"{encoder.operations / 1e9:.2f} / {decoder.operations / 1e9:.2f}",
            f"{encoder.memory_access / 1e6:.3f} / {decoder.memory_access / 1e6:.3f}",
            f"{totals[0].parameters / 1e6:.3f}",
            *(f"{total.multiply_accumulates / 1e9:.3f}" for total in totals),
            f"{stored / 1e6:.1f}",
        )
        if name in PRINTED:
            paper = PRINTED[name]
            pairs = (paper.parameters, paper.operations, paper.memory_access)
            columns = (" / ".join(filter(None, pair)) for pair in pairs)
            print_row("  paper", paper.blocks, *columns, paper.total_parameters, paper.total_operations, "", "")
    print(
        "N: residual blocks of the encoder. Operations and MAC(M), memory access, at 128x416, as the paper's Table IV counts"
        "\nthem (fadepth_core.models.complexity). Checkpoint: deployment form, half precision."
    )


def init(args: argparse.Namespace) -> None:
    """Write a deployment checkpoint of random weights."""
    _check_suffix(args.out)
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


def _untrained(model: str, seed: int, **options) -> torch.nn.Module:
    """A network of random weights, in evaluation mode."""
    torch.manual_seed(seed)
    network = build_model(model, **options)
    # BatchNorm statistics of noise: without them the activations of random weights grow with every layer.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(2, 3, *SIZE))
    return network.eval()


def export(args: argparse.Namespace) -> None:
    """Fuse a checkpoint and write it in deployment form with its ONNX graph."""
    checkpoint = Checkpoint(args.checkpoint)
    if args.out is None and checkpoint.description.form == "training":
        raise CheckpointError(f"{checkpoint.path}: a training checkpoint; name another file with --out, to keep it")
    out = args.out or checkpoint.path
    _check_suffix(out)
    if args.int8:
        from fadepth_core.runtime.quantize import FRAMES, MIN_FRAMES, quantize_checkpoint

        images = Frames(args.int8).evenly(FRAMES)
        if len(images) < MIN_FRAMES:  # before the int8 graph that there may be is made a stale one
            raise DataError(f"{args.int8}: {len(images)} frames; an int8 graph needs at least {MIN_FRAMES}")
    export_checkpoint(load_network(checkpoint), checkpoint.description, out)
    print(f"wrote {out} and {out.with_suffix('.onnx')}")
    if args.int8:
        median, tail = quantize_checkpoint(out, images)
        print(
            f"wrote {Checkpoint(out).int8_path}: on these frames its depth differs from float32 by {100 * median:.1f} % in "
            f"the median, {100 * tail:.0f} % in the 99th percentile"
        )


def _check_suffix(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a checkpoint's name ends in .safetensors; its graph is written beside it")


def _add_engine(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--backend", choices=backends.NAMES, help=f"default: {default}")
    command.add_argument("--precision", choices=tuple(CHECK_BOUNDS), help="default: the backend's own")


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, required=True, help="YAML file, see config/training")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. optimizer.lr=1e-4; repeatable"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fadepth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fit", help=fit.__doc__)
    _add_config(command)
    command.add_argument("--resume", action="store_true", help="go on with the run in the configured output folder")
    command.set_defaults(run=fit)
    command = commands.add_parser("distill", help=distill.__doc__)
    _add_config(command)
    command.add_argument("--teacher", type=Path, required=True, help="training checkpoint, or folder of predictions")
    command.add_argument("--resume", action="store_true", help="go on with the run in the configured output folder")
    command.set_defaults(run=distill)
    command = commands.add_parser("evaluate", help=evaluate.__doc__)
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--protocol", choices=sorted([*PROTOCOLS, VIDEO]), required=True)
    command.add_argument("--root", type=Path, required=True, help="folder of the data set")
    command.add_argument(
        "--improved-root", type=Path, help="folder of KITTI's annotated depth, for the kitti_eigen_improved protocols"
    )
    command.add_argument(
        "--entries", type=Path, help='KITTI: file with a "drive frame side" per line, instead of the published list'
    )
    command.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: as trained")
    command.add_argument("--flip", action="store_true", help="average with the mirrored picture (the paper's ‡)")
    command.add_argument(
        "--scaling",
        choices=("median", "none"),
        help="none measures metric depth (video: where there are poses); default: the protocol's",
    )
    command.add_argument(
        "--baselines",
        action="store_true",
        help="measure a constant depth, too: the median true one, where there is one",
    )
    command.add_argument(
        "--camera-height", type=float, metavar="METRES", help="measure flat ground that far below the camera, too"
    )
    command.add_argument("--untrained", action="store_true", help="measure the same network with random weights, too")
    command.add_argument(
        "--frames",
        type=int,
        default=16,
        choices=range(1, 10001),
        metavar="N",
        help="video: of each clip, spread evenly",
    )
    _add_engine(command, "the network in PyTorch; with --precision the fastest")
    command.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for figures and pictures")
    command.set_defaults(run=evaluate)
    command = commands.add_parser("predict", help=predict.__doc__)
    command.add_argument("source", type=Path, help="picture, folder of pictures, or video")
    command.add_argument("--out", type=Path, required=True, help="folder for depth and coloured pictures")
    command.add_argument("--checkpoint", type=Path, help="default: the shipped one")
    camera = command.add_mutually_exclusive_group()
    camera.add_argument("--intrinsics", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"), help="pixels")
    camera.add_argument("--camera", type=Path, help="JSON file with fx, fy, cx, cy; default: the one beside the source")
    command.add_argument(
        "--format", choices=FORMATS, default="png", help="png: 16 bits, millimetres, 0 unknown; npy: float32, metres"
    )
    _add_engine(command, "the fastest")
    command.set_defaults(run=predict)
    command = commands.add_parser("pack", help=pack.__doc__)
    command.add_argument("name", choices=sorted(TRAINING_SETS))
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the data set, e.g. root=clips; repeatable",
    )
    command.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("H", "W"), help="of the pictures")
    command.add_argument("--first", type=int, default=0, help="number of the first sample")
    command.add_argument("--count", type=int, help="how many; default: to the end")
    command.add_argument(
        "--quality", type=int, default=95, choices=range(1, 101), metavar="Q", help="of the JPEG files"
    )
    command.add_argument("--out", type=Path, required=True, help="folder")
    command.set_defaults(run=pack)
    command = commands.add_parser("shrink", help=shrink.__doc__)
    command.add_argument("folder", type=Path, help="folder of folders of pictures, each with or without an index.json")
    command.add_argument("--mebibytes", type=float, required=True, metavar="M", help="what the copy may have in all")
    command.add_argument("--skip", nargs="*", default=[], metavar="PATH", help="folders below it to leave out")
    command.add_argument(
        "--quality", type=int, default=80, choices=range(1, 101), metavar="Q", help="of the JPEG files"
    )
    command.add_argument("--out", type=Path, required=True, help="folder")
    command.set_defaults(run=shrink)
    command = commands.add_parser("label", help=label.__doc__)
    command.add_argument("pictures", type=Path, help="folder of pictures, with or without an index.json")
    command.add_argument("--teacher", type=Path, required=True, help="checkpoint of the large network")
    command.add_argument("--out", type=Path, required=True, help="folder for the index and the depth pictures")
    command.add_argument("--every", type=int, default=1, choices=range(1, 1001), metavar="N", help="every N-th picture")
    command.add_argument(
        "--aspect", type=float, help="least width over height that the network sees: of taller pictures the middle rows"
    )
    command.add_argument(
        "--flip", action="store_true", help="average with the mirrored picture: better, twice the time"
    )
    _add_engine(command, "the network in PyTorch; with --precision the fastest")
    command.set_defaults(run=label)
    command = commands.add_parser("stereo", help=stereo.__doc__)
    command.add_argument(
        "clip", type=Path, help="video or folder of frames, beside it a JSON file with its camera and poses"
    )
    command.add_argument("--out", type=Path, required=True, help="folder for depth pictures")
    command.add_argument("--camera", type=Path, help="JSON file, where there is none beside the clip")
    command.add_argument(
        "--size", type=int, nargs=2, default=SIZE, metavar=("H", "W"), help="data.size of the training"
    )
    command.add_argument("--nearest", type=float, default=4.0, help="metres; 30 times it is the farthest (default: 4)")
    command.add_argument("--first", type=int, default=0, help="number of the first frame that is used")
    command.add_argument("--every", type=int, default=1, help="measure every N-th frame")
    command.set_defaults(run=stereo)
    command = commands.add_parser("odometry", help=odometry.__doc__)
    command.add_argument("clip", type=Path, help="video or folder of frames, beside it a JSON file with its camera")
    command.add_argument("--pose", type=Path, required=True, help="pose.safetensors of a run")
    command.add_argument("--out", type=Path, required=True, help="file for the camera-to-world poses, one a line")
    command.add_argument("--format", choices=TRAJECTORY_FORMATS, default="kitti", help="default: kitti")
    command.add_argument("--camera", type=Path, help="JSON file, where there is none beside the clip")
    command.add_argument(
        "--stride", type=int, choices=range(1, 1001), metavar="N", help="use every N-th frame; default: the clip's own"
    )
    command.set_defaults(run=odometry)
    command = commands.add_parser("ablate", help=ablate.__doc__)
    _add_config(command)
    command.add_argument("--out", type=Path, help="folder of all runs; default: runs/, named as the configuration")
    command.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="train and compare these variants; default: all"
    )
    command.add_argument("--jobs", type=int, default=1, choices=range(1, 65), metavar="N", help="runs at a time")
    command.set_defaults(run=ablate)
    commands.add_parser("models", help=models.__doc__).set_defaults(run=models)
    command = commands.add_parser("init", help=init.__doc__)
    command.add_argument("model", choices=sorted(MODELS))
    command.add_argument("out", type=Path)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=init)
    command = commands.add_parser("export", help=export.__doc__)
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--out", type=Path, help="deployment checkpoint to write; default: over the input")
    command.add_argument(
        "--int8",
        type=Path,
        metavar="FRAMES",
        help="also make an int8 graph, calibrated with this video or folder of pictures",
    )
    command.set_defaults(run=export)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        args.run(args)
    except (
        CheckpointError,
        ConfigError,
        DataError,
        EngineError,
        FramingError,
        TrainingError,
        ImportError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
