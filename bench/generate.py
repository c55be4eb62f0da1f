"""Tokens a second of the engine and of transformers' generate, on a model of SmolLM2-135M's shape.

    python bench/generate.py --batch 1 --batch 32 --dtype bfloat16 --threads 2

Random weights by default (the speed is the same); `--model FOLDER` takes a Hugging Face folder. Decode only: the
time of a run of one token is taken off; of three such pairs the median, in CPU time with `--cpu-time` (for a machine
that others use too). With `--mixed` prompts have 16 to `--prompt-tokens` tokens and replies an eighth to all of
`--tokens`; transformers pads the batch and goes on until its longest reply is done, and only wanted tokens count. For
one row also the rate at which weights are read, next to a plain read of as much memory, since that is the bound.
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
from chatwright.models.generation_weights import prepare_for_generation
from chatwright.models.transformer import CausalLM

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
    ours.load_state_dict(state, assign=True)
    prepare_for_generation(ours)
    return (theirs.to(device).eval() if peer else None), ours.eval()


def timed(run: Callable[[int], None], tokens: int, wanted: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Tokens a second of decoding, and the seconds of prompt and first token; `run(n)` makes n tokens a row.

    Args:
        wanted: tokens that `run(tokens)` makes beyond the first of each row.
    """
    run(2)
    pairs = []
    for _ in range(3):
        start = clock()
        run(1)
        middle = clock()
        run(tokens)
        pairs.append((wanted / max(clock() - 2 * middle + start, 1e-9), middle - start))
    return sorted(pairs)[1]


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


def main() -> None:
    """Parse the options, measure, print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hugging Face folder")
    parser.add_argument("--batch", type=int, action="append", help="rows at once (may be given several times)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--mixed", action="store_true", help="prompts and replies of many lengths")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    theirs, ours = make_pair(options.model, getattr(torch, options.dtype), options.device, not options.no_peer)
    weight_bytes = sum(p.numel() * p.element_size() for p in ours.parameters())
    print(f"weights {weight_bytes / 1e6:.0f} MB, plain read {read_rate(weight_bytes, options.device):.1f} GB/s")
    for batch in options.batch or [1, 32]:
        most = options.prompt_tokens
        lengths = torch.randint(min(16, most), most + 1, (batch,)).tolist() if options.mixed else [most] * batch
        prompts = [torch.randint(3, 40_000, (length,)).tolist() for length in lengths]
        measure(theirs, ours, prompts, options, weight_bytes)


def measure(
    theirs: Any, ours: CausalLM, prompts: list[list[int]], options: argparse.Namespace, weight_bytes: int
) -> None:
    """One batch size: our line, and theirs."""
    engine = Engine(ours, stop_ids=(), max_rows=len(prompts))
    shortest = max(1, options.tokens // 8)
    replies = torch.randint(shortest, options.tokens + 1, (len(prompts),)).tolist()
    replies = [*replies[1:], options.tokens] if options.mixed else [options.tokens] * len(prompts)
    longest = max(len(prompt) for prompt in prompts)

    def our_run(tokens: int) -> None:
        settings = SamplingSettings(max_new_tokens=tokens, temperature=options.temperature)
        engine.generate(prompts, settings, EndAfter(replies) if options.mixed else None)

    def their_run(tokens: int) -> None:
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=options.device)
        mask = torch.tensor([[int(i >= longest - len(p)) for i in range(longest)] for p in prompts]).to(ids)
        sampling = {"do_sample": options.temperature > 0, "temperature": options.temperature or None}
        bounds = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        theirs.generate(ids, attention_mask=mask, **bounds, **sampling)

    with torch.inference_mode():
        runs = {"chatwright": our_run} | ({} if theirs is None else {"transformers": their_run})
        for name, run in runs.items():
            clock = time.process_time if options.cpu_time else time.perf_counter
            rate, prefill = timed(run, options.tokens, sum(replies) - len(replies), clock)
            line = f"batch {len(prompts):3d}  {name:12s} {rate:8.1f} tokens/s  first token {prefill * 1e3:7.0f} ms"
            print(line + f"  weights read at {rate / len(prompts) * weight_bytes / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
