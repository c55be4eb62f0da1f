"""A model's vocabulary made larger: rows for added tokens, and how fresh rows begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from chatwright.errors import ModelError
from chatwright.models.transformer import CausalLM


def resize_vocab(model: CausalLM, new_size: int, multiple_of: int = 64) -> int:
    """Make room for a tokenizer of `new_size` ids; the rows are padded to a multiple and the true size is recorded.

    New rows start as the mean of the old ones (`init_token_rows` gives those that will be trained their noise).
    A model that already has the rows keeps its shape. The true size stands in `model.config.tokenizer_vocab_size`
    and in the saved config.json, so that sampling never goes beyond the tokenizer.

    Returns:
        the number of rows that were added.

    Raises:
        ModelError: if the tokenizer has fewer ids than one recorded before.
    """
    old_size = model.config.vocab_size
    recorded = model.config.tokenizer_vocab_size or 0
    if new_size < recorded:
        raise ModelError(
            f"the model was made for {recorded} token ids and can't shrink to {new_size}",
            hint="use the tokenizer that was saved with the model",
        )
    added = 0
    if new_size > old_size:
        added = -(-new_size // multiple_of) * multiple_of - old_size
        for module in _vocabulary_modules(model):
            module.weight = _grown(module.weight, added)
    model.model.embed_tokens.num_embeddings = old_size + added
    if model.lm_head is not None:
        model.lm_head.out_features = old_size + added
    model.config = replace(model.config, vocab_size=old_size + added, tokenizer_vocab_size=new_size)
    return added


def init_token_rows(model: CausalLM, ids: Sequence[int], seed: int) -> None:
    """Give rows that the base model never learned a fresh start: mean of the others + noise of their spread, seeded.

    Applied to the embedding and to a free output head, each with its own mean and per-dimension standard deviation.
    Reserved rows of base models are nearly identical, so without the noise two of them could never be told apart.
    """
    for number, module in enumerate(_vocabulary_modules(model)):
        weight = module.weight
        with torch.no_grad():
            others = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
            others[list(ids)] = False
            known = weight[others].to(torch.promote_types(weight.dtype, torch.float32))
            std, mean = torch.std_mean(known, dim=0)  # [D] each
            for id_ in ids:
                generator = torch.Generator().manual_seed(seed * 1_000_003 + id_ * 2 + number)
                noise = torch.randn(weight.shape[1], generator=generator).to(weight.device)
                weight[id_] = (mean + std * noise).to(weight.dtype)


def _vocabulary_modules(model: CausalLM) -> list[nn.Embedding | nn.Linear]:
    """The embedding, and the output head when it is free."""
    return [model.model.embed_tokens] if model.lm_head is None else [model.model.embed_tokens, model.lm_head]


def _grown(weight: torch.Tensor, added: int) -> nn.Parameter:
    with torch.no_grad():
        mean = weight.to(torch.promote_types(weight.dtype, torch.float32)).mean(0, keepdim=True).to(weight.dtype)
        return nn.Parameter(torch.cat([weight, mean.expand(added, -1)]), requires_grad=weight.requires_grad)
