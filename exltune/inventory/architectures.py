"""The architecture table: one row of data for each model class that exltune reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from exltune.errors import UnsupportedArchitectureError

#: A property of a model: fixed for the class, or the name of the config's boolean (absent means false).
Flag = bool | str
AttentionKind = Literal["full", "sliding", "mla", "linear"]


def _frozen(**entries: object) -> Mapping[str, object]:
    return MappingProxyType(entries)


def _bits(**entries: int) -> Mapping[str, int]:
    return MappingProxyType(entries)


@dataclass(frozen=True)
class Names:
    """Module keys within a decoder layer, where they are not those of most models.

    prefix: of all layers' names. experts: gate, up and down of a routed expert. linear: the quantized and the
    fp16 inputs of linear attention.
    """

    prefix: str = "model"
    mlp: str = "mlp"
    router: str = "gate"
    experts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    shared: str = "shared_experts"
    linear: tuple[str, ...] = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Architecture:
    """The tensors of a layer of one model class, and exllamav3's demands on its config.

    text_config: whether the language model's numbers are nested there. attention: the kind of every layer, unless
    layer_types (config names to kinds) or interval (config key; every n-th layer is full) tell them apart.
    qk_norm, qkv_bias, o_bias, mlp_bias, expert_bias: flags. gated_q: q_proj holds an output gate too. sinks: one
    number per head. dense_layers: how many first layers are dense; an int, a config key, or None for all.
    moe_intermediate: config key. shared_experts: config key of their number, None without. shared_size: config key of
    their width instead. shared_gate: key of their fp16 gate. router_buffers: tensors beside the router's weight.
    requires: config values that exllamav3 insists on where they are given. hq_bits: bits that exllamav3's `-hq 1`
    adds to each part of a layer (select_hq_bits). planning_only: exltune knows the sizes, but no engine runs it.

    Components that exllamav3 loads apart from the language model are not counted: a vision tower, an MTP head (a
    draft model of its own; GLM-4.x's is dropped).
    Source: exllamav3 1.6.5, architecture/*.py and modules/{attn,sliding_attn,mla_attn,gated_delta_net,mlp,
    block_sparse_mlp}.py.
    """

    name: str
    names: Names = field(default_factory=Names)
    text_config: bool = False
    attention: AttentionKind = "full"
    layer_types: Mapping[str, object] | None = None
    interval: str | None = None
    qk_norm: Flag = False
    qkv_bias: Flag = False
    o_bias: Flag = False
    mlp_bias: Flag = False
    expert_bias: bool = False
    gated_q: bool = False
    sinks: bool = False
    dense_layers: int | str | None = None
    moe_intermediate: str = "moe_intermediate_size"
    shared_experts: str | None = None
    shared_size: str | None = None
    shared_gate: str | None = None
    router_buffers: tuple[str, ...] = ()
    requires: Mapping[str, object] = field(default_factory=lambda: _frozen(hidden_act="silu"))
    hq_bits: Mapping[str, int] = field(default_factory=lambda: _bits())
    planning_only: bool = False

    @property
    def moe(self) -> bool:
        """Whether some layers have routed experts."""
        return self.dense_layers is not None


def _sparse(**more: object) -> Mapping[str, object]:
    return _frozen(hidden_act="silu", norm_topk_prob=True, **more)


def _latent(name: str, **requires: object) -> Architecture:
    """DeepSeek-V3's design."""
    return Architecture(
        name,
        attention="mla",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        dense_layers="first_k_dense_replace",
        shared_experts="n_shared_experts",
        router_buffers=("e_score_correction_bias",),
        requires=_frozen(hidden_act="silu", n_group=1, topk_group=1, topk_method="noaux_tc", **requires),
        hq_bits=_bits(attn=2, mlp=1, shared=2),
        planning_only=True,
    )


_HYBRID_TYPES = _frozen(linear_attention="linear", full_attention="full")
_FUSED_LINEAR = ("in_proj_qkvz", "in_proj_ba")


def _hybrid(name: str, *, moe: bool, nested: bool = False) -> Architecture:
    """Qwen3.5's design: linear attention, every fourth layer full and gated."""
    return Architecture(
        name,
        names=Names(prefix="model.language_model", shared="shared_expert"),
        text_config=nested,
        layer_types=_HYBRID_TYPES,
        interval="full_attention_interval",
        qk_norm=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        gated_q=True,
        dense_layers=0 if moe else None,
        shared_size="shared_expert_intermediate_size" if moe else None,
        shared_gate="shared_expert_gate" if moe else None,
        requires=_sparse() if moe else _frozen(hidden_act="silu"),
        hq_bits=_bits(attn=2, shared=2) if moe else _bits(),
        planning_only=True,
    )


_ROWS = (
    Architecture("LlamaForCausalLM", qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    Architecture("MistralForCausalLM"),
    Architecture("Qwen2ForCausalLM", qkv_bias=True),
    Architecture("Qwen3ForCausalLM", qk_norm=True, qkv_bias="attention_bias", o_bias="attention_bias"),
    Architecture(
        "Qwen3MoeForCausalLM",
        qk_norm=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        dense_layers=0,
        requires=_sparse(decoder_sparse_step=1, mlp_only_layers=[]),
        hq_bits=_bits(attn=2),
    ),
    Architecture(
        "Glm4MoeForCausalLM",
        qk_norm="use_qk_norm",
        qkv_bias="attention_bias",
        dense_layers="first_k_dense_replace",
        shared_experts="n_shared_experts",
        router_buffers=("e_score_correction_bias",),
        requires=_sparse(n_group=1, topk_group=1),
        hq_bits=_bits(attn=2, mlp=1, shared=2),
    ),
    Architecture(
        "Glm4ForCausalLM",
        names=Names(
            norms=(
                *("input_layernorm", "post_self_attn_layernorm"),
                *("post_attention_layernorm", "post_mlp_layernorm"),
            )
        ),
        qkv_bias="attention_bias",
        planning_only=True,
    ),
    Architecture("Phi3ForCausalLM", planning_only=True),
    Architecture(
        "MixtralForCausalLM",
        names=Names(mlp="block_sparse_moe", experts=("w1", "w3", "w2")),
        dense_layers=0,
        moe_intermediate="intermediate_size",
        hq_bits=_bits(attn=2),
        planning_only=True,
    ),
    Architecture(
        "GptOssForCausalLM",
        names=Names(router="router"),
        layer_types=_frozen(sliding_attention="sliding", full_attention="full"),
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        expert_bias=True,
        sinks=True,
        dense_layers=0,
        moe_intermediate="intermediate_size",
        router_buffers=("bias",),
        requires=_frozen(),
        hq_bits=_bits(attn=2),
        planning_only=True,
    ),
    _latent("DeepseekV3ForCausalLM", scoring_func="sigmoid"),
    _latent("Glm4MoeLiteForCausalLM", norm_topk_prob=True),
    _hybrid("Qwen3_5ForCausalLM", moe=False),
    _hybrid("Qwen3_5ForConditionalGeneration", moe=False, nested=True),
    _hybrid("Qwen3_5MoeForCausalLM", moe=True),
    _hybrid("Qwen3_5MoeForConditionalGeneration", moe=True, nested=True),
    Architecture(
        "Qwen3NextForCausalLM",
        names=Names(shared="shared_expert", linear=_FUSED_LINEAR),
        interval="full_attention_interval",
        qk_norm=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        gated_q=True,
        dense_layers=0,
        shared_size="shared_expert_intermediate_size",
        shared_gate="shared_expert_gate",
        requires=_sparse(decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False),
        hq_bits=_bits(attn=2, shared=2),
        planning_only=True,
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({row.name: row for row in _ROWS})


def architecture(name: str, where: str | None = None) -> Architecture:
    """The table's row of a model class. Raises: UnsupportedArchitectureError naming the supported ones."""
    row = ARCHITECTURES.get(name)
    if row is None:
        raise UnsupportedArchitectureError(
            f"the architecture {name!r} is not supported",
            where=where,
            fix=f"Supported are: {', '.join(ARCHITECTURES)}",
        )
    return row
