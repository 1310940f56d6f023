"""Ablation: train variants of one configuration with several seeds, and compare them with each other and with the paper.

This is `fadepth ablate`; config/training/tables has Tables IV to XI. Each run is a process, and several run at a time. Finished
runs are not repeated, interrupted ones are resumed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from tqdm import tqdm

from fadepth_core.common.cpus import usable_cpus
from fadepth_core.common.documents import read_json
from fadepth_core.common.errors import DataError
from fadepth_core.evaluation import evaluate, write_values
from fadepth_core.evaluation.baselines import ConstantDepth
from fadepth_core.evaluation.metrics import DepthMetrics
from fadepth_core.training.config import ConfigError, TrainConfig, load_config, read_yaml, validated
from fadepth_core.training.fit import choose_protocol, test_set
from fadepth_core.training.run_folder import CONFIG, METRICS, STATE, TrainingError

#: Metrics of the printed table, with their headings.
log = logging.getLogger(__name__)

_COLUMNS = {"abs_rel": "AbsRel", "sq_rel": "SqRel", "rmse": "RMSE", "rmse_log": "RMSElog", "d1": "d<1.25"}
#: Metrics in the order of the paper's tables. Its tables of short runs have only the first five.
_METRICS = tuple(field.name for field in fields(DepthMetrics))
_PAPER_LENGTHS = (5, 7)
TABLE = "ablation.json"
#: The folder that holds the package.
_ROOT = Path(__file__).resolve().parents[2]
_FolderName = Annotated[str, Field(pattern=r"^[\w.+-]+$")]


class VariantConfig(BaseModel):
    """One row of an ablation. A list of "key=value" is short for `{set: [...]}`.

    Attributes:
        set: changes of the shared configuration, "key=value" as for `--set`.
        paper: the paper's figures for this row: AbsRel, SqRel, RMSE, RMSElog, d<1.25 and, if printed, d<1.25^2, d<1.25^3.
    """

    model_config = ConfigDict(extra="forbid")
    set: list[str] = []
    paper: list[float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand_short_form(cls, given: Any) -> Any:
        return {"set": given} if isinstance(given, list) else given

    @field_validator("paper")
    @classmethod
    def _check_paper(cls, values: list[float] | None) -> list[float] | None:
        if values is None:
            return None
        if len(values) not in _PAPER_LENGTHS:
            raise ValueError(f"expected AbsRel, SqRel, RMSE, RMSElog, d1 and maybe d2, d3, got {len(values)} numbers")
        for name, value in zip(_METRICS, values, strict=False):
            limit = 1.0 if name in ("d1", "d2", "d3") else math.inf
            if not math.isfinite(value) or not 0 <= value <= limit:
                raise ValueError(f"{name} cannot be {value}")
        return values

    @property
    def paper_metrics(self) -> dict[str, float] | None:
        """The paper's figures by metric."""
        return None if self.paper is None else dict(zip(_METRICS, self.paper, strict=False))


class AblationConfig(BaseModel):
    """An ablation.

    Attributes:
        run: the training configuration that all runs share; it must have a test set.
        variants: the rows, by name. A run's folder is named after its variant and seed.
        seeds: every variant is trained once with each seed.
    """

    model_config = ConfigDict(extra="forbid")
    run: dict[str, Any]
    variants: dict[_FolderName, VariantConfig] = Field(min_length=1)
    seeds: list[int] = Field([0, 1, 2], min_length=1)


def ablate(
    path: Path,
    overrides: Sequence[str],
    output: Path,
    fit_command: Sequence[str],
    jobs: int,
    only: Sequence[str] = (),
) -> str:
    """Train every variant with every seed, write all figures to ablation.json, and return the table as text.

    Args:
        path: YAML file of an `AblationConfig`.
        overrides: "key=value" for all runs.
        output: folder with a folder for each run.
        fit_command: command that trains one run, without `--config`, `--set` and `--resume`.
        jobs: number of runs at a time; they share the processor's cores.
        only: names of the variants to train and compare; empty: all.

    Raises:
        ConfigError, DataError: the configuration cannot be used.
        TrainingError: a run failed. The other runs are finished first; the message names the log of the failed one.
    """
    config = validated(AblationConfig, read_yaml(path), path)
    output.mkdir(parents=True, exist_ok=True)
    shared = output / "run.yaml"
    shared.write_text(yaml.safe_dump(config.run, sort_keys=False), encoding="utf-8")
    first = _check_runs(path, config, shared, overrides)
    variants = _selected(path, config, only)

    runs = list(product(config.seeds, variants))
    threads = max(1, usable_cpus() // jobs)
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run") as bar:

        def train(seed: int, name: str) -> dict[str, float]:
            folder = output / f"{name}-{seed}"
            changes = [*overrides, *variants[name].set, f"seed={seed}", f"output={folder}"]
            figures = _train(folder, shared, changes, fit_command, threads)
            bar.update()
            return figures

        futures = {(name, seed): pool.submit(train, seed, name) for seed, name in runs}
    figures = {name: [futures[name, seed].result() for seed in config.seeds] for name in variants}
    paper = {name: variant.paper_metrics for name, variant in variants.items() if variant.paper_metrics is not None}

    constant = evaluate(ConstantDepth(), test_set(first, first.evaluation), choose_protocol(first.evaluation))
    table = {"constant": vars(constant.metrics), "seeds": config.seeds, "variants": figures, "paper": paper}
    _write_table(output / TABLE, table)
    return _format_table(vars(constant.metrics), figures, paper)


def _write_table(path: Path, table: dict[str, Any]) -> None:
    """Write the figures. With `only`, figures of the other variants from an earlier call with the same seeds are kept."""
    if path.is_file():
        try:
            earlier = read_json(path)
            if earlier.get("seeds") == table["seeds"]:
                kept = {key: {**earlier.get(key, {}), **table[key]} for key in ("variants", "paper")}
                table = {**table, **kept}
        except (DataError, AttributeError, TypeError) as error:  # the new figures took hours, they must be written
            log.warning("%s: not a table of figures, it is replaced: %s", path, error)
    write_values(table, path)


def _check_runs(path: Path, config: AblationConfig, shared: Path, overrides: Sequence[str]) -> TrainConfig:
    """Check the configurations of all variants before the first one trains; returns the shared one.

    Raises:
        ConfigError: the message names the variant and the key.
    """
    first = _load(shared, overrides, f"{path}: run")
    if first.evaluation.data is None:
        raise ConfigError(f"{path}: run.evaluation.data names no test set, so variants cannot be compared")
    for name, variant in config.variants.items():
        _load(shared, [*overrides, *variant.set], f"{path}: variants.{name}")
    return first


def _load(shared: Path, overrides: Sequence[str], where: str) -> TrainConfig:
    """A run's configuration. Error messages name `where`, because the user did not write the file `shared`."""
    try:
        return load_config(shared, list(overrides))
    except ConfigError as error:
        lines = [line.removeprefix(f"{shared}: ") for line in str(error).splitlines()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _selected(path: Path, config: AblationConfig, only: Sequence[str]) -> dict[str, VariantConfig]:
    if unknown := [name for name in only if name not in config.variants]:
        raise ConfigError(f"{path}: no variant {', '.join(unknown)}; there are {', '.join(config.variants)}")
    return {name: variant for name, variant in config.variants.items() if not only or name in only}


def _format_table(
    constant: dict[str, float], figures: dict[str, list[dict[str, float]]], paper: dict[str, dict[str, float]]
) -> str:
    """Mean and standard deviation over seeds of each variant; below it the paper's row, if there is one."""
    rows = [("constant depth", [constant])]
    for name, results in figures.items():
        rows.append((name, results))
        if name in paper:
            rows.append(("  paper:", [paper[name]]))
    width = max(len(label) for label, _ in rows)
    lines = [" " * width + "".join(f"{heading:>17}" for heading in _COLUMNS.values())]
    for label, results in rows:
        lines.append(f"{label:<{width}}" + "".join(f"{_mean(results, column):>17}" for column in _COLUMNS))
    return "\n".join(lines)


def _train(
    folder: Path, config: Path, changes: list[str], fit_command: Sequence[str], threads: int
) -> dict[str, float]:
    """Figures of one run, which is trained if it is not finished.

    Raises:
        TrainingError: the run failed, or the folder holds a run of another configuration.
    """
    metrics = folder / METRICS
    _check_same_run(folder, load_config(config, changes))
    if not metrics.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        command = [*fit_command, "--config", str(config)]
        for change in changes:
            command += ["--set", change]
        if (folder / STATE).is_file():
            command.append("--resume")
        # So that the run can import this package even if it is not installed.
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        with log.open("a", encoding="utf-8") as stream:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode:
            raise TrainingError(f"{folder.name} failed with status {done.returncode}; see {log}")
    return json.loads(metrics.read_text(encoding="utf-8"))["figures"]


def _check_same_run(folder: Path, wanted: TrainConfig) -> None:
    """Raises TrainingError if `folder` holds a run, finished or not, of another configuration than `wanted`."""
    path = folder / CONFIG
    if not path.is_file():
        return
    try:
        found = load_config(path, [])
    except ConfigError as error:
        raise TrainingError(f"{folder}: holds a run of another version; choose another --out ({error})") from error
    if wanted.loss.speed is None:  # the run has chosen a value for its data
        wanted = wanted.model_copy(update={"loss": wanted.loss.model_copy(update={"speed": found.loss.speed})})
    if found != wanted:
        changed = sorted(key for key in type(wanted).model_fields if getattr(found, key) != getattr(wanted, key))
        raise TrainingError(
            f"{folder}: holds a run with other settings ({', '.join(changed)}); choose another --out, or delete it"
        )


def _mean(results: Sequence[dict[str, float]], column: str) -> str:
    values = [result[column] for result in results]
    spread = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"
