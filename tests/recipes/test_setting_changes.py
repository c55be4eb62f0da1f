"""What counts as a change of settings, and what is only a version that knows more."""

from __future__ import annotations

from chatwright.recipes.setting_changes import flat_settings, null_changes, setting_changes

BEFORE = {"adapter": None, "train": {"seed": 1}, "new_model": {"preset": "llama", "depth": 4}, "data": [{"path": "a"}]}


def told(now: dict[str, object], before: dict[str, object] = BEFORE) -> list[str]:
    flat = (dict(flat_settings(side)) for side in (before, now))
    return setting_changes(*flat, open_rooms=("new_model",))


def test_values_rooms_and_options_that_differ_are_told() -> None:
    assert told(dict(BEFORE)) == []
    assert told({**BEFORE, "train": {"seed": 2}}) == ["train.seed: was 1, is 2"]
    assert told({**BEFORE, "data": []}) == ['data: was [{"path": "a"}], is []']
    adapted = {**BEFORE, "adapter": {"rank": 4, "targets": ["q"]}}
    assert told(adapted) == ['adapter: was null, is {"rank": 4, "targets": ["q"]}']
    assert told(dict(BEFORE), adapted) == ['adapter: was {"rank": 4, "targets": ["q"]}, is null']
    wider = {**BEFORE, "new_model": {"preset": "llama", "width": 8}}
    assert told(wider) == ["new_model.depth: was 4, is not set", "new_model.width: was not set, is 8"]
    assert told({**BEFORE, "new_model": None}) == ['new_model: was {"preset": "llama", "depth": 4}, is null']


def test_what_another_version_did_not_have_is_no_change() -> None:
    more = {**BEFORE, "train": {"seed": 1, "later": True}, "later": {"on": 1}}
    assert told(more) == [] and told(dict(BEFORE), more) == []


def test_inner_rooms_count_too() -> None:
    before, now = {"optimizer.muon": None}, {"optimizer.muon.momentum": 0.9, "optimizer.name": "muon"}
    assert null_changes(before, now) == ['optimizer.muon: was null, is {"momentum": 0.9}']
