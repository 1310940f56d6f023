"""Counts, latencies and rate-limited warnings about the frames of one camera. The node reports them once a second.

A report covers the time since the previous one. For a camera slower than that, it covers the last few frames.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

#: Seconds between two log lines with a warning of the same cause.
WARN_PERIOD = 5.0

#: A report covers at least so many frames, if the camera is not silent.
_ENOUGH_FRAMES = 3
#: A camera is silent after this many of the longest of its last few intervals between frames: seconds, limited to a range.
_INTERVALS, _SHORTEST_SILENCE, _LONGEST_SILENCE = 3.0, 1.0, 60.0
#: The same while only one frame has arrived.
_FIRST_SILENCE = 5.0


@dataclass
class Report:
    """Counts of the time that the report covers.

    Attributes:
        seconds: that time.
        silent: whether images no longer arrive, or none has arrived.
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
    silent: bool
    received: int
    published: dict[str, int]
    dropped: dict[str, int]
    problems: dict[str, int]
    totals: dict[str, int]
    latency: tuple[float, float] | None
    age: float | None
    errors: dict[str, str]
    last_error: tuple[str, float] | None


@dataclass(frozen=True)
class _Line:
    """A line to log, `time` (monotonic clock, seconds) when it was reported."""

    level: int
    text: str
    error: Exception | None
    time: float


class _LimitedLog:
    """Logs at most one line of each cause in `WARN_PERIOD` seconds.

    The newest line within the period whose text differs from the logged one is held back and logged when the period is over,
    because it may not be reported again. A line with the same text is not held back.
    """

    def __init__(self, logger: logging.Logger):
        self._logger = logger
        self._logged: dict[str, str] = {}  # the last text of each cause
        self._due: dict[str, float] = {}  # when the next one of each cause may be logged
        self._held_back: dict[str, _Line] = {}

    def add(self, cause: str, line: _Line) -> None:
        """Log a line now or, if its text differs from the logged one, when the cause's period is over."""
        self.flush(line.time)  # first: if two texts alternate, both are logged in turn
        if line.time >= self._due.get(cause, 0.0):
            self._log(cause, line, line.time)
        elif line.text != self._logged[cause]:
            self._held_back[cause] = line

    def flush(self, now: float) -> None:
        """Log the lines held back whose period is over."""
        for cause in [cause for cause in self._held_back if now >= self._due[cause]]:
            self._log(cause, self._held_back.pop(cause), now)

    def _log(self, cause: str, line: _Line, now: float) -> None:
        self._logged[cause], self._due[cause] = line.text, now + WARN_PERIOD
        age = now - line.time
        late = f" ({age:.0f} s ago)" if age >= 1.0 else ""
        self._logger.log(line.level, "%s%s", line.text, late, exc_info=line.error)


@dataclass
class _Window:
    received: int = 0
    published: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    problems: Counter = field(default_factory=Counter)
    # Enough for one second at any camera's frame rate.
    latencies: deque = field(default_factory=lambda: deque(maxlen=4096))
    ages: deque = field(default_factory=lambda: deque(maxlen=4096))
    start: float = field(default_factory=lambda: time.monotonic())

    def add(self, older: _Window) -> None:
        """Extend this window by the one before it."""
        self.received += older.received
        for counts, others in (
            (self.published, older.published),
            (self.dropped, older.dropped),
            (self.problems, older.problems),
        ):
            counts.update(others)
        self.latencies.extendleft(reversed(older.latencies))
        self.ages.extendleft(reversed(older.ages))
        self.start = older.start


class Statistics:
    """Counts between two reports.

    Args:
        logger: gets the warnings.
    """

    def __init__(self, logger: logging.Logger):
        self._log = _LimitedLog(logger)
        self._window = _Window()
        self._previous: deque[_Window] = deque(maxlen=4 * int(_LONGEST_SILENCE))  # reported windows, newest last
        self._last_arrival: float | None = None
        self._intervals: deque[float] = deque(maxlen=4)
        self._totals: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._last_error: tuple[str, float] | None = None

    def received(self, frames: int) -> None:
        """Count frames that arrived."""
        now = time.monotonic()
        if self._last_arrival is not None:
            self._intervals.append(now - self._last_arrival)
        self._last_arrival = now
        self._window.received += frames
        self._log.flush(now)

    def resume(self) -> None:
        """Frames are expected again from now on: the time before is no interval between frames, and does not belong to a rate."""
        self._last_arrival = self._window.start = time.monotonic()
        self._previous.clear()

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
        """Report a warning. At most one of each cause is logged in `WARN_PERIOD` seconds.

        Call it for every frame while its condition lasts: it is then logged again after each period.

        Args:
            error: logged with its traceback.
        """
        now = time.monotonic()
        self._errors[cause] = text
        self._last_error = (text, now)
        self._log.add(cause, _Line(logging.WARNING, text, error, now))

    def note(self, text: str, cause: str) -> None:
        """Log what is worth knowing and no problem, at most one text of each cause in `WARN_PERIOD` seconds."""
        self._log.add(f"note: {cause}", _Line(logging.INFO, text, None, time.monotonic()))

    def silence(self) -> float:
        """Seconds without a frame after which the camera counts as silent."""
        if not self._intervals:
            return _FIRST_SILENCE
        return min(max(_INTERVALS * max(self._intervals), _SHORTEST_SILENCE), _LONGEST_SILENCE)

    def report(self) -> Report:
        """The counts since the previous report, or of the last few frames; see the module's description."""
        now = time.monotonic()
        self._log.flush(now)  # also without frames
        silent = self._last_arrival is None or now - self._last_arrival > self.silence()
        newest, self._window = self._window, _Window()
        window = _Window(start=newest.start)
        window.add(newest)
        if not silent:
            for older in reversed(self._previous):
                # The empty windows before the last of the frames belong to its interval.
                if window.received >= _ENOUGH_FRAMES and older.received:
                    break
                window.add(older)
        self._previous.append(newest)
        last = self._last_error
        latencies, ages = sorted(window.latencies), sorted(window.ages)
        return Report(
            seconds=now - window.start,
            silent=silent,
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
