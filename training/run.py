#!/usr/bin/env python3
"""Offline command line for fadepth's models.

python training/run.py models
    what can be built, and what it costs
python training/run.py init smalldepth out.safetensors
    an untrained deployment checkpoint
python training/run.py export checkpoint.safetensors --out robot.safetensors
    what a robot needs, from any checkpoint
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a clone, installed or not

from fadepth_core.models import MODELS, build_model
from fadepth_core.models.complexity import complexity
from fadepth_core.models.layers.head import MAX_DEPTH, MIN_DEPTH
from fadepth_core.models.smalldepth import PIXEL_MEAN, PIXEL_STD
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError, Description
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network

SIZE = (128, 416)


def models(_args: argparse.Namespace) -> None:
    """Print every network with its parameters and operations as the paper counts them."""
    print(f"{'model':<16}{'parameters':>12}{'operations at 128x416':>24}")
    for name in MODELS:
        network = build_model(name)
        cost = complexity(network, (1, 3, *SIZE), [*network.encoder_modules(), *network.decoder_modules()])
        print(f"{name:<16}{cost.parameters / 1e6:>10.3f} M{cost.operations / 1e9:>22.3f} G")


def init(args: argparse.Namespace) -> None:
    """Write a deployment checkpoint of random weights."""
    _check_suffix(args.out)
    torch.manual_seed(args.seed)
    network = build_model(args.model, residual_drop=0.0)
    # BatchNorm statistics of noise: without them the activations of random weights grow with every layer.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(2, 3, *SIZE))
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
    export_checkpoint(network.eval().fuse(), description, args.out)
    print(f"wrote {args.out} and {args.out.with_suffix('.onnx')}")


def export(args: argparse.Namespace) -> None:
    """Fuse a checkpoint and write it in deployment form with its ONNX graph."""
    checkpoint = Checkpoint(args.checkpoint)
    if args.out is None and checkpoint.description.form == "training":
        raise CheckpointError(f"{checkpoint.path}: a training checkpoint; name another file with --out, to keep it")
    out = args.out or checkpoint.path
    _check_suffix(out)
    export_checkpoint(load_network(checkpoint), checkpoint.description, out)
    print(f"wrote {out} and {out.with_suffix('.onnx')}")


def _check_suffix(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a checkpoint's name ends in .safetensors; its graph is written beside it")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("models", help=models.__doc__).set_defaults(run=models)
    command = commands.add_parser("init", help=init.__doc__)
    command.add_argument("model", choices=sorted(MODELS))
    command.add_argument("out", type=Path)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=init)
    command = commands.add_parser("export", help=export.__doc__)
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--out", type=Path, help="deployment checkpoint to write; default: over the input")
    command.set_defaults(run=export)
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
