"""`exltune push`: the command and its table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, output, print_json
from exltune.cli.registry import Section, command

if TYPE_CHECKING:
    from rich.table import Table

    from exltune.schema.push import PushResult


@command(Section.SHIP, 3)
def push(
    *,
    outs: Annotated[list[Path], typer.Argument(metavar="OUT...", help="Outputs that the card was made from.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="The repository, OWNER/NAME.")],
    card: Annotated[
        Path | None, typer.Option("--card", help="The README of exltune card.", show_default="README.md in OUT")
    ] = None,
    branch: Annotated[
        list[str] | None,
        typer.Option("--branch", help="These quants alone, such as 3.15bpw_H6; repeatable.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List every action with its bytes, without the network.")
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Instead of HF_TOKEN or hf auth login.", show_default=False)
    ] = None,
    json: options.Json = False,
) -> None:
    """Bring finished quants to the Hugging Face Hub: a branch for each, the card on main. Run again, it goes on."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # exported lazily

    from exltune.pipeline.publication.push import PushOptions
    from exltune.pipeline.publication.push import push as run

    if not sys.stderr.isatty():
        disable_progress_bars()
    asked = PushOptions(
        repo_id=repo_id,
        card=card,
        branches=tuple(branch or ()),
        private=private,
        dry_run=dry_run,
        token_file=token_file,
    )
    done = run(outs, asked, reporter=RichReporter())
    if json:
        print_json(done.model_dump(mode="json"))
    else:
        _show(done)


def _show(done: PushResult) -> None:
    from exltune.budget import format_size

    if done.dry_run:
        output().print(_actions(done))
        typer.echo(f"{format_size(done.size_bytes, 'GB')} at most: files that the Hub has are not sent.")
        return
    for branch in done.branches:
        typer.echo(f"{branch.branch}: {branch.commit if branch.changed else 'there already'}")
    typer.echo(done.url)


def _actions(done: PushResult) -> Table:
    from rich.table import Table

    from exltune.budget import format_size

    table = Table(title=f"Changes of a push to {done.repo_id}")
    for name in ("Action", "Branch", "File"):
        table.add_column(name, no_wrap=True)
    table.add_column("Bytes", justify="right", no_wrap=True)
    table.add_column("Why")
    for action in done.actions:
        size = format_size(action.size_bytes, "GB") if action.do == "upload" else ""
        table.add_row(action.do, action.branch, action.path or "", size, action.reason or "")
    return table
