"""The same training run in TRL and in Chatwright: the loss curves must be the same.

    python bench/trl_parity.py
    python bench/trl_parity.py --model smollm2-135m-q4 --steps 20
    python bench/trl_parity.py --adapter lora

Both start from the same float32 weights and see the same tokens and labels in the same order: rows of different
lengths, several micro-batches a step in TRL (so that a mean of means would show), packs in Chatwright. AdamW, constant
learning rate, no weight decay, no dropout, the same clipping, float32. A constant rate, because the schedules differ on
purpose: Chatwright's count supervised tokens, TRL's count steps.

One thing is switched off in transformers: it never lets the input embedding of `pad_token_id` learn
(`padding_idx`); where the pad token is the end of turn too, as in SmolLM2, that changes the gradient. The start is
saved without it.

Compared: the loss of every step (at most --tolerance apart), the gradient norm before clipping, and how far the trained
weights ended from each other, relative to how far they moved. Exit status 1 when the losses differ by more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import SHARED, bench_rows, label_rows, machine_facts, silence, silence_trl, trl_config, trl_trainer

TINY_MODEL = "models/stories260k"


@dataclass
class Curves:
    """What a run gave: a loss and a gradient norm each step, and the trained parameters by name."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Any]


def make_tiny_model(folder: Path) -> None:
    """A random Llama of 0.3 million parameters with a byte-level tokenizer, for machines without the shared models."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "num_key_value_heads": 4}
    ids = {"vocab_size": len(fast), "bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}
    config = LlamaConfig(num_attention_heads=8, max_position_embeddings=1024, tie_word_embeddings=True, **shape, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)


def our_settings(options: argparse.Namespace, model: str, out: Path) -> Any:
    """The run as a recipe."""
    from chatwright.recipes.run_settings import RunSettings

    rows = options.batch * options.accumulation
    lora = {"rank": 8, "alpha": 16, "targets": ["all-linear"]} if options.adapter == "lora" else None
    return RunSettings.model_validate(
        {
            "model": model,
            "max_tokens": options.max_tokens,
            "overflow": "drop",
            "packing": {"by": "examples", "examples_per_step": rows, "shuffle": False, "tokens_per_pack": 1024},
            "adapter": lora,
            "optimizer": {"learning_rate": options.learning_rate, "weight_decay": 0.0, "max_grad_norm": options.clip},
            "schedule": {"name": "constant"},
            "train": {"epochs": 1, "max_steps": options.steps, "dtype": "float32", "threads": options.threads},
            "out": str(out),
        }
    )


def run_ours(settings: Any, data: Any, model: Any, runtime: Any) -> Curves:
    """Chatwright's training loop."""
    from chatwright.recipes.build import build_trainer
    from chatwright.train.hooks import Hook, StepRecord

    records: list[StepRecord] = []

    class Watch(Hook):
        """Keeps every step's record."""

        def on_step(self, record: StepRecord) -> None:
            records.append(record)

    run = build_trainer(settings, data, model, runtime, hooks=[Watch()], show_progress=False)
    run.trainer.save = None
    run.train()
    weights = {name: parameter.detach().clone() for name, parameter in model.trainable.items()}
    return Curves([record.loss for record in records], [record.grad_norm for record in records], weights)


def run_trl(options: argparse.Namespace, start: Path, rows: list[dict[str, list[int]]], work: Path) -> Curves:
    """TRL's training loop."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    silence_trl()
    config = trl_config(
        str(work / "trl"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=options.clip,
        bf16=False,
        max_length=None,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
    )
    base = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, start / "adapter", is_trainable=True) if options.adapter == "lora" else base
    trainer = trl_trainer(config, model, start, rows)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = {_plain_name(n): p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return Curves([entry["loss"] for entry in log], [entry["grad_norm"] for entry in log], weights)


def _plain_name(name: str) -> str:
    """peft's parameter names as ours."""
    name = name.removeprefix("base_model.model.").replace(".default.weight", "")
    return name.replace(".token_adapter.trainable_tokens_delta.default", ".token_rows")


def save_start(settings: Any, data: Any, model: Any, folder: Path) -> None:
    """Write the model as training begins: grown vocabulary, fresh token rows and adapter included."""
    from chatwright.adapters.peft_files import save_peft
    from chatwright.models.families import config_to_hf
    from chatwright.models.weights import save_weights
    from chatwright.recipes.template_record import save_template_record

    adapter = [name for name in model.model.state_dict() if name.endswith((".lora_A", ".lora_B", ".token_rows"))]
    state = {n: t.detach().clone() for n, t in model.model.state_dict().items() if n not in adapter}
    save_weights(state, folder)
    config = {**config_to_hf(model.model.config), "pad_token_id": None}  # see the head of this file
    (folder / "config.json").write_text(json.dumps(config))
    save_template_record(folder, data.text.template)
    if adapter:
        save_peft(model.model, folder / "adapter", base_name=str(folder))


def compare(ours: Curves, trl: Curves, start: dict[str, Any]) -> dict[str, Any]:
    """The largest differences of losses, norms and trained weights."""
    losses = [abs(a - b) for a, b in zip(ours.losses, trl.losses, strict=True)]
    norms = [abs(a - b) / max(b, 1e-12) for a, b in zip(ours.norms, trl.norms, strict=True)]
    assert set(ours.weights) == set(trl.weights), sorted(set(ours.weights) ^ set(trl.weights))[:4]
    apart = sum(float((ours.weights[n].double() - w.double()).square().sum()) for n, w in trl.weights.items())
    moved = sum(float((start[n].double() - w.double()).square().sum()) for n, w in trl.weights.items())
    return {
        "largest_loss_difference": max(losses),
        "at_step": losses.index(max(losses)) + 1,
        "largest_relative_norm_difference": max(norms),
        "weights_apart_over_moved": (apart / moved) ** 0.5,
    }


def show(ours: Curves, trl: Curves, result: dict[str, Any], tolerance: float) -> None:
    """Print both curves and what differs."""
    from chatwright.console import out, table

    lines = [
        (str(step), f"{a:.6f}", f"{b:.6f}", f"{abs(a - b):.1e}", f"{c:.5f}", f"{d:.5f}")
        for step, (a, b, c, d) in enumerate(zip(ours.losses, trl.losses, ours.norms, trl.norms, strict=True), start=1)
    ]
    heads = ("step", "loss, ours", "loss, TRL", "difference", "grad norm, ours", "grad norm, TRL")
    out().print(table("the same run in Chatwright and in TRL", heads, lines))
    out().print(
        f"largest difference of losses {result['largest_loss_difference']:.2e} (step {result['at_step']}), "
        f"allowed {tolerance:g}; of gradient norms {result['largest_relative_norm_difference']:.2e} relative; the "
        f"trained weights are {result['weights_apart_over_moved']:.2e} of their way apart",
        soft_wrap=True,
    )


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: stories260k of the shared models, else a tiny random Llama")
    parser.add_argument("--adapter", choices=["none", "lora"], default="none")
    parser.add_argument("--rows", default="short", help="short, long, or a file of chats")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=3, help="rows of TRL's micro-batch")
    parser.add_argument("--accumulation", type=int, default=3, help="micro-batches of TRL's step")
    parser.add_argument("--max-tokens", type=int, default=384, help="longer rows are left out")
    parser.add_argument("--learning-rate", type=float, help="default: 2e-3 for a tiny model, else 1e-4")
    parser.add_argument("--clip", type=float, default=1.0, help="max_grad_norm")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest allowed difference of a step's loss")
    parser.add_argument("--json", type=Path, help="write curves and differences to this file")
    return parser.parse_args()


def run(options: argparse.Namespace, work: Path) -> tuple[Curves, Curves, dict[str, Any]]:
    """Prepare one start, train twice, compare."""
    from chatwright.recipes.data import build_data
    from chatwright.recipes.model import build_model
    from chatwright.runtime import start_runtime

    model_name, tiny = options.model, options.model is None
    if model_name is None:
        model_name = str(SHARED / TINY_MODEL)
        if not Path(model_name).is_dir():
            model_name = str(work / "tiny")
            make_tiny_model(work / "tiny")
    options.learning_rate = options.learning_rate or (2e-3 if tiny else 1e-4)
    settings = our_settings(options, model_name, work / "run")
    needed = options.steps * options.batch * options.accumulation
    runtime = start_runtime("cpu", threads=options.threads)
    data = build_data(settings, {"bench": bench_rows(options.rows, 4 * needed)})
    rows = label_rows(data.store)[:needed]
    if len(rows) < needed:
        raise SystemExit(f"{len(rows)} rows of at most {options.max_tokens} tokens; {needed} are needed")
    model = build_model(settings, data.text, runtime)
    save_start(settings, data, model, work / "start")
    start = {name: parameter.detach().clone() for name, parameter in model.trainable.items()}
    lengths = [len(row["input_ids"]) for row in rows]
    print(f"{model_name}: {needed} rows of {min(lengths)} to {max(lengths)} tokens, {len(start)} trained tensors")
    ours = run_ours(settings, data, model, runtime)
    trl = run_trl(options, work / "start", rows, work)
    return ours, trl, compare(ours, trl, start)


def main() -> None:
    """Run, print, write, and fail where the curves differ."""
    silence()
    options = parse_options()
    with tempfile.TemporaryDirectory() as work:
        ours, trl, result = run(options, Path(work))
    show(ours, trl, result, options.tolerance)
    same = result["largest_loss_difference"] <= options.tolerance
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        curves = {"ours": [ours.losses, ours.norms], "trl": [trl.losses, trl.norms]}
        report = {**result, "same": same, "curves": curves, "settings": settings, "machine": machine_facts()}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print("the same" if same else "NOT the same")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
