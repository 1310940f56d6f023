"""Functions that test_jobs.py runs in other processes. Imports little, because each process does it again."""

from __future__ import annotations

import os
import signal

from fadepth_core.common.cpus import usable_cpus
from fadepth_core.common.errors import DataError


def work(kind):
    """Ends as `kind` says."""
    print(f"working on {kind}", flush=True)
    if kind == "data":
        raise DataError("drive.mcap: no\nimages")
    if kind == "bug":
        raise ZeroDivisionError("division by zero")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{usable_cpus()} processors"


def copy(args):
    """A command: copy a file."""
    if not args.source.read_text():
        raise DataError(f"{args.source}: empty")
    args.out.write_text(args.source.read_text())
