"""The parts of a model: its linears, their roles, and the groups that share one bit width."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from exltune.schema.base import Record

#: Roles that share a kernel where their bits are equal, and the name of such a pair at level l3.
PAIRS: Mapping[str, str] = MappingProxyType(
    {
        **{"attn.k": "attn.kv", "attn.v": "attn.kv"},
        **{"mlp.gate": "mlp.gate_up", "mlp.up": "mlp.gate_up"},
        **{"shared.gate": "shared.gate_up", "shared.up": "shared.gate_up"},
    }
)


class Role(StrEnum):
    """The function of a group of linears; linears that exllamav3 loads at one width only are one role.

    Gate and up of routed experts are: it refuses a layer where they differ, and experts of one projection that do. k
    and v, and gate and up of any other MLP, load at different widths.
    q_a, q_b, kv_a: latent attention's projections. qkv, z, out: linear attention's inputs, its output gate and its
    output. router, gate: fp16 in every quant and in no group; a gate weighs a shared expert, or linear attention.
    Source: exllamav3 1.6.5, modules/multilinear.py (MultiLinear) and exllamav3_ext/libtorch/blocksparse_mlp.cpp
    (BC_BlockSparseMLP, "gate and up must share a bit width"); modules/attn.py and mlp.py, which fuse equal ones only.
    """

    ATTN_Q = "attn.q"
    ATTN_K = "attn.k"
    ATTN_V = "attn.v"
    ATTN_O = "attn.o"
    ATTN_Q_A = "attn.q_a"
    ATTN_Q_B = "attn.q_b"
    ATTN_KV_A = "attn.kv_a"
    ATTN_QKV = "attn.qkv"
    ATTN_Z = "attn.z"
    ATTN_OUT = "attn.out"
    MLP_GATE = "mlp.gate"
    MLP_UP = "mlp.up"
    MLP_DOWN = "mlp.down"
    SHARED_GATE = "shared.gate"
    SHARED_UP = "shared.up"
    SHARED_DOWN = "shared.down"
    EXPERTS_GATE_UP = "experts.gate_up"
    EXPERTS_DOWN = "experts.down"
    ROUTER = "router"
    GATE = "gate"
    HEAD = "head"

    @property
    def part(self) -> str:
        """The coarser l2 part of a layer: attn, mlp, shared, experts; router, gate and head are their own."""
        return self.value.split(".", maxsplit=1)[0]

    @property
    def pair(self) -> str:
        """Its name at level l3, where k goes with v and gate with up: attn.kv, mlp.gate_up; others keep theirs."""
        return PAIRS.get(self.value, self.value)

    @property
    def fp16(self) -> bool:
        """Whether exllamav3 never quantizes it."""
        return self in (Role.ROUTER, Role.GATE)


class LinearSpec(Record):
    """One linear layer; `key` is exllamav3's module key, weights are (in_features, out_features) there."""

    key: str
    role: Role
    layer: int | None
    in_features: int
    out_features: int
    bias: bool = False

    @property
    def padded_in(self) -> int:
        """in_features rounded up to 128, as stored."""
        return -(-self.in_features // 128) * 128

    @property
    def padded_out(self) -> int:
        """out_features rounded up to 128, as stored."""
        return -(-self.out_features // 128) * 128


class Unit(Record):
    """A part that takes one bit width: a group (l4), a pair (l3, `3.attn.kv`), a layer's part (l2, `3.experts`), the
    head, or half of the KV cache. Its subclasses hold its measured, searched and shown numbers.

    members: keys of a mix, ids of groups for all but the cache. numel: weights; 0 for the cache.
    """

    id: str
    members: tuple[str, ...]
    role: Role | str
    layer: int | None
    numel: int

    @property
    def part(self) -> str:
        """The coarser part that the role belongs to: attn, mlp, shared, experts, head, cache."""
        return self.role.partition(".")[0]

    @property
    def as_fields(self) -> dict[str, Any]:
        """The fields of any unit, to make a unit of another kind from it."""
        return {name: getattr(self, name) for name in Unit.model_fields}


class Group(Record):
    """The fewest linears that take one bit width together (level l4), e.g. id `3.experts.down` or `head`."""

    id: str
    role: Role
    layer: int | None
    tensors: tuple[str, ...]
    numel: int

    @property
    def alone(self) -> Unit:
        """The unit that has no other member."""
        return Unit(id=self.id, role=self.role, layer=self.layer, members=(self.id,), numel=self.numel)


class Inventory(Record):
    """The linears and groups of a model, from its config.json and safetensors headers alone.

    `linears` holds every linear in forward order: those in groups, the fp16 ones
    (roles ROUTER and GATE, in no group) and the head. `groups` are in forward order, without the head;
    `head` is the head's own group. `parameters` counts all tensors of the checkpoint that the model uses.
    """

    architecture: str
    layers: int
    hidden_size: int
    vocab_size: int
    tied_head: bool
    parameters: int
    linears: tuple[LinearSpec, ...]
    groups: tuple[Group, ...]
    head: Group

    @property
    def quantizable_parameters(self) -> int:
        """Weights in groups, head excluded."""
        return sum(group.numel for group in self.groups)
