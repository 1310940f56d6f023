"""What a coroutine of rclpy's executor can wait for, besides rclpy's own futures: a thread, and a condition.

The executor resumes its coroutines whenever it is woken by anything. While one waits, its callback group is blocked, so a service
that waits needs a group of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class InThread(Generic[_Result]):
    """The result of `function`, which runs in a thread with this name. `wake` is called at its end, to wake the executor."""

    def __init__(self, function: Callable[[], _Result], wake: Callable[[], None], name: str):
        self._future: Future[_Result] = Future()
        self._function, self._wake, self._name = function, wake, name

    def __await__(self) -> Generator[None, None, _Result]:
        # Not a daemon thread: a process that ends while such a thread is in native code is aborted.
        threading.Thread(target=self._run, name=self._name).start()
        while not self._future.done():
            yield
        return self._future.result()

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:
            self._future.set_exception(error)
        self._wake()


class Until:
    """Waits until `condition` returns true. It is called whenever the executor is woken."""

    def __init__(self, condition: Callable[[], bool]):
        self._condition = condition

    def __await__(self) -> Generator[None, None, None]:
        while not self._condition():
            yield
