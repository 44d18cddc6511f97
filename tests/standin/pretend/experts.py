"""Fused MLPs of exllamav3's extension (exl3_moe.cu, libtorch/{mlp,blocksparse_mlp}.cpp, 1.6.5), which follow pointers.

What their constructors refuse is refused here with the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.standin.pretend.fused import linear_at

#: activation_fn_idx of gated silu.
_SILU = 0


@dataclass(frozen=True)
class Table:
    """One projection of all experts: addresses (experts,) of trellis, suh and svh, bits, (mcg, mul1)."""

    trellis: Tensor
    suh: Tensor
    svh: Tensor
    rate: float
    codebook: tuple[bool, bool]

    def run(self, x: Tensor, expert: int, width: int) -> Tensor:
        """x (n, in) -> (n, width) fp32."""
        addresses = (int(self.trellis[expert]), int(self.suh[expert]), int(self.svh[expert]))
        return linear_at(x, addresses, (x.shape[1], width, width), self.rate, self.codebook)


@dataclass(frozen=True)
class Experts:
    """Gate, up and down of all experts; intermediates (n, width) are of `dtype`."""

    gate: Table
    up: Table
    down: Table
    width: int
    dtype: torch.dtype

    def run(self, x: Tensor, expert: int) -> Tensor:
        """x (n, hidden) fp16 -> (n, hidden) fp32."""
        gate, up = (table.run(x, expert, self.width).to(self.dtype) for table in (self.gate, self.up))
        return self.down.run((functional.silu(gate.float()) * up.float()).half(), expert, x.shape[1])


def exl3_moe_max_concurrency(device: int) -> int:
    """Experts in flight."""
    return 4


def exl3_moe(x: Tensor, out: Tensor, counts: Tensor, tokens: Tensor, weights: Tensor, *rest: Any) -> None:
    """Experts that counts (experts + 1,) says have from `low` to `high` rows; weighted rows go to slots, or to out.

    tokens, weights: of all rows, sorted by expert.
    """
    buffers, (activation, *rates), others = rest[:4], rest[4:8], rest[8:]
    addresses, marks, (limit, _active, scratch, base, low, high, _tile) = others[:9], others[9:15], others[15:]
    if activation != _SILU or limit != 0.0:
        raise NotImplementedError("an activation other than silu")
    tables = [Table(*addresses[3 * i : 3 * i + 3], rates[i], (marks[2 * i], marks[2 * i + 1])) for i in range(3)]
    experts = Experts(*tables, buffers[2].shape[-1], buffers[2].dtype)
    ends = counts.cumsum(0).tolist()
    for expert, count in enumerate(counts[: len(tables[0].trellis)].tolist()):
        if not low <= count <= high:
            continue
        rows = slice(ends[expert] - count, ends[expert])
        y = experts.run(x[tokens[rows]], expert) * weights[rows, None].float()
        if scratch is None:
            out.index_add_(0, tokens[rows], y)
        else:
            scratch[int(base[expert]) : int(base[expert]) + count] = y


def exl3_moe_gather(
    out: Tensor,
    scratch: Tensor,
    experts: Tensor,
    places: Tensor,
    starts: Tensor,
    bases: Tensor,
    kinds: Tensor,
    weights: Tensor,
) -> None:
    """out (tokens, hidden) += each token's slots; kind 1 is weighted already, 2 is not, 0 has none."""
    top = len(experts) // len(out)
    for number, expert in enumerate(experts.tolist()):
        if 0 <= expert < len(kinds) and int(kinds[expert]):
            place = int(places[number])
            weight = float(weights[place]) if int(kinds[expert]) == 2 else 1.0
            out[number // top] += scratch[int(bases[expert]) + place - int(starts[expert])] * weight


class BC_GatedMLP:
    """The bound class behind GatedMLP for few rows."""

    def __init__(self, *arguments: Any) -> None:
        self._buffers, (trellis, suh, svh, rate, mcg, mul1, silu), others = (
            arguments[:4],
            arguments[4:11],
            arguments[11:],
        )
        _gelu, _relu2, gate, up, down, limit = others
        if not silu or limit != 0.0:
            raise NotImplementedError("an activation other than silu")
        self._table = None if trellis is None else Table(trellis, suh, svh, rate, (mcg, mul1))
        self._parts, self._down = [part.made for part in (gate, up) if part is not None], down.made

    def run_bszN(self, x: Tensor, out: Tensor) -> None:
        """x (1, n, hidden) -> out (1, n, hidden)."""
        width, dtype = self._buffers[1].shape[-1], self._buffers[1].dtype
        if self._table is None:
            gate, up = (part.run_alloc(x[0], width, dtype == torch.float) for part in self._parts)
        else:
            gate, up = (self._table.run(x[0], place, width).to(dtype) for place in range(2))
        inner = (functional.silu(gate.float()) * up.float()).half()
        out[0] = self._down.run_alloc(inner, out.shape[-1], out.dtype == torch.float)


#: What BC_BlockSparseMLP is given by position; of a projection: its table, bits and marks.
_TABLE = ("trellis", "suh", "svh", "rate", "mcg", "mul1")
_GIVEN = (
    *("yh2", "yh", "interm_gu", "interm_g", "interm_u", "interm_a", "interm_a2", "out_d", "out_d2", "shared_out"),
    *("counters", "had_u", "dq_up", "dq_down", "first", "last"),
    *(f"{part}_{name}" for part in ("gate", "up", "down") for name in _TABLE),
    *("silu", "gelu", "oai", "shared", "shared_gate", "limit", "gates", "ups", "downs"),
    *("gu_trellis", "gu_suh", "gu_svh", "out", "gate_bias", "up_bias", "down_bias"),
)


class BC_BlockSparseMLP:
    """The bound class behind BlockSparseMLP: all of it for few rows; source: blocksparse_mlp.cpp's constructor."""

    def __init__(self, *arguments: Any, act_relu2: bool = False, sh_coop: bool = False) -> None:
        given = dict(zip(_GIVEN, arguments, strict=True))
        plain = given["silu"] and given["gates"] and given["limit"] == 0.0 and given["first"] < 0
        extra = [given[name] for name in ("shared_gate", "gate_bias", "up_bias", "down_bias")]
        if not plain or any(part is not None for part in extra):
            raise NotImplementedError("experts other than all of them with gates, silu and no biases")
        tables = [_table(given, part) for part in ("gate", "up", "down")]
        if len({table.codebook for table in tables}) != 1:
            raise RuntimeError("BC_BlockSparseMLP: gate/up/down must share a codebook")
        if tables[0].rate != tables[1].rate:
            raise RuntimeError("BC_BlockSparseMLP: gate and up must share a bit width")
        self._experts = Experts(*tables, given["interm_g"].shape[-1], given["interm_g"].dtype)
        self._shared, self._out = given["shared"], given["out"]

    def run_bszN(self, x: Tensor, selected: Tensor, weights: Tensor) -> None:
        """x (n, hidden) through its experts, into the buffer for few rows; the shared expert's share included."""
        total = torch.zeros(x.shape, dtype=torch.float)
        for row, (chosen, shares) in enumerate(zip(selected.tolist(), weights.tolist(), strict=True)):
            for expert, share in zip(chosen, shares, strict=True):
                total[row] += self._experts.run(x[row : row + 1], expert)[0] * share
        if self._shared is not None:
            shared = torch.empty(1, *x.shape, dtype=torch.float)
            self._shared.made.run_bszN(x[None], shared)
            total += shared[0]
        self._out[: len(x)] = total


def _table(given: dict[str, Any], part: str) -> Table:
    trellis, suh, svh, rate, *marks = (given[f"{part}_{name}"] for name in _TABLE)
    return Table(trellis, suh, svh, rate, (bool(marks[0]), bool(marks[1])))


def functions() -> dict[str, Any]:
    """By name, the functions; `classes` has the rest."""
    return {function.__name__: function for function in (exl3_moe, exl3_moe_gather, exl3_moe_max_concurrency)}


def classes() -> dict[str, type]:
    """By name."""
    return {class_.__name__: class_ for class_ in (BC_GatedMLP, BC_BlockSparseMLP)}
