"""Reads the header of a GGUF file: its metadata and tensor names, without its tensors and without dependencies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from chatwright.errors import ModelError

# value type → struct format; 8 is a string, 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself: metadata by key, and the names of its tensors."""

    metadata: dict[str, Any]
    tensor_names: tuple[str, ...]


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file (version 2 or 3, little-endian).

    Raises:
        ModelError: if the file can't be read, is no GGUF file or ends too early.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError("is no GGUF file (it doesn't begin with GGUF)", place=str(path))
            version, num_tensors, num_keys = _numbers(file, "IQQ")
            if version not in (2, 3):
                raise ModelError(f"has GGUF version {version}; versions 2 and 3 can be read", place=str(path))
            metadata = {}
            for _ in range(num_keys):
                key = _string(file)
                metadata[key] = _value(file, _numbers(file, "I")[0])
            names = []
            for _ in range(num_tensors):
                names.append(_string(file))
                (num_dimensions,) = _numbers(file, "I")
                file.seek(8 * num_dimensions + 4 + 8, 1)
    except OSError as error:
        raise ModelError(f"can't be read: {error.strerror or error}", place=str(path)) from None
    except (struct.error, UnicodeDecodeError, KeyError) as error:
        hint = "download it again"
        raise ModelError(f"is cut off or damaged in its header ({error})", place=str(path), hint=hint) from None
    return GgufHeader(metadata, tuple(names))


def _numbers(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _string(file: BinaryIO) -> str:
    (length,) = _numbers(file, "Q")
    data = file.read(length)
    if len(data) < length:
        raise struct.error("the file ends inside a string")
    return data.decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        item_kind, length = _numbers(file, "IQ")
        if item_kind in _SCALARS:
            return list(_numbers(file, f"{length}{_SCALARS[item_kind]}"))
        return [_value(file, item_kind) for _ in range(length)]
    return _numbers(file, _SCALARS[kind])[0]
