"""The status of a camera in /diagnostics: level, one line of text, and values.

Levels of diagnostic_msgs/DiagnosticStatus: ERROR if the engine fails or an internal error drops frames, WARN if there are
other problems with frames or a fallback backend runs, STALE if no images arrive.
"""

from __future__ import annotations

from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from fadepth_ros.pipeline import DEPTH, Pipeline
from fadepth_ros.statistics import Report

#: Causes for which the level is ERROR.
_SERIOUS = ("engine", "internal")


def camera_status(name: str, pipeline: Pipeline | None, idle: bool = False) -> DiagnosticStatus:
    """The status of one camera since the previous call.

    Args:
        pipeline: None while the node is not active.
        idle: whether the camera is unsubscribed because no output has subscribers.
    """
    if pipeline is None:
        return DiagnosticStatus(name=name, level=DiagnosticStatus.OK, message="not active")
    report = pipeline.statistics.report()
    if idle:
        report = replace(report, silent=False)
    level, text = summary(report, pipeline.engine.status.degraded, pipeline.engine.rejection)
    if idle and level == DiagnosticStatus.OK:
        text = "no subscribers, the camera is unsubscribed"
    values = [KeyValue(key=key, value=value) for key, value in status_values(report, pipeline).items()]
    return DiagnosticStatus(
        name=name, level=level, message=text, hardware_id=pipeline.engine.status.description, values=values
    )


def summary(report: Report, degraded: bool, rejection: str = "") -> tuple[bytes, str]:
    """Level and text: the most frequent warning among the present drops and problems, serious causes first.

    Args:
        degraded: whether a backend failed and another one runs.
        rejection: why former settings are used instead of the present ones.
    """
    counts = {**report.problems, **report.dropped}
    counts = {cause: n for cause, n in counts.items() if cause in report.errors}
    if counts:
        serious = [cause for cause in _SERIOUS if cause in counts]
        cause = serious[0] if serious else max(counts, key=counts.__getitem__)
        return DiagnosticStatus.ERROR if serious else DiagnosticStatus.WARN, report.errors[cause]
    if report.silent:
        return DiagnosticStatus.STALE, "no images arrive"
    if rejection:
        return DiagnosticStatus.WARN, "running with former settings, see 'settings not used'"
    if degraded:
        return DiagnosticStatus.WARN, "running on a fallback backend, see 'passed over'"
    if report.dropped.get("no_subscriber"):
        return DiagnosticStatus.OK, "no subscribers"
    return DiagnosticStatus.OK, f"{report.published.get(DEPTH, 0) / report.seconds:.1f} depth images per second"


def status_values(report: Report, pipeline: Pipeline) -> dict[str, str]:
    """Keys and values: rates, latencies, counts by cause, engine, scale, last error."""
    values = {"images received per second": f"{report.received / report.seconds:.1f}"}
    values |= {f"{name} per second": f"{n / report.seconds:.1f}" for name, n in sorted(report.published.items())}
    if report.latency is not None:
        values["latency p50 (ms)"] = f"{report.latency[0]:.2f}"
        values["latency p99 (ms)"] = f"{report.latency[1]:.2f}"
        values["age of stamp p50 (ms)"] = f"{report.age:.2f}"
    values |= {cause: str(n) for cause, n in sorted(report.totals.items())}
    engine = pipeline.engine.status
    values["engine"] = engine.description
    values["checkpoint"] = engine.checkpoint
    values["rectification"] = pipeline.rectifier.status
    if pipeline.engine.rejection:
        values["settings not used"] = pipeline.engine.rejection
    scale = pipeline.ground.scale
    if scale is not None:
        seen = "" if scale.seen else ", no ground in view"
        values["scale from camera height"] = f"{scale.factor:.3f}{seen}"
    if pipeline.confidence.share is not None:
        values["pixels below min_confidence (%)"] = f"{100 * pipeline.confidence.share:.1f}"
    values |= {f"passed over {i}": text for i, text in enumerate(engine.failures, 1)}
    if report.last_error is not None:
        values["last error"] = f"{report.last_error[0]} ({report.last_error[1]:.0f} s ago)"
    return values
