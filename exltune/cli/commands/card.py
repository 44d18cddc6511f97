"""`exltune card`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, print_json
from exltune.cli.registry import Section, command

_Outs = Annotated[
    list[Path], typer.Argument(metavar="OUT...", help="Directories of exltune tune, or EXL3 directories of one model.")
]
_Evaluation = Annotated[
    list[Path] | None,
    typer.Option(
        "--evaluation",
        help="Evaluation file of EXL3 directories, from exltune evaluate; repeatable.",
        show_default=False,
    ),
]
_BaseModel = Annotated[
    str | None,
    typer.Option("--base-model", help="The model's name on the Hub, such as zai-org/GLM-4.7.", show_default=False),
]
_License = Annotated[
    str | None,
    typer.Option("--license", help="As the Hub names it: apache-2.0, mit, other. From the model's card if it has one."),
]
_Gpus = Annotated[
    list[str] | None,
    typer.Option("--gpus", help="Cards to tell contexts for, such as 2x24GiB; repeatable.", show_default=False),
]


@command(Section.SHIP, 2)
def card(
    *,
    outs: _Outs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The card; its sources go beside it.")] = Path("README.md"),
    evaluation: _Evaluation = None,
    base_model: _BaseModel = None,
    license: _License = None,
    license_name: Annotated[str | None, typer.Option("--license-name", help="Of the license 'other'.")] = None,
    license_link: Annotated[str | None, typer.Option("--license-link", help="Of the license 'other'.")] = None,
    repo_id: Annotated[
        str | None, typer.Option("--repo-id", help="Where exltune push will put it, OWNER/NAME.", show_default=False)
    ] = None,
    gpus: _Gpus = None,
    cache: Annotated[str, typer.Option("--cache", help="Bits of the cache's keys and values, or fp16.")] = "fp16",
    result: options.OutputFlags,
) -> None:
    """Write the model card of finished quants: tables, plots and commands, every number from a file beside it."""
    from exltune.errors import UsageError
    from exltune.pipeline.publication.card import CardOptions
    from exltune.pipeline.publication.card import card as run
    from exltune.schema.card import License

    if license is None and (license_name or license_link):
        raise UsageError("--license-name and --license-link go with --license", fix="Add --license other")
    asked = CardOptions(
        base_model=base_model,
        license=None if license is None else License(id=license, name=license_name, link=license_link),
        repo_id=repo_id,
        gpus=tuple(gpus or ()),
        cache=cache,
    )
    made = run(outs, out, evaluations=evaluation or (), options=asked, force=result.force, reporter=RichReporter())
    if result.json:
        print_json(made.model_dump(mode="json"))
    else:
        typer.echo(f"{made.card}: {', '.join(made.branches)}")
