"""`chatwright inspect` on preference data: what it holds, row by row, before a side of it is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from chatwright.console import note, out
from chatwright.conversations.converters import ROWS_TO_DETECT, are_preferences
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.preference_formats import PREFERENCE_CONVERTERS
from chatwright.conversations.preference_types import LabelledReply, PreferencePair
from chatwright.conversations.preference_writer import write_preference
from chatwright.conversations.preferences import load_preferences
from chatwright.conversations.sources import scan_rows
from chatwright.errors import ConfigError, DataError
from chatwright.inspection.pair_viewer import preference_counts, show_preference
from chatwright.inspection.sampling import RowSample
from chatwright.recipes.looking import Wanted
from chatwright.settings import apply_overrides, build

HOW_TO_TRAIN = (
    "to train on the chosen replies, add preference: chosen (--set data.0.preference=chosen) and a model; "
    "a recipe with stage: dpo trains on both"
)


def preference_entry(path: str, overrides: Sequence[str]) -> DataSettings | None:
    """The data to look at as preferences: named as such by its format, or by the look of its first rows.

    None where it isn't that, can't be read, or a side of it is taken as conversations.

    Raises:
        ConfigError: a setting that has no effect here.
    """
    plain: dict[str, Any] = apply_overrides({"data": [{"path": path}]}, overrides)
    entry = plain["data"][0] if isinstance(plain["data"], list) and plain["data"] else None
    if not isinstance(entry, dict) or entry.get("preference") or "path" not in entry:
        return None
    named = entry.get("format") in PREFERENCE_CONVERTERS
    if not named and (entry.get("format", "auto") != "auto" or not _look_like_preferences(entry["path"])):
        return None
    known = {"path", "format", "on_bad_row"}
    useless = [f"data.0.{name}" for name in entry if name not in known] + [
        n for n in plain if n not in ("data", "model")
    ]
    if useless or len(plain["data"]) > 1:
        problem = f"preference data is shown as it is, so {', '.join(useless) or 'more data'} has no effect"
        raise ConfigError([f"{problem}; {HOW_TO_TRAIN}"], source="inspect")
    return build(DataSettings, {**entry, "preference": "chosen"}, "inspect")


def _look_like_preferences(path: Any) -> bool:
    try:
        return are_preferences([raw.value for raw in islice(scan_rows(path), ROWS_TO_DETECT) if not raw.error])
    except DataError:
        return False  # reading it as conversations says what is wrong


def inspect_preferences(entry: DataSettings, wanted: Wanted, *, as_json: bool) -> None:
    """Show counts and the wanted pairs; as JSON a record each, the counts beside them on standard error."""
    loaded = load_preferences(entry.path or "", format=entry.format, on_bad_row="skip")
    chosen = _chosen([*loaded.pairs, *loaded.labelled], wanted)
    if as_json:
        note("; ".join(f"{each}" for each in _told(loaded.num_rows, len(loaded.dropped), len(loaded.skipped))))
        for item in chosen:
            print(json.dumps(_record(item), ensure_ascii=False))
        return
    console = out()
    console.rule(f"{Path(entry.source_name).name}: {loaded.num_rows:,} rows, preferences of format {loaded.format}")
    console.print(preference_counts(loaded))
    for item in chosen:
        console.print(show_preference(item, console.width))
    if not chosen:
        note(f"no row in {wanted.words}")
    note(HOW_TO_TRAIN)


def _told(read: int, dropped: int, skipped: int) -> tuple[str, ...]:
    return f"{read:,} rows read", f"{dropped:,} dropped", f"{skipped:,} skipped"


def _chosen(items: list[PreferencePair | LabelledReply], wanted: Wanted) -> list[PreferencePair | LabelledReply]:
    if wanted.sample is None:
        return items[wanted.first : wanted.last]
    sample: RowSample[PreferencePair | LabelledReply] = RowSample(wanted.sample, wanted.seed)
    for place, item in enumerate(items):
        sample.offer(0, place, item)
    return sample.chosen(1)[0]


def _record(item: PreferencePair | LabelledReply) -> dict[str, Any]:
    where = item.conversation if isinstance(item, LabelledReply) else item
    return {"source": where.source, "row": where.row, **write_preference(item)}
