"""TRL's data sections: `dataset_name` and the mixture list `datasets`.

Source of the schema: TRL `trl/scripts/utils.py` (ScriptArguments, DatasetMixtureConfig).
"""

from __future__ import annotations

from typing import Any

from chatwright.conversations.foreign_configs import Findings, dataset_sources


def trl_data(config: Findings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training entries, and those to measure on: the test split, where evaluation is asked for."""
    mixture, streaming = config.take("datasets"), config.take("streaming", config.take("dataset_streaming"))
    test_split, evaluates = config.take("dataset_test_split", "test"), config.values.get("eval_strategy", "no") != "no"
    if mixture:
        config.note("data", "datasets")
        named = [(config.inside(item, f"datasets[{i}]."), "train") for i, item in enumerate(mixture)]
        for key in ("dataset_name", "dataset_config", "dataset_train_split"):
            if key in config.values:
                config.lose(key, "without effect there beside 'datasets'")
    else:
        named = [_single(config, config.take("dataset_train_split", "train"))]
        config.note(
            "data", *(k for k in ("dataset_name", "dataset_config", "dataset_train_split") if k in config.values)
        )
    train = [settings for entry, split in named for settings in _entries(entry, split, bool(streaming))]
    held_out: list[dict[str, Any]] = []
    if evaluates and not mixture and not config.values.get("test_split_size"):
        entry, split = _single(config, test_split)
        held_out = _entries(entry, split, streaming=False)
        config.note("heldout.data", "dataset_test_split")
    elif "dataset_test_split" in config.values:
        config.lose("dataset_test_split", "nothing is evaluated there without eval_strategy, or beside 'datasets'")
    for key in ("streaming", "dataset_streaming"):
        if key in config.values:
            config.note(f"data.*.hub_mode: {'streaming' if config.values[key] else 'cached'}", key)
    return train, held_out


def _single(config: Findings, split: str) -> tuple[Findings, str]:
    values = {"path": config.take("dataset_name"), "name": config.take("dataset_config"), "split": split}
    return config.inside(values, "dataset_name → "), split


def _entries(entry: Findings, split: str, streaming: bool) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for path in dataset_sources(entry, split):
        made.append({"path": path} | ({"hub_mode": "streaming"} if streaming and path.startswith("hub:") else {}))
    entry.close({"columns": "all columns are read; those that the format doesn't name have no effect"})
    return made
