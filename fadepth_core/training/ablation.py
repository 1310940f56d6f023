"""The same run in several variants and with several seeds, and what each change is worth.

Every run is a process of its own, several at a time; a finished one is not repeated, an interrupted one goes on.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from fadepth_core.evaluation import evaluate
from fadepth_core.evaluation.baselines import ConstantDepth
from fadepth_core.training.config import ConfigError, load_config, read_yaml, validated
from fadepth_core.training.fit import METRICS, choose_protocol, test_set
from fadepth_core.training.trainer import STATE, TrainingError

#: Figures of a run that the table shows, with their headings.
_COLUMNS = {"abs_rel": "AbsRel", "sq_rel": "SqRel", "rmse": "RMSE", "d1": "d<1.25"}
TABLE = "ablation.json"


class AblationConfig(BaseModel):
    """An ablation.

    Attributes:
        run: what all runs share, a training configuration that names a test set.
        variants: by name, what each changes: "key=value" as for `--set`.
        seeds: every variant is trained once with each.
    """

    model_config = ConfigDict(extra="forbid")
    run: dict[str, Any]
    variants: dict[Annotated[str, Field(pattern=r"^[\w.+-]+$")], list[str]] = Field(min_length=1)  # names of folders
    seeds: list[int] = Field([0, 1, 2], min_length=1)


def ablate(path: Path, overrides: Sequence[str], output: Path, fit_command: Sequence[str], jobs: int) -> str:
    """Train every variant with every seed; returns the table, and writes it with all figures to ablation.json.

    Args:
        path: YAML file of an `AblationConfig`.
        overrides: "key=value" for all runs.
        output: folder; each run has its own in it.
        fit_command: what `--config`, `--set` and `--resume` are appended to, to train one run.
        jobs: runs at a time; they share the processor's cores.

    Raises:
        ConfigError, DataError: the configuration cannot be used.
        TrainingError: a run failed; the others were finished first, and its log is named.
    """
    config = validated(AblationConfig, read_yaml(path), path)
    output.mkdir(parents=True, exist_ok=True)
    shared = output / "run.yaml"
    shared.write_text(yaml.safe_dump(config.run, sort_keys=False), encoding="utf-8")
    for changes in config.variants.values():  # all of them before the first one trains
        run = load_config(shared, [*overrides, *changes])
    if run.evaluation.data is None:
        raise ConfigError(f"{path}: run.evaluation.data names no test set, so variants cannot be compared")

    runs = list(product(config.seeds, config.variants))
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run") as bar:

        def train(seed: int, name: str) -> dict[str, float]:
            folder = output / f"{name}-{seed}"
            changes = [*overrides, *config.variants[name], f"seed={seed}", f"output={folder}"]
            figures = _train(folder, shared, changes, fit_command, threads)
            bar.update()
            return figures

        futures = {(name, seed): pool.submit(train, seed, name) for seed, name in runs}
    figures = {name: [futures[name, seed].result() for seed in config.seeds] for name in config.variants}

    first = load_config(shared, list(overrides))
    constant = evaluate(ConstantDepth(), test_set(first), choose_protocol(first.evaluation))
    (output / TABLE).write_text(
        json.dumps({"constant": constant.to_dict()["metrics"], "seeds": config.seeds, "variants": figures}, indent=1),
        encoding="utf-8",
    )
    rows = [("constant depth", [vars(constant.metrics)]), *figures.items()]
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{heading:>18}" for heading in _COLUMNS.values())]
    for name, results in rows:
        lines.append(f"{name:<{width}}" + "".join(f"{_mean(results, column):>18}" for column in _COLUMNS))
    return "\n".join(lines)


def _train(
    folder: Path, config: Path, changes: list[str], fit_command: Sequence[str], threads: int
) -> dict[str, float]:
    """One run's figures."""
    metrics = folder / METRICS
    if not metrics.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        command = [*fit_command, "--config", str(config)]
        for change in changes:
            command += ["--set", change]
        if (folder / STATE).is_file():
            command.append("--resume")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with log.open("a", encoding="utf-8") as stream:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode:
            raise TrainingError(f"{folder.name} failed with status {done.returncode}; see {log}")
    return json.loads(metrics.read_text(encoding="utf-8"))["figures"]


def _mean(results: Sequence[dict[str, float]], column: str) -> str:
    values = [result[column] for result in results]
    spread = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"
