"""`exltune peers`: the command and its tables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import output, print_json
from exltune.cli.flags import Only
from exltune.cli.registry import Section, command
from exltune.cli.session import open_session
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.schema.peers import PeersResult

_GROUPS = "32,64,128"


@command(Section.JUDGE, 3)
def peers(
    *,
    model: options.Model,
    quants: options.Quants,
    groups: Annotated[str, typer.Option("--groups", help="Group sizes of the W4A16 peers.")] = _GROUPS,
    data: options.DataFlags,
    trust_data: options.TrustData = False,
    engine: Annotated[options.EngineFlags, Only("max_ram", "store")],
    result: options.CopyFlags,
) -> None:
    """Put round-to-nearest and AWQ-style W4A16 (simulated) beside EXL3 on the same model, tokens and bytes."""
    from exltune.pipeline.evaluation.peers import ENGINE
    from exltune.pipeline.evaluation.peers import peers as run

    sizes, flags = parse_groups(groups), replace(engine, engine=ENGINE)
    with open_session(model, data, flags, quants=quants, out=result.out) as session:
        found = run(session, groups=sizes, trust_data=trust_data, out=result.out, force=result.force)
    if result.json:
        print_json(found.model_dump(mode="json"))
    else:
        _show(found)


def parse_groups(text: str) -> tuple[int, ...]:
    """`32,64,128` -> (32, 64, 128). Raises: UsageError."""
    numbers = options.parse_numbers("--groups", text, _GROUPS)
    if any(number < 1 or number != int(number) for number in numbers):
        raise UsageError(f"--groups {text!r} are not group sizes", fix=f"For example --groups {_GROUPS}")
    return tuple(map(int, numbers))


def _show(found: PeersResult) -> None:
    from exltune.cli.peers_tables import peers_lines, peers_table

    output().print(peers_table(found))
    for line in peers_lines(found):
        typer.echo(line)
