"""Decodes pictures without their decoders' own lines on stderr.

A camera with damaged pictures would fill the terminal with them; the node has its own warnings, at most one every few seconds.
OpenCV's lines can be switched off. libjpeg and libpng, which OpenCV contains, write to file descriptor 2 ("Corrupt JPEG data:
...", one line for each picture) and have no switch that can be reached. But on Linux a thread may have file descriptors of its
own, so pictures are decoded in a thread in which descriptor 2 is a pipe, from which the lines are returned. The descriptors of
the rest of the process, and of programs that it starts, stay as they are.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

#: From Linux's sched.h: `unshare` gives the calling thread a copy of the table of file descriptors. It needs no privileges.
_CLONE_FILES = 0x400
#: The calling thread's file descriptors.
_DESCRIPTORS = "/proc/thread-self/fd"


def decode_picture(data: bytes) -> tuple[np.ndarray | None, str]:
    """Decode a picture as it is stored: its channels and bits, without EXIF orientation.

    Returns:
        [H, W] or [H, W, C], colours in the order blue, green, red; None if OpenCV cannot decode it. And what the decoder wrote
        to stderr; always "" where a thread cannot have file descriptors of its own.
    """
    return _thread().submit(_decode, data).result()


def is_quiet() -> bool:
    """Whether the decoders' lines are kept from stderr here: not outside Linux, and not where a container forbids it."""
    return _thread().submit(hasattr, _own, "stderr").result()


def _decode(data: bytes) -> tuple[np.ndarray | None, str]:
    level = _set_opencv_log_level(0)  # silent
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # for example a header that claims more pixels than OpenCV allows
        pixels = None
    finally:
        _set_opencv_log_level(level)
    return pixels, _read_stderr()


def _set_opencv_log_level(level: int) -> int:
    """Returns the previous level."""
    logging = getattr(getattr(cv2, "utils", None), "logging", None)  # OpenCV 4.5 may lack it
    return level if logging is None else logging.setLogLevel(level)


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "decoder", initializer=_redirect_stderr)


#: In the decoder's thread: `stderr` is the reading end of the pipe that is its descriptor 2.
_own = threading.local()


def _redirect_stderr() -> None:
    """Give this thread file descriptors of its own, of which 2 is a pipe. Without effect where that is not possible."""
    if not sys.platform.startswith("linux"):
        return
    # An error here would make the thread, and with it all compressed images, unusable.
    try:
        os.listdir(_DESCRIPTORS)  # there is none without /proc, or on an old kernel
        if ctypes.CDLL(None).unshare(_CLONE_FILES) != 0:  # for example forbidden in a container
            return
        # All others would stay open here when the process closes them.
        os.closerange(3, max(map(int, os.listdir(_DESCRIPTORS))) + 1)
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        for end in (reading, 2):
            os.set_blocking(end, False)  # when the pipe is full, lines are lost
    except (OSError, AttributeError):
        return
    _own.stderr = reading


def _read_stderr() -> str:
    if not hasattr(_own, "stderr"):
        return ""
    try:
        return os.read(_own.stderr, 65536).decode(errors="replace").strip()
    except BlockingIOError:  # nothing was written
        return ""
