"""How loader processes start."""

from __future__ import annotations

import signal

import torch


def start_worker(_number: int) -> None:
    """One thread each, and no Ctrl-C: that is for the training process, which ends its workers."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
