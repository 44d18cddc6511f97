"""The loss of a mix where the two of a pair (k and v, gate and up) have different bits, in words."""

from __future__ import annotations

from collections.abc import Mapping

from exltune.budget import SizeModel
from exltune.report.heat_map import layer_ranges
from exltune.search import unfused


def unfused_note(bits: Mapping[str, float], sizes: SizeModel) -> tuple[str, ...]:
    """One note, or none where nothing is given up. bits: of every group, by id."""
    split = unfused(bits, sizes)
    if not split:
        return ()
    where = ", ".join(f"{role} of layer {layer_ranges(layers)}" for role, layers in split.items())
    return (
        f"Two widths within {where}: exllamav3 runs two kernels there where equal bits share one, which is slower "
        "(`keep_fused` of optimize keeps them equal)",
    )
