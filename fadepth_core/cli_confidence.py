"""The command `fadepth confidence`: gives a checkpoint a confidence head."""

from __future__ import annotations

import argparse
from collections import deque
from dataclasses import replace

import torch
from tqdm import tqdm

from fadepth_core.cli_arguments import number, whole
from fadepth_core.common.files import user_path
from fadepth_core.common.memory import keep_freed_memory
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.training.confidence import ConfidenceOptions, ConfidenceStep, train_confidence


def confidence_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run_confidence`."""
    defaults = ConfidenceOptions()
    parser.add_argument("checkpoint", type=user_path)
    parser.add_argument(
        "--data",
        type=user_path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="pictures with depth, any number of folders",
    )
    parser.add_argument("--out", type=user_path, required=True, help="deployment checkpoint to write, .safetensors")
    parser.add_argument(
        "--scaling",
        choices=("none", "median"),
        default="none",
        help="median: errors are measured after scaling each picture's depth, for networks without metric scale",
    )
    parser.add_argument(
        "--iterations", type=whole(1, 10**7), default=defaults.iterations, help="batches; %(default)s by default"
    )
    parser.add_argument(
        "--minutes", type=number(0, 1e5), default=defaults.minutes, help="longest training time; %(default)s by default"
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1, 1024),
        default=defaults.batch_size,
        help="pictures of a batch; %(default)s by default",
    )
    parser.add_argument("--seed", type=whole(0, 2**31), default=defaults.seed)


def run_confidence(args: argparse.Namespace) -> None:
    """Give a checkpoint a confidence head: it learns the errors of the network, whose depth stays the same."""
    if args.out.suffix != ".safetensors":
        raise CheckpointError(f"{args.out}: a checkpoint's name ends in .safetensors; its graph is written beside it")
    keep_freed_memory()
    checkpoint = Checkpoint(args.checkpoint)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    options = ConfidenceOptions(args.iterations, args.minutes, args.batch_size, args.scaling == "median", args.seed)
    # The pictures are small: on a busy machine, several threads would mostly wait for each other.
    torch.set_num_threads(1)
    last: deque[ConfidenceStep] = deque(maxlen=100)
    with tqdm(total=options.iterations, unit="batch") as bar:

        def on_step(step: ConfidenceStep) -> None:
            last.append(step)
            bar.update()
            bar.set_postfix(loss=f"{step.loss:.3f}", error=f"{step.error:.3f}", expected=f"{step.expected:.3f}")

        network, iterations = train_confidence(checkpoint, args.data, options, on_step)
    error, expected = (sum(getattr(step, name) for step in last) / len(last) for name in ("error", "expected"))
    text = f"likelihood of the depth's errors, {iterations} batches of {options.batch_size} pictures"
    provenance = {**checkpoint.description.provenance, "confidence": text}
    export_checkpoint(network, replace(checkpoint.description, provenance=provenance), args.out)
    print(
        f"in the last {len(last)} batches, depth was off by {100 * error:.0f} %, and the head expected {100 * expected:.0f} %"
    )
    print(
        f"wrote {args.out} and {args.out.with_suffix('.onnx')}; measure it: fadepth evaluate {args.out} --confidence ..."
    )
