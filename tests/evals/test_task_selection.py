"""`--tasks`: names, groups, options, and what is said of names that don't exist."""

from __future__ import annotations

import pytest

from chatwright.errors import ConfigError, UserError
from chatwright.evals.selection import CHATCORE, gradable_tasks, select_tasks


def labels(text: str) -> list[str]:
    return [selected.label for selected in select_tasks(text)]


def test_names_groups_and_both_sets_of_arc() -> None:
    assert labels("gsm8k, arc") == ["gsm8k", "arc:ARC-Easy", "arc:ARC-Challenge"]
    assert labels("chatcore") == list(CHATCORE)
    assert labels("chatcore,gsm8k,arc:ARC-Easy") == list(CHATCORE), "each task once"
    assert set(CHATCORE) <= set(labels("all")) and "letter_counting" in labels("all")
    assert not {"smoltalk", "custom_json"} & set(labels("all"))


def test_options_by_place_and_by_name() -> None:
    assert select_tasks("mmlu:anatomy")[0].task.options.subset == "anatomy"
    assert select_tasks("arc:subset=ARC-Challenge")[0].task.options.subset == "ARC-Challenge"
    assert select_tasks("spelling_bee:size=12")[0].task.options.size == 12
    assert len(select_tasks("spelling_bee:size=12")[0].problems("test", None, 0)) == 12


def test_the_split_is_test_unless_there_is_none_or_another_is_asked_for() -> None:
    assert select_tasks("gsm8k")[0].split(None) == "test"
    assert select_tasks("gsm8k")[0].split("train") == "train"
    assert select_tasks("mmlu:auxiliary_train")[0].split(None) == "train"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gsm8", "did you mean 'gsm8k'"),
        ("chatcor", "did you mean 'chatcore'"),
        ("nothing-like-it", "known here: chatcore, all, "),
        ("arc,,gsm8k", "name them as in"),
        ("", "name them as in"),
        ("arc:ARC-Medium", "ARC-Medium"),
        ("gsm8k:sub=main", "sub"),
        ("letter_counting:many", "has no options"),
        ("spelling_bee:size=many", "size"),
    ],
)
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        select_tasks(text)


def test_conversations_without_right_answers_are_for_the_loss() -> None:
    with pytest.raises(UserError, match="--heldout task:smoltalk"):
        select_tasks("smoltalk")


def test_every_gradable_task_can_be_made() -> None:
    assert len(labels(",".join(gradable_tasks()))) == len(gradable_tasks()) >= 11
