"""A user's filter that kills the process it runs in, for tests of workers."""

from __future__ import annotations

import os


def stop(conversation: object) -> None:
    """End the process at once."""
    os.abort()
