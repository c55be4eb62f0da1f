"""The engine against transformers' generate, and its own laws: bounds, forced tokens, refills, cancellation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, make_pair

from chatwright.errors import ModelError
from chatwright.inference.engine import Engine
from chatwright.inference.requests import Request
from chatwright.inference.sampling import SamplingSettings
from chatwright.layouts import SegmentLayout
from chatwright.models.foreign import ForeignLM
from chatwright.models.transformer import CausalLM

STOPS = (2, 11)
ROW_BYTES = 2 * 3 * 2 * 8 * 4 * 64
"""Keys and values, layers, KV heads, head_dim, float32, tokens: a cache row of the tiny llama."""
PROMPTS = [[1, 5, 6, 7], [1, *range(20, 41)], [1], [1, 96, 3], [1, 9, 9, 9, 9, 9, 9, 9, 9]]


@pytest.fixture(scope="module")
def llama() -> CausalLM:
    return make_pair("llama")[1]


def their_reply(model: Any, prompt: list[int], max_new_tokens: int, stops: list[int]) -> list[int]:
    ids = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stops,
    )
    return ids[0, len(prompt) :].tolist()


def log_probs_of(model: CausalLM, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
    """As the trainer computes them: one forward over the whole conversation, no cache."""
    ids = torch.tensor([*prompt, *reply])
    layout = SegmentLayout.from_lengths([len(ids)])
    with torch.no_grad():
        logits = model.logits(ids, torch.arange(len(ids)), layout).log_softmax(-1)
    return logits[len(prompt) - 1 : -1].gather(-1, torch.tensor(list(reply))[:, None])[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(family: str) -> None:
    theirs, ours = make_pair(family)
    settings = SamplingSettings(max_new_tokens=24)
    endless = Engine(ours, stop_ids=()).generate(PROMPTS, settings)
    stops = [endless[0].ids[4], endless[1].ids[12]]  # so that rows end at different times
    replies = Engine(ours, stop_ids=stops).generate(PROMPTS, settings)
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        assert reply.ids == their_reply(theirs, prompt, 24, stops)
        assert reply.stop_reason == ("stop" if reply.ids[-1] in stops else "length")
        expected = log_probs_of(ours, prompt, reply.ids)
        torch.testing.assert_close(torch.tensor(reply.logprobs), expected, rtol=1e-5, atol=5e-5)
    assert len({len(reply.ids) for reply in replies}) > 1


@pytest.mark.parametrize("options", [{"temperature": 0.8}, {"temperature": 1.5, "top_k": 5, "repetition_penalty": 1.3}])
def test_same_seed_same_text_whatever_else_is_in_the_batch(llama: CausalLM, options: dict[str, Any]) -> None:
    engine = Engine(llama, stop_ids=STOPS)
    settings = SamplingSettings(max_new_tokens=16, seed=5, **options)
    together = [reply.ids for reply in engine.generate(PROMPTS, settings)]
    assert [engine.generate([prompt], settings)[0].ids for prompt in PROMPTS] == together
    assert [reply.ids for reply in engine.generate(PROMPTS[::-1], settings)] == together[::-1]
    other = settings.model_copy(update={"seed": 6})
    assert [reply.ids for reply in engine.generate(PROMPTS, other)] != together


def test_copies_of_a_prompt_differ_and_repeat(llama: CausalLM) -> None:
    engine, settings = Engine(llama, stop_ids=()), SamplingSettings(temperature=1.0, max_new_tokens=12)
    first = [tuple(reply.ids) for reply in engine.generate([[1, 4]] * 4, settings)]
    assert len(set(first)) == 4
    assert first == [tuple(reply.ids) for reply in engine.generate([[1, 4]] * 4, settings)]


@pytest.mark.parametrize(
    "limits", [{"max_rows": 2}, {"cache_bytes": ROW_BYTES}, {"cache_bytes": 3 * ROW_BYTES}, {"prefill_tokens": 1}]
)
def test_memory_bounds_change_nothing(llama: CausalLM, limits: dict[str, int]) -> None:
    settings = SamplingSettings(max_new_tokens=20, temperature=0.7)
    expected = Engine(llama, stop_ids=STOPS).generate(PROMPTS, settings)
    replies = Engine(llama, stop_ids=STOPS, **limits).generate(PROMPTS, settings)
    assert [reply.ids for reply in replies] == [reply.ids for reply in expected]


def test_requests_beyond_the_memory_are_refused_before_anything_runs(llama: CausalLM) -> None:
    engine = Engine(llama, stop_ids=(), cache_bytes=ROW_BYTES - 1)
    with pytest.raises(ModelError, match=r"(?s)prompt 0: .*21 tokens.*max_new_tokens"):
        engine.generate([[1]], SamplingSettings(max_new_tokens=20))


@pytest.mark.parametrize(("rows", "limits"), [(3, {"cache_bytes": 3 * ROW_BYTES}), (2, {"max_rows": 2}), (5, {})])
def test_as_many_rows_run_as_fit(llama: CausalLM, rows: int, limits: dict[str, int]) -> None:
    batch = Engine(llama, stop_ids=(), **limits).open()
    for prompt in PROMPTS:
        batch.submit(Request(prompt, SamplingSettings(max_new_tokens=4)))
    most = 0
    while not batch.idle:
        batch.step()
        most = max(most, len(batch.active))
        held = batch.cache.num_rows * batch.cache.capacity * llama.cache_token_bytes()
        assert held <= limits.get("cache_bytes", 2**30)
    assert most == rows


class ForceAfter:
    """Forces `forced` after the `place`-th drawn token of every row, once."""

    def __init__(self, place: int, forced: list[int]) -> None:
        self.place, self.forced = place, forced
        self.drawn: dict[int, list[int]] = {}

    def on_token(self, row: int, token_id: int) -> Sequence[int]:
        drawn = self.drawn.setdefault(row, [])
        drawn.append(token_id)
        return self.forced if len(drawn) == self.place else []


def test_forced_tokens_enter_the_reply_and_the_model_goes_on_from_them(llama: CausalLM) -> None:
    engine, settings = Engine(llama, stop_ids=()), SamplingSettings(max_new_tokens=15)
    plain = engine.generate(PROMPTS, settings)
    controller = ForceAfter(3, [50, 2, 51])
    for row, (prompt, reply) in enumerate(zip(PROMPTS, engine.generate(PROMPTS, settings, controller), strict=True)):
        assert reply.ids[:6] == [*plain[row].ids[:3], 50, 2, 51]
        assert reply.logprobs[3:6] == [None] * 3 and None not in reply.logprobs[:3] + reply.logprobs[6:]
        assert len(reply.ids) == 15
        assert controller.drawn[row] == [*reply.ids[:3], *reply.ids[6:-1]], "forced and last tokens are not reported"
        continued = engine.generate([[*prompt, *reply.ids[:6]]], settings)[0].ids[:9]
        assert continued == reply.ids[6:]


def test_forced_tokens_stop_at_the_bound(llama: CausalLM) -> None:
    reply = Engine(llama, stop_ids=()).generate([[1]], SamplingSettings(max_new_tokens=5), ForceAfter(2, [7] * 50))[0]
    assert reply.ids[2:] == [7, 7, 7] and reply.stop_reason == "length"


def test_the_context_bounds_the_reply(llama: CausalLM) -> None:
    prompt = [1] + [30] * 89
    reply = Engine(llama, stop_ids=()).generate([prompt], SamplingSettings(max_new_tokens=500))[0]
    assert len(reply.ids) == 6 and reply.stop_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty prompt"), ([1] * 96, "96 tokens.*context is 96"), ([1, 97], "token id 97.*0 to 96"), ([-1], "id -1")],
)
def test_unusable_prompts_are_named(llama: CausalLM, prompt: list[int], message: str) -> None:
    with pytest.raises(ModelError, match=rf"(?s)prompt 1: .*{message}.*→"):
        Engine(llama, stop_ids=()).generate([[1], prompt], SamplingSettings())


def test_logits_that_are_not_finite_are_an_error(llama: CausalLM) -> None:
    broken = make_pair("llama")[1]
    broken.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        Engine(broken, stop_ids=()).generate([[1, 2]], SamplingSettings())


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_so_they_are_when_tokens_are_drawn(options: dict[str, Any]) -> None:
    broken = make_pair("llama")[1]
    broken.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        Engine(broken, stop_ids=()).generate([[1, 2]], SamplingSettings(temperature=1.0, **options))


def test_a_repetition_penalty_sees_what_transformers_sees() -> None:
    theirs, ours = make_pair("llama")
    replies = Engine(ours, stop_ids=()).generate(PROMPTS, SamplingSettings(max_new_tokens=20, repetition_penalty=1.3))
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        ids = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=1.3,
            eos_token_id=None,
        )
        assert reply.ids == ids[0, len(prompt) :].tolist()


def test_padded_columns_are_never_drawn(llama: CausalLM) -> None:
    replies = Engine(llama, stop_ids=(), num_tokens=10).generate(PROMPTS, SamplingSettings(temperature=3.0))
    assert max(max(reply.ids) for reply in replies) < 10


def test_ids_that_only_a_controller_may_write_are_never_drawn(llama: CausalLM) -> None:
    plain = Engine(llama, stop_ids=()).generate(PROMPTS, SamplingSettings(max_new_tokens=20))
    favourites = sorted({token for reply in plain for token in reply.ids})[:3]
    for temperature in (0.0, 1.0):
        settings = SamplingSettings(max_new_tokens=20, temperature=temperature)
        engine = Engine(llama, stop_ids=(), never_ids=favourites)
        replies = engine.generate(PROMPTS, settings, ForceAfter(2, favourites))
        assert all(reply.ids[2:5] == favourites for reply in replies)
        assert not {token for reply in replies for token in reply.ids[:2] + reply.ids[5:]} & set(favourites)


class EndAfter:
    """Ends every reply after so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens

    def on_token(self, row: int, token_id: int) -> Sequence[int] | None:
        self.left -= 1
        return [] if self.left else None


def test_a_controller_may_end_the_reply(llama: CausalLM) -> None:
    reply = Engine(llama, stop_ids=()).generate([[1]], SamplingSettings(), EndAfter(4))[0]
    assert len(reply.ids) == 4 and reply.stop_reason == "controller"


def test_closing_the_stream_cancels_and_restores_the_mode(llama: CausalLM) -> None:
    llama.train()
    stream = Engine(llama, stop_ids=()).stream([[1], [1, 2]], SamplingSettings())
    first = next(stream)
    assert (first.row, first.stop_reason) == (0, None)
    assert not llama.training and not torch.is_inference_mode_enabled()
    stream.close()
    assert llama.training
    llama.eval()


def test_streamed_tokens_are_the_replies(llama: CausalLM) -> None:
    engine, settings = Engine(llama, stop_ids=STOPS), SamplingSettings(max_new_tokens=20)
    replies = engine.generate(PROMPTS, settings)
    tokens = list(engine.stream(PROMPTS, settings))
    for row, reply in enumerate(replies):
        mine = [token for token in tokens if token.row == row]
        assert [token.token_id for token in mine] == reply.ids
        assert [token.stop_reason for token in mine] == [None] * (len(mine) - 1) + [reply.stop_reason]
    assert list(engine.stream([], settings)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gpt2", "vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
        {
            "model_type": "gpt_neox",
            "vocab_size": 97,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 96,
        },
    ],
    ids=lambda fields: fields["model_type"],
)
def test_models_that_run_through_transformers_generate_as_they_do_there(fields: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**fields, initializer_range=0.4, bos_token_id=1, eos_token_id=2)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.generation_config.pad_token_id = 0
    engine = Engine(ForeignLM(theirs), stop_ids=STOPS, max_rows=3)
    settings = SamplingSettings(max_new_tokens=20)
    replies = engine.generate(PROMPTS, settings)
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        assert reply.ids == their_reply(theirs, prompt, 20, list(STOPS))
    plain, forced = engine.generate(PROMPTS[:1], settings)[0], [50, 2, 51]
    reply = engine.generate(PROMPTS[:1], settings, ForceAfter(3, forced))[0]
    assert reply.ids[:6] == [*plain.ids[:3], *forced]
    assert reply.ids[6:] == engine.generate([[*PROMPTS[0], *reply.ids[:6]]], settings)[0].ids[:14]
    with pytest.raises(ModelError, match="context is 96"):
        engine.generate([[1] * 96], settings)
