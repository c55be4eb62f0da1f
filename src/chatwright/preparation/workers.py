"""Shards shared out to worker processes, each with one thread of the tokenizer.

Workers are started as programs of their own, not forked: the parent may hold torch's threads, and a user's script
needs no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import BinaryIO, cast

from chatwright.errors import UserError
from chatwright.preparation.rows import RowFacts
from chatwright.preparation.work import Shard
from chatwright.preparation.worker import Start, send


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerProcess:
    """One worker, started; `stop` ends it."""

    def __init__(self, start: Start) -> None:
        one_thread = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chatwright.preparation.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._send(start)

    def make(self, shard: Shard) -> RowFacts:
        """Let the worker make a shard; waits for it.

        Raises:
            UserError: a mistake in the data, or the worker has died.
            OSError: the shard can't be written.
        """
        self._send(shard)
        assert self.process.stdout is not None
        try:
            answer = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._died() from None
        if isinstance(answer, UserError | OSError):
            raise answer
        assert isinstance(answer, RowFacts)
        return answer

    def _send(self, message: object) -> None:
        try:
            send(cast(BinaryIO, self.process.stdin), message)
        except BrokenPipeError:
            raise self._died() from None

    def _died(self) -> UserError:
        status = self.process.wait()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return UserError(
            f"a worker that prepares the data has died ({how})",
            place="preparation",
            hint="lower preparation.workers or preparation.rows_per_shard if memory ran out (signal 9)",
        )

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # what was left unsent has nobody to read it


def make_shards(shards: Sequence[Shard], start: Start, workers: int, done: Callable[[RowFacts], None]) -> None:
    """Make all shards with `workers` processes.

    Args:
        done: called with each shard's facts, in the order of the shards.

    Raises:
        UserError: the first mistake in the data, in the order of the rows.
        OSError: a shard can't be written.
    """
    free: SimpleQueue[WorkerProcess] = SimpleQueue()
    running = []

    def make(shard: Shard) -> RowFacts:
        worker = free.get()
        try:
            return worker.make(shard)
        finally:
            free.put(worker)

    try:
        for _ in range(min(workers, len(shards))):
            running.append(WorkerProcess(start))
            free.put(running[-1])
        with ThreadPoolExecutor(max_workers=max(1, len(running))) as threads:
            futures = [threads.submit(make, shard) for shard in shards]
            try:
                for future in futures:
                    done(future.result())
            finally:
                for future in futures:
                    future.cancel()
                _stop(running)  # before the threads are waited for, which may wait for a worker
    finally:
        _stop(running)


def _stop(running: Sequence[WorkerProcess]) -> None:
    for worker in running:
        worker.stop()
