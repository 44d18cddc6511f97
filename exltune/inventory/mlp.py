"""The MLP of a decoder layer, dense or with routed experts: its linears and its other tensors.

Source: exllamav3 1.6.5, modules/{mlp,block_sparse_mlp}.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from exltune.inventory.config import ModelShape
from exltune.schema.inventory import LinearSpec, Role

_NAMES = ("gate_proj", "up_proj", "down_proj")


def mlp_linears(shape: ModelShape, layer: int) -> Iterator[LinearSpec]:
    """The linears of one layer's MLP in forward order, fp16 gates included."""
    key = _key(shape, layer)
    if layer < shape.dense_layers:
        roles = (Role.MLP_GATE, Role.MLP_UP, Role.MLP_DOWN)
        yield from _gated(key, layer, roles, shape.hidden, shape.dense_intermediate, shape.mlp_bias)
        return
    yield from mlp_gates(shape, layer)
    if shape.shared_intermediate:
        roles, within = (Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN), f"{key}.{shape.row.names.shared}"
        yield from _gated(within, layer, roles, shape.hidden, shape.shared_intermediate, False)
    roles, bias = (Role.EXPERTS_GATE_UP, Role.EXPERTS_GATE_UP, Role.EXPERTS_DOWN), shape.row.expert_bias
    for expert in range(shape.experts):
        within, names = f"{key}.experts.{expert}", shape.row.names.experts
        yield from _gated(within, layer, roles, shape.hidden, shape.moe_intermediate, bias, names)


def mlp_gates(shape: ModelShape, layer: int) -> Iterator[LinearSpec]:
    """The fp16 linears among them: the router, and the gate of a shared expert."""
    if layer < shape.dense_layers:
        return
    key, names = _key(shape, layer), shape.row.names
    bias = "bias" in shape.row.router_buffers
    yield _linear(f"{key}.{names.router}", Role.ROUTER, layer, shape.hidden, shape.experts, bias)
    if shape.shared_intermediate and shape.row.shared_gate is not None:
        yield _linear(f"{key}.{shape.row.shared_gate}", Role.GATE, layer, shape.hidden, 1)


def mlp_tensors(shape: ModelShape, layer: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of the other tensors of one layer's MLP; the router's weight is not among it."""
    if layer < shape.dense_layers:
        return {}
    router = f"{_key(shape, layer)}.{shape.row.names.router}"
    return {f"{router}.{name}": (shape.experts,) for name in shape.row.router_buffers}


def _key(shape: ModelShape, layer: int) -> str:
    name = "mlp" if layer < shape.dense_layers else shape.row.names.mlp
    return f"{shape.row.names.prefix}.layers.{layer}.{name}"


def _gated(
    prefix: str,
    layer: int,
    roles: tuple[Role, Role, Role],
    hidden: int,
    intermediate: int,
    bias: bool,
    names: tuple[str, str, str] = _NAMES,
) -> Iterator[LinearSpec]:
    gate, up, down = names
    yield _linear(f"{prefix}.{gate}", roles[0], layer, hidden, intermediate, bias)
    yield _linear(f"{prefix}.{up}", roles[1], layer, hidden, intermediate, bias)
    yield _linear(f"{prefix}.{down}", roles[2], layer, intermediate, hidden, bias)


def _linear(key: str, role: Role, layer: int, in_features: int, out_features: int, bias: bool = False) -> LinearSpec:
    return LinearSpec(key=key, role=role, layer=layer, in_features=in_features, out_features=out_features, bias=bias)
