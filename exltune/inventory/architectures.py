"""The architecture table: one row of data for each model class that exltune reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from exltune.errors import UnsupportedArchitectureError

#: A property of a model: fixed for the class, or the name of the config's boolean (absent means false).
Flag = bool | str


@dataclass(frozen=True)
class Architecture:
    """What a layer of one model class holds, and what exllamav3 demands of its config.

    qk_norm, qkv_bias, o_bias, mlp_bias: flags. dense_layers: how many first layers are dense; an int, a config key,
    or None for all. shared_experts: config key of their number, None without. router_buffers: tensors beside the
    router's weight. requires: config values that exllamav3 insists on where they are given. hq_bits: bits that
    exllamav3's `-hq 1` adds to each part of a layer (select_hq_bits).
    Source: exllamav3 1.6.5, architecture/*.py and modules/{attn,mlp,block_sparse_mlp}.py.
    """

    name: str
    qk_norm: Flag = False
    qkv_bias: Flag = False
    o_bias: Flag = False
    mlp_bias: Flag = False
    dense_layers: int | str | None = None
    shared_experts: str | None = None
    router_buffers: tuple[str, ...] = ()
    requires: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({"hidden_act": "silu"}))
    hq_bits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def moe(self) -> bool:
        """Whether some layers have routed experts."""
        return self.dense_layers is not None


def _sparse(**more: object) -> Mapping[str, object]:
    return MappingProxyType({"hidden_act": "silu", "norm_topk_prob": True, **more})


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
        hq_bits=MappingProxyType({"attn": 2}),
    ),
    Architecture(
        "Glm4MoeForCausalLM",
        qk_norm="use_qk_norm",
        qkv_bias="attention_bias",
        dense_layers="first_k_dense_replace",
        shared_experts="n_shared_experts",
        router_buffers=("e_score_correction_bias",),
        requires=_sparse(n_group=1, topk_group=1),
        hq_bits=MappingProxyType({"attn": 2, "mlp": 1, "shared": 2}),
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
