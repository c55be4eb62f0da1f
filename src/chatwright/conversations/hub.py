"""Data sets of the Hugging Face hub, through the `datasets` library, which is loaded only here and only when asked."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, NamedTuple

from chatwright.errors import DataError, UserError

HUB_PREFIX = "hub:"


class HubName(NamedTuple):
    """The parts of `hub:owner/name[:config]/split`."""

    data_set: str
    config: str | None
    split: str


def parse_hub_name(text: str) -> HubName:
    """Split `hub:owner/name[:config]/split` into its parts.

    Raises:
        DataError: if a part is missing.
    """
    parts = text.removeprefix(HUB_PREFIX).split("/")
    if len(parts) != 3 or not all(parts):
        hint = "write hub:owner/name/split or hub:owner/name:config/split, such as hub:openai/gsm8k:main/train"
        raise DataError("this isn't the name of a hub data set with its split", source=text, hint=hint)
    owner, name, split = parts
    name, _, config = name.partition(":")
    return HubName(f"{owner}/{name}", config or None, split)


def read_hub(text: str) -> Any:
    """The `datasets.Dataset` that `hub:owner/name[:config]/split` names.

    Raises:
        UserError: if the `datasets` library isn't installed.
        DataError: if the name is wrong, there is no such data set, config or split, or the hub can't be reached.
    """
    wanted = parse_hub_name(text)
    try:
        import datasets
    except ImportError:
        raise UserError(
            "reading from the hub needs the 'datasets' library", place=text, hint="pip install 'chatwright[hf]'"
        ) from None
    try:
        return datasets.load_dataset(wanted.data_set, wanted.config, split=wanted.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError, *_network_errors()) as error:
        # OSError covers ConnectionError, offline mode and the hub's HTTP errors; ValueError wrong configs and splits.
        summary = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"can't be loaded from the hub: {type(error).__name__}: {summary}",
            source=text,
            hint="check the name, config and split, and the network (HF_ENDPOINT, HF_TOKEN); a downloaded copy can be "
            "given as a path",
        ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """The errors of the HTTP client that huggingface_hub uses since 1.0; unlike those of requests no `OSError`s."""
    installed = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return tuple(importlib.import_module(name).HTTPError for name in installed)
