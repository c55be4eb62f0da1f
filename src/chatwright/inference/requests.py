"""What is asked of the engine and what comes back: token ids and numbers, no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from chatwright.inference.sampling import SamplingSettings

GREEDY = SamplingSettings()
"""The likeliest token, always."""

StopReason = Literal["stop", "length", "controller", "cancelled"]
"""`stop`: a stop token was drawn. `length`: `max_new_tokens` or the model's context is used up.
`controller`: the controller ended the reply. `cancelled`: its request was taken back."""


class Controller(Protocol):
    """Watches the tokens of the replies and may force what comes next."""

    def on_token(self, row: int, token_id: int) -> Sequence[int] | None:
        """Called with each *drawn* token of request number `row` but the last.

        Returns:
            Ids that follow the token in the reply, mostly none of them; None ends the reply.
        """


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered.

    Args:
        prompt: ids; at least one.
        settings: how the reply is drawn.
        copy: which one of several replies to the same prompt: copies draw other random numbers.
        controller: may force tokens, or end the reply.
        allowed: the reply is drawn among these ids alone (restricted choice), and each of its tokens comes with the
            log-probabilities of all of them.
        targets: the reply is known: nothing is drawn, each target comes with its log-probability.
    """

    prompt: Sequence[int]
    settings: SamplingSettings = GREEDY
    copy: int = 0
    controller: Controller | None = None
    allowed: Sequence[int] | None = None
    targets: Sequence[int] | None = None


class StreamedToken(NamedTuple):
    """One token of a reply, as soon as it exists.

    Args:
        row: the number of its request.
        logprob: the model's log-probability of the token; None for a forced one.
        stop_reason: set on the last token of the reply, None before. A request that is cancelled, or has no targets,
            ends with `token_id` −1.
        allowed_logprobs: of the request's `allowed` ids, in their order.
        is_best: with targets, whether the model would have drawn the token, too.
    """

    row: int
    token_id: int
    logprob: float | None
    stop_reason: StopReason | None
    allowed_logprobs: tuple[float, ...] = ()
    is_best: bool = True


@dataclass(slots=True)
class Reply:
    """Everything after the prompt: drawn and forced tokens, the stop token last where one was drawn.

    `logprobs` is as long as `ids`, None for forced tokens.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    stop_reason: StopReason = "length"

    def add(self, token: StreamedToken) -> None:
        """Take the next token of this reply."""
        if token.token_id >= 0:
            self.ids.append(token.token_id)
            self.logprobs.append(token.logprob)
        self.stop_reason = token.stop_reason or self.stop_reason


@dataclass(frozen=True, slots=True)
class Scored:
    """A continuation judged by the model: the log-probability of each token, and whether greedy decoding gives it."""

    logprobs: list[float]
    is_greedy: bool


@dataclass(slots=True, eq=False)
class Row:
    """A request at work.

    Args:
        number: of the request. key: of its random numbers. limit: bound on the tokens of the reply.
        pending: tokens that the cache does not hold yet; the whole prompt at first.
        held: all tokens that the cache holds. made: tokens of the reply.
        slot: its row of the cache.
    """

    number: int
    request: Request
    key: int
    limit: int
    pending: list[int]
    held: list[int] = field(default_factory=list)
    made: int = 0
    slot: int = -1
    finished: bool = False

    @property
    def need(self) -> int:
        """Tokens of the cache that it may fill."""
        return len(self.request.prompt) + self.limit
