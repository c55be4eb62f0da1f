"""Any other causal language model of transformers behind the same `forward` and `output_head`.

S segments · L the longest · T flat tokens · D hidden size. Flat batches are unpacked to right-padded rows inside.
transformers is loaded on first use only. A model is probed when it is loaded: one whose segments see each other or the
padding, or whose logits aren't a linear function of its hidden states, is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chatwright.errors import ModelError
from chatwright.layouts import SegmentLayout
from chatwright.models.families import config_from_hf
from chatwright.models.output_head import OutputHead
from chatwright.models.transformer import CausalLM
from chatwright.models.weights import load_model, read_config

_BOUND = {torch.float32: 1e-4, torch.float64: 1e-9}
_HALF_BOUND = 0.05


class ForeignCache:
    """Earlier tokens of some conversations: their ids, and the model's own cache where it is up to date.

    The same calls as `KVCache`. A row that was cut, or copied from another, is run again from its ids: right for every
    architecture.
    """

    shares_prefixes = False
    """A copied row is computed again, so that copying saves nothing."""

    def __init__(self, num_rows: int, capacity: int) -> None:
        self.num_rows, self.capacity = num_rows, capacity
        self.ids: list[list[int]] = [[] for _ in range(num_rows)]
        self.past: list[Any] = [None] * num_rows

    @property
    def lengths(self) -> list[int]:
        """Tokens in each row."""
        return [len(ids) for ids in self.ids]

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row."""
        if not 0 <= length <= len(self.ids[row]):
            raise ValueError(f"row {row} has {len(self.ids[row])} tokens and can't be cut to {length}")
        self.ids[row], self.past[row] = self.ids[row][:length], None

    def reset(self, row: int) -> None:
        """Empty a row for another conversation."""
        self.truncate(row, 0)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the first `length` tokens of `source`."""
        if not 0 <= length <= len(self.ids[source]):
            raise ValueError(f"row {source} has {len(self.ids[source])} tokens and can't give {length}")
        past = self.past[source] if length == len(self.ids[source]) and source == target else None
        self.ids[target], self.past[target] = self.ids[source][:length], past

    def resized(self, num_rows: int, capacity: int, rows: Sequence[int]) -> ForeignCache:
        """A cache of another size that holds these rows in its first rows, in the order given."""
        other = ForeignCache(num_rows, capacity)
        for target, source in enumerate(rows):
            other.ids[target], other.past[target] = self.ids[source], self.past[source]
        return other

    def move(self, source: int, target: int) -> None:
        """Make `target` what `source` is, and empty `source`."""
        self.ids[target], self.past[target] = self.ids[source], self.past[source]
        self.ids[source], self.past[source] = [], None


class ForeignLM(nn.Module):
    """A transformers model with Chatwright's interface; parameter names are the model's own.

    Attributes:
        config: the transformers config.
        hf: the transformers model (its submodules are this module's).
    """

    def __init__(self, hf: Any) -> None:
        super().__init__()
        object.__setattr__(self, "hf", hf)
        # The same dictionaries, not copies: what an adapter replaces here is replaced there, and no name gets a prefix.
        self._modules, self._parameters, self._buffers = hf._modules, hf._parameters, hf._buffers
        self.config = hf.config
        self.training = hf.training
        self.hf: Any

    @property
    def max_positions(self) -> int:
        """Tokens of its context; without bound where the architecture has none (recurrent models)."""
        return int(getattr(self.config, "max_position_embeddings", None) or sys.maxsize)

    def cache_token_bytes(self) -> int:
        """Memory for the keys and values of one token, as if every layer kept them for every head."""
        config = self.config
        return 2 * config.num_hidden_layers * config.hidden_size * next(self.parameters()).itemsize

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ForeignLM:
        """Move or cast, but never round the rotary frequencies: transformers keeps them in float32, too."""
        exact = {name: buffer for name, buffer in self.named_buffers() if name.endswith("inv_freq")}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            owner, _, leaf = name.rpartition(".")
            moved = self.get_buffer(name)
            setattr(self.get_submodule(owner), leaf, buffer.to(moved.device))
        return self

    @property
    def checkpoint_activations(self) -> bool:
        """Whether layers are recomputed in the backward (transformers' gradient checkpointing)."""
        return bool(self.hf.is_gradient_checkpointing)

    @checkpoint_activations.setter
    def checkpoint_activations(self, wanted: bool) -> None:
        if wanted:
            self.hf.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.hf.gradient_checkpointing_disable()

    def new_cache(self, num_rows: int, capacity: int) -> ForeignCache:
        """An empty cache for `forward`."""
        return ForeignCache(num_rows, capacity)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        layout: SegmentLayout,
        cache: ForeignCache | None = None,
        cache_rows: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Hidden states before the output head `[T, D]`; see `CausalLM.forward`.

        Raises:
            ModelError: for segments that share a prefix, or a cache row that overflows.
        """
        if cache is not None:
            rows = tuple(cache_rows if cache_rows is not None else range(layout.num_segments))
            return self._run_cached(input_ids, layout.lengths_q, cache, rows), {}
        if layout.kv_gather is not None:
            raise ModelError(
                f"segments of a {self.config.model_type} model can't share a prefix",
                hint="repeat the prompt for each reply",
            )
        lengths, device = layout.lengths_q, input_ids.device
        row = torch.repeat_interleave(
            torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device), output_size=len(input_ids)
        )
        column = torch.arange(len(input_ids), device=device) - layout.cu_q[:-1].to(device).long()[row]
        shape = (len(lengths), layout.max_q)
        mask = torch.zeros(shape, dtype=torch.long, device=device).index_put_((row, column), row.new_ones(()))
        ids = torch.zeros(shape, dtype=torch.long, device=device).index_put_((row, column), input_ids)
        positions = torch.zeros(shape, dtype=torch.long, device=device).index_put_((row, column), position_ids)
        out = self._base()(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.last_hidden_state[row, column], {}

    def _base(self) -> Any:
        """The model below its output head."""
        return getattr(self.hf, self.hf.base_model_prefix)

    def _run_cached(
        self, input_ids: torch.Tensor, lengths: Sequence[int], cache: ForeignCache, rows: Sequence[int]
    ) -> torch.Tensor:
        """Row by row: only the new tokens where the model's own cache is up to date, else the whole row."""
        hidden = []
        for row, new in zip(rows, input_ids.split(list(lengths)), strict=True):
            before = cache.ids[row]
            if len(before) + len(new) > cache.capacity:
                raise ModelError(f"cache row {row} holds {cache.capacity} tokens and gets {len(before) + len(new)}")
            past = cache.past[row]
            run = new if past is not None else torch.cat([new.new_tensor(before), new])
            with torch.no_grad():
                out = self._base()(input_ids=run[None], past_key_values=past, use_cache=True)
            hidden.append(out.last_hidden_state[0, -len(new) :])
            cache.ids[row] = before + new.tolist()
            cache.past[row] = getattr(out, "past_key_values", None)
        return torch.cat(hidden)

    def output_head(self) -> OutputHead:
        """What makes logits of the hidden states: the output embedding, its scale and its soft cap."""
        head = self.hf.get_output_embeddings()
        if head is None:
            raise ModelError(f"a {self.config.model_type} model has no output embedding")
        scale = getattr(self.config, "logit_scale", None) or 1.0  # Cohere
        scale /= getattr(self.config, "logits_scaling", None) or 1.0  # Granite
        soft_cap = getattr(self.config, "final_logit_softcapping", None)
        return OutputHead(head.weight, getattr(head, "bias", None), scale, soft_cap)

    def save(
        self, folder: Path | str, dtype: torch.dtype | None = None, max_shard_bytes: int = 5 * 2**30
    ) -> list[Path]:
        """Write the model as transformers does, in `dtype` if given; returns the files."""
        own = next(self.parameters()).dtype
        shared: dict[int, torch.Tensor] = {}  # tied tensors stay one tensor through the cast
        state = {
            name: shared.setdefault(tensor.data_ptr(), tensor.to(dtype or tensor.dtype))
            for name, tensor in self.state_dict().items()
        }
        self.hf.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_bytes)
        path = Path(folder) / "config.json"
        content = {**read_config(folder), "dtype": str(dtype or own).removeprefix("torch.")}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return sorted(path for path in Path(folder).iterdir() if path.suffix in (".json", ".safetensors"))


def load_any(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CausalLM | ForeignLM:
    """Load a model folder into our decoder if it knows the family, else through transformers.

    Raises:
        ModelError: if neither can load it, or transformers' model fails the probe.
    """
    try:
        config_from_hf(read_config(folder))
    except ModelError as error:
        if not (Path(folder) / "config.json").is_file():
            raise
        return load_foreign(folder, dtype=dtype, device=device, because=str(error))
    return load_model(folder, dtype=dtype, device=device)


def load_foreign(
    folder: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    because: str = "",
) -> ForeignLM:
    """Load a local folder through transformers and probe it.

    Args:
        because: why our own decoder can't take it; part of the message if transformers can't either.

    Raises:
        ModelError: if transformers is missing or can't load it, or if segments leak into each other.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ModelError(
            f"transformers isn't installed, and {because or 'our own decoder was not asked'}",
            place=str(folder),
            hint='pip install "chatwright[hf]"',
        ) from None
    try:
        hf: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, local_files_only=True)
    except (ValueError, OSError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"transformers can't load it either: {error}", place=str(folder), hint=because) from None
    model = ForeignLM(hf.to(device))
    check_isolation(model, str(folder))
    return model.train()


@torch.no_grad()
def check_isolation(model: ForeignLM | CausalLM, place: str) -> None:
    """Probe a model with two random segments, in evaluation mode.

    Raises:
        ModelError: if a segment moves when another one or its own future changes, when it stands alone, or if the
            output head doesn't give the model's own logits.
    """
    model.eval()
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.output_head().weight.shape[0]
    ids = torch.randint(0, vocab_size, (17,), generator=generator).to(parameter.device)
    bound = _BOUND.get(parameter.dtype, _HALF_BOUND)
    packed = _hidden(model, ids, (11, 6))
    changed = ids.clone()
    changed[:11] = (changed[:11] + 1) % vocab_size
    future = ids.clone()
    future[16] = (future[16] + 1) % vocab_size
    checks = {
        "a segment sees another one": (_hidden(model, changed, (11, 6))[11:], packed[11:]),
        "a token sees those after it": (_hidden(model, future, (11, 6))[:16], packed[:16]),
        "a segment sees its padding": (_hidden(model, ids[11:], (6,)), packed[11:]),
    }
    if isinstance(model, ForeignLM):
        logits = model.hf(input_ids=ids[None, :11], use_cache=False).logits[0]
        checks["its logits aren't its output embedding times its hidden states"] = (
            model.output_head().logits(packed[:11]),
            logits,
        )
    for problem, (found, expected) in checks.items():
        apart = float((found.double() - expected.double()).norm() / expected.double().norm())
        if not apart <= bound:
            raise ModelError(
                f"this model can't be trained in packs: {problem} (relative difference {apart:.1e}, bound {bound:.0e})",
                place=place,
                hint="use a causal language model whose rows don't influence each other",
            )


def _hidden(model: nn.Module, ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    positions = torch.cat([torch.arange(length, device=ids.device) for length in lengths])
    return model(ids, positions, SegmentLayout.from_lengths(lengths, device=ids.device))[0]
