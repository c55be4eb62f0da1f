"""A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, a provider), measured by the same tasks.

What a server can't be asked the same way is said here, not hidden: seeds are only sent where something is drawn,
letters are weighed by the top of its log-probabilities, and what the protocol has no field for takes the server's own
default (`top_k` and `repetition_penalty` go out only where they are set; vLLM takes them from the model's
generation_config.json unless it was started with `--generation-config vllm`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import DataError, UserError
from chatwright.evals.endpoint_client import EndpointClient, Refused, checked_key
from chatwright.evals.endpoint_messages import Answer, letter_log_probs, openai_messages, read_answer
from chatwright.evals.endpoint_pool import as_they_come
from chatwright.evals.subject import Unanswered
from chatwright.inference.responder import ChatReply, FinishReason
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import CALCULATOR_DEFINITION, ToolBox

ChoiceBy = Literal["logprobs", "text"]
"""How a letter is chosen: by its log-probability as the first token, or by what the model writes."""

NOT_CHOSEN = -math.inf
"""What stands for the log-probability of the letters that a written answer didn't name (the named one has 0)."""
TOO_LONG = "prompt longer than the server's context"
NO_LETTER = "none of the letters is among the likeliest tokens"
NO_WRITTEN_LETTER = "no letter in the written answer"
_TOO_LONG = re.compile(r"context.{0,20}(length|window|size)|maximum.{0,20}(context|length|tokens)|too long", re.I)
_MOST_TOP = 20
_FEWER_TOP = 5
_MAX_TOOL_CALLS = 8


@dataclass
class EndpointSubject:
    """One model of one server, as an evaluation's subject.

    Args:
        client: the server.
        model: the name that it knows the model by.
        concurrency: requests at a time.
        tools: offers the calculator as an OpenAI tool in every request for a reply, and runs its calls here.
        choice_by: `logprobs`, or `text` for servers that tell none: the model writes, and the letter is read.
        choice_tokens: bound on such a written answer, thinking included.
    """

    client: EndpointClient
    model: str
    concurrency: int = 8
    tools: bool = False
    choice_by: ChoiceBy = "logprobs"
    choice_tokens: int = 1024
    toolbox: ToolBox = field(default_factory=ToolBox)
    _limit_name: str = field(default="max_tokens", init=False, repr=False)
    _top: int = field(default=_MOST_TOP, init=False, repr=False)

    @property
    def name(self) -> str:
        """The model's name on the server."""
        return self.model

    def identity(self) -> str:
        """URL, model, and what of the requests changes results."""
        ways = [f"choice by {self.choice_by}", *(["calculator"] if self.tools else [])]
        return f"{self.client.base} {self.model} ({', '.join(ways)})"

    def replies(
        self, conversations: Sequence[Conversation], settings: Sequence[SamplingSettings]
    ) -> Iterator[tuple[int, ChatReply | Unanswered]]:
        """The reply to each conversation with its number, as they finish; the calculator in the loop where asked.

        Token counts are the server's own, 0 where it tells none. `settings.max_new_tokens` bounds all rounds of a reply
        together where the server counts, else each of them.

        Raises:
            UserError: the server can't be used; nothing more is asked of it then.
        """
        yield from as_they_come(
            lambda number: self._reply(conversations[number], settings[number]), len(conversations), self.concurrency
        )

    def choose(
        self, conversations: Sequence[Conversation], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Sequence[float] | Unanswered]]:
        """The log-probability of each letter as the reply's first token, with the conversation's number.

        From the `top_logprobs` of a reply of one token: a letter that isn't listed gets an upper bound below all that
        are; where none is, the question counts as unanswered. With `choice_by: text` the letter that the model wrote
        has 0, the others `NOT_CHOSEN`.

        Raises:
            UserError: the server can't be used, or tells no log-probabilities.
        """
        choose = self._by_logprobs if self.choice_by == "logprobs" else self._by_text
        yield from as_they_come(
            lambda number: choose(conversations[number], letters[number]), len(conversations), self.concurrency
        )

    # Replies

    def _reply(self, conversation: Conversation, settings: SamplingSettings) -> ChatReply | Unanswered:
        messages = openai_messages(conversation)
        definitions = self._definitions(conversation)
        parts: list[Part] = []
        prompt_tokens = reply_tokens = calls_run = 0
        while True:
            body = self._body(messages, conversation, settings, settings.max_new_tokens - reply_tokens)
            answer = self._ask({**body, **({"tools": definitions} if definitions else {})})
            if isinstance(answer, Unanswered):
                return answer
            parts += answer.message.parts
            prompt_tokens, reply_tokens = prompt_tokens or answer.prompt_tokens, reply_tokens + answer.reply_tokens
            reason = _finish_reason(answer)
            calls_run += len(answer.calls)
            if not self.tools or reason != "tool_calls" or calls_run > _MAX_TOOL_CALLS:
                break
            results = [
                Part("tool_result", self.toolbox.run(call.tool, call.text), call.tool, call.call_id)
                for call in answer.calls
            ]
            parts += results
            if reply_tokens >= settings.max_new_tokens:
                reason = "length"
                break
            messages = [*messages, answer.as_request(), *answer.results_as_request(results)]
        return ChatReply(Message("assistant", tuple(parts)), reason, prompt_tokens, reply_tokens)

    def _definitions(self, conversation: Conversation) -> list[Mapping[str, Any]]:
        offered = list(conversation.tools)
        names = {tool.get("function", {}).get("name") for tool in offered}
        if self.tools and CALCULATOR_DEFINITION["function"]["name"] not in names:
            offered.append(CALCULATOR_DEFINITION)
        return offered

    def _body(
        self,
        messages: Sequence[Mapping[str, Any]],
        conversation: Conversation,
        settings: SamplingSettings,
        max_tokens: int,
    ) -> dict[str, Any]:
        """A request, without tools."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "temperature": settings.temperature,
            "max_tokens": max_tokens,
        }
        if settings.temperature > 0:
            body |= {"top_p": settings.top_p, "seed": settings.seed}
        if settings.top_k is not None:
            body["top_k"] = settings.top_k
        if settings.repetition_penalty != 1.0:
            body["repetition_penalty"] = settings.repetition_penalty
        if settings.stop:
            body["stop"] = list(settings.stop)
        if conversation.variables:
            body["chat_template_kwargs"] = dict(conversation.variables)
        return body

    # Letters

    def _by_logprobs(self, conversation: Conversation, letters: Sequence[str]) -> list[float] | Unanswered:
        # Greedy, so that the drawn token is the likeliest: a server that lists another one in the top's place would
        # make the bound of the letters that aren't listed too low.
        settings = SamplingSettings(max_new_tokens=1)
        body = self._body(openai_messages(conversation), conversation, settings, 1)
        answer = self._ask({**body, "logprobs": True, "top_logprobs": self._top})
        if isinstance(answer, Unanswered):
            return answer
        if answer.top is None:
            raise self._no_logprobs("its answers hold none")
        return letter_log_probs(letters, answer.top) or Unanswered(NO_LETTER)

    def _by_text(self, conversation: Conversation, letters: Sequence[str]) -> list[float] | Unanswered:
        settings = SamplingSettings(max_new_tokens=self.choice_tokens)
        body = self._body(openai_messages(conversation), conversation, settings, self.choice_tokens)
        answer = self._ask(body)
        if isinstance(answer, Unanswered):
            return answer
        letter = written_letter(answer.message.text, letters)
        if letter is None:
            return Unanswered(NO_WRITTEN_LETTER)
        return [0.0 if each == letter else NOT_CHOSEN for each in letters]

    def _no_logprobs(self, reason: str) -> UserError:
        hint = "let the model write its answer, and read the letter from it: --choice-by text"
        return UserError(f"tells no log-probabilities: {reason}", place=self.client.base, hint=hint)

    # Asking

    def _ask(self, body: dict[str, Any]) -> Answer | Unanswered:
        """One answer; a refusal is met by the other way of asking, where there is one."""
        while True:
            body = self._worded(body)
            try:
                answer = read_answer(self.client.chat(body), self.client.base)
            except Refused as refused:
                if _TOO_LONG.search(refused.text):
                    room = _room(refused.text)
                    if not 0 < room < body[self._limit_name]:
                        return Unanswered(TOO_LONG)
                    body[self._limit_name] = room
                elif not self._another_way(body, refused):
                    raise self._refusal(body, refused) from None
                continue
            except DataError as error:
                return Unanswered(f"an answer that can't be read: {error.message}")
            if answer.finish_reason == "content_filter":
                return Unanswered("stopped by the server's content filter")
            return answer

    def _worded(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The request in the words that this server takes."""
        worded = dict(body)
        worded[self._limit_name] = worded.pop("max_tokens", None) or worded.pop("max_completion_tokens")
        if "top_logprobs" in worded:
            worded["top_logprobs"] = self._top
        return worded

    def _another_way(self, body: Mapping[str, Any], refused: Refused) -> bool:
        """Whether the same may be asked in other words, which are kept for all further requests."""
        if "max_tokens" in body and "max_completion_tokens" in refused.text:  # OpenAI's newer models
            self._limit_name = "max_completion_tokens"
            return True
        if body.get("top_logprobs") == _MOST_TOP and "logprob" in refused.text:  # some servers list 5 at most
            self._top = _FEWER_TOP
            return True
        return False

    def _refusal(self, body: Mapping[str, Any], refused: Refused) -> UserError:
        if "logprobs" in body and "logprob" in refused.text:
            return self._no_logprobs(f"HTTP {refused.status}: {refused.text}")
        hint = None
        if "tools" in body and "tool" in refused.text:
            hint = "start the server with tool calls (vLLM: --enable-auto-tool-choice), or leave --endpoint-tools off"
        return UserError(
            f"refuses a request (HTTP {refused.status}): {refused.text}", place=self.client.base, hint=hint
        )


def _finish_reason(answer: Answer) -> FinishReason:
    """Ours for the server's; some say `stop` for an answer that ends in calls."""
    if answer.calls:
        return "tool_calls"
    return "length" if answer.finish_reason == "length" else "stop"


def _room(text: str) -> int:
    """The tokens that a reply may have at most, from a refusal of more that tells context and prompt; 0 where not.

    vLLM refuses a request whose prompt fits and whose `max_tokens` doesn't; ours ends such a reply at the context.
    """
    context = re.search(r"maximum context length is (\d+)", text)
    prompt = re.search(r"has (?:at least )?(\d+) input tokens|\((\d+) in the (?:messages|prompt)", text)
    if context is None or prompt is None:
        return 0
    return int(context[1]) - int(prompt[1] or prompt[2])


def written_letter(text: str, letters: Sequence[str]) -> str | None:
    """The letter that a written answer names, or None.

    Read in this order: the whole answer is the letter, but for punctuation; it begins with the letter and punctuation
    (`B) because …`); the last `answer is B`, `Answer: (B)` or `\\boxed{B}` in it.
    """
    one = "|".join(re.escape(letter) for letter in letters)
    said = text.strip()
    found = re.fullmatch(rf"[\s(\[*`]*({one})[\s)\].:*`]*", said) or re.match(rf"[(\[*`]*({one})[)\].:,*`]", said)
    if found:
        return found[1]
    # "A cold virus" names no letter, and "A or B" no single one.
    alone = rf"({one})(?![\w'])(?!\s+(?:or|and)\s)(?!(?<=A)\s+(?!because|since)[a-z])"
    before = r"(?i:answer)(?:\s+is)?(?i:\s+(?:option|choice|letter))?[\s:*(`\[$]*"
    named = re.findall(rf"{before}{alone}|\\boxed\{{(?:\\text\{{)?\(?({one})\)?\}}", said)
    return next((letter for letter in named[-1] if letter), None) if named else None


def endpoint_subject(
    url: str,
    model: str | None = None,
    *,
    key_env: str = "OPENAI_API_KEY",
    timeout: float = 600.0,
    retries: int = 6,
    concurrency: int = 8,
    tools: bool = False,
    choice_by: ChoiceBy = "logprobs",
) -> EndpointSubject:
    """The subject for `chatwright eval --endpoint URL --endpoint-model NAME`, once the server has answered.

    Args:
        url: the server, with or without `/v1`.
        model: its name there; None where the server has only one.
        key_env: the environment variable that holds the key; an unset one means none.
        tools: see `EndpointSubject`, as for `concurrency` and `choice_by`.

    Raises:
        UserError: nothing answers there, the key isn't accepted, or there is no such model.
    """
    key = checked_key(os.environ.get(key_env), key_env)
    client = EndpointClient(url, key, timeout=timeout, retries=retries, key_name=key_env)
    # The first contact fails at once; a server that goes away later is waited for.
    known = replace(client, timeout=min(timeout, 30.0)).models(retries=0)
    if model is None:
        if not known or len(known) > 1:
            listed = f"the server has {', '.join(known[:20])}" if known else "the server doesn't tell its models"
            raise UserError("which model?", place=client.base, hint=f"give --endpoint-model; {listed}")
        model = known[0]
    elif known and model not in known:
        raise client.unknown_model(model, known)
    return EndpointSubject(
        client, model, concurrency=max(1, concurrency), tools=tools, choice_by=choice_by, toolbox=ToolBox()
    )
