"""What a decoder is made of, independent of any family's spelling, with exact parameter and FLOP counts.

Knows shapes and formulas; knows no file, no tensor and no Hugging Face field name (`families` does).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RopeKind(StrEnum):
    """How the rotary frequencies are stretched beyond the lengths seen in pre-training."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"


class Activation(StrEnum):
    """The nonlinearity of the feed-forward block; `relu2` = max(x, 0)² is for the block without a gate."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"
    RELU2 = "relu2"


class Initialization(StrEnum):
    """How fresh weights are drawn (`initialization`): `normal` with one deviation, nanochat's, or torch's own."""

    NORMAL = "normal"
    NANOCHAT = "nanochat"
    TORCH_LINEAR = "torch_linear"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and its long-context variants.

    Args:
        kind: which variant; the fields below are read by the kinds named.
        theta: the base wavelength.
        factor: stretch of the positions (linear, dynamic, llama3, yarn).
        original_max_positions: tokens seen in pre-training (llama3, yarn).
        low_freq_factor, high_freq_factor: borders of the blend (llama3).
        beta_fast, beta_slow: borders of the ramp, in rotations (yarn).
        attention_factor: multiplies cos and sin; None = derived from `factor` (yarn).
        mscale, mscale_all_dim: DeepSeek's form of that derivation (yarn).
        truncate: round the ramp's borders to whole dimensions (yarn).
        reverse: turn the other way, by −angle (nanochat).
    """

    kind: RopeKind = RopeKind.DEFAULT
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_positions: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    reverse: bool = False


class ExpertSpelling(StrEnum):
    """How a family names the feed-forward block of a layer with experts: the block's own name in the layer."""

    MLP = "mlp"
    BLOCK_SPARSE_MOE = "block_sparse_moe"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """Mixture of experts in the feed-forward blocks of some layers.

    Args:
        num_experts: E, those that the router chooses from.
        experts_per_token: k, how many it chooses.
        intermediate_size: the inner size of one expert.
        layers: which layers have experts, ascending; the others have a plain feed-forward block.
        num_shared: experts behind no router that every token goes through, of the dense block's inner size.
        norm_weights: the k chosen probabilities are divided by their sum.
        spelling: what the parameters are called.
        aux_loss_weight: what the load-balance loss is multiplied by in training.
        aux_per_segment: take that loss a segment at a time (any split of a step gives the same sum), not a batch.
        aux_adds_layers: the weight is meant for a loss that is 1 a layer where all is even (MiniMind), not for one
            that is k over all layers (transformers).
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    layers: tuple[int, ...]
    num_shared: int = 0
    norm_weights: bool = True
    spelling: ExpertSpelling = ExpertSpelling.MLP
    aux_loss_weight: float = 0.001
    aux_per_segment: bool = True
    aux_adds_layers: bool = False

    @property
    def aux_scale(self) -> float:
        """What turns a loss of 1 a layer, added up, into the one that `aux_loss_weight` is meant for."""
        return 1.0 if self.aux_adds_layers else self.experts_per_token / max(len(self.layers), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer with rotary positions.

    Args:
        family: key of `families.FAMILIES`; decides how the config is written to disk.
        vocab_size: rows of the embedding, padding rows included.
        tokenizer_vocab_size: ids the tokenizer can produce when fewer than `vocab_size` (added tokens are
            padded to a multiple); None when nothing was added.
        hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim: the shapes.
        max_positions: the longest segment in tokens that the model was made for.
        norm_eps: epsilon of every RMSNorm.
        norm_weights: norms have learnable weights (nanochat's have none).
        norm_plus_one: the norm multiplies by 1 + weight, in float32 (Gemma).
        sandwich_norms: also normalize what attention and feed-forward return (Gemma's four norms).
        embed_norm: normalize what the embedding returns, by the final norm (nanochat).
        qk_norm: RMSNorm over each head of q and k. qk_norm_last: after their rotation, not before (nanochat).
        gated: the feed-forward block is down(activation(gate(x)) · up(x)); else fc2(activation(fc1(x))).
        activation: that block's activation.
        tied: the output head is the embedding.
        qkv_bias, o_bias, mlp_bias: which linear layers have a bias.
        layer_windows: for each layer the number of positions a token sees, itself included; None = all before it.
        ropes: the distinct rotary embeddings. layer_ropes: for each layer its index in `ropes`.
        attention_scale: multiplies q·k.
        attention_soft_cap, final_soft_cap: c in c · tanh(x / c) on scores and logits, or None.
        embed_scale: multiplies the embeddings, after a cast to the compute dtype (Gemma).
        moe: experts in place of some layers' feed-forward blocks; None for a dense model.
        initialization: how fresh weights are drawn. initializer_range: their deviation where it is `normal`.
        bos_token_id, eos_token_ids, pad_token_id: carried along to the saved config.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    layer_windows: tuple[int | None, ...]
    ropes: tuple[RopeConfig, ...]
    layer_ropes: tuple[int, ...]
    attention_scale: float
    tokenizer_vocab_size: int | None = None
    norm_eps: float = 1e-6
    norm_weights: bool = True
    norm_plus_one: bool = False
    sandwich_norms: bool = False
    embed_norm: bool = False
    qk_norm: bool = False
    qk_norm_last: bool = False
    gated: bool = True
    activation: Activation = Activation.SILU
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    embed_scale: float = 1.0
    moe: MoeConfig | None = None
    initialization: Initialization = Initialization.NORMAL
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None


def num_parameters(config: DecoderConfig) -> int:
    """The exact number of parameters, tied weights counted once."""
    hidden, inner = config.hidden_size, config.intermediate_size
    experts = _expert_parameters(config, of_all=True)
    norms = (4 if config.sandwich_norms else 2) * hidden + (2 * config.head_dim if config.qk_norm else 0)
    per_layer = _matmul_parameters(config) + norms * config.norm_weights
    q_and_kv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    inner_biases = inner * (2 if config.gated else 1) + hidden
    per_layer += q_and_kv * config.qkv_bias + hidden * config.o_bias + inner_biases * config.mlp_bias
    embeddings = config.vocab_size * hidden * (1 if config.tied else 2)
    return embeddings + config.num_layers * per_layer + hidden * config.norm_weights + experts


def active_parameters(config: DecoderConfig) -> int:
    """The parameters that one token's forward pass uses: all but the experts that it isn't sent to."""
    return num_parameters(config) - _expert_parameters(config, of_all=True) + _expert_parameters(config, of_all=False)


def _expert_parameters(config: DecoderConfig, *, of_all: bool) -> int:
    """What the layers with experts have beyond a dense block's: of all experts, or of those that a token goes to."""
    moe = config.moe
    if moe is None:
        return 0
    dense, routed = (3 * config.hidden_size * inner for inner in (config.intermediate_size, moe.intermediate_size))
    routed *= moe.num_experts if of_all else moe.experts_per_token
    return len(moe.layers) * (routed + (moe.num_shared - 1) * dense + moe.num_experts * config.hidden_size)


def _matmul_parameters(config: DecoderConfig) -> int:
    """Weights of one layer's linear projections, biases left out."""
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return attention + (3 if config.gated else 2) * config.hidden_size * config.intermediate_size


def flops_per_token(config: DecoderConfig, tokens_per_segment: float) -> float:
    """Training FLOPs of one token: forward plus backward, the output head and the experts it goes to included.

    Each matmul weight costs 2 FLOPs forward and 4 backward; each pair of a query and a key that it sees costs
    4 · head_dim · heads forward and twice that backward (PaLM, appendix B, with the causal half left out:
    a token sees (n + 1) / 2 positions on average, or its window's).

    Args:
        tokens_per_segment: n, the mean segment length in tokens.
    """
    weights = config.num_layers * _matmul_parameters(config) + config.vocab_size * config.hidden_size
    weights += _expert_parameters(config, of_all=False)
    seen = sum(_mean_context(tokens_per_segment, window) for window in config.layer_windows)
    return 6.0 * weights + 12.0 * config.num_heads * config.head_dim * seen


def _mean_context(tokens: float, window: int | None) -> float:
    """Positions a token sees on average in a segment of this many tokens."""
    if window is None or window >= tokens:
        return (tokens + 1) / 2
    return (window * (window + 1) / 2 + (tokens - window) * window) / tokens
