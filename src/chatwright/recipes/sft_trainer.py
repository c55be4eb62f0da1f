"""TRL's few lines: `SFTTrainer(model=…, args=SFTConfig(…), train_dataset=…, peft_config=…)`, on our five build lines.

A door, not a second trainer: names are translated to a recipe (`trainer.settings`), which trains as from the command
line. An argument that a recipe can't say is an error that names it; nothing is passed over in silence.
Names and defaults: TRL `SFTConfig`, `SFTTrainer`; transformers `TrainingArguments`; peft `LoraConfig`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from chatwright.adapters.peft_config import REFUSED
from chatwright.adapters.settings import LoraSettings
from chatwright.checkpoints.export import ExportReport, export_model
from chatwright.checkpoints.imports import resolve_model
from chatwright.conversations.foreign_configs import Findings
from chatwright.conversations.schema import Conversation, Document
from chatwright.errors import ConfigError, DataError
from chatwright.recipes.build import RunTrainer, build_trainer
from chatwright.recipes.data import build_data
from chatwright.recipes.foreign_recipes import HF_BATCH
from chatwright.recipes.foreign_training import (
    REASONS,
    TRL_DEFAULTS,
    batch_settings,
    loop_settings,
    optimizer_settings,
)
from chatwright.recipes.model import build_model
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import start_runtime
from chatwright.settings import apply_overrides, build
from chatwright.train.hooks import Hook
from chatwright.train.trainer import TrainResult

ROWS = "train_dataset"
TEXT_FIELD = "dataset_text_field"
CONVERSATIONS = {"messages", "conversations", "prompt", "completion", "instruction"}
"""Fields of rows that aren't plain text."""
WITHOUT_EFFECT = (
    *("disable_tqdm", "logging_first_step", "log_level", "do_train", "dataloader_pin_memory", "dataloader_num_workers"),
    *("remove_unused_columns", "dataset_num_proc", "gradient_checkpointing_kwargs", "ddp_find_unused_parameters"),
    *("per_device_eval_batch_size", "eval_accumulation_steps", "padding_free", "pad_to_multiple_of"),
)
"""Arguments that change nothing of the training, and are taken without a word."""
AS_IT_IS: dict[str, Any] = {
    **dict.fromkeys(("eval_strategy", "save_strategy"), "no"),
    **dict.fromkeys(("push_to_hub", "do_eval", "use_cpu", "group_by_length", "load_best_model_at_end"), False),
    **dict.fromkeys(("torch_compile", "use_liger_kernel", "overwrite_output_dir", "eval_packing"), False),
    **{"label_smoothing_factor": 0.0, "loss_type": "nll", "deepspeed": "", "fsdp": ""},
}
"""Values that say what is so anyway: of these arguments any other value is an error."""
NUMBERS = (
    *("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "max_steps"),
    *("warmup_ratio", "num_train_epochs", "max_length", *HF_BATCH),
)
"""Arguments that are numbers, or texts of numbers as YAML reads 2e-5."""
STEPS = ("warmup_steps", "logging_steps", "save_steps", "eval_steps")
"""Arguments that are numbers only."""
OTHERS = (
    *("packing", "packing_strategy", "assistant_only_loss", "completion_only_loss", "optim", "lr_scheduler_type"),
    *("lr_scheduler_kwargs", "bf16", "fp16", "seed", "gradient_checkpointing", "logging_strategy", "save_total_limit"),
    *("report_to", "output_dir", "model_init_kwargs", TEXT_FIELD),
)
PACKING_STRATEGIES = {"bfd": "tokens", "wrapped": "constant_length"}
UNKNOWN = "not known; the names are TRL's and transformers' own"
LONGEST = 1 << 20
"""Tokens of an example that is cut into blocks."""
PEFT_DEFAULT_TARGETS = ("q_proj", "v_proj")
"""What peft adapts where `target_modules` is None, in Llama, Mistral, Qwen and Gemma models."""
PEFT_REFUSED: dict[str, tuple[Any, ...]] = {
    **REFUSED,
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), ({}, None)),
    **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"), (None, [], ())),
    "trainable_token_indices": (None,),
}


class SFTConfig:
    """TRL's training arguments by their own names, such as `max_length`, `max_steps`, `learning_rate`.

    Which of them have a place in a recipe is told when a trainer is made of them. `output_dir` is required, as the run
    folder.
    """

    def __init__(self, output_dir: str | Path, **values: Any) -> None:
        self.values: dict[str, Any] = {"output_dir": str(output_dir), **values}

    def __repr__(self) -> str:
        return f"SFTConfig({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"


class SFTTrainer:
    """A supervised fine-tuning in TRL's words.

    Args:
        model: folder, hub name, run, GGUF file or alias; what a recipe's `model` can be.
        args: an `SFTConfig`, or a mapping of its arguments.
        train_dataset: rows in any format (a list, an iterator, a `datasets.Dataset`), or the path of a file or folder.
        eval_dataset: the path of held-out data.
        formatting_func: one row → messages, a row in any format, a `Conversation`, or a text (of which, as in TRL,
            every token is trained).
        peft_config: a peft `LoraConfig`, a `LoraSettings`, or a mapping of the latter's fields.
        overrides: settings of a recipe that TRL has no name for, as the command line's `--set`, such as
            `template.format=role_text`.
        hooks: called after the built-in ones.

    Attributes:
        settings: the recipe.

    Raises:
        ConfigError: an argument has no place in a recipe, or a value can't be; all of them at once.
    """

    def __init__(
        self,
        model: str | Path,
        args: SFTConfig | Mapping[str, Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: str | Path | None = None,
        *,
        formatting_func: Callable[[Any], Any] | None = None,
        peft_config: Any = None,
        overrides: Sequence[str] = (),
        hooks: Sequence[Hook] = (),
    ) -> None:
        if not isinstance(model, str | Path):
            raise ConfigError([f"model: give a name or folder, found a {type(model).__name__}"], source="SFTTrainer")
        if train_dataset is None:
            raise ConfigError(["train_dataset: give rows, or the path of a file or folder"], source="SFTTrainer")
        readable = isinstance(train_dataset, str | Path | Iterable) or hasattr(train_dataset, "__getitem__")
        if not readable or isinstance(train_dataset, Mapping | bytes):
            raise ConfigError([f"train_dataset: {_no_rows(train_dataset)}"], source="SFTTrainer")
        values = args.values if isinstance(args, SFTConfig) else dict(args or {})
        field = values.get(TEXT_FIELD) or "text"
        made = recipe_of({n: v for n, v in values.items() if n != TEXT_FIELD}, peft_config) | {"model": str(model)}
        from_path = isinstance(train_dataset, str | Path)
        if from_path and field != "text":
            raise ConfigError([f"{TEXT_FIELD}: a file's texts stand in 'text'; give rows instead"], source="SFTConfig")
        if from_path and formatting_func is not None:
            raise ConfigError(
                ["formatting_func takes rows: read them first (datasets.load_dataset, or json), or leave it out"],
                source="SFTTrainer",
            )
        if from_path:
            made["data"] = [{"path": str(train_dataset)}]
        if eval_dataset is not None:
            made["heldout"] = {"data": [{"path": _path_of(eval_dataset)}]}
        self.settings = build(RunSettings, apply_overrides(made, overrides), "SFTTrainer")
        self._sources = None if from_path else {ROWS: _formatted(train_dataset, formatting_func, field)}
        self._hooks = tuple(hooks)

    def train(self, resume_from_checkpoint: bool = False) -> TrainResult:
        """Train to the end; checkpoints, metrics and report.md are in `output_dir`, as of any run.

        Args:
            resume_from_checkpoint: go on from the newest complete checkpoint in `output_dir`.

        Raises:
            UserError: of data, model or run folder, as `chatwright train` tells it.
        """
        return self._build(resume_from_checkpoint).train()

    def save_model(self, output_dir: str | Path | None = None) -> ExportReport:
        """Write the newest checkpoint as a Hugging Face folder in float32; an adapter as a peft folder.

        Args:
            output_dir: a new or empty folder; by default `model` inside the run's.

        Raises:
            ModelError: nothing is trained yet, or the folder holds something else.
        """
        out = Path(self.settings.out) / "model" if output_dir is None else Path(output_dir)
        return export_model(resolve_model(self.settings.out), out, dtype="float32")

    def _build(self, resume: bool) -> RunTrainer:
        settings = self.settings
        runtime = start_runtime(settings.train.device, settings.train.threads)
        data = build_data(settings, self._sources)
        model = build_model(settings, data.text, runtime)
        return build_trainer(settings, data, model, runtime, resume=resume, hooks=self._hooks)


def recipe_of(values: Mapping[str, Any], peft_config: Any = None) -> dict[str, Any]:
    """TRL's arguments as a recipe without model and data.

    Raises:
        ConfigError: naming every argument that has no place in one, and why.
    """
    given = _without_idle(values)
    wrong = {name: value for name, value in given.items() if value is not None and not _is_right(name, value)}
    problems = [f"{name}: must be a number, found {value!r}" for name, value in wrong.items()]
    config = Findings({name: value for name, value in given.items() if name not in wrong}, Path())
    config.made = {"recipe_version": 1, "stage": "sft"}
    if "max_length" in config.empty:
        problems.append("max_length: None is no limit; give the most tokens of an example (longer ones are cut)")
    try:
        _translate(config, peft_config, problems)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError([*problems, f"a value is of the wrong kind: {error}"], source="SFTConfig") from error
    config.close(REASONS, otherwise=UNKNOWN)
    problems += [f"{key}: {_did_you_mean(key) if why == UNKNOWN else why}" for key, _, why in config.unmapped]
    if problems:
        raise ConfigError(problems, source="SFTConfig")
    return config.made


def _is_right(name: str, value: Any) -> bool:
    """Whether a value that must be a number is one; anything goes for other arguments."""
    if name in STEPS:
        return isinstance(value, Real)
    try:
        return name not in NUMBERS or not math.isnan(float(value))
    except (TypeError, ValueError):
        return False


def _did_you_mean(key: str) -> str:
    """What to say of an argument that nobody knows."""
    near = difflib.get_close_matches(key, [*NUMBERS, *STEPS, *OTHERS, *AS_IT_IS, *WITHOUT_EFFECT], n=1, cutoff=0.7)
    return f"not known; did you mean {near[0]}?" if near else UNKNOWN


def _no_rows(given: Any) -> str:
    """What to give instead of something that isn't rows."""
    if isinstance(given, Mapping):
        return f"a mapping isn't rows; give one of its parts: {', '.join(map(str, given))}"
    return f"give rows, or the path of a file or folder, found a {type(given).__name__}"


def _without_idle(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without those that change nothing; with a strategy `no` its steps have no meaning either."""
    idle = {name for name, value in values.items() if name in AS_IT_IS and AS_IT_IS[name] == value}
    idle |= {name.replace("_strategy", "_steps") for name in idle}
    return {name: value for name, value in values.items() if name not in idle and name not in WITHOUT_EFFECT}


def _translate(config: Findings, peft_config: Any, problems: list[str]) -> None:
    """Every argument that has a place, into `config.made`."""
    config.put("max_tokens", int(config.take("max_length", 1024)), "max_length")
    config.made["overflow"] = "truncate"
    _masks(config)
    packs, strategy = bool(config.take("packing")), config.take("packing_strategy", "bfd")
    batch_settings(config, TRL_DEFAULTS, packs, HF_BATCH)
    if strategy not in PACKING_STRATEGIES:
        known = ", ".join(PACKING_STRATEGIES)
        problems.append(f"packing_strategy: {strategy!r} isn't known here; there is {known}")
    elif packs:
        config.put("packing.by", PACKING_STRATEGIES[strategy], "packing_strategy")
        if strategy == "wrapped":  # a long example goes on in the next block, whole
            config.made |= {"max_tokens": LONGEST, "overflow": "error"}
    optimizer_settings(config, TRL_DEFAULTS)
    loop_settings(config, TRL_DEFAULTS, "num_train_epochs", evaluates=True)
    if config.take("use_cpu"):
        config.put("train.device", "cpu", "use_cpu")
    quantized = _quantization(config, problems)
    if peft_config is not None:
        config.made["adapter"] = {**_adapter(peft_config, problems), **quantized}
    elif quantized:
        problems.append("model_init_kwargs: a 4-bit base is frozen; give peft_config, the adapter to train beside it")


def _masks(config: Findings) -> None:
    """The replies are trained unless the whole is asked for."""
    given = [config.take("assistant_only_loss"), config.take("completion_only_loss")]
    if False in given and True not in given:
        config.made["template"] = {"train_on": "everything"}


def _quantization(config: Findings, problems: list[str]) -> dict[str, Any]:
    """A `BitsAndBytesConfig` among `model_init_kwargs` as the adapter's base."""
    options = dict(config.take("model_init_kwargs") or {})
    chosen = options.pop("quantization_config", None)
    problems += [f"model_init_kwargs: {name} has no place in a recipe" for name in options]
    if chosen is None:
        return {}
    plain = chosen if isinstance(chosen, Mapping) else vars(chosen)

    def of(name: str) -> Any:
        return plain.get(name, plain.get(f"_{name}"))

    if not of("load_in_4bit") or of("bnb_4bit_quant_type") != "nf4":
        problems.append("model_init_kwargs: of quantization_config only load_in_4bit with bnb_4bit_quant_type nf4")
        return {}
    return {"base": "nf4", "double_quantization": bool(of("bnb_4bit_use_double_quant"))}


def _adapter(given: Any, problems: list[str]) -> dict[str, Any]:
    """Ours as it is; peft's `LoraConfig` translated, with every field that would change the outputs otherwise."""
    if isinstance(given, LoraSettings):
        return given.model_dump()
    if isinstance(given, Mapping):
        return dict(given)
    if not hasattr(given, "to_dict"):
        problems.append(f"peft_config: give a LoraConfig or LoraSettings, found a {type(given).__name__}")
        return {}
    plain = given.to_dict()
    kind = str(getattr(plain.get("peft_type"), "value", plain.get("peft_type")))
    if kind != "LORA":
        problems.append(f"peft_config: peft_type {kind} (only LORA)")
        return {}
    problems += [
        f"peft_config: {name} = {plain[name]!r} isn't supported"
        for name, good in PEFT_REFUSED.items()
        if name in plain and plain[name] not in good
    ]
    if (start := plain.get("init_lora_weights", True)) is not True:
        problems.append(f"peft_config: init_lora_weights = {start!r}; A is drawn uniformly and B is zero here (True)")
    names = plain.get("target_modules")
    targets = [names] if isinstance(names, str) else sorted(names) if names else list(PEFT_DEFAULT_TARGETS)
    if isinstance(names, str) and names != "all-linear":
        problems.append(f"peft_config: target_modules {names!r} is a regular expression; give a list of names")
    return {
        "rank": plain["r"],
        "alpha": plain["lora_alpha"],
        "dropout": plain.get("lora_dropout", 0.0),
        "scaling": "rslora" if plain.get("use_rslora") else "standard",
        "targets": targets,
    }


def _path_of(dataset: Any) -> str:
    if not isinstance(dataset, str | Path):
        found = type(dataset).__name__
        raise ConfigError([f"eval_dataset: give the path of a file or folder, found a {found}"], source="SFTTrainer")
    return str(dataset)


def _formatted(rows: Any, function: Callable[[Any], Any] | None, field: str) -> Any:
    """The rows as they are, or each one through the user's function; rows of plain text as documents, as TRL has it."""
    if function is not None:
        return list(_each_formatted(rows, function))
    held = rows if hasattr(rows, "features") and hasattr(rows, "__len__") else list(rows)
    if not len(held) or not _is_text(held[0], field):
        return held
    return [Document(row[field], ROWS, n) if _is_text(row, field) else row for n, row in enumerate(held)]


def _is_text(row: Any, field: str) -> bool:
    """Whether a row is a text, and no conversation with a text beside it."""
    return isinstance(row, Mapping) and isinstance(row.get(field), str) and not CONVERSATIONS & row.keys()


def _each_formatted(rows: Any, function: Callable[[Any], Any]) -> Iterator[Any]:
    for number, row in enumerate(rows):
        made = function(row)
        if isinstance(made, str):
            yield Document(made, ROWS, number)
        elif isinstance(made, list) and all(isinstance(each, Mapping) for each in made):
            yield {"messages": made}
        elif isinstance(made, Mapping | Conversation | Document):
            yield made
        else:
            raise DataError(
                f"formatting_func returned a {type(made).__name__} for row {number}",
                source=ROWS,
                hint="return one row's text, messages, mapping or Conversation; it is called with one row at a time",
            )
