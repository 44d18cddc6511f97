"""What a model is made of: its linears, their roles, and the groups that share one bit width."""

from __future__ import annotations

from enum import StrEnum

from exltune.schema.base import Record


class Role(StrEnum):
    """What a group of linears does; the ties of exllamav3's kernels are part of the role.

    q_a, q_b, kv_a: latent attention's projections. qkv, z, out: linear attention's inputs, its output gate and its
    output. router, gate: fp16 in every quant and in no group; a gate weighs a shared expert, or linear attention.
    """

    ATTN_Q = "attn.q"
    ATTN_KV = "attn.kv"
    ATTN_O = "attn.o"
    ATTN_Q_A = "attn.q_a"
    ATTN_Q_B = "attn.q_b"
    ATTN_KV_A = "attn.kv_a"
    ATTN_QKV = "attn.qkv"
    ATTN_Z = "attn.z"
    ATTN_OUT = "attn.out"
    MLP_GATE_UP = "mlp.gate_up"
    MLP_DOWN = "mlp.down"
    SHARED_GATE_UP = "shared.gate_up"
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


class Group(Record):
    """Linears that take one bit width together (level l3), e.g. id `3.experts.down` or `head`."""

    id: str
    role: Role
    layer: int | None
    tensors: tuple[str, ...]
    numel: int


class Part(Record):
    """What is probed together: one group (l3) or a layer's part (l2, e.g. `3.experts`); members are group ids."""

    id: str
    role: Role | str
    layer: int | None
    members: tuple[str, ...]
    numel: int


class Inventory(Record):
    """The linears and groups of a model, from its config.json and safetensors headers alone.

    `linears` holds every linear in forward order: those in groups, the fp16 ones
    (roles ROUTER and GATE, in no group) and the head. `groups` are the l3 groups in forward order, without the head;
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
