"""Which cluster to score on."""

from __future__ import annotations

from dataclasses import dataclass

#: The cluster that runs on this machine, or one of its own that ends with the work.
AUTO = "auto"


@dataclass(frozen=True)
class RayOptions:
    """address: of a cluster, or AUTO. cpus: cores of a worker where the engine runs on the CPU."""

    address: str = AUTO
    cpus: int = 1
