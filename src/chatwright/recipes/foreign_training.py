"""Training sections of other systems' configurations as settings of a recipe.

Sources of names and defaults: transformers `TrainingArguments`, LLaMA-Factory `hparams`, TRL `SFTConfig` and
`ModelConfig`, Axolotl `utils/schemas`.
"""

from __future__ import annotations

from typing import NamedTuple

from chatwright.adapters.settings import ALL_LINEAR
from chatwright.conversations.foreign_configs import Findings, split_names

ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")
ADAMW_8BIT = ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit")
SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}
QUANTIZERS = (("bnb_4bit_quant_type", "nf4"), ("quantization_method", "bnb"), ("quantization_type", "nf4"))
"""Keys that say how a base is quantized, with the values that mean NF4 by bitsandbytes."""
REASONS = {
    **dict.fromkeys(("saves_per_epoch", "evals_per_epoch"), "set train.save_every and eval.every in steps"),
    **dict.fromkeys(
        ("preprocessing_num_workers", "dataset_num_proc", "dataloader_num_workers", "dataset_processes", "num_workers"),
        "the program finds how many processes it needs",
    ),
    **dict.fromkeys(
        ("overwrite_cache", "dataset_prepared_path", "tokenized_path", "dataloader_pin_memory"),
        "tokens are cached by what they were made from",
    ),
    **dict.fromkeys(
        ("overwrite_output_dir", "resume_from_checkpoint", "auto_resume_from_checkpoints"),
        "a run folder is never overwritten; chatwright train RUN --resume goes on",
    ),
    **dict.fromkeys(
        ("flash_attn", "flash_attention", "attn_implementation", "sdp_attention", "xformers_attention"),
        "the fastest exact attention of the device is used",
    ),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "ddp_timeout", "ddp_find_unused_parameters"),
        "ranks come from torchrun, and all hold the whole model",
    ),
    **dict.fromkeys(
        ("do_train", "plot_loss", "disable_tqdm", "logging_first_step", "log_level"), "always so, or shown"
    ),
    **dict.fromkeys(("do_eval", "do_predict", "predict_with_generate"), "set eval.every and heldout"),
    **dict.fromkeys(
        ("per_device_eval_batch_size", "eval_batch_size", "eval_accumulation_steps", "eval_sample_packing"),
        "held-out examples are packed to packing.tokens_per_pack",
    ),
    **dict.fromkeys(
        ("pad_to_sequence_len", "pad_to_multiple_of", "padding_free", "group_by_length", "neat_packing"),
        "packs hold no padding, and examples in a pack never see each other",
    ),
    **dict.fromkeys(("trust_remote_code", "use_fast_tokenizer"), "code of models is never run"),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_token"), "upload the folder of chatwright export"
    ),
    **dict.fromkeys(
        ("run_name", "wandb_name", "wandb_run_id", "wandb_entity", "wandb_watch"), "the run folder names it"
    ),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "quantization_bit", "gptq", "bnb_4bit_quant_type", "quantization_method"),
        "a base is quantized to NF4 beside an adapter only (adapter.base: nf4)",
    ),
    **dict.fromkeys(
        ("lora_modules_to_save", "additional_target", "modules_to_save"),
        "only adapters and new token rows are trained beside the base model",
    ),
    **dict.fromkeys(("use_dora", "peft_use_dora", "pissa_init", "loftq_config"), "adapters are plain LoRA"),
    **dict.fromkeys(("pad_token", "eos_token", "special_tokens", "eot_tokens"), "the template decides"),
    **dict.fromkeys(
        ("use_liger_kernel", "enable_liger_kernel", "use_unsloth", "tf32", "torch_compile"), "no such switch"
    ),
    **dict.fromkeys(("neftune_noise_alpha", "label_smoothing_factor", "loss_type"), "the loss is plain cross-entropy"),
}
"""Why a key of theirs has no place in a recipe."""


class Defaults(NamedTuple):
    """What a system does where its configuration says nothing."""

    learning_rate: float
    epochs: float
    batch: int
    schedule: str


HUGGING_FACE = Defaults(5e-5, 3.0, 8, "linear")
TRL_DEFAULTS = Defaults(2e-5, 3.0, 8, "linear")
AXOLOTL_DEFAULTS = Defaults(5e-5, 1.0, 1, "cosine")


def optimizer_settings(config: Findings, defaults: Defaults) -> None:
    """Optimizer, learning rate and schedule."""
    config.put("optimizer.learning_rate", float(config.take("learning_rate", defaults.learning_rate)), "learning_rate")
    name = str(config.take("optim", config.take("optimizer", ADAMW[0])))
    key = "optimizer" if "optimizer" in config.values else "optim"
    if name in ADAMW_8BIT:
        config.put("optimizer.name", "adamw8bit", key, note="through bitsandbytes")
    elif name in ADAMW and key in config.values:
        config.note("optimizer.name: adamw", key)
    elif key in config.values:
        config.lose(key, "AdamW is used")
    betas = [config.take(f"adam_beta{n}", usual) for n, usual in ((1, 0.9), (2, 0.999))]
    if given := [key for key in ("adam_beta1", "adam_beta2") if key in config.values]:
        config.put("optimizer.betas", [float(beta) for beta in betas], *given)
    for key, ours in (("adam_epsilon", "optimizer.eps"), ("weight_decay", "optimizer.weight_decay")):
        if key in config.values:
            config.put(ours, float(config.take(key)), key)
    if "max_grad_norm" in config.values:
        config.put("optimizer.max_grad_norm", float(config.take("max_grad_norm")) or None, "max_grad_norm")
    if "loraplus_lr_ratio" in config.values:
        rule = {"pattern": "*lora_B", "multiplier": float(config.take("loraplus_lr_ratio"))}
        config.put("optimizer.rules", [rule], "loraplus_lr_ratio")
    _schedule(config, defaults)


def _schedule(config: Findings, defaults: Defaults) -> None:
    key = "lr_scheduler" if "lr_scheduler" in config.values else "lr_scheduler_type"
    theirs = str(config.take(key, defaults.schedule))
    if theirs in SCHEDULES:
        config.put("schedule.name", SCHEDULES[theirs], key)
    else:
        config.lose(key, f"there is {', '.join(sorted(set(SCHEDULES.values())))}; cosine is used")
    options = dict(config.take("lr_scheduler_kwargs") or {})
    if "min_lr_rate" in options:
        config.put("schedule.min_ratio", float(options["min_lr_rate"]), "lr_scheduler_kwargs")
    elif options:
        config.lose("lr_scheduler_kwargs", "set schedule.min_ratio or schedule.decay_fraction")
    if "cosine_min_lr_ratio" in config.values:
        config.put("schedule.min_ratio", float(config.take("cosine_min_lr_ratio")), "cosine_min_lr_ratio")
    steps, share = config.take("warmup_steps"), config.take("warmup_ratio")
    if theirs == "constant" and (steps or share):
        config.lose("warmup_steps" if steps else "warmup_ratio", "without effect there with a constant rate")
    elif steps and steps >= 1:
        config.put("schedule.warmup_steps", int(steps), "warmup_steps")
        if share:
            config.lose("warmup_ratio", "warmup_steps wins there")
    elif steps or share:
        config.put("schedule.warmup_fraction", float(steps or share), "warmup_steps" if steps else "warmup_ratio")


def batch_settings(config: Findings, defaults: Defaults, packs: bool, keys: tuple[str, str]) -> None:
    """Examples or packs of a step: the two `keys` multiplied; `max_tokens` stands already."""
    batch, times = (int(config.take(key, usual)) for key, usual in zip(keys, (defaults.batch, 1), strict=True))
    longest = int(config.made["max_tokens"])
    note = "for one device; multiply by their number of devices"
    if packs:
        config.made["packing"] = {"by": "tokens", "tokens_per_pack": longest}
        config.put("packing.packs_per_step", batch * times, *keys, note=note)
    else:
        config.made["packing"] = {"by": "examples", "tokens_per_pack": longest * batch}
        config.put("packing.examples_per_step", batch * times, *keys, note=note)


def loop_settings(config: Findings, defaults: Defaults, epochs: str, evaluates: bool) -> None:
    """Length, precision, logging, saving, evaluating and where the run goes."""
    rounds, most = float(config.take(epochs, defaults.epochs)), config.take("max_steps")
    bounded = most is not None and int(most) > 0
    config.put("train.epochs", None if bounded else rounds, epochs, note="max_steps wins there" if bounded else "")
    if bounded:
        config.put("train.max_steps", int(most), "max_steps")
    elif most is not None:
        config.note("no limit of steps", "max_steps")
    for key in ("bf16", "fp16"):
        wanted = config.take(key)
        if wanted is True:
            config.put("train.dtype", "bfloat16" if key == "bf16" else "float16", key)
        elif wanted is not None:
            config.note("train.dtype: auto", key)
    config.move("seed", "train.seed")
    if "gradient_checkpointing" in config.values:
        config.put(
            "train.activation_checkpointing", bool(config.take("gradient_checkpointing")), "gradient_checkpointing"
        )
    _every(config, "logging", "train.log_every", wanted=True)
    _every(config, "save", "train.save_every", wanted=True)
    _every(config, "eval", "eval.every", evaluates)
    config.move("save_total_limit", "train.keep_last")
    if evaluates and "early_stopping_patience" in config.values and "every" in config.made.get("eval", {}):
        config.move("early_stopping_patience", "train.early_stopping_patience")
    for tracker in split_names(config.take("report_to")):
        if tracker == "tensorboard":
            config.put("tracking.tensorboard", True, "report_to")
        elif tracker != "none":
            config.lose("report_to", "set tracking.wandb_project for wandb; other trackers aren't fed", tracker)
    if config.take("use_tensorboard"):
        config.put("tracking.tensorboard", True, "use_tensorboard")
    config.move("wandb_project", "tracking.wandb_project")
    config.move("output_dir", "out")


def _every(config: Findings, what: str, ours: str, wanted: bool) -> None:
    """`logging_steps`, `save_steps`, `eval_steps` with their strategies."""
    steps, strategy = config.take(f"{what}_steps"), config.take(f"{what}_strategy")
    if strategy in ("no", "epoch", "best") or (strategy == "steps" and steps is None):
        config.lose(f"{what}_strategy", "none is wanted" if strategy == "no" else f"set {ours} in steps")
        if steps is not None:
            config.lose(f"{what}_steps", f"without effect there with {what}_strategy: {strategy}")
    elif steps is not None and (not wanted or steps < 1):
        config.lose(f"{what}_steps", f"set {ours} in steps" if wanted else "no data is held out to measure on")
    elif steps is not None:
        config.put(ours, int(steps), f"{what}_steps", *([f"{what}_strategy"] if strategy else []))


class LoraDefaults(NamedTuple):
    """What a system's adapters are where its configuration says nothing; `alpha` None is twice the rank."""

    rank: int
    alpha: float | None
    dropout: float
    all_linear: bool
    double_quantization: bool = True


def adapter_settings(config: Findings, keys: dict[str, str], defaults: LoraDefaults) -> None:
    """Low-rank adapters; `keys` are the system's names of rank, alpha, dropout, targets and rslora."""
    rank = int(config.take(keys["rank"], defaults.rank))
    config.put("adapter.rank", rank, keys["rank"])
    config.put("adapter.alpha", float(config.take("lora_alpha", defaults.alpha or 2 * rank)), "lora_alpha")
    config.put("adapter.dropout", float(config.take("lora_dropout", defaults.dropout)), "lora_dropout")
    if config.take(keys["rslora"]):
        config.put("adapter.scaling", "rslora", keys["rslora"])
    _base(config, defaults)
    _targets(config, keys["targets"], defaults)


def _base(config: Findings, defaults: LoraDefaults) -> None:
    """A base in 4 bits, as bitsandbytes quantizes it; other ways and widths have no place."""
    key = "quantization_bit" if config.values.get("quantization_bit") == 4 else "load_in_4bit"
    kinds = [config.values.get(name, usual) for name, usual in QUANTIZERS]
    if not config.values.get(key) or kinds != [usual for _, usual in QUANTIZERS]:
        return
    config.take(key)
    config.put("adapter.base", "nf4", key, *(name for name, _ in QUANTIZERS if name in config.values))
    names = [name for name in ("use_bnb_nested_quant", "double_quantization") if name in config.values]
    wanted = [bool(config.take(name)) for name in names]
    if any(wanted or [defaults.double_quantization]):
        config.put("adapter.double_quantization", True, *(names or ["double_quantization"]))
    elif names:
        config.note("adapter.double_quantization: False", *names)


def _targets(config: Findings, key: str, defaults: LoraDefaults) -> None:
    names, linear = split_names(config.take(key)), bool(config.take("lora_target_linear"))
    if linear:
        config.put("adapter.targets", [ALL_LINEAR], "lora_target_linear")
        if names:
            config.note(f"adapter.targets: they are among {ALL_LINEAR}", key)
    elif any(letter in name for name in names for letter in "()|\\^$"):
        config.lose(key, f"a regular expression; adapter.targets takes names and globs. {ALL_LINEAR} is used")
    elif names in (["all"], [ALL_LINEAR]) or (not names and defaults.all_linear):
        config.put("adapter.targets", [ALL_LINEAR], key)
    elif names:
        config.put("adapter.targets", names, key)
    else:
        config.lose(key, f"not given: PEFT chooses by the model's family. {ALL_LINEAR} is used", "(default)")
