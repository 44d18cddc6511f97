"""Peak VRAM of loading and using a quant, against the plan: validated cells."""

from __future__ import annotations

from typing import Any

from gpu_memory import CACHES, memory_cells
from gpu_throughput import WIDTHS
from random_model import write_random_model

from parity.take import Task


def take(task: Task) -> dict[str, Any]:
    sizes = task.sizes
    # The step throughput has written them, if this machine took it.
    quant = write_random_model(task.work / "random", sizes.throughput, WIDTHS)["3"]
    cells = memory_cells(
        quant,
        task.device,
        sizes.contexts,
        sizes.chunk,
        # The stand-in has no kernels of a quantized cache.
        CACHES[:1] if task.dry else CACHES,
        keep=lambda cells: task.keep({"cells": cells}),
    )
    return {"cells": cells}
