"""A running batch: coming and going, shared beginnings, restricted choice, known texts, settings of each request."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, make_pair

from chatwright.errors import ModelError
from chatwright.inference.batch import Batch
from chatwright.inference.engine import Engine
from chatwright.inference.prefixes import LEAST_SHARED, PrefixFinder
from chatwright.inference.requests import Reply, Request, Row
from chatwright.inference.sampling import SamplingSettings
from chatwright.layouts import SegmentLayout
from chatwright.models.transformer import CausalLM

MODELS = {family: make_pair(family)[1] for family in FAMILIES}
LLAMA = MODELS["llama"]
SYSTEM = [1, *range(20, 50)]
GREEDY = SamplingSettings(max_new_tokens=12)


def alone(request: Request, model: CausalLM = LLAMA) -> list[int]:
    """What the engine says to a request that has the batch for itself."""
    reply = Reply()
    for token in Engine(model, stop_ids=()).run([request]):
        reply.add(token)
    return reply.ids


def finish(batch: Batch, replies: dict[int, Reply]) -> None:
    while not batch.idle:
        for token in batch.step():
            replies.setdefault(token.row, Reply()).add(token)


class Counting:
    """A model that counts the tokens it computes."""

    def __init__(self, model: CausalLM) -> None:
        self.model, self.tokens = model, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def __call__(self, ids: torch.Tensor, *rest: object, **named: object) -> object:
        self.tokens += len(ids)
        return self.model(ids, *rest, **named)  # type: ignore[arg-type]


def all_logits(model: CausalLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(torch.tensor(ids), torch.arange(len(ids)), SegmentLayout.from_lengths([len(ids)]))


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_requests_that_come_and_go_say_what_they_say_alone(data: st.DataObject) -> None:
    """Joining late, leaving early, sharing beginnings and growing caches change no reply."""
    row_bytes = 64 * LLAMA.cache_token_bytes()
    cache_bytes = row_bytes * data.draw(st.integers(2, 6))
    batch = Engine(LLAMA, stop_ids=(3, 8), max_rows=data.draw(st.integers(1, 5)), cache_bytes=cache_bytes).open()
    LLAMA.eval()
    asked: dict[int, Request] = {}
    cancelled: set[int] = set()
    replies: dict[int, Reply] = {}
    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()) and len(asked) < 10:
            tail = data.draw(st.lists(st.integers(4, 96), max_size=6))
            start = data.draw(st.sampled_from([SYSTEM, SYSTEM[:20], [1]]))
            drawn = SamplingSettings(
                max_new_tokens=data.draw(st.one_of(st.integers(1, 14), st.integers(30, 58))),
                temperature=data.draw(st.sampled_from([0.0, 1.0])),
                seed=data.draw(st.integers(0, 3)),
            )
            request = Request([*start, *tail], drawn)
            asked[batch.submit(request)] = request
        elif asked and data.draw(st.integers(0, 5)) == 0:
            number = data.draw(st.sampled_from(sorted(asked)))
            batch.cancel(number)  # nothing happens where it is done
            cancelled.add(number)
        for token in batch.step():
            replies.setdefault(token.row, Reply()).add(token)
        if batch.cache is not None:
            held = batch.cache.num_rows * batch.cache.capacity * LLAMA.cache_token_bytes()
            assert held <= cache_bytes
    finish(batch, replies)
    engine = Engine(LLAMA, stop_ids=(3, 8))
    assert set(replies) == set(asked)
    for number, request in asked.items():
        whole = Reply()
        for token in engine.run([request]):
            whole.add(token)
        found = replies[number]
        if found.stop_reason == "cancelled":
            assert number in cancelled and found.ids == whole.ids[: len(found.ids)]
        else:
            assert (found.ids, found.stop_reason) == (whole.ids, whole.stop_reason)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_beginning_is_computed_once(family: str) -> None:
    model = MODELS[family]
    prompts = [[*SYSTEM, 60 + n, 5] for n in range(6)]
    counting = Counting(model)
    replies = Engine(counting, stop_ids=()).generate(prompts, GREEDY)  # type: ignore[arg-type]
    assert [reply.ids for reply in replies] == [alone(Request(prompt, GREEDY), model) for prompt in prompts]
    decoded = 6 * (GREEDY.max_new_tokens - 1)
    assert counting.tokens == len(SYSTEM) + 6 * 2 + decoded


def test_several_samples_of_a_prompt_cost_one_prefill() -> None:
    counting, prompt = Counting(LLAMA), [*SYSTEM, 61]
    drawn = SamplingSettings(max_new_tokens=5, temperature=1.0, seed=1)
    replies = Engine(counting, stop_ids=()).generate([prompt] * 8, drawn)  # type: ignore[arg-type]
    assert counting.tokens == len(prompt) + 7 + 8 * 4
    assert len({tuple(reply.ids) for reply in replies}) > 4
    assert [reply.ids for reply in replies] == [alone(Request(prompt, drawn, copy)) for copy in range(8)]


def test_every_request_is_drawn_by_its_own_settings() -> None:
    requests = [
        Request(SYSTEM, SamplingSettings(max_new_tokens=3)),
        Request(SYSTEM, SamplingSettings(max_new_tokens=9, temperature=1.2, seed=4)),
        Request(SYSTEM, SamplingSettings(max_new_tokens=9, temperature=1.2, seed=5)),
        Request(SYSTEM, SamplingSettings(max_new_tokens=9, temperature=0.9, top_k=3, repetition_penalty=1.4)),
        Request(SYSTEM, SamplingSettings(max_new_tokens=9, temperature=1.2, seed=4, top_p=0.2)),
    ]
    replies = [Reply() for _ in requests]
    for token in Engine(LLAMA, stop_ids=()).run(requests):
        replies[token.row].add(token)
    assert [reply.ids for reply in replies] == [alone(request) for request in requests]
    assert replies[1].ids not in (replies[2].ids, replies[4].ids) and len(replies[0].ids) == 3


def test_cancelled_requests_leave_at_once_and_the_others_go_on() -> None:
    batch = Engine(LLAMA, stop_ids=(), max_rows=2).open()
    numbers = [batch.submit(Request([1, 30 + n], GREEDY)) for n in range(3)]
    replies: dict[int, Reply] = {}
    for token in batch.step():
        replies.setdefault(token.row, Reply()).add(token)
    batch.cancel(numbers[0])
    batch.cancel(numbers[2])  # still waiting
    batch.cancel(99)  # never was
    finish(batch, replies)
    assert [replies[n].stop_reason for n in numbers] == ["cancelled", "length", "cancelled"]
    assert replies[0].ids == alone(Request([1, 30], GREEDY))[:1] and replies[2].ids == []
    assert replies[1].ids == alone(Request([1, 31], GREEDY))
    batch.cancel(numbers[1])
    assert batch.idle and batch.step() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_the_log_probabilities_of_a_whole_forward(family: str) -> None:
    model = MODELS[family]
    prompts, allowed = [[1, 40, 41], [*SYSTEM, 7], [*SYSTEM, 9]], [[5, 6], [7, 50, 9], [96]]
    found = Engine(model, stop_ids=()).choose(prompts, allowed)
    for prompt, ids, log_probs in zip(prompts, allowed, found, strict=True):
        expected = all_logits(model, prompt)[-1].log_softmax(-1)[ids]
        torch.testing.assert_close(torch.tensor(log_probs), expected, rtol=1e-5, atol=5e-5)


def test_a_restricted_reply_is_the_likeliest_of_what_is_allowed() -> None:
    engine = Engine(LLAMA, stop_ids=(), never_ids=[60])
    free = engine.generate([SYSTEM], GREEDY)[0].ids[0]
    tokens = list(engine.run([Request(SYSTEM, SamplingSettings(max_new_tokens=4), allowed=[60, 61, 62])]))
    assert free not in (60, 61, 62)
    held = list(SYSTEM)
    for token in tokens:
        expected = all_logits(LLAMA, held)[-1].log_softmax(-1)[[60, 61, 62]]
        torch.testing.assert_close(torch.tensor(token.allowed_logprobs), expected, rtol=1e-5, atol=5e-5)
        assert token.token_id == 60 + int(expected.argmax())
        assert token.logprob == token.allowed_logprobs[token.token_id - 60]
        held.append(token.token_id)
    drawn = SamplingSettings(max_new_tokens=1, temperature=50.0)
    seen = {
        reply.ids[0] for seed in range(20) for reply in [_restricted(engine, drawn.model_copy(update={"seed": seed}))]
    }
    assert seen == {60, 61, 62}
    long = drawn.model_copy(update={"max_new_tokens": 12})
    assert set(_restricted(engine, long).ids) == {60, 61, 62}, "every token has a draw of its own"


def _restricted(engine: Engine, drawn: SamplingSettings) -> Reply:
    reply = Reply()
    for token in engine.run([Request(SYSTEM, drawn, allowed=[60, 61, 62])]):
        reply.add(token)
    return reply


@pytest.mark.parametrize("family", FAMILIES)
def test_known_texts_are_scored_as_a_whole_forward_does(family: str) -> None:
    model = MODELS[family]
    engine = Engine(model, stop_ids=(), max_rows=3)
    prompts = [[1, 40], [*SYSTEM, 7], [*SYSTEM, 7], [*SYSTEM, 7], [1, 40]]
    greedy = engine.generate([[*SYSTEM, 7]], SamplingSettings(max_new_tokens=50))[0].ids
    continuations = [[5, 6, 7], greedy[:50], [*greedy[:3], (greedy[3] + 1) % 97], [9], []]
    for prompt, ids, scored in zip(prompts, continuations, engine.score(prompts, continuations), strict=True):
        logits = all_logits(model, [*prompt, *ids])
        places = torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1)
        expected = logits[places].log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids, dtype=torch.long)]
        torch.testing.assert_close(torch.tensor(scored.logprobs), expected, rtol=1e-4, atol=1e-4)
        assert scored.is_greedy == bool((logits[places].argmax(-1) == torch.tensor(ids)).all())
    assert engine.score([[*SYSTEM, 7]], [greedy[:50]])[0].is_greedy


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=6))
def test_the_longest_common_beginning_is_found(wanted: list[int], known: list[list[int]]) -> None:
    finder = PrefixFinder()
    for number, ids in enumerate(known):
        finder.add(ids, Row(number, Request([1]), 0, 1, []))
    shared = [next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), -1) for ids in known]
    lengths = [min(len(ids), len(wanted)) if n < 0 else n for ids, n in zip(known, shared, strict=True)]
    found, row = finder.longest(wanted)
    assert found == max(lengths, default=0)
    assert (row is None) == (found == 0) and (row is None or lengths[row.number] == found)
    assert LEAST_SHARED > 1


def test_greedy_scores_know_what_is_never_drawn() -> None:
    logits = all_logits(LLAMA, SYSTEM)[-1]
    first, second = (int(token) for token in logits.topk(2).indices)
    for engine in (Engine(LLAMA, stop_ids=(), never_ids=[first]), Engine(LLAMA, stop_ids=(), num_tokens=first)):
        best = int(logits[:first].argmax()) if engine.num_tokens else second
        scored = engine.score([SYSTEM, SYSTEM], [[first], [best]])
        assert [each.is_greedy for each in scored] == [False, True]


def test_an_active_row_is_shared_with_rather_than_a_finished_one_that_has_less() -> None:
    """A full batch, several samples of one prompt among short replies that share its header alone."""
    counting, header = Counting(LLAMA), [1, *range(30, 50)]
    prompt = [*header, *range(50, 80)]
    batch = Engine(counting, stop_ids=(), max_rows=2).open()  # type: ignore[arg-type]
    batch.submit(Request([*header, 90], SamplingSettings(max_new_tokens=2)))
    for copy in range(3):
        batch.submit(Request(prompt, SamplingSettings(max_new_tokens=6 - copy, temperature=1.0), copy))
    finish(batch, {})
    decoded = 1 + 5 + 4 + 3
    assert counting.tokens <= len(header) + 1 + (len(prompt) - len(header)) + 2 + decoded


def test_nothing_allowed_and_no_rows_are_refused() -> None:
    with pytest.raises(ModelError, match="nothing is allowed"):
        Engine(LLAMA, stop_ids=()).choose([[1]], [[]])
    with pytest.raises(ValueError, match="max_rows"):
        Engine(LLAMA, stop_ids=(), max_rows=0)


def test_a_controller_that_fails_leaves_the_other_rows_right() -> None:
    class FailsOnce:
        failed = False

        def on_token(self, row: int, token_id: int) -> list[int]:
            if not self.failed:
                self.failed = True
                raise RuntimeError("once")
            return []

    batch = Engine(LLAMA, stop_ids=()).open()
    batch.submit(Request([1, 30], GREEDY, controller=FailsOnce()))
    batch.submit(Request([1, 31], GREEDY))
    with pytest.raises(RuntimeError):
        batch.step()
    with pytest.raises(ModelError, match="begin anew"):
        batch.step()
