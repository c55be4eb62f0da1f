"""Shards shared out to a Ray cluster: a Ray Data task makes a shard on any machine and sends its files to the driver.

Only the data has to be readable on every machine, under the same path or address. The tokenizer, and the index of
evaluations, travel as the bytes of their files, and the shards come back through Ray: no folder has to be shared.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chatwright import __version__
from chatwright.console import note
from chatwright.errors import UserError
from chatwright.preparation.cache import aside_of, install
from chatwright.preparation.rows import RowFacts
from chatwright.preparation.shards import make_shard
from chatwright.preparation.work import Shard
from chatwright.preparation.worker import Start
from chatwright.templates.base import Template

LOCAL = "local"
OBJECT_STORE_BYTES = 512 << 20
"""Memory that a Ray started here may hold finished shards in."""
RETRIES = 2
"""How often a task is begun again whose process died; without a limit, a row that kills it would be tried for ever."""


@dataclass(frozen=True, slots=True)
class RayStart:
    """What a task needs besides its shard.

    Args:
        start: as for a local worker; its folders are the driver's.
        tokenizer, evaluations: the bytes of the files by name in the tokenizer's folder, and in that of `start.check`.
        cwd: the driver's working folder, which relative paths start from.
        version: the driver's version of the program, and of Python.
    """

    start: Start
    tokenizer: dict[str, bytes]
    evaluations: dict[str, bytes]
    cwd: str
    version: tuple[str, tuple[int, ...]]


def make_shards_with_ray(
    shards: Sequence[Shard], start: Start, address: str, workers: int, done: Callable[[RowFacts], None]
) -> None:
    """Make all shards in a Ray cluster; each is a named folder in `start.folder` then, as `make_shard` writes it.

    Args:
        address: of the cluster, as `ray.init` takes it (`auto`, `ray://host:10001`); `local` starts one here.
        workers: most shards made at a time; 0 for as many as the cluster has cores.
        done: called with each shard's facts, in the order of the shards.

    Raises:
        UserError: Ray isn't installed or can't be reached; the first mistake in the data, in the order of the rows.
        OSError: a shard can't be written, here or there.
    """
    if not shards:
        return
    packed = pickle.dumps(_pack(start))
    with _cluster(address, workers) as ray:
        for answer in _answers(ray, shards, packed, workers):
            if isinstance(answer, UserError | OSError):
                raise answer
            name, facts, files = answer
            _write(files, start.folder / name)
            done(facts)


def _pack(start: Start) -> RayStart:
    tokenizer = _read(Path(start.render.folder), (".json", ".jinja"))
    evaluations = _read(start.check.folder) if start.check is not None else {}
    return RayStart(start, tokenizer, evaluations, str(Path.cwd()), (__version__, sys.version_info[:2]))


def _read(folder: Path, kinds: tuple[str, ...] | None = None) -> dict[str, bytes]:
    """The files of a folder by their path in it; those with these endings, where given, right below it."""
    found = folder.iterdir() if kinds else folder.rglob("*")
    chosen = (path for path in sorted(found) if path.is_file() and (kinds is None or path.suffix in kinds))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in chosen}


def _answers(ray: Any, shards: Sequence[Shard], packed: bytes, workers: int) -> Iterator[Any]:
    """What each task gives, in the order of the shards."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours counts rows
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context.execution_options.preserve_order = True
    items = [{"shard": pickle.dumps(shard)} for shard in shards]
    options = {"num_cpus": 1, "max_retries": RETRIES}
    if workers:
        options["concurrency"] = min(workers, len(items))
    data = ray.data.from_items(items, override_num_blocks=len(items))
    made = data.map(make_one, fn_kwargs={"start": packed}, **options)
    try:
        for row in made.iter_rows():
            yield pickle.loads(row["answer"])
    except ray.exceptions.RayError as error:
        raise UserError(
            f"Ray could not make all shards: {_last_line(error)}",
            place="preparation.ray",
            hint="look at the cluster's logs; lower preparation.rows_per_shard if memory ran out",
        ) from error


def make_one(row: dict[str, Any], start: bytes) -> dict[str, Any]:
    """The Ray Data task: a shard's descriptor → its name, facts and files, or the mistake that was found."""
    shard: Shard = pickle.loads(row["shard"])
    try:
        answer = _make(shard, start)
    except UserError as error:
        answer = error
    except OSError as error:
        answer = OSError(error.errno, error.strerror or str(error), error.filename)
    return {"answer": pickle.dumps(answer)}


def _make(shard: Shard, packed: bytes) -> Any:
    work, template = _opened(packed)
    here = chdir(work.cwd) if Path(work.cwd).is_dir() else nullcontext()
    with here, tempfile.TemporaryDirectory(prefix="chatwright-shard-") as folder:
        facts = make_shard(shard, work.start.render, template, work.start.check, Path(folder))
        return shard.name, facts, _read(Path(folder) / shard.name)


@lru_cache(maxsize=1)
def _opened(packed: bytes) -> tuple[RayStart, Template]:
    """The work and its template, once a process.

    Raises:
        UserError: the program here isn't the driver's.
    """
    for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"
    work: RayStart = pickle.loads(packed)
    if work.version != (__version__, sys.version_info[:2]):
        ours, theirs = _version_text(__version__, sys.version_info[:2]), _version_text(*work.version)
        raise UserError(
            f"a machine of the cluster has {ours}, the one that asks has {theirs}",
            place="preparation.ray",
            hint="install the same versions on all machines",
        )
    with tempfile.TemporaryDirectory(prefix="chatwright-") as folder:
        _write(work.tokenizer, Path(folder) / "tokenizer")
        template = replace(work.start.render, folder=f"{folder}/tokenizer").load_template()
        check = work.start.check
        if check is not None and not check.folder.is_dir():
            _write(work.evaluations, Path(folder) / "evaluations")
            check = replace(check, folder=Path(folder) / "evaluations")
            check.begin()  # maps the index, which this process keeps when the files are gone
        return replace(work, start=replace(work.start, check=check)), template


def _version_text(program: str, python: tuple[int, ...]) -> str:
    return f"chatwright {program} on Python {'.'.join(map(str, python))}"


def _write(files: dict[str, bytes], folder: Path) -> None:
    """Write a shard's files, all or none."""
    aside = aside_of(folder)
    try:
        for name, content in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(content)
        install(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _cluster(address: str, workers: int) -> Iterator[Any]:
    """Ray, connected; one that was started or joined here is left at the end.

    Raises:
        UserError: it isn't installed, or there is no such cluster.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        hint = 'pip install "chatwright[ray]"'
        raise UserError(f"Ray Data can't be loaded: {error}", place="preparation.ray", hint=hint) from None
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        options |= {"num_cpus": workers or None, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        _require_open(address)
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        hint = "give `local`, `auto` on a machine of the cluster, or its address"
        message = f"this Ray cluster can't be reached: {_last_line(error)}"
        raise UserError(message, place=address, hint=hint) from None
    try:
        note(f"preparing with Ray: {ray.cluster_resources().get('CPU', 0):g} cores on {len(ray.nodes())} machine(s)")
        yield ray
    finally:
        ray.shutdown()


def _require_open(address: str) -> None:
    """Refuse an address where nothing answers, which Ray itself tries for minutes.

    Raises:
        OSError: nothing answers. ValueError: its port is no number.
    """
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=10).close()


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
