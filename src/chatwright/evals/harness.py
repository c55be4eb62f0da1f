"""EleutherAI's lm-evaluation-harness over our engine: its three kinds of request, its rules, our speed.

Written for lm-eval 0.4.13 (`lm_eval.api.model.LM`). What a number means there is kept: how context and continuation
are encoded, what is cut where a text is too long, how a long text is rolled through the context. How it is computed is
ours: all requests of a call at once, a prefix that several share computed once. Loading models by name is `recipes`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from chatwright.console import progress
from chatwright.errors import ConfigError, UserError
from chatwright.evals.harness_text import HarnessText
from chatwright.inference.completion import Completer
from chatwright.inference.engine import Engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.runtime import Runtime
from chatwright.settings import build
from chatwright.templates.twin import Place

MAX_NEW_TOKENS = 256
"""What lm-eval's models generate at most where a task doesn't say."""
BLOCK = 512
"""Requests scored in one call of the engine: what an interrupted run with `--use_cache` may lose."""
_LIMIT_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
_WITHOUT_EFFECT = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}

Pair = tuple[list[int], list[int]]


class HarnessModel(LM):  # type: ignore[misc]
    """One model as lm-eval sees it.

    Args:
        engine: stops where the model's replies stop.
        text: encodes, renders and decodes.
        runtime: this process among its ranks; lm-eval deals the documents out to them.
        max_length: tokens that one request may take; the model's context when None.
        seed: of what is sampled.
    """

    def __init__(
        self, engine: Engine, text: HarnessText, runtime: Runtime, *, max_length: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.engine, self.text, self.seed = engine, text, seed
        self._rank, self._world_size = runtime.rank, runtime.world_size
        self._device = torch.device("cpu")  # where lm-eval makes the counts that the ranks exchange
        # Ranks may finish hours apart, so theirs is a group that waits for a day.
        many = runtime.world_size > 1
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1)) if many else None
        context = engine.model.max_positions
        if max_length is not None and not 1 < max_length <= context:
            message = f"must lie between 2 and the model's context of {context} tokens, found {max_length}"
            raise UserError(message, place="max_length", hint="leave it out to use the whole context")
        self.max_length: int = max_length or context

    # Log-likelihoods

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether greedy decoding would have written it.

        Raises:
            UserError: a continuation is empty, or longer than the model's context.
        """
        arguments = [request.args for request in requests]
        pairs = self.text.encode_pairs([(context, continuation) for context, continuation, *_ in arguments])
        return self._scored(pairs, "scoring", arguments)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, rolled through the context in windows.

        The first window begins with the prefix token; each further one takes as many tokens as the context holds and
        scores those that none before it has (`lm_eval.utils.get_rolling_token_windows` with a context of 1).
        """
        texts = [request.args[0] for request in requests]
        windows = [self._windows(ids) for ids in self.text.encode(texts)]
        flat = [window for each in windows for window in each]
        scored = iter(self._scored(flat, "scoring windows"))
        totals = [sum(next(scored)[0] for _ in each) for each in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return [float(total) for total in totals]

    def _windows(self, ids: list[int]) -> list[Pair]:
        made = get_rolling_token_windows(
            token_list=ids, prefix_token=self.text.prefix, max_seq_len=self.max_length, context_len=1
        )
        return [make_disjoint_window(window) for window in made]

    def _scored(
        self, pairs: Sequence[Pair], doing: str, arguments: Sequence[tuple[Any, ...]] | None = None
    ) -> list[tuple[float, bool]]:
        """The sum of each continuation's log-probabilities and whether it is the greedy one; `arguments` are cached."""
        prompts = [self._fitting(*pair) for pair in pairs]
        # Requests with a common beginning stand together, so that it is computed once.
        order = sorted(range(len(pairs)), key=lambda number: (prompts[number], pairs[number][1]))
        results: dict[int, tuple[float, bool]] = {}
        with progress(len(pairs), doing, "requests") as bar:
            for block in _blocks(order):
                found = self.engine.score([prompts[n] for n in block], [pairs[n][1] for n in block])
                for number, scored in zip(block, found, strict=True):
                    results[number] = (sum(scored.logprobs), scored.is_greedy)
                    if arguments is not None:
                        self.cache_hook.add_partial("loglikelihood", arguments[number], results[number])
                bar.advance(len(block))
        return [results[number] for number in range(len(pairs))]

    def _fitting(self, context: list[int], continuation: list[int]) -> list[int]:
        """The end of the context that fits before the continuation; its last token need not go through the model.

        Raises:
            UserError: there is nothing to score, or no room for a context.
        """
        if not continuation:
            raise UserError(
                "a continuation without a token of its own: it melts into the end of its context",
                place="lm-eval request",
                hint="check the task's doc_to_choice, doc_to_target and target_delimiter",
            )
        if len(continuation) > self.max_length:
            message = f"a continuation of {len(continuation):,} tokens, and the context holds {self.max_length:,}"
            raise UserError(message, place="lm-eval request", hint="leave this task out, or take another model")
        return context[-(self.max_length + 1 - len(continuation)) :]

    # Generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop text, a stop token or the bound on tokens.

        Raises:
            UserError: a setting that is unknown here, or a bound that leaves no room for the context.
        """
        arguments = [request.args for request in requests]
        settings = [self._settings(each[1]) for each in arguments]
        encoded = self.text.encode([each[0] for each in arguments])
        prompts = [ids[-self._room(each) :] for ids, each in zip(encoded, settings, strict=True)]
        # From the first token's own text, without a blank before it: transformers decodes a reply on its own, too.
        completer = Completer(self.engine, self.text.tokenizer, Place.START)
        results: dict[int, str] = {}
        with progress(len(requests), "generating", "requests") as bar:
            for number, completion in completer.finished(prompts, settings):
                results[number] = completion.text
                self.cache_hook.add_partial("generate_until", arguments[number], completion.text)
                bar.advance()
        return [results[number] for number in range(len(requests))]

    def _room(self, settings: SamplingSettings) -> int:
        room = self.max_length - settings.max_new_tokens
        if room < 1:
            raise UserError(
                f"the task generates up to {settings.max_new_tokens:,} tokens, and the context holds "
                f"{self.max_length:,}: no room for a prompt",
                place="max_gen_toks",
                hint="lower it: --gen_kwargs max_gen_toks=N",
            )
        return room

    def _settings(self, given: Mapping[str, Any]) -> SamplingSettings:
        """A task's `generation_kwargs` as ours: greedy unless `do_sample`, or a temperature above 0, says otherwise."""
        left = {name: value for name, value in given.items() if value is not None}
        until = left.pop("until", ())
        limits = [left.pop(name) for name in _LIMIT_NAMES if name in left]
        chosen = {name: left.pop(name) for name in _SAMPLING if name in left}
        drawn = left.pop("do_sample", float(chosen.get("temperature", 0.0)) > 0)
        unknown = [name for name, value in left.items() if _WITHOUT_EFFECT.get(name) != value]
        if unknown:
            known = ", ".join(("until", "do_sample", *_LIMIT_NAMES, *_SAMPLING))
            raise ConfigError([f"{name}: not known here; known: {known}" for name in unknown], source="gen_kwargs")
        if drawn:
            chosen["temperature"] = chosen.get("temperature", 1.0)
        else:
            chosen = {name: value for name, value in chosen.items() if name == "repetition_penalty"}
        stop = (until,) if isinstance(until, str) else tuple(until)
        limit = int(limits[0]) if limits else MAX_NEW_TOKENS
        fields = {**chosen, "stop": stop, "max_new_tokens": limit, "seed": self.seed}
        return build(SamplingSettings, fields, "gen_kwargs")

    # Ranks

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """A number of each rank, on every rank: `[W]`."""
        gathered = [torch.zeros_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(gathered, tensor, group=self._group)
        return torch.stack(gathered)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """What each rank gives, on rank `dst`; None on the others."""
        gathered = [None] * self.world_size if self.rank == dst else None
        dist.gather_object(obj, gathered, dst, group=self._group)
        return gathered

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self._group)

    # Chat templates and names

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a history by the model's template; a last assistant message (`gen_prefix`) stays open.

        Raises:
            TemplateError: the template can't render it (lm-eval's `hf` would leave the system message out instead).
        """
        return self.text.render(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's Jinja text, for lm-eval's records; None where none is applied.

        Raises:
            UserError: another template than the model's own is asked for by name.
        """
        if chat_template is False or chat_template is None:
            return None
        if isinstance(chat_template, str) and chat_template != "default":
            hint = "leave the name out: --apply_chat_template; a model has the template it was trained with"
            raise UserError(f"there is no choice of templates here, found {chat_template!r}", hint=hint)
        return self.text.template.jinja

    @property
    def tokenizer_name(self) -> str:
        """Names what decides how requests are built, for lm-eval's cache of them."""
        return f"chatwright-{self.text.template.identity[:16]}"


def _blocks(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), BLOCK):
        yield numbers[start : start + BLOCK]
