"""The command `fadepth adapt`: from recordings of a robot to a network that is better there."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fadepth_core.adaptation.adapt import OUTPUTS, adapt, predictor, use_command
from fadepth_core.adaptation.prepare import Prepared, PrepareOptions, prepare
from fadepth_core.cli_arguments import number, whole
from fadepth_core.cli_bags import add_topic_arguments, topic_choice
from fadepth_core.cli_jobs import add_job_arguments, bags_below, expand, unique_names
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import errors_name, user_path
from fadepth_core.common.folders import check_output, mark_output
from fadepth_core.common.jobs import Outcome, run_jobs
from fadepth_core.common.memory import keep_freed_memory
from fadepth_core.labels.extract import LONGEST_SIDE
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError


def adapt_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run_adapt`."""
    parser.add_argument("recordings", nargs="+", type=user_path, help="bags, videos, or folders of frames")
    parser.add_argument("--out", type=user_path, required=True, help="checkpoint to write, .safetensors")
    parser.add_argument("--checkpoint", type=user_path, help="network to start from; default: the shipped one")
    parser.add_argument(
        "--minutes",
        type=number(0, 1e5),
        default=30.0,
        help="time of the training, 30 by default; the labels come before",
    )
    parser.add_argument(
        "--work", type=user_path, help="folder for the results of each stage; default: beside --out, named after it"
    )
    motion = parser.add_argument_group("motion of the camera")
    motion.add_argument(
        "--motion",
        choices=("auto", "odometry", "structure"),
        default="auto",
        help="odometry of the recording, structure from motion, or what fits the images (default)",
    )
    motion.add_argument(
        "--constant-speed",
        type=number(0, 1e3),
        metavar="M/S",
        help="speed of the camera all the time, if the recording does not say it",
    )
    motion.add_argument("--camera-height", type=number(0, 1e3), help="height of the camera above the ground, metres")
    labels = parser.add_argument_group("depth that teaches, and that judges")
    labels.add_argument(
        "--nearest", type=number(0, 1e4), help="depth of the nearest surfaces, metres; default: measured"
    )
    labels.add_argument(
        "--frames",
        type=whole(20, 100_000),
        default=600,
        help="most frames of each recording that teach, 600 by default",
    )
    labels.add_argument(
        "--withhold-depth", action="store_true", help="depth of the recording's LiDAR or depth camera judges only"
    )
    labels.add_argument(
        "--judge-last", type=number(0, 0.9), metavar="SHARE", help="hold back the last part, not blocks all over"
    )
    add_job_arguments(parser)
    parser.add_argument("--licence", help="licence of the result; default: that of the network before")
    add_topic_arguments(parser)
    parser.add_argument(
        "--longest-side", type=whole(32, 16384), default=LONGEST_SIDE, help="reduce larger frames; default: %(default)s"
    )


def run_adapt(args: argparse.Namespace) -> None:
    """Teach a network on recordings of a robot: bags, or videos; writes a checkpoint and a page with the comparison."""
    if args.out.suffix != ".safetensors":
        raise CheckpointError(f"{args.out}: a checkpoint's name ends in .safetensors; its graph is written beside it")
    if args.out.is_dir():
        raise CheckpointError(f"{args.out}: a folder; name the file of the checkpoint")
    try:
        with errors_name(_work(args)):
            _run_adapt(args)
    except KeyboardInterrupt:
        raise DataError("interrupted; the same command continues") from None


def _work(args: argparse.Namespace) -> Path:
    return args.work or args.out.with_name(f"{args.out.stem}_adaptation")


def _run_adapt(args: argparse.Namespace) -> None:
    keep_freed_memory()
    sources = [source for path in expand(args.recordings) for source in bags_below(path) or [path]]
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
    work = _work(args)
    work.mkdir(parents=True, exist_ok=True)
    check_output(work, OUTPUTS)
    mark_output(work, OUTPUTS)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=args.out.parent):  # an error here costs least
        pass
    start = Checkpoint(args.checkpoint)
    options = PrepareOptions(
        topic_choice(args),
        args.longest_side,
        args.motion,
        args.constant_speed,
        args.camera_height,
        args.nearest,
        args.frames,
        args.withhold_depth,
        args.judge_last,
    )
    tasks = {
        name: _Task(source.absolute(), name, work.absolute(), options, start.path)
        for name, source in zip(unique_names(sources), sources, strict=True)
    }
    prepared = _prepare_all(tasks, args.jobs, args.cluster)
    for recording in prepared:
        _print_prepared(recording)
    result = adapt(prepared, work, start, args.out, args.minutes, args.licence)
    if result.interrupted:
        print("interrupted: the best network so far is compared; the same command continues the teaching")
    print(result.verdict)
    for name, by_scaling in result.figures.items():
        for label, (before, after) in by_scaling.items():
            print(f"  AbsRel, {name + ', ' + label:<32}{before:.3f} -> {after:.3f}")
    print(f"page: {result.report}")
    if not result.better:
        raise DataError(
            f"the network did not become better, so {args.out} was not written; the taught network is {result.checkpoint}"
        )
    print(f"wrote {args.out}; in the running node: {use_command(args.out)}")


@dataclass(frozen=True)
class _Task:
    """A recording to prepare, with the arguments of `prepare`; `checkpoint` is the network before."""

    source: Path
    name: str
    work: Path
    options: PrepareOptions
    checkpoint: Path

    def run(self) -> Prepared:
        return prepare(self.source, self.name, self.work, self.options, predictor(Checkpoint(self.checkpoint)))


def _prepare_all(tasks: Mapping[str, _Task], jobs: int, cluster: str | None) -> list[Prepared]:
    """Prepare recordings; of several, those that can be used."""
    if len(tasks) == 1:
        return [task.run() for task in tasks.values()]
    logs = next(iter(tasks.values())).work / "logs"
    logs.mkdir(exist_ok=True)
    outcomes = run_jobs(_prepare, tasks, jobs, cluster, logs, lambda outcome: print(_row(outcome)))
    used = [tasks[outcome.name].run() for outcome in outcomes if not outcome.failed]  # reads the results
    if len(used) < len(tasks):
        print(f"{len(used)} of {len(tasks)} recordings can be used; the logs are in {logs}")
    return used


def _prepare(task: _Task) -> str:
    counts = task.run().counts
    return f"{counts['teach']} of {counts['frames']} frames teach"


def _row(outcome: Outcome) -> str:
    return f"{'failed' if outcome.failed else 'ok':<8}{outcome.name:<24}{outcome.seconds:6.0f} s  {outcome.text}"


def _print_prepared(recording: Prepared) -> None:
    counts = recording.counts
    print(
        f"{recording.name}: {counts['frames']} frames; {counts['teach']} teach, {counts['validate']} choose the best "
        f"network, {counts['judge']} judge it by {recording.truth}"
    )
    for note in recording.notes:
        print(f"  {note}")
