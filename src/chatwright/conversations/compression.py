"""Compressed data files, by the last ending of their name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from chatwright.errors import UserError


def unpacked_name(name: str) -> str:
    """A file name without the ending of its compression: `rows.jsonl.gz` → `rows.jsonl`."""
    return name[: -len(_ending(name))] if _ending(name) in UNPACKERS else name


def unpacked(file: BinaryIO, name: str) -> BinaryIO:
    """The bytes of an open file, unpacked as its name asks for.

    Raises:
        UserError: if the library that unpacks it isn't installed.
    """
    return UNPACKERS[_ending(name)](file) if _ending(name) in UNPACKERS else file


def unpacking_errors() -> tuple[type[Exception], ...]:
    """What a damaged or cut file raises, besides `OSError`."""
    zstandard = sys.modules.get("zstandard")
    return (EOFError, zlib.error, lzma.LZMAError, *((zstandard.ZstdError,) if zstandard else ()))


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _read_zst(file: BinaryIO) -> BinaryIO:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            "reading .zst files needs the 'zstandard' library", place=str(file.name), hint="pip install zstandard"
        ) from None
    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))


UNPACKERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    ".bz2": lambda file: cast(BinaryIO, bz2.BZ2File(file)),
    ".xz": lambda file: cast(BinaryIO, lzma.LZMAFile(file)),  # noqa: SIM115 - its opener closes it
    ".zst": _read_zst,
}
