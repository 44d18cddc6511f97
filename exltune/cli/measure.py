"""`exltune measure`: the command."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, errors_in_one_line, print_json
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.engines.ray.cluster import RayOptions

_RAY, _RAY_CPUS = "--ray", "--ray-cpus"

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FILE|URL",
        help="Where finished probes are kept: an SQLite file, or postgresql://user@host/database.",
        show_default="probes.db beside --out",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="PASSES|HOURSh|all",
        help="What it may cost: passes over the model (60), hours (1.5h), or all: every swap on all rows.",
        show_default="a tenth of all",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        _RAY,
        metavar="auto|ADDRESS",
        help="Measure on a Ray cluster: auto takes the one that runs here, or starts one on this machine.",
        show_default=False,
    ),
]
RayCpus = Annotated[
    int | None,
    typer.Option(_RAY_CPUS, min=1, help="Cores of a worker where the engine runs on the CPU.", show_default="1"),
]


def measure(
    model: options.Model,
    quants: options.Quants,
    out: options.Out,
    level: options.Level = "l3",
    budget: Budget = None,
    data: options.Data = None,
    weights: options.Weights = None,
    samples: options.Samples = None,
    sample_tokens: options.SampleTokens = None,
    rows: options.Rows = options.ROWS,
    row_length: options.RowLength = options.ROW_LENGTH,
    seed: options.Seed = 0,
    engine: options.EngineName = "auto",
    store: Store = None,
    devices: options.Devices = None,
    max_ram: options.MaxRam = None,
    max_vram: options.MaxVram = None,
    ray: Ray = None,
    ray_cpus: RayCpus = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure what each group's bits do to the model's output (KL divergence). Resumes after a kill."""
    with errors_in_one_line(json):
        from exltune.measure import parse_budget
        from exltune.pipeline.measurement.measure import measure as run
        from exltune.pipeline.measurement.probe_runs import ProbeCounts

        counts = ProbeCounts()
        found = run(
            model,
            quants,
            out,
            options.texts(data, weights, samples, sample_tokens, rows, row_length, seed),
            level=options.parse_level(level),
            budget=parse_budget(budget),
            engine=engine,
            store=store,
            resources=options.resources(devices, max_ram, max_vram),
            ray=_ray_settings(ray, ray_cpus),
            force=force,
            reporter=RichReporter(),
            counts=counts,
        )
        if json:
            told = asdict(counts)
            groups = len(found.groups)
            print_json({"measurement": str(out), "groups": groups, "base_kld": found.base_kld, "probes": told})
        else:
            typer.echo(out)


def _ray_settings(address: str | None, cpus: int | None) -> RayOptions | None:
    from exltune.engines.ray.cluster import RayOptions

    if address is None:
        if cpus is not None:
            raise UsageError(f"{_RAY_CPUS} needs {_RAY}", fix=f"Give {_RAY} auto, or leave {_RAY_CPUS} out")
        return None
    return RayOptions(address, cpus or 1)
