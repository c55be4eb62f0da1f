"""Batched generation with a KV cache. Knows token ids and nothing else: no text, no template, no tool.

A request waits until there is room, is prefilled (without what another row holds already), then decodes together with
the others and leaves when it is done (`batch`). Whoever knows the meaning of tokens can put more of them into a reply
through a `Controller` (tool results), and the model goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from chatwright.inference.batch import Batch, fits
from chatwright.inference.drawing import Drawer
from chatwright.inference.requests import Controller, Reply, Request, Scored, StreamedToken
from chatwright.inference.sampling import SamplingSettings
from chatwright.models.foreign import ForeignLM
from chatwright.models.transformer import CausalLM


class Engine:
    """Generates token ids from token ids.

    Args:
        model: the language model, ours or one of transformers; its device and dtype are used as they are.
        stop_ids: tokens that end a reply.
        num_tokens: ids of the tokenizer; columns of the logits beyond it are padding and never drawn.
        never_ids: further ids that are never drawn: those that only a controller may write.
        cache_bytes: memory for keys and values; as many rows run at once as fit. A request that alone needs more is
            refused.
        max_rows: bound on the rows that run at once, whatever fits.
        prefill_tokens: prompts are prefilled together up to this many tokens (one prompt always goes whole).
    """

    def __init__(
        self,
        model: CausalLM | ForeignLM,
        *,
        stop_ids: Sequence[int],
        num_tokens: int | None = None,
        never_ids: Sequence[int] = (),
        cache_bytes: int = 2**30,
        max_rows: int = 64,
        prefill_tokens: int = 4096,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be 1 or more, found {max_rows}")
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.num_tokens, self.never_ids = num_tokens, tuple(never_ids)
        self.cache_bytes, self.max_rows, self.prefill_tokens = cache_bytes, max_rows, prefill_tokens

    def open(self) -> Batch:
        """An empty batch, which requests may join and leave while it runs. The caller keeps the model in `eval()`."""
        return Batch(
            self.model,
            Drawer(self.model, self.num_tokens, self.never_ids),
            stop_ids=self.stop_ids,
            cache_bytes=self.cache_bytes,
            max_rows=self.max_rows,
            prefill_tokens=self.prefill_tokens,
        )

    def has_room(self, prompt_tokens: int, reply_tokens: int) -> bool:
        """Whether a prompt of this length can be answered: in the model's context, and within `cache_bytes`."""
        need = min(prompt_tokens + reply_tokens, self.model.max_positions)
        return prompt_tokens < self.model.max_positions and fits(self.model, 1, need, self.cache_bytes)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        controller: Controller | None = None,
    ) -> list[Reply]:
        """The replies to all prompts, in their order.

        Raises:
            ModelError: as `stream` does.
        """
        replies = [Reply() for _ in prompts]
        for token in self.stream(prompts, settings, controller):
            replies[token.row].add(token)
        return replies

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        controller: Controller | None = None,
    ) -> Iterator[StreamedToken]:
        """Tokens of all replies as they come, rows interleaved. Close the iterator to cancel.

        Raises:
            ModelError: for a prompt that can't be used (`Batch.submit`), or logits that are not finite.
        """
        return self.run(requests_for(prompts, settings, controller))

    def run(self, requests: Iterable[Request]) -> Iterator[StreamedToken]:
        """The tokens of all requests as they come; a token's `row` is the place of its request."""
        with evaluating(self.model):
            batch = self.open()
            for request in requests:
                batch.submit(request)
            batch.sort_waiting()
            while not batch.idle:
                yield from batch.step()

    def choose(self, prompts: Sequence[Sequence[int]], allowed: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each prompt the log-probability (over the whole vocabulary) of each allowed id as the next token."""
        one = SamplingSettings(max_new_tokens=1)
        requests = [Request(prompt, one, allowed=ids) for prompt, ids in zip(prompts, allowed, strict=True)]
        found: list[list[float]] = [[] for _ in requests]
        for token in self.run(requests):
            found[token.row] = list(token.allowed_logprobs)
        return found

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Scored]:
        """The log-probability of each token of each continuation, and whether greedy decoding would give them all."""
        requests = [Request(prompt, targets=ids) for prompt, ids in zip(prompts, continuations, strict=True)]
        tokens: list[list[StreamedToken]] = [[] for _ in requests]
        for token in self.run(requests):
            if token.token_id >= 0:
                tokens[token.row].append(token)
        return [
            Scored([token.logprob for token in row if token.logprob is not None], all(token.is_best for token in row))
            for row in tokens
        ]


def requests_for(
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings | Sequence[SamplingSettings],
    controller: Controller | None = None,
) -> list[Request]:
    """One request a prompt; equal prompts with equal seeds are numbered, so that they draw different replies."""
    many = [settings] * len(prompts) if isinstance(settings, SamplingSettings) else settings
    copies: dict[tuple[int, tuple[int, ...]], int] = {}
    requests = []
    for prompt, each in zip(prompts, many, strict=True):
        same = (each.seed, tuple(prompt))
        copies[same] = copies.get(same, -1) + 1
        requests.append(Request(prompt, each, copies[same], controller))
    return requests


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout inside; the model's mode as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
