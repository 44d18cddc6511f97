"""gpu_throughput.py on layers of GLM-4.5-Air's shapes."""

from __future__ import annotations

from typing import Any

from gpu_throughput import throughput

from parity.take import Task


def take(task: Task) -> dict[str, Any]:
    sizes = task.sizes
    return throughput(
        task.work / "random", sizes.throughput, [task.device], sizes.mixes, sizes.tokens, sizes.prompt, task.keep
    )
