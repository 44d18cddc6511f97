"""Run exltune and kill a busy Ray worker as probes are kept: kill_ray_worker.py HOW_OFTEN_KEPT ARGUMENT..."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from exltune.engines.ray.cluster import Cluster
from exltune.store.probes import ProbeStore


def main() -> None:
    """Arm the store, then be the command."""
    number, *arguments = sys.argv[1:]
    arm(int(number))
    from exltune.cli import main as exltune

    sys.argv = ["exltune", *arguments]
    exltune()


def arm(number: int) -> None:
    """Let a worker die by SIGKILL when the store is written to for the `number`th time, or the next while one works."""
    clusters: list[Cluster] = []
    killed: list[int] = []
    enter, add, left = Cluster.__enter__, ProbeStore.add, number

    def entered(cluster: Cluster) -> Cluster:
        clusters.append(cluster)
        return enter(cluster)

    def deadly(*args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= 1
        busy = [worker for worker in clusters[0]._workers.values() if worker.task is not None and worker.place]
        # Workers may all be idle for a moment: then the next write tells.
        if left <= 0 and busy and not killed:
            killed.append(busy[0].place.pid)
            os.kill(killed[0], signal.SIGKILL)
        add(*args, **kwargs)

    Cluster.__enter__ = entered  # type: ignore[method-assign]
    ProbeStore.add = deadly  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
