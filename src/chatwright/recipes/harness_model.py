"""`--model chatwright` for lm-evaluation-harness: a model by any name `resolve_model` finds, and lm-eval's command.

Importing this module registers the model. lm-eval 0.4.13 looks for models of other packages nowhere (its registry holds
its own list and what has been imported), so its command is run from here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401 - registers lm-eval's own models, which it leaves out once ours is there
import torch
import torch.distributed as dist
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model

from chatwright.adapters.peft_files import WEIGHTS_NAME
from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.checkpoints.lineage import model_hash
from chatwright.checkpoints.manifest import hash_file
from chatwright.errors import ConfigError, ModelError, TemplateError, UserError
from chatwright.evals.harness import HarnessModel
from chatwright.evals.harness_text import HarnessText, begin_ids
from chatwright.inference.engine import Engine
from chatwright.inference.responder import make_engine
from chatwright.models.generation_weights import prepare_for_generation
from chatwright.models.transformer import CausalLM
from chatwright.recipes.model import load_weights
from chatwright.recipes.template_record import serving_template, stored_template_settings
from chatwright.runtime import DtypeName, available_devices, compute_dtype, start_runtime
from chatwright.templates.base import Template
from chatwright.templates.tokenizer import TextTokenizer
from chatwright.templates.tokenizer_files import read_files

NAME = "chatwright"
_COMMANDS = ("run", "ls", "validate")
_NO_TASK = ("Tasks not found", "No tasks specified")
"""How lm-eval's errors for mistyped tasks begin."""


@register_model(NAME)
class ChatwrightLM(HarnessModel):
    """lm-eval's `--model chatwright --model_args pretrained=NAME,…`.

    Args:
        pretrained: anything `resolve_model` finds: folder, run, checkpoint, adapter, GGUF file, hub name, alias.
        dtype: of the weights; None is float32 on a CPU and `auto` elsewhere, bfloat16 where that is native.
        device: `cpu`, `cuda` …; the fastest when None, or where lm-eval's default of CUDA isn't there.
        batch_rows: replies and texts that run at once. lm-eval's own `batch_size` has no effect.
        cache_gib: memory for keys and values.
        max_length: tokens that one request may take; the model's context when None.
        add_bos_token: begin-of-text before texts that no chat template has rendered; as the tokenizer says when None.
        prefix_token_id: the token that an empty context stands for; begin-of-text, else end-of-text, when None.
        enable_thinking: the template variable of that name.
        seed: of what is sampled.

    Raises:
        UserError: the model can't be found, loaded, or served as it was trained.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: DtypeName | None = None,
        device: str | None = None,
        batch_rows: int = 64,
        cache_gib: float = 1.0,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        seed: int = 0,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            known = "pretrained, dtype, device, batch_rows, cache_gib, max_length, add_bos_token, prefix_token_id, …"
            raise ConfigError([f"{name}: unknown; known: {known}" for name in unknown], source="--model_args")
        runtime = start_runtime(_kind(device))
        resolved = resolve_model(pretrained)
        template = _template_or_why(resolved.text_folder)
        precision = compute_dtype(dtype or ("float32" if runtime.device.type == "cpu" else "auto"), runtime.device)
        model = load_weights(resolved, torch.float32, runtime.device).to(precision)
        self._info = _model_info(model, resolved)
        if isinstance(model, CausalLM):
            prepare_for_generation(model)
        limits: dict[str, Any] = {"max_rows": batch_rows, "cache_bytes": int(cache_gib * 2**30)}
        if isinstance(template, TemplateError):  # enough for tasks that come as plain text
            tokenizer = TextTokenizer.load(resolved.text_folder)
            num_tokens = min(tokenizer.vocab_size, model.config.vocab_size)
            engine = Engine(model, stop_ids=tokenizer.stop_ids, num_tokens=num_tokens, **limits)
        else:
            tokenizer, engine = template.tokenizer, make_engine(model, template, **limits)
        begin = begin_ids(read_files(resolved.text_folder).tokenizer)
        if add_bos_token is not None:
            begin = _begin_of_text(tokenizer.bos_id, pretrained) if add_bos_token else []
        variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        text = HarnessText(tokenizer, template, begin, prefix_token_id, variables)
        super().__init__(engine, text, runtime, max_length=max_length, seed=seed)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results: which weights, in which precision."""
        return dict(self._info)


def _model_info(model: torch.nn.Module, resolved: ResolvedModel) -> dict[str, Any]:
    parameters = list(model.parameters())
    info = {
        "model_num_parameters": sum(each.numel() for each in parameters),
        "model_dtype": str(parameters[0].dtype),
        "model_sha": model_hash(resolved.folder),
    }
    if resolved.adapter is not None:
        info["peft_sha"] = hash_file(resolved.adapter / WEIGHTS_NAME)
    return info


def _template_or_why(folder: Path) -> Template | TemplateError:
    """The template that a model folder is served with, or why its own chat template can't be used.

    Raises:
        TemplateError: the folder is one of ours and no longer what the model was trained with.
    """
    try:
        return serving_template(folder)
    except TemplateError as error:
        if stored_template_settings(folder) is not None:
            raise
        return error


def _kind(device: str | None) -> Any:
    """The kind of device in lm-eval's words, whose default is `cuda:0` on every machine; without CUDA the fastest."""
    kind, _, index = (device or "auto").partition(":")
    if index not in ("", "0"):
        hint = f"set CUDA_VISIBLE_DEVICES={index}"
        raise ModelError(f"{device!r}: devices are chosen by kind", place="device", hint=hint)
    return "auto" if kind == "cuda" and kind not in available_devices() else kind


def _begin_of_text(bos: int | None, name: str) -> list[int]:
    if bos is None:
        raise ModelError("the tokenizer has no begin-of-text token", place=name, hint="leave add_bos_token out")
    return [bos]


def run_lm_eval(arguments: Sequence[str]) -> None:
    """lm-eval's command line with these arguments; `--model chatwright` where they name no model.

    Raises:
        UserError: there is no such task, its data can't be reached, or what loading the model raises.
    """
    given = list(arguments)
    helping = not given or given[0] in ("-h", "--help")
    if not helping and given[0] not in _COMMANDS:
        given.insert(0, "run")
    names_model = any(each in ("--model", "-M") or each.startswith("--model=") for each in given)
    if given[:1] == ["run"] and not names_model:
        given += ["--model", NAME]
    before = sys.argv
    sys.argv = ["lm_eval", *given]
    try:
        cli_evaluate()
    except ValueError as error:
        if not str(error).startswith(_NO_TASK):
            raise
        raise UserError(str(error), place="lm-eval", hint="`chatwright harness ls tasks` lists them") from error
    except ConnectionError as error:
        hint = "set HF_ENDPOINT to a mirror, or give task files over local data: --include_path FOLDER"
        raise UserError(str(error), place="lm-eval", hint=hint) from error
    finally:
        sys.argv = before
        if dist.is_initialized():
            dist.destroy_process_group()
