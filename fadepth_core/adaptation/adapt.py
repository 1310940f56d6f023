"""Teaches a network on recordings of the robot that it will run on (`fadepth adapt`).

    recordings -> prepare (labelled pictures) -> teach -> compare on frames held back -> report.html, checkpoint

Everything is kept in a work folder, so that the same command continues after an interruption and repeats only what has changed.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fadepth_core.adaptation.prepare import Prepared, judging_samples
from fadepth_core.adaptation.report import Report, Row, Table, write_report
from fadepth_core.adaptation.stages import run_stage
from fadepth_core.adaptation.teaching import FORGOTTEN, TEACHING, Taught, render_scenes, teach, teaching_config
from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import LabelledImage
from fadepth_core.data.registry import build_test_set
from fadepth_core.evaluation import (
    PROTOCOLS,
    Evaluation,
    NetworkPredictor,
    compare_evenly,
    evaluate,
    evaluate_video,
    write_values,
)
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_core.training.confidence import ConfidenceOptions, train_confidence
from fadepth_core.training.run_folder import DEPLOYED

TAUGHT = "taught"
REPORT = "report.html"
RESULT = "adaptation.json"
#: Everything that is written into the work folder.
OUTPUTS = (
    *("recordings", "teach", "validate", "judge", "teaching", "logs"),
    *("teaching-settings.json", f"{TAUGHT}.json", REPORT, RESULT),
)
#: Rows of pictures in the report.
_PICTURES = 8
#: Samples of each recording that `_video_table` measures.
_VIDEO_FRAMES = 16
#: Both ways to compare depth with the truth, by their names in the report.
_SCALINGS = {"scaled": "median", "in metres": "none"}


@dataclass(frozen=True)
class Adapted:
    """Result of an adaptation.

    Attributes:
        better: whether the network is better on the frames held back.
        verdict: one sentence.
        checkpoint: the adapted network.
        report: the page.
        figures: AbsRel before and after, by test set and scaling.
        interrupted: whether the teaching was stopped before its time.
    """

    better: bool
    verdict: str
    checkpoint: Path
    report: Path
    figures: dict[str, dict[str, list[float]]]
    interrupted: bool


#: Longest training of the confidence head, if the network before has one.
_CONFIDENCE_MINUTES = 5.0


def use_command(checkpoint: Path) -> str:
    """The command that makes the running node use a checkpoint."""
    return f"ros2 param set /depth checkpoint {shlex.quote(str(checkpoint.resolve()))}"


def predictor(checkpoint: Checkpoint) -> NetworkPredictor:
    """The network of a checkpoint, which keeps the aspect ratio of pictures as recordings do."""
    return NetworkPredictor(load_network(checkpoint).eval(), focal=checkpoint.description.focal_length)


def adapt(
    recordings: Sequence[Prepared], work: Path, start: Checkpoint, out: Path, minutes: float, licence: str | None = None
) -> Adapted:
    """Teach the network on prepared recordings, compare it with the one before, and write `out` if it is better.

    Args:
        recordings: see `prepare.prepare`.
        work: folder with their pictures; the page and the result are written there.
        start: the network before.
        out: the checkpoint to write.
        minutes: time of the training.
        licence: of the result; None: that of `start`.

    Raises:
        DataError: there is no recording.
        TrainingError: the training cannot start or continue.
    """
    if not recordings:
        raise DataError("no recording could be used")
    metric = all(recording.metric for recording in recordings)
    started = time.monotonic()
    for scenes in TEACHING:
        render_scenes(scenes)
    tests = {"held back": build_test_set("folder", root=work / "judge")}
    tests |= {f"rendered {scenes.preset}": build_test_set("folder", root=render_scenes(scenes)) for scenes in FORGOTTEN}
    rendering = time.monotonic() - started
    taught = _teach(recordings, work, start, minutes, licence)
    adapted = Checkpoint(taught.checkpoint)

    networks = (predictor(start), predictor(adapted))
    measured = {name: _measure(networks, images) for name, images in tests.items()}
    figures = {
        name: {label: [result.metrics.abs_rel for result in pair] for label, pair in by_scaling.items()}
        for name, by_scaling in measured.items()
    }
    label = "in metres" if metric else "scaled"
    before, after = figures["held back"][label]
    better = after < before
    verdict = (
        f"AbsRel ({label}) on {len(tests['held back'])} frames held back {'fell' if better else 'did not fall'}: {before:.3f} "
        f"before, {after:.3f} after."
    )
    protocol = replace(PROTOCOLS["folder"], scaling=_SCALINGS[label])
    shown = (compare_evenly(network, tests["held back"], protocol, _PICTURES) for network in networks)
    report = Report(
        title=", ".join(Path(recording.source).name for recording in recordings),
        verdict=verdict,
        better=better,
        truth=" and ".join(dict.fromkeys(_truth(recording) for recording in recordings)),
        rows=tuple(Row(before, after) for before, after in zip(*shown, strict=True)),
        tables=(
            _metrics_table(measured),
            *_video_table(recordings, work, networks, metric),
            _recordings_table(recordings),
            _times_table(recordings, rendering, taught, minutes),
            _licences_table(start, adapted),
        ),
        curve=taught.curve,
        notes=tuple(
            f"{recording.name}: {note}" if len(recordings) > 1 else note
            for recording in recordings
            for note in recording.notes
        ),
        command=use_command(out if better else taught.checkpoint),
    )
    write_report(report, work / REPORT)
    write_values({"better": better, "verdict": verdict, "figures": figures, "minutes": minutes}, work / RESULT)
    if better:
        out.parent.mkdir(parents=True, exist_ok=True)
        network = load_network(adapted)
        if start.description.has_confidence:  # the adapted network makes other errors
            options = ConfidenceOptions(minutes=min(0.2 * minutes, _CONFIDENCE_MINUTES), scaled=not metric)
            network, _ = train_confidence(adapted, [work / "teach", work / "validate"], options)
        export_checkpoint(network, adapted.description, out)
    return Adapted(better, verdict, taught.checkpoint, work / REPORT, figures, taught.interrupted)


def _measure(
    networks: tuple[NetworkPredictor, NetworkPredictor], images: Sequence[LabelledImage]
) -> dict[str, tuple[Evaluation, Evaluation]]:
    """Results of the network before and of the adapted one, by the name of the scaling."""
    before, after = networks
    results = {}
    for label, scaling in _SCALINGS.items():
        protocol = replace(PROTOCOLS["folder"], scaling=scaling)
        results[label] = (evaluate(before, images, protocol), evaluate(after, images, protocol))
    return results


def _teach(
    recordings: Sequence[Prepared], work: Path, start: Checkpoint, minutes: float, licence: str | None
) -> Taught:
    """The training, or its result if it has finished with the same settings."""
    frames = sum(recording.counts["teach"] for recording in recordings)
    folders = {recording.name: work / "teach" / recording.name for recording in recordings}
    config = teaching_config(
        start,
        {folders[recording.name]: recording.counts["teach"] / frames for recording in recordings},
        work / "validate",
        work / "teaching",
        {folders[recording.name]: recording.size for recording in recordings},
        minutes,
        all(recording.metric for recording in recordings),
        {
            "adapted": f"{frames} frames of {', '.join(Path(recording.source).name for recording in recordings)}",
            "labels": ", ".join(dict.fromkeys(recording.labels for recording in recordings)),
            **({"licence": licence} if licence else {}),
        },
    )
    settings = {
        "start": start.weights_sha256,
        "recordings": [recording.digest for recording in recordings],
        "config": config.model_dump(mode="json"),
    }

    def clear() -> dict[str, Any]:
        shutil.rmtree(config.output, ignore_errors=True)  # a run with other settings cannot be continued
        return {}

    def compute() -> dict[str, Any]:
        taught = teach(config)
        return {**asdict(taught), "checkpoint": str(taught.checkpoint)}

    run_stage(work, "teaching-settings", settings, clear)
    result = run_stage(work, TAUGHT, settings, compute, [config.output / DEPLOYED]).result
    if result["interrupted"]:
        (work / f"{TAUGHT}.json").unlink()  # the same command continues it
    return Taught(
        Path(result["checkpoint"]), result["iterations"], result["interrupted"], tuple(map(tuple, result["curve"]))
    )


def _truth(recording: Prepared) -> str:
    return recording.truth if recording.measured else "multi-view stereo (an estimate from the same recording)"


def _metrics_table(measured: Mapping[str, Mapping[str, tuple[Evaluation, Evaluation]]]) -> Table:
    rows = []
    for name, by_scaling in measured.items():
        for label, (before, after) in by_scaling.items():
            figures = [
                f"{100 * value:.0f} %" if share else f"{value:.3f}"
                for key, share in (("abs_rel", False), ("rmse", False), ("d1", True))
                for value in (getattr(before.metrics, key), getattr(after.metrics, key))
            ]
            rows.append((f"{name}, {label} ({len(before.images)})", *figures))
    return Table(
        "Errors before and after",
        ("frames", "AbsRel before", "after", "RMSE before, m", "after", "within 25 % before", "after"),
        tuple(rows),
        "The rendered scenes are not of the recording: they show what the network has forgotten.",
    )


def _video_table(
    recordings: Sequence[Prepared], work: Path, networks: tuple[NetworkPredictor, NetworkPredictor], metric: bool
) -> list[Table]:
    """Self-supervised figures of recordings without measured depth."""
    samples = [
        (recording.name, sample)
        for recording in recordings
        if not recording.measured
        for sample in judging_samples(recording, work, _VIDEO_FRAMES)
    ]
    if not samples:
        return []
    clips, triplets = [name for name, _ in samples], [sample for _, sample in samples]
    scaling = "none" if metric else "median"
    before, after = (asdict(evaluate_video(network, triplets, clips, scaling).figures) for network in networks)
    return [
        Table(
            "Consistency of the frames held back with their neighbours",
            ("figure", "before", "after"),
            tuple((name, f"{before[name]:.3f}", f"{after[name]:.3f}") for name in before),
            "Measured without true depth, by the protocol 'video'; lower is better.",
        )
    ]


def _recordings_table(recordings: Sequence[Prepared]) -> Table:
    rows = tuple(
        (
            recording.name,
            *(str(recording.counts[kind]) for kind in ("frames", "teach", "validate", "judge")),
            recording.labels,
            recording.truth,
        )
        for recording in recordings
    )
    return Table("What was used", ("recording", "frames", "teach", "choose", "judge", "labels by", "judged by"), rows)


def _times_table(recordings: Sequence[Prepared], rendering: float, taught: Taught, minutes: float) -> Table:
    rows = [
        (f"{recording.name}: {stage}", f"{seconds / 60:.1f}")
        for recording in recordings
        for stage, seconds in recording.seconds.items()
    ]
    ended = "interrupted; " if taught.interrupted else ""
    rows += [
        ("rendered scenes", f"{rendering / 60:.1f}"),
        (f"teaching ({ended}best network after {taught.iterations} steps)", f"{minutes:g}"),
    ]
    return Table("Time of each stage, minutes", ("stage", "minutes"), tuple(rows))


def _licences_table(start: Checkpoint, adapted: Checkpoint) -> Table:
    rows = (
        ("network before", start.description.licence or "not stated"),
        ("adapted network", adapted.description.licence or "not stated"),
    )
    note = "The recording's own licence applies, too; --licence states it in the checkpoint."
    return Table("Licences", ("weights", "licence"), rows, note)
