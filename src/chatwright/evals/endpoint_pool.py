"""Many requests at once, a bounded number at a time, answers as they come.

The threads are daemons: a user who interrupts an evaluation doesn't wait for answers that are still on their way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Answer = TypeVar("Answer")


def as_they_come(work: Callable[[int], Answer], count: int, concurrency: int) -> Iterator[tuple[int, Answer]]:
    """`work(0)` … `work(count - 1)`, at most `concurrency` of them at a time; each answer with its number.

    A failure ends it: the first exception is raised here, and nothing more is begun. Closing the iterator does so too.
    """
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(count):
        numbers.put(number)
    finished: queue.SimpleQueue[tuple[int, Answer | None, BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            try:
                number = numbers.get_nowait()
            except queue.Empty:
                return
            try:
                finished.put((number, work(number), None))
            except BaseException as error:  # noqa: BLE001 - it is raised again where the answers are read
                finished.put((number, None, error))
                return

    for _ in range(min(concurrency, count)):
        threading.Thread(target=serve, daemon=True, name="endpoint").start()
    try:
        for _ in range(count):
            number, answer, error = finished.get()
            if error is not None:
                raise error
            yield number, answer  # type: ignore[misc]
    finally:
        stopped.set()
