"""MiniMindLM, written again from its description for tests: weights by its names, neighbouring dimensions rotated.

An independent check of imports: it shares no code with the decoder it is compared with.
"""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm, silu

Weights = dict[str, torch.Tensor]


def make_weights(
    *, dim: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int, seed: int = 0, deviation: float = 0.1
) -> Weights:
    """Random weights with MiniMindLM's names; head and embedding are one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * deviation

    head_dim = dim // heads
    weights = {"tok_embeddings.weight": draw(vocab, dim), "norm.weight": 1 + draw(dim)}
    weights["output.weight"] = weights["tok_embeddings.weight"]
    for layer in range(layers):
        rows = {"wq": heads * head_dim, "wk": kv_heads * head_dim, "wv": kv_heads * head_dim}
        weights |= {f"layers.{layer}.attention.{name}.weight": draw(count, dim) for name, count in rows.items()}
        weights[f"layers.{layer}.attention.wo.weight"] = draw(dim, heads * head_dim)
        weights[f"layers.{layer}.feed_forward.w1.weight"] = draw(inner, dim)
        weights[f"layers.{layer}.feed_forward.w2.weight"] = draw(dim, inner)
        weights[f"layers.{layer}.feed_forward.w3.weight"] = draw(inner, dim)
        weights |= {f"layers.{layer}.{name}.weight": 1 + draw(dim) for name in ("attention_norm", "ffn_norm")}
    return weights


def turned(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotate neighbours of `[T, heads, n]` as complex numbers by position · theta^(−2i/n)."""
    length, heads, size = x.shape
    speeds = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * speeds  # [T, n/2]
    pairs = torch.view_as_complex(x.double().reshape(length, heads, size // 2, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).reshape(x.shape).float()


def logits(weights: Weights, ids: torch.Tensor, *, heads: int, theta: float, eps: float = 1e-5) -> torch.Tensor:
    """`[T, V]` of ids `[T]`."""
    x = weights["tok_embeddings.weight"][ids]
    length, dim = x.shape
    size = dim // heads
    layers = sum(name.endswith("wq.weight") for name in weights)
    hidden_later = torch.full((length, length), float("-inf")).triu(1)
    for layer in range(layers):
        own = {
            name.removeprefix(f"layers.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        h = rms_norm(x, (dim,), own["attention_norm.weight"], eps)
        q, k, v = (
            (h @ own[f"attention.{name}.weight"].T).view(length, -1, size).contiguous() for name in ("wq", "wk", "wv")
        )
        repeat = heads // k.shape[1]
        q, k = turned(q, theta), turned(k, theta).repeat_interleave(repeat, 1)
        scores = torch.einsum("qhn,khn->hqk", q, k) / size**0.5 + hidden_later
        mixed = torch.einsum("hqk,khn->qhn", scores.softmax(-1), v.repeat_interleave(repeat, 1))
        x = x + mixed.reshape(length, -1) @ own["attention.wo.weight"].T
        h = rms_norm(x, (dim,), own["ffn_norm.weight"], eps)
        gate, up = (h @ own[f"feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (silu(gate) * up) @ own["feed_forward.w2.weight"].T
    return rms_norm(x, (dim,), weights["norm.weight"], eps) @ weights["output.weight"].T
