"""Reads files that are pickles without ever running what a pickle asks for.

A pickle is a program: it may name any function of this machine and call it. `.pt` and `.pth` files go through torch's
restricted reader (tensors and plain containers only); other pickles through one that knows a short list of
names and builds inert records for them. Everything else is refused by the name it asked for.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from chatwright.errors import ModelError

_LARGEST_RECORDS = 1 << 28
"""Bytes: no tokenizer comes near it."""
_GLOBAL = re.compile(r"\bGLOBAL [A-Za-z_][\w.]*(\s|$)", re.ASCII)
"""A name in torch's message."""
_DAMAGED = "copy or download it again, or take it as safetensors from whoever made it"
_ADVICE = "take the file from whoever made it as safetensors or JSON; it is never loaded by running it"


def load_torch_file(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors in plain containers, with numbers and texts.

    Raises:
        ModelError: the file is missing or damaged, or holds anything else (named).
    """
    try:
        with warnings.catch_warnings():  # torch's own about pickles speak to whoever wrote the file
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"can't be read: {error.strerror or error}", place=str(path)) from None
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything at all, struct.error for one
        if found := _refused_name(error):
            message = f"holds more than tensors and plain values, and isn't loaded: {found}"
            raise ModelError(message, place=str(path), hint=_ADVICE) from None
        if not path.stat().st_size:
            raise ModelError("is empty", place=str(path), hint=_DAMAGED) from None
        told = isinstance(error, RuntimeError | EOFError | MemoryError)  # others are of the reader's own inside
        reason = str(error).strip().splitlines() if told else []
        message = f"is no file of torch.save, or a damaged one{f': {reason[0]}' if reason else ''}"
        raise ModelError(message, place=str(path), hint=_DAMAGED) from None


def _refused_name(error: Exception) -> str | None:
    """torch's long advice (which would switch the protection off) cut to the name that was refused.

    Bytes that aren't a pickle stop its reader as well; that isn't a name.
    """
    if not isinstance(error, pickle.UnpicklingError):
        return None
    lines = (line.strip().rstrip(" .") for line in str(error).splitlines())
    return next((line for line in lines if _GLOBAL.search(line)), None)


class Record:
    """Stands for an object of an allowed class: what the pickle would have given that class, and nothing done with it.

    Attributes:
        arguments: of its construction. state: what its `__setstate__` or `__dict__` was to get, None without one.
    """

    __slots__ = ("arguments", "state")
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Record:
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


def load_records(path: Path, allowed: Mapping[tuple[str, str], type[Record]]) -> Any:
    """What a pickle holds, with records for the objects of the allowed classes.

    Args:
        allowed: (module, name) as the pickle names the class → the kind of record that stands for it.

    Raises:
        ModelError: the file is missing, damaged or too large, or names anything that isn't allowed (named).
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST_RECORDS:
            raise ModelError(
                f"is {size:,} bytes; a pickle of records has at most {_LARGEST_RECORDS:,}", place=str(path)
            )
        return _Restricted(path.read_bytes(), allowed, str(path)).load()
    except OSError as error:
        raise ModelError(f"can't be read: {error.strerror or error}", place=str(path)) from None
    except Exception as error:  # a damaged pickle may raise anything at all, and nothing of ours runs in it
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"is no pickle that can be read: {error}", place=str(path), hint=_ADVICE) from None


class _Restricted(pickle._Unpickler):
    """Knows the allowed names only. There is no persistent id, no extension code and no other way to a global.

    The reader is the one written in Python: the one in C makes room for whatever memo number a file names, so that ten
    bytes could take all memory.
    """

    def __init__(self, data: bytes, allowed: Mapping[tuple[str, str], type[Record]], place: str) -> None:
        super().__init__(io.BytesIO(data))
        self.allowed, self.place = allowed, place

    def find_class(self, module: str, name: str) -> type[Record]:
        """The record that stands for a class; every global of a pickle comes through here."""
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        raise ModelError(f"asks for {module}.{name}, and isn't loaded", place=self.place, hint=_ADVICE)

    def persistent_load(self, pid: Any) -> Any:
        """Objects kept elsewhere: refused."""
        raise ModelError(f"refers to an object outside of it ({pid!r}), and isn't loaded", place=self.place)
