"""`adapter_config.json` of peft (https://github.com/huggingface/peft, LoraConfig): what we write, read and refuse."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatwright.errors import ModelError

CONFIG_NAME = "adapter_config.json"
EMBEDDING, HEAD = "embed_tokens", "lm_head"

# Fields that change what the adapter computes and that we don't have; their harmless values.
REFUSED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "modules_to_save": (None, []),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "megatron_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}
# Ways to begin that also change the base weights: the adapter is right only on weights that nobody saved.
REFUSED_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class PeftLora:
    """What of a LoRA config decides the outputs.

    Args:
        rank, alpha, rslora, dropout: of layers without a pattern.
        rank_pattern, alpha_pattern: regular expression on the end of a layer's name → its own value.
        embed_ids, head_ids: trained token rows; `head_ids` is None when they follow a tied embedding.
        base_name: the base model.
    """

    rank: int
    alpha: float
    rslora: bool = False
    dropout: float = 0.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    embed_ids: tuple[int, ...] = ()
    head_ids: tuple[int, ...] | None = None
    base_name: str | None = None

    def rank_of(self, layer: str) -> int:
        """The rank of one layer."""
        return self.rank_pattern.get(_pattern_for(self.rank_pattern, layer), self.rank)

    def alpha_of(self, layer: str) -> float:
        """The alpha of one layer."""
        return self.alpha_pattern.get(_pattern_for(self.alpha_pattern, layer), self.alpha)


def _pattern_for(patterns: Mapping[str, Any], layer: str) -> str:
    """The first pattern that matches the end of the name, as peft's `get_pattern_key` chooses it."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", layer)), layer)


def read_peft_config(folder: Path) -> PeftLora:
    """Read and check `folder/adapter_config.json`.

    Raises:
        ModelError: there is none, it can't be read, or it asks for what we don't have (every such field is named).
    """
    path = folder / CONFIG_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"no {CONFIG_NAME} here", place=str(folder), hint="give a peft adapter's folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"can't be read as JSON: {error}", place=str(path)) from None
    problems = _unsupported(raw)
    if problems:
        raise ModelError(
            "the adapter needs what isn't supported here: " + "; ".join(problems),
            place=str(path),
            hint="merge it into its base model with peft, and use the merged model",
        )
    rows = raw.get("trainable_token_indices")
    if isinstance(rows, dict):
        by_end = {str(name).rpartition(".")[2]: tuple(ids) for name, ids in rows.items()}
        embed_ids, head_ids = by_end.get(EMBEDDING, ()), by_end.get(HEAD)
    else:
        embed_ids, head_ids = tuple(rows or ()), None
    return PeftLora(
        rank=int(raw["r"]),
        alpha=float(raw["lora_alpha"]),
        rslora=bool(raw.get("use_rslora")),
        dropout=float(raw.get("lora_dropout") or 0.0),
        rank_pattern=raw.get("rank_pattern") or {},
        alpha_pattern=raw.get("alpha_pattern") or {},
        embed_ids=embed_ids,
        head_ids=head_ids,
        base_name=raw.get("base_model_name_or_path"),
    )


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    kind = raw.get("peft_type")
    if kind != "LORA":
        return [f"peft_type {kind!r} (only LORA)"]
    problems = [f"{name} = {raw[name]!r}" for name, good in REFUSED.items() if name in raw and raw[name] not in good]
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REFUSED_STARTS):
        problems.append(f"init_lora_weights = {start!r}")
    rows = raw.get("trainable_token_indices")
    if isinstance(rows, dict):
        others = [name for name in rows if str(name).rpartition(".")[2] not in (EMBEDDING, HEAD)]
        problems += [f"trainable_token_indices of {name!r}" for name in others]
    problems += [f"{name} is missing" for name in ("r", "lora_alpha") if name not in raw]
    return problems


def write_peft_config(
    folder: Path,
    *,
    base_name: str,
    layers: Mapping[str, tuple[int, float]],
    all_linear: Sequence[str],
    rslora: bool,
    dropout: float,
    embed_ids: Sequence[int],
    head_ids: Sequence[int] | None,
) -> None:
    """Write `adapter_config.json`.

    Args:
        layers: adapted layer → (rank, peft's alpha); the commonest pair is the default, others become patterns.
        all_linear: every linear layer of the model: a name ending that is adapted everywhere is written short.
        head_ids: trained rows of an untied head; None when tied.
    """
    ranks, alphas = Counter(rank for rank, _ in layers.values()), Counter(alpha for _, alpha in layers.values())
    rank = ranks.most_common(1)[0][0] if ranks else 8
    alpha = alphas.most_common(1)[0][0] if alphas else 8.0
    rows: Any = None
    if embed_ids or head_ids:
        rows = list(embed_ids) if head_ids is None else {EMBEDDING: list(embed_ids), HEAD: list(head_ids)}
        if isinstance(rows, dict):
            rows = {name: ids for name, ids in rows.items() if ids}
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _number(alpha),
        "lora_dropout": dropout,
        "use_rslora": rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": short_names(list(layers), all_linear),
        "rank_pattern": {re.escape(name): r for name, (r, _) in layers.items() if r != rank},
        "alpha_pattern": {re.escape(name): _number(a) for name, (_, a) in layers.items() if a != alpha},
        "trainable_token_indices": rows,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def short_names(adapted: Sequence[str], all_linear: Sequence[str]) -> list[str]:
    """Layer names as `target_modules`: the last part alone where every layer of that ending is adapted."""
    chosen = set(adapted)
    short = {name.rpartition(".")[2] for name in adapted}
    short -= {name.rpartition(".")[2] for name in all_linear if name not in chosen}
    return list(dict.fromkeys(end if (end := name.rpartition(".")[2]) in short else name for name in adapted))


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value
