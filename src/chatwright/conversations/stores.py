"""Files in object stores and on the web, through fsspec, which is loaded only when an address (`s3://…`) is given.

This module lists and opens files; it knows nothing of what is in them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, cast

from chatwright.errors import DataError, UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
LOCAL_SCHEME = "file://"

DRIVERS = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "oss": "ossfs",
    "oci": "ocifs",
}
"""What to install for a scheme; fsspec itself knows more of them."""
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci")
"""Stores that have buckets of named objects, and no folders to make."""

CHECKSUMS = ("etag", "md5", "md5hash", "content-md5", "content_md5", "digest", "sha256", "crc32c", "blob_id")
VERSIONS = ("generation", "version_id", "versionid", "oid", "commit_hash")
TIMES = ("mtime", "lastmodified", "last_modified", "last-modified", "updated", "modified", "created")


@dataclass(frozen=True, slots=True)
class StoreFile:
    """A file in a store; its text form is its address.

    Args:
        url: the whole address.
        version: what the store says of its contents (checksum, version, or size and time); None where it says nothing.
    """

    url: str
    version: str | None = None

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the address, without a query."""
        return PurePosixPath(_SCHEME.sub("", self.url).partition("?")[0]).name

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """The file's bytes, fetched in pieces as they are read.

        Raises:
            UserError: if the store's driver isn't installed.
            DataError: if the store refuses.
        """
        with _explained(self.url):
            store, path = connect(self.url)
            return cast(BinaryIO, store.open(path, mode))


def is_url(source: object) -> bool:
    """Whether a source is an address that fsspec reads; `file://` is a path like any other."""
    return isinstance(source, str) and bool(_SCHEME.match(source)) and not source.startswith(LOCAL_SCHEME)


def store_files(url: str, wanted: Callable[[str], bool]) -> list[StoreFile]:
    """The files that an address stands for, sorted: one file, the matches of a glob, or what a folder holds.

    Args:
        url: such as `s3://bucket/file.jsonl`, `gs://bucket/*.parquet`, `https://host/file.jsonl.gz`.
        wanted: tells from a name whether to take a file of a folder.

    Raises:
        UserError: if the store's driver isn't installed.
        DataError: if there are none, or the store refuses.
    """
    with _explained(url):
        store, path = connect(url)
        web = url.lower().startswith("http")
        if any(letter in path for letter in ("*[" if web else "*?[")):
            found = store.glob(path, detail=True)
            kept = {name: info for name, info in found.items() if info.get("type") != "directory"}
            problem = "no file matches this pattern"
        elif web or not store.isdir(path):
            return [StoreFile(url, _version(store.info(path)))]
        else:
            found = store.find(path, detail=True)
            inside = {name: name.removeprefix(path).lstrip("/") for name in found}
            kept = {name: info for name, info in found.items() if wanted(name) and not _is_hidden(inside[name])}
            problem = "the folder holds no data files"
            if any(PurePosixPath(name).name in ("state.json", "dataset_dict.json") for name in found):
                raise DataError(
                    "is a saved data set, which is read from a local folder only",
                    source=url,
                    hint="copy the folder here, or save the data set as parquet",
                )
        if not kept:
            raise DataError(problem, source=url, hint="check bucket and path")
        return [StoreFile(store.unstrip_protocol(name), _version(info)) for name, info in sorted(kept.items())]


def store_errors() -> tuple[type[Exception], ...]:
    """What reading a store can raise."""
    return (OSError, *driver_errors())


def driver_errors() -> tuple[type[Exception], ...]:
    """What the drivers loaded so far raise besides `OSError`; none when no address was read."""
    known = {
        "botocore.exceptions": ("BotoCoreError", "ClientError"),
        "aiohttp": ("ClientError",),
        "gcsfs.retry": ("HttpError",),
        "google.auth.exceptions": ("GoogleAuthError",),
        "azure.core.exceptions": ("AzureError",),
        "httpx": ("HTTPError",),
        "httpx2": ("HTTPError",),
    }
    return tuple(
        getattr(sys.modules[module], name) for module in known if module in sys.modules for name in known[module]
    )


def connect(url: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path on it.

    Raises:
        UserError: if the store's driver isn't installed. DataError: no such kind of store.
    """
    import fsspec.core

    scheme = url.partition("://")[0].lower()
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except ImportError as error:
        hint = f"pip install {DRIVERS[scheme]}" if scheme in DRIVERS else str(error)
        raise UserError(f"{scheme}:// needs a driver that isn't installed", place=url, hint=hint) from None
    except ValueError as error:
        hint = f"known: {', '.join(sorted(DRIVERS))}, memory, file, and what fsspec finds installed"
        raise DataError(f"can't be used as an address: {error}", source=url, hint=hint) from None


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """The store's refusals as `DataError`s."""
    try:
        yield
    except FileNotFoundError:
        raise DataError("there is no such file or folder", source=url, hint="check bucket and path") from None
    except store_errors() as error:
        raise DataError(
            f"the store can't be read: {type(error).__name__}: {error}",
            source=url,
            hint="check the address, the network and your credentials for it",
        ) from None


def _version(info: Mapping[str, Any]) -> str | None:
    """What a listing says of a file's contents: a checksum or version if there is one, else size and time."""
    facts = {key.lower(): str(value) for key, value in info.items() if value is not None}
    exact = [f"{key}={facts[key]}" for key in (*CHECKSUMS, *VERSIONS) if key in facts]
    times = [f"{key}={facts[key]}" for key in TIMES if key in facts]
    size = f"size={facts.get('size')}"
    return " ".join([*(exact or times), size]) if exact or times else None


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)
