"""Servers as they come: odd answers are read, refusals are met, failures are told in words, and no key leaks."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from openai_server import Json, Script, serving

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import UserError
from chatwright.evals.endpoint import (
    NO_LETTER,
    NO_WRITTEN_LETTER,
    NOT_CHOSEN,
    TOO_LONG,
    endpoint_subject,
    written_letter,
)
from chatwright.evals.endpoint_client import EndpointClient, base_url
from chatwright.evals.endpoint_messages import letter_log_probs
from chatwright.evals.subject import Unanswered
from chatwright.inference.responder import ChatReply
from chatwright.inference.sampling import SamplingSettings

ASKED = Conversation((Message.of("user", "Which?"),))
SETTINGS = SamplingSettings(max_new_tokens=50)
SECRET = "sk-very-secret-0123456789"


def said(content: Any = "fine", **more: Any) -> Json:
    """An answer of one message."""
    choice = {"message": {"role": "assistant", "content": content, **more.pop("message", {})}, **more}
    return {"choices": [{"finish_reason": "stop", **choice}]}


def ask(script: Script, **options: Any) -> ChatReply | Unanswered:
    """One reply of a scripted server."""
    with serving(script) as url:
        subject = endpoint_subject(url, retries=options.pop("retries", 0), **options)
        subject.client.sleep = lambda _: None
        ((number, reply),) = subject.replies([ASKED], [SETTINGS])
    assert number == 0
    return reply


def choose(script: Script, letters: str = "ABCD", **options: Any) -> Any:
    """The letters of one question."""
    with serving(script) as url:
        ((_, found),) = endpoint_subject(url, retries=0, **options).choose([ASKED], [list(letters)])
    return found


def failure(script: Script, **options: Any) -> str:
    """The whole message of the error that a server leads to."""
    with pytest.raises(UserError) as caught:
        ask(script, **options)
    return caught.value.full_text()


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        (" http://host:8000/v1/ ", "http://host:8000/v1"),
        ("https://host/api/v1", "https://host/api/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
    ],
)
def test_addresses_lead_to_the_same_place(url: str, base: str) -> None:
    assert base_url(url) == base


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/v1", "http://me:pass@host/v1", "http://host/v1?key=abc", "http://"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"address|user name|query"):
        base_url(url)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_requests_go_to_the_route_whatever_the_slashes(suffix: str) -> None:
    script = Script(lambda body: (200, said()))
    with serving(script) as url:
        list(endpoint_subject(url + suffix).replies([ASKED], [SETTINGS]))
    assert script.paths == ["/v1/models", "/v1/chat/completions"]


CALL = {"id": "c7", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "6*7"}'}}


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (said(None, message={"tool_calls": [CALL]}), [("tool_call", '{"expression": "6*7"}')]),
        (said("", message={"reasoning_content": "hm"}), [("thinking", "hm")]),
        (said("so", message={"reasoning": "hm", "tool_calls": []}), [("thinking", "hm"), ("text", "so")]),
        (said("<think>\nhm\n</think>\n\nso"), [("thinking", "hm"), ("text", "so")]),
        (said([{"type": "text", "text": "in parts"}]), [("text", "in parts")]),
        (said("fine", usage=None), [("text", "fine")]),
        (said(None), []),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_answers_of_many_servers_are_read(answer: Json, parts: list[tuple[str, str]], chunked: bool) -> None:
    reply = ask(Script(lambda body: (200, answer), chunked=chunked))
    assert isinstance(reply, ChatReply)
    assert [(part.kind, part.text) for part in reply.message.parts] == parts
    assert reply.prompt_tokens == reply.reply_tokens == 0


def test_a_reply_that_calls_without_end_ends() -> None:
    script = Script(lambda body: (200, said(None, message={"tool_calls": [CALL]}, finish_reason="stop")))
    reply = ask(script, tools=True)
    assert isinstance(reply, ChatReply) and reply.finish_reason == "tool_calls"
    results = [part for part in reply.message.parts if part.kind == "tool_result"]
    assert results == [Part("tool_result", "42", "calculator", "c7")] * 8 and len(script.seen) == 9
    assert script.seen[1]["messages"][-1] == {"role": "tool", "tool_call_id": "c7", "content": "42"}


def test_the_bound_on_tokens_holds_for_all_rounds_together() -> None:
    def chat(body: Json) -> tuple[int, Json]:
        return 200, {**said(None, message={"tool_calls": [CALL]}), "usage": {"completion_tokens": 20}}

    script = Script(chat)
    reply = ask(script, tools=True)
    assert [body["max_tokens"] for body in script.seen] == [50, 30, 10]
    assert isinstance(reply, ChatReply) and reply.finish_reason == "length"


def test_what_is_sampled_is_told_and_nothing_else() -> None:
    script = Script(lambda body: (200, said()))
    asked = Conversation(ASKED.messages, variables={"enable_thinking": False})
    drawn = SamplingSettings(temperature=0.5, top_p=0.9, top_k=20, seed=7, repetition_penalty=1.1, max_new_tokens=9)
    with serving(script) as url:
        list(endpoint_subject(url, concurrency=1).replies([ASKED, asked], [SETTINGS, drawn]))
    message = {"role": "user", "content": "Which?"}
    greedy = {"model": "tiny", "messages": [message], "temperature": 0.0, "max_tokens": 50}
    assert script.seen[0] == greedy
    assert script.seen[1] == {
        **{"model": "tiny", "messages": [message], "temperature": 0.5, "max_tokens": 9, "top_p": 0.9, "seed": 7},
        **{"top_k": 20, "repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": False}},
    }


# Letters


def top(*items: tuple[str, float]) -> Json:
    """An answer with log-probabilities."""
    listed = [{"token": token, "logprob": value, "bytes": None} for token, value in items]
    return said("x", logprobs={"content": [{**listed[0], "top_logprobs": listed}]})


def test_letters_come_from_the_top_list_and_others_lie_below_it() -> None:
    answer = top(("B", -0.1), ("A", -3.0), ("The", -4.0))
    script = Script(lambda body: (200, answer))
    found = choose(script)
    assert found[:2] == [-3.0, -0.1] and found[2] == found[3] < -4.0
    assert script.seen[0]["logprobs"] is True and script.seen[0]["max_tokens"] == 1
    assert script.seen[0]["top_logprobs"] == 20 and "tools" not in script.seen[0]


def test_the_bound_is_what_the_listed_tokens_leave_over() -> None:
    (low,) = letter_log_probs(["C"], [("A", -0.0001), ("C", -9.5)]) or [0.0]
    assert low == -9.5
    found = letter_log_probs(["A", "D"], [("A", -0.0001), ("B", -9.5)])
    assert found is not None and found[1] < -9.5
    found = letter_log_probs(["A", "D"], [("A", -0.5), ("B", -0.95)])  # e^-0.5 + e^-0.95 = 0.993
    assert found is not None and -5.1 < found[1] < -4.9


def test_letters_behind_a_blank_count_where_none_stands_bare() -> None:
    assert letter_log_probs(["A", "B"], [("▁B", -0.2), (" A", -2.0)]) == [-2.0, -0.2]
    mixed = letter_log_probs(["A", "B"], [(" B", -0.2), ("A", -2.0)])
    assert mixed is not None and mixed[0] == -2.0 and mixed[1] < -2.0


def test_no_letter_in_the_list_is_no_answer() -> None:
    assert choose(Script(lambda body: (200, top(("<think>", -0.01), ("Well", -5.0))))) == Unanswered(NO_LETTER)


@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"content": None}, "absent"])
def test_a_server_without_logprobs_is_told_of_the_other_way(logprobs: Any) -> None:
    answer = said("B") if logprobs == "absent" else said("B", logprobs=logprobs)
    with pytest.raises(UserError, match="--choice-by text"):
        choose(Script(lambda body: (200, answer)))


def test_a_server_that_lists_five_is_asked_for_five() -> None:
    def chat(body: Json) -> tuple[int, Json]:
        if body["top_logprobs"] > 5:
            return 400, {"error": {"message": "top_logprobs must be at most 5"}}
        return 200, top(("A", -0.5), ("B", -1.5))

    script = Script(chat)
    assert choose(script)[:2] == [-0.5, -1.5]
    assert [body["top_logprobs"] for body in script.seen] == [20, 5]


def test_a_server_that_refuses_logprobs_is_told_of_the_other_way() -> None:
    with pytest.raises(UserError, match=r"logprobs are not supported(.|\n)*--choice-by text"):
        choose(Script(lambda body: (400, {"message": "logprobs are not supported"})))


def test_a_written_answer_chooses_its_letter() -> None:
    script = Script(lambda body: (200, said("The answer is (C).", message={"reasoning_content": "B? No: C"})))
    assert choose(script, choice_by="text") == [NOT_CHOSEN, NOT_CHOSEN, 0.0, NOT_CHOSEN]
    assert choose(Script(lambda body: (200, said("I can't say."))), choice_by="text") == Unanswered(NO_WRITTEN_LETTER)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (B). ", "B"),
        ("**B**", "B"),
        ("B) the moon", "B"),
        ("B. Because of A", "B"),
        ("Is it A? No. The correct answer is B.", "B"),
        ("The answer is A. Wait. Answer: **B**", "B"),
        (r"So \boxed{B}", "B"),
        ("A dog barks", None),
        ("Because", None),
        ("The answer is Boston", None),
        ("The answer is A common cold virus, so I choose B.", None),
        ("The correct answer is A or B", None),
        ("The answer is A because it floats", "A"),
        ("The answer is option B", "B"),
        (r"So \boxed{\text{C}}", "C"),
        ("E", None),
        ("", None),
    ],
)
def test_letters_are_read_as_people_write_them(text: str, letter: str | None) -> None:
    assert written_letter(text, "ABCD") == letter


# Refusals and failures


def test_openais_newer_models_take_the_bound_by_another_name() -> None:
    def chat(body: Json) -> tuple[int, Json]:
        if "max_tokens" in body:
            text = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return 400, {"error": {"message": text}}
        return 200, said(f"{body['max_completion_tokens']}")

    script = Script(chat)
    with serving(script) as url:
        replies = dict(endpoint_subject(url, concurrency=1).replies([ASKED] * 3, [SETTINGS] * 3))
    assert [reply.message.text for reply in replies.values() if isinstance(reply, ChatReply)] == ["50"] * 3
    assert len(script.seen) == 4, "the name is asked for once"


def test_a_reply_ends_at_the_context_and_a_prompt_that_fills_it_has_none() -> None:
    def chat(body: Json) -> tuple[int, Json]:
        used = 100 if body["max_tokens"] > 28 else 0
        text = (
            f"'max_tokens' or 'max_completion_tokens' is too large: {body['max_tokens']}. This model's maximum context "
            "length is 128 tokens and your request has 100 input tokens (50 > 128 - 100)."
        )
        return (400, {"message": text}) if used else (200, said("short", finish_reason="length"))

    reply = ask(Script(chat))
    assert isinstance(reply, ChatReply) and reply.finish_reason == "length"
    text = (
        "This model's maximum context length is 128 tokens. However, you requested 350 tokens (300 in the messages, 50"
    )
    assert ask(Script(lambda body: (400, {"error": {"message": text}}))) == Unanswered(TOO_LONG)
    coded = {"error": {"message": "Input is too long for requested model", "code": "context_length_exceeded"}}
    assert ask(Script(lambda body: (400, coded))) == Unanswered(TOO_LONG)


def test_what_can_t_be_read_counts_as_unanswered_and_goes_on() -> None:
    broken = said(None, message={"tool_calls": [{"function": {"arguments": "{}"}}]})
    reply = ask(Script(lambda body: (200, broken)))
    assert isinstance(reply, Unanswered) and "tool's name" in reply.reason
    filtered = ask(Script(lambda body: (200, said(None, finish_reason="content_filter"))))
    assert isinstance(filtered, Unanswered) and "filter" in filtered.reason


def test_other_refusals_are_told_in_the_server_s_words() -> None:
    text = failure(Script(lambda body: (422, {"detail": [{"msg": "Input should be a valid number"}]})))
    assert "HTTP 422" in text and "valid number" in text
    tools = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    assert "--endpoint-tools" in failure(Script(lambda body: (400, {"message": tools})), tools=True)


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    statuses = [429, 503, 500]

    def chat(body: Json) -> tuple[int, Json]:
        return (statuses.pop(0), {"error": "busy"}) if statuses else (200, said())

    with serving(Script(chat)) as url:
        subject = endpoint_subject(url, retries=3)
        subject.client.sleep = waits.append
        ((_, reply),) = subject.replies([ASKED], [SETTINGS])
    assert isinstance(reply, ChatReply) and reply.message.text == "fine"
    assert len(waits) == 3 and waits[0] <= 0.5 < waits[2] <= 2.0


@pytest.mark.parametrize("header", [lambda: "7", lambda: formatdate(time.time() + 7, usegmt=True)])
def test_a_server_is_left_alone_for_as_long_as_it_asks(header: Callable[[], str]) -> None:
    waits: list[float] = []
    script = Script(lambda body: (429, {"error": "slow down"}), headers={"Retry-After": header()})
    with serving(script) as url:
        client = EndpointClient(url, retries=1, sleep=waits.append)
        with pytest.raises(UserError, match="429: slow down"):
            client.chat({})
        assert len(script.seen) == 2
    assert len(waits) == 2 and all(5.0 < wait <= 7.0 for wait in waits), "the waiting and what every request checks"


def test_a_failure_hidden_in_a_200_is_one() -> None:
    script = Script(lambda body: (200, {"error": {"message": "upstream overloaded", "code": 502}}))
    assert "no answer: upstream overloaded (tried 2 times)" in failure(script, retries=1)
    assert len(script.seen) == 2


def test_a_broken_connection_is_made_again() -> None:
    calls: list[int] = []

    def chat(body: Json) -> tuple[int, Json]:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionAbortedError  # the handler dies: the client sees a closed connection
        return 200, said()

    script = Script(chat)
    with serving(script) as url:
        subject = endpoint_subject(url, retries=1)
        subject.client.sleep = lambda _: None
        ((_, reply),) = subject.replies([ASKED], [SETTINGS])
    assert isinstance(reply, ChatReply) and len(calls) == 2


def test_nothing_at_the_address_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"127.0.0.1:{port}(.|\n)*refused(.|\n)*is the server running"):
        endpoint_subject(f"http://127.0.0.1:{port}", "tiny")
    assert time.monotonic() - began < 2.0


def test_an_unknown_model_is_told_with_those_there_are() -> None:
    known = {"data": [{"id": "meta/llama-3"}, {"id": "qwen3"}]}
    script = Script(lambda body: (200, said()), models=(200, known))
    assert "did you mean qwen3?" in failure(script, model="qwen-3")
    assert "meta/llama-3, qwen3" in failure(script), "without a name where there are several"
    gone = Script(lambda body: (404, {"message": "The model `x` does not exist."}), models=(404, {}))
    assert "usually ends in /v1" in failure(gone, model="x")
    later = Script(lambda body: (404, {"message": "no such model"}), models=(200, {"data": []}))
    assert "has no model 'x'" in failure(later, model="x")


def test_a_page_instead_of_an_api_is_told() -> None:
    page = "<html>Welcome to nginx!</html>"
    text = failure(Script(lambda body: (200, page), models=(404, page)), model="x")
    assert "text/html" in text and "Welcome to nginx" in text
    assert "no object" in failure(Script(lambda body: (200, b"[]")), model="tiny")
    assert "no choices" in failure(Script(lambda body: (200, {"choices": []})))


@pytest.mark.parametrize("status", [301, 302, 307])
@pytest.mark.parametrize("where", ["chat", "models"])
def test_a_redirect_is_told_and_not_followed(where: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    other = Script(lambda body: (200, said()))
    with serving(other) as elsewhere:
        headers = {"Location": f"{elsewhere}/v1"}
        moved = Script(lambda body: (status, {}), headers=headers)
        if where == "models":
            moved.models = (status, {})
        assert f"give the address that it names: {elsewhere}" in failure(moved)
    assert other.paths == []


@pytest.mark.parametrize("where", ["chat", "models"])
def test_a_key_that_isn_t_accepted_is_never_shown(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    refusal = (401, {"error": {"message": f"Incorrect API key provided: {SECRET}."}})
    script = Script(lambda body: refusal)
    if where == "models":
        script.models = refusal
    text = failure(script, key_env="MY_KEY")
    assert "$MY_KEY" in text and "Incorrect API key provided: ***" in text and SECRET not in text
    assert script.keys == ([f"Bearer {SECRET}"] if where == "chat" else [])
    monkeypatch.delenv("MY_KEY")
    assert "sent no key" in failure(script, key_env="MY_KEY")


def test_the_key_is_in_no_repr_identity_or_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(Script(lambda body: (500, f"it was {SECRET}"))) as url:
        subject = endpoint_subject(url, retries=0)
        with pytest.raises(UserError) as caught:
            list(subject.replies([ASKED], [SETTINGS]))
        assert subject.identity() == f"{url}/v1 tiny (choice by logprobs)" and subject.name == "tiny"
    assert SECRET not in repr(subject) + subject.identity() + caught.value.full_text()
    monkeypatch.setenv("OPENAI_API_KEY", "Bearer sk-1")
    with pytest.raises(UserError, match="characters that no key has") as caught:
        endpoint_subject(url)
    assert "sk-1" not in caught.value.full_text()


def test_a_failure_ends_all_requests() -> None:
    def chat(body: Json) -> tuple[int, Json]:
        time.sleep(0.02)
        return (422, {"message": "no"}) if "bad" in str(body) else (200, said())

    script = Script(chat)
    asked = [Conversation((Message.of("user", "bad" if number == 2 else "good"),)) for number in range(200)]
    with serving(script) as url:
        subject = endpoint_subject(url, concurrency=4, retries=0)
        with pytest.raises(UserError, match="HTTP 422"):
            list(subject.replies(asked, [SETTINGS] * 200))
        time.sleep(0.2)
        assert len(script.seen) <= 12


def test_no_more_requests_at_a_time_than_asked_and_answers_as_they_come() -> None:
    running, most = [0], [0]

    def chat(body: Json) -> tuple[int, Json]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05 if "slow" in str(body["messages"]) else 0.005)
        running[0] -= 1
        return 200, said()

    asked = [Conversation((Message.of("user", "slow" if n == 0 else "quick"),)) for n in range(8)]
    with serving(Script(chat)) as url:
        order = [number for number, _ in endpoint_subject(url, concurrency=2).replies(asked, [SETTINGS] * 8)]
    assert sorted(order) == list(range(8)) and order[0] != 0 and most[0] == 2
