"""Completions end where a text or token says stop, and their text is what was written up to there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.inference.completion import Completer, cut_at
from chatwright.inference.engine import Engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.models.weights import load_model
from chatwright.templates.tokenizer import TextTokenizer
from shared_files import shared
from tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def completer(tmp_path_factory: pytest.TempPathFactory) -> Completer:
    folder = make_tiny_model(tmp_path_factory.mktemp("model"), initializer_range=0.3)
    tokenizer = TextTokenizer.load(folder)
    return Completer(Engine(load_model(folder), stop_ids=tokenizer.stop_ids), tokenizer)


def written(completer: Completer, prompt: str, stop: tuple[str, ...] = (), seed: int = 0, count: int = 30) -> str:
    """The text of a sampled completion."""
    drawn = SamplingSettings(temperature=1.0, seed=seed, max_new_tokens=count, stop=stop)
    ((_, found),) = completer.finished([completer.tokenizer.encode_text(prompt)], [drawn])
    return found.text


@settings(max_examples=25)
@given(seed=st.integers(0, 4), start=st.integers(0, 12), length=st.integers(1, 6))
def test_a_text_is_cut_at_its_first_stop_text(completer: Completer, seed: int, start: int, length: int) -> None:
    whole = written(completer, "Blue is", seed=seed, count=15)
    stop = whole[start : start + length]
    if not stop or "\ufffd" in stop:
        return
    assert written(completer, "Blue is", (stop, "never"), seed, count=15) == whole[: whole.find(stop)]


def test_nothing_is_generated_behind_a_stop_text(completer: Completer) -> None:
    whole = written(completer, "Who are", seed=3, count=60)
    drawn = SamplingSettings(temperature=1.0, seed=3, max_new_tokens=60)
    prompt = completer.tokenizer.encode_text("Who are")
    short, full = (dict(completer.finished([prompt], [each]))[0] for each in _both(drawn, whole[5:8]))
    assert short.reply_tokens < full.reply_tokens / 2 and short.finish_reason == "stop"
    assert short.text == whole[: whole.find(whole[5:8])] and full.prompt_tokens == len(prompt)


def _both(drawn: SamplingSettings, stop: str) -> tuple[SamplingSettings, SamplingSettings]:
    return drawn.model_copy(update={"stop": (stop,)}), drawn


def test_each_prompt_keeps_its_own_settings(completer: Completer) -> None:
    prompts = [completer.tokenizer.encode_text(text) for text in ("Blue is", "A bat", "Blue is")]
    each_own = [
        SamplingSettings(max_new_tokens=5),
        SamplingSettings(temperature=1.0, seed=1, max_new_tokens=9, stop=("e",)),
        SamplingSettings(temperature=1.0, seed=2, max_new_tokens=7),
    ]
    together = dict(completer.finished(prompts, each_own))
    for number, (prompt, each) in enumerate(zip(prompts, each_own, strict=True)):
        assert together[number] == dict(completer.finished([prompt], [each]))[0]


def test_the_end_is_told(completer: Completer, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = completer.tokenizer.encode_text("Blue is")
    (first,) = completer.engine.generate([prompt], SamplingSettings(max_new_tokens=1))
    ((_, cut),) = completer.finished([prompt], [SamplingSettings(max_new_tokens=3)])
    assert cut.finish_reason == "length" and cut.reply_tokens == 3
    monkeypatch.setattr(completer.engine, "stop_ids", frozenset(first.ids))
    ((_, stopped),) = completer.finished([prompt], [SamplingSettings(max_new_tokens=3)])
    assert (stopped.text, stopped.finish_reason, stopped.reply_tokens) == ("", "stop", 1)


def test_a_control_token_can_be_a_stop_text_and_special_ones_are_no_text(
    completer: Completer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "<|im_start|>"
    index = completer.tokenizer.control_ids[name]
    prompt = completer.tokenizer.encode_text("Blue is")
    only = [each for each in range(completer.engine.model.config.vocab_size) if each != index]
    monkeypatch.setattr(completer.engine, "never_ids", tuple(only))
    ((_, free),) = completer.finished([prompt], [SamplingSettings(max_new_tokens=4)])
    assert (free.text, free.reply_tokens) == ("", 4)
    ((_, ended),) = completer.finished([prompt], [SamplingSettings(max_new_tokens=4, stop=(name,))])
    assert (ended.text, ended.reply_tokens, ended.finish_reason) == ("", 1, "stop")


def test_the_first_of_several_stop_texts_cuts() -> None:
    assert cut_at("abcdef", ("de", "bc")) == ("a", True)
    assert cut_at("abc", ()) == ("abc", False) == cut_at("abc", ("",))


def test_a_blank_at_the_start_stays() -> None:
    """Decoders of SentencePiece models take a first blank off; a completion stands behind its prompt."""
    folder = shared("models/stories260k")
    tokenizer = TextTokenizer.load(folder)
    completer = Completer(Engine(load_model(folder), stop_ids=tokenizer.stop_ids), tokenizer)
    prompt = tokenizer.encode_texts([("Once upon a time there was", True)])[0]
    ((_, found),) = completer.finished([prompt], [SamplingSettings(max_new_tokens=4)])
    assert found.text.startswith(" ")
