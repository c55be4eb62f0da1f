"""Trained rows of an embedding and its output head: new control tokens are learned, the other rows stay frozen.

T tokens · D hidden size · V vocabulary · R trained rows. `weight` stays the frozen base; the rows stand beside it and
replace it wherever their id is read (`forward`) or scored (`OutputHead.rows`/`row_weights`). This is peft's
`trainable_token_indices`: the rows hold whole values, not differences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from chatwright.errors import ModelError
from chatwright.models.embedding import TokenEmbedding, lookup
from chatwright.models.transformer import CausalLM
from chatwright.models.vocabulary import init_token_rows


class TokenRowEmbedding(TokenEmbedding):
    """An embedding of which some rows are trained apart.

    Attributes:
        token_ids: int64 `[R]`. token_rows: `[R, D]`, trained. slots: int64 `[V]`, the row of each id, or −1.
    """

    token_ids: torch.Tensor
    token_rows: nn.Parameter
    slots: torch.Tensor

    def __init__(self, base: nn.Embedding, ids: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = None, None, 2.0
        self.scale_grad_by_freq, self.sparse = False, False
        _take_over(self, base, ids)
        slots = torch.full((base.num_embeddings,), -1, dtype=torch.int64, device=base.weight.device)
        slots[self.token_ids] = torch.arange(len(ids), device=base.weight.device)
        self.register_buffer("slots", slots, persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """int64 `[T]` → `[T, D]`."""
        slot = self.slots[input]  # [T]
        trained = lookup(slot.clamp(min=0), self.token_rows)  # [T, D]
        return torch.where((slot >= 0).unsqueeze(-1), trained, lookup(input, self.weight))


class TokenRowHead(nn.Linear):
    """An output head of which some rows are trained apart; the losses read it through `OutputHead`.

    Attributes:
        token_ids: int64 `[R]`. token_rows: `[R, D]`, trained.
    """

    token_ids: torch.Tensor
    token_rows: nn.Parameter

    def __init__(self, base: nn.Linear, ids: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        _take_over(self, base, ids)
        self.bias = base.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[T, D]` → `[T, V]`."""
        trained = F.linear(input, self.token_rows)  # [T, R]
        if self.bias is not None:
            trained = trained + self.bias[self.token_ids]
        return F.linear(input, self.weight, self.bias).index_copy(-1, self.token_ids, trained)


def _take_over(module: TokenRowEmbedding | TokenRowHead, base: nn.Embedding | nn.Linear, ids: Sequence[int]) -> None:
    """Share the base's weight, frozen, and start the rows at their present values."""
    module.weight = base.weight
    module.weight.requires_grad_(False)
    module.training = base.training
    token_ids = torch.tensor(list(ids), dtype=torch.int64, device=base.weight.device)
    module.register_buffer("token_ids", token_ids, persistent=False)
    module.token_rows = nn.Parameter(base.weight.detach()[token_ids].clone())


@torch.no_grad()
def _merged_weight(module: TokenRowEmbedding | TokenRowHead) -> nn.Parameter:
    """`[V, D]` with the trained rows in their places."""
    rows = module.token_rows.to(module.weight.dtype)
    return nn.Parameter(module.weight.index_copy(0, module.token_ids, rows), requires_grad=False)


def attach_token_rows(model: nn.Module, ids: Sequence[int], seed: int | None) -> int:
    """Train these rows of the embedding, and of the output head: the same rows if tied, rows of its own if not.

    Args:
        model: our decoder. Its embedding and head are frozen; other parameters stay as they are.
        ids: token ids, each once.
        seed: rows begin as the mean of the others + seeded noise; None keeps their present values.

    Returns:
        How many parameters became trainable.

    Raises:
        ModelError: the model is no `CausalLM`, has trained rows already, or an id is beyond its vocabulary.
    """
    decoder = _require_decoder(model)
    if seed is not None and ids:
        _check_ids(decoder, ids)
        init_token_rows(decoder, ids, seed)
    replace_rows(decoder, embed_ids=ids, head_ids=ids)
    return sum(module.token_rows.numel() for module in row_modules(decoder).values())


def replace_rows(model: nn.Module, *, embed_ids: Sequence[int], head_ids: Sequence[int]) -> None:
    """Put trained rows, at their present values, on the embedding and on an untied head (a tied one follows).

    Raises:
        ModelError: as `attach_token_rows`; or different ids for tied ends.
    """
    decoder = _require_decoder(model)
    for ids in (embed_ids, head_ids):
        _check_ids(decoder, ids)
    if row_modules(decoder):
        raise ModelError("the model has trained token rows already", hint="merge its adapter first")
    if decoder.lm_head is None and list(head_ids) not in ([], list(embed_ids)):
        raise ModelError("embedding and output head are tied, but the adapter trains different rows of them")
    decoder.model.embed_tokens.weight.requires_grad_(False)
    if embed_ids:
        decoder.model.embed_tokens = TokenRowEmbedding(decoder.model.embed_tokens, embed_ids)
    if decoder.lm_head is not None:
        decoder.lm_head.weight.requires_grad_(False)
        if head_ids:
            decoder.lm_head = TokenRowHead(decoder.lm_head, head_ids)


def row_modules(model: nn.Module) -> dict[str, TokenRowEmbedding | TokenRowHead]:
    """The modules with trained rows, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, TokenRowEmbedding | TokenRowHead)}


def merge_token_rows(model: nn.Module) -> int:
    """Write trained rows into their weights and restore plain modules; returns how many rows there were."""
    modules = row_modules(model)
    if not modules:
        return 0
    decoder = _require_decoder(model)
    count = 0
    for module in modules.values():
        count += len(module.token_ids)
        plain: TokenEmbedding | nn.Linear
        if isinstance(module, TokenRowEmbedding):
            plain = TokenEmbedding(module.num_embeddings, module.embedding_dim, device="meta")
            decoder.model.embed_tokens = plain
        else:
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.bias = module.bias
            decoder.lm_head = plain
        plain.weight = _merged_weight(module)
        plain.training = module.training
    return count


def _require_decoder(model: nn.Module) -> CausalLM:
    if not isinstance(model, CausalLM):
        raise ModelError(
            f"token rows can't be trained in a {type(model).__name__}",
            hint="only models that run on our own decoder have them",
        )
    return model


def _check_ids(model: CausalLM, ids: Sequence[int]) -> None:
    beyond = [id_ for id_ in ids if not 0 <= id_ < model.config.vocab_size]
    if beyond:
        raise ModelError(
            f"token id {beyond[0]} is beyond the model's vocabulary of {model.config.vocab_size}",
            hint="resize the vocabulary for the tokenizer first",
        )
    if len(set(ids)) != len(ids):
        raise ModelError("a token id is listed twice among the trained rows")
