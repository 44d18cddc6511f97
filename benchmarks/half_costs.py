"""exllamav3's quantize_tiles with its fp16 costs, restated in torch: to compare index for index what a GPU encodes.

    python benchmarks/half_costs.py [--tiles 32]      # what fp16 costs are worth against exltune's fp32, on any machine

Costs are sums of squared errors that are rounded to fp16 at every step (a fused multiply-add rounds once), and of equal
costs the lowest branch wins. Source: exllamav3 1.6.5, exllamav3_ext/quant/quantize_tiles_kernel.cuh (the kernel of all
but Ada, Ampere and consumer Blackwell cards, which have others at some widths) and quantize_tiles_frac_kernel.cuh.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from exltune.exl3.codebooks import Codebook, codebook_values
from exltune.exl3.trellis import encode_tiles

_LENGTH = 256
_STATE_BITS = 16
#: Tiles at a time: the history of one is 8 MiB at 1 bit.
_BATCH = 64
#: Tiles that a card is compared on: the emulation takes a CPU a second for each.
EMULATED_TILES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=32)
    tiles = np.random.default_rng(0).standard_normal((parser.parse_args().tiles, _LENGTH), dtype=np.float32)
    print(f"{len(tiles)} Gaussian tiles, mul1: indices that differ between fp16 and fp32 costs, and NMSE of both")
    for bits in (1, 2, 3, 3.5, 4, 5, 6, 8):
        fp16, fp32 = encode_with_half_costs(tiles, bits), encode_tiles(tiles, bits, "mul1")
        found = compared(tiles, fp16, fp32, fp16)
        print(
            f"K={bits:<3g} {found['differ_from_fp32']:7.2%}  fp16 {found['nmse']:.6f}  fp32 {found['nmse_fp32']:.6f}  "
            f"{found['nmse'] / found['nmse_fp32'] - 1:+.3%}"
        )


def compared(
    tiles: npt.NDArray[np.float32],
    states: npt.NDArray[np.uint16],
    fp32: npt.NDArray[np.uint16],
    emulated: npt.NDArray[np.uint16],
) -> dict[str, float]:
    """How states (n, 256) of a kernel with fp16 costs differ from both encoders of a CPU, and the NMSE.

    fp32: (n, 256), the states of exltune's encoder. emulated: (m, 256), those of encode_with_half_costs of the first m.
    """
    table = codebook_values("mul1")
    return {
        "differ_from_fp32": float((states != fp32).mean()),
        "differ_from_emulated": float((states[: len(emulated)] != emulated).mean()),
        "emulated_tiles": len(emulated),
        "nmse": float(((table[states] - tiles) ** 2).mean()),
        "nmse_fp32": float(((table[fp32] - tiles) ** 2).mean()),
    }


def encode_with_half_costs(
    tiles: npt.NDArray[np.float32], bits: float, codebook: Codebook = "mul1"
) -> npt.NDArray[np.uint16]:
    """States (n, 256) of tiles (n, 256) as quantize_tiles chooses them; on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = _Encoder(bits, codebook, device)
    parts = [encoder.encode(part.to(device)) for part in torch.from_numpy(tiles).split(_BATCH)]
    return torch.cat(parts).cpu().numpy().astype(np.uint16)


class _Encoder:
    def __init__(self, bits: float, codebook: Codebook, device: torch.device) -> None:
        whole = int(bits)
        #: New bits at even and at odd positions.
        self.new = (whole, whole + (bits != whole))
        self.table = torch.tensor(codebook_values(codebook), device=device)

    def encode(self, tiles: Tensor) -> Tensor:
        """(n, 256) fp32 -> (n, 256) states."""
        tiles = tiles.half().float()
        costs, history = self._forward(tiles, _LENGTH // 2, None)
        ends, _ = self._backward(history, _LENGTH // 2, _first_least(costs))
        _, history = self._forward(tiles, 0, ends)
        return self._backward(history, 0, ends)[1]

    def _axes(self, position: int) -> tuple[int, int]:
        """New bits at a position, and at the one behind it."""
        return self.new[position % 2], self.new[(position + 1) % 2]

    def _forward(self, tiles: Tensor, roll: int, ends: Tensor | None) -> tuple[Tensor, dict[int, Tensor]]:
        """Costs (n, nodes) after all positions, from `roll` on around the ring, and each position's best branches."""
        nodes = 1 << (_STATE_BITS - self.new[0])
        costs = torch.zeros(len(tiles), nodes, device=tiles.device)
        if ends is not None:
            costs = torch.full_like(costs, torch.inf).scatter(1, ends[:, None], 0.0)
        history = {}
        for step in range(_LENGTH):
            position = (step + roll) % _LENGTH
            costs, branches = self._step(costs, tiles[:, position], position)
            if ends is not None or position < _LENGTH // 2:
                history[position] = branches
        return costs, history

    def _step(self, costs: Tensor, weights: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Costs of in nodes -> of out nodes (n, 65536 >> behind), and the branch (n, the same) that each came by."""
        here, behind = self._axes(position)
        n = len(costs)
        gap = (self.table - weights[:, None]).half().float()  # (n, 65536), as fp16 subtracts
        total = half_of_sum(gap * gap, costs.repeat_interleave(1 << here, dim=1))  # state >> here is the in node
        # Nonnegative halves order as their bits do; the branch breaks ties.
        keys = total.view(torch.int16).int() << 8
        keys = (
            keys.view(n, 1 << behind, -1) | torch.arange(1 << behind, device=costs.device, dtype=torch.int32)[:, None]
        )
        least = keys.min(dim=1).values
        return (least >> 8).to(torch.int16).view(torch.half).float(), (least & 0xFF).to(torch.uint8)

    def _backward(self, history: dict[int, Tensor], roll: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The in node of position 0 (n,) on the best paths into `nodes` (n,), and the states on the way."""
        states = torch.zeros(len(nodes), _LENGTH, dtype=torch.int64, device=nodes.device)
        for step in range(_LENGTH - 1, -1, -1):
            position = (step + roll) % _LENGTH
            here, behind = self._axes(position)
            branch = history[position].gather(1, nodes[:, None])[:, 0].long()
            states[:, position] = (branch << (_STATE_BITS - behind)) | nodes
            nodes = states[:, position] >> here
            if position == 0:
                break
        return nodes, states


def half_of_sum(product: Tensor, cost: Tensor) -> Tensor:
    """fp16 of product + cost >= 0, rounded once: the sum in fp32 is rounded to odd where it is not exact."""
    total = product + cost
    other = total - product
    rest = (product - (total - other)) + (cost - other)
    bits = total.view(torch.int32)
    inexact = (rest != 0) & torch.isfinite(rest) & (bits & 1 == 0)
    odd = bits + torch.where(inexact, rest.sign().int(), torch.zeros_like(bits))
    return odd.view(torch.float).half()


def _first_least(costs: Tensor) -> Tensor:
    """The node of least cost (n,); of equal ones the first in the order in which the kernel's threads report."""
    node = torch.arange(costs.shape[1], device=costs.device)
    inner = node & 1023
    rank = _reversed(inner >> 5) << 10 | _reversed(inner & 31) << 5 | node >> 10
    keys = (costs.half().view(torch.int16).long() << 16) | rank
    best = keys.min(dim=1).values & 0xFFFF
    return (best & 31) << 10 | _reversed(best >> 10) << 5 | _reversed(best >> 5 & 31)


def _reversed(five: Tensor) -> Tensor:
    """Five bits, the last first."""
    return sum(((five >> bit) & 1) << (4 - bit) for bit in range(5))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
