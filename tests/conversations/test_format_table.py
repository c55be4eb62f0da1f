"""Every real conversation file: the format it is taken for, its rows, and the rows left out with their reasons."""

from __future__ import annotations

import pytest

from chatwright.conversations.converters import CONVERTERS, NAMED_ONLY, detect_format
from chatwright.conversations.sources import load_conversations, read_rows
from chatwright.errors import DataError
from shared_files import shared

FILES = [
    ("sft/identity.json", "alpaca", 91),
    ("sft/glaive_toolcall_en_demo.json", "sharegpt", 300),
    ("sft/glaive_toolcall_zh_demo.json", "sharegpt", 300),
    ("sft/reason_tool_use_demo_50.jsonl", "messages", 50),
    ("sft/fastchat_dummy_conversation.json", "sharegpt", 500),
    ("sft/alpaca_libre_tasks_v1.jsonl", "alpaca", 2375),
    ("sft/alpaca_libre_tasks_v2.jsonl", "alpaca", 2294),
    ("sft/alpaca_libre_tasks_v3.jsonl", "alpaca", 1205),
    ("sft/self_instruct_seed_tasks.jsonl", "self_instruct", 175),
    ("sft/self_instruct_user_oriented.jsonl", "self_instruct", 252),
    ("gsm8k/train.jsonl", "gsm8k", 7473),
    ("gsm8k/test.jsonl", "gsm8k", 1319),
    ("humaneval/HumanEval.jsonl.gz", "humaneval", 164),
    ("mmlu/dev", "multiple_choice", 285),
    ("mmlu/test", "multiple_choice", 14042),
    ("arc/ARC-Easy/train.json", "alpaca", 2251),
    ("arc/ARC-Challenge/test.json", "alpaca", 1172),
    ("text/zh/xiehouyu.json", "question_answer", 14032),
    ("dialogue/chatterbot/chinese", "dialogue", 467),
    ("dialogue/chatterbot/english", "dialogue", 2026),
    ("dialogue/chatterbot/french", "dialogue", 89),
    ("dialogue/chatterbot/german", "dialogue", 113),
    ("dialogue/chatterbot/japanese", "dialogue", 568),
    ("dialogue/chatterbot/spanish", "dialogue", 280),
]
SKIPPED = {
    "sft/alpaca_libre_tasks_v2.jsonl": {"line": 14},
    "dialogue/chatterbot/english": {"row": 1},
}


@pytest.mark.parametrize(("path", "format", "num_rows"), FILES)
def test_every_row_of_a_real_file_converts_or_is_counted(path, format, num_rows):
    loaded = load_conversations(shared(f"data/{path}"), on_bad_row="skip")
    assert (loaded.format, loaded.num_rows, loaded.skip_counts) == (format, num_rows, SKIPPED.get(path, {}))
    assert len(loaded.conversations) == num_rows - len(loaded.skipped)
    assert len({(c.source, c.row) for c in loaded.conversations}) == len(loaded.conversations)
    if format != "dialogue":  # these end where the speaker falls silent
        assert all(c.messages[-1].role == "assistant" for c in loaded.conversations)


@pytest.mark.parametrize(("path", "format", "num_rows"), FILES)
def test_no_second_format_takes_a_real_file_as_well(path, format, num_rows):
    """Of formats that accept the first rows of a file, each makes the very same conversations, or is known here."""
    rows = [row for _, row in zip(range(32), read_rows(shared(f"data/{path}")), strict=False)]
    others = {name for name in CONVERTERS if name not in NAMED_ONLY and _accepts_all(name, rows)} - {format}
    assert others <= {"gsm8k": {"question_answer"}, "messages": {"nanochat", "sharegpt"}}.get(format, set())
    assert detect_format(rows, path) == format


def _accepts_all(name: str, rows: list) -> bool:
    try:
        for i, row in enumerate(rows):
            CONVERTERS[name](row, "real", i)
    except DataError:
        return False
    return True
