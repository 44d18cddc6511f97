"""Options of the engine, its memory, and where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli.options.numbers import parse_devices
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.engines import Resources
    from exltune.engines.ray.options import RayOptions
    from exltune.pipeline.common.session import EngineOptions

_MAX_RAM, _MAX_VRAM, _RAY, _RAY_CPUS = "--max-ram", "--max-vram", "--ray", "--ray-cpus"


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Of every command that scores or quantizes."""

    engine: Annotated[str, typer.Option("--engine", help="auto, reference (CPU) or exllamav3 (CUDA).")] = "auto"
    devices: Annotated[
        str | None, typer.Option("--devices", help="CUDA devices to use, such as 0,1,2; else all.", show_default=False)
    ] = None
    max_ram: Annotated[
        str | None,
        typer.Option(
            _MAX_RAM, help="Hidden states in RAM at one time, as 8GiB; of each worker.", show_default="2GiB; CUDA: 8GiB"
        ),
    ] = None
    max_vram: Annotated[
        str | None,
        typer.Option(_MAX_VRAM, help="Memory to take of each CUDA device, as 20GiB.", show_default="all that is free"),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            _RAY,
            metavar="auto|ADDRESS",
            help="Score on a Ray cluster: auto takes the one that runs here, or starts one on this machine.",
            show_default=False,
        ),
    ] = None
    ray_cpus: Annotated[
        int | None,
        typer.Option(_RAY_CPUS, min=1, help="Cores of a worker where the engine runs on the CPU.", show_default="1"),
    ] = None

    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="FILE|URL",
            help="Where scores are kept, and taken from: an SQLite file, or postgresql://user@host/database.",
            show_default="scores.db beside --out",
        ),
    ] = None

    def options(self) -> EngineOptions:
        """The engine, its resources, and the cluster. Raises: UsageError naming the option."""
        from exltune.pipeline.common.session import EngineOptions

        return EngineOptions(self.engine, self.resources(), self.ray_options())

    def store_for(self, out: Path | None) -> str | Path | None:
        """Where the scores of an output are kept; None for the user's own file."""
        from exltune.store.names import SCORES

        return self.store if self.store is not None or out is None else out.with_name(SCORES)

    def device_numbers(self) -> tuple[int, ...]:
        """The CUDA devices that are named. Raises: UsageError naming the option."""
        return parse_devices(self.devices)

    def resources(self) -> Resources:
        """The engine's resources. Raises: UsageError naming the option."""
        from exltune.budget import parse_size
        from exltune.engines import Resources

        return Resources(
            self.device_numbers(),
            state_bytes=None if self.max_ram is None else parse_size(self.max_ram, _MAX_RAM),
            vram_bytes=None if self.max_vram is None else parse_size(self.max_vram, _MAX_VRAM),
        )

    def ray_options(self) -> RayOptions | None:
        """The cluster to score on, if any. Raises: UsageError."""
        if self.ray is None and self.ray_cpus is not None:
            raise UsageError(f"{_RAY_CPUS} needs {_RAY}", fix=f"Give {_RAY} auto, or leave {_RAY_CPUS} out")
        if self.ray is None:
            return None
        from exltune.engines.ray.options import RayOptions

        return RayOptions(self.ray, self.ray_cpus or 1)
