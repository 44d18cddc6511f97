"""The CPU encoder against quantize_tiles: how many indices differ, and what that is worth in distortion."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from half_costs import compared

from exltune.engines.exllamav3.runtime import import_exllamav3
from parity.kit import TILES, tiles_hash
from parity.take import Task

#: Distortion of the card's encoder over that of ours: fp16 costs are worth 0.2 % at 1 bit.
_WORSE = 1.01


def take(task: Task) -> dict[str, Any]:
    import_exllamav3()
    from exllamav3.modules.quant.exl3_lib.quantize import quantize_tiles

    known, tiles = np.load(task.carried(TILES)), task.made_of.drawn_tiles()
    if str(known["sha256"]) != tiles_hash(tiles):
        raise RuntimeError("numpy draws other tiles here than where the kit was made")
    found: dict[str, Any] = {}
    for bits in task.made_of.tile_bits:
        # exllamav3 shifts by whole bits: they must be integers.
        width = int(bits) if float(bits).is_integer() else bits
        _, states = quantize_tiles(torch.from_numpy(tiles).to(task.device), {"K": width, "mul1": True})
        here = states.cpu().numpy().view(np.uint16)
        found[f"{bits:g}"] = compared(tiles, here, known[f"fp32_{bits:g}"], known[f"fp16_{bits:g}"])
        task.keep({"bits": found})
    worse = [bits for bits, one in found.items() if one["nmse"] > _WORSE * one["nmse_fp32"]]
    return {
        "ok": not worse,
        **({"error": f"more distortion than exltune's encoder at {', '.join(worse)} bits"} if worse else {}),
        "tiles": len(tiles),
        "bits": found,
    }
