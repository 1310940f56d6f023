"""Fuzzing: damaged inputs from a seed, and what a reader does with them.

A `Target` is one kind of input: `make_input` makes one from random numbers, `try_input` reads it, `check_good` reads an
undamaged one. `run` tries many and reports what escaped, the slowest, and the memory. Tests run a few thousand, `make fuzz`
as many as asked for:

    python tests/fuzz.py --count 1000000 --seed 1 image camera_info
    python tests/fuzz.py --only 1:4711 image        # one input again, by its seed and number
"""

from __future__ import annotations

import argparse
import importlib
import logging
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: Modules of tests that define `TARGETS`, and the folder below tests/ that each is in.
MODULES = {"fuzz_messages": "ros", "fuzz_files": "core", "fuzz_checkpoints": "core"}
#: Inputs between two undamaged ones.
PERIOD = 100


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        make_input: an input from random numbers.
        try_input: reads it and checks what comes out of it; returns how it ended ("accepted" or the refusal's cause). All that
            it raises is an escape.
        check_good: reads an undamaged input, which must work whatever came before.
    """

    name: str
    make_input: Callable[[np.random.Generator], Any]
    try_input: Callable[[Any], str]
    check_good: Callable[[], None]


@dataclass
class Report:
    """What `run` found.

    Attributes:
        outcomes: inputs by how they ended.
        escapes: number and traceback of the inputs whose error was none of those documented.
        slowest: processor seconds and number.
        largest: growth of the process's peak memory by one input, MB, and its number.
        growth: growth of the peak memory from the first tenth of the inputs to the last, MB.
    """

    count: int = 0
    outcomes: Counter = field(default_factory=Counter)
    escapes: list[tuple[int, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    largest: tuple[float, int] = (0.0, -1)
    growth: float = 0.0

    def __str__(self) -> str:
        outcomes = ", ".join(f"{number} {name}" for name, number in self.outcomes.most_common())
        lines = [
            f"{self.count} inputs: {len(self.escapes)} escapes; {outcomes}",
            f"slowest {1e3 * self.slowest[0]:.1f} ms (input {self.slowest[1]}); most memory {self.largest[0]:.1f} MB "
            f"(input {self.largest[1]}); growth {self.growth:.1f} MB",
        ]
        return "\n".join([*lines, *(f"input {number}:\n{text}" for number, text in self.escapes[:10])])


def run(target: Target, count: int, seed: int = 0, first: int = 0) -> Report:
    """Try `count` inputs, from number `first` on. Each follows from the seed and its number alone."""
    report = Report(count)
    start = None
    for number in range(first, first + count):
        if number == first + count // 10:
            start = _peak_memory()
        memory, began = _peak_memory(), time.process_time()
        try:
            value = target.make_input(np.random.default_rng((seed, number)))
            memory, began = _peak_memory(), time.process_time()
            report.outcomes[target.try_input(value)] += 1
            seconds, grown = time.process_time() - began, _peak_memory() - memory
            if number % PERIOD == 0:
                target.check_good()
        except Exception:
            report.escapes.append((number, traceback.format_exc()))
            continue
        report.slowest = max(report.slowest, (seconds, number))
        report.largest = max(report.largest, (grown, number))
    target.check_good()
    report.growth = _peak_memory() - (start or _peak_memory())
    return report


def flip_bits(raw: bytes, rng: np.random.Generator, end: int | None = None) -> bytes:
    """Change one to eight bits of the first `end` bytes."""
    damaged = bytearray(raw)
    for _ in range(rng.integers(1, 9)):
        if damaged:
            damaged[rng.integers(0, min(len(damaged), end or len(damaged)))] ^= 1 << rng.integers(0, 8)
    return bytes(damaged)


def cut(raw: bytes, rng: np.random.Generator) -> bytes:
    """Remove the end."""
    return raw[: rng.integers(0, len(raw) + 1)]


def splice(raw: bytes, rng: np.random.Generator) -> bytes:
    """Replace a part by another part, or by nothing."""
    at, source = (int(place) for place in rng.integers(0, len(raw) + 1, 2))
    length, inserted = (int(rng.integers(0, 64)) * int(use) for use in (1, rng.integers(0, 2)))
    return raw[:at] + raw[source : source + inserted] + raw[at + length :]


#: Numbers at which something overflows or changes its meaning.
EDGES = (0, 1, 2, 3, 15, 16, 255, 256, 16384, 16385, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1)


def set_number(raw: bytes, rng: np.random.Generator, end: int | None = None) -> bytes:
    """Set one aligned number of 32 bits in the first `end` bytes to one of `EDGES`."""
    if len(raw) < 8:
        return raw
    at = 4 * int(rng.integers(1, min(len(raw), end or len(raw)) // 4))
    order = "little" if rng.integers(0, 4) else "big"
    return raw[:at] + int(rng.choice(EDGES)).to_bytes(4, order) + raw[at + 4 :]


def damage(raw: bytes, rng: np.random.Generator, header: int = 120) -> bytes:
    """Damage bytes once to three times, mostly in the first `header` bytes."""
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(0, 8)
        if kind == 0:
            raw = cut(raw, rng)
        elif kind == 1:
            raw = splice(raw, rng)
        elif kind == 2:
            raw = flip_bits(raw, rng)
        elif kind <= 4:
            raw = flip_bits(raw, rng, header)
        elif kind <= 6:
            raw = set_number(raw, rng, header)
        else:
            raw = raw + rng.bytes(int(rng.integers(0, 64)))
    return raw


def targets() -> dict[str, Target]:
    """All targets by name."""
    tests = Path(__file__).resolve().parent
    sys.path[:0] = [str(path) for path in (tests.parent, *(tests / folder for folder in {*MODULES.values()}))]
    found = {}
    for module in MODULES:
        found |= {target.name: target for target in importlib.import_module(module).TARGETS}
    return found


def _peak_memory() -> float:
    """MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> int:
    known = targets()
    parser = argparse.ArgumentParser(description="Try damaged inputs. Exits with 1 if an error escaped.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--count", type=int, default=100_000, help="inputs of each target (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="SEED:NUMBER", help="try this input alone")
    options = parser.parse_args()
    unknown = set(options.targets) - set(known)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    first, count, seed = 0, options.count, options.seed
    if options.only:
        seed, first = map(int, options.only.split(":"))
        count = 1
    logging.disable()  # what a reader says of each damaged input
    escapes = 0
    for name in options.targets or known:
        began = time.monotonic()
        report = run(known[name], count, seed, first)
        escapes += len(report.escapes)
        print(f"{name}, seed {seed}, {time.monotonic() - began:.0f} s: {report}", flush=True)
    return 1 if escapes else 0


if __name__ == "__main__":
    sys.exit(main())
