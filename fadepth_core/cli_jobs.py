"""Commands over several inputs, e.g. recordings: `--jobs`, `--cluster`, folders and patterns."""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fadepth_core import __version__
from fadepth_core.cli_arguments import whole
from fadepth_core.common.documents import read_json
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import write_atomically
from fadepth_core.common.folders import visible
from fadepth_core.common.jobs import Outcome, run_jobs

#: Arguments that do not change the result of one input.
_OTHER_ARGUMENTS = {"run", "command", "jobs", "cluster", "overwrite", "threads"}

Command = Callable[[argparse.Namespace], None]


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options for several inputs; `run_each` reads them."""
    group = parser.add_argument_group(
        "for several inputs (also a folder of them, or a pattern in quotes)",
        "Each result has the name of its input in the folder --out, beside a log. Inputs that are done are left out when the "
        "command is repeated.",
    )
    group.add_argument("--jobs", type=whole(1, 256), default=1, metavar="N", help="inputs at a time on each machine")
    group.add_argument(
        "--cluster", metavar="ADDRESS", help="also use the other machines of a Ray cluster; auto: this machine's"
    )


def expand(paths: Iterable[Path]) -> list[Path]:
    """The paths, with patterns (* ? [) replaced by what fits them, in the order of their names.

    Raises:
        DataError: nothing fits a pattern.
    """
    found: list[Path] = []
    for path in paths:
        if os.path.lexists(path) or not glob.has_magic(str(path)):
            found.append(path)
            continue
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise DataError(f"{path}: nothing fits this pattern")
        found += map(Path, matches)
    return list(dict.fromkeys(found))


def bags_below(path: Path) -> list[Path]:
    """The recordings in a folder and its subfolders; `path` itself if it is one, or no folder."""
    # Not at the top: it imports torch, and the processes of `run_each`, which import this module, may not need it.
    from fadepth_core.data.bag import is_bag

    if not path.is_dir() or (path / "metadata.yaml").is_file():
        return [path]
    entries = visible(path)
    files = [entry for entry in entries if is_bag(entry) and not entry.is_dir()]
    below = [bag for entry in entries if entry.is_dir() for bag in bags_below(entry)]
    # rosbag2 numbers the files of one recording: NAME_0.mcap, NAME_1.mcap.
    if len({re.sub(r"_\d+$", "", file.stem) for file in files}) == 1 and not below:
        return [path]
    return [*files, *below]


def find_bags(paths: Iterable[Path]) -> list[Path]:
    """The recordings that the paths, folders and patterns stand for.

    Raises:
        DataError: there are none in a folder, or nothing fits a pattern.
    """
    found = []
    for path in expand(paths):
        bags = bags_below(path)
        if not bags:
            raise DataError(f"{path}: no recordings in this folder")
        found += bags
    return list(dict.fromkeys(found))


def run_each(
    command: Command,
    args: argparse.Namespace,
    key: str,
    inputs: Sequence[Path],
    changes: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Run a command for each input, and print a table of how it ended.

    Args:
        command: function of a module. It is called with `args` in which `key` is the input and `out` is the path of its
            result: of the input's name, in the folder `out` of `args`.
        args: arguments of the command, with those of `add_job_arguments`.
        changes: further arguments for each input.

    Raises:
        DataError: the command failed for an input.
    """
    out: Path = args.out
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out}: a file; {len(inputs)} inputs need a folder")
    out.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for name, path, change in zip(unique_names(inputs), inputs, changes or [{}] * len(inputs), strict=True):
        values = {**vars(args), **change, key: path, "out": out.absolute() / name}
        # Another machine may have another working directory. The name of a shipped checkpoint is no path.
        values = {k: v.absolute() if isinstance(v, Path) and v.exists() else v for k, v in values.items()}
        tasks[name] = _Task(command, argparse.Namespace(**values), key, out.absolute() / f".{name}.done")
    width = max(map(len, tasks))
    done = {name: Outcome(name, "was done before", False, 0.0) for name, task in tasks.items() if _is_done(task)}
    waiting = {name: task for name, task in tasks.items() if name not in done}
    with tqdm(total=len(waiting), unit="input") as bar:

        def show(outcome: Outcome) -> None:
            bar.write(_row(outcome, width), file=sys.stdout)
            bar.update()

        ended = run_jobs(_run, waiting, args.jobs, args.cluster, out.absolute(), show) if waiting else []
    by_name = done | {outcome.name: outcome for outcome in ended}
    outcomes = [by_name[name] for name in tasks]
    failed = [outcome for outcome in outcomes if outcome.failed]
    print(f"\n{len(outcomes) - len(failed)} of {len(outcomes)} inputs are done; results and logs are in {out}")
    for outcome in outcomes:
        print(_row(outcome, width))
    if failed:
        raise DataError(f"{len(failed)} of {len(outcomes)} inputs failed: {', '.join(o.name for o in failed)}")


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for each path: that of the file or folder without suffix; with the folders above it, and then the suffix, where
    others have the same name."""
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    parts = [path.absolute().relative_to(root) for path in paths]
    plain = [_stem(path) for path in parts]
    folders = ["_".join((*path.parts[:-1], _stem(path))) for path in parts]
    count, longer = Counter(plain), Counter(folders)
    return [
        name if count[name] == 1 else folder if longer[folder] == 1 else "_".join(path.parts)
        for name, folder, path in zip(plain, folders, parts, strict=True)
    ]


def _stem(path: Path) -> str:
    return path.stem or path.name


def _row(outcome: Outcome, width: int) -> str:
    state = "failed" if outcome.failed else "ok"
    return f"{state:<8}{outcome.name:<{width + 2}}{outcome.seconds:8.0f} s  {outcome.text}".rstrip()


@dataclass(frozen=True)
class _Task:
    """A command for one input. `marker` is the file that says with which arguments its result was made."""

    command: Command
    args: argparse.Namespace
    key: str
    marker: Path


def _is_done(task: _Task) -> bool:
    """Whether the result is complete, and made from this input with these arguments."""
    if getattr(task.args, "overwrite", False) or not (task.args.out.exists() and task.marker.exists()):
        return False
    return read_json(task.marker) == _state(task)


def _run(task: _Task) -> str:
    """Run the command, and note that its result is complete."""
    state = _state(task)
    task.command(task.args)
    write_atomically(task.marker, lambda part: Path(part).write_text(json.dumps(state), encoding="utf-8"))
    return ""


def _state(task: _Task) -> dict[str, Any]:
    """What the result depends on."""
    source: Path = getattr(task.args, task.key)
    status = source.stat() if source.exists() else None
    state: dict[str, Any] = {"version": __version__, "modified": status and status.st_mtime_ns}
    return state | {key: repr(value) for key, value in vars(task.args).items() if key not in _OTHER_ARGUMENTS}
