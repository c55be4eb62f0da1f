"""How fast the engine generates beside transformers' generate and llama.cpp, on a model of SmolLM2-135M's shape.

    python bench/generate.py --batch 1 --batch 32 [--json OUT]

Random weights by default (the speed is the same); `--model FOLDER` takes a Hugging Face folder. One row: tokens a
second of decoding (the time of prompt and first token taken off), that time itself, and the rate at which weights are
read next to a plain read of as much memory, since that is the bound. Several rows: `--rounds` times as many requests as
the batch has rows, prompts of 16 to `--prompt-tokens` tokens, replies of an eighth to all of `--tokens`; the whole job
is timed, prefill included, and only wanted tokens count. The engine hands freed rows to waiting requests; transformers
takes the requests in groups of the batch's size, pads each and goes on until its longest reply is done. Each system
runs `--repeats` times and the median counts. `--llama-cpp FILE.gguf` adds llama.cpp's Python package (one row).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from chatwright.inference.engine import Engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.models.families import config_from_hf
from chatwright.models.generation_weights import GenerationWeights, prepare_for_generation
from chatwright.models.transformer import CausalLM
from common import machine_facts

SHAPE = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
}


def make_pair(folder: str | None, dtype: torch.dtype, device: str, peer: bool) -> tuple[Any, CausalLM]:
    """The same weights in transformers' class (None without `peer`) and in ours."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")) if folder else SHAPE
    torch.manual_seed(0)
    if folder:
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    else:
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"}), dtype=dtype
        )
    with torch.device("meta"):
        ours = CausalLM(config_from_hf(config))
    state = {name: tensor.to(device) for name, tensor in theirs.state_dict().items()}
    if ours.lm_head is None:
        state.pop("lm_head.weight", None)
    ours.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return (theirs.to(device).eval() if peer else None), ours.eval()


_PATHS = ("model", "llama_cpp", "json")
"""Options whose folders say something of the machine alone."""


class EndAfter:
    """Ends each reply at its own length."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.left = list(lengths)

    def on_token(self, row: int, token_id: int) -> Sequence[int] | None:
        """No forced tokens; None at the end."""
        self.left[row] -= 1
        return [] if self.left[row] > 0 else None


def read_rate(num_bytes: int, device: str) -> float:
    """GB/s of summing float32 memory of this size, the best of five."""
    block = torch.ones(num_bytes // 4, device=device)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        float(block.sum())
        best = max(best, num_bytes / (time.perf_counter() - start) / 1e9)
    return best


def seconds(run: Callable[[], None], repeats: int) -> float:
    """Of some runs the median."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return sorted(found)[len(found) // 2]


def one_row(run: Callable[[int], None], tokens: int, repeats: int) -> dict[str, float]:
    """Rate of decoding and time to the first token; `run(n)` makes n tokens after the same prompt."""
    run(2)
    first = seconds(lambda: run(1), repeats)
    whole = seconds(lambda: run(tokens), repeats)
    return {"tokens_per_second": (tokens - 1) / max(whole - first, 1e-9), "first_token_seconds": first}


def our_run(engine: Engine, prompts: list[list[int]], replies: list[int]) -> None:
    """All prompts through the engine, each reply ended at its length."""
    settings = SamplingSettings(max_new_tokens=max(replies))
    engine.generate(prompts, settings, EndAfter(replies) if len(set(replies)) > 1 else None)


def their_run(model: Any, prompts: list[list[int]], replies: list[int], batch: int) -> None:
    """Groups of `batch` prompts through `generate`, padded on the left, each until its longest reply is done."""
    for start in range(0, len(prompts), batch):
        group, tokens = prompts[start : start + batch], max(replies[start : start + batch])
        longest = max(len(prompt) for prompt in group)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in group])
        mask = torch.tensor([[int(place >= longest - len(prompt)) for place in range(longest)] for prompt in group])
        model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
            do_sample=False,
        )


def llama_cpp_run(path: str, threads: int, prompt: list[int]) -> Callable[[int], None]:
    """llama.cpp on a GGUF file, by token ids."""
    from llama_cpp import Llama

    model = Llama(path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def run(tokens: int) -> None:
        model.reset()
        for count, _ in enumerate(model.generate(prompt, temp=0.0), start=1):
            if count == tokens:
                return

    return run


def measure(theirs: Any, ours: CausalLM, batch: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One batch size: figures by system."""
    torch.manual_seed(batch)
    found: dict[str, dict[str, float]] = {}
    if batch == 1:
        prompt = torch.randint(3, 40_000, (options.prompt_tokens,)).tolist()
        engine = Engine(ours, stop_ids=())
        found["chatwright"] = one_row(
            lambda tokens: our_run(engine, [prompt], [tokens]), options.tokens, options.repeats
        )
        if theirs is not None:
            found["transformers"] = one_row(
                lambda tokens: their_run(theirs, [prompt], [tokens], 1), options.tokens, options.repeats
            )
        if options.llama_cpp:
            run = llama_cpp_run(options.llama_cpp, options.threads, prompt)
            found["llama.cpp"] = one_row(run, options.tokens, options.repeats)
        return found
    count = batch * options.rounds
    prompts = [
        torch.randint(3, 40_000, (n,)).tolist() for n in torch.randint(16, options.prompt_tokens + 1, (count,)).tolist()
    ]
    replies = torch.randint(max(1, options.tokens // 8), options.tokens + 1, (count,)).tolist()
    engine = Engine(ours, stop_ids=(), max_rows=batch)
    our_run(engine, prompts[:batch], [4] * batch)
    spent = seconds(lambda: our_run(engine, prompts, replies), options.repeats)
    found["chatwright"] = {"tokens_per_second": sum(replies) / spent, "seconds": spent}
    if theirs is not None:
        their_run(theirs, prompts[:batch], [4] * batch, batch)
        spent = seconds(lambda: their_run(theirs, prompts, replies, batch), options.repeats)
        found["transformers"] = {"tokens_per_second": sum(replies) / spent, "seconds": spent}
    return found


def main() -> None:
    """Parse the options, measure, print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hugging Face folder")
    parser.add_argument("--batch", type=int, action="append", help="rows at once (may be given several times)")
    parser.add_argument("--rounds", type=int, default=4, help="requests for each row of a batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--weights", choices=[kind.value for kind in GenerationWeights], default="packed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--llama-cpp", help="GGUF file for llama.cpp")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--json", help="write the figures there, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    theirs, ours = make_pair(options.model, getattr(torch, options.dtype), options.device, not options.no_peer)
    weight_bytes = sum(p.numel() * p.element_size() for p in ours.parameters())
    prepare_for_generation(ours, GenerationWeights(options.weights))
    plain = read_rate(weight_bytes, options.device)
    print(f"weights {weight_bytes / 1e6:.0f} MB in {options.dtype}, plain read {plain:.1f} GB/s")
    asked = {name: Path(value).name if name in _PATHS and value else value for name, value in vars(options).items()}
    record: dict[str, Any] = {"options": asked, "machine": machine_facts(), "plain_read_gb_per_second": plain}
    for batch in options.batch or [1, 32]:
        with torch.inference_mode():
            figures = measure(theirs, ours, batch, options)
        record[f"batch {batch}"] = figures
        for name, found in figures.items():
            line = f"batch {batch:3d}  {name:12s} {found['tokens_per_second']:8.1f} tokens/s"
            if batch == 1:
                found["share_of_bandwidth"] = found["tokens_per_second"] * weight_bytes / 1e9 / plain
                line += f"  first token {found['first_token_seconds'] * 1e3:5.0f} ms"
                line += f"  {found['share_of_bandwidth']:.0%} of the plain read (a bf16 copy's bytes)"
            print(line, flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
