"""Axolotl's data sections: `datasets` and `test_datasets`.

Source of the schema: Axolotl `src/axolotl/utils/schemas/datasets.py` and its documentation of data set formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatwright.conversations.foreign_configs import Findings, dataset_sources
from chatwright.conversations.schema import ROLES

LEGACY_FIELDS = {"message_field_role": "role", "message_field_content": "content"}
DEFAULT_ROLES = {"user": ["human"], "assistant": ["gpt"]}
REASONS = {
    "shards": "use step: every n-th row",
    "shards_idx": "use start, with step",
    "preprocess_shards": "rows are always prepared in parts",
    "trust_remote_code": "code of data sets is never run",
    "drop_system_message": "leave the system message out of the data",
    "message_field_training_detail": "whole messages are trained or not, never parts of them",
    "train_on_split": "use split",
}


def axolotl_data(config: Findings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training entries of `datasets` and the evaluation entries of `test_datasets`."""
    streaming = bool(config.take("streaming"))
    made: list[list[dict[str, Any]]] = []
    for key in ("datasets", "test_datasets"):
        items = config.take(key) or []
        made.append([])
        for index, item in enumerate(items):
            entry = config.inside(item, f"{key}[{index}].")
            settings = _entries(entry, streaming)
            made[-1] += settings
            if settings:
                entry.close(REASONS)
            else:
                entry.close({}, "the data set is left out")
        if items:
            config.note("data" if key == "datasets" else "heldout.data", key)
    if "streaming" in config.values:
        config.note(f"data.*.hub_mode: {'streaming' if streaming else 'cached'}", "streaming")
    return made[0], made[1]


def _entries(entry: Findings, streaming: bool) -> list[dict[str, Any]]:
    format = _format(entry)
    if format is None:
        return []
    if "ds_type" in entry.values:
        entry.note("path: the file's ending tells its type", "ds_type")
    made: list[dict[str, Any]] = []
    for path in dataset_sources(entry):
        made.append({"path": path, **format})
        if streaming and path.startswith("hub:"):
            made[-1]["hub_mode"] = "streaming"
    return made


def _format(entry: Findings) -> dict[str, Any] | None:
    """What `type` asks for; None if such rows can't be read, which the account says."""
    kind = entry.take("type")
    if isinstance(kind, Mapping):
        return _own_prompt(entry, kind)
    name = str(kind).partition(".")[0]
    if name == "chat_template":
        entry.note("format: messages", "type")
        return {"format": "messages"} | _chat(entry)
    if kind in ("alpaca", "sharegpt"):
        entry.note(f"format: {kind}", "type")
        if kind == "alpaca":
            entry.lose("type", "the text of Alpaca's prompt isn't written around the turns; the chat template is")
        return {"format": kind}
    entry.lose("type", "no conversations that the importer knows; the data set is left out")
    return None


def _own_prompt(entry: Findings, kind: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt of the user's own: its fields are Alpaca's by other names."""
    fields = entry.inside(kind, "type.")
    columns = {}
    for theirs, ours in (
        ("instruction", "instruction"),
        ("input", "input"),
        ("output", "output"),
        ("system", "system"),
    ):
        name = fields.take(f"field_{theirs}")
        if name:
            columns[ours] = name
            fields.note(f"columns.{ours}: {name}", f"field_{theirs}")
    why = "the chat template writes the prompt"
    fields.close(dict.fromkeys(("format", "no_input_format", "system_format", "system_prompt"), why))
    entry.note("format: alpaca", "type")
    renamed = {ours: name for ours, name in columns.items() if ours != name}
    return {"format": "alpaca"} | ({"columns": renamed} if renamed else {})


def _chat(entry: Findings) -> dict[str, Any]:
    """Where the messages of a `chat_template` data set are and what their fields and roles are called."""
    columns: dict[str, str] = {}
    for key, ours, usual in (("field_messages", "messages", "messages"), ("field_tools", "tools", "tools")):
        name = entry.take(key, usual)
        if key in entry.values:
            entry.note(f"columns.{ours}: {name}", key)
        if name != ours:
            columns[ours] = name
    fields = dict(entry.take("message_property_mappings") or {})
    fields |= {ours: entry.take(key) for key, ours in LEGACY_FIELDS.items() if key in entry.values}
    for key, ours in (("message_field_training", "train"), ("field_thinking", "reasoning_content")):
        if entry.take(key):
            fields[ours] = entry.values[key]
    used = ("message_property_mappings", *LEGACY_FIELDS, "message_field_training", "field_thinking")
    fields = {ours: theirs for ours, theirs in fields.items() if ours != theirs}
    if given := [key for key in used if key in entry.values]:
        entry.note(f"message_columns: {fields}", *given)
    roles = {name: list(names) for name, names in (entry.take("roles") or DEFAULT_ROLES).items()}
    roles = {name: [theirs for theirs in names if theirs != name] for name, names in roles.items()}
    for name in roles.keys() - set(ROLES):
        entry.lose("roles", f"there is no role {name!r}; there are {', '.join(ROLES)}", roles[name])
    roles = {name: names for name, names in roles.items() if names and name in ROLES}
    entry.note(f"roles: {roles}", "roles")
    parts = (("columns", columns), ("message_columns", fields), ("roles", roles))
    return {name: value for name, value in parts if value} | _trained(entry)


def _trained(entry: Findings) -> dict[str, Any]:
    """Which turns are trained."""
    if "chat_template" in entry.values:
        entry.lose("chat_template", "one template is used for the whole run (template.format)")
    roles, ends = entry.take("roles_to_train", ["assistant"]), entry.take("train_on_eos", "turn")
    if ends != "turn":
        entry.lose("train_on_eos", "the end of each trained turn is trained, and no other")
    elif "train_on_eos" in entry.values:
        entry.note("the end of each trained turn is trained", "train_on_eos")
    if "roles_to_train" not in entry.values:
        return {}
    if list(roles) in (["assistant"], ["gpt"]):
        entry.note("train_on: assistant", "roles_to_train")
        return {"train_on": "assistant"}
    if not roles and "message_field_training" in entry.values:
        entry.note("train_on: flags", "roles_to_train")
        return {"train_on": "flags"}
    entry.lose("roles_to_train", "assistant turns are trained, or everything (train_on)")
    return {}
