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
        dropped_total: the same since the start.
        latency: milliseconds from a frame's arrival to its last output, p50 and p99; None without frames.
        age: milliseconds from a frame's stamp to its last output, p50; None without frames.
        last_error: the newest warning and its age in seconds, or None.
    """

    seconds: float
    received: int
    published: dict[str, int]
    dropped: dict[str, int]
    dropped_total: dict[str, int]
    latency: tuple[float, float] | None
    age: float | None
    last_error: tuple[str, float] | None


@dataclass
class _Window:
    received: int = 0
    published: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    # Enough for a second at any rate a camera has.
    latencies: deque = field(default_factory=lambda: deque(maxlen=4096))
    ages: deque = field(default_factory=lambda: deque(maxlen=4096))
    start: float = field(default_factory=time.monotonic)


class Statistics:
    """Counts between two reports."""

    def __init__(self):
        self._window = _Window()
        self._total = Counter()
        self._last_error: tuple[str, float] | None = None

    def received(self, frames: int) -> None:
        self._window.received += frames

    def dropped(self, cause: str, frames: int = 1) -> None:
        self._window.dropped[cause] += frames
        self._total[cause] += frames

    def finished(self, outputs: list[str], latency: float, age: float) -> None:
        """A frame is out: `outputs` published, seconds since arrival and since its stamp."""
        self._window.published.update(outputs)
        self._window.latencies.append(latency)
        self._window.ages.append(age)

    def error(self, text: str) -> None:
        self._last_error = (text, time.monotonic())

    def report(self) -> Report:
        """What happened since the last report."""
        window, self._window = self._window, _Window()
        total, last = dict(self._total), self._last_error
        now = time.monotonic()
        latencies, ages = sorted(window.latencies), sorted(window.ages)
        return Report(
            seconds=now - window.start,
            received=window.received,
            published=dict(window.published),
            dropped=dict(window.dropped),
            dropped_total=total,
            latency=(1e3 * _quantile(latencies, 0.5), 1e3 * _quantile(latencies, 0.99)) if latencies else None,
            age=1e3 * _quantile(ages, 0.5) if ages else None,
            last_error=(last[0], now - last[1]) if last else None,
        )


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
