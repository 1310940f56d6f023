"""What the node tells of itself once a second: rates, latencies, drops by cause, last error."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field


@dataclass
class Report:
    """One second, or what passed since the last report.

    Attributes:
        seconds: its length.
        received: frames that arrived.
        published: messages that went out, by output.
        dropped: frames that came to nothing, by cause.
        problems: what went wrong with frames of which depth was published all the same, by cause.
        totals: drops and problems since the start, by "dropped: cause" and "problem: cause".
        latency: milliseconds from a frame's arrival to its last output, p50 and p99; None without frames.
        age: milliseconds from a frame's stamp to its last output, p50; None without frames.
        errors: the newest warning by cause.
        last_error: the newest of all and its age in seconds, or None.
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
    # Enough for a second at any rate a camera has.
    latencies: deque = field(default_factory=lambda: deque(maxlen=4096))
    ages: deque = field(default_factory=lambda: deque(maxlen=4096))
    start: float = field(default_factory=time.monotonic)


class Statistics:
    """Counts between two reports."""

    def __init__(self):
        self._window = _Window()
        self._totals = Counter()
        self._errors: dict[str, str] = {}
        self._last_error: tuple[str, float] | None = None

    def received(self, frames: int) -> None:
        self._window.received += frames

    def dropped(self, cause: str, frames: int = 1) -> None:
        self._window.dropped[cause] += frames
        self._totals[f"dropped: {cause}"] += frames

    def problem(self, cause: str) -> None:
        self._window.problems[cause] += 1
        self._totals[f"problem: {cause}"] += 1

    def finished(self, outputs: list[str], latency: float, age: float) -> None:
        """A frame is out: `outputs` published, seconds since arrival and since its stamp."""
        self._window.published.update(outputs)
        self._window.latencies.append(latency)
        self._window.ages.append(age)

    def error(self, text: str, cause: str) -> None:
        self._errors[cause] = text
        self._last_error = (text, time.monotonic())

    def report(self) -> Report:
        """What happened since the last report."""
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
