"""The worker process: `python -m chatwright.preparation.worker`. Takes shards from its input until that ends.

It loads no torch. Messages are pickles, in both directions: first a `Start`, then shards; an answer to each.
"""

from __future__ import annotations

import gc
import pickle
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from chatwright.errors import UserError
from chatwright.preparation.marks import ContaminationCheck
from chatwright.preparation.rows import RowFacts
from chatwright.preparation.shards import make_shard
from chatwright.preparation.work import RenderWork, Shard
from chatwright.templates.base import Template


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker needs to know before its first shard; `folder` is where shards are written."""

    render: RenderWork
    folder: Path
    check: ContaminationCheck | None


def answer(shard: Shard, start: Start, template: Template) -> RowFacts | UserError | OSError:
    """Make a shard; a mistake in the data or a full disk is an answer, not the end of the worker."""
    try:
        return make_shard(shard, start.render, template, start.check, start.folder)
    except UserError as error:
        return error
    except OSError as error:
        return OSError(error.errno, error.strerror or str(error), error.filename)


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message."""
    pickle.dump(message, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


def main() -> None:
    """Serve until the input ends."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)  # rows are trees without cycles; looking for them costs a tenth of the time
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes our input
    stream_in, stream_out = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a user's filter may print; the stream is ours
    start: Start = pickle.load(stream_in)
    template = start.render.load_template()
    while True:
        try:
            shard: Shard = pickle.load(stream_in)
        except EOFError:
            return
        send(stream_out, answer(shard, start, template))


if __name__ == "__main__":
    main()
