"""Options that say which texts there are and how they are dealt to token sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli.options.numbers import parse_weights
from exltune.schema.defaults import DEFAULT_ROW_LENGTH, DEFAULT_ROWS

if TYPE_CHECKING:
    from exltune.schema.tokens import DataOptions


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Of every command that reads texts."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="[DOMAIN=]PATH",
            help="Texts, chats (.jsonl, .parquet), packed tokens (.safetensors), or folders of them, instead of "
            "exllamav3's bundled texts, which the path `bundled` names. Repeatable.",
            show_default=False,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Shares of the domains, such as math=2,code=0.5; else 1.", show_default=False),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Chats or texts taken of each domain; else all.", show_default=False),
    ] = None
    sample_tokens: Annotated[
        int | None,
        typer.Option(
            "--sample-tokens", min=2, help="Tokens after which a chat or text is cut; else none.", show_default=False
        ),
    ] = None
    rows: Annotated[int, typer.Option("--rows", min=16, help="Rows over all four token sets together.")] = DEFAULT_ROWS
    row_length: Annotated[int, typer.Option("--row-length", min=2, help="Tokens in a row.")] = DEFAULT_ROW_LENGTH
    seed: Annotated[int, typer.Option("--seed", help="Seed by which texts are dealt to the token sets.")] = 0

    def moved(self, measured: DataOptions) -> DataOptions | None:
        """The texts of a measurement at their new places, dealt as they were; None where none are named."""
        if not self.data:
            return None
        named = ("texts", "sources", "weights", "samples", "sample_tokens")
        given = self.options()
        return measured.model_copy(update={name: getattr(given, name) for name in named})

    def options(self) -> DataOptions:
        """Settings of the token sets. Raises: UsageError."""
        from exltune.corpora.dealing import data_options_of

        return data_options_of(
            self.data or [],
            rows=self.rows,
            row_length=self.row_length,
            seed=self.seed,
            weights=parse_weights(self.weights),
            samples=self.samples,
            sample_tokens=self.sample_tokens,
        )
