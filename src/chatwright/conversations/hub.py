"""Data sets of the Hugging Face hub, through the `datasets` library, which is loaded only here and only when asked."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from chatwright.conversations.places import without_nulls
from chatwright.errors import DataError, UserError

HUB_PREFIX = "hub:"
HubMode = Literal["cached", "streaming"]
"""`cached`: the whole set is downloaded once and kept; `streaming`: rows are fetched as they are read."""

_ASK_TIMEOUT = 10.0
_PAUSE_BEFORE_RETRY = 1.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubName(NamedTuple):
    """The parts of `hub:owner/name[@revision][:config]/split`."""

    data_set: str
    config: str | None
    split: str
    revision: str | None = None


def parse_hub_name(text: str) -> HubName:
    """Split `hub:owner/name[@revision][:config]/split` into its parts.

    Raises:
        DataError: if a part is missing.
    """
    parts = text.removeprefix(HUB_PREFIX).split("/")
    if len(parts) != 3 or not all(parts):
        hint = "write hub:owner/name/split or hub:owner/name:config/split, such as hub:openai/gsm8k:main/train"
        raise DataError("this isn't the name of a hub data set with its split", source=text, hint=hint)
    owner, name, split = parts
    name, _, config = name.partition(":")
    name, _, revision = name.partition("@")
    return HubName(f"{owner}/{name}", config or None, split, revision or None)


def hub_rows(text: str, mode: HubMode = "cached") -> Iterator[Any]:
    """The rows of the data set that `hub:owner/name[@revision][:config]/split` names, without Arrow's nulls.

    Raises:
        UserError: if the `datasets` library isn't installed.
        DataError: if the name is wrong, there is no such data set, config or split, or the hub can't be reached and
            the set wasn't downloaded before.
    """
    with _loading_errors(text) as datasets:
        for row in _load(datasets, parse_hub_name(text), text, mode):
            yield without_nulls(row)


def count_hub_rows(text: str) -> tuple[int, str | None]:
    """How many rows a data set of the hub has, which is downloaded for it; and the commit they are of, where known.

    Raises:
        UserError, DataError: see `hub_rows`.
    """
    commit = hub_commit(text)
    return len(_kept(text, commit)), commit


def hub_range(text: str, first: int, stop: int, commit: str | None) -> Iterator[Any]:
    """The rows `[first, stop)` of what `hub_rows` gives for a downloaded data set, at a commit; the others aren't read.

    Raises:
        UserError, DataError: see `hub_rows`.
    """
    data = _kept(text, commit)
    for row in data.select(range(min(first, len(data)), min(stop, len(data)))):
        yield without_nulls(row)


@functools.lru_cache(maxsize=4)
def _kept(text: str, commit: str | None) -> Any:
    """The downloaded data set, opened once a process: its rows are memory-mapped."""
    wanted = parse_hub_name(text)
    with _loading_errors(text) as datasets:
        return _load(datasets, wanted._replace(revision=commit or wanted.revision), text, "cached")


@contextmanager
def _loading_errors(text: str) -> Iterator[Any]:
    """The `datasets` library, its errors in words."""
    datasets = _datasets(text)
    try:
        yield datasets
    except (OSError, ValueError, datasets.exceptions.DatasetsError, *_network_errors()) as error:
        # OSError covers ConnectionError, offline mode and the hub's HTTP errors; ValueError wrong configs and splits.
        summary = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"can't be loaded from the hub: {type(error).__name__}: {summary}",
            source=text,
            hint="check the name, config and split, and the network (HF_ENDPOINT, HF_TOKEN); a downloaded copy can be "
            "given as a path",
        ) from error


def hub_commit(text: str) -> str | None:
    """The commit that a hub name stands for now, asked once a process; None where the hub is out of reach.

    Raises:
        DataError: if the name is wrong, or the hub has no such data set or revision.
    """
    wanted = parse_hub_name(text)
    if wanted.revision and _COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    return _reach(wanted, text)[0]


def _load(datasets: Any, wanted: HubName, text: str, mode: HubMode) -> Any:
    """The `datasets` object.

    Asking for the commit first makes a missing set or network known in a second: `datasets` alone asks six times.
    """
    commit, reachable = _reach(wanted, text)
    options = {"split": wanted.split, "streaming": mode == "streaming", "revision": commit or wanted.revision}
    if reachable:
        return datasets.load_dataset(wanted.data_set, wanted.config, **options)
    if mode == "streaming":
        raise ConnectionError("the hub can't be reached, and streaming keeps no copy")
    with _offline(datasets):
        found = datasets.load_dataset(wanted.data_set, wanted.config, **options)
    if wanted.revision and not all(wanted.revision in file["filename"] for file in found.cache_files):
        raise ConnectionError(f"the hub can't be reached, and the copy here may not be revision {wanted.revision}")
    return found


def _reach(wanted: HubName, text: str) -> tuple[str | None, bool]:
    """The commit, where the hub tells it, and whether it is worth asking the hub further."""
    import huggingface_hub.errors as hub_errors

    for last in (False, True):
        try:
            return _ask_commit(wanted.data_set, wanted.revision), True
        except hub_errors.OfflineModeIsEnabled:
            return None, False
        except hub_errors.HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403, 404):
                what = f"revision {wanted.revision!r} of {wanted.data_set}" if wanted.revision else wanted.data_set
                raise DataError(
                    f"the hub has no data set {what}, or doesn't show it to you",
                    source=text,
                    hint="check the name; a private or gated set needs HF_TOKEN",
                ) from None
            return None, True  # the hub is there, but busy: `datasets` has the patience
        except _timeouts():
            return None, True
        except _unreachable():
            if last:
                return None, False
            time.sleep(_PAUSE_BEFORE_RETRY)
    return None, False


@functools.cache
def _ask_commit(data_set: str, revision: str | None) -> str:
    """What the hub says; cached, so that a run's fingerprint and its rows are of one commit."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(data_set, revision=revision, timeout=_ASK_TIMEOUT).sha)


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """`datasets` looks into its cache only, without trying the network six times first."""
    import huggingface_hub.constants

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _datasets(text: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            "reading from the hub needs the 'datasets' library", place=text, hint="pip install 'chatwright[hf]'"
        ) from None


def _http_clients() -> list[Any]:
    """The HTTP client that huggingface_hub uses since 1.0."""
    return [importlib.import_module(name) for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]


def _unreachable() -> tuple[type[Exception], ...]:
    return (OSError, *_network_errors())


def _network_errors() -> tuple[type[Exception], ...]:
    """The errors of the hub's HTTP client; unlike those of requests no `OSError`s."""
    return tuple(client.HTTPError for client in _http_clients())


def _timeouts() -> tuple[type[Exception], ...]:
    return (TimeoutError, *(client.ReadTimeout for client in _http_clients()))
