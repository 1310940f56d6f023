"""The number of processors."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """Processors that this process may use. macOS and Windows do not limit a process to some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
