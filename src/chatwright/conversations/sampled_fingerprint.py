"""What a source holds, told by a look at it: for sources too large to read before a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

from chatwright.conversations.hub import HUB_PREFIX, hub_commit
from chatwright.conversations.lasting_names import lasting_name
from chatwright.conversations.sources import local_files, remote_files
from chatwright.conversations.stores import is_url

SAMPLES = 16
BYTES_PER_SAMPLE = 1 << 16
"""Of every file so many stretches of so many bytes are looked at; smaller files are read whole."""


def sampled_fingerprint(source: str) -> str:
    """sha256 (hex) over names and sizes of files and samples of their bytes; a store's versions; a hub set's commit.

    Equal sources give equal values. A change that keeps a large file's size may go unnoticed here.

    Raises:
        DataError: there is no such source.
    """
    digest = hashlib.sha256()
    if source.startswith(HUB_PREFIX):
        digest.update(f"{source}\0{hub_commit(source) or ''}".encode())
    elif is_url(source):
        for stored in remote_files(source):
            digest.update(f"{stored.url}\0{stored.version or ''}\0".encode())
    else:
        for path in local_files(source):
            digest.update(f"{lasting_name(str(path), source)}\0".encode("utf-8", "surrogatepass"))
            for file in sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]:
                _add_samples(digest, file)
    return digest.hexdigest()


def _add_samples(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogatepass"))
    with path.open("rb") as file:
        if size <= SAMPLES * BYTES_PER_SAMPLE:
            digest.update(file.read(size))
            return
        for number in range(SAMPLES):
            file.seek((size - BYTES_PER_SAMPLE) * number // (SAMPLES - 1))
            digest.update(file.read(BYTES_PER_SAMPLE))
