"""The number of processors."""

from __future__ import annotations

import os

#: Environment variable: the largest number of processors to use.
CPU_LIMIT = "FADEPTH_CPUS"


def usable_cpus() -> int:
    """Processors that this process may use: those it is allowed to run on, at most `CPU_LIMIT`. macOS and Windows do not
    limit a process to some of them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get(CPU_LIMIT, "")
    return min(cpus, int(limit)) if limit.isdecimal() and int(limit) > 0 else cpus
