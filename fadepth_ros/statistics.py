"""Counts, latencies and rate-limited warnings about the frames of one camera. The node reports them once a second."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

#: Seconds between two log lines with a warning of the same cause.
WARN_PERIOD = 5.0


@dataclass
class Report:
    """Counts since the previous report.

    Attributes:
        seconds: time since the previous report.
        received: frames that arrived.
        published: messages published, by output.
        dropped: frames without any output, by cause.
        problems: frames with a problem that were published nevertheless, by cause.
        totals: drops and problems since the start, by "dropped: cause" and "problem: cause".
        latency: milliseconds from a frame's arrival to its last output, p50 and p99; None without frames.
        age: milliseconds from a frame's stamp to its last output, p50; None without frames.
        errors: the newest warning of each cause.
        last_error: the newest warning and its age in seconds, or None.
    """

    seconds: float
    received: int
    published: dict[str, int]
    dropped: dict[str, int]
    problems: dict[str, int]
    totals: dict[str, int]
    latency: tuple[float, float] | None
    age: float | None
    errors: dict[str, str]
    last_error: tuple[str, float] | None


@dataclass
class _Window:
    received: int = 0
    published: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    problems: Counter = field(default_factory=Counter)
    # Enough for one second at any camera's frame rate.
    latencies: deque = field(default_factory=lambda: deque(maxlen=4096))
    ages: deque = field(default_factory=lambda: deque(maxlen=4096))
    start: float = field(default_factory=time.monotonic)


class Statistics:
    """Counts between two reports.

    Args:
        logger: gets the warnings.
    """

    def __init__(self, logger: logging.Logger):
        self._logger = logger
        self._window = _Window()
        self._totals: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._last_error: tuple[str, float] | None = None
        self._next_log: dict[str, float] = {}

    def received(self, frames: int) -> None:
        """Count frames that arrived."""
        self._window.received += frames

    def dropped(self, cause: str, frames: int = 1) -> None:
        """Count frames that were dropped for a cause."""
        self._window.dropped[cause] += frames
        self._totals[f"dropped: {cause}"] += frames

    def problem(self, cause: str) -> None:
        """Count a frame that is published although it has a problem."""
        self._window.problems[cause] += 1
        self._totals[f"problem: {cause}"] += 1

    def finished(self, outputs: Iterable[str], latency: float, age: float) -> None:
        """All `outputs` of a frame are published, `latency` s after its arrival and `age` s after its stamp."""
        self._window.published.update(outputs)
        self._window.latencies.append(latency)
        self._window.ages.append(age)

    def warning(self, text: str, cause: str, error: Exception | None = None) -> None:
        """Report a warning, and log it unless one of the same cause was logged less than `WARN_PERIOD` ago.

        Args:
            error: logged with its traceback.
        """
        now = time.monotonic()
        self._errors[cause] = text
        self._last_error = (text, now)
        if now >= self._next_log.get(cause, 0.0):
            self._next_log[cause] = now + WARN_PERIOD
            self._logger.warning(text, exc_info=error)

    def note(self, text: str, cause: str) -> None:
        """Log what is worth knowing and no problem, unless a text of the same cause was logged less than `WARN_PERIOD` ago."""
        now = time.monotonic()
        if now >= self._next_log.get(f"note: {cause}", 0.0):
            self._next_log[f"note: {cause}"] = now + WARN_PERIOD
            self._logger.info(text)

    def report(self) -> Report:
        """The counts since the previous report; starts new ones."""
        window, self._window = self._window, _Window()
        last = self._last_error
        now = time.monotonic()
        latencies, ages = sorted(window.latencies), sorted(window.ages)
        return Report(
            seconds=now - window.start,
            received=window.received,
            published=dict(window.published),
            dropped=dict(window.dropped),
            problems=dict(window.problems),
            totals=dict(self._totals),
            latency=(1e3 * _quantile(latencies, 0.5), 1e3 * _quantile(latencies, 0.99)) if latencies else None,
            age=1e3 * _quantile(ages, 0.5) if ages else None,
            errors=dict(self._errors),
            last_error=(last[0], now - last[1]) if last else None,
        )


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
