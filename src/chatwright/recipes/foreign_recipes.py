"""Configurations of LLaMA-Factory, TRL and Axolotl read as recipes; what has no place here is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chatwright.conversations.foreign_axolotl import axolotl_data
from chatwright.conversations.foreign_configs import AXOLOTL, LLAMA_FACTORY, TRL, Findings, foreign_system
from chatwright.conversations.foreign_llama_factory import llama_factory_data
from chatwright.conversations.foreign_trl import trl_data
from chatwright.errors import UserError
from chatwright.recipes.foreign_training import (
    AXOLOTL_DEFAULTS,
    HUGGING_FACE,
    REASONS,
    TRL_DEFAULTS,
    LoraDefaults,
    adapter_settings,
    batch_settings,
    loop_settings,
    optimizer_settings,
)
from chatwright.recipes.run_settings import RunSettings
from chatwright.settings import build, read_yaml

HF_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
AXOLOTL_BATCH = ("micro_batch_size", "gradient_accumulation_steps")
LLAMA_FACTORY_LORA = {"rank": "lora_rank", "targets": "lora_target", "rslora": "use_rslora"}
TRL_LORA = {"rank": "lora_r", "targets": "lora_target_modules", "rslora": "use_rslora"}
AXOLOTL_LORA = {"rank": "lora_r", "targets": "lora_target_modules", "rslora": "peft_use_rslora"}
Data = tuple[list[dict[str, Any]], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class ForeignRecipe:
    """A configuration of another system as a recipe.

    Args:
        system: whose it is.
        recipe: ours, as it stands in a recipe file; valid for `RunSettings`.
        mapped: (their key, ours with its value), defaults of theirs included.
        unmapped: (their key, its value, why it has no place here).
    """

    system: str
    recipe: dict[str, Any]
    mapped: tuple[tuple[str, str], ...]
    unmapped: tuple[tuple[str, Any, str], ...]

    def text(self, source: str) -> str:
        """The recipe as commented YAML."""
        lines = [f"# Written by `chatwright import-recipe` from {source} ({self.system})."]
        if self.unmapped:
            lines.append("# What has no place in it:")
            lines += [f"#   {key}: {_short(value)}  ({why})" for key, value, why in self.unmapped]
        body = yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True, width=110)
        return "\n".join(lines) + "\n" + body


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def read_foreign_recipe(path: str | Path) -> ForeignRecipe:
    """Read a configuration of LLaMA-Factory, TRL (SFT) or Axolotl.

    Their relative paths begin at the file's folder, or else at the working folder.

    Raises:
        ConfigError: the file can't be read, or has values that a recipe can't take.
        UserError: it is of no system that is known, doesn't fine-tune on conversations, or names no data of use.
    """
    path = Path(path)
    plain = read_yaml(path)
    system = foreign_system(plain)
    if system is None:
        raise UserError(
            f"this is no configuration of {LLAMA_FACTORY}, {TRL} or {AXOLOTL}",
            place=str(path),
            hint="give the file that names the model (model_name_or_path or base_model) and the data",
        )
    config = Findings(plain, path.parent)
    config.made = {"recipe_version": 1, "stage": "sft"}
    train, held_out = READERS[system](config)
    config.close(REASONS)
    if not train:
        why = "; ".join(f"{key}: {reason}" for key, _, reason in config.unmapped)
        raise UserError(f"names no data that can be trained on ({why})", place=str(path))
    config.made["data"] = train
    if held_out:
        config.made.setdefault("heldout", {})["data"] = held_out
    build(RunSettings, config.made, str(path))
    return ForeignRecipe(system, _ordered(config.made), tuple(config.mapped), tuple(config.unmapped))


def _ordered(made: dict[str, Any]) -> dict[str, Any]:
    """The settings in the order of `RunSettings`."""
    return {name: made[name] for name in RunSettings.model_fields if name in made}


def _model(config: Findings, key: str) -> None:
    name = str(config.take(key))
    config.put("model", config.local(name, must=name.startswith((".", "/", "~"))) or name, key)


def _refuse(config: Findings, key: str, wanted: tuple[str, ...]) -> None:
    """Stop at a training of another kind than the supervised one."""
    kind = config.take(key)
    if kind is not None and kind not in wanted:
        raise UserError(f"{key}: {kind} is no supervised fine-tuning on conversations", place=str(config.folder))
    if kind is not None:
        config.note("stage: sft", key)


def _held_out_share(config: Findings, key: str, held_out: list[dict[str, Any]]) -> bool:
    """A share of the rows to hold out; whether anything is held out."""
    share = float(config.take(key, 0))
    if 0 < share < 1 and not held_out:
        config.put("heldout.share", share, key)
        return True
    if share:
        why = "heldout.data is used" if held_out else "a number of rows; heldout.share is a share of them"
        config.lose(key, why)
    elif key in config.values:
        config.note("heldout: none", key)
    return bool(held_out)


def _length(config: Findings, key: str, usual: int, overflow: str, note: str) -> None:
    config.put("max_tokens", int(config.take(key, usual)), key)
    config.made["overflow"] = overflow
    config.note(f"overflow: {overflow} ({note})", key)


def _llama_factory(config: Findings) -> Data:
    _refuse(config, "stage", ("sft",))
    _model(config, "model_name_or_path")
    train, held_out = llama_factory_data(config)
    _mixture(config, train)
    _length(config, "cutoff_len", 2048, "truncate", "the end of the turn is kept")
    _template(config, "template", ("default",))
    masks = {"train_on_prompt": "everything", "mask_history": "last"}
    for key, policy in masks.items():
        if config.take(key):
            config.put("template.train_on", policy, key)
        elif key in config.values:
            config.note("template.train_on: assistant", key)
    kind = config.take("finetuning_type", "lora")
    if kind == "lora":
        adapter_settings(config, LLAMA_FACTORY_LORA, LoraDefaults(8, None, 0.0, True))
        config.note("adapter", "finetuning_type")
    elif kind == "full":
        config.note("adapter: none, all weights are trained", "finetuning_type")
    else:
        config.lose("finetuning_type", "adapters or all weights are trained; here all weights")
    evaluates = _held_out_share(config, "val_size", held_out)
    packs = bool(config.take("packing") or config.values.get("neat_packing"))
    if "packing" in config.values:
        config.note(f"packing.by: {'tokens' if packs else 'examples'} (examples never see each other)", "packing")
    batch_settings(config, HUGGING_FACE, packs, HF_BATCH)
    optimizer_settings(config, HUGGING_FACE)
    loop_settings(config, HUGGING_FACE, "num_train_epochs", evaluates)
    return train, held_out


def _mixture(config: Findings, train: list[dict[str, Any]]) -> None:
    """LLaMA-Factory's interleaving by probability as weights."""
    strategy, shares = str(config.take("mix_strategy", "concat")), config.take("interleave_probs")
    if strategy == "concat" or len(train) < 2:
        if "mix_strategy" in config.values:
            config.note("data: each epoch sees every row once", "mix_strategy")
        return
    weights = [float(share) for share in str(shares).split(",")] if shares else [1.0] * len(train)
    if len(weights) != len(train):
        config.lose(
            "interleave_probs", f"{len(train)} of {len(weights)} data sets can be trained on; set data.*.weight"
        )
        config.lose("mix_strategy", "see interleave_probs")
        return
    for entry, weight in zip(train, weights, strict=True):
        entry["weight"] = weight
    until = "first" if strategy == "interleave_under" else "all"
    config.put("mixture.until", until, "mix_strategy")
    config.note(f"data.*.weight: {weights}", "interleave_probs")


def _template(config: Findings, key: str, own: tuple[str, ...]) -> None:
    """Their template: ChatML is ours, too; those in `own` mean the model's."""
    name = config.take(key)
    if name == "chatml":
        config.put("template.format", "chatml", key)
    elif name in own:
        config.note("template.format: auto (the model's own, where it has one)", key)
    elif name is not None:
        config.lose(key, "the model's own chat template is used; see it with chatwright inspect")


def _trl(config: Findings) -> Data:
    _model(config, "model_name_or_path")
    train, held_out = trl_data(config)
    if "max_length" in config.empty:
        config.made |= {"max_tokens": 2048, "overflow": "error"}
        config.lose("max_length", "no limit there; here max_tokens, and a longer row stops the run", "null")
    else:
        older = "max_seq_length" in config.values
        _length(config, "max_seq_length" if older else "max_length", 1024, "truncate", "the end of the turn is kept")
    _trl_masks(config)
    if config.take("use_peft"):
        config.note("adapter", "use_peft")
        adapter_settings(config, TRL_LORA, LoraDefaults(16, 32, 0.05, False, double_quantization=False))
    else:
        for key in [key for key in config.values if key.startswith("lora_") or key == "use_peft"]:
            config.lose(key, "without effect there without use_peft: true; all weights are trained")
    evaluates = _held_out_share(config, "test_split_size", held_out)
    packs = bool(config.take("packing"))
    if "packing" in config.values:
        config.note(f"packing.by: {'tokens' if packs else 'examples'}", "packing")
    if "packing_strategy" in config.values:
        config.lose("packing_strategy", "examples are packed whole; overflow says what happens to long ones")
    for key in ("dtype", "torch_dtype"):
        if config.take(key) in ("bfloat16", "float16", "float32", "auto"):
            config.put("train.dtype", config.values[key], key)
    batch_settings(config, TRL_DEFAULTS, packs, HF_BATCH)
    optimizer_settings(config, TRL_DEFAULTS)
    loop_settings(config, TRL_DEFAULTS, "num_train_epochs", evaluates)
    return train, held_out


def _trl_masks(config: Findings) -> None:
    """What TRL computes the loss on: completions, replies, or every token."""
    replies, completions = config.take("assistant_only_loss"), config.take("completion_only_loss")
    if replies or completions:
        key = "assistant_only_loss" if replies else "completion_only_loss"
        config.put("template.train_on", "assistant", key)
    elif completions is False:
        config.put("template.train_on", "everything", "completion_only_loss")
    else:
        why = (
            "every token of conversations is trained there, of prompt/completion rows the completion; here the replies"
        )
        config.lose("assistant_only_loss", f"{why} (template.train_on: everything for all)", replies or False)
    for key, value in (("assistant_only_loss", replies), ("completion_only_loss", completions)):
        if value is False and config.is_open(key):
            config.note("template.train_on", key)


def _axolotl(config: Findings) -> Data:
    _refuse(config, "rl", ())
    _model(config, "base_model")
    train, held_out = axolotl_data(config)
    handling = config.take("excess_length_strategy", config.take("sequence_len_overflow_handling", "drop"))
    overflow = {"drop": "drop", "truncate": "truncate", "raise": "error"}.get(str(handling), "error")
    for key in ("excess_length_strategy", "sequence_len_overflow_handling"):
        if key in config.values:
            config.note(f"overflow: {overflow}", key)
    _length(config, "sequence_len", 512, overflow, "as there")
    _template(config, "chat_template", ("tokenizer_default", "tokenizer_default_fallback_chatml"))
    config.move("default_system_message", "template.default_system")
    config.move("tokens", "template.add_tokens")
    if config.take("train_on_inputs"):
        config.put("template.train_on", "everything", "train_on_inputs")
    elif "train_on_inputs" in config.values:
        config.note("template.train_on: assistant", "train_on_inputs")
    if kind := config.take("adapter"):
        if kind in ("lora", "qlora"):
            config.note("adapter", "adapter")
        else:
            config.lose("adapter", "a plain LoRA is trained")
        adapter_settings(config, AXOLOTL_LORA, LoraDefaults(8, 16, 0.0, False))
    evaluates = _held_out_share(config, "val_set_size", held_out)
    packs = bool(config.take("sample_packing"))
    if "sample_packing" in config.values:
        config.note(f"packing.by: {'tokens' if packs else 'examples'}", "sample_packing")
    batch_settings(config, AXOLOTL_DEFAULTS, packs, AXOLOTL_BATCH)
    optimizer_settings(config, AXOLOTL_DEFAULTS)
    loop_settings(config, AXOLOTL_DEFAULTS, "num_epochs", evaluates)
    return train, held_out


READERS: dict[str, Callable[[Findings], Data]] = {LLAMA_FACTORY: _llama_factory, TRL: _trl, AXOLOTL: _axolotl}
