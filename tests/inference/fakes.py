"""A tokenizer without merges, and a model that has learned its training examples by heart and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from chatwright.layouts import SegmentLayout
from chatwright.models.config import DecoderConfig, RopeConfig
from chatwright.models.kv_cache import KVCache
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.tokenizer import TextTokenizer

UNTRAINED_TOKEN = 7
"""What the model says where training taught it nothing."""


def byte_tokenizer(folder: Path, control: Sequence[str] = (), chat_template: str | None = None) -> TextTokenizer:
    """One id a byte, then the control tokens; so every UTF-8 character beyond ASCII takes several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(control))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": chat_template} if chat_template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return TextTokenizer.load(folder)


class OneHotHead:
    """Logits that are all but certain of the id that stands in the hidden state."""

    def __init__(self, num_columns: int) -> None:
        self.num_columns = num_columns

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[N, 1]` ids → `[N, V]`."""
        return 50.0 * nn.functional.one_hot(hidden[:, 0].long(), self.num_columns).float()


class ModelThatLearnedByHeart(nn.Module):
    """Predicts each supervised token of its examples from exactly the tokens before it; else `UNTRAINED_TOKEN`.

    So a reply comes out as in training only if prompt, forced tokens and stops are what training showed.
    """

    def __init__(self, examples: Sequence[RenderedExample], num_columns: int, max_positions: int = 4096) -> None:
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros(1))
        self.config = DecoderConfig(
            family="llama",
            vocab_size=num_columns,
            hidden_size=1,
            intermediate_size=1,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=1,
            max_positions=max_positions,
            layer_windows=(None,),
            ropes=(RopeConfig(),),
            layer_ropes=(0,),
            attention_scale=1.0,
        )
        self.seen: list[int] = []  # the last row's tokens
        self.learned = {
            tuple(example.ids[:n].tolist()): int(example.ids[n])
            for example in examples
            for n in range(1, len(example.ids))
            if example.weights[n] > 0
        }

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        layout: SegmentLayout,
        cache: KVCache,
        cache_rows: Sequence[int],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The predicted id after each token, as hidden state `[T, 1]`."""
        cache.check_room(cache_rows, layout.lengths_q)
        answers: list[int] = []
        for row, new in zip(cache_rows, input_ids.split(layout.lengths_q), strict=True):
            keys = cache.keys[0, row, 0, :, 0]  # a token's key is its id, so that the cache alone tells what was seen
            for place, token in enumerate(new.tolist(), start=cache.lengths[row]):
                assert int(position_ids[len(answers)]) == place
                keys[place] = token
                seen = tuple(int(key) for key in keys[: place + 1].tolist())
                answers.append(self.learned.get(seen, UNTRAINED_TOKEN))
                self.seen = list(seen)
        cache.advance(cache_rows, layout.lengths_q)
        return torch.tensor(answers)[:, None].float(), {}

    @property
    def max_positions(self) -> int:
        """Of its config."""
        return self.config.max_positions

    def cache_token_bytes(self) -> int:
        """One byte, so that any number of rows fits."""
        return 1

    def new_cache(self, num_rows: int, capacity: int) -> KVCache:
        """Lengths are all that is used of it."""
        return KVCache(self.config, num_rows, capacity)

    def output_head(self) -> OneHotHead:
        """See `OneHotHead`."""
        return OneHotHead(self.config.vocab_size)
